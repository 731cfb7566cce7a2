//! The roles.

mod check;
mod cold;
mod irq;
pub mod memory;
mod probe;
mod reborn;
mod rogue;
mod scenarios;
mod smmu;
mod smp;
mod spin;
mod stage1;
mod victim;

use self::check::{Check, check, expect};
use crate::edu::{Edu, Transfer};
use crate::machine::Machine;
use crate::pci::Function;
use crate::println;

/// Runs the role that the bootargs name.
///
/// # Errors
///
/// A reason if there is none of that name, or if it cannot do its work.
pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let role = machine.bootargs.get("role").ok_or("bootargs: no role=")?;
    match role {
        "victim" => victim::run(machine),
        "rogue" => rogue::run(machine),
        "irq" => irq::run(machine),
        "probe" => probe::run(machine),
        "scenarios" => scenarios::run(machine),
        "smmu" => smmu::run(machine),
        "cold" => cold::run(machine),
        "reborn" => reborn::run(machine),
        "smp" => smp::run(machine),
        "spin" => spin::run(machine),
        "stage1" => stage1::run(machine),
        _ => Err("bootargs: unknown role"),
    }
}

/// Testifies that a DMA is over, and how many of its 4-byte accesses were seen to arrive.
fn tried(device: Function, transfer: Transfer, arrived: u64) {
    println!(
        "@tried device={device} op={} address={:#x} accesses={} arrived={arrived}",
        transfer.operation,
        transfer.address,
        transfer.accesses()
    );
}

/// Lets a device do a DMA that the guest's own SMMU configuration has to refuse, and testifies.
fn refused(edu: Edu, transfer: Transfer) -> Result<(), &'static str> {
    edu.transfer(transfer)?;
    println!(
        "@tried device={} op={} address={:#x} accesses={} arrived=0 to=nowhere",
        edu.function,
        transfer.operation,
        transfer.address,
        transfer.accesses()
    );
    Ok(())
}

/// The last line of a role.
fn done(role: &str) {
    println!("@done role={role}");
}
