//! One virtual CPU on its physical CPU: traps, EL1 state, entry, exit and injected exceptions.
//!
//! Every virtual CPU has a physical CPU of its own, so its EL1 registers stay where they are while EL2 runs;
//! only the general registers are saved.

use core::arch::asm;

use crate::arch::sysreg::{self, isb, read, write};
use crate::arch::{idregs as hardware, timer};

/// The registers that an exit saves. The layout is known to `vectors.S`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct GuestRegisters {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Where the guest goes on.
    pub elr: u64,
    /// With which PSTATE.
    pub spsr: u64,
}

/// Why guest code was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An instruction of the guest needs EL2.
    Synchronous {
        /// `ESR_EL2`.
        esr: u64,
        /// `FAR_EL2`.
        far: u64,
        /// `HPFAR_EL2`.
        hpfar: u64,
    },
    /// An instruction of the guest needed EL2, but the guest has changed the translation of its address since.
    Stale,
    /// A physical interrupt is pending.
    Interrupt,
    /// A device answered an access of the guest with an asynchronous error.
    SystemError,
}

unsafe extern "C" {
    fn enter_guest(registers: *mut GuestRegisters) -> u64;
    fn forget_system_error();
    fn reset_vectors();
    fn reset_breakpoints(count: u64);
    fn reset_watchpoints(count: u64);
}

/// Runs guest code until it needs EL2.
pub fn enter(registers: &mut GuestRegisters) -> Exit {
    // SAFETY: the guest runs at EL1 under stage 2, which maps none of EL2's memory; the routine keeps every
    // callee-saved register and touches memory only at `registers` and on this stack.
    let kind = unsafe { enter_guest(registers) };
    match kind {
        0 => {
            let (esr, far) = (sysreg::esr_el2(), sysreg::far_el2());
            match fault_page(esr, far) {
                Some(hpfar) => Exit::Synchronous { esr, far, hpfar },
                None => Exit::Stale,
            }
        }
        1 => Exit::Interrupt,
        _ => Exit::SystemError,
    }
}

read!(par_el1, "par_el1");
write!(par_el1_write, "par_el1");

/// The page of a stage-2 abort in the form of `HPFAR_EL2`, which itself is unknown after a permission fault unless that
/// was a stage-1 walk's (Arm ARM, D19.2.61): then stage 1 is walked once more. `None` if it does not lead there any more.
fn fault_page(esr: u64, far: u64) -> Option<u64> {
    const STAGE1_WALK: u64 = 1 << 7;
    const PERMISSION: u64 = 0b11;
    let abort = matches!(esr >> 26 & 0x3f, 0x20 | 0x24);
    if !abort || esr & STAGE1_WALK != 0 || esr >> 2 & 0xf != PERMISSION {
        return Some(sysreg::hpfar_el2());
    }
    let guests = par_el1();
    // SAFETY: a translation of the guest's own regime, which changes nothing but PAR_EL1.
    unsafe { asm!("at s1e1r, {}", "isb", in(reg) far, options(nostack, preserves_flags)) };
    let par = par_el1();
    par_el1_write(guests);
    (par & 1 == 0).then_some((par >> 12 & 0xff_ffff_ffff) << 4)
}

write!(hcr_el2, "hcr_el2");
write!(hcrx_el2, "s3_4_c1_c2_2");
write!(hfgrtr_el2, "s3_4_c1_c1_4");
write!(hfgwtr_el2, "s3_4_c1_c1_5");
write!(hfgitr_el2, "s3_4_c1_c1_6");
write!(hdfgrtr_el2, "s3_4_c3_c1_4");
write!(hdfgwtr_el2, "s3_4_c3_c1_5");
write!(cptr_el2, "cptr_el2");
write!(hstr_el2, "hstr_el2");
write!(mdcr_el2, "mdcr_el2");
write!(vtcr_el2, "vtcr_el2");
write!(vpidr_el2, "vpidr_el2");
write!(vmpidr_el2, "vmpidr_el2");
read!(mdcr_el2_read, "mdcr_el2");
read!(id_aa64mmfr1_el1, "id_aa64mmfr1_el1");

