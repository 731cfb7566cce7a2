//! What happens on an interrupt: it is counted, its source is silenced, it is ended.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::arch::boot::MAX_CPUS;
use crate::arch::cpu;
use crate::timer::{self, Deadline};
use crate::{edu, gic};

/// How many INTIDs are counted.
const COUNTED: usize = 320;
const LINES: usize = 16;

static COUNTS: [[AtomicU32; COUNTED]; MAX_CPUS] =
    [const { [const { AtomicU32::new(0) }; COUNTED] }; MAX_CPUS];

/// A device on a level-sensitive line.
struct Line {
    intid: AtomicU32,
    bar: AtomicU64,
    /// How often the device had raised the line when it was looked at.
    raised: AtomicU32,
}

static DEVICES: [Line; LINES] = [const {
    Line { intid: AtomicU32::new(0), bar: AtomicU64::new(0), raised: AtomicU32::new(0) }
}; LINES];

/// The place of a device among those that the handler silences.
#[derive(Clone, Copy, Debug)]
pub struct Source(usize);

impl Source {
    /// Adds the edu device whose registers are at `bar` and whose line is `intid`.
    ///
    /// # Panics
    ///
    /// If there are too many.
    pub fn add_edu(intid: u32, bar: u64) -> Self {
        let free = DEVICES.iter().position(|line| line.intid.load(Ordering::Relaxed) == 0);
        let index = free.expect("too many interrupt sources");
        DEVICES[index].bar.store(bar, Ordering::Relaxed);
        DEVICES[index].intid.store(intid, Ordering::Release);
        Self(index)
    }

    /// How many interrupts of this device were handled.
    pub fn raised(self) -> u32 {
        DEVICES[self.0].raised.load(Ordering::Relaxed)
    }
}

/// How many interrupts `intid` the CPU of this index took.
pub fn count(cpu: usize, intid: u32) -> u32 {
    COUNTS[cpu][intid as usize].load(Ordering::Relaxed)
}

/// Handles every interrupt that is pending for this CPU.
pub fn handle() {
    loop {
        let intid = cpu::acknowledge() as u32 & 0xff_ffff;
        if intid >= 1020 {
            return;
        }
        if intid == gic::VIRTUAL_TIMER {
            timer::disarm();
        }
        for line in DEVICES.iter().filter(|line| line.intid.load(Ordering::Acquire) == intid) {
            if edu::acknowledge(line.bar.load(Ordering::Relaxed)) != 0 {
                line.raised.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(count) = COUNTS[cpu::index()].get(intid as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        cpu::end_of_interrupt(intid.into());
    }
}

/// Sleeps and takes interrupts until `done` holds or `deadline` passed; says whether it holds.
pub fn wait_until(deadline: Deadline, mut done: impl FnMut() -> bool) -> bool {
    loop {
        cpu::mask_interrupts();
        if done() {
            timer::disarm();
            cpu::unmask_interrupts();
            return true;
        }
        if deadline.passed() {
            cpu::unmask_interrupts();
            return done();
        }
        deadline.arm_timer();
        cpu::wait_for_interrupt();
        cpu::unmask_interrupts();
    }
}
