//! Registers of the Non-secure programming interface (chapter 6): both pages, the page of virtual address translation
//! operations and the pages of enhanced command queues. Fields are named as in the specification, whose section says
//! what they mean.

use crate::addr::{StreamId, Vmid};
use crate::format::{
    Address, AddressSize, Field, Granule0, Override, Reserved, Shareability, ShareabilityOverride,
    encoding, has_reserved_permission, structure,
};

/// Where offsets count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The SMMU's base address: both pages of 64 KiB (sections 6.2.1 and 6.2.2).
    Smmu,
    /// The page of virtual address translation operations, which `IDR2.BA_VATOS` places (section 6.2.3).
    Vatos,
    /// A queue's place in a command queue control page, which `CMDQ_CONTROL_PAGE_BASE` places and the queues share
    /// evenly (section 6.2.5).
    CommandQueue,
}

/// A register: where it is, how wide, and what its bits are.
pub trait Register: Sized {
    /// Its name, without `SMMU_`.
    const NAME: &'static str;
    /// Where it counts from.
    const BASE: Base;
    /// Bytes from there; of several alike, the first one's.
    const OFFSET: u32;
    /// 32 or 64 bits.
    const WIDTH: u32;

    /// Returns the content that says this.
    fn to_raw(self) -> u64;

    /// Returns what the content says.
    ///
    /// # Errors
    ///
    /// [`Reserved`].
    fn from_raw(raw: u64) -> Result<Self, Reserved>;
}

/// What there is to say of a register without its type.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// [`Register::NAME`]. A register with two layouts is there twice.
    pub name: &'static str,
    /// [`Register::BASE`].
    pub base: Base,
    /// [`Register::OFFSET`].
    pub offset: u32,
    /// [`Register::WIDTH`].
    pub width: u32,
    /// Its fields.
    pub fields: &'static [Field],
    /// Returns what its content is once it was decoded and encoded again, or why it does not decode.
    pub again: fn(u64) -> Result<u64, Reserved>,
}

