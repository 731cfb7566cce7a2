//! What happens on an interrupt: its source is silenced, it is counted and ended.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::arch::boot::MAX_CPUS;
use crate::arch::cpu;
use crate::timer::{self, Deadline};
use crate::{console, edu, gic};

/// How many INTIDs are counted, and how many arrivals remembered in order.
const COUNTED: usize = 320;
const REMEMBERED: usize = 64;
const DEVICES: usize = 16;
/// No INTID.
const NONE: u32 = u32::MAX;

static COUNTS: [[AtomicU32; COUNTED]; MAX_CPUS] =
    [const { [const { AtomicU32::new(0) }; COUNTED] }; MAX_CPUS];
static ORDER: [AtomicU32; REMEMBERED] = [const { AtomicU32::new(0) }; REMEMBERED];
static ARRIVALS: AtomicUsize = AtomicUsize::new(0);

/// An edu device on a level-sensitive line.
struct Device {
    intid: AtomicU32,
    bar: AtomicU64,
    raised: AtomicU32,
}

static DEVICE: [Device; DEVICES] = [const {
    Device { intid: AtomicU32::new(NONE), bar: AtomicU64::new(0), raised: AtomicU32::new(0) }
}; DEVICES];

/// The console's INTID, once it is connected.
static CONSOLE: AtomicU32 = AtomicU32::new(NONE);

/// Lets the console's interrupts reach this CPU, and the handler silence them.
pub fn connect_console(intid: u32) {
    CONSOLE.store(intid, Ordering::Relaxed);
    gic::configure_spi(intid, gic::Trigger::Level, cpu::affinity());
    gic::enable(intid);
}

/// A device among those that the handler silences.
#[derive(Clone, Copy, Debug)]
pub struct Source(usize);

impl Source {
    /// Adds the edu device whose registers are at `bar` and whose line is `intid`.
    ///
    /// # Panics
    ///
    /// If there are too many.
    pub fn add_edu(intid: u32, bar: u64) -> Self {
        let free = DEVICE.iter().position(|device| device.intid.load(Ordering::Relaxed) == NONE);
        let index = free.expect("too many interrupt sources");
        DEVICE[index].bar.store(bar, Ordering::Relaxed);
        DEVICE[index].intid.store(intid, Ordering::Release);
        Self(index)
    }

    /// In how many interrupts the device was found to have raised its line.
    pub fn raised(self) -> u32 {
        DEVICE[self.0].raised.load(Ordering::Relaxed)
    }
}

/// How many interrupts `intid` the CPU of this index took.
pub fn count(cpu: usize, intid: u32) -> u32 {
    COUNTS[cpu][intid as usize].load(Ordering::Acquire)
}

/// Forgets which interrupts arrived.
pub fn forget_order() {
    ARRIVALS.store(0, Ordering::Relaxed);
}

/// The INTIDs that arrived on any CPU since [`forget_order`], the first ones at least.
pub fn order() -> impl Iterator<Item = u32> {
    let arrivals = ARRIVALS.load(Ordering::Acquire).min(REMEMBERED);
    ORDER[..arrivals].iter().map(|intid| intid.load(Ordering::Relaxed))
}

/// Handles every interrupt that is pending for this CPU.
pub fn handle() {
    loop {
        let intid = cpu::acknowledge() as u32 & 0xff_ffff;
        if (gic::FIRST_SPECIAL..1024).contains(&intid) {
            return;
        }
        match intid {
            gic::VIRTUAL_TIMER => timer::disarm(),
            gic::PHYSICAL_TIMER => cpu::set_physical_timer_control(0),
            _ if intid == CONSOLE.load(Ordering::Relaxed) => console::acknowledge(),
            _ => {}
        }
        for device in DEVICE.iter().filter(|device| device.intid.load(Ordering::Acquire) == intid) {
            if edu::acknowledge(device.bar.load(Ordering::Relaxed)) != 0 {
                device.raised.fetch_add(1, Ordering::Relaxed);
            }
        }
        cpu::end_of_interrupt(intid.into());
        let arrival = ARRIVALS.fetch_add(1, Ordering::Relaxed);
        if let Some(place) = ORDER.get(arrival) {
            place.store(intid, Ordering::Relaxed);
        }
        if let Some(count) = COUNTS[cpu::index()].get(intid as usize) {
            count.fetch_add(1, Ordering::Release);
        }
    }
}

/// Sleeps and takes interrupts until `done` holds or `deadline` passed; says whether it holds.
///
/// Uses the virtual timer, which is off afterwards.
pub fn wait_until(deadline: Deadline, mut done: impl FnMut() -> bool) -> bool {
    loop {
        cpu::mask_interrupts();
        let over = done();
        if over || deadline.passed() {
            timer::disarm();
            cpu::unmask_interrupts();
            return over;
        }
        deadline.arm_timer();
        cpu::wait_for_interrupt();
        cpu::unmask_interrupts();
    }
}
