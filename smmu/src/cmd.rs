//! Commands (chapter 4): what the driver asks of the SMMU, 16 bytes each.

use crate::addr::{Iova, Ipa, StreamId, Vmid};
use crate::format::command as layout;

/// Declares what the driver issues: each with its layout, which has its number, and its name.
macro_rules! opcodes {
    ($($(#[$doc:meta])* $variant:ident = $layout:ident, $name:expr;)*) => {
        /// What a command does, without its operands.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Opcode {
            $($(#[$doc])* $variant,)*
        }

        impl Opcode {
            /// All of them, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in the specification and the report.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            const fn code(self) -> u64 {
                match self {
                    $(Self::$variant => layout::$layout::CODE as u64,)*
                }
            }
        }
    };
}

opcodes! {
    /// Section 4.3.1.
    CfgiSte = CfgiSte, layout::CfgiSte::NAME;
    /// Section 4.3.2.
    CfgiSteRange = CfgiSteRange, layout::CfgiSteRange::NAME;
    /// Section 4.3.6: a range of everything.
    CfgiAll = CfgiSteRange, "CMD_CFGI_ALL";
    /// Section 4.3.3.
    CfgiCd = CfgiCd, layout::CfgiCd::NAME;
    /// Section 4.3.4.
    CfgiCdAll = CfgiCdAll, layout::CfgiCdAll::NAME;
    /// Section 4.4.2.1.
    TlbiNhAll = TlbiNhAll, layout::TlbiNhAll::NAME;
    /// Section 4.4.2.2.
    TlbiNhAsid = TlbiNhAsid, layout::TlbiNhAsid::NAME;
    /// Section 4.4.2.4.
    TlbiNhVa = TlbiNhVa, layout::TlbiNhVa::NAME;
    /// Section 4.4.2.3.
    TlbiNhVaa = TlbiNhVaa, layout::TlbiNhVaa::NAME;
    /// Section 4.4.3.2.
    TlbiS12Vmall = TlbiS12Vmall, layout::TlbiS12Vmall::NAME;
    /// Section 4.4.3.1.
    TlbiS2Ipa = TlbiS2Ipa, layout::TlbiS2Ipa::NAME;
    /// Section 4.4.4.1.
    TlbiNsnhAll = TlbiNsnhAll, layout::TlbiNsnhAll::NAME;
    /// Section 4.7.3.
    Sync = Sync, layout::Sync::NAME;
}

/// How many addresses a TLB invalidation names (section 4.4.1.1), in 4 KiB pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// The page, or the whole block, that holds the address; understood by every SMMU.
    One,
    /// `multiple << scale` pages from the address on; only where `IDR3.RIL` is 1. One page in this
    /// form, without a level hint, is a reserved encoding.
    Range {
        /// 1 to 32.
        multiple: u8,
        /// 0 to 31.
        scale: u8,
    },
    /// `multiple << scale` granules of a guest's own tables from the address on; only where `IDR3.RIL` is 1.
    /// One granule without a level hint is a reserved encoding.
    Granules {
        /// The granule of the tables.
        granule: Granule,
        /// The level of their leaves, 1 to 3, or 0: any. Level 1 only with the 4 KiB and 64 KiB granules.
        level: u8,
        /// 1 to 32.
        multiple: u8,
        /// 0 to 31.
        scale: u8,
    },
}

/// The smallest size of what a translation table maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granule {
    /// 4 KiB.
    K4,
    /// 16 KiB.
    K16,
    /// 64 KiB.
    K64,
}

impl Granule {
    /// Its size as a power of two.
    pub const fn log2(self) -> u8 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// `TG` (section 4.4.1.1).
    const fn code(self) -> u64 {
        match self {
            Self::K4 => 1,
            Self::K16 => 2,
            Self::K64 => 3,
        }
    }
}

