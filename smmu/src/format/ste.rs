//! The stream table (sections 5.1 and 5.2).

use crate::addr::Vmid;
use crate::format::{
    Address, AddressSize, Cacheability, Granule0, Override, Shareability, ShareabilityOverride,
    encoding, has_reserved_permission, structure,
};

structure! {
    /// A level-1 stream table descriptor (section 5.1).
    Level1: 1 {
        /// The level-2 table has `2^(span - 1)` entries; 0: there is none.
        span: u8 = "Span" [4:0],
        /// Where it is.
        table: Address = "L2Ptr" [55:6],
    }
    check |it| (it.span > 11).then_some("Span");
}

encoding! {
    /// What an STE does with transactions (`Config`).
    Config {
        /// They abort, and nothing is recorded.
        Abort = 0b000,
        /// They pass.
        Bypass = 0b100,
        /// Stage 1 translates.
        Stage1 = 0b101,
        /// Stage 2 translates.
        Stage2 = 0b110,
        /// Both do.
        Nested = 0b111,
    }
}

encoding! {
    /// What `S1ContextPtr` points to where there are substreams (`S1Fmt`).
    ContextTable {
        /// CDs.
        Linear = 0b00,
        /// Pointers to tables of 64 CDs, 4 KiB each.
        TwoLevel4K = 0b01,
        /// Pointers to tables of 1024 CDs, 64 KiB each.
        TwoLevel64K = 0b10,
    }
}

encoding! {
    /// What becomes of transactions without a substream where there are substreams (`S1DSS`).
    DefaultSubstream {
        /// They abort.
        Terminate = 0b00,
        /// They bypass stage 1.
        Bypass = 0b01,
        /// They use the first CD.
        Substream0 = 0b10,
    }
}

encoding! {
    /// Whether the device may use ATS (`EATS`).
    Ats {
        /// No.
        Off = 0b00,
        /// Its requests are translated by all stages.
        Full = 0b01,
        /// Its requests are translated by stage 1 only.
        SplitStage = 0b10,
        /// As `Full`, and what it claims to be translated is checked against the device permission table.
        FullChecked = 0b11,
    }
}

encoding! {
    /// Whose translations a stream of stage 1 alone uses (`STRW`).
    StreamWorld {
        /// EL1's.
        El1 = 0b00,
        /// EL2's.
        El2 = 0b10,
    }
}

encoding! {
    /// Which VMIDs the device permission table may name (`DPT_VMATCH`).
    VmidMatch {
        /// The stream's, or a page that all may use.
        Strict = 0b00,
        /// The stream's, or a page that others may read or all may use.
        Read = 0b01,
        /// Any.
        Any = 0b10,
    }
}

