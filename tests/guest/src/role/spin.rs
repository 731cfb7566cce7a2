//! The spinner: says for ever that it is alive, until somebody kills it.

use crate::interrupt;
use crate::machine::Machine;
use crate::timer::Deadline;
use crate::{arch, gic, println};

const PERIOD_MS: u64 = 500;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    gic::start(machine);
    arch::cpu::unmask_interrupts();
    for beat in 0_u64.. {
        println!("@alive beat={beat}");
        interrupt::wait_until(Deadline::after_ms(PERIOD_MS), || false);
    }
    Ok(())
}
