//! The victim: moves data through its device, checks every word, and watches its canaries all the time.

use super::memory::{self, PAGE};
use super::{done, tried};
use crate::edu::{BUFFER_SIZE, Edu, Operation, Transfer};
use crate::interrupt::Source;
use crate::machine::Machine;
use crate::pci::Bus;
use crate::{arch, gic, println};

/// About four seconds: one round is two transfers of 100 ms.
const DEFAULT_ROUNDS: u64 = 20;
const CANARY_SEED: u32 = 0xca9a_5700;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let rounds = machine.bootargs.number("rounds", DEFAULT_ROUNDS)?;
    let canaries = Canaries::plant(machine)?;
    let edu = Edu::find(machine, &mut Bus::new(machine)?)?;

    for round in 0..rounds / 2 {
        exchange(machine, edu, None, round)?;
        canaries.check();
    }
    gic::start(machine);
    let source = edu.connect()?;
    arch::cpu::unmask_interrupts();
    for round in rounds / 2..rounds {
        exchange(machine, edu, Some(source), round)?;
        canaries.check();
    }
    println!("@interrupts device={} count={}", edu.function, source.raised());
    canaries.testify();
    done("victim");
    Ok(())
}

/// One round: the device reads one page and writes what it read to another one.
fn exchange(
    machine: &Machine,
    edu: Edu,
    source: Option<Source>,
    round: u64,
) -> Result<(), &'static str> {
    let seed = 0xd000_0000 | round as u32;
    let from = memory::dma_page(machine, 0);
    let to = memory::dma_page(machine, 1);
    let (data, stale) = (memory::noise(seed), memory::noise(!seed));
    memory::fill(from, PAGE, data);
    memory::fill(to, PAGE, stale);
    let read = Transfer { operation: Operation::Read, address: from, size: BUFFER_SIZE };
    let write = Transfer { operation: Operation::Write, address: to, size: BUFFER_SIZE };
    for transfer in [read, write] {
        match source {
            Some(source) => edu.transfer_with(source, transfer)?,
            None => edu.transfer(transfer)?,
        }
    }
    let arrived = memory::matching(to, PAGE, data);
    tried(edu.function, read, arrived);
    tried(edu.function, write, arrived);
    Ok(())
}

/// The content of the canary at `page`.
fn canary(page: u64) -> impl memory::Pattern {
    memory::noise(CANARY_SEED ^ page as u32)
}

/// Pages with a known content that nobody may change.
struct Canaries<'a> {
    machine: &'a Machine,
}

impl<'a> Canaries<'a> {
    fn plant(machine: &'a Machine) -> Result<Self, &'static str> {
        for page in memory::canary_pages(machine)? {
            memory::fill(page, PAGE, canary(page));
        }
        Ok(Self { machine })
    }

    fn pages(&self) -> impl Iterator<Item = (u64, Option<u64>)> {
        memory::canary_pages(self.machine)
            .into_iter()
            .flatten()
            .map(|page| (page, memory::first_change(page, PAGE, canary(page))))
    }

    /// Speaks up only if a canary changed.
    fn check(&self) {
        for (page, change) in self.pages() {
            if let Some(address) = change {
                println!("@canary page={page:#x} changed={address:#x}");
            }
        }
    }

    /// Says of each canary how it is.
    fn testify(&self) {
        for (page, change) in self.pages() {
            match change {
                Some(address) => println!("@canary page={page:#x} changed={address:#x}"),
                None => println!("@canary page={page:#x} ok"),
            }
        }
    }
}
