//! Where QEMU's SMMU and the model do not agree, and why that is QEMU's.

/// Lines of the model, and what QEMU says in their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What the model says.
    pub model: &'static [&'static str],
    /// What QEMU says.
    pub qemu: &'static [&'static str],
    /// What QEMU does, and what the architecture has to say about it.
    pub reason: &'static str,
}

/// All of them, in the order of the lines.
///
/// The functions are QEMU's, in `hw/arm/smmuv3.c` and `hw/arm/smmu-common.c` of version 10; sections are those of
/// IHI 0070.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        model: &["stage 2, unmapped: its event has beside the page 0x0"],
        qemu: &["stage 2, unmapped: its event has beside the page 0x238"],
        reason: "smmuv3_record_event writes the whole address; the field is bits 55:12 (section 7.3.13)",
    },
    Difference {
        model: &[
            "nested, table unmapped in stage 2: its event 0x10 flags=0x180 input=0xc0000238 page=0x40001000",
        ],
        qemu: &[
            "nested, table unmapped in stage 2: its event 0x10 flags=0x100 input=0xc0000238 page=0x40001000",
        ],
        reason: "smmu_ptw_64_s1 calls every fault of its walk one of stage 1; it was stage 2 that did not \
                 translate a table's address, S2=1 (section 7.3.13)",
    },
    Difference {
        model: &[
            "nested, table unmapped in stage 2: its event 0x10 flags=0x188 input=0xc0000238 page=0x40001000",
        ],
        qemu: &[
            "nested, table unmapped in stage 2: its event 0x10 flags=0x108 input=0xc0000238 page=0x40001000",
        ],
        reason: "the same for a read",
    },
    Difference {
        model: &[
            "nested, CD unmapped in stage 2: its event 0x10 flags=0x80 input=0x80000238 page=0x40001000",
        ],
        qemu: &[
            "nested, CD unmapped in stage 2: its event 0x10 flags=0x88 input=0x80000238 page=0x40001000",
        ],
        reason: "smmu_get_cd translates the CD's address as a read and records that; RnW is the \
                 transaction's (section 7.3)",
    },
    Difference {
        model: &[
            "nested, CD.R=0: a write to 0xc0000238 did not arrive",
            "nested, CD.R=0: its event 0x10 flags=0x180 input=0xc0000238 page=0x40001000",
        ],
        qemu: &["nested, CD.R=0: a write to 0xc0000238 did not arrive"],
        reason: "taken for a fault of stage 1 it is recorded if CD.R says so; a fault of stage 2 is if \
                 STE.S2R does (section 5.2)",
    },
    Difference {
        model: &[
            "stage 1's root unmapped: a write to 0x80000238 did not arrive",
            "stage 1's root unmapped: its event 0x10 flags=0x180 input=0x80000238 page=0x40011000",
        ],
        qemu: &["stage 1's root unmapped: a write to 0x80000238 arrived"],
        reason: "decode_cd translates TTB0 once and keeps the result with the configuration, which only \
                 CMD_CFGI_* drops; it is a translation, which CMD_TLBI_S12_VMALL drops (section 4.4.3.2)",
    },
    Difference {
        model: &[
            "stage 1's root unmapped, with CFGI: its event 0x10 flags=0x180 input=0x80000238 page=0x40011000",
        ],
        qemu: &[
            "stage 1's root unmapped, with CFGI: its event 0x10 flags=0x188 input=0x80000238 page=0x40011000",
        ],
        reason: "decode_cd translates TTB0 as a read and records that; RnW is the transaction's \
                 (section 7.3)",
    },
    Difference {
        model: &[
            "the CD unmapped, with CFGI: its event 0x10 flags=0x80 input=0x80000238 page=0x40010000",
        ],
        qemu: &[
            "the CD unmapped, with CFGI: its event 0x10 flags=0x88 input=0x80000238 page=0x40010000",
        ],
        reason: "as for a CD that was never mapped",
    },
    Difference {
        model: &[
            "an event queue overflows: EVENTQ_PROD 0x80000002",
            "an event queue overflows: errors 0x0",
        ],
        qemu: &[
            "an event queue overflows: EVENTQ_PROD 0x2",
            "an event queue overflows: errors 0x4",
        ],
        reason: "smmuv3_record_event takes a full queue for an abort, EVENTQ_ABT_ERR; it is an overflow, \
                 OVFLG (section 7.4)",
    },
    Difference {
        model: &["two levels, SPAN=1: its event 0x2 flags=0x0 input=0x0 page=0x0"],
        qemu: &["two levels, SPAN=1: its event 0x4 flags=0x0 input=0x0 page=0x0"],
        reason: "smmu_find_ste calls a StreamID beyond the span C_BAD_STE; it has no STE, C_BAD_STREAMID \
                 (section 7.3.3)",
    },
];
