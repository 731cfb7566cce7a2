//! The stream table (section 3.3.1).

use super::format::{ALLOCATE, Ste, level1, register, ste, strtab_cfg};
use super::{Pool, Registers};
use crate::arch::mem;

/// What a table looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `2^log2` entries.
    Linear {
        /// Bits of StreamID.
        log2: u32,
    },
    /// Descriptors of tables of `2^split` entries.
    TwoLevel {
        /// Bits of StreamID.
        log2: u32,
        /// 6, 8 or 10.
        split: u32,
    },
}

/// A stream table.
#[derive(Clone, Copy, Debug)]
pub struct StreamTable {
    shape: Shape,
    base: u64,
}

impl StreamTable {
    /// One in which all streams of a linear table abort, and a two-level one has no second level.
    ///
    /// # Errors
    ///
    /// A reason if there is no memory for it.
    pub fn new(pool: &mut Pool, shape: Shape) -> Result<Self, &'static str> {
        let base = match shape {
            Shape::Linear { log2 } => pool.take(64 << log2)?,
            Shape::TwoLevel { log2, split } => pool.take(8 << (log2 - split))?,
        };
        let table = Self { shape, base };
        if let Shape::Linear { log2 } = shape {
            for sid in 0..1 << log2 {
                table.write(sid, &ste::ABORT);
            }
        }
        Ok(table)
    }

    /// Programs it; the SMMU must be disabled.
    pub fn install(&self, registers: Registers) {
        let config = match self.shape {
            Shape::Linear { log2 } => strtab_cfg::linear(log2),
            Shape::TwoLevel { log2, split } => strtab_cfg::two_level(log2, split),
        };
        registers.write64(register::STRTAB_BASE, ALLOCATE | self.base);
        registers.write(register::STRTAB_BASE_CFG, config);
    }

    /// Gives the streams around `sid` a second level of `2^(span - 1)` entries, all of which abort. Tells the
    /// SMMU nothing.
    ///
    /// # Errors
    ///
    /// A reason if there is no memory for it.
    ///
    /// # Panics
    ///
    /// If the table is linear.
    pub fn add_level2(&self, pool: &mut Pool, sid: u32, span: u32) -> Result<(), &'static str> {
        let Shape::TwoLevel { split, .. } = self.shape else { panic!("the table is linear") };
        let table = pool.take(64 << (span - 1))?;
        for index in 0..1 << (span - 1) {
            write(table + 64 * index, &ste::ABORT);
        }
        self.write_level1(sid >> split, level1(table, span.into()));
        Ok(())
    }

    /// Writes the descriptor number `index` of a two-level table.
    pub fn write_level1(&self, index: u32, descriptor: u64) {
        mem::write64(self.base + 8 * u64::from(index), descriptor);
        mem::barrier();
    }

    /// Where the entry of `sid` is; in a two-level table there must be one.
    pub fn entry(&self, sid: u32) -> u64 {
        match self.shape {
            Shape::Linear { .. } => self.base + 64 * u64::from(sid),
            Shape::TwoLevel { split, .. } => {
                let descriptor = mem::read64(self.base + 8 * u64::from(sid >> split));
                (descriptor & !0x3f) + 64 * u64::from(sid & ((1 << split) - 1))
            }
        }
    }

    /// Writes an entry, `V` and `Config` last. Tells the SMMU nothing.
    pub fn write(&self, sid: u32, ste: &Ste) {
        write(self.entry(sid), ste);
    }
}

fn write(entry: u64, ste: &Ste) {
    for index in (0..8).rev() {
        if index == 0 {
            mem::barrier();
        }
        mem::write64(entry + 8 * index as u64, ste[index]);
    }
    mem::barrier();
}
