//! Event records (section 7.3): what the SMMU tells of refused transactions, 32 bytes each.

use crate::addr::{Iova, Ipa, StreamId};

/// An event record as memory holds it.
pub type Words = [u64; 4];

/// The one list of kinds: `then` gets it, behind what else it wants to know.
macro_rules! each_kind {
    ($then:ident $($head:tt)*) => {
        $then! { $($head)* {
            /// Section 7.3.2: a kind of transaction that the SMMU does not support.
            UnsupportedTransaction = 0x01, "F_UUT";
            /// Section 7.3.3: no STE can be found for the StreamID.
            BadStreamId = 0x02, "C_BAD_STREAMID";
            /// Section 7.3.4: the STE could not be read.
            SteFetch = 0x03, "F_STE_FETCH";
            /// Section 7.3.5: the STE is invalid.
            BadSte = 0x04, "C_BAD_STE";
            /// Section 7.3.6: an ATS request that is not allowed.
            BadAtsRequest = 0x05, "F_BAD_ATS_TREQ";
            /// Section 7.3.7: a transaction without substream where they are required.
            StreamDisabled = 0x06, "F_STREAM_DISABLED";
            /// Section 7.3.8: a translated transaction where ATS is off.
            TranslationForbidden = 0x07, "F_TRANSL_FORBIDDEN";
            /// Section 7.3.9: no CD can be found for the substream.
            BadSubstreamId = 0x08, "C_BAD_SUBSTREAMID";
            /// Section 7.3.10: the CD could not be read.
            CdFetch = 0x09, "F_CD_FETCH";
            /// Section 7.3.11: the CD is invalid.
            BadCd = 0x0a, "C_BAD_CD";
            /// Section 7.3.12: a translation table could not be read.
            WalkAbort = 0x0b, "F_WALK_EABT";
            /// Section 7.3.13: nothing is mapped there.
            Translation = 0x10, "F_TRANSLATION";
            /// Section 7.3.14: an address is too large.
            AddressSize = 0x11, "F_ADDR_SIZE";
            /// Section 7.3.15: the access flag is clear.
            Access = 0x12, "F_ACCESS";
            /// Section 7.3.16: not allowed there.
            Permission = 0x13, "F_PERMISSION";
            /// Section 7.3.17: two TLB entries matched.
            TlbConflict = 0x20, "F_TLB_CONFLICT";
            /// Section 7.3.18: two configuration cache entries matched.
            ConfigConflict = 0x21, "F_CFG_CONFLICT";
            /// Section 7.3.19: a hint that pages will be wanted.
            PageRequest = 0x24, "E_PAGE_REQUEST";
            /// Section 7.3.20: the VM structure could not be read.
            VmsFetch = 0x25, "F_VMS_FETCH";
        } }
    };
}

pub(crate) use each_kind;

macro_rules! kinds {
    ({ $($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal;)* }) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$doc])* $variant,)*
            /// A record that the architecture does not define.
            Unknown(u8),
        }

        impl Kind {
            /// The names of all kinds, in the order of [`Kind::index`].
            pub const NAMES: &'static [&'static str] = &[$($name,)* "UNKNOWN"];

            const fn from_code(code: u8) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    other => Self::Unknown(other),
                }
            }

            /// Its place among [`Kind::NAMES`].
            pub fn index(self) -> usize {
                let known = [$(Self::$variant),*];
                known.iter().position(|kind| *kind == self).unwrap_or(known.len())
            }
        }
    };
}

each_kind!(kinds);

impl Kind {
    /// How many kinds there are, all unknown ones counted as one.
    pub const COUNT: usize = Self::NAMES.len();

    /// The name in the specification and the report.
    pub fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// Whether records of this kind carry the transaction's address and direction.
    const fn has_input(self) -> bool {
        matches!(self, Self::UnsupportedTransaction | Self::TranslationForbidden)
            || self.has_stage()
    }

    /// Whether records of this kind say which stage refused what.
    const fn has_stage(self) -> bool {
        matches!(
            self,
            Self::WalkAbort
                | Self::Translation
                | Self::AddressSize
                | Self::Access
                | Self::Permission
                | Self::TlbConflict
        )
    }
}

/// What the SMMU was doing for the transaction when it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultClass {
    /// Fetching the CD.
    Cd,
    /// Walking stage 1.
    TableWalk,
    /// Translating the transaction's own address.
    Input,
    /// A reserved encoding.
    Reserved,
}

/// The transaction itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// The address the device put on the bus.
    pub address: Iova,
    /// Whether it was a write.
    pub write: bool,
}

/// Which stage refused it, and while doing what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Stage 2 did. QEMU leaves this false for a stage-2 fault of a stage-1 walk.
    pub stage2: bool,
    /// What was being translated.
    pub class: FaultClass,
}

/// One decoded event record. Every record decodes: what is not understood keeps its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// Whose transaction it was.
    pub sid: StreamId,
    /// Its substream, if it had one.
    pub ssid: Option<u32>,
    /// The transaction, if the kind says.
    pub input: Option<Input>,
    /// Which stage refused it, if the kind says.
    pub stage: Option<Stage>,
    /// The record.
    pub words: Words,
}

