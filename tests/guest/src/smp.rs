//! The other CPUs.

use crate::arch::cpu;

/// What a CPU does that was started by another one.
pub fn secondary(index: usize) -> ! {
    let _ = index;
    loop {
        cpu::wait_for_interrupt();
    }
}