/// What a guest may not do without EL2 (Arm ARM, D19.2.48).
const HCR: u64 = 1 // VM: stage 2
    | 1 << 1 // SWIO: set/way invalidation cleans first
    | 1 << 2 // PTW: no stage-1 walk on device memory
    | 1 << 3 | 1 << 4 | 1 << 5 // FMO, IMO, AMO: physical interrupts and errors are EL2's
    | 1 << 9 | 1 << 10 // FB, BSU: its maintenance reaches its other CPUs
    | 1 << 18 // TID3: identification registers
    | 1 << 19 // TSC: SMC, or it would reach the firmware
    | 1 << 20 | 1 << 21 // TIDCP, TACR: implementation-defined registers
    | 1 << 31 // RW: EL1 is AArch64
    | 1 << 35 // TLOR: limited ordering regions
    | 1 << 36 // TERR: error records
    | 1 << 40 | 1 << 41; // APK, API: pointer authentication is the guest's own

/// TVM: EL1's writes of its translation controls.
const HCR_TVM: u64 = 1 << 26;
/// `HFGWTR_EL2.SCTLR_EL1`: writes of that register only.
const HFGWTR_SCTLR: u64 = 1 << 29;

/// Trace, SVE, SME and activity monitors trap; FP and Advanced SIMD do not (Arm ARM, `CPTR_EL2` with E2H=0).
const CPTR: u64 = 0x33ff | 1 << 20 | 1 << 30;
/// Performance monitors, statistical profiling and trace trap; `HPMN` is kept (Arm ARM, `MDCR_EL2`).
const MDCR: u64 = 1 << 5 | 1 << 6 | 1 << 14 | 1 << 19;
const MDCR_HPMN: u64 = 0x1f;

/// Whether single system registers can trap (FEAT_FGT).
pub fn has_fine_grained_traps() -> bool {
    sysreg::id_aa64mmfr0_el1() >> 56 & 0xf != 0
}

/// Sets this CPU's traps and stage-2 regime, once for its virtual CPU `index`. `vtcr` and `vttbr` describe the CPU root.
pub fn configure(index: usize, vtcr: u64, vttbr: u64) {
    if has_fine_grained_traps() {
        hfgrtr_el2(0);
        hfgwtr_el2(HFGWTR_SCTLR);
        hfgitr_el2(0);
        hdfgrtr_el2(0);
        hdfgwtr_el2(0);
    }
    if id_aa64mmfr1_el1() >> 40 & 0xf != 0 {
        hcrx_el2(0);
    }
    // Stage 2 is described before it is switched on: the CPU may walk it ahead of any guest.
    vtcr_el2(vtcr);
    crate::arch::tlb::vttbr_el2_write(vttbr);
    isb();
    hcr_el2(HCR);
    cptr_el2(CPTR);
    hstr_el2(0);
    mdcr_el2(mdcr_el2_read() & MDCR_HPMN | MDCR);
    vpidr_el2(sysreg::midr_el1());
    vmpidr_el2(1 << 31 | index as u64);
    // The guest's own timers; physical counter and timer need no trap either, nobody shares this CPU.
    timer::cnthctl_write(0b11);
    timer::cntvoff_write(0);
    isb();
}

/// Lets every write of the guest's translation controls trap on this CPU, or none. Where `SCTLR_EL1` traps alone, that is
/// needed only to see what follows when the guest has switched its MMU off.
pub fn trap_translation_controls(on: bool) {
    hcr_el2(if on { HCR | HCR_TVM } else { HCR });
    isb();
}

/// Whether the guest's stage 1 is on.
pub fn mmu_is_on() -> bool {
    sctlr_el1() & SCTLR_M != 0
}

/// `SCTLR_EL1.M`: stage 1 is on.
pub const SCTLR_M: u64 = 1;

/// Whether the data accesses of the guest code that left `registers` are big-endian (`SCTLR_EL1.EE`, `E0E`).
pub fn is_big_endian(registers: &GuestRegisters) -> bool {
    const E0E: u32 = 24;
    const EE: u32 = 25;
    /// `M[3:2]` of a PSTATE: the exception level.
    const LEVEL: u64 = 3 << 2;
    sctlr_el1() >> if registers.spsr & LEVEL == 0 { E0E } else { EE } & 1 != 0
}

macro_rules! controls {
    ($register:expr, $value:expr, [$($place:pat => $name:literal),* $(,)?]) => {
        match $register {
            $($place => {
                // SAFETY: an EL1 register, which governs only the guest, whose own write this is.
                unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) $value, options(nomem, nostack, preserves_flags)) };
                true
            })*
            _ => false,
        }
    };
}

