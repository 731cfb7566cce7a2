//! Stream table entries (section 5.2): 64 bytes that say what happens to one stream's transactions.

use tock_registers::{LocalRegisterCopy, register_bitfields};

use crate::addr::{Ipa, Pa, Vmid};
use crate::stage2::Format;

/// An STE as memory holds it. The SMMU reads each word in one piece, the eight in any order.
pub type Words = [u64; 8];

register_bitfields! {u64,
    WORD0 [
        V OFFSET(0) NUMBITS(1) [],
        CONFIG OFFSET(1) NUMBITS(3) [Abort = 0b000, Bypass = 0b100, Stage1 = 0b101, Stage2 = 0b110, Nested = 0b111],
        S1CONTEXTPTR OFFSET(6) NUMBITS(50) [],
    ],
    WORD1 [
        S1CIR OFFSET(2) NUMBITS(2) [],
        S1COR OFFSET(4) NUMBITS(2) [],
        S1CSH OFFSET(6) NUMBITS(2) [],
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
    /// Transactions go through a guest's stage 1, and what comes out of it, as well as that stage 1's own
    /// descriptors, through stage 2.
    Nested(Stage1Config, Stage2Config),
}

/// The stage-1 half of an STE, all of it a guest's: one CD, no substreams (S1Fmt, S1CDMax and S1DSS are 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1Config {
    /// Where the CD is: bits 55:6 of an address that stage 2 translates.
    pub context: Ipa,
    /// `S1CIR`, two bits: how the SMMU caches the CD in inner caches.
    pub inner: u8,
    /// `S1COR`, two bits: the same for outer caches.
    pub outer: u8,
    /// `S1CSH`, two bits: the CD's shareability.
    pub shareability: u8,
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
            Self::Nested(stage1, stage2) => {
                let [first0, first1] = stage1.encode();
                let [second1, word2, word3] = stage2.encode();
                let word0 = (WORD0::V::SET + WORD0::CONFIG::Nested).value | first0;
                [word0, first1 | second1, word2, word3, 0, 0, 0, 0]
            }
        }
    }

    /// The bits of [`Ste::encode`] that the SMMU looks at; it ignores all others.
    pub(crate) fn used(&self) -> Words {
        let selector = WORD0::V::SET.mask() | WORD0::CONFIG::SET.mask();
        let stage1 = WORD1::S1CIR::SET.mask() | WORD1::S1COR::SET.mask() | WORD1::S1CSH::SET.mask();
        match self {
            Self::Abort => [selector, 0, 0, 0, 0, 0, 0, 0],
            Self::Stage2(_) => [selector, !stage1, !0, !0, 0, 0, 0, 0],
            Self::Nested(..) => [!0, !0, !0, !0, 0, 0, 0, 0],
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
            Some(WORD0::CONFIG::Value::Nested) => {
                let stage1 = Stage1Config::decode(words);
                // Shareability 0b01 is reserved.
                if stage1.shareability == 0b01 {
                    return Err(SteError::Reserved { word: 1 });
                }
                Self::Nested(stage1, Stage2Config::decode(words)?)
            }
            _ => return Err(SteError::Config(word0.read(WORD0::CONFIG) as u8)),
        };
        // The fields are right; now every other bit must be what we would have written.
        match ste.encode().iter().zip(words).position(|(ours, theirs)| ours != theirs) {
            None => Ok(ste),
            Some(word) => Err(SteError::Reserved { word }),
        }
    }
}

impl Stage1Config {
    /// What goes into words 0 and 1. Nothing else of an address or a field that is too wide does.
    fn encode(&self) -> [u64; 2] {
        [
            WORD0::S1CONTEXTPTR.val(self.context.raw() >> 6).value,
            (WORD1::S1CIR.val(self.inner.into())
                + WORD1::S1COR.val(self.outer.into())
                + WORD1::S1CSH.val(self.shareability.into()))
            .value,
        ]
    }

