//! One interrupt's state, as far as no list register holds it.

use super::INTIDS;

/// Names an interrupt of the VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Id {
    /// The vCPU that an SGI or PPI belongs to; without meaning for an SPI.
    pub bank: usize,
    /// Below [`INTIDS`].
    pub intid: u32,
}

impl Id {
    /// The index among the SPIs, if it is one.
    pub fn spi(self) -> Option<usize> {
        (self.intid as usize).checked_sub(32)
    }
}

/// An SGI, PPI or SPI.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interrupt {
    pub enabled: bool,
    pub group1: bool,
    pub edge: bool,
    pub priority: u8,

    /// Pending because of an edge or a write, until it is acknowledged.
    pub latch: bool,
    /// The level that a software source drives.
    pub line: bool,
    /// The physical interrupt is active because it waits for the guest to acknowledge this one.
    pub hw_pending: bool,

    pub active: bool,
    /// The physical interrupt is active as long as this one is, and so `hw_pending` is not set.
    pub tied: bool,
    /// The priority and the group it was acknowledged with. They identify it in the active priorities
    /// registers until the guest drops its priority, whatever it reprograms meanwhile.
    pub active_priority: u8,
    pub active_group1: bool,
    /// It is active because a vCPU acknowledged it, which will therefore end it.
    pub acknowledged: bool,

    /// The vCPU it is pending or active on.
    pub home: Option<u8>,
    /// It is in a list register of its home, which therefore owns the pending and active state.
    pub loaded: bool,
    /// `latch` went into the list register.
    pub lent_latch: bool,
    /// `hw_pending` went into the list register.
    pub lent_hw: bool,
    /// Forget that the list register is pending.
    pub drop_pending: bool,
    /// Make it active or inactive, whatever the list register says.
    pub force_active: Option<bool>,

    /// The physical INTID, or 0.
    pub phys: u16,
    /// The physical interrupt is enabled.
    pub forwarded: bool,
}

impl Interrupt {
    /// The reset state, level-sensitive and without a physical source.
    pub const fn new() -> Self {
        Self {
            enabled: false,
            group1: false,
            edge: false,
            priority: 0,
            latch: false,
            line: false,
            hw_pending: false,
            active: false,
            tied: false,
            active_priority: 0,
            active_group1: false,
            acknowledged: false,
            home: None,
            loaded: false,
            lent_latch: false,
            lent_hw: false,
            drop_pending: false,
            force_active: None,
            phys: 0,
            forwarded: false,
        }
    }

    /// Whether it is pending, apart from what a list register holds.
    pub fn is_pending(&self) -> bool {
        self.latch || self.hw_pending || self.is_held()
    }

    /// Whether the line of a level-sensitive software source holds it pending.
    pub fn is_held(&self) -> bool {
        self.line && !self.edge
    }

    /// Makes it active, acknowledged at `priority` in Group 1 or 0.
    pub fn activate(&mut self, priority: u8, group1: bool) {
        self.active = true;
        self.active_priority = priority;
        self.active_group1 = group1;
    }
}

/// A set of INTIDs.
#[derive(Clone, Copy, Debug)]
pub(super) struct IntidSet([u32; INTIDS as usize / 32]);

impl IntidSet {
    pub const fn new() -> Self {
        Self([0; INTIDS as usize / 32])
    }

    pub fn set(&mut self, intid: u32, member: bool) {
        let word = &mut self.0[intid as usize / 32];
        let bit = 1 << (intid % 32);
        if member { *word |= bit } else { *word &= !bit }
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    /// The members, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        self.0.into_iter().zip((0..).step_by(32)).flat_map(|(word, first)| {
            // Each step clears the lowest bit that is set.
            core::iter::successors(Some(word), |&rest| Some(rest & rest.wrapping_sub(1)))
                .take_while(|&rest| rest != 0)
                .map(move |rest| first + rest.trailing_zeros())
        })
    }
}
