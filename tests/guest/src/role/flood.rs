//! The flood: makes the hypervisor speak of it as often and as fast as it can.

use super::done;
use crate::arch::odd;
use crate::machine::Machine;
use crate::println;
use crate::smmu::Registers;
use crate::smmu::format::cr0;

/// How often the SMMU goes on and off. Each time its streams change their state, of which the report tells no more than
/// some dozens.
const TOGGLES: u64 = 16;
/// How often the MMU goes off and on, as under a kernel that starts another one.
const DEFAULT_BLINKS: u64 = 2000;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let blinks = machine.bootargs.number("blinks", DEFAULT_BLINKS)?;
    let smmu = Registers::find(machine)?;
    for _ in 0..TOGGLES {
        smmu.set_cr0(cr0::SMMUEN)?;
        smmu.set_cr0(0)?;
    }
    for _ in 0..blinks {
        odd::blink_mmu();
    }
    println!("@provoked lines={}", TOGGLES + blinks);
    done("flood");
    Ok(())
}
