//! A stage 1: one CD and its tables, 39 bits of input in pages of 4 KiB.

use super::Pool;
use super::format::{context, stage1};
use crate::arch::mem;

const ADDRESS: u64 = 0x00ff_ffff_f000;

/// A stage 1.
#[derive(Clone, Copy, Debug)]
pub struct Stage1 {
    /// Where its CD is.
    pub context: u64,
    /// Its root table.
    pub root: u64,
    /// The tag of its translations.
    pub asid: u16,
}

impl Stage1 {
    /// One in which nothing is mapped.
    ///
    /// # Errors
    ///
    /// A reason if there is no memory for it.
    pub fn new(pool: &mut Pool, asid: u16) -> Result<Self, &'static str> {
        let stage1 = Self { context: pool.take(64)?, root: pool.take(4096)?, asid };
        stage1.write_context(&context(stage1.root, asid));
        Ok(stage1)
    }

    /// Writes the CD, its first word last. Tells the SMMU nothing.
    pub fn write_context(&self, words: &[u64; 8]) {
        for index in (0..8).rev() {
            if index == 0 {
                mem::barrier();
            }
            mem::write64(self.context + 8 * index as u64, words[index]);
        }
        mem::barrier();
    }

    /// Where the descriptor of the page at `iova` is, in tables that are made if they are missing.
    ///
    /// # Errors
    ///
    /// A reason if there is no memory for them.
    pub fn leaf(&self, pool: &mut Pool, iova: u64) -> Result<u64, &'static str> {
        let mut table = self.root;
        for level in 1..3 {
            let entry = table + 8 * stage1::index(iova, level);
            if mem::read64(entry) & 1 == 0 {
                mem::write64(entry, pool.take(4096)? | stage1::TABLE);
                mem::barrier();
            }
            table = mem::read64(entry) & ADDRESS;
        }
        Ok(table + 8 * stage1::index(iova, 3))
    }

    /// Maps a page, writable. Tells the SMMU nothing.
    ///
    /// # Errors
    ///
    /// A reason if there is no memory for tables.
    pub fn map(&self, pool: &mut Pool, iova: u64, to: u64) -> Result<(), &'static str> {
        self.set(pool, iova, to & !0xfff | stage1::PAGE)
    }

    /// Writes a page's descriptor, whatever it means. Tells the SMMU nothing.
    ///
    /// # Errors
    ///
    /// A reason if there is no memory for tables.
    pub fn set(&self, pool: &mut Pool, iova: u64, descriptor: u64) -> Result<(), &'static str> {
        mem::write64(self.leaf(pool, iova)?, descriptor);
        mem::barrier();
        Ok(())
    }
}
