//! Addresses for BARs and bridge windows.

use platform::dt::{Window, WindowKind};
use smmu::addr::{PAGE_SIZE, Pa};

use super::{Bar, BarKind, Place};

/// 64-bit BARs of at least this size go above 4 GiB first, so that the scarce room below is left to others.
const LARGE: u64 = 16 << 20;
/// The unit of a bridge's memory windows.
const MEMORY_UNIT: u64 = 1 << 20;
/// The unit of a bridge's I/O window.
const IO_UNIT: u64 = 1 << 12;
/// The first I/O port that is given out: some functions take 0 for "not assigned".
const FIRST_PORT: u64 = 0x1000;

/// A range of bus addresses that is handed out from its start.
#[derive(Clone, Copy, Debug, Default)]
struct Space {
    next: u64,
    end: u64,
    /// What to add to a bus address to get the CPU's, modulo 2^64.
    to_cpu: u64,
    prefetchable_only: bool,
}

impl Space {
    fn of(windows: &[Window], kind: WindowKind, limit: u64) -> Self {
        let usable = |window: &&Window| {
            // Only Mem64 may be for prefetchable BARs alone: a 32-bit window has to serve all.
            window.kind == kind && (kind == WindowKind::Mem64 || !window.prefetchable)
        };
        let Some(window) = windows.iter().find(usable) else { return Self::default() };
        Self {
            next: window.pci,
            end: window.pci.saturating_add(window.cpu.size).min(limit),
            to_cpu: window.cpu.base.raw().wrapping_sub(window.pci),
            prefetchable_only: window.prefetchable,
        }
    }

    fn take(&mut self, bar: &Bar, granule: u64) -> Option<Place> {
        if self.prefetchable_only && !bar.prefetchable {
            return None;
        }
        let size = bar.size.max(granule);
        let bus = self.next.checked_next_multiple_of(size)?;
        let end = bus.checked_add(size).filter(|&end| end <= self.end)?;
        let cpu = Pa::new(bus.wrapping_add(self.to_cpu));
        if !cpu.is_aligned(granule) {
            return None;
        }
        self.next = end;
        Some(Place { bus, cpu })
    }

    /// What a bridge with windows in units of `unit` can pass on.
    fn below_bridge(&self, unit: u64) -> Self {
        let next = self.next.checked_next_multiple_of(unit).unwrap_or(self.end);
        Self { next, end: self.end / unit * unit, ..*self }
    }

    /// Takes what was handed out `below` a bridge, as whole units; the bridge's first and last unit.
    fn close_bridge(&mut self, start: &Self, below: &Self, unit: u64) -> Option<Range> {
        if below.next == start.next {
            return None;
        }
        // `below.next` is at most `below.end`, which is whole units.
        self.next = below.next.next_multiple_of(unit);
        Some(Range { first: start.next, last: self.next - 1 })
    }
}

/// The addresses that a bridge passes on, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// Which windows a bridge has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passes {
    pub(super) io: bool,
    /// Prefetchable memory, above 4 GiB too.
    pub(super) prefetch64: bool,
}

/// What a bridge has to pass on.
#[derive(Clone, Copy, Debug)]
pub(super) struct BridgeWindows {
    pub(super) io: Option<Range>,
    pub(super) memory: Option<Range>,
    pub(super) prefetch: Option<Range>,
}

/// The room that is left on the way from the host bridge to one bus.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spaces {
    io: Space,
    mem32: Space,
    mem64: Space,
}

impl Spaces {
    pub(super) fn new(windows: &[Window]) -> Self {
        let mut io = Space::of(windows, WindowKind::Io, 1 << 16);
        io.next = io.next.max(FIRST_PORT);
        Self {
            io,
            mem32: Space::of(windows, WindowKind::Mem32, 1 << 32),
            mem64: Space::of(windows, WindowKind::Mem64, u64::MAX),
        }
    }

    /// Finds a place for a BAR.
    pub(super) fn take(&mut self, bar: &Bar) -> Option<Place> {
        match bar.kind {
            BarKind::Io => self.io.take(bar, 1),
            BarKind::Memory32 => self.mem32.take(bar, PAGE_SIZE),
            BarKind::Memory64 if bar.size >= LARGE => {
                self.mem64.take(bar, PAGE_SIZE).or_else(|| self.mem32.take(bar, PAGE_SIZE))
            }
            BarKind::Memory64 => {
                self.mem32.take(bar, PAGE_SIZE).or_else(|| self.mem64.take(bar, PAGE_SIZE))
            }
        }
    }

    /// Returns the room for what is below a bridge.
    pub(super) fn below_bridge(&self, passes: Passes) -> Self {
        let mut below = Self {
            io: if passes.io { self.io.below_bridge(IO_UNIT) } else { Space::default() },
            mem32: self.mem32.below_bridge(MEMORY_UNIT),
            mem64: if passes.prefetch64 {
                self.mem64.below_bridge(MEMORY_UNIT)
            } else {
                Space::default()
            },
        };
        // A bridge passes addresses above 4 GiB through its prefetchable window only.
        below.mem64.prefetchable_only = true;
        below
    }

    /// Takes what was handed out below a bridge: `start` became `below`.
    pub(super) fn close_bridge(&mut self, start: &Self, below: &Self) -> BridgeWindows {
        BridgeWindows {
            io: self.io.close_bridge(&start.io, &below.io, IO_UNIT),
            memory: self.mem32.close_bridge(&start.mem32, &below.mem32, MEMORY_UNIT),
            prefetch: self.mem64.close_bridge(&start.mem64, &below.mem64, MEMORY_UNIT),
        }
    }
}