/// Carries out the guest's write of one of its translation controls, named as in a syndrome: (Op0, Op1, CRn, CRm, Op2).
/// Returns whether it is one (Arm ARM, `HCR_EL2.TVM`).
pub fn write_translation_control(register: (u8, u8, u8, u8, u8), value: u64) -> bool {
    controls!(register, value, [
        (3, 0, 2, 0, 0) => "ttbr0_el1",
        (3, 0, 2, 0, 1) => "ttbr1_el1",
        (3, 0, 1, 0, 0) => "sctlr_el1",
        (3, 0, 2, 0, 2) => "tcr_el1",
        (3, 0, 5, 1, 0) => "afsr0_el1",
        (3, 0, 5, 1, 1) => "afsr1_el1",
        (3, 0, 5, 2, 0) => "esr_el1",
        (3, 0, 6, 0, 0) => "far_el1",
        (3, 0, 10, 2, 0) => "mair_el1",
        (3, 0, 10, 3, 0) => "amair_el1",
        (3, 0, 13, 0, 1) => "contextidr_el1",
    ])
}

macro_rules! reset_registers {
    ($($register:literal = $value:expr),* $(,)?) => {
        $(
            // SAFETY: an EL1 register, which governs only the guest that is about to start.
            unsafe { asm!(concat!("msr ", $register, ", {}"), in(reg) $value as u64, options(nomem, nostack, preserves_flags)) };
        )*
    };
}

/// Puts this CPU's EL1 and EL0 state where a cold boot has it, and returns registers that start at `entry` with
/// `argument` in x0: EL1, MMU off, everything masked.
pub fn reset(entry: u64, argument: u64) -> GuestRegisters {
    reset_registers! {
        "sctlr_el1" = 0x30d0_0800u64,
        "cpacr_el1" = 0, "ttbr0_el1" = 0, "ttbr1_el1" = 0, "tcr_el1" = 0, "mair_el1" = 0, "amair_el1" = 0,
        "contextidr_el1" = 0, "tpidr_el0" = 0, "tpidr_el1" = 0, "tpidrro_el0" = 0, "vbar_el1" = 0,
        "esr_el1" = 0, "far_el1" = 0, "afsr0_el1" = 0, "afsr1_el1" = 0, "par_el1" = 0, "elr_el1" = 0, "spsr_el1" = 0,
        "sp_el0" = 0, "sp_el1" = 0, "csselr_el1" = 0, "mdscr_el1" = 0, "oslar_el1" = 0, "osdlr_el1" = 0,
        "mdccint_el1" = 0, "dbgclaimclr_el1" = 0xff,
    }
    reset_optional();
    reset_timers();
    let mut registers =
        GuestRegisters { elr: entry, spsr: SPSR_MASKED | SPSR_EL1H, ..Default::default() };
    registers.x[0] = argument;
    registers
}

/// Zeroes the registers of features that this CPU has and guests may use.
fn reset_optional() {
    let debug = hardware::read(5, 0); // ID_AA64DFR0_EL1
    // SAFETY: registers of the guest that is about to start, as many as there are; code built for soft floating
    // point uses no vector register, and the routines touch no memory. What an SError wanted to say was the guest's
    // that ended.
    unsafe {
        forget_system_error();
        reset_vectors();
        reset_breakpoints((debug >> 12 & 0xf) + 1);
        reset_watchpoints((debug >> 20 & 0xf) + 1);
    }
    let (isar1, isar2) = (hardware::read(6, 1), hardware::read(6, 2));
    // APA and API; APA3.
    if isar1 & 0xff0 != 0 || isar2 >> 12 & 0xf != 0 {
        reset_registers! {
            "s3_0_c2_c1_0" = 0, "s3_0_c2_c1_1" = 0, "s3_0_c2_c1_2" = 0, "s3_0_c2_c1_3" = 0, // APIA, APIB
            "s3_0_c2_c2_0" = 0, "s3_0_c2_c2_1" = 0, "s3_0_c2_c2_2" = 0, "s3_0_c2_c2_3" = 0, // APDA, APDB
        }
    }
    // GPA and GPI; GPA3.
    if isar1 & 0xff00_0000 != 0 || isar2 >> 8 & 0xf != 0 {
        reset_registers! { "s3_0_c2_c3_0" = 0, "s3_0_c2_c3_1" = 0 } // APGA
    }
    // RAS: what a guest left in its DISR_EL1, which AMO makes this one.
    if hardware::read(4, 0) >> 28 & 0xf != 0 {
        reset_registers! { "s3_4_c12_c1_1" = 0 } // VDISR_EL2
    }
}

