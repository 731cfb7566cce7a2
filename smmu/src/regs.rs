//! Registers of the Non-secure programming interface (section 6), as far as this crate uses them.

use tock_registers::register_bitfields;

/// Offsets from the SMMU's base address. Those of page 1 are at 64 KiB and above.
pub mod offset {
    pub const IDR0: u32 = 0x00;
    pub const IDR1: u32 = 0x04;
    pub const IDR3: u32 = 0x0c;
    pub const IDR5: u32 = 0x14;
    pub const IIDR: u32 = 0x18;
    pub const AIDR: u32 = 0x1c;
    pub const CR0: u32 = 0x20;
    pub const CR0ACK: u32 = 0x24;
    pub const CR1: u32 = 0x28;
    pub const CR2: u32 = 0x2c;
    pub const GBPA: u32 = 0x44;
    pub const IRQ_CTRL: u32 = 0x50;
    pub const IRQ_CTRLACK: u32 = 0x54;
    pub const GERROR: u32 = 0x60;
    pub const GERRORN: u32 = 0x64;
    pub const GERROR_IRQ_CFG0: u32 = 0x68;
    pub const STRTAB_BASE: u32 = 0x80;
    pub const STRTAB_BASE_CFG: u32 = 0x88;
    pub const CMDQ_BASE: u32 = 0x90;
    pub const CMDQ_PROD: u32 = 0x98;
    pub const CMDQ_CONS: u32 = 0x9c;
    pub const EVENTQ_BASE: u32 = 0xa0;
    pub const EVENTQ_IRQ_CFG0: u32 = 0xb0;
    pub const EVENTQ_PROD: u32 = 0x1_00a8;
    pub const EVENTQ_CONS: u32 = 0x1_00ac;
}

