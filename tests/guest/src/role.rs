//! The roles.

mod check;
mod irq;
mod memory;
mod probe;
mod rogue;
mod smp;
mod spin;
mod victim;

use self::check::{Check, check, expect};
use crate::edu::Transfer;
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
        "smp" => smp::run(machine),
        "spin" => spin::run(machine),
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

/// The last line of a role.
fn done(role: &str) {
    println!("@done role={role}");
}
