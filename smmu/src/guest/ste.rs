//! What a guest's STE says (section 5.2), as far as its virtual SMMU understands it.

use tock_registers::{LocalRegisterCopy, register_bitfields};

use crate::ste::{Stage1Config, Words};

register_bitfields! {u64,
    WORD0 [
        V OFFSET(0) NUMBITS(1) [],
        CONFIG OFFSET(1) NUMBITS(3) [Bypass = 0b100, Stage1 = 0b101],
        RESERVED OFFSET(56) NUMBITS(3) [],
        S1CDMAX OFFSET(59) NUMBITS(5) [],
    ],
    WORD1 [
        S1STALLD OFFSET(27) NUMBITS(1) [],
        STRW OFFSET(30) NUMBITS(2) [],
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
    /// What the architecture calls IGNORED where the features are not there that the guest is not told of (EATS
    /// without ATS, memory attributes without ATTR_TYPES_OVR, everything of stage 2) has no effect: drivers do
    /// set it. What it calls ILLEGAL is: a stage 2, substreams, stalls, another exception level.
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
        if word0.read(WORD0::RESERVED) != 0
            || word0.read(WORD0::S1CDMAX) != 0
            || word1.is_set(WORD1::S1STALLD)
            || word1.read(WORD1::STRW) != 0
        {
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