macro_rules! registers {
    ($($base:ident {$(
        $(#[$doc:meta])*
        $name:ident = $label:literal, $offset:literal, $width:literal {
            $($field:ident: $type:ty = $bits:literal [$high:literal : $low:literal],)*
        }
        $(, check $check:expr;)?
    )*})*) => {
        $($(
            structure! {
                $(#[$doc])*
                $name: 1 {
                    $(#[doc = concat!("`", $bits, "`.")] $field: $type = $bits [$high : $low],)*
                }
                $(check $check;)?
            }

            impl Register for $name {
                const NAME: &'static str = $label;
                const BASE: Base = Base::$base;
                const OFFSET: u32 = $offset;
                const WIDTH: u32 = $width;

                fn to_raw(self) -> u64 {
                    let [raw] = self.encode();
                    raw
                }

                fn from_raw(raw: u64) -> Result<Self, Reserved> {
                    Self::decode(&[raw])
                }
            }
        )*)*

        /// All of them.
        pub const ALL: &[Layout] = &[$($(
            Layout {
                name: $label,
                base: Base::$base,
                offset: $offset,
                width: $width,
                fields: $name::FIELDS,
                again: |raw| $name::from_raw(raw).map(Register::to_raw),
            },
        )*)*];
    };
}

encoding! {
    /// Formats of the stream table (`IDR0.ST_LEVEL`).
    TableLevels {
        /// Linear.
        Linear = 0b00,
        /// Two levels, too.
        TwoLevel = 0b01,
    }
}

encoding! {
    /// What can become of a transaction that faults (`IDR0.STALL_MODEL`).
    StallModel {
        /// It stalls or ends, as its configuration says.
        StallOrTerminate = 0b00,
        /// It ends.
        Terminate = 0b01,
        /// It stalls.
        Stall = 0b10,
    }
}

encoding! {
    /// Endianness of translation tables (`IDR0.TTENDIAN`).
    Endianness {
        /// Either.
        Mixed = 0b00,
        /// Little.
        Little = 0b10,
        /// Big.
        Big = 0b11,
    }
}

encoding! {
    /// Which flags of translation tables the SMMU sets (`IDR0.HTTU`).
    FlagUpdate {
        /// None.
        None = 0b00,
        /// The access flag.
        Access = 0b01,
        /// And the dirty state.
        AccessDirty = 0b10,
        /// And the access flag of tables.
        AccessDirtyTable = 0b11,
    }
}

encoding! {
    /// Formats of translation tables (`IDR0.TTF`).
    TableFormats {
        /// AArch64's.
        Aarch64 = 0b10,
        /// AArch32's.
        Aarch32 = 0b01,
        /// Both.
        Both = 0b11,
    }
}

encoding! {
    /// How freely a live block may be replaced by a table (`IDR3.BBML`).
    BreakBeforeMake {
        /// Only through an invalid entry.
        Level0 = 0b00,
        /// With `nT` set.
        Level1 = 0b01,
        /// Freely.
        Level2 = 0b10,
    }
}

encoding! {
    /// Width of a virtual address in bits (`IDR5.VAX`).
    VirtualSize {
        /// 48.
        Bits48 = 0b00,
        /// 52.
        Bits52 = 0b01,
        /// 56.
        Bits56 = 0b10,
    }
}

encoding! {
    /// How an access to a table or queue is cached (`CR1`), which has an encoding of its own.
    TableCacheability {
        /// Non-cacheable.
        NonCacheable = 0b00,
        /// Write-back.
        WriteBack = 0b01,
        /// Write-through.
        WriteThrough = 0b10,
    }
}

encoding! {
    /// How many low bits of a VMID an invalidation ignores (`CR0.VMW`).
    VmidWildcard {
        /// None.
        Bits0 = 0b000,
        /// One.
        Bits1 = 0b001,
        /// Two.
        Bits2 = 0b010,
        /// Three.
        Bits3 = 0b011,
        /// Four.
        Bits4 = 0b100,
    }
}

encoding! {
    /// Format of the stream table (`STRTAB_BASE_CFG.FMT`).
    TableFormat {
        /// An array of STEs.
        Linear = 0b00,
        /// An array of level-1 descriptors.
        TwoLevel = 0b01,
    }
}

encoding! {
    /// StreamID bits that index a level-2 table (`STRTAB_BASE_CFG.SPLIT`).
    Split {
        /// None: the table is linear.
        None = 0,
        /// 6.
        Bits6 = 6,
        /// 8.
        Bits8 = 8,
        /// 10.
        Bits10 = 10,
    }
}

encoding! {
    /// Why the command queue stopped (`CMDQ_CONS.ERR`, section 7.1).
    CommandError {
        /// It did not.
        None = 0,
        /// `CERROR_ILL`.
        Illegal = 1,
        /// `CERROR_ABT`.
        Abort = 2,
        /// `CERROR_ATC_INV_SYNC`.
        AtcInvalidation = 3,
    }
}

encoding! {
    /// What an address translation operation translates (`TYPE`).
    Translated {
        /// Virtual to intermediate physical.
        Stage1 = 0b01,
        /// Intermediate physical to physical.
        Stage2 = 0b10,
        /// Virtual to physical.
        Both = 0b11,
    }
}

encoding! {
    /// What a virtual address translation operation translates (`TYPE`): the guest sees its own stage only.
    VirtuallyTranslated {
        /// Virtual to intermediate physical.
        Stage1 = 0b01,
    }
}

encoding! {
    /// That an address translation operation succeeded (`FAULT`).
    Success {
        /// It did.
        NoFault = 0b0,
    }
}

encoding! {
    /// That an address translation operation failed (`FAULT`).
    Failure {
        /// It did.
        Fault = 0b1,
    }
}

encoding! {
    /// What an address translation operation was doing when it failed (`REASON`).
    Activity {
        /// Stage 1, or nothing of a stage's.
        Stage1 = 0b00,
        /// Stage 2, for the CD.
        Context = 0b01,
        /// Stage 2, for a table of stage 1.
        Table = 0b10,
        /// Stage 2, for the address itself.
        Input = 0b11,
    }
}

encoding! {
    /// The same of a virtual operation, which tells nothing of stage 2 (`REASON`).
    VirtualActivity {
        /// Stage 1, or nothing of a stage's.
        Stage1 = 0b00,
    }
}

encoding! {
    /// Why an address translation operation failed (`FAULTCODE`, section 9.1.5): as an event has it, or the request
    /// was wrong.
    OperationFault {
        /// `INV_REQ`: the request is malformed.
        Request = 0xff,
        /// `INV_STAGE`: there is no such stage.
        Stage = 0xfe,
        /// `INTERNAL_ERR`: it was stopped.
        Internal = 0xfd,
        /// `C_BAD_STREAMID`.
        BadStreamId = 0x02,
        /// `F_STE_FETCH`.
        SteFetch = 0x03,
        /// `C_BAD_STE`.
        BadSte = 0x04,
        /// `F_STREAM_DISABLED`.
        StreamDisabled = 0x06,
        /// `C_BAD_SUBSTREAMID`.
        BadSubstreamId = 0x08,
        /// `F_CD_FETCH`.
        CdFetch = 0x09,
        /// `C_BAD_CD`.
        BadCd = 0x0a,
        /// `F_WALK_EABT`.
        WalkAbort = 0x0b,
        /// `F_TRANSLATION`.
        Translation = 0x10,
        /// `F_ADDR_SIZE`.
        AddressSize = 0x11,
        /// `F_ACCESS`.
        Access = 0x12,
        /// `F_PERMISSION`.
        Permission = 0x13,
        /// `F_TLB_CONFLICT`.
        TlbConflict = 0x20,
        /// `F_CFG_CONFLICT`.
        ConfigConflict = 0x21,
        /// `F_VMS_FETCH`.
        VmsFetch = 0x25,
    }
}

encoding! {
    /// How much memory the device permission table is about, in bits of an address (`DPT_BASE_CFG.DPTPS`).
    PermissionTableReach {
        /// 32.
        Bits32 = 0,
        /// 36.
        Bits36 = 1,
        /// 40.
        Bits40 = 2,
        /// 42.
        Bits42 = 3,
        /// 44.
        Bits44 = 4,
        /// 48.
        Bits48 = 5,
        /// 52.
        Bits52 = 6,
    }
}

encoding! {
    /// How much of it an entry of level 0 is about, in bits of an address (`DPT_BASE_CFG.L0DPTSZ`).
    PermissionTableSpan {
        /// 30.
        Bits30 = 0b0000,
        /// 34.
        Bits34 = 0b0100,
        /// 36.
        Bits36 = 0b0110,
        /// 39.
        Bits39 = 0b1001,
    }
}

encoding! {
    /// Why nothing was found in the device permission table (`DPT_CFG_FAR.DPT_FAULTCODE`).
    PermissionTableFault {
        /// It is switched off.
        Disabled = 0b0000,
        /// It, or its configuration, is invalid.
        Walk = 0b0001,
        /// Its memory belongs to another world.
        GranuleProtection = 0b0010,
        /// It could not be read.
        Abort = 0b0011,
    }
}

encoding! {
    /// Size of a command queue control page (`CMDQ_CONTROL_PAGE_BASE.CMDQGS`).
    ControlPageSize {
        /// 64 KiB.
        K64 = 0b01,
    }
}

registers! {
Smmu {
    /// Features, section 6.3.1.
    Idr0 = "IDR0", 0x00, 32 {
        s2p: bool = "S2P" [0:0],
        s1p: bool = "S1P" [1:1],
        ttf: TableFormats = "TTF" [3:2],
        cohacc: bool = "COHACC" [4:4],
        btm: bool = "BTM" [5:5],
        httu: FlagUpdate = "HTTU" [7:6],
        dormhint: bool = "DORMHINT" [8:8],
        hyp: bool = "Hyp" [9:9],
        ats: bool = "ATS" [10:10],
        ns1ats: bool = "NS1ATS" [11:11],
        asid16: bool = "ASID16" [12:12],
        msi: bool = "MSI" [13:13],
        sev: bool = "SEV" [14:14],
        atos: bool = "ATOS" [15:15],
        pri: bool = "PRI" [16:16],
        vmw: bool = "VMW" [17:17],
        vmid16: bool = "VMID16" [18:18],
        cd2l: bool = "CD2L" [19:19],
        vatos: bool = "VATOS" [20:20],
        ttendian: Endianness = "TTENDIAN" [22:21],
        atsrecerr: bool = "ATSRECERR" [23:23],
        stall_model: StallModel = "STALL_MODEL" [25:24],
        term_model: bool = "TERM_MODEL" [26:26],
        st_level: TableLevels = "ST_LEVEL" [28:27],
        rme_impl: bool = "RME_IMPL" [30:30],
    }
    /// Sizes and presets, section 6.3.2.
    Idr1 = "IDR1", 0x04, 32 {
        sidsize: u8 = "SIDSIZE" [5:0],
        ssidsize: u8 = "SSIDSIZE" [10:6],
        priqs: u8 = "PRIQS" [15:11],
        eventqs: u8 = "EVENTQS" [20:16],
        cmdqs: u8 = "CMDQS" [25:21],
        attr_perms_ovr: bool = "ATTR_PERMS_OVR" [26:26],
        attr_types_ovr: bool = "ATTR_TYPES_OVR" [27:27],
        rel: bool = "REL" [28:28],
        queues_preset: bool = "QUEUES_PRESET" [29:29],
        tables_preset: bool = "TABLES_PRESET" [30:30],
        ecmdq: bool = "ECMDQ" [31:31],
    }, check |it| {
        // PRIQS may be anything where there is no such queue.
        let limits = [
            ("SIDSIZE", it.sidsize, 32),
            ("SSIDSIZE", it.ssidsize, 20),
            ("EVENTQS", it.eventqs, 19),
            ("CMDQS", it.cmdqs, 19),
        ];
        limits.iter().find(|(_, value, most)| value > most).map(|(name, ..)| *name)
    };
    /// The virtual ATOS page, section 6.3.3.
    Idr2 = "IDR2", 0x08, 32 {
        ba_vatos: u16 = "BA_VATOS" [9:0],
    }
    /// Translation features, section 6.3.4.
    Idr3 = "IDR3", 0x0c, 32 {
        had: bool = "HAD" [2:2],
        pbha: bool = "PBHA" [3:3],
        xnx: bool = "XNX" [4:4],
        pps: bool = "PPS" [5:5],
        mpam: bool = "MPAM" [7:7],
        fwb: bool = "FWB" [8:8],
        stt: bool = "STT" [9:9],
        ril: bool = "RIL" [10:10],
        bbml: BreakBeforeMake = "BBML" [12:11],
        e0pd: bool = "E0PD" [13:13],
        ptwnnc: bool = "PTWNNC" [14:14],
        dpt: bool = "DPT" [15:15],
        pasidtt: bool = "PASIDTT" [16:16],
        epan: bool = "EPAN" [17:17],
        s1pi: bool = "S1PI" [18:18],
        s2pi: bool = "S2PI" [19:19],
        s2po: bool = "S2PO" [20:20],
        the: bool = "THE" [21:21],
        mteperm: bool = "MTEPERM" [22:22],
        aie: bool = "AIE" [23:23],
    }
    /// The implementation's own, section 6.3.5.
    Idr4 = "IDR4", 0x10, 32 {
        implementation: u32 = "IMPLEMENTATION DEFINED" [31:0],
    }
    /// Address sizes and granules, section 6.3.6.
    Idr5 = "IDR5", 0x14, 32 {
        oas: AddressSize = "OAS" [2:0],
        gran4k: bool = "GRAN4K" [4:4],
        gran16k: bool = "GRAN16K" [5:5],
        gran64k: bool = "GRAN64K" [6:6],
        ds: bool = "DS" [7:7],
        d128: bool = "D128" [8:8],
        vax: VirtualSize = "VAX" [11:10],
        stall_max: u16 = "STALL_MAX" [31:16],
    }
    /// Who made it, section 6.3.7.
    Iidr = "IIDR", 0x18, 32 {
        implementer: u16 = "Implementer" [11:0],
        revision: u8 = "Revision" [15:12],
        variant: u8 = "Variant" [19:16],
        product: u16 = "ProductID" [31:20],
    }
    /// Revision of the architecture, section 6.3.8.
    Aidr = "AIDR", 0x1c, 32 {
        minor: u8 = "ArchMinorRev" [3:0],
        major: u8 = "ArchMajorRev" [7:4],
    }
    /// Enables, section 6.3.9.
    Cr0 = "CR0", 0x20, 32 {
        smmuen: bool = "SMMUEN" [0:0],
        priqen: bool = "PRIQEN" [1:1],
        eventqen: bool = "EVENTQEN" [2:2],
        cmdqen: bool = "CMDQEN" [3:3],
        atschk: bool = "ATSCHK" [4:4],
        vmw: VmidWildcard = "VMW" [8:6],
        dpt_walk_en: bool = "DPT_WALK_EN" [10:10],
    }
    /// Which of them have taken effect, section 6.3.10.
    Cr0Ack = "CR0ACK", 0x24, 32 {
        smmuen: bool = "SMMUEN" [0:0],
        priqen: bool = "PRIQEN" [1:1],
        eventqen: bool = "EVENTQEN" [2:2],
        cmdqen: bool = "CMDQEN" [3:3],
        atschk: bool = "ATSCHK" [4:4],
        vmw: VmidWildcard = "VMW" [8:6],
        dpt_walk_en: bool = "DPT_WALK_EN" [10:10],
    }
    /// How the SMMU accesses its tables and queues, section 6.3.11.
    Cr1 = "CR1", 0x28, 32 {
        queue_ic: TableCacheability = "QUEUE_IC" [1:0],
        queue_oc: TableCacheability = "QUEUE_OC" [3:2],
        queue_sh: Shareability = "QUEUE_SH" [5:4],
        table_ic: TableCacheability = "TABLE_IC" [7:6],
        table_oc: TableCacheability = "TABLE_OC" [9:8],
        table_sh: Shareability = "TABLE_SH" [11:10],
    }
    /// More control, section 6.3.12.
    Cr2 = "CR2", 0x2c, 32 {
        e2h: bool = "E2H" [0:0],
        recinvsid: bool = "RECINVSID" [1:1],
        ptm: bool = "PTM" [2:2],
        rec_cfg_ats: bool = "REC_CFG_ATS" [3:3],
    }
    /// Permissions of indirect stage 2, section 6.3.17.
    S2pii = "S2PII", 0x30, 64 {
        permissions: u64 = "S2PII" [63:0],
    }, check |it| has_reserved_permission(it.permissions).then_some("S2PII");
    /// Dormancy, section 6.3.13.
    Statusr = "STATUSR", 0x40, 32 {
        dormant: bool = "DORMANT" [0:0],
    }
    /// What happens while SMMUEN is 0, section 6.3.14.
    Gbpa = "GBPA", 0x44, 32 {
        memattr: u8 = "MemAttr" [3:0],
        mtcfg: bool = "MTCFG" [4:4],
        alloccfg: u8 = "ALLOCCFG" [11:8],
        shcfg: ShareabilityOverride = "SHCFG" [13:12],
        privcfg: Override = "PRIVCFG" [17:16],
        instcfg: Override = "INSTCFG" [19:18],
        abort: bool = "ABORT" [20:20],
        update: bool = "Update" [31:31],
    }
    /// The implementation's own, section 6.3.15.
    Agbpa = "AGBPA", 0x48, 32 {
        implementation: u32 = "IMPLEMENTATION DEFINED" [31:0],
    }
    /// Interrupt enables, section 6.3.16.
    IrqCtrl = "IRQ_CTRL", 0x50, 32 {
        gerror_irqen: bool = "GERROR_IRQEN" [0:0],
        priq_irqen: bool = "PRIQ_IRQEN" [1:1],
        eventq_irqen: bool = "EVENTQ_IRQEN" [2:2],
    }
    /// Which of them have taken effect, section 6.3.18.
    IrqCtrlAck = "IRQ_CTRLACK", 0x54, 32 {
        gerror_irqen: bool = "GERROR_IRQEN" [0:0],
        priq_irqen: bool = "PRIQ_IRQEN" [1:1],
        eventq_irqen: bool = "EVENTQ_IRQEN" [2:2],
    }
    /// Global errors, section 6.3.19.
    Gerror = "GERROR", 0x60, 32 {
        cmdq_err: bool = "CMDQ_ERR" [0:0],
        eventq_abt_err: bool = "EVENTQ_ABT_ERR" [2:2],
        priq_abt_err: bool = "PRIQ_ABT_ERR" [3:3],
        msi_cmdq_abt_err: bool = "MSI_CMDQ_ABT_ERR" [4:4],
        msi_eventq_abt_err: bool = "MSI_EVENTQ_ABT_ERR" [5:5],
        msi_priq_abt_err: bool = "MSI_PRIQ_ABT_ERR" [6:6],
        msi_gerror_abt_err: bool = "MSI_GERROR_ABT_ERR" [7:7],
        sfm_err: bool = "SFM_ERR" [8:8],
        cmdqp_err: bool = "CMDQP_ERR" [9:9],
        dpt_err: bool = "DPT_ERR" [10:10],
    }
    /// Which of them are acknowledged, section 6.3.20.
    Gerrorn = "GERRORN", 0x64, 32 {
        cmdq_err: bool = "CMDQ_ERR" [0:0],
        eventq_abt_err: bool = "EVENTQ_ABT_ERR" [2:2],
        priq_abt_err: bool = "PRIQ_ABT_ERR" [3:3],
        msi_cmdq_abt_err: bool = "MSI_CMDQ_ABT_ERR" [4:4],
        msi_eventq_abt_err: bool = "MSI_EVENTQ_ABT_ERR" [5:5],
        msi_priq_abt_err: bool = "MSI_PRIQ_ABT_ERR" [6:6],
        msi_gerror_abt_err: bool = "MSI_GERROR_ABT_ERR" [7:7],
        sfm_err: bool = "SFM_ERR" [8:8],
        cmdqp_err: bool = "CMDQP_ERR" [9:9],
        dpt_err: bool = "DPT_ERR" [10:10],
    }
    /// Message of global errors, section 6.3.21.
    GerrorIrqCfg0 = "GERROR_IRQ_CFG0", 0x68, 64 {
        addr: Address = "ADDR" [55:2],
    }
    /// Section 6.3.22.
    GerrorIrqCfg1 = "GERROR_IRQ_CFG1", 0x70, 32 {
        data: u32 = "DATA" [31:0],
    }
    /// Section 6.3.23.
    GerrorIrqCfg2 = "GERROR_IRQ_CFG2", 0x74, 32 {
        memattr: u8 = "MemAttr" [3:0],
        sh: Shareability = "SH" [5:4],
    }
    /// Where the stream table is, section 6.3.24.
    StrtabBase = "STRTAB_BASE", 0x80, 64 {
        addr: Address = "ADDR" [55:6],
        ra: bool = "RA" [62:62],
    }
    /// Its shape, section 6.3.25.
    StrtabBaseCfg = "STRTAB_BASE_CFG", 0x88, 32 {
        log2size: u8 = "LOG2SIZE" [5:0],
        split: Split = "SPLIT" [10:6],
        fmt: TableFormat = "FMT" [17:16],
    }
    /// Where the command queue is, section 6.3.26.
    CmdqBase = "CMDQ_BASE", 0x90, 64 {
        log2size: u8 = "LOG2SIZE" [4:0],
        addr: Address = "ADDR" [55:5],
        ra: bool = "RA" [62:62],
    }
    /// Software's index into it, section 6.3.27.
    CmdqProd = "CMDQ_PROD", 0x98, 32 {
        wr: u32 = "WR" [19:0],
    }
    /// The SMMU's, section 6.3.28.
    CmdqCons = "CMDQ_CONS", 0x9c, 32 {
        rd: u32 = "RD" [19:0],
        err: CommandError = "ERR" [30:24],
    }
    /// Where the event queue is, section 6.3.29.
    EventqBase = "EVENTQ_BASE", 0xa0, 64 {
        log2size: u8 = "LOG2SIZE" [4:0],
        addr: Address = "ADDR" [55:5],
        wa: bool = "WA" [62:62],
    }
    /// Message of the event queue, section 6.3.30.
    EventqIrqCfg0 = "EVENTQ_IRQ_CFG0", 0xb0, 64 {
        addr: Address = "ADDR" [55:2],
    }
    /// Section 6.3.31.
    EventqIrqCfg1 = "EVENTQ_IRQ_CFG1", 0xb8, 32 {
        data: u32 = "DATA" [31:0],
    }
    /// Section 6.3.32.
    EventqIrqCfg2 = "EVENTQ_IRQ_CFG2", 0xbc, 32 {
        memattr: u8 = "MemAttr" [3:0],
        sh: Shareability = "SH" [5:4],
    }
    /// Where the page request queue is, section 6.3.33.
    PriqBase = "PRIQ_BASE", 0xc0, 64 {
        log2size: u8 = "LOG2SIZE" [4:0],
        addr: Address = "ADDR" [55:5],
        wa: bool = "WA" [62:62],
    }
    /// Message of the page request queue, section 6.3.34.
    PriqIrqCfg0 = "PRIQ_IRQ_CFG0", 0xd0, 64 {
        addr: Address = "ADDR" [55:2],
    }
    /// Section 6.3.35.
    PriqIrqCfg1 = "PRIQ_IRQ_CFG1", 0xd8, 32 {
        data: u32 = "DATA" [31:0],
    }
    /// Section 6.3.36.
    PriqIrqCfg2 = "PRIQ_IRQ_CFG2", 0xdc, 32 {
        memattr: u8 = "MemAttr" [3:0],
        sh: Shareability = "SH" [5:4],
        lo: bool = "LO" [31:31],
    }
    /// Starts a global address translation operation, section 6.3.37.
    GatosCtrl = "GATOS_CTRL", 0x100, 32 {
        run: bool = "RUN" [0:0],
    }
    /// Whose, section 6.3.38.
    GatosSid = "GATOS_SID", 0x108, 64 {
        stream: StreamId = "STREAMID" [31:0],
        substream: u32 = "SUBSTREAMID" [51:32],
        has_substream: bool = "SSID_VALID" [52:52],
    }
    /// Of what, section 6.3.39.
    GatosAddr = "GATOS_ADDR", 0x110, 64 {
        httui: bool = "HTTUI" [6:6],
        ind: bool = "InD" [7:7],
        rnw: bool = "RnW" [8:8],
        pnu: bool = "PnU" [9:9],
        kind: Translated = "TYPE" [11:10],
        addr: Address = "ADDR" [63:12],
    }
    /// Its result if there is no fault, section 6.3.40.
    GatosPar = "GATOS_PAR", 0x118, 64 {
        fault: Success = "FAULT" [0:0],
        sh: Shareability = "SH" [9:8],
        size: bool = "Size" [11:11],
        addr: Address = "ADDR" [55:12],
        attr: u8 = "ATTR" [63:56],
    }
    /// Its result if there is one.
    GatosParFault = "GATOS_PAR", 0x118, 64 {
        fault: Failure = "FAULT" [0:0],
        reason: Activity = "REASON" [2:1],
        code: OperationFault = "FAULTCODE" [11:4],
        addr: Address = "FADDR" [55:12],
        implementation: u8 = "IMPLEMENTATION DEFINED" [63:60],
    }
    /// Memory partitions, section 6.3.41.
    Mpamidr = "MPAMIDR", 0x130, 32 {
        partid_max: u16 = "PARTID_MAX" [15:0],
        pmg_max: u8 = "PMG_MAX" [23:16],
    }
    /// The SMMU's own, section 6.3.42.
    Gmpam = "GMPAM", 0x138, 32 {
        so_partid: u16 = "SO_PARTID" [15:0],
        so_pmg: u8 = "SO_PMG" [23:16],
        update: bool = "Update" [31:31],
    }
    /// Of transactions that no STE is looked up for, section 6.3.43.
    Gbpmpam = "GBPMPAM", 0x13c, 32 {
        gbp_partid: u16 = "GBP_PARTID" [15:0],
        gbp_pmg: u8 = "GBP_PMG" [23:16],
        update: bool = "Update" [31:31],
    }
    /// Whose the virtual ATOS page is, section 6.3.44.
    VatosSel = "VATOS_SEL", 0x180, 32 {
        vmid: Vmid = "VMID" [15:0],
    }
    /// Enhanced command queues, section 6.3.45.
    Idr6 = "IDR6", 0x190, 32 {
        log2numq: u8 = "CMDQ_CONTROL_PAGE_LOG2NUMQ" [19:16],
        log2nump: u8 = "CMDQ_CONTROL_PAGE_LOG2NUMP" [27:24],
    }, check |it| {
        if it.log2numq > 8 {
            Some("CMDQ_CONTROL_PAGE_LOG2NUMQ")
        } else {
            (it.log2nump > 8).then_some("CMDQ_CONTROL_PAGE_LOG2NUMP")
        }
    };
    /// Where the device permission table is, section 6.3.46.
    DptBase = "DPT_BASE", 0x200, 64 {
        baddr: Address = "BADDR" [55:12],
        ra: bool = "RA" [62:62],
    }
    /// Its shape, section 6.3.47.
    DptBaseCfg = "DPT_BASE_CFG", 0x208, 32 {
        dptps: PermissionTableReach = "DPTPS" [2:0],
        dptgs: Granule0 = "DPTGS" [15:14],
        l0dptsz: PermissionTableSpan = "L0DPTSZ" [23:20],
    }
    /// Its first fault, section 6.3.48.
    DptCfgFar = "DPT_CFG_FAR", 0x210, 64 {
        fault: bool = "FAULT" [0:0],
        level: bool = "LEVEL" [1:1],
        code: PermissionTableFault = "DPT_FAULTCODE" [7:4],
        addr: Address = "FADDR" [55:12],
    }
    /// Where a command queue control page is, as an offset from the SMMU's base address, section 6.3.49; one
    /// every 32 bytes, 256 in all.
    CmdqControlPageBase = "CMDQ_CONTROL_PAGE_BASE", 0x4000, 64 {
        preset: bool = "CMDQ_CONTROL_PAGE_PRESET" [0:0],
        cmdqgs: ControlPageSize = "CMDQGS" [2:1],
        addr: Address = "ADDR" [55:16],
    }
    /// Switches it on, section 6.3.50; one every 32 bytes.
    CmdqControlPageCfg = "CMDQ_CONTROL_PAGE_CFG", 0x4008, 32 {
        en: bool = "EN" [0:0],
    }
    /// Whether that has taken effect, section 6.3.51; one every 32 bytes.
    CmdqControlPageStatus = "CMDQ_CONTROL_PAGE_STATUS", 0x400c, 32 {
        enack: bool = "ENACK" [0:0],
    }
    /// The SMMU's index into the event queue, section 6.3.95; on page 1.
    EventqProd = "EVENTQ_PROD", 0x1_00a8, 32 {
        wr: u32 = "WR" [19:0],
        ovflg: bool = "OVFLG" [31:31],
    }
    /// Software's, section 6.3.96; on page 1.
    EventqCons = "EVENTQ_CONS", 0x1_00ac, 32 {
        rd: u32 = "RD" [19:0],
        ovackflg: bool = "OVACKFLG" [31:31],
    }
    /// The SMMU's index into the page request queue, section 6.3.97; on page 1.
    PriqProd = "PRIQ_PROD", 0x1_00c8, 32 {
        wr: u32 = "WR" [19:0],
        ovflg: bool = "OVFLG" [31:31],
    }
    /// Software's, section 6.3.98; on page 1.
    PriqCons = "PRIQ_CONS", 0x1_00cc, 32 {
        rd: u32 = "RD" [19:0],
        ovackflg: bool = "OVACKFLG" [31:31],
    }
}

Vatos {
    /// Starts a virtual address translation operation, section 6.3.99.
    VatosCtrl = "VATOS_CTRL", 0xa00, 32 {
        run: bool = "RUN" [0:0],
    }
    /// Whose, section 6.3.100.
    VatosSid = "VATOS_SID", 0xa08, 64 {
        stream: StreamId = "STREAMID" [31:0],
        substream: u32 = "SUBSTREAMID" [51:32],
        has_substream: bool = "SSID_VALID" [52:52],
    }
    /// Of what, section 6.3.101.
    VatosAddr = "VATOS_ADDR", 0xa10, 64 {
        httui: bool = "HTTUI" [6:6],
        ind: bool = "InD" [7:7],
        rnw: bool = "RnW" [8:8],
        pnu: bool = "PnU" [9:9],
        kind: VirtuallyTranslated = "TYPE" [11:10],
        addr: Address = "ADDR" [63:12],
    }
    /// Its result if there is no fault, section 6.3.102.
    VatosPar = "VATOS_PAR", 0xa18, 64 {
        fault: Success = "FAULT" [0:0],
        sh: Shareability = "SH" [9:8],
        size: bool = "Size" [11:11],
        addr: Address = "ADDR" [55:12],
        attr: u8 = "ATTR" [63:56],
    }
    /// Its result if there is one. An address of stage 2 is never told.
    VatosParFault = "VATOS_PAR", 0xa18, 64 {
        fault: Failure = "FAULT" [0:0],
        reason: VirtualActivity = "REASON" [2:1],
        code: OperationFault = "FAULTCODE" [11:4],
        implementation: u8 = "IMPLEMENTATION DEFINED" [63:60],
    }
}

CommandQueue {
    /// Where an enhanced command queue is, section 6.3.107.
    EcmdqBase = "ECMDQ_BASE", 0x00, 64 {
        log2size: u8 = "LOG2SIZE" [4:0],
        addr: Address = "ADDR" [55:5],
        ra: bool = "RA" [62:62],
    }
    /// Software's index into it, section 6.3.108.
    EcmdqProd = "ECMDQ_PROD", 0x08, 32 {
        wr: u32 = "WR" [19:0],
        errack: bool = "ERRACK" [23:23],
        en: bool = "EN" [31:31],
    }
    /// The SMMU's, section 6.3.109.
    EcmdqCons = "ECMDQ_CONS", 0x0c, 32 {
        rd: u32 = "RD" [19:0],
        err: bool = "ERR" [23:23],
        reason: CommandError = "ERR_REASON" [26:24],
        enack: bool = "ENACK" [31:31],
    }
}

}