/// A command of the Non-secure queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Forget the STE of a stream and all its CDs; without `leaf`, also the level-1 descriptor.
    CfgiSte {
        /// The stream.
        sid: StreamId,
        /// Keep what was cached of the first level.
        leaf: bool,
    },
    /// Forget `2^(range + 1)` STEs: those of the aligned group that `sid` is in.
    CfgiSteRange {
        /// Any stream of the group.
        sid: StreamId,
        /// 0 to 30.
        range: u8,
    },
    /// Forget all configuration.
    CfgiAll,
    /// Forget one CD.
    CfgiCd {
        /// The stream.
        sid: StreamId,
        /// Its substream, 20 bits.
        ssid: u32,
        /// Keep what was cached of the first level.
        leaf: bool,
    },
    /// Forget all CDs of a stream.
    CfgiCdAll {
        /// The stream.
        sid: StreamId,
    },
    /// Drop a VM's stage-1 and combined translations.
    TlbiNhAll {
        /// The VM's tag.
        vmid: Vmid,
    },
    /// Drop one address space's stage-1 and combined translations.
    TlbiNhAsid {
        /// The VM's tag.
        vmid: Vmid,
        /// The address space's.
        asid: u16,
    },
    /// Drop stage-1 and combined translations by address, in one address space.
    TlbiNhVa {
        /// The VM's tag.
        vmid: Vmid,
        /// The address space's.
        asid: u16,
        /// The first address.
        address: Iova,
        /// How many.
        pages: Pages,
        /// Keep what was cached of the upper levels.
        leaf: bool,
    },
    /// Drop stage-1 and combined translations by address, in all address spaces.
    TlbiNhVaa {
        /// The VM's tag.
        vmid: Vmid,
        /// The first address.
        address: Iova,
        /// How many.
        pages: Pages,
        /// Keep what was cached of the upper levels.
        leaf: bool,
    },
    /// Drop all of a VM's translations.
    TlbiS12Vmall {
        /// The VM's tag.
        vmid: Vmid,
    },
    /// Drop stage-2-only translations by address. Combined ones stay.
    TlbiS2Ipa {
        /// The VM's tag.
        vmid: Vmid,
        /// The first address.
        address: Ipa,
        /// How many.
        pages: Pages,
        /// Keep what was cached of the upper levels.
        leaf: bool,
    },
    /// Drop every Non-secure translation that is not EL2's.
    TlbiNsnhAll,
    /// Complete when all commands before it are complete.
    Sync,
}

impl Command {
    /// What it does.
    pub const fn opcode(&self) -> Opcode {
        match self {
            Self::CfgiSte { .. } => Opcode::CfgiSte,
            Self::CfgiSteRange { .. } => Opcode::CfgiSteRange,
            Self::CfgiAll => Opcode::CfgiAll,
            Self::CfgiCd { .. } => Opcode::CfgiCd,
            Self::CfgiCdAll { .. } => Opcode::CfgiCdAll,
            Self::TlbiNhAll { .. } => Opcode::TlbiNhAll,
            Self::TlbiNhAsid { .. } => Opcode::TlbiNhAsid,
            Self::TlbiNhVa { .. } => Opcode::TlbiNhVa,
            Self::TlbiNhVaa { .. } => Opcode::TlbiNhVaa,
            Self::TlbiS12Vmall { .. } => Opcode::TlbiS12Vmall,
            Self::TlbiS2Ipa { .. } => Opcode::TlbiS2Ipa,
            Self::TlbiNsnhAll => Opcode::TlbiNsnhAll,
            Self::Sync => Opcode::Sync,
        }
    }

    /// Returns its two words. `CMD_SYNC` signals nobody (CS=0): its completion shows in `CMDQ_CONS`.
    pub fn encode(&self) -> [u64; 2] {
        let (low, high) = match *self {
            Self::CfgiSte { sid, leaf } => (stream(sid), leaf.into()),
            Self::CfgiSteRange { sid, range } => (stream(sid), range.into()),
            Self::CfgiAll => (0, 31),
            Self::CfgiCd { sid, ssid, leaf } => (stream(sid) | u64::from(ssid) << 12, leaf.into()),
            Self::CfgiCdAll { sid } => (stream(sid), 0),
            Self::TlbiNhAll { vmid } | Self::TlbiS12Vmall { vmid } => (tag(vmid, 0), 0),
            Self::TlbiNhAsid { vmid, asid } => (tag(vmid, asid), 0),
            Self::TlbiNhVa { vmid, asid, address, pages, leaf } => {
                range(tag(vmid, asid), address.raw(), pages, leaf)
            }
            Self::TlbiNhVaa { vmid, address, pages, leaf } => {
                range(tag(vmid, 0), address.raw(), pages, leaf)
            }
            Self::TlbiS2Ipa { vmid, address, pages, leaf } => {
                range(tag(vmid, 0), address.raw(), pages, leaf)
            }
            Self::TlbiNsnhAll | Self::Sync => (0, 0),
        };
        [low | self.opcode().code(), high]
    }
}

