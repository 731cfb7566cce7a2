//! Instructions that hardly any driver uses, each on its own: what a hostile guest would try.
//!
//! All are meant to run inside [`super::exception::catch`].

use core::arch::asm;

use super::state;

/// An instruction that works on memory at an address.
pub type Access = (&'static str, fn(u64));
/// A system register and how it is read.
pub type Register = (&'static str, fn() -> u64);
/// An instruction without operands.
pub type Instruction = (&'static str, fn());

/// Reads the identification register (CRm, Op2): Op0=3, Op1=0, CRn=0.
pub struct Identification {
    /// CRm.
    pub crm: u8,
    /// Op2.
    pub op2: u8,
    /// Reads it.
    pub read: fn() -> u64,
}

macro_rules! accesses {
    ($($name:literal: $($line:literal),+;)*) => {
        [$(($name, {
            fn access(address: u64) {
                // SAFETY: `refuse_own` keeps it away from Rust objects; w2 to w5 are scratch, the base may move.
                unsafe {
                    asm!($($line),+, inout("x1") address => _, out("x2") _, out("x3") _, out("x4") _,
                        out("x5") _, options(nostack));
                }
            }
            fn checked(address: u64) {
                super::mem::refuse_own(address);
                access(address);
            }
            checked as fn(u64)
        })),*]
    };
}

/// Accesses whose syndrome does not say what they do (`ISV=0`).
pub const WITHOUT_SYNDROME: [Access; 10] = accesses! {
    "store-post-index": "mov x2, xzr", "str w2, [x1], #4";
    "load-post-index": "ldr w2, [x1], #4";
    "store-pre-index": "mov x2, xzr", "str w2, [x1, #4]!";
    "load-pre-index": "ldr w2, [x1, #4]!";
    "store-pair": "mov x2, xzr", "stp w2, w2, [x1]";
    "load-pair": "ldp w2, w3, [x1]";
    "load-pair-64": "ldp x2, x3, [x1]";
    "load-exclusive": "ldxr w2, [x1]";
    "load-vector": ".inst 0x3dc00022"; // ldr q2, [x1]
    "store-vector": ".inst 0x3d800022"; // str q2, [x1]
};

/// The same, on memory that stage 1 calls Normal.
pub const ON_NORMAL_MEMORY: [Access; 1] = accesses! {
    "zero-cache-line": "dc zva, x1";
};

/// Unusual accesses that must work as usual on an emulated register.
pub const WITH_SYNDROME: [Access; 5] = accesses! {
    "load-acquire": "ldar w2, [x1]";
    "load-signed": "ldrsw x2, [x1]";
    "load-zero-register": "ldr wzr, [x1]";
    "load-unscaled": "add x1, x1, #4", "ldur w2, [x1, #-4]";
    "prefetch": "prfm pldl1keep, [x1]";
};

/// Accesses wider or less aligned than what they hit: any answer will do, as long as there is one.
pub const MISALIGNED: [Access; 6] = accesses! {
    "load-16-at-1": "ldrh w2, [x1, #1]";
    "load-32-at-2": "add x1, x1, #2", "ldr w2, [x1]";
    "load-64-at-1": "add x1, x1, #1", "ldr x2, [x1]";
    "store-32-at-3": "mov x2, xzr", "add x1, x1, #3", "str w2, [x1]";
    "store-64-at-4": "mov x2, xzr", "add x1, x1, #4", "str x2, [x1]";
    "load-across-pages": "orr x1, x1, #0xfff", "sub x1, x1, #1", "ldr w2, [x1]";
};

macro_rules! registers {
    ($($name:literal = $register:expr;)*) => {
        [$(($name, {
            fn read() -> u64 {
                let value;
                // SAFETY: reading a system register has no effect on memory.
                unsafe { asm!("mov {0}, xzr", concat!("mrs {0}, ", $register), out(reg) value, options(nostack)) }
                value
            }
            read as fn() -> u64
        })),*]
    };
}

/// Registers that every CPU has, whatever traps them.
pub const PRESENT: [Register; 27] = registers! {
    "midr" = "midr_el1"; "mpidr" = "mpidr_el1"; "revidr" = "revidr_el1";
    "ctr" = "ctr_el0"; "dczid" = "dczid_el0"; "clidr" = "clidr_el1"; "ccsidr" = "ccsidr_el1";
    "aidr" = "aidr_el1"; "csselr" = "csselr_el1"; "actlr" = "actlr_el1";
    "cntpct" = "cntpct_el0"; "cntp-ctl" = "cntp_ctl_el0"; "cntp-tval" = "cntp_tval_el0";
    "cntkctl" = "cntkctl_el1"; "mdscr" = "mdscr_el1"; "oslsr" = "oslsr_el1"; "dbgbvr0" = "dbgbvr0_el1";
    "dbgbcr0" = "dbgbcr0_el1"; "dbgwvr0" = "dbgwvr0_el1"; "mdccsr" = "mdccsr_el0";
    "icc-ctlr" = "S3_0_C12_C12_4"; "icc-sre" = "S3_0_C12_C12_5"; "icc-igrpen0" = "S3_0_C12_C12_6";
    "icc-bpr0" = "S3_0_C12_C8_3"; "icc-hppir1" = "S3_0_C12_C12_2"; "icc-rpr" = "S3_0_C12_C11_3";
    "icc-ap1r0" = "S3_0_C12_C9_0";
};

type Exchange = (&'static str, fn(u64) -> (u64, u64));

macro_rules! exchanges {
    ($($name:literal = $register:literal;)*) => {
        [$(($name, {
            fn exchange(value: u64) -> (u64, u64) {
                let (old, seen);
                // SAFETY: the register holds what it held when this is over, and in between either the same or what
                // no exception and no translation of this runtime uses: interrupts are masked, TTBR1 is not walked.
                unsafe {
                    asm!(
                        "mrs {saved}, daif", "msr daifset, #0xf",
                        concat!("mrs {old}, ", $register),
                        "cmp {new}, #0", "csel {new}, {old}, {new}, eq",
                        concat!("msr ", $register, ", {new}"), "isb",
                        concat!("mrs {seen}, ", $register),
                        concat!("msr ", $register, ", {old}"), "isb",
                        "msr daif, {saved}",
                        saved = out(reg) _, old = out(reg) old, seen = out(reg) seen,
                        new = inout(reg) value => _,
                        options(nostack),
                    )
                }
                (old, seen)
            }
            exchange as fn(u64) -> (u64, u64)
        })),*]
    };
}

/// Controls of stage 1 that anything can be written to: what each is written with for a moment, or, if that is 0, with
/// what it held; returns what it held and what it read as then.
pub const UNUSED_CONTROLS: [Exchange; 4] = exchanges! {
    "ttbr1" = "ttbr1_el1"; "esr" = "esr_el1"; "far" = "far_el1"; "contextidr" = "contextidr_el1";
};

/// The others.
pub const CONTROLS: [Exchange; 7] = exchanges! {
    "sctlr" = "sctlr_el1"; "ttbr0" = "ttbr0_el1"; "tcr" = "tcr_el1"; "mair" = "mair_el1"; "amair" = "amair_el1";
    "afsr0" = "afsr0_el1"; "afsr1" = "afsr1_el1";
};

/// Registers of features that a guest does not have, and of levels above it.
pub const ABSENT: [Register; 36] = registers! {
    "pmcr" = "S3_3_C9_C12_0"; "pmccntr" = "S3_3_C9_C13_0"; "pmcntenset" = "S3_3_C9_C12_1";
    "pmuserenr" = "S3_3_C9_C14_0"; "pmccfiltr" = "S3_3_C14_C15_7"; "pmevcntr0" = "S3_3_C14_C8_0";
    "zcr" = "S3_0_C1_C2_0"; "smcr" = "S3_0_C1_C2_6"; "svcr" = "S3_3_C4_C2_2"; "tpidr2" = "S3_3_C13_C0_5";
    "pmscr" = "S3_0_C9_C9_0"; "pmblimitr" = "S3_0_C9_C10_0"; "trblimitr" = "S3_0_C9_C11_0";
    "trfcr" = "S3_0_C1_C2_1"; "trcprgctlr" = "S2_1_C0_C1_0";
    "amcr" = "S3_3_C13_C2_0"; "mpam1" = "S3_0_C10_C5_0"; "mpamidr" = "S3_0_C10_C4_4";
    "erridr" = "S3_0_C5_C3_0"; "erxstatus" = "S3_0_C5_C4_2";
    "gcr" = "S3_0_C1_C0_6"; "rgsr" = "S3_0_C1_C0_5"; "tfsr" = "S3_0_C5_C6_0";
    "lorc" = "S3_0_C10_C4_3"; "scxtnum" = "S3_0_C13_C0_7"; "tcr2" = "S3_0_C2_C0_3"; "pir" = "S3_0_C10_C2_2";
    "hcr-el2" = "S3_4_C1_C1_0"; "vttbr-el2" = "S3_4_C2_C1_0"; "vbar-el2" = "S3_4_C12_C0_0";
    "ich-lr0-el2" = "S3_4_C12_C12_0"; "ich-hcr-el2" = "S3_4_C12_C11_0"; "sp-el1" = "S3_4_C4_C1_0";
    "cnthctl-el2" = "S3_4_C14_C1_0"; "sctlr-el12" = "S3_5_C1_C0_0"; "scr-el3" = "S3_6_C1_C1_0";
};

/// Implementation-defined registers: there or not, but never EL2's.
pub const IMPLEMENTATION_DEFINED: [Register; 4] = registers! {
    "impdef-0-c15" = "S3_0_C15_C0_0"; "impdef-1-c15" = "S3_1_C15_C2_0"; "impdef-1-c11" = "S3_1_C11_C0_2";
    "impdef-7-c15" = "S3_7_C15_C0_0";
};

macro_rules! identification {
    ($($crm:literal)*) => { [$(identification!(@row $crm 0), identification!(@row $crm 1),
        identification!(@row $crm 2), identification!(@row $crm 3), identification!(@row $crm 4),
        identification!(@row $crm 5), identification!(@row $crm 6), identification!(@row $crm 7)),*] };
    (@row $crm:literal $op2:literal) => {
        Identification {
            crm: $crm,
            op2: $op2,
            read: registers! { "" = concat!("S3_0_C0_C", $crm, "_", $op2); }[0].1,
        }
    };
}

/// The identification registers, reserved ones included: those read as zero.
pub const IDENTIFICATION: [Identification; 56] = identification! { 1 2 3 4 5 6 7 };

macro_rules! instructions {
    ($($name:literal: $($line:literal),+;)*) => {
        [$(($name, {
            fn run() {
                // SAFETY: each either is undefined, or maintains caches and translations that are coherent
                // anyway, or writes a register with the value it has or one that changes nothing here.
                unsafe { asm!($($line),+, "isb", out("x1") _, options(nostack)) }
            }
            run as fn()
        })),*]
    };
}

/// Instructions that every EL1 may use, whatever traps them.
pub const ALLOWED: [Instruction; 30] = instructions! {
    "tlbi-vmalle1": "tlbi vmalle1", "dsb nsh";
    "tlbi-vmalle1is": "tlbi vmalle1is", "dsb ish";
    "tlbi-aside1is": "mov x1, xzr", "tlbi aside1is, x1", "dsb ish";
    "tlbi-vaae1is": "mov x1, xzr", "tlbi vaae1is, x1", "dsb ish";
    "ic-iallu": "ic iallu", "dsb nsh";
    "ic-ialluis": "ic ialluis", "dsb ish";
    "dc-cisw": "mov x1, xzr", "dc cisw, x1";
    "dc-csw": "mov x1, xzr", "dc csw, x1";
    "dc-civac": "mov x1, sp", "dc civac, x1";
    "at-s1e1r": "mov x1, sp", "at s1e1r, x1";
    "at-s1e0w": "mov x1, sp", "at s1e0w, x1";
    "sev": "sev"; "wfe": "sevl", "wfe";
    "write-sctlr": "mrs x1, sctlr_el1", "msr sctlr_el1, x1";
    "write-tcr": "mrs x1, tcr_el1", "msr tcr_el1, x1";
    "write-ttbr0": "mrs x1, ttbr0_el1", "msr ttbr0_el1, x1";
    "write-ttbr1": "msr ttbr1_el1, xzr";
    "write-mair": "mrs x1, mair_el1", "msr mair_el1, x1";
    "write-contextidr": "msr contextidr_el1, xzr";
    "write-actlr": "mrs x1, actlr_el1", "msr actlr_el1, x1";
    "write-oslar": "msr oslar_el1, xzr";
    "write-osdlr": "msr osdlr_el1, xzr";
    "write-mdscr": "msr mdscr_el1, xzr";
    "write-dbgbvr0": "msr dbgbvr0_el1, xzr";
    "write-dbgwcr0": "msr dbgwcr0_el1, xzr";
    "write-csselr": "msr csselr_el1, xzr";
    "write-icc-sgi0r": "msr S3_0_C12_C11_7, xzr";
    "write-icc-asgi1r": "msr S3_0_C12_C11_6, xzr";
    "write-icc-igrpen0": "msr S3_0_C12_C12_6, xzr";
    "write-icc-bpr0": "msr S3_0_C12_C8_3, xzr";
};

/// Instructions that EL1 does not have.
pub const FORBIDDEN: [Instruction; 12] = instructions! {
    "udf": "udf #0";
    "hlt-semihosting": "hlt #0xf000";
    "dcps1": "dcps1";
    "tlbi-alle1": "tlbi alle1";
    "tlbi-ipas2e1is": "mov x1, xzr", "tlbi ipas2e1is, x1";
    "tlbi-vmalls12e1": "tlbi vmalls12e1";
    "tlbi-alle2": "tlbi alle2";
    "at-s12e1r": "mov x1, xzr", "at s12e1r, x1";
    "at-s1e2r": "mov x1, xzr", "at s1e2r, x1";
    "write-midr": "msr S3_0_C0_C0_0, xzr";
    "write-hcr-el2": "msr S3_4_C1_C1_0, xzr";
    "rdvl": ".inst 0x04bf5021";
};

/// Jumps to `address` and comes back, by a `ret` there or by the fault.
pub fn execute(address: u64) {
    // SAFETY: nothing is mapped there, so that the fault handler returns to the link register at once; should
    // something answer nevertheless, the guest is lost, which is what the caller is out to learn.
    unsafe { asm!("blr {}", in(reg) address, clobber_abi("C"), options(nostack)) }
}

/// Lets this level use floating point, SVE and SME, as far as they exist.
pub fn enable_vectors() {
    // SAFETY: code built for soft floating point does not use what this enables.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) 0x0333_0000_u64, options(nostack)) }
}

/// Whether all vector registers are after `between` what they were before it.
pub fn vectors_survive(between: impl FnOnce()) -> bool {
    let before: [u64; 64] =
        core::array::from_fn(|index| (index as u64 + 1) * 0x0101_0101_0101_0101);
    state::set_vectors(&before);
    between();
    state::vectors() == before
}

macro_rules! without_mmu {
    ($($instruction:literal),*) => {
        // SAFETY: memory is mapped where it is, and in between nothing accesses any; interrupts are masked.
        unsafe {
            asm!(
                "mrs {daif}, daif", "msr daifset, #0xf",
                "mrs {on}, sctlr_el1", "bic {off}, {on}, #1", "mrs {tables}, ttbr0_el1",
                "dsb sy", "msr sctlr_el1, {off}", "isb", $($instruction,)* "msr sctlr_el1, {on}", "isb",
                "msr daif, {daif}",
                daif = out(reg) _, on = out(reg) _, off = out(reg) _, tables = out(reg) _,
                options(nostack),
            )
        }
    };
}

/// Loads a word at `address` and stores `value` there as big-endian code does. With the MMU off, because its tables are
/// little-endian.
pub fn exchange_big_endian(address: u64, value: u32) -> u32 {
    let loaded;
    // SAFETY: memory is mapped where it is, and in between nothing accesses any but the device at `address`, whose
    // registers the caller may change; interrupts are masked.
    unsafe {
        asm!(
            "mrs {daif}, daif", "msr daifset, #0xf",
            "mrs {on}, sctlr_el1", "bic {big}, {on}, #1", "orr {big}, {big}, #1 << 25",
            "dsb sy", "msr sctlr_el1, {big}", "isb",
            "ldr {loaded:w}, [{at}]", "str {value:w}, [{at}]",
            "msr sctlr_el1, {on}", "isb", "msr daif, {daif}",
            daif = out(reg) _, on = out(reg) _, big = out(reg) _, loaded = out(reg) loaded,
            at = in(reg) address, value = in(reg) value,
            options(nostack),
        )
    }
    loaded
}

/// Switches this CPU's MMU off and on again, as a kernel does that changes its own tables.
pub fn blink_mmu() {
    without_mmu!();
}

/// Likewise as another kernel does, which says where its tables are.
pub fn take_over() {
    without_mmu!("msr ttbr0_el1, {tables}");
}
