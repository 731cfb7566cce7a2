//! The roles.

mod check;
mod cold;
mod cost;
mod deluge;
mod flood;
mod forger;
mod irq;
mod lineage;
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
pub use self::forger::disturb;
pub use self::smp::go_off_together;
use crate::edu::{Edu, Operation, Transfer};
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
        "deluge" => deluge::run(machine),
        "flood" => flood::run(machine),
        "forger" => forger::run(machine),
        "irq" => irq::run(machine),
        "lineage" => lineage::run(machine),
        "probe" => probe::run(machine),
        "scenarios" => scenarios::run(machine),
        "smmu" => smmu::run(machine),
        "boot" => cost::boot(),
        "cold" => cold::run(machine),
        "cost" => cost::run(machine),
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

/// Whether a device moves data where its addresses mean what they say.
fn device_works(machine: &Machine, edu: Edu) -> Result<(), &'static str> {
    const SIZE: u64 = 256;
    let (from, to) = (memory::dma_page(machine, 0), memory::dma_page(machine, 1));
    memory::fill(from, SIZE, memory::noise(1));
    memory::fill(to, SIZE, memory::noise(2));
    let read = Transfer { operation: Operation::Read, address: from, size: SIZE };
    let write = Transfer { operation: Operation::Write, address: to, size: SIZE };
    edu.transfer(read)?;
    edu.transfer(write)?;
    let arrived = memory::matching(to, SIZE, memory::noise(1));
    tried(edu.function, read, arrived);
    tried(edu.function, write, arrived);
    check("device-works", arrived == SIZE / 4, format_args!("{arrived} accesses arrived"));
    Ok(())
}

/// The last line of a role.
fn done(role: &str) {
    println!("@done role={role}");
}
