//! The roles.

mod memory;
mod rogue;
mod spin;
mod victim;

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

/// Testifies to one check of a suite.
fn check(name: &str, passed: bool, why: core::fmt::Arguments<'_>) {
    if passed {
        println!("@check name={name} ok");
    } else {
        println!("@check name={name} FAILED why={why}");
    }
}

/// The last line of a role.
fn done(role: &str) {
    println!("@done role={role}");
}
