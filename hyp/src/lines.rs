//! How much EL2 says about one VM (C7).
//!
//! Most lines of EL2's log are a guest's doing: it resets itself, gives its SMMU up, lets its devices go on. The console
//! is slow and everybody's, so each VM has a budget of them, and this is the one place that knows it. `Vm::say`
//! asks here.
//!
//! The budget is a bucket of [`BURST`] lines that fills up again by one line each [`REFILL_US`]. Lines beyond it are left
//! out and counted. How many they were is said before the next line that there is room for, and before the line about
//! the VM's end, for which there always is: a VM ends no more often than the bucket fills, because a watch follows each
//! end. The report has the total.

use platform::bundle::MAX_FUNCTIONS;
use spin::Mutex;

/// Lines about one VM that may come at once: twice what it takes to name every function of one that dies.
pub const BURST: u64 = 2 * MAX_FUNCTIONS as u64;
/// How long it takes until there is room for one more: a quarter of a second, as a VM that ended is watched.
pub const REFILL_US: u64 = 1 << 18;
/// Room that lines for debugging leave to the others.
const RESERVE: u64 = BURST / 2;

/// What the budget means for a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// It is left out beyond the budget.
    IfRoom,
    /// It is about the end of the VM, and so is said whatever the guest made EL2 say before.
    Always,
}

/// The budget of one VM. Its lock is held for no more than a look, and nothing else is locked meanwhile.
#[derive(Debug, Default)]
pub struct Lines(Mutex<Budget>);

impl Lines {
    /// Asks for one line of `level` at `now_us` on EL2's clock. Returns how many were left out before it and have to be
    /// told first, or `None` if it is left out as well.
    pub fn ask(&self, level: log::Level, say: Say, now_us: u64) -> Option<u64> {
        let reserve = if level > log::Level::Info { RESERVE } else { 0 };
        self.0.lock().take(now_us, reserve, say)
    }

    /// How many were left out since EL2's boot.
    pub fn left_out(&self) -> u64 {
        self.0.lock().left_out
    }
}

/// What is left for one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Budget {
    /// How many lines there is room for.
    room: u64,
    /// Up to when the bucket was filled, on EL2's clock.
    filled_us: u64,
    /// How many were left out.
    left_out: u64,
    /// How many of these were told.
    told: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { room: BURST, filled_us: 0, left_out: 0, told: 0 }
    }
}

impl Budget {
    /// See [`Lines::ask`]; leaves room for `reserve` lines.
    fn take(&mut self, now_us: u64, reserve: u64, say: Say) -> Option<u64> {
        self.fill(now_us);
        if self.room <= reserve && say == Say::IfRoom {
            self.left_out += 1;
            return None;
        }
        self.room = self.room.saturating_sub(1);
        Some(self.left_out - core::mem::replace(&mut self.told, self.left_out))
    }

    fn fill(&mut self, now_us: u64) {
        // CPUs come here in another order than they looked at the clock.
        let lines = now_us.saturating_sub(self.filled_us) / REFILL_US;
        self.filled_us += lines * REFILL_US;
        self.room = (self.room + lines).min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A budget that is spent at `now_us`.
    fn spent(now_us: u64) -> Budget {
        let mut budget = Budget::default();
        for _ in 0..BURST {
            assert_eq!(budget.take(now_us, 0, Say::IfRoom), Some(0));
        }
        budget
    }

    #[test]
    fn the_end_of_a_vm_with_every_function_late_is_told_in_full() {
        let mut budget = Budget::default();
        for _ in 0..MAX_FUNCTIONS + 1 {
            assert_eq!(budget.take(7, 0, Say::IfRoom), Some(0));
        }
    }

    #[test]
    fn what_is_beyond_it_is_left_out_and_told_once() {
        let mut budget = spent(7);
        for _ in 0..1000 {
            assert_eq!(budget.take(8, 0, Say::IfRoom), None);
        }
        assert_eq!(budget.take(REFILL_US, 0, Say::IfRoom), Some(1000));
        assert_eq!(budget.take(REFILL_US, 0, Say::IfRoom), None);
        assert_eq!(budget.take(2 * REFILL_US, 0, Say::IfRoom), Some(1));
        assert_eq!(budget.take(3 * REFILL_US, 0, Say::IfRoom), Some(0));
        assert_eq!(budget.left_out, 1001);
    }

    #[test]
    fn a_flood_for_an_hour_is_a_trickle() {
        const HOUR_US: u64 = 3_600_000_000;
        let mut budget = Budget::default();
        let said = (0..HOUR_US)
            .step_by(1_000)
            .filter(|&now| budget.take(now, 0, Say::IfRoom).is_some())
            .count();
        let most = BURST + HOUR_US / REFILL_US;
        assert!(said as u64 <= most, "{said} lines");
        assert_eq!(budget.left_out, HOUR_US / 1_000 - said as u64);
    }

    #[test]
    fn as_often_as_it_fills_nothing_is_ever_left_out() {
        let mut budget = spent(0);
        assert!((1..10_000).all(|line| budget.take(line * REFILL_US, 0, Say::IfRoom) == Some(0)));
    }

    #[test]
    fn a_silent_vm_saves_up_no_more_than_a_burst() {
        let mut budget = Budget::default();
        assert_eq!(budget.take(u64::MAX, 0, Say::IfRoom), Some(0));
        assert_eq!(budget.room, BURST - 1);
        let mut late = spent(u64::MAX - 1);
        assert_eq!(late.take(u64::MAX, 0, Say::IfRoom), None);
    }

    #[test]
    fn an_end_is_said_whatever_came_before_and_so_is_the_count() {
        let mut budget = spent(7);
        assert_eq!(budget.take(7, 0, Say::IfRoom), None);
        assert_eq!(budget.take(7, 0, Say::Always), Some(1));
        assert_eq!(budget.take(7, 0, Say::Always), Some(0));
        assert_eq!(budget.room, 0);
    }

    #[test]
    fn debugging_leaves_room_for_what_matters() {
        let lines = Lines::default();
        while lines.ask(log::Level::Debug, Say::IfRoom, 7).is_some() {}
        let others = core::iter::from_fn(|| lines.ask(log::Level::Info, Say::IfRoom, 7));
        assert_eq!(others.count(), RESERVE as usize);
    }

    #[test]
    fn a_clock_that_seems_to_go_back_adds_nothing() {
        let mut budget = spent(10 * REFILL_US);
        assert_eq!(budget.take(3 * REFILL_US, 0, Say::IfRoom), None);
        assert_eq!(budget.take(10 * REFILL_US + 1, 0, Say::IfRoom), None);
    }
}
