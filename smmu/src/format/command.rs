//! Commands of the Non-secure queue (chapter 4).

use crate::addr::{StreamId, Vmid};
use crate::format::{Address, Shareability, encoding, numbered, structure};

encoding! {
    /// The granule of the tables that a TLB invalidation is about (`TG`, section 4.4.1.1).
    TlbGranule {
        /// Any; one address, without a range or a hint.
        Any = 0b00,
        /// 4 KiB.
        K4 = 0b01,
        /// 16 KiB.
        K16 = 0b10,
        /// 64 KiB.
        K64 = 0b11,
    }
}

encoding! {
    /// How a device learns that its page requests are served (`Resp`, section 4.5.2).
    PriAnswer {
        /// Never.
        Failure = 0b00,
        /// Not these.
        Invalid = 0b01,
        /// They are.
        Success = 0b10,
    }
}

encoding! {
    /// How much memory an invalidation of device permissions is about (`SIZE`, section 4.6.2).
    PermissionSize {
        /// 4 KiB.
        K4 = 0b0000,
        /// 16 KiB.
        K16 = 0b0001,
        /// 64 KiB.
        K64 = 0b0010,
        /// 2 MiB.
        M2 = 0b0011,
        /// 32 MiB.
        M32 = 0b0100,
        /// 512 MiB.
        M512 = 0b0101,
        /// 1 GiB.
        G1 = 0b0110,
        /// 16 GiB.
        G16 = 0b0111,
        /// 64 GiB.
        G64 = 0b1000,
        /// 512 GiB.
        G512 = 0b1001,
    }
}

encoding! {
    /// How the end of a `CMD_SYNC` is signalled (`CS`, section 4.7.3).
    Signal {
        /// Not at all.
        None = 0b00,
        /// By an interrupt.
        Interrupt = 0b01,
        /// By an event to CPUs that wait for one.
        Event = 0b10,
    }
}

