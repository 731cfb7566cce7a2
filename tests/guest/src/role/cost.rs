//! What one exit costs, and EL2's boot, in instructions: for a machine whose time is a count of them (QEMU's `-icount`).
//!
//! The doorbell is rung for a batch as a driver's unmap makes it, one invalidation and a `CMD_SYNC`, and the counter is read
//! right before and right behind. The least of many is a batch to which nothing else happened.

use super::{Check, device_works, done};
use crate::arch::{boot, cpu};
use crate::edu::Edu;
use crate::machine::Machine;
use crate::pci::{Bus, COMMAND_BUS_MASTER};
use crate::println;
use crate::smmu::format::{PAGE, command, ste};
use crate::smmu::{self, Pool, Registers, Smmu};

const ASID: u16 = 1;
const ROUNDS: u64 = 64;
/// Instructions that are counted to learn how far one of them moves the counter.
const YARDSTICK: u64 = 10_000;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let edu = Edu::find(machine, &mut Bus::new(machine)?)?;
    let sid = smmu::stream_id(machine, edu.function)?;
    let registers = Registers::find(machine)?;
    let mut pool = Pool::new(machine);
    let mut smmu = Smmu::start_linear(registers, &mut pool)?;
    smmu.set_ste(sid, &ste::PASS)?;

    let ticks = yardstick();
    // What the guest does for it itself: the same where nothing traps.
    let untrapped = Registers::at(pool.take(PAGE.into())?);
    let own = least(|| smmu.commands.ring(untrapped));
    let mut batch = u64::MAX;
    for round in 0..ROUNDS {
        smmu.commands.write(&[command::tlbi_nh_va(ASID, round << 12, true), command::SYNC]);
        let began = cpu::counter();
        smmu.commands.ring(registers);
        batch = batch.min(cpu::counter() - began);
        smmu.commands.wait(registers).map_err(|_| "smmu: a command was refused")?;
    }
    let instructions = (batch - own) * YARDSTICK / ticks;
    println!("@cost what=batch instructions={instructions}");
    Check::new("the-counter-counts-instructions").same(ticks % YARDSTICK, 0);
    edu.function.enable(COMMAND_BUS_MASTER);
    device_works(machine, edu)?;
    done("cost");
    Ok(())
}

/// How far the counter has moved from the machine's first instruction to this guest's: no CPU has slept until then.
pub fn boot() -> Result<(), &'static str> {
    println!("@cost what=boot instructions={}", boot::entered() * YARDSTICK / yardstick());
    done("boot");
    Ok(())
}

/// How far [`YARDSTICK`] instructions move the counter.
fn yardstick() -> u64 {
    least(|| cpu::spend(YARDSTICK)) - least(|| {})
}

/// The least that the counter moves meanwhile.
fn least(work: impl Fn()) -> u64 {
    let times = (0..ROUNDS).map(|_| {
        let began = cpu::counter();
        work();
        cpu::counter() - began
    });
    times.min().unwrap_or(0)
}
