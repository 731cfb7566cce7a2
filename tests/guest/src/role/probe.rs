//! The hostile guest: does what no driver does, and checks that it alone notices.

mod bars;
mod calls;
mod config;
mod interrupts;
mod registers;
mod space;

use super::{Check, check, done, expect, memory};
use crate::arch::exception::{self, Fault};
use crate::arch::{cpu, mem, odd};
use crate::edu::{BUFFER_SIZE, Edu, Operation, Transfer};
use crate::machine::Machine;
use crate::pci::Bus;
use crate::timer::{self, Deadline};
use crate::{gic, interrupt};

const CANARY_SEED: u32 = 0x9a0b_e000;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let mut bus = Bus::new(machine)?;
    gic::start(machine);
    cpu::unmask_interrupts();
    odd::enable_vectors();
    for page in memory::canary_pages(machine)? {
        memory::fill(page, memory::PAGE, memory::noise(CANARY_SEED ^ page as u32));
    }

    registers::probe();
    alive("registers");
    calls::probe();
    alive("calls");
    space::probe(machine);
    alive("address-space");
    interrupts::probe(machine);
    alive("interrupt-controller");
    config::probe(&mut bus)?;
    let edu = Edu::find(machine, &mut bus)?;
    alive("configuration-space");
    bars::probe(machine, &bus, edu)?;
    alive("bars");
    device_works(machine, edu)?;
    let mut canaries = Check::new("canaries");
    for page in memory::canary_pages(machine)? {
        canaries.same(
            memory::first_change(page, memory::PAGE, memory::noise(CANARY_SEED ^ page as u32)),
            None,
        );
    }
    drop(canaries);
    done("probe");
    Ok(())
}

/// Whether this CPU, its GIC and its timer still work.
fn alive(after: &str) {
    let before = [gic::DOORBELL, gic::VIRTUAL_TIMER].map(|intid| interrupt::count(0, intid));
    gic::send_sgi(gic::DOORBELL, cpu::affinity());
    Deadline::after_ms(1).arm_timer();
    let came = timer::poll_every_ms(1, Deadline::after_ms(2000), || {
        interrupt::count(0, gic::DOORBELL) == before[0] + 1
            && interrupt::count(0, gic::VIRTUAL_TIMER) == before[1] + 1
    });
    check("alive", came, format_args!("no interrupts after {after}"));
}

/// Whether the device still moves data.
fn device_works(machine: &Machine, edu: Edu) -> Result<(), &'static str> {
    let (from, to) = (memory::dma_page(machine, 0), memory::dma_page(machine, 1));
    memory::fill(from, BUFFER_SIZE, memory::noise(1));
    memory::fill(to, BUFFER_SIZE, memory::noise(2));
    edu.transfer(Transfer { operation: Operation::Read, address: from, size: BUFFER_SIZE })?;
    edu.transfer(Transfer { operation: Operation::Write, address: to, size: BUFFER_SIZE })?;
    expect("device-works", memory::matching(to, BUFFER_SIZE, memory::noise(1)), BUFFER_SIZE / 4);
    Ok(())
}

/// Whether an access ended in an external abort.
fn aborted(seen: Result<(), Fault>) -> bool {
    seen.is_err_and(Fault::is_external_abort)
}

/// Whether an access ended in any answer that a machine may give.
fn answered(seen: Result<(), Fault>) -> bool {
    seen.is_ok() || aborted(seen)
}

/// Whether nothing answers at `address`: neither RAM nor a device.
fn is_vacant(address: u64) -> bool {
    match exception::catch(|| mem::read32(address)) {
        Err(fault) => fault.is_external_abort(),
        Ok(value) => value == u32::MAX,
    }
}