/// An address, up to bit `top`, and how far it reaches, the same in all commands that have one (section 4.4.1.1).
macro_rules! by_address {
    (
        $(#[$doc:meta])* $name:ident [$top:literal] {
            $($(#[$field_doc:meta])* $field:ident: $type:ty = $label:literal [$high:literal : $low:literal],)*
        }
    ) => {
        structure! {
            $(#[$doc])*
            $name: 2 {
                $($(#[$field_doc])* $field: $type = $label [$high : $low],)*
                /// `(number + 1) << scale` granules.
                number: u8 = "NUM" [16:12],
                /// See there.
                scale: u8 = "SCALE" [25:20],
                /// Keep what was cached of the upper levels.
                leaf: bool = "Leaf" [64:64],
                /// `level` is one of 128-bit descriptors.
                wide_level: bool = "TTL128" [71:71],
                /// The level of the leaves, or 0: any.
                level: u8 = "TTL" [73:72],
                /// The granule of the tables.
                granule: TlbGranule = "TG" [75:74],
                /// The first address.
                address: Address = "Address" [$top : 76],
            }
            check |it| {
                let range = (it.number, it.scale, it.level);
                match it.granule {
                    TlbGranule::Any if range != (0, 0, 0) || it.wide_level => Some("TG"),
                    TlbGranule::Any => None,
                    // One granule and no hint: that is what `Any` is for.
                    _ if range == (0, 0, 0) => Some("TTL"),
                    _ if it.wide_level && it.level == 0 => Some("TTL128"),
                    _ => None,
                }
            };
        }
    };
}

numbered! {
    /// A command.
    Command: 2 {
        /// Section 4.2.1: fetch a stream's configuration before it is needed.
        PrefetchConfig = 0x01, "CMD_PREFETCH_CONFIG";
        /// Section 4.2.2: fetch translations, too.
        PrefetchAddr = 0x02, "CMD_PREFETCH_ADDR";
        /// Section 4.3.1: forget an STE.
        CfgiSte = 0x03, "CMD_CFGI_STE";
        /// Section 4.3.2: forget a group of STEs; section 4.3.6, `CMD_CFGI_ALL`: everything.
        CfgiSteRange = 0x04, "CMD_CFGI_STE_RANGE";
        /// Section 4.3.3: forget a CD.
        CfgiCd = 0x05, "CMD_CFGI_CD";
        /// Section 4.3.4: forget all CDs of a stream.
        CfgiCdAll = 0x06, "CMD_CFGI_CD_ALL";
        /// Section 4.3.5: forget a VM's memory partitions.
        CfgiVmsPidm = 0x07, "CMD_CFGI_VMS_PIDM";
        /// Section 4.4.2.1: drop a VM's stage 1.
        TlbiNhAll = 0x10, "CMD_TLBI_NH_ALL";
        /// Section 4.4.2.2: drop an address space of a VM's.
        TlbiNhAsid = 0x11, "CMD_TLBI_NH_ASID";
        /// Section 4.4.2.4: drop addresses of it.
        TlbiNhVa = 0x12, "CMD_TLBI_NH_VA";
        /// Section 4.4.2.3: drop addresses of all address spaces.
        TlbiNhVaa = 0x13, "CMD_TLBI_NH_VAA";
        /// Section 4.4.2.7: drop EL2's stage 1.
        TlbiEl2All = 0x20, "CMD_TLBI_EL2_ALL";
        /// Section 4.4.2.10: drop an address space of EL2's.
        TlbiEl2Asid = 0x21, "CMD_TLBI_EL2_ASID";
        /// Section 4.4.2.8: drop addresses of it.
        TlbiEl2Va = 0x22, "CMD_TLBI_EL2_VA";
        /// Section 4.4.2.9: drop addresses of all of EL2's address spaces.
        TlbiEl2Vaa = 0x23, "CMD_TLBI_EL2_VAA";
        /// Section 4.4.3.2: drop all of a VM.
        TlbiS12Vmall = 0x28, "CMD_TLBI_S12_VMALL";
        /// Section 4.4.3.1: drop addresses of a VM's stage 2.
        TlbiS2Ipa = 0x2a, "CMD_TLBI_S2_IPA";
        /// Section 4.4.4.1: drop all VMs.
        TlbiNsnhAll = 0x30, "CMD_TLBI_NSNH_ALL";
        /// Section 4.5.1: let a device drop translations.
        AtcInv = 0x40, "CMD_ATC_INV";
        /// Section 4.5.2: answer a device's page requests.
        PriResp = 0x41, "CMD_PRI_RESP";
        /// Section 4.7.1: let a stalled transaction go on.
        Resume = 0x44, "CMD_RESUME";
        /// Section 4.7.2: end all stalled transactions of a stream.
        StallTerm = 0x45, "CMD_STALL_TERM";
        /// Section 4.7.3: complete when all commands before it are.
        Sync = 0x46, "CMD_SYNC";
        /// Section 4.6.1: forget device permissions.
        DptiAll = 0x70, "CMD_DPTI_ALL";
        /// Section 4.6.2: forget device permissions of some addresses.
        DptiPa = 0x73, "CMD_DPTI_PA";
    }
}

structure! {
    /// `CMD_PREFETCH_CONFIG`.
    PrefetchConfig: 2 {
        /// It is about a substream.
        has_substream: bool = "SSV" [11:11],
        /// The substream.
        substream: u32 = "SubstreamID" [31:12],
        /// The stream.
        stream: StreamId = "StreamID" [63:32],
    }
}

structure! {
    /// `CMD_PREFETCH_ADDR`.
    PrefetchAddr: 2 {
        /// It is about a substream.
        has_substream: bool = "SSV" [11:11],
        /// The substream.
        substream: u32 = "SubstreamID" [31:12],
        /// The stream.
        stream: StreamId = "StreamID" [63:32],
        /// `2^` this many translations.
        size: u8 = "Size" [68:64],
        /// `2^(12 + stride)` bytes apart; 0 in SMMUv3.0.
        stride: u8 = "Stride" [73:69],
        /// The first address.
        address: Address = "Addr" [127:76],
    }
}

structure! {
    /// `CMD_CFGI_STE`.
    CfgiSte: 2 {
        /// The stream.
        stream: StreamId = "StreamID" [63:32],
        /// Keep what was cached of the first level.
        leaf: bool = "Leaf" [64:64],
    }
}

structure! {
    /// `CMD_CFGI_STE_RANGE`.
    CfgiSteRange: 2 {
        /// Any stream of the group.
        stream: StreamId = "StreamID" [63:32],
        /// `2^(range + 1)` streams; 31: all.
        range: u8 = "Range" [68:64],
    }
}

impl CfgiSteRange {
    /// `CMD_CFGI_ALL`.
    pub const ALL: Self = Self { stream: StreamId(0), range: 31 };
}

structure! {
    /// `CMD_CFGI_CD`.
    CfgiCd: 2 {
        /// The substream.
        substream: u32 = "SubstreamID" [31:12],
        /// The stream.
        stream: StreamId = "StreamID" [63:32],
        /// Keep what was cached of the first level.
        leaf: bool = "Leaf" [64:64],
    }
}

structure! {
    /// `CMD_CFGI_CD_ALL`.
    CfgiCdAll: 2 {
        /// The stream.
        stream: StreamId = "StreamID" [63:32],
    }
}

structure! {
    /// `CMD_CFGI_VMS_PIDM`.
    CfgiVmsPidm: 2 {
        /// The VM.
        vmid: Vmid = "VMID" [47:32],
    }
}

structure! {
    /// `CMD_TLBI_NH_ALL`.
    TlbiNhAll: 2 {
        /// The VM.
        vmid: Vmid = "VMID" [47:32],
    }
}

structure! {
    /// `CMD_TLBI_NH_ASID`.
    TlbiNhAsid: 2 {
        /// The VM.
        vmid: Vmid = "VMID" [47:32],
        /// The address space.
        asid: u16 = "ASID" [63:48],
    }
}

by_address! {
    /// `CMD_TLBI_NH_VA`.
    TlbiNhVa [127] {
        /// The VM.
        vmid: Vmid = "VMID" [47:32],
        /// The address space.
        asid: u16 = "ASID" [63:48],
    }
}

by_address! {
    /// `CMD_TLBI_NH_VAA`.
    TlbiNhVaa [127] {
        /// The VM.
        vmid: Vmid = "VMID" [47:32],
    }
}

structure! {
    /// `CMD_TLBI_EL2_ALL`.
    TlbiEl2All: 2 {}
}

structure! {
    /// `CMD_TLBI_EL2_ASID`.
    TlbiEl2Asid: 2 {
        /// The address space.
        asid: u16 = "ASID" [63:48],
    }
}

by_address! {
    /// `CMD_TLBI_EL2_VA`.
    TlbiEl2Va [127] {
        /// The address space.
        asid: u16 = "ASID" [63:48],
    }
}

by_address! {
    /// `CMD_TLBI_EL2_VAA`.
    TlbiEl2Vaa [127] {}
}

structure! {
    /// `CMD_TLBI_S12_VMALL`.
    TlbiS12Vmall: 2 {
        /// The VM.
        vmid: Vmid = "VMID" [47:32],
    }
}

by_address! {
    /// `CMD_TLBI_S2_IPA`.
    TlbiS2Ipa [119] {
        /// The VM.
        vmid: Vmid = "VMID" [47:32],
    }
}

structure! {
    /// `CMD_TLBI_NSNH_ALL`.
    TlbiNsnhAll: 2 {}
}

structure! {
    /// `CMD_ATC_INV`.
    AtcInv: 2 {
        /// All substreams.
        global: bool = "Global" [9:9],
        /// It is about a substream.
        has_substream: bool = "SSV" [11:11],
        /// The substream.
        substream: u32 = "SubstreamID" [31:12],
        /// The stream.
        stream: StreamId = "StreamID" [63:32],
        /// `2^(12 + size)` bytes; 52: all.
        size: u8 = "Size" [69:64],
        /// The first address.
        address: Address = "Address" [127:76],
    }
    check |it| (it.size > 52).then_some("Size");
}

structure! {
    /// `CMD_PRI_RESP`.
    PriResp: 2 {
        /// It is about a substream.
        has_substream: bool = "SSV" [11:11],
        /// The substream.
        substream: u32 = "SubstreamID" [31:12],
        /// The stream.
        stream: StreamId = "StreamID" [63:32],
        /// Which group of requests.
        group: u16 = "PRGIndex" [72:64],
        /// What became of it.
        answer: PriAnswer = "Resp" [77:76],
    }
}

structure! {
    /// `CMD_RESUME`.
    Resume: 2 {
        /// Try again; else end it.
        retry: bool = "Ac" [12:12],
        /// End it with an abort; else it reads as zero and ignores writes.
        abort: bool = "Ab" [13:13],
        /// The stream.
        stream: StreamId = "StreamID" [63:32],
        /// Which transaction, as its event said.
        tag: u16 = "STAG" [79:64],
    }
}

structure! {
    /// `CMD_STALL_TERM`.
    StallTerm: 2 {
        /// The stream.
        stream: StreamId = "StreamID" [63:32],
    }
}

structure! {
    /// `CMD_SYNC`.
    Sync: 2 {
        /// How its end is signalled.
        signal: Signal = "CS" [13:12],
        /// With whom the write of the message is shared.
        shareability: Shareability = "MSH" [23:22],
        /// The memory type of the write.
        attributes: u8 = "MSIAttr" [27:24],
        /// What is written.
        data: u32 = "MSIData" [63:32],
        /// Where to; 0: nowhere.
        address: Address = "MSIAddress" [119:66],
    }
}

structure! {
    /// `CMD_DPTI_ALL`.
    DptiAll: 2 {}
}

structure! {
    /// `CMD_DPTI_PA`.
    DptiPa: 2 {
        /// Keep what was cached of the upper level.
        leaf: bool = "Leaf" [64:64],
        /// How much from there on.
        size: PermissionSize = "SIZE" [75:72],
        /// The first physical address, aligned to the size.
        address: Address = "Address" [119:76],
    }
}
