//! The generic timer as EL2 uses it: a clock, and one alarm per CPU.

use core::arch::asm;

use crate::arch::sysreg::{isb, read, write};

read!(
    /// Counter ticks per second.
    pub frequency, "cntfrq_el0"
);
read!(cnthp_cval, "cnthp_cval_el2");
read!(cnthp_ctl, "cnthp_ctl_el2");
write!(cnthp_cval_write, "cnthp_cval_el2");
write!(cnthp_ctl_write, "cnthp_ctl_el2");
write!(
    /// What guests see subtracted from the physical counter.
    pub cntvoff_write, "cntvoff_el2"
);
write!(
    /// Which counters and timers the guest reaches without a trap.
    pub cnthctl_write, "cnthctl_el2"
);

/// The physical counter.
pub fn ticks() -> u64 {
    let value;
    // SAFETY: a counter read; the barrier keeps it from being read early.
    unsafe { asm!("isb", "mrs {}, cntpct_el0", out(reg) value, options(nostack, preserves_flags)) };
    value
}

/// Microseconds since the counter was 0.
pub fn now_us() -> u64 {
    let frequency = frequency().max(1);
    let ticks = ticks();
    // Split so that the product stays in 64 bits for centuries.
    ticks / frequency * 1_000_000 + ticks % frequency * 1_000_000 / frequency
}

/// Interrupts this CPU at EL2 when [`now_us`] reaches `at_us`, or before: there is one alarm, whose handler looks at
/// all that waits for it, and an earlier one stays.
pub fn alarm(at_us: u64) {
    let frequency = frequency().max(1);
    let at = at_us / 1_000_000 * frequency + at_us % 1_000_000 * frequency / 1_000_000 + 1;
    if cnthp_ctl() & 1 != 0 && cnthp_cval() <= at {
        return;
    }
    cnthp_cval_write(at);
    cnthp_ctl_write(1);
    isb();
}

/// Takes the alarm back.
pub fn cancel_alarm() {
    cnthp_ctl_write(0);
    isb();
}
