//! What IHI 0070 requires: of every register, and of every command. Written from the specification, in no
//! other form than it has there, and independently of what the hypervisor has.

use crate::smmu::format::{Command, Identity, register};

/// What QEMU's own SMMU does otherwise, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Difference {
    /// Bits of control registers that are RES0 are stored, and read back.
    StoresReservedBits,
    /// `GERROR_IRQ_CFG*` and `EVENTQ_IRQ_CFG*` are stored although `IDR0.MSI` is 0.
    StoresMessageRegisters,
    /// Page 1 shows all registers of page 0.
    Page1IsPage0,
    /// What is in use can be written.
    NothingIsGuarded,
    /// Commands of EL2, EL3, ATS, PRI and stalls are accepted although none of them is advertised.
    AcceptsForeignCommands,
    /// The reserved `CS` of `CMD_SYNC` is accepted.
    AcceptsReservedSignal,
    /// A range that is reserved is accepted.
    AcceptsReservedRange,
    /// An overflow of the event queue is `GERROR.EVENTQ_ABT_ERR`, not `OVFLG`.
    OverflowIsAbort,
}

impl Difference {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::StoresReservedBits,
        Self::StoresMessageRegisters,
        Self::Page1IsPage0,
        Self::NothingIsGuarded,
        Self::AcceptsForeignCommands,
        Self::AcceptsReservedSignal,
        Self::AcceptsReservedRange,
        Self::OverflowIsAbort,
    ];
}

/// What a register does when it is read and written while everything is disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Writes are ignored. What it reads as is known, or up to the implementation.
    ReadOnly(Option<u64>),
    /// What is written is read back.
    ReadWrite {
        /// In these bits.
        stored: u64,
        /// And, if the implementation likes, in these; all others read as 0.
        maybe: u64,
    },
    /// Has a protocol, which has its own test. Unknown bits read as 0.
    Protocol {
        /// Those that are known.
        bits: u64,
    },
}

/// A register.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Its name, without `SMMU_`.
    pub name: &'static str,
    /// Where it is.
    pub offset: u32,
    /// Whether it has 64 bits.
    pub wide: bool,
    /// What it does.
    pub access: Access,
    /// What the machine's own SMMU may do otherwise.
    pub known: Option<Difference>,
}

/// How many registers are known.
const REGISTERS: usize = 33;

/// Every register that there is (section 6.2); whatever is not among them is RES0.
pub fn registers(identity: Identity) -> [Expected; REGISTERS] {
    use Difference::{StoresMessageRegisters, StoresReservedBits};

    let constant = |name, offset| entry(name, offset, Access::ReadOnly(None));
    let zero = |name, offset| entry(name, offset, Access::ReadOnly(Some(0)));
    let protocol = |name, offset, bits| entry(name, offset, Access::Protocol { bits });
    let stored = |name, offset, stored| entry(name, offset, read_write(stored, 0));
    // Addresses that no memory can have need not be stored (section 6.3.24).
    let reachable = bits(identity.output_bits() - 1, 0);
    let address = |low| bits(55, low) & reachable;
    let beyond = bits(55, 0) & !reachable;
    // Indexes have the bits of the queue, which has one entry during the walk, so that only its wrap bit is left.
    let index = |name, offset, stored: u64, maybe: u64| Expected {
        known: Some(StoresReservedBits),
        ..entry(name, offset, read_write(stored | 1, maybe | bits(19, 1)))
    };
    let message = |name, offset, wide| {
        let access =
            if identity.msi() { read_write(0, u64::MAX) } else { Access::ReadOnly(Some(0)) };
        Expected { wide, known: Some(StoresMessageRegisters), ..entry(name, offset, access) }
    };
    let base = |name, offset, stored, maybe| Expected {
        wide: true,
        known: Some(StoresReservedBits),
        ..entry(name, offset, read_write(stored, maybe | beyond))
    };
    let loose = |expected| Expected { known: Some(StoresReservedBits), ..expected };
    let split = if identity.two_level() { bits(10, 6) | bits(17, 16) } else { 0 };
    let interrupts = 0b101 | u64::from(identity.pri()) << 1;
    let cr2 = 0b10 | u64::from(identity.hyp()) | u64::from(identity.idr[0] >> 5 & 1) << 2;
    [
        constant("IDR0", register::IDR0),
        constant("IDR1", register::IDR1),
        constant("IDR2", register::IDR2),
        constant("IDR3", register::IDR3),
        constant("IDR4", register::IDR4),
        constant("IDR5", register::IDR5),
        constant("IIDR", register::IIDR),
        constant("AIDR", register::AIDR),
        protocol("CR0", register::CR0, 0x1df),
        zero("CR0ACK", register::CR0ACK),
        loose(stored("CR1", register::CR1, 0xfff)),
        loose(stored("CR2", register::CR2, cr2)),
        // DORMANT: whether anything is cached.
        constant("STATUSR", register::STATUSR),
        protocol("GBPA", register::GBPA, 0xf31_1f1f | 1 << 20),
        constant("AGBPA", register::AGBPA),
        loose(stored("IRQ_CTRL", register::IRQ_CTRL, interrupts)),
        // Follows IRQ_CTRL, which is 0 again after the walk.
        zero("IRQ_CTRLACK", register::IRQ_CTRLACK),
        constant("GERROR", register::GERROR),
        protocol("GERRORN", register::GERRORN, 0x1ff),
        message("GERROR_IRQ_CFG0", register::GERROR_IRQ_CFG0, true),
        message("GERROR_IRQ_CFG1", register::GERROR_IRQ_CFG1, false),
        message("GERROR_IRQ_CFG2", register::GERROR_IRQ_CFG2, false),
        base("STRTAB_BASE", register::STRTAB_BASE, 1 << 62 | address(6), 0),
        loose(stored("STRTAB_BASE_CFG", register::STRTAB_BASE_CFG, split | bits(5, 0))),
        // A LOG2SIZE above the largest may read as that.
        base("CMDQ_BASE", register::CMDQ_BASE, 1 << 62 | address(5), bits(4, 0)),
        index("CMDQ_PROD", register::CMDQ_PROD, 0, 0),
        // ERR means something as long as the error is active.
        index("CMDQ_CONS", register::CMDQ_CONS, 0, bits(30, 24)),
        base("EVENTQ_BASE", register::EVENTQ_BASE, 1 << 62 | address(5), bits(4, 0)),
        message("EVENTQ_IRQ_CFG0", register::EVENTQ_IRQ_CFG0, true),
        message("EVENTQ_IRQ_CFG1", register::EVENTQ_IRQ_CFG1, false),
        message("EVENTQ_IRQ_CFG2", register::EVENTQ_IRQ_CFG2, false),
        index("EVENTQ_PROD", register::EVENTQ_PROD, 1 << 31, 0),
        index("EVENTQ_CONS", register::EVENTQ_CONS, 1 << 31, 0),
    ]
}