fn stream(sid: StreamId) -> u64 {
    u64::from(sid.0) << 32
}

fn tag(vmid: Vmid, asid: u16) -> u64 {
    u64::from(asid) << 48 | u64::from(vmid.0) << 32
}

fn range(tag: u64, address: u64, pages: Pages, leaf: bool) -> (u64, u64) {
    let high = |granule_log2: u8| address >> granule_log2 << granule_log2 | u64::from(leaf);
    let (granule, level, multiple, scale) = match pages {
        Pages::One => return (tag, high(Granule::K4.log2())),
        Pages::Range { multiple, scale } => (Granule::K4, 0, multiple, scale),
        Pages::Granules { granule, level, multiple, scale } => (granule, level, multiple, scale),
    };
    (
        tag | u64::from(scale) << 20 | u64::from(multiple - 1) << 12,
        high(granule.log2()) | granule.code() << 10 | u64::from(level) << 8,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SID: StreamId = StreamId(0x1234);
    const VMID: Vmid = Vmid(0x5a);

    #[test]
    fn words_have_the_documented_bits() {
        let ipa = Ipa::new(0x12_3456_7000);
        let va = Iova::new(0xffff_8000_1234_5000);
        for (command, words) in [
            // Section 4.3: StreamID [63:32], Leaf [64], Range [68:64], SubstreamID [31:12].
            (Command::CfgiSte { sid: SID, leaf: true }, [0x1234_0000_0003, 1]),
            (Command::CfgiSte { sid: SID, leaf: false }, [0x1234_0000_0003, 0]),
            (Command::CfgiSteRange { sid: SID, range: 7 }, [0x1234_0000_0004, 7]),
            (Command::CfgiAll, [4, 31]),
            (Command::CfgiCd { sid: SID, ssid: 0xabcde, leaf: true }, [0x1234_abcd_e005, 1]),
            (Command::CfgiCdAll { sid: SID }, [0x1234_0000_0006, 0]),
            // Section 4.4: VMID [47:32], ASID [63:48], Leaf [64], Address [127:76].
            (Command::TlbiNhAll { vmid: VMID }, [0x5a_0000_0010, 0]),
            (Command::TlbiNhAsid { vmid: VMID, asid: 9 }, [0x0009_005a_0000_0011, 0]),
            (
                Command::TlbiNhVa {
                    vmid: VMID,
                    asid: 9,
                    address: va,
                    pages: Pages::One,
                    leaf: true,
                },
                [0x0009_005a_0000_0012, 0xffff_8000_1234_5001],
            ),
            (
                Command::TlbiNhVaa { vmid: VMID, address: va, pages: Pages::One, leaf: false },
                [0x005a_0000_0013, 0xffff_8000_1234_5000],
            ),
            (Command::TlbiS12Vmall { vmid: VMID }, [0x5a_0000_0028, 0]),
            (
                Command::TlbiS2Ipa { vmid: VMID, address: ipa, pages: Pages::One, leaf: false },
                [0x5a_0000_002a, 0x12_3456_7000],
            ),
            // Section 4.4.1.1: NUM [16:12] = 31, SCALE [24:20] = 9, TG [75:74] = 1.
            (
                Command::TlbiS2Ipa {
                    vmid: VMID,
                    address: ipa,
                    pages: Pages::Range { multiple: 32, scale: 9 },
                    leaf: true,
                },
                [0x5a_0091_f02a, 0x12_3456_7401],
            ),
            // TTL [73:72] = 3, TG = 3: the address is a multiple of 64 KiB.
            (
                Command::TlbiNhVa {
                    vmid: VMID,
                    asid: 9,
                    address: va,
                    pages: Pages::Granules {
                        granule: Granule::K64,
                        level: 3,
                        multiple: 1,
                        scale: 2,
                    },
                    leaf: true,
                },
                [0x0009_005a_0020_0012, 0xffff_8000_1234_0f01],
            ),
            (Command::TlbiNsnhAll, [0x30, 0]),
            // Section 4.7.3: CS=0.
            (Command::Sync, [0x46, 0]),
        ] {
            assert_eq!(command.encode(), words, "{command:?}");
        }
    }

    #[test]
    fn counters_are_indexed_by_discriminant() {
        for (index, opcode) in Opcode::ALL.iter().enumerate() {
            assert_eq!(*opcode as usize, index);
            // The report has room for 24 characters.
            assert!(opcode.name().starts_with("CMD_") && opcode.name().len() <= 24);
        }
    }
}