impl Event {
    /// Decodes a record.
    pub fn decode(words: Words) -> Self {
        let kind = Kind::from_code(words[0] as u8);
        let bit = |word: usize, bit: u32| words[word] >> bit & 1 != 0;
        Self {
            kind,
            sid: StreamId((words[0] >> 32) as u32),
            ssid: bit(0, 11).then_some((words[0] >> 12) as u32 & 0xf_ffff),
            input: kind
                .has_input()
                .then_some(Input { address: Iova::new(words[2]), write: !bit(1, 35) }),
            stage: kind.has_stage().then_some(Stage {
                stage2: bit(1, 39),
                class: match words[1] >> 40 & 0b11 {
                    0b00 => FaultClass::Cd,
                    0b01 => FaultClass::TableWalk,
                    0b10 => FaultClass::Input,
                    _ => FaultClass::Reserved,
                },
            }),
            words,
        }
    }

    /// Whether stage 2 refused the transaction itself, at an address of the guest's `ipa_bits` of them: no business
    /// of what owns stage 1.
    pub fn is_of_stage2(&self, ipa_bits: u8) -> bool {
        self.stage.is_some_and(|stage| stage.stage2 && stage.class == FaultClass::Input)
            && !self.is_beyond(ipa_bits)
    }

    /// Whether stage 1 sent the transaction beyond `ipa_bits` of addresses. Where the SMMU has more of them than its
    /// guest was told of, it is stage 2 that finds this out (section 3.4).
    pub fn is_beyond(&self, ipa_bits: u8) -> bool {
        self.stage.is_some_and(|stage| stage.class == FaultClass::Input)
            && self.ipa().is_some_and(|ipa| ipa.raw() >> ipa_bits != 0)
    }

    /// The page of the guest's address space that stage 2 refused, if it was stage 2.
    pub fn ipa(&self) -> Option<Ipa> {
        // Bits 55:12 of the word; QEMU leaves those below set.
        self.stage
            .filter(|stage| stage.stage2)
            .map(|_| Ipa::new(self.words[3] & 0x00ff_ffff_ffff_f000))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record as eight 32-bit words, low first.
    fn record(words: [u32; 8]) -> Event {
        Event::decode(core::array::from_fn(|i| {
            u64::from(words[2 * i]) | u64::from(words[2 * i + 1]) << 32
        }))
    }

    #[test]
    fn records_that_qemu_writes_are_understood() {
        // A write to an unmapped address of a stage-2-only stream.
        let event = record([0x10, 0x10, 0, 0x280, 0x1_1238, 0, 0x1_1238, 0]);
        assert_eq!((event.kind, event.sid, event.ssid), (Kind::Translation, StreamId(0x10), None));
        assert_eq!(event.input, Some(Input { address: Iova::new(0x1_1238), write: true }));
        assert_eq!(event.stage, Some(Stage { stage2: true, class: FaultClass::Input }));
        assert_eq!(event.ipa(), Some(Ipa::new(0x1_1000)));
        assert!(event.is_of_stage2(40));
        // The same, read.
        assert!(!record([0x10, 0x10, 0, 0x288, 0x1_1238, 0, 0x1_1238, 0]).input.unwrap().write);
        // A write to a read-only page.
        assert_eq!(record([0x13, 0x10, 0, 0x280, 0x1_1238, 0, 0x1_1238, 0]).kind, Kind::Permission);
        // A stage-1 fault has no IPA; a CD that stage 2 does not map is a read of one.
        let event = record([0x10, 0x10, 0, 0x200, 0x2_2abc, 0, 0, 0]);
        assert_eq!((event.stage.unwrap().stage2, event.ipa()), (false, None));
        assert!(!event.is_of_stage2(40));
        let event = record([0x10, 0x10, 0, 0x88, 0, 0, 0x4017_0000, 0]);
        assert_eq!(event.stage, Some(Stage { stage2: true, class: FaultClass::Cd }));
        assert!(!event.is_of_stage2(40));
        // No STE, and a bad one.
        assert_eq!(record([2, 0x10, 0, 0, 0, 0, 0, 0]).kind.name(), "C_BAD_STREAMID");
        let event = record([4, 0x10, 0, 0, 0, 0, 0, 0]);
        assert_eq!((event.kind.name(), event.input, event.stage), ("C_BAD_STE", None, None));
    }

    #[test]
    fn a_substream_is_named_if_there_was_one() {
        assert_eq!(record([0x1234_5810, 1, 0, 0, 0, 0, 0, 0]).ssid, Some(0x1_2345));
    }

    proptest! {
        #![proptest_config(crate::fake::cases(256))]

        /// Whatever a device makes the SMMU write: it is counted somewhere, and kept.
        #[test]
        fn every_record_decodes(words: [u64; 4]) {
            let event = Event::decode(words);
            prop_assert_eq!(event.words, words);
            prop_assert!(event.kind.index() < Kind::COUNT);
            if let Kind::Unknown(code) = event.kind {
                prop_assert_eq!(u64::from(code), words[0] & 0xff);
                prop_assert_eq!(event.kind.name(), "UNKNOWN");
            }
        }
    }

    #[test]
    fn names_fit_the_report() {
        assert!(Kind::NAMES.iter().all(|name| name.len() <= 24));
    }
}