fn entry(name: &'static str, offset: u32, access: Access) -> Expected {
    Expected { name, offset, wide: false, access, known: None }
}

const fn read_write(stored: u64, maybe: u64) -> Access {
    Access::ReadWrite { stored, maybe }
}

/// Bits `high` to `low`.
const fn bits(high: u32, low: u32) -> u64 {
    u64::MAX >> (63 - high) & u64::MAX << low
}

/// What an SMMU does with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Consumes it.
    Legal,
    /// Stops with `CERROR_ILL`.
    Illegal,
    /// Either.
    Unpredictable,
}

/// What an SMMU that says so much of itself does with a command of the Non-secure queue (section 4.1.3), and
/// what the machine's own may do otherwise.
pub fn command([low, high]: Command, identity: Identity) -> (Verdict, Option<Difference>) {
    use Difference::{AcceptsForeignCommands, AcceptsReservedRange, AcceptsReservedSignal};

    let only_with = |feature: bool, known| match feature {
        true => (Verdict::Legal, None),
        false => (Verdict::Illegal, known),
    };
    let secure = low >> 10 & 1 != 0;
    match low as u8 {
        // PREFETCH_CONFIG, PREFETCH_ADDR, CFGI_STE, CFGI_STE_RANGE, CFGI_CD, CFGI_CD_ALL: no Secure stream.
        0x01 | 0x02 if secure => (Verdict::Illegal, Some(AcceptsForeignCommands)),
        0x03..=0x06 if secure => (Verdict::Illegal, None),
        0x01..=0x06 => (Verdict::Legal, None),
        // CFGI_VMS_PIDM, with MPAM.
        0x07 => only_with(identity.idr[3] >> 7 & 1 != 0, None),
        // TLBI_NH_ALL, TLBI_NH_ASID.
        0x10 | 0x11 => only_with(identity.stage1(), None),
        // TLBI_NH_VA, TLBI_NH_VAA.
        0x12 | 0x13 => match range(low, high, identity) {
            _ if !identity.stage1() => (Verdict::Illegal, None),
            Verdict::Illegal => (Verdict::Illegal, Some(AcceptsReservedRange)),
            verdict => (verdict, None),
        },
        // TLBI_EL3_ALL, TLBI_EL3_VA: no such contexts here.
        0x18 | 0x1a => (Verdict::Illegal, Some(AcceptsForeignCommands)),
        // TLBI_EL2_ALL, _ASID, _VA, _VAA.
        0x20..=0x23 => only_with(identity.hyp(), Some(AcceptsForeignCommands)),
        // TLBI_S12_VMALL, TLBI_S2_IPA.
        0x28 => only_with(identity.stage2(), None),
        0x2a => match range(low, high, identity) {
            _ if !identity.stage2() => (Verdict::Illegal, None),
            Verdict::Illegal => (Verdict::Illegal, Some(AcceptsReservedRange)),
            verdict => (verdict, None),
        },
        // TLBI_NSNH_ALL.
        0x30 => (Verdict::Legal, None),
        // ATC_INV; PRI_RESP; RESUME, STALL_TERM.
        0x40 => only_with(identity.ats(), Some(AcceptsForeignCommands)),
        0x41 => only_with(identity.pri(), Some(AcceptsForeignCommands)),
        0x44 | 0x45 => only_with(identity.stalls(), Some(AcceptsForeignCommands)),
        // SYNC.
        0x46 => match low >> 12 & 3 {
            3 => (Verdict::Illegal, Some(AcceptsReservedSignal)),
            _ => (Verdict::Legal, None),
        },
        // TLBI_S_* of the Secure queue, DPTI_*, and what no version defines.
        _ => (Verdict::Illegal, None),
    }
}

/// What the range fields make of an invalidation by address (section 4.4.1.1).
fn range(low: u64, high: u64, identity: Identity) -> Verdict {
    let (granule, level) = (high >> 10 & 3, high >> 8 & 3);
    let (number, scale) = (low >> 12 & 0x1f, low >> 20 & 0x1f);
    if !identity.ranges() || granule == 0 {
        return Verdict::Legal;
    }
    match (granule, level) {
        _ if number != 0 || scale != 0 => Verdict::Legal,
        // One granule and no hint is reserved; so is a hint of level 1 for 16 KiB, with whatever it means.
        (_, 0) => Verdict::Illegal,
        (2, 1) => Verdict::Unpredictable,
        _ => Verdict::Legal,
    }
}
