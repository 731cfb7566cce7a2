//! Where a guest's queues are and which entry an index means (section 3.5.1).

use crate::addr::Ipa;

/// `IDR1.CMDQS` and `EVENTQS`: a queue has at most so many entries, as a power of two.
pub const MAX_LOG2: u8 = 8;
/// The bits of an index that the largest queue uses, its wrap bit included.
pub const INDEX: u32 = (2 << MAX_LOG2) - 1;

/// A queue in guest memory, as its base register describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    base: u64,
    log2: u8,
    entry_log2: u8,
}

impl Ring {
    /// The queue of `1 << entry_log2`-byte entries that `base` describes. A size above the largest counts as
    /// that, and address bits below the size of the queue as 0 (sections 6.3.26 and 6.3.29).
    #[inline]
    pub fn new(base: u64, entry_log2: u8) -> Self {
        let log2 = ((base & 0x1f) as u8).min(MAX_LOG2);
        let address = base & 0x00ff_ffff_ffff_ffe0;
        Self { base: address & !((1 << (log2 + entry_log2)) - 1), log2, entry_log2 }
    }

    /// The bits of an index that count.
    #[inline]
    pub fn wrap(self, index: u32) -> u32 {
        index & ((2 << self.log2) - 1)
    }

    /// The index after this one.
    #[inline]
    pub fn next(self, index: u32) -> u32 {
        self.wrap(index.wrapping_add(1))
    }

    /// Whether there is nothing between the two.
    pub fn is_empty(self, prod: u32, cons: u32) -> bool {
        self.wrap(prod) == self.wrap(cons)
    }

    /// Whether the producer is a whole round ahead.
    pub fn is_full(self, prod: u32, cons: u32) -> bool {
        self.wrap(prod ^ cons) == 1 << self.log2
    }

    /// Where the entry is.
    #[inline]
    pub fn entry(self, index: u32) -> Ipa {
        let slot = u64::from(index) & ((1 << self.log2) - 1);
        // The base is a multiple of the queue's size.
        Ipa::new(self.base | slot << self.entry_log2)
    }
}
