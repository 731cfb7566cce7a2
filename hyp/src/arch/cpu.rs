//! Which CPU is this, and how CPUs wait for each other.

use aarch64_cpu::asm::{self, barrier};

use crate::arch::sysreg::{self, read, write};

/// More CPUs than any machine of ours has; the linker script has as many stacks.
pub const MAX_CPUS: usize = 16;

read!(tpidr_el2, "tpidr_el2");
write!(tpidr_el2_write, "tpidr_el2");

/// Numbers this CPU; done once, before anything asks.
pub(super) fn set_number(number: usize) {
    tpidr_el2_write(number as u64);
    sysreg::isb();
}

/// This CPU's number, the index of its node in the device tree; less than [`MAX_CPUS`].
pub fn number() -> usize {
    tpidr_el2() as usize
}

/// Wakes every CPU that waits for an event; it finds what this one has stored.
pub fn send_event() {
    barrier::dsb(barrier::ISHST);
    asm::sev();
}

/// Waits until another CPU sends an event, or for less: who calls this looks whether there is more to wait for.
pub fn wait_for_event() {
    asm::wfe();
}
