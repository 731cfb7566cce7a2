//! Stream table entries (section 5.2): 64 bytes that say what happens to one stream's transactions.

use tock_registers::{LocalRegisterCopy, register_bitfields};

use crate::addr::{Pa, Vmid};
use crate::stage2::Format;

/// An STE as memory holds it. The SMMU reads each word in one piece, the eight in any order.
pub type Words = [u64; 8];

register_bitfields! {u64,
    WORD0 [
        V OFFSET(0) NUMBITS(1) [],
        CONFIG OFFSET(1) NUMBITS(3) [Abort = 0b000, Bypass = 0b100, Stage1 = 0b101, Stage2 = 0b110, Nested = 0b111],
    ],
    WORD1 [
        MEV OFFSET(19) NUMBITS(1) [],
        S2FWB OFFSET(25) NUMBITS(1) [],
        S1STALLD OFFSET(27) NUMBITS(1) [],
        SHCFG OFFSET(44) NUMBITS(2) [UseIncoming = 1],
    ],
    WORD2 [
        S2VMID OFFSET(0) NUMBITS(16) [],
        /// T0SZ, SL0, IR0, OR0, SH0, TG and PS, in the order of `VTCR_EL2`.
        S2VTCR OFFSET(32) NUMBITS(19) [],
        S2AA64 OFFSET(51) NUMBITS(1) [],
        S2PTW OFFSET(54) NUMBITS(1) [],
        S2R OFFSET(58) NUMBITS(1) [],
    ],
    WORD3 [
        S2TTB OFFSET(4) NUMBITS(48) [],
    ]
}

/// What an STE says. Nothing but these can be put into the physical stream table (C2): no form skips
/// stage 2, and EATS, S2S, STRW, DRE, DCP, S2HA, S2HD and S2ENDI are 0 in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ste {
    /// Transactions abort, and no event is recorded.
    Abort,
    /// Transactions go through stage 2 only.
    Stage2(Stage2Config),
}

/// The stage-2 half of an STE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Config {
    /// The tag of its translations. All STEs with one VMID have the same root and format.
    pub vmid: Vmid,
    /// The root table, inside the format's output size.
    pub root: Pa,
    /// The shape of the tables.
    pub format: Format,
    /// Whether stage-2 faults are recorded as events. They abort either way.
    pub record: bool,
    /// `S1STALLD`: set exactly where the hardware could stall, illegal elsewhere (section 5.5).
    pub stall_disable: bool,
}

/// Why eight words are no [`Ste`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SteError {
    /// V=0: the SMMU records `C_BAD_STE`.
    Invalid,
    /// A `Config` that this crate never writes, or that is reserved.
    Config(u8),
    /// This word has a bit that this crate never writes, or a reserved encoding.
    Reserved {
        /// Which of the eight.
        word: usize,
    },
}

impl Ste {
    /// Returns the words that mean this.
    pub fn encode(&self) -> Words {
        match self {
            Self::Abort => [(WORD0::V::SET + WORD0::CONFIG::Abort).value, 0, 0, 0, 0, 0, 0, 0],
            Self::Stage2(config) => {
                let [word1, word2, word3] = config.encode();
                [(WORD0::V::SET + WORD0::CONFIG::Stage2).value, word1, word2, word3, 0, 0, 0, 0]
            }
        }
    }

    /// Returns what `words` mean.
    ///
    /// # Errors
    ///
    /// [`SteError`] for everything that [`Ste::encode`] cannot have produced.
    pub fn decode(words: &Words) -> Result<Self, SteError> {
        let word0 = LocalRegisterCopy::<u64, WORD0::Register>::new(words[0]);
        if !word0.is_set(WORD0::V) {
            return Err(SteError::Invalid);
        }
        let ste = match word0.read_as_enum(WORD0::CONFIG) {
            Some(WORD0::CONFIG::Value::Abort) => Self::Abort,
            Some(WORD0::CONFIG::Value::Stage2) => Self::Stage2(Stage2Config::decode(words)?),
            _ => return Err(SteError::Config(word0.read(WORD0::CONFIG) as u8)),
        };
        // The fields are right; now every other bit must be what we would have written.
        match ste.encode().iter().zip(words).position(|(ours, theirs)| ours != theirs) {
            None => Ok(ste),
            Some(word) => Err(SteError::Reserved { word }),
        }
    }
}

impl Stage2Config {
    fn encode(&self) -> [u64; 3] {
        [
            // MEV: a guest's fault storm may be merged. SHCFG: the device's own shareability counts.
            (WORD1::MEV::SET
                + WORD1::SHCFG::UseIncoming
                + WORD1::S2FWB.val(self.format.fwb().into())
                + WORD1::S1STALLD.val(self.stall_disable.into()))
            .value,
            // S2AA64 is not optional: this crate builds no AArch32 tables, and QEMU exits on 0. S2PTW
            // only matters under a stage 1, whose walks have no business in device memory.
            (WORD2::S2VMID.val(self.vmid.0.into())
                + WORD2::S2VTCR.val(self.format.vtcr())
                + WORD2::S2AA64::SET
                + WORD2::S2PTW::SET
                + WORD2::S2R.val(self.record.into()))
            .value,
            WORD3::S2TTB.val(self.root.raw() >> 4).value,
        ]
    }

    fn decode(words: &Words) -> Result<Self, SteError> {
        let word1 = LocalRegisterCopy::<u64, WORD1::Register>::new(words[1]);
        let word2 = LocalRegisterCopy::<u64, WORD2::Register>::new(words[2]);
        let word3 = LocalRegisterCopy::<u64, WORD3::Register>::new(words[3]);
        let format = Format::from_vtcr(word2.read(WORD2::S2VTCR), word1.is_set(WORD1::S2FWB))
            .map_err(|_| SteError::Reserved { word: 2 })?;
        let root = Pa::new(word3.read(WORD3::S2TTB) << 4);
        if !root.is_aligned(format.root_size()) || root.raw() >> format.output_bits() != 0 {
            return Err(SteError::Reserved { word: 3 });
        }
        Ok(Self {
            vmid: Vmid(word2.read(WORD2::S2VMID) as u16),
            root,
            format,
            record: word2.is_set(WORD2::S2R),
            stall_disable: word1.is_set(WORD1::S1STALLD),
        })
    }
}
