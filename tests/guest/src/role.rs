//! The roles.

mod irq;
mod memory;
mod rogue;
mod smp;
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
        "irq" => irq::run(machine),
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

/// Testifies to one check of a suite: what was seen matters only if it failed.
fn check(name: &str, passed: bool, seen: core::fmt::Arguments<'_>) {
    if passed {
        println!("@check name={name} ok");
    } else {
        println!("@check name={name} FAILED why={seen}");
    }
}

/// Testifies whether something is what it should be.
fn expect<T: PartialEq + core::fmt::Debug>(name: &str, seen: T, wanted: T) {
    check(name, seen == wanted, format_args!("{seen:?} instead of {wanted:?}"));
}

/// The last line of a role.
fn done(role: &str) {
    println!("@done role={role}");
}
