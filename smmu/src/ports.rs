//! What the SMMU logic needs from the machine it runs on.
//!
//! Memory that the SMMU reads is never a Rust reference: a compiler may drop or reorder plain stores
//! that it believes nobody else sees. It is reached one 64-bit word at a time through [`Memory`].

use crate::addr::Pa;

/// The registers of one SMMU, both 64 KiB pages; offsets are those of section 6.
pub trait Registers {
    /// Reads the 32-bit register at `offset`. No later [`Memory::load`] of this CPU is satisfied before
    /// the read is: what a queue's index announces is there to be read.
    fn read32(&self, offset: u32) -> u32;
    /// Writes the 32-bit register at `offset`. Every earlier [`Memory::store`] of this CPU is visible
    /// to the SMMU before the write is, and every earlier [`Memory::load`] has been satisfied.
    fn write32(&self, offset: u32, value: u32);
    /// Writes the 64-bit register at `offset`, ordered as [`Registers::write32`].
    fn write64(&self, offset: u32, value: u64);
}

/// Coherent memory that the SMMU or a table walker reads while we write it.
///
/// Addresses are 8-byte aligned and lie in memory that [`Frames`] gave out.
pub trait Memory {
    /// Reads one word.
    fn load(&self, at: Pa) -> u64;
    /// Writes one word, as one single-copy atomic 64-bit store.
    fn store(&self, at: Pa, value: u64);
    /// Writes two words, the second one behind the first, in any order.
    fn store_pair(&self, at: Pa, [low, high]: [u64; 2]) {
        self.store(at, low);
        self.store(at.add(8), high);
    }
    /// Makes every earlier store visible to the SMMU and to table walkers before any later one.
    fn publish(&self);
}

/// A monotonic clock for bounded waits.
pub trait Clock {
    /// Microseconds since some fixed moment.
    fn now_us(&self) -> u64;
}

/// Physical memory for tables and queues.
pub trait Frames {
    /// Gives out `size` bytes, a power of two of at least a page, aligned to their size and zeroed;
    /// `None` when no such block is left.
    fn allocate(&mut self, size: u64) -> Option<Pa>;
    /// Takes back a block that [`Frames::allocate`] gave out with the same `size`. The caller has proof
    /// that neither an SMMU nor a table walker can still reach it (C3).
    fn release(&mut self, at: Pa, size: u64);
}

/// The whole machine as the SMMU driver sees it.
pub trait Hardware: Registers + Memory + Clock {}

impl<T: Registers + Memory + Clock> Hardware for T {}

impl<T: Registers + ?Sized> Registers for &T {
    fn read32(&self, offset: u32) -> u32 {
        (**self).read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        (**self).write32(offset, value);
    }

    fn write64(&self, offset: u32, value: u64) {
        (**self).write64(offset, value);
    }
}

impl<T: Memory + ?Sized> Memory for &T {
    fn load(&self, at: Pa) -> u64 {
        (**self).load(at)
    }

    fn store(&self, at: Pa, value: u64) {
        (**self).store(at, value);
    }

    fn store_pair(&self, at: Pa, values: [u64; 2]) {
        (**self).store_pair(at, values);
    }

    fn publish(&self) {
        (**self).publish();
    }
}

impl<T: Clock + ?Sized> Clock for &T {
    fn now_us(&self) -> u64 {
        (**self).now_us()
    }
}
