//! The encodings of IHI 0070, written down from the specification: this driver shares no code with the
//! hypervisor that it tests.

/// Register offsets (section 6.2).
pub mod register {
    pub const IDR0: u32 = 0x00;
    pub const IDR1: u32 = 0x04;
    pub const IDR2: u32 = 0x08;
    pub const IDR3: u32 = 0x0c;
    pub const IDR4: u32 = 0x10;
    pub const IDR5: u32 = 0x14;
    pub const IIDR: u32 = 0x18;
    pub const AIDR: u32 = 0x1c;
    pub const CR0: u32 = 0x20;
    pub const CR0ACK: u32 = 0x24;
    pub const CR1: u32 = 0x28;
    pub const CR2: u32 = 0x2c;
    pub const STATUSR: u32 = 0x40;
    pub const GBPA: u32 = 0x44;
    pub const AGBPA: u32 = 0x48;
    pub const IRQ_CTRL: u32 = 0x50;
    pub const IRQ_CTRLACK: u32 = 0x54;
    pub const GERROR: u32 = 0x60;
    pub const GERRORN: u32 = 0x64;
    pub const GERROR_IRQ_CFG0: u32 = 0x68;
    pub const GERROR_IRQ_CFG1: u32 = 0x70;
    pub const GERROR_IRQ_CFG2: u32 = 0x74;
    pub const STRTAB_BASE: u32 = 0x80;
    pub const STRTAB_BASE_CFG: u32 = 0x88;
    pub const CMDQ_BASE: u32 = 0x90;
    pub const CMDQ_PROD: u32 = 0x98;
    pub const CMDQ_CONS: u32 = 0x9c;
    pub const EVENTQ_BASE: u32 = 0xa0;
    pub const EVENTQ_IRQ_CFG0: u32 = 0xb0;
    pub const EVENTQ_IRQ_CFG1: u32 = 0xb8;
    pub const EVENTQ_IRQ_CFG2: u32 = 0xbc;
    pub const EVENTQ_PROD: u32 = 0x1_00a8;
    pub const EVENTQ_CONS: u32 = 0x1_00ac;
}

/// The size in bytes of a page of registers; there are two.
pub const PAGE: u32 = 0x1_0000;

/// `CR0` and `CR0ACK` (section 6.3.9).
pub mod cr0 {
    pub const SMMUEN: u32 = 1 << 0;
    pub const EVENTQEN: u32 = 1 << 2;
    pub const CMDQEN: u32 = 1 << 3;
}

/// `CR1` (section 6.3.11): write-back, inner shareable, for queues in the low and for tables in the high half.
pub const CR1_CACHED: u32 = 0xd75;
/// `CR2.RECINVSID` (section 6.3.12).
pub const CR2_RECINVSID: u32 = 1 << 1;

/// `GBPA` (section 6.3.14).
pub mod gbpa {
    pub const ABORT: u32 = 1 << 20;
    pub const UPDATE: u32 = 1 << 31;
}

/// `IRQ_CTRL` and `IRQ_CTRLACK` (section 6.3.16).
pub mod irq_ctrl {
    pub const GERROR: u32 = 1 << 0;
    pub const EVENTQ: u32 = 1 << 2;
}

/// `GERROR` and `GERRORN` (section 6.3.18).
pub mod gerror {
    pub const CMDQ_ERR: u32 = 1 << 0;
    pub const EVENTQ_ABT_ERR: u32 = 1 << 2;
}

/// `CMDQ_CONS.ERR` (section 7.1).
pub mod cerror {
    pub const ILL: u32 = 1;
    pub const ABT: u32 = 2;
}

/// The index in `CMDQ_PROD`, `CMDQ_CONS`, `EVENTQ_PROD` and `EVENTQ_CONS`, its wrap bit included.
pub const INDEX: u32 = 0xf_ffff;
/// `EVENTQ_PROD.OVFLG` and `EVENTQ_CONS.OVACKFLG`.
pub const OVERFLOW: u32 = 1 << 31;
/// Bit 62 of every base register: allocate.
pub const ALLOCATE: u64 = 1 << 62;

/// What the ID registers say (sections 6.3.1 to 6.3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `IDR0` to `IDR5`.
    pub idr: [u32; 6],
}