structure! {
    /// A stream table entry (section 5.2), without the fields of other Security states.
    Ste: 8 {
        /// It counts. If not, its transactions abort and are recorded as `C_BAD_STE`.
        valid: bool = "V" [0:0],
        /// What it does with transactions.
        config: Config = "Config" [3:1],
        /// The shape of the CD table.
        context_format: ContextTable = "S1Fmt" [5:4],
        /// The CD, or the table of them; an IPA where stage 2 translates.
        context: Address = "S1ContextPtr" [55:6],
        /// There are `2^` this many CDs; 0: one, and no substreams.
        context_log2: u8 = "S1CDMax" [63:59],
        /// What becomes of transactions without a substream.
        default_substream: DefaultSubstream = "S1DSS" [65:64],
        /// How the SMMU caches CDs in inner caches. It only reads them: write-back allocates on reads, but
        /// [`Cacheability::WriteBackReadAllocate`] not at all.
        context_inner: Cacheability = "S1CIR" [67:66],
        /// How it caches them in outer caches.
        context_outer: Cacheability = "S1COR" [69:68],
        /// With whom it shares them.
        context_shareability: Shareability = "S1CSH" [71:70],
        /// Bits 62:59 of a stage-2 leaf have a meaning of the implementation's.
        stage2_hardware_use: u8 = "S2HWU" [75:72],
        /// Reads may destroy what they read.
        destructive_read: bool = "DRE" [76:76],
        /// Streams in a group of `2^` this many have the same STE.
        contiguous: u8 = "CONT" [80:77],
        /// The device may prefetch into caches.
        cache_prefetch: bool = "DCP" [81:81],
        /// Automatic answers to page requests have a PASID.
        pri_pasid: bool = "PPAR" [82:82],
        /// Similar events may be merged.
        merge_events: bool = "MEV" [83:83],
        /// Software's own.
        software: u8 = "SW_RESERVED" [87:84],
        /// CDs may switch on indirect permissions.
        stage1_indirect_permissions: bool = "S1PIE" [88:88],
        /// Stage 2 alone decides about write-back.
        stage2_force_write_back: bool = "S2FWB" [89:89],
        /// CDs choose memory partitions.
        stage1_mpam: bool = "S1MPAM" [90:90],
        /// CDs may not let transactions stall.
        stage1_stall_disable: bool = "S1STALLD" [91:91],
        /// Whether the device may use ATS.
        ats: Ats = "EATS" [93:92],
        /// Whose translations stage 1 alone uses.
        world: StreamWorld = "STRW" [95:94],
        /// The memory type that transactions get.
        memory_type: u8 = "MemAttr" [99:96],
        /// They do get it.
        override_memory_type: bool = "MTCFG" [100:100],
        /// Allocation hints that transactions get: bit 3 says that they do.
        allocation: u8 = "ALLOCCFG" [104:101],
        /// The shareability that transactions get.
        shareability: ShareabilityOverride = "SHCFG" [109:108],
        /// Whether transactions count as privileged.
        privilege: Override = "PRIVCFG" [113:112],
        /// Whether transactions count as instruction fetches.
        instruction: Override = "INSTCFG" [115:114],
        /// The implementation's own.
        implementation1: u16 = "IMPLEMENTATION DEFINED" [127:116],
        /// The tag of translations by stage 2.
        vmid: Vmid = "S2VMID" [143:128],
        /// The implementation's own.
        implementation2: u16 = "IMPLEMENTATION DEFINED" [159:144],
        /// An input address has `64 -` this many bits.
        stage2_size: u8 = "S2T0SZ" [165:160],
        /// Where the walk starts: levels 2 to 0 with the 4 KiB granule, 3 to 1 with the others; 3: level 3 with it.
        stage2_start: u8 = "S2SL0" [167:166],
        /// How walks are cached in inner caches.
        stage2_inner: Cacheability = "S2IR0" [169:168],
        /// How they are cached in outer caches.
        stage2_outer: Cacheability = "S2OR0" [171:170],
        /// With whom walks are shared.
        stage2_shareability: Shareability = "S2SH0" [173:172],
        /// The granule.
        stage2_granule: Granule0 = "S2TG" [175:174],
        /// Width of an output address.
        stage2_output: AddressSize = "S2PS" [178:176],
        /// The tables are AArch64's.
        stage2_aarch64: bool = "S2AA64" [179:179],
        /// The tables are big-endian.
        stage2_big_endian: bool = "S2ENDI" [180:180],
        /// A clear access flag is no fault.
        stage2_ignore_access_flag: bool = "S2AFFD" [181:181],
        /// Stage 1 may not have its tables in device memory.
        stage2_protected_walk: bool = "S2PTW" [182:182],
        /// The SMMU sets dirty bits. Reserved without the next.
        stage2_set_dirty: bool = "S2HD" [183:183],
        /// The SMMU sets access flags.
        stage2_set_access: bool = "S2HA" [184:184],
        /// Faults of stage 2 stall.
        stage2_stall: bool = "S2S" [185:185],
        /// Faults of stage 2 are recorded.
        stage2_record: bool = "S2R" [186:186],
        /// The SMMU sets access flags in tables.
        stage2_set_table_access: bool = "S2HAFT" [187:187],
        /// Permissions are indirect.
        stage2_indirect_permissions: bool = "S2PIE" [188:188],
        /// Permissions have an overlay.
        stage2_overlay: bool = "S2POE" [189:189],
        /// Which VMIDs the device permission table may name.
        vmid_match: VmidMatch = "DPT_VMATCH" [191:190],
        /// One more bit above `S2SL0`.
        stage2_start_high: bool = "S2SL0_2" [194:194],
        /// Addresses may have 52 bits with small granules.
        stage2_large: bool = "S2DS" [195:195],
        /// The root of stage 2.
        stage2_table: Address = "S2TTB" [247:196],
        /// Levels that a walk skips, with 128-bit descriptors.
        stage2_skip: u8 = "S2SKL" [254:253],
        /// The implementation's own.
        implementation4: u16 = "IMPLEMENTATION DEFINED" [271:256],
        /// The memory partition of its accesses.
        partition: u16 = "PARTID" [287:272],
        /// The performance monitoring group of its accesses.
        monitor_group: u8 = "PMG" [327:320],
        /// Writable memory has to be assured.
        assured_only: bool = "AssuredOnly" [329:329],
        /// Stage 1's top-level tables are checked, first kind.
        top_level0: bool = "TL0" [330:330],
        /// Stage 1's top-level tables are checked, second kind.
        top_level1: bool = "TL1" [331:331],
        /// The structure that maps a guest's memory partitions.
        vms: Address = "VMSPtr" [375:332],
        /// Sixteen overlay permissions, four bits each.
        overlays: u64 = "S2POI" [511:448],
    }
    check |it| {
        if it.stage2_set_dirty && !it.stage2_set_access {
            Some("S2HD")
        } else if it.stage2_set_table_access && !it.stage2_set_access {
            Some("S2HAFT")
        } else if has_reserved_permission(it.overlays) {
            Some("S2POI")
        } else {
            None
        }
    };
}