register_bitfields! {u32,
    /// Features, section 6.3.1.
    pub IDR0 [
        S2P OFFSET(0) NUMBITS(1) [],
        S1P OFFSET(1) NUMBITS(1) [],
        TTF OFFSET(2) NUMBITS(2) [],
        COHACC OFFSET(4) NUMBITS(1) [],
        ATS OFFSET(10) NUMBITS(1) [],
        ASID16 OFFSET(12) NUMBITS(1) [],
        VMID16 OFFSET(18) NUMBITS(1) [],
        CD2L OFFSET(19) NUMBITS(1) [],
        TTENDIAN OFFSET(21) NUMBITS(2) [Mixed = 0, Little = 2, Big = 3],
        STALL_MODEL OFFSET(24) NUMBITS(2) [StallOrTerminate = 0, Terminate = 1, Stall = 2],
        TERM_MODEL OFFSET(26) NUMBITS(1) [],
        ST_LEVEL OFFSET(27) NUMBITS(2) [Linear = 0, TwoLevel = 1],
    ],
    /// Sizes and presets, section 6.3.2.
    pub IDR1 [
        SIDSIZE OFFSET(0) NUMBITS(6) [],
        EVENTQS OFFSET(16) NUMBITS(5) [],
        CMDQS OFFSET(21) NUMBITS(5) [],
        REL OFFSET(28) NUMBITS(1) [],
        QUEUES_PRESET OFFSET(29) NUMBITS(1) [],
        TABLES_PRESET OFFSET(30) NUMBITS(1) [],
    ],
    /// Translation features, section 6.3.4.
    pub IDR3 [
        HAD OFFSET(2) NUMBITS(1) [],
        FWB OFFSET(8) NUMBITS(1) [],
        RIL OFFSET(10) NUMBITS(1) [],
        BBML OFFSET(11) NUMBITS(2) [],
    ],
    /// Address sizes and granules, section 6.3.6.
    pub IDR5 [
        OAS OFFSET(0) NUMBITS(3) [],
        GRAN4K OFFSET(4) NUMBITS(1) [],
        GRAN16K OFFSET(5) NUMBITS(1) [],
        GRAN64K OFFSET(6) NUMBITS(1) [],
        VAX OFFSET(10) NUMBITS(2) [],
    ],
    /// Revision of the architecture, section 6.3.8.
    pub AIDR [
        MINOR OFFSET(0) NUMBITS(4) [],
        MAJOR OFFSET(4) NUMBITS(4) [],
    ],
    /// Who made it, section 6.3.7.
    pub IIDR [
        IMPLEMENTER OFFSET(0) NUMBITS(12) [Arm = 0x43b],
        REVISION OFFSET(12) NUMBITS(4) [],
        VARIANT OFFSET(16) NUMBITS(4) [],
        PRODUCT OFFSET(20) NUMBITS(12) [Mmu600 = 0x483, Mmu700 = 0x487],
    ],
    /// Enables, section 6.3.9; CR0ACK has the same layout.
    pub CR0 [
        SMMUEN OFFSET(0) NUMBITS(1) [],
        EVENTQEN OFFSET(2) NUMBITS(1) [],
        CMDQEN OFFSET(3) NUMBITS(1) [],
        ATSCHK OFFSET(4) NUMBITS(1) [],
    ],
    /// How the SMMU accesses its tables and queues, section 6.3.11.
    pub CR1 [
        QUEUE_IC OFFSET(0) NUMBITS(2) [WriteBack = 1],
        QUEUE_OC OFFSET(2) NUMBITS(2) [WriteBack = 1],
        QUEUE_SH OFFSET(4) NUMBITS(2) [Inner = 3],
        TABLE_IC OFFSET(6) NUMBITS(2) [WriteBack = 1],
        TABLE_OC OFFSET(8) NUMBITS(2) [WriteBack = 1],
        TABLE_SH OFFSET(10) NUMBITS(2) [Inner = 3],
    ],
    /// More control, section 6.3.12.
    pub CR2 [
        RECINVSID OFFSET(1) NUMBITS(1) [],
        PTM OFFSET(2) NUMBITS(1) [],
    ],
    /// What happens while SMMUEN is 0, section 6.3.14.
    pub GBPA [
        ABORT OFFSET(20) NUMBITS(1) [],
        UPDATE OFFSET(31) NUMBITS(1) [],
    ],
    /// Interrupt enables, section 6.3.16; IRQ_CTRLACK has the same layout.
    pub IRQ_CTRL [
        GERROR_IRQEN OFFSET(0) NUMBITS(1) [],
        EVENTQ_IRQEN OFFSET(2) NUMBITS(1) [],
    ],
    /// Global errors, section 6.3.19: an error is active while its bit differs from GERRORN's.
    pub GERROR [
        CMDQ_ERR OFFSET(0) NUMBITS(1) [],
        EVENTQ_ABT_ERR OFFSET(2) NUMBITS(1) [],
        SFM_ERR OFFSET(8) NUMBITS(1) [],
    ],
    /// Shape of the stream table, section 6.3.25.
    pub STRTAB_BASE_CFG [
        LOG2SIZE OFFSET(0) NUMBITS(6) [],
        SPLIT OFFSET(6) NUMBITS(5) [],
        FMT OFFSET(16) NUMBITS(2) [Linear = 0, TwoLevel = 1],
    ],
    /// The SMMU's index into the command queue, section 6.3.28.
    pub CMDQ_CONS [
        RD OFFSET(0) NUMBITS(20) [],
        ERR OFFSET(24) NUMBITS(7) [],
    ],
    /// The SMMU's index into the event queue, section 6.3.95.
    pub EVENTQ_PROD [
        WR OFFSET(0) NUMBITS(20) [],
        OVFLG OFFSET(31) NUMBITS(1) [],
    ],
}

register_bitfields! {u64,
    /// Where the stream table is, section 6.3.24.
    pub STRTAB_BASE [
        ADDR OFFSET(6) NUMBITS(50) [],
        RA OFFSET(62) NUMBITS(1) [],
    ],
    /// Where a queue is, sections 6.3.26 and 6.3.29; bit 62 allocates on the SMMU's own accesses.
    pub QUEUE_BASE [
        LOG2SIZE OFFSET(0) NUMBITS(5) [],
        ADDR OFFSET(5) NUMBITS(51) [],
        ALLOCATE OFFSET(62) NUMBITS(1) [],
    ],
}