impl Identity {
    fn bit(self, register: usize, bit: u32) -> bool {
        self.idr[register] >> bit & 1 != 0
    }

    /// `IDR0.S2P`: stage 2.
    pub fn stage2(self) -> bool {
        self.bit(0, 0)
    }

    /// `IDR0.S1P`: stage 1.
    pub fn stage1(self) -> bool {
        self.bit(0, 1)
    }

    /// `IDR0.HYP`: EL2 contexts.
    pub fn hyp(self) -> bool {
        self.bit(0, 9)
    }

    /// `IDR0.ATS`.
    pub fn ats(self) -> bool {
        self.bit(0, 10)
    }

    /// `IDR0.MSI`.
    pub fn msi(self) -> bool {
        self.bit(0, 13)
    }

    /// `IDR0.PRI`.
    pub fn pri(self) -> bool {
        self.bit(0, 16)
    }

    /// `IDR0.STALL_MODEL`: whether stalls exist.
    pub fn stalls(self) -> bool {
        self.idr[0] >> 24 & 3 != 1
    }

    /// `IDR0.ST_LEVEL`: two-level stream tables.
    pub fn two_level(self) -> bool {
        self.idr[0] >> 27 & 3 == 1
    }

    /// `IDR1.SIDSIZE`.
    pub fn sid_bits(self) -> u32 {
        self.idr[1] & 0x3f
    }

    /// How many bits of a StreamID the suites' tables resolve: all, but no more than 256 streams take.
    pub fn table_log2(self) -> u32 {
        self.sid_bits().min(8)
    }

    /// `IDR1.EVENTQS`.
    pub fn event_queue_log2(self) -> u32 {
        self.idr[1] >> 16 & 0x1f
    }

    /// `IDR1.CMDQS`.
    pub fn command_queue_log2(self) -> u32 {
        self.idr[1] >> 21 & 0x1f
    }

    /// `IDR3.RIL`: range invalidation.
    pub fn ranges(self) -> bool {
        self.bit(3, 10)
    }

    /// `IDR5.OAS` in bits.
    pub fn output_bits(self) -> u32 {
        [32, 36, 40, 42, 44, 48, 52, 56][self.idr[5] as usize & 7]
    }
}

/// A command (chapter 4).
pub type Command = [u64; 2];

/// Commands.
pub mod command {
    use super::Command;

    pub const TLBI_NSNH_ALL: Command = [0x30, 0];
    /// `CMD_CFGI_ALL`: `CMD_CFGI_STE_RANGE` of everything.
    pub const CFGI_ALL: Command = [0x04, 31];
    /// `CMD_SYNC` that signals nothing.
    pub const SYNC: Command = sync(0);

    /// `CMD_CFGI_STE`.
    pub const fn cfgi_ste(sid: u32, leaf: bool) -> Command {
        [0x03 | (sid as u64) << 32, leaf as u64]
    }

    /// `CMD_CFGI_STE_RANGE` of `2^(range + 1)` StreamIDs.
    pub const fn cfgi_ste_range(sid: u32, range: u32) -> Command {
        [0x04 | (sid as u64) << 32, range as u64]
    }

    /// `CMD_CFGI_CD` without a substream.
    pub const fn cfgi_cd(sid: u32) -> Command {
        [0x05 | (sid as u64) << 32, 1]
    }

    /// `CMD_CFGI_CD_ALL`.
    pub const fn cfgi_cd_all(sid: u32) -> Command {
        [0x06 | (sid as u64) << 32, 0]
    }

    /// `CMD_TLBI_NH_ASID`.
    pub const fn tlbi_nh_asid(asid: u16) -> Command {
        [0x11 | (asid as u64) << 48, 0]
    }

    /// `CMD_TLBI_NH_VA` of one page.
    pub const fn tlbi_nh_va(asid: u16, address: u64, leaf: bool) -> Command {
        [0x12 | (asid as u64) << 48, address & !0xfff | leaf as u64]
    }

    /// `CMD_SYNC` with a `CS`.
    pub const fn sync(signal: u64) -> Command {
        [0x46 | signal << 12, 0]
    }
}

/// A stream table entry (section 5.2).
pub type Ste = [u64; 8];

/// Stream table entries.
pub mod ste {
    use super::Ste;

    pub const VALID: u64 = 1;
    /// `Config`, in place.
    pub const BYPASS: u64 = 0b100 << 1;
    pub const STAGE1: u64 = 0b101 << 1;