    /// The fields of this form, whatever else the words hold.
    pub(crate) fn decode(words: &Words) -> Self {
        let word0 = LocalRegisterCopy::<u64, WORD0::Register>::new(words[0]);
        let word1 = LocalRegisterCopy::<u64, WORD1::Register>::new(words[1]);
        Self {
            context: Ipa::new(word0.read(WORD0::S1CONTEXTPTR) << 6),
            inner: word1.read(WORD1::S1CIR) as u8,
            outer: word1.read(WORD1::S1COR) as u8,
            shareability: word1.read(WORD1::S1CSH) as u8,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stage2(record: bool, fwb: bool, stall_disable: bool) -> Ste {
        let format = Format::new(40, 44, fwb).unwrap();
        Ste::Stage2(Stage2Config {
            vmid: Vmid(7),
            root: Pa::new(0x4567_8000),
            format,
            record,
            stall_disable,
        })
    }

    #[test]
    fn words_have_the_documented_bits() {
        // Section 5.2. V=1, Config=0b000.
        assert_eq!(Ste::Abort.encode(), [1, 0, 0, 0, 0, 0, 0, 0]);
        let words = stage2(true, false, false).encode();
        // V=1, Config=0b110.
        assert_eq!(words[0], 0b1101);
        // MEV [83], SHCFG [109:108] = 1; nothing else, so EATS, STRW, DRE, DCP are 0.
        assert_eq!(words[1], 1 << (83 - 64) | 1 << (108 - 64));
        // S2VMID [143:128]; S2T0SZ [165:160] = 24, S2SL0 [167:166] = 1, S2IR0 = S2OR0 = 1,
        // S2SH0 [173:172] = 3, S2TG [175:174] = 0, S2PS [178:176] = 4; S2AA64 [179], S2PTW [182],
        // S2R [186]; S2S, S2HA, S2HD are 0.
        let vtcr = 24 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | 4 << 16;
        assert_eq!(words[2], 7 | vtcr << 32 | 1 << 51 | 1 << 54 | 1 << 58);
        // S2TTB [247:196].
        assert_eq!(words[3], 0x4567_8000);
        assert_eq!(words[4..], [0; 4]);
    }

    #[test]
    fn options_have_the_documented_bits() {
        let plain = stage2(true, false, false).encode();
        assert_eq!(stage2(false, false, false).encode()[2], plain[2] & !(1 << 58));
        // S2FWB [89] and S1STALLD [91].
        assert_eq!(stage2(true, true, false).encode()[1], plain[1] | 1 << 25);
        assert_eq!(stage2(true, false, true).encode()[1], plain[1] | 1 << 27);
    }

    #[test]
    fn a_guests_stage1_adds_its_fields_and_nothing_else() {
        let Ste::Stage2(stage2) = stage2(true, true, true) else { unreachable!() };
        let below = Ste::Stage2(stage2).encode();
        let stage1 =
            Stage1Config { context: Ipa::new(0x45_6789_abc0), inner: 1, outer: 2, shareability: 3 };
        let words = Ste::Nested(stage1, stage2).encode();
        // V=1, Config=0b111, S1Fmt [5:4] = 0, S1ContextPtr [55:6], S1CDMax [63:59] = 0.
        assert_eq!(words[0], 0x45_6789_abc0 | 0b1111);
        // S1DSS [65:64] = 0, S1CIR [67:66], S1COR [69:68], S1CSH [71:70].
        assert_eq!(words[1], below[1] | 1 << 2 | 2 << 4 | 3 << 6);
        assert_eq!(words[2..], below[2..]);
        assert_eq!(Ste::decode(&words), Ok(Ste::Nested(stage1, stage2)));
    }

    #[test]
    fn an_overlong_stage1_field_stays_in_its_place() {
        let Ste::Stage2(stage2) = stage2(true, false, false) else { unreachable!() };
        let all =
            Stage1Config { context: Ipa::new(!0), inner: 0xff, outer: 0xff, shareability: 0xff };
        let words = Ste::Nested(all, stage2).encode();
        assert_eq!(words[0], 0x00ff_ffff_ffff_ffc0 | 0b1111);
        assert_eq!(words[1], Ste::Stage2(stage2).encode()[1] | 0xfc);
    }

    #[test]
    fn what_is_never_written_is_an_error() {
        let good = stage2(true, false, false).encode();
        let changed = |word: usize, value: u64| {
            let mut words = good;
            words[word] = value;
            Ste::decode(&words)
        };
        assert_eq!(changed(0, 0b1100), Err(SteError::Invalid));
        for config in [0b001, 0b011, 0b100, 0b101] {
            assert_eq!(changed(0, config << 1 | 1), Err(SteError::Config(config as u8)));
        }
        // S1ContextPtr, EATS, S2S, S2AA64=0, S2TG=1, an unaligned and a too distant S2TTB.
        assert_eq!(changed(0, good[0] | 1 << 6), Err(SteError::Reserved { word: 0 }));
        assert_eq!(changed(1, good[1] | 1 << 28), Err(SteError::Reserved { word: 1 }));
        assert_eq!(changed(2, good[2] | 1 << 57), Err(SteError::Reserved { word: 2 }));
        assert_eq!(changed(2, good[2] & !(1 << 51)), Err(SteError::Reserved { word: 2 }));
        assert_eq!(changed(2, good[2] | 1 << 46), Err(SteError::Reserved { word: 2 }));
        assert_eq!(changed(3, good[3] | 0x1000), Err(SteError::Reserved { word: 3 }));
        assert_eq!(changed(3, 1 << 44), Err(SteError::Reserved { word: 3 }));
        assert_eq!(changed(7, 1), Err(SteError::Reserved { word: 7 }));
    }

    proptest! {
        #![proptest_config(crate::fake::cases(256))]

        #[test]
        fn what_is_written_is_read_back(
            vmid: u16, root in 0_u64..1 << 24, bits in 32_u8..=48, fwb: bool, record: bool, stall_disable: bool,
        ) {
            let format = Format::new(bits, 48, fwb).unwrap();
            let root = Pa::new(root * format.root_size());
            let ste = Ste::Stage2(Stage2Config { vmid: Vmid(vmid), root, format, record, stall_disable });
            prop_assert_eq!(Ste::decode(&ste.encode()), Ok(ste));
        }

        /// Whatever decodes is something that the architecture has.
        #[test]
        fn nothing_reserved_decodes(context: u64, inner in 0_u8..4, outer in 0_u8..4, shareability in 0_u8..4) {
            let Ste::Stage2(stage2) = stage2(true, false, false) else { unreachable!() };
            let context = Ipa::new(context & 0x00ff_ffff_ffff_ffc0);
            let stage1 = Stage1Config { context, inner, outer, shareability };
            let words = Ste::Nested(stage1, stage2).encode();
            let known = crate::format::ste::Ste::decode(&words).is_ok();
            prop_assert_eq!(Ste::decode(&words).is_ok(), known);
            prop_assert_eq!(known, shareability != 0b01);
        }

        /// Whatever decodes is something that could have been written, to the bit.
        #[test]
        fn nothing_else_decodes(flips in prop::collection::vec(0_usize..512, 0..4)) {
            let mut words = stage2(true, false, false).encode();
            for bit in flips {
                words[bit / 64] ^= 1 << (bit % 64);
            }
            if let Ok(ste) = Ste::decode(&words) {
                prop_assert_eq!(ste.encode(), words);
            }
        }
    }
}
