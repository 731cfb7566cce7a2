//! Structures in memory, spelled out (IHI 0070, chapters 4 to 6; Arm ARM, section D8.3).

/// A page.
pub const PAGE: u64 = 4096;

/// Registers, by their offset.
pub mod register {
    pub const CR0: u32 = 0x20;
    pub const CR0ACK: u32 = 0x24;
    pub const CR1: u32 = 0x28;
    pub const CR2: u32 = 0x2c;
    pub const GBPA: u32 = 0x44;
    pub const GERROR: u32 = 0x60;
    pub const GERRORN: u32 = 0x64;
    pub const STRTAB_BASE: u32 = 0x80;
    pub const STRTAB_BASE_CFG: u32 = 0x88;
    pub const CMDQ_BASE: u32 = 0x90;
    pub const CMDQ_PROD: u32 = 0x98;
    pub const CMDQ_CONS: u32 = 0x9c;
    pub const EVENTQ_BASE: u32 = 0xa0;
    pub const EVENTQ_PROD: u32 = 0x1_00a8;
    pub const EVENTQ_CONS: u32 = 0x1_00ac;
}

/// `CR0`: SMMUEN, EVENTQEN, CMDQEN.
pub const SMMUEN: u32 = 1 << 0;
pub const QUEUES: u32 = 1 << 2 | 1 << 3;
/// `GBPA`: UPDATE, ABORT.
pub const UPDATE: u32 = 1 << 31;
pub const ABORT: u32 = 1 << 20;

/// A command.
pub type Command = [u64; 2];

pub const CFGI_ALL: Command = [0x04, 31];
pub const TLBI_NSNH_ALL: Command = [0x30, 0];
pub const SYNC: Command = [0x46, 0];
/// An opcode that nothing has.
pub const ILLEGAL: Command = [0xff, 0];

pub const fn cfgi_ste(sid: u32) -> Command {
    [0x03 | (sid as u64) << 32, 1]
}

pub const fn cfgi_cd_all(sid: u32) -> Command {
    [0x06 | (sid as u64) << 32, 0]
}

const fn tag(code: u64, vmid: u16) -> u64 {
    code | (vmid as u64) << 32
}

pub const fn tlbi_nh_all(vmid: u16) -> Command {
    [tag(0x10, vmid), 0]
}

pub const fn tlbi_nh_asid(vmid: u16, asid: u16) -> Command {
    [tag(0x11, vmid) | (asid as u64) << 48, 0]
}

pub const fn tlbi_nh_va(vmid: u16, asid: u16, address: u64) -> Command {
    [tag(0x12, vmid) | (asid as u64) << 48, address | 1]
}

pub const fn tlbi_s12_vmall(vmid: u16) -> Command {
    [tag(0x28, vmid), 0]
}

pub const fn tlbi_s2_ipa(vmid: u16, address: u64) -> Command {
    [tag(0x2a, vmid), address | 1]
}

/// An STE.
pub type Ste = [u64; 8];

pub const INVALID: Ste = [0; 8];
/// V=1, Config=0b000.
pub const ABORTING: Ste = [1, 0, 0, 0, 0, 0, 0, 0];
/// V=1, Config=0b100; SHCFG=use incoming.
pub const BYPASSING: Ste = [0b1001, 1 << 44, 0, 0, 0, 0, 0, 0];

/// S2VMID; S2T0SZ=24, S2SL0=1: 40 bits in two concatenated tables of level 1; S2IR0 = S2OR0 = write-back, S2SH0 = inner
/// shareable; S2TG=4 KiB, S2PS=40 bits; S2AA64, S2R.
const fn stage2_words(vmid: u16, root: u64, record: bool) -> [u64; 2] {
    let format: u64 = 24 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | 2 << 16 | 1 << 19;
    [vmid as u64 | format << 32 | (record as u64) << 58, root]
}

/// Config=0b110.
pub const fn stage2(vmid: u16, root: u64, record: bool) -> Ste {
    let [word2, word3] = stage2_words(vmid, root, record);
    [0b1101, 1 << 44, word2, word3, 0, 0, 0, 0]
}

/// Config=0b111, S1ContextPtr; S1CIR = S1COR = write-back, S1CSH = inner shareable.
pub const fn nested(vmid: u16, root: u64, context: u64) -> Ste {
    let [word2, word3] = stage2_words(vmid, root, true);
    [0b1111 | context, 1 << 44 | 0xd4, word2, word3, 0, 0, 0, 0]
}

/// A CD: T0SZ=25 (39 bits, one table of level 1), write-back walks, inner shareable, EPD1; V; IPS=40 bits; AA64, R, A;
/// ASID; TTB0; MAIR.
pub const fn context(asid: u16, table: u64, record: bool) -> [u64; 8] {
    let low: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 30 | 1 << 31;
    let high: u64 = 2 << 32 | 1 << 41 | (record as u64) << 45 | 1 << 46 | (asid as u64) << 48;
    [low | high, table, 0, 0xff, 0, 0, 0, 0]
}

/// A descriptor that leads to the next table.
pub const fn table(at: u64) -> u64 {
    at | 0b11
}

/// A page of stage 2: AF, inner shareable, S2AP, write-back.
pub const fn page2(at: u64, write: bool) -> u64 {
    at | 1 << 10 | 3 << 8 | 1 << 6 | (write as u64) << 7 | 0xf << 2 | 0b11
}

/// A page of stage 1: AF, inner shareable, unprivileged, AP[2], nG.
pub const fn page1(at: u64, write: bool) -> u64 {
    at | 1 << 11 | 1 << 10 | 3 << 8 | 1 << 6 | (!write as u64) << 7 | 0b11
}
