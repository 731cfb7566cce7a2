//! An EL2 that gives no sign of life: a CPU that cannot run it, a machine that arguments broke, firmware in its place.
//!
//! The first thing that EL2 does is to close the SMMU, which QEMU's trace tells of whatever the log level is. How long
//! that may take is counted in QEMU's own processor time, which stands still while other work keeps this machine busy; it
//! takes EL2 a few milliseconds. Whoever waits without using any gets longer.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// QEMU's processor time in which EL2 shows itself.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How many times as long it may take if QEMU does not use its processor time.
const ASLEEP: u32 = 9;

/// Whether EL2 has shown itself. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Life(Arc<AtomicBool>);

impl Life {
    /// It has.
    pub fn show(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    pub fn is_shown(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether a process that runs for `elapsed` and has `used` so much processor time, if that is known, has had enough of
/// both to show itself within `patience`.
pub fn is_over(patience: Duration, elapsed: Duration, used: Option<Duration>) -> bool {
    used.is_some_and(|used| used >= patience) || elapsed >= patience.saturating_mul(ASLEEP)
}

/// The processor time that process `pid` has used (`proc_pid_stat(5)`).
pub fn processor_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = ticks(&stat)?;
    Some(Duration::from_millis(
        ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second(),
    ))
}

/// Fields 14 and 15, `utime` and `stime`. The program's name before them may have spaces and parentheses in it.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11);
    let mut next = || times.next()?.parse::<u64>().ok();
    next()?.checked_add(next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_is_no_silence() {
        const SECOND: Duration = Duration::from_secs(1);
        let over = |elapsed: u32, used: Option<u32>| {
            is_over(20 * SECOND, elapsed * SECOND, used.map(|used| used * SECOND))
        };
        assert!(over(20, Some(20)) && over(25, Some(400)));
        assert!(!over(179, Some(19)) && !over(179, None));
        assert!(over(180, Some(0)) && over(180, None));
    }

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 25 3 4 20 0 3 0 99 1 1";
        assert_eq!(ticks(stat), Some(275));
        assert_eq!(ticks("7 (a) S 1"), None);
        assert!(processor_time(std::process::id()).is_some());
    }
}
