//! The guest's stream table (section 3.3.1): from its StreamID to its STE, read when it says so.

use crate::addr::{Ipa, StreamId};
use crate::guest::registers::Registers;
use crate::guest::ste::{GuestSte, Illegal};
use crate::guest::{GuestMemory, OutsideRam};

/// Why a stream's transactions are events (section 7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// `C_BAD_STREAMID`: the table has no place for it.
    BadStreamId,
    /// `F_STE_FETCH`: its STE, or the way to it, is not in the VM's RAM.
    SteFetch(Ipa),
    /// `C_BAD_STE`.
    BadSte,
}

impl From<Illegal> for Refused {
    fn from(Illegal: Illegal) -> Self {
        Self::BadSte
    }
}

const STE_LOG2: u8 = 6;
/// The address in `STRTAB_BASE` and in a level-1 descriptor, bits 55:6.
const ADDRESS: u64 = 0x00ff_ffff_ffff_ffc0;

/// A stream table as `STRTAB_BASE` and `STRTAB_BASE_CFG` describe it (sections 6.3.24 and 6.3.25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamTable {
    base: u64,
    log2: u8,
    /// StreamID bits that index a level-2 table, unless the table is linear.
    split: Option<u8>,
}

impl StreamTable {
    /// The table of a guest whose StreamIDs have `sid_bits`. Sizes above that count as that, a reserved split as
    /// 6, a reserved format as linear, and address bits below the size of the table as 0.
    pub fn new(registers: &Registers, sid_bits: u8) -> Self {
        let (base, config) = registers.stream_table();
        let literal = (config & 0x3f) as u8;
        let log2 = literal.min(sid_bits);
        let split = (config >> 16 & 0b11 == 1).then_some(match config >> 6 & 0x1f {
            8 => 8,
            10 => 10,
            _ => 6,
        });
        // The alignment follows from what was written, not from what counts.
        let size_log2 = match split {
            None => literal + STE_LOG2,
            Some(split) => literal.saturating_sub(split) + 3,
        };
        let aligned = u64::MAX.checked_shl(size_log2.into()).unwrap_or(0);
        Self { base: base & ADDRESS & aligned, log2, split }
    }

    /// Reads what the guest says of `sid`, once.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn lookup(&self, memory: &dyn GuestMemory, sid: StreamId) -> Result<GuestSte, Refused> {
        let StreamId(sid) = sid;
        let index = u64::from(sid);
        if index >> self.log2 != 0 {
            return Err(Refused::BadStreamId);
        }
        let at = match self.split {
            None => self.base | index << STE_LOG2,
            Some(split) => self.level2(memory, index, split)?,
        };
        let mut words = [0; 8];
        let at = Ipa::new(at);
        memory.read(at, &mut words).map_err(|OutsideRam| Refused::SteFetch(at))?;
        Ok(GuestSte::decode(&words)?)
    }

    /// Where the STE is in its level-2 table.
    fn level2(&self, memory: &dyn GuestMemory, index: u64, split: u8) -> Result<u64, Refused> {
        let at = Ipa::new(self.base | (index >> split) << 3);
        let mut descriptor = [0];
        memory.read(at, &mut descriptor).map_err(|OutsideRam| Refused::SteFetch(at))?;
        let [descriptor] = descriptor;
        // Span n stands for 2^(n-1) STEs. 0 is none, and more than the split allows is reserved.
        let Some(bits) = (descriptor as u8 & 0x1f).checked_sub(1).filter(|bits| *bits <= split)
        else {
            return Err(Refused::BadStreamId);
        };
        let entry = index & ((1 << split) - 1);
        if entry >> bits != 0 {
            return Err(Refused::BadStreamId);
        }
        let table = descriptor & ADDRESS & !((1 << (bits + STE_LOG2)) - 1);
        Ok(table | entry << STE_LOG2)
    }
}