const SPSR_MASKED: u64 = 0b1111 << 6;
const SPSR_EL1H: u64 = 0b0101;
const SPSR_MODE: u64 = 0b1111;
const SPSR_AARCH32: u64 = 1 << 4;
const SPSR_KEPT: u64 = 0xf << 28 | 1 << 24 | 1 << 22; // NZCV, DIT, PAN
const SPSR_PAN: u64 = 1 << 22;
const SPSR_STEP: u64 = 1 << 21;
const SPSR_BRANCH_TYPE: u64 = 0b11 << 10;
const SPSR_SSBS: u64 = 1 << 12;

read!(sctlr_el1, "sctlr_el1");
read!(vbar_el1, "vbar_el1");
write!(esr_el1, "esr_el1");
write!(far_el1, "far_el1");
write!(elr_el1, "elr_el1");
write!(spsr_el1, "spsr_el1");

/// Makes the guest take a synchronous exception at EL1 with `esr`, as the Arm ARM's `AArch64.TakeException` would.
fn inject(registers: &mut GuestRegisters, esr: u64) {
    let spsr = registers.spsr;
    let offset = match spsr & (SPSR_AARCH32 | SPSR_MODE) {
        mode if mode & SPSR_AARCH32 != 0 => 0x600,
        0b0000 => 0x400,
        0b0100 => 0x000,
        _ => 0x200,
    };
    let sctlr = sctlr_el1();
    let mut next = spsr & SPSR_KEPT | SPSR_MASKED | SPSR_EL1H;
    if spsr & SPSR_AARCH32 != 0 {
        next &= !(1 << 24); // bit 24 means something else there
    }
    if id_aa64mmfr1_el1() >> 20 & 0xf != 0 && sctlr & 1 << 23 == 0 {
        next |= SPSR_PAN;
    }
    if sctlr & 1 << 44 != 0 {
        next |= SPSR_SSBS;
    }
    elr_el1(registers.elr);
    spsr_el1(spsr);
    esr_el1(esr);
    // Bits 10:0 are RES0, and hold what the guest wrote on some CPUs.
    registers.elr = vbar_el1() & !0x7ff | offset;
    registers.spsr = next;
}

/// Whether the guest was at EL1 when it left.
fn at_el1(registers: &GuestRegisters) -> bool {
    registers.spsr & SPSR_AARCH32 == 0 && registers.spsr & 0b1100 == 0b0100
}

/// Answers the instruction that trapped with an undefined-instruction exception.
pub fn inject_undefined(registers: &mut GuestRegisters) {
    inject(registers, 1 << 25);
}

/// Answers the access that trapped with a synchronous external abort, which is what a bus does where nobody answers.
/// `esr` and `far` are those of the stage-2 abort.
pub fn inject_external_abort(registers: &mut GuestRegisters, esr: u64, far: u64) {
    const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
    const EXTERNAL: u64 = 0x10;
    const KEPT: u64 = 1 << 25 | 1 << 8 | 1 << 6; // IL, CM, WnR
    let class = if esr >> 26 & 0x3f == INSTRUCTION_ABORT_LOWER { 0x20 } else { 0x24 };
    let same = u64::from(at_el1(registers));
    far_el1(far);
    inject(registers, (class + same) << 26 | esr & KEPT | EXTERNAL);
}

/// Steps over the instruction that trapped.
pub fn skip(registers: &mut GuestRegisters, esr: u64) {
    registers.elr = registers.elr.wrapping_add(if esr & 1 << 25 != 0 { 4 } else { 2 });
    if registers.spsr & SPSR_AARCH32 == 0 {
        // The instruction is over: so are its software step and what a branch said about its target.
        registers.spsr &= !(SPSR_STEP | SPSR_BRANCH_TYPE);
    }
}

/// Puts this CPU's guest timers where a cold boot has them: they interrupt no more.
pub fn reset_timers() {
    reset_registers! {
        "cntkctl_el1" = 0,
        "cntp_ctl_el0" = 0, "cntv_ctl_el0" = 0, "cntp_cval_el0" = 0, "cntv_cval_el0" = 0,
    }
    isb();
}
