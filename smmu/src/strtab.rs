//! The stream table (section 5.1): from StreamID to STE.
//!
//! Two levels where the hardware has them, chosen once: QEMU ignores a later change of
//! `STRTAB_BASE_CFG.FMT`. A StreamID that nobody attached has no level-2 table, and its transactions
//! abort with `C_BAD_STREAMID`, or has an STE that aborts.

use crate::addr::{PAGE_SIZE, Pa, StreamId};
use crate::caps::Capabilities;
use crate::error::HostError;
use crate::ports::{Frames, Hardware, Memory};
use crate::regs::{STRTAB_BASE, STRTAB_BASE_CFG, offset};
use crate::ste::Ste;

/// StreamID bits that index a level-2 table, as in Linux.
const SPLIT: u8 = 8;
/// The largest linear table, as a power of two of STEs: 1 MiB.
pub(crate) const LINEAR_MAX_LOG2: u8 = 14;
const STE_BYTES: u64 = 64;
const L2_BYTES: u64 = STE_BYTES << SPLIT;
/// `L1STD.L2Ptr`, bits 55:6 (section 5.1).
const L2_ADDRESS: u64 = 0x00ff_ffff_ffff_ffc0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Linear,
    TwoLevel,
}

/// The stream table of one SMMU.
pub(crate) struct StreamTable {
    base: Pa,
    log2: u8,
    shape: Shape,
}

impl StreamTable {
    /// Allocates a table for StreamIDs of `log2` bits in which everything aborts, or returns `None` if
    /// there is no memory.
    pub(crate) fn allocate(
        caps: &Capabilities,
        log2: u8,
        memory: &impl Memory,
        frames: &mut dyn Frames,
    ) -> Option<Self> {
        // With no bits left for the first level there is nothing to split.
        let shape =
            if caps.two_level_table() && log2 > SPLIT { Shape::TwoLevel } else { Shape::Linear };
        let size = match shape {
            Shape::Linear => STE_BYTES << log2,
            Shape::TwoLevel => 8 << (log2 - SPLIT),
        };
        // Zeroed level-1 descriptors have Span=0: no level-2 table.
        let base = frames.allocate(size.max(PAGE_SIZE))?;
        if shape == Shape::Linear {
            abort_all(memory, base, 1 << log2);
        }
        memory.publish();
        Some(Self { base, log2, shape })
    }

    /// Tells the SMMU where the table is. The SMMU is disabled.
    pub(crate) fn install(&self, hw: &impl Hardware) {
        let format = match self.shape {
            Shape::Linear => STRTAB_BASE_CFG::FMT::Linear,
            Shape::TwoLevel => {
                STRTAB_BASE_CFG::FMT::TwoLevel + STRTAB_BASE_CFG::SPLIT.val(SPLIT.into())
            }
        };
        hw.write64(
            offset::STRTAB_BASE,
            (STRTAB_BASE::ADDR.val(self.base.raw() >> 6) + STRTAB_BASE::RA::SET).value,
        );
        hw.write32(
            offset::STRTAB_BASE_CFG,
            (format + STRTAB_BASE_CFG::LOG2SIZE.val(self.log2.into())).value,
        );
    }

    /// Returns where the STE of `sid` is, and whether the way to it is new: then the SMMU may have cached
    /// that there was none, and needs a `CMD_CFGI_STE` with Leaf=0 (section 5.1).
    ///
    /// # Errors
    ///
    /// [`HostError::StreamOutOfRange`], or [`HostError::OutOfMemory`] for a level-2 table.
    pub(crate) fn ensure(
        &self,
        sid: StreamId,
        memory: &impl Memory,
        frames: &mut dyn Frames,
    ) -> Result<(Pa, bool), HostError> {
        if u64::from(sid.0) >> self.log2 != 0 {
            return Err(HostError::StreamOutOfRange(sid));
        }
        let index = u64::from(sid.0);
        if self.shape == Shape::Linear {
            return Ok((self.base.add(index * STE_BYTES), false));
        }
        let descriptor = self.base.add((index >> SPLIT) * 8);
        let offset = (index & ((1 << SPLIT) - 1)) * STE_BYTES;
        let present = memory.load(descriptor);
        if present != 0 {
            return Ok((Pa::new(present & L2_ADDRESS).add(offset), false));
        }
        let table = frames.allocate(L2_BYTES).ok_or(HostError::OutOfMemory)?;
        abort_all(memory, table, 1 << SPLIT);
        memory.publish();
        // Span n stands for 2^(n-1) STEs.
        memory.store(descriptor, table.raw() | u64::from(SPLIT + 1));
        memory.publish();
        Ok((table.add(offset), true))
    }
}

/// Makes `count` zeroed STEs abort.
fn abort_all(memory: &impl Memory, base: Pa, count: u64) {
    let [abort, ..] = Ste::Abort.encode();
    for index in 0..count {
        memory.store(base.add(index * STE_BYTES), abort);
    }
}
