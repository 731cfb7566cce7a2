//! What a guest's STE says (section 5.2), as far as its virtual SMMU understands it.

use tock_registers::{LocalRegisterCopy, register_bitfields};

use crate::ste::{Stage1Config, Words};

register_bitfields! {u64,
    WORD0 [
        V OFFSET(0) NUMBITS(1) [],
        CONFIG OFFSET(1) NUMBITS(3) [Bypass = 0b100, Stage1 = 0b101],
    ],
    WORD1 [
        S1STALLD OFFSET(27) NUMBITS(1) [],
    ]
}

/// A valid STE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestSte {
    /// Transactions abort, and no event is recorded.
    Abort,
    /// Transactions bypass the guest's stage 1.
    Bypass,
    /// Transactions go through this stage 1.
    Stage1(Stage1Config),
}

/// The STE is illegal: its transactions are `C_BAD_STE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Illegal;

impl GuestSte {
    /// Decodes a copy of a guest's STE.
    ///
    /// Illegal is what section 5.2.2 says for an SMMU with these features: V=0, a stage 2, and `S1STALLD`.
    /// Everything else that belongs to a feature which the guest is not told of is ignored, as it says there as
    /// well: EATS, STRW, substreams, memory attributes, all of stage 2. Drivers do set some of it.
    ///
    /// # Errors
    ///
    /// [`Illegal`].
    pub fn decode(words: &Words) -> Result<Self, Illegal> {
        let word0 = LocalRegisterCopy::<u64, WORD0::Register>::new(words[0]);
        let word1 = LocalRegisterCopy::<u64, WORD1::Register>::new(words[1]);
        if !word0.is_set(WORD0::V) {
            return Err(Illegal);
        }
        match word0.read_as_enum(WORD0::CONFIG) {
            Some(WORD0::CONFIG::Value::Bypass) => return Ok(Self::Bypass),
            Some(WORD0::CONFIG::Value::Stage1) => {}
            // 0b0xx aborts whatever the other bits are.
            None if word0.read(WORD0::CONFIG) & 0b100 == 0 => return Ok(Self::Abort),
            None => return Err(Illegal),
        }
        if word1.is_set(WORD1::S1STALLD) {
            return Err(Illegal);
        }
        let mut config = Stage1Config::decode(words);
        // The reserved shareability means non-shareable.
        if config.shareability == 0b01 {
            config.shareability = 0;
        }
        Ok(Self::Stage1(config))
    }
}
