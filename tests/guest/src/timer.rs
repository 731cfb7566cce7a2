//! Time: the virtual counter and the virtual timer.

use crate::arch::cpu;

/// A point in time, on the virtual counter.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(u64);

impl Deadline {
    /// The time `milliseconds` from now.
    pub fn after_ms(milliseconds: u64) -> Self {
        Self(cpu::counter() + milliseconds * cpu::counter_frequency() / 1000)
    }

    /// Whether the time has come.
    pub fn passed(self) -> bool {
        cpu::counter() >= self.0
    }

    /// Lets the virtual timer of this CPU fire then.
    pub fn arm_timer(self) {
        cpu::set_virtual_timer_compare(self.0);
        cpu::set_virtual_timer_control(1);
    }
}

/// Switches the virtual timer of this CPU off.
pub fn disarm() {
    cpu::set_virtual_timer_control(0);
}

/// Looks at `done` about every `milliseconds` until it holds or `deadline` passed; says whether it holds.
///
/// Needs no interrupt.
pub fn poll_every_ms(
    milliseconds: u64,
    deadline: Deadline,
    mut done: impl FnMut() -> bool,
) -> bool {
    loop {
        if done() {
            return true;
        }
        if deadline.passed() {
            return false;
        }
        let pause = Deadline::after_ms(milliseconds);
        while !pause.passed() {
            core::hint::spin_loop();
        }
    }
}
