//! The context descriptor table (sections 5.3 and 5.4).

use crate::format::{
    Address, AddressSize, Cacheability, Granule0, Granule1, Shareability, structure,
};

structure! {
    /// A level-1 context descriptor (section 5.3).
    Level1: 1 {
        /// It leads somewhere.
        valid: bool = "V" [0:0],
        /// The table of CDs.
        table: Address = "L2Ptr" [55:12],
    }
}

structure! {
    /// A context descriptor (section 5.4): one address space of stage 1.
    Cd: 8 {
        /// An address of the lower half has `64 -` this many bits.
        size0: u8 = "T0SZ" [5:0],
        /// The granule of the lower half.
        granule0: Granule0 = "TG0" [7:6],
        /// How walks of the lower half are cached in inner caches.
        inner0: Cacheability = "IR0" [9:8],
        /// How they are cached in outer caches.
        outer0: Cacheability = "OR0" [11:10],
        /// With whom they are shared.
        shareability0: Shareability = "SH0" [13:12],
        /// There is no lower half.
        disable0: bool = "EPD0" [14:14],
        /// The tables are big-endian.
        big_endian: bool = "ENDI" [15:15],
        /// An address of the upper half has `64 -` this many bits.
        size1: u8 = "T1SZ" [21:16],
        /// The granule of the upper half.
        granule1: Granule1 = "TG1" [23:22],
        /// How walks of the upper half are cached in inner caches.
        inner1: Cacheability = "IR1" [25:24],
        /// How they are cached in outer caches.
        outer1: Cacheability = "OR1" [27:26],
        /// With whom they are shared.
        shareability1: Shareability = "SH1" [29:28],
        /// There is no upper half.
        disable1: bool = "EPD1" [30:30],
        /// It counts. If not, transactions abort and are recorded as `C_BAD_CD`.
        valid: bool = "V" [31:31],
        /// Width of an output address.
        output: AddressSize = "IPS" [34:32],
        /// A clear access flag is no fault.
        ignore_access_flag: bool = "AFFD" [35:35],
        /// What is writable is not executable.
        write_execute_never: bool = "WXN" [36:36],
        /// What is writable for unprivileged accesses is not executable for privileged ones.
        unprivileged_write_execute_never: bool = "UWXN" [37:37],
        /// The top byte of an address of the lower half is ignored.
        ignore_top_byte0: bool = "TBI0" [38:38],
        /// The same of the upper half.
        ignore_top_byte1: bool = "TBI1" [39:39],
        /// Privileged accesses may not use what unprivileged ones may.
        privileged_access_never: bool = "PAN" [40:40],
        /// The tables are AArch64's.
        aarch64: bool = "AA64" [41:41],
        /// The SMMU sets dirty bits. Reserved without the next.
        set_dirty: bool = "HD" [42:42],
        /// The SMMU sets access flags.
        set_access: bool = "HA" [43:43],
        /// Faults stall.
        stall: bool = "S" [44:44],
        /// Faults are recorded.
        record: bool = "R" [45:45],
        /// Faults abort; without it they read as zero and ignore writes, where the SMMU can do that.
        abort: bool = "A" [46:46],
        /// Its ASID means nothing to CPUs.
        own_asid: bool = "ASET" [47:47],
        /// The tag of its translations.
        asid: u16 = "ASID" [63:48],
        /// Tables of the lower half have no hierarchical attributes; with 128-bit descriptors, `DisCH0`.
        no_hierarchy0: bool = "HAD0" [65:65],
        /// Unprivileged accesses may not use the lower half.
        unprivileged_never0: bool = "E0PD0" [66:66],
        /// The SMMU sets access flags in tables.
        set_table_access: bool = "HAFT" [67:67],
        /// The root of the lower half.
        table0: Address = "TTB0" [119:68],
        /// Leaves have a Protected attribute.
        protected: bool = "PnCH" [122:122],
        /// `PAN` counts executable pages as well.
        enhanced_pan: bool = "EPAN" [123:123],
        /// Bits 59 and 60 of a leaf of the lower half have a meaning of the implementation's.
        hardware_use0: u8 = "HWU0" [125:124],
        /// Bits 61 and 62, too; with 128-bit descriptors, `SKL0`: levels that a walk skips.
        skip0: u8 = "SKL0" [127:126],
        /// Tables of the upper half have no hierarchical attributes; with 128-bit descriptors, `DisCH1`.
        no_hierarchy1: bool = "HAD1" [129:129],
        /// Unprivileged accesses may not use the upper half.
        unprivileged_never1: bool = "E0PD1" [130:130],
        /// `MAIR` has sixteen entries' worth of extension.
        attribute_extension: bool = "AIE" [131:131],
        /// The root of the upper half.
        table1: Address = "TTB1" [183:132],
        /// Addresses may have 52 bits with small granules.
        large: bool = "DS" [186:186],
        /// Permissions are indirect.
        indirect_permissions: bool = "PIE" [187:187],
        /// As `hardware_use0`, of the upper half.
        hardware_use1: u8 = "HWU1" [189:188],
        /// As `skip0`, of the upper half.
        skip1: u8 = "SKL1" [191:190],
        /// The memory types that leaves choose from: `MAIR_ELx`.
        memory_types: u64 = "MAIR" [255:192],
        /// The implementation's part of them: `AMAIR_ELx`.
        auxiliary_types: u64 = "AMAIR" [319:256],
        /// The implementation's own.
        implementation: u32 = "IMPLEMENTATION DEFINED" [351:320],
        /// The memory partition of its accesses.
        partition: u16 = "PARTID" [367:352],
        /// The performance monitoring group of its accesses.
        monitor_group: u8 = "PMG" [375:368],
        /// Sixteen unprivileged permissions, three bits each.
        unprivileged_permissions: u64 = "PIIU" [431:384],
        /// Sixteen privileged permissions, three bits each.
        privileged_permissions: u64 = "PIIP" [495:448],
    }
    check |it| {
        let reserved = |permissions: u64| {
            (0..16).any(|index| matches!(permissions >> (3 * index) & 7, 0b100 | 0b110))
        };
        if it.granule1 == Granule1::None && !it.disable1 {
            Some("TG1")
        } else if it.set_dirty && !it.set_access {
            Some("HD")
        } else if it.set_table_access && !it.set_access {
            Some("HAFT")
        } else if reserved(it.unprivileged_permissions) {
            Some("PIIU")
        } else if reserved(it.privileged_permissions) {
            Some("PIIP")
        } else {
            None
        }
    };
}