    /// No entry at all.
    pub const INVALID: Ste = [0; 8];
    /// Transactions abort silently.
    pub const ABORT: Ste = [VALID, 0, 0, 0, 0, 0, 0, 0];
    /// Transactions are not translated. `SHCFG` is as the device says.
    pub const PASS: Ste = [VALID | BYPASS, 1 << 44, 0, 0, 0, 0, 0, 0];

    /// `S1CIR`, `S1COR`, `S1CSH`: write-back, inner shareable.
    pub const CACHED: u64 = 1 << 2 | 1 << 4 | 3 << 6;

    /// Transactions go through the stage 1 whose CD is at `context`.
    pub const fn stage1(context: u64) -> Ste {
        [VALID | STAGE1 | context, CACHED, 0, 0, 0, 0, 0, 0]
    }
}

/// A level-1 stream table descriptor (section 5.1): where `2^(span - 1)` entries are.
pub const fn level1(table: u64, span: u64) -> u64 {
    table | span
}

/// `STRTAB_BASE_CFG` (section 6.3.25).
pub mod strtab_cfg {
    pub const fn linear(log2: u32) -> u32 {
        log2
    }

    pub const fn two_level(log2: u32, split: u32) -> u32 {
        1 << 16 | split << 6 | log2
    }
}

/// A context descriptor (section 5.4) for 39 bits of input and 4 KiB pages at `root`, 40 bits of output.
pub const fn context(root: u64, asid: u16) -> [u64; 8] {
    let word0 = 25              // T0SZ
        | 1 << 8 | 1 << 10 | 3 << 12 // IR0, OR0, SH0: write-back, inner shareable
        | 1 << 30               // EPD1
        | 1 << 31               // V
        | 2 << 32               // IPS: 40 bits
        | 1 << 41               // AA64
        | 1 << 45 | 1 << 46     // R, A: faults are recorded and abort
        | 1 << 47               // ASET
        | (asid as u64) << 48;
    [word0, root, 0, 0xff, 0, 0, 0, 0]
}

/// The same with 48 bits of output: as many as the SMMU has, if those are fewer.
pub const fn wide_context(root: u64, asid: u16) -> [u64; 8] {
    let mut words = context(root, asid);
    words[0] = words[0] & !(7 << 32) | 5 << 32;
    words
}

/// Stage-1 descriptors (VMSAv8-64, 4 KiB granule).
pub mod stage1 {
    pub const TABLE: u64 = 0b11;
    /// A page: user-accessible, inner shareable, accessed, not global, attribute 0.
    pub const PAGE: u64 = 0b11 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 11;
    pub const READ_ONLY: u64 = 1 << 7;
    /// The input address bits of a level.
    pub const fn index(address: u64, level: u32) -> u64 {
        address >> (39 - 9 * level) & 0x1ff
    }
}

/// An event record (section 7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(pub [u64; 4]);

/// Event types.
pub mod event {
    pub const C_BAD_STREAMID: u8 = 0x02;
    pub const F_STE_FETCH: u8 = 0x03;
    pub const C_BAD_STE: u8 = 0x04;
    pub const F_CD_FETCH: u8 = 0x09;
    pub const C_BAD_CD: u8 = 0x0a;
    pub const F_WALK_EABT: u8 = 0x0b;
    pub const F_TRANSLATION: u8 = 0x10;
    pub const F_ADDR_SIZE: u8 = 0x11;
    pub const F_PERMISSION: u8 = 0x13;
}

impl Event {
    /// The type.
    pub fn kind(self) -> u8 {
        self.0[0] as u8
    }

    /// The StreamID.
    pub fn sid(self) -> u32 {
        (self.0[0] >> 32) as u32
    }

    /// `InputAddr`, for the types that have it.
    pub fn input(self) -> u64 {
        self.0[2]
    }

    /// Whether the transaction was a read.
    pub fn read(self) -> bool {
        self.0[1] >> 35 & 1 != 0
    }

    /// Whether stage 2 refused it.
    pub fn stage2(self) -> bool {
        self.0[1] >> 39 & 1 != 0
    }

    /// `IPA` or `FetchAddr`, for the types that have it.
    pub fn other(self) -> u64 {
        self.0[3]
    }
}
