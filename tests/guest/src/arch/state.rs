//! What a CPU remembers beside its general registers, and what the next owner of it must not find.

use core::arch::asm;

/// A register: its name, how to read it, and how to leave something in it that changes nothing here.
pub struct Register {
    /// Its name.
    pub name: &'static str,
    /// Reads it.
    pub read: fn() -> u64,
    /// Leaves something in it.
    pub soil: fn(),
}

macro_rules! registers {
    ($($name:literal = $register:literal: $value:literal;)*) => {
        [$(Register {
            name: $name,
            read: {
                fn read() -> u64 {
                    let value;
                    // SAFETY: reading a system register has no effect on memory.
                    unsafe { asm!("isb", ".arch_extension fp", concat!("mrs {}, ", $register), out(reg) value, options(nostack)) }
                    value
                }
                read
            },
            soil: {
                fn soil() {
                    // SAFETY: each value below leaves translation, exceptions and debug as they are.
                    unsafe { asm!(".arch_extension fp", concat!("msr ", $register, ", {}"), "isb", in(reg) $value as u64, options(nostack)) }
                }
                soil
            },
        }),*]
    };
}

/// Registers of every CPU that the runtime does not use, zero at a cold boot. Of breakpoints and watchpoints everything but
/// the enable bit is set.
pub const EVERYWHERE: [Register; 22] = registers! {
    "tpidr-el0" = "tpidr_el0": 0x1111_2222_3333_4444; "tpidrro-el0" = "tpidrro_el0": 0x2222_3333_4444_5555;
    "contextidr" = "contextidr_el1": 0x5a5a; "ttbr1" = "ttbr1_el1": 0x1234_5000;
    "par" = "par_el1": 0x1; "afsr0" = "afsr0_el1": 0; "amair" = "amair_el1": 0;
    "csselr" = "csselr_el1": 0x1; "cntkctl" = "cntkctl_el1": 0x3;
    "cntp-cval" = "cntp_cval_el0": 0x7fff_ffff_ffff_ffff; "cntv-cval" = "cntv_cval_el0": 0x7fff_ffff_ffff_ffff;
    "mdscr" = "mdscr_el1": 0x1000; "mdccint" = "mdccint_el1": 0;
    "dbgbvr0" = "dbgbvr0_el1": 0x4567_8900; "dbgbcr0" = "dbgbcr0_el1": 0x1e6;
    "dbgbvr1" = "dbgbvr1_el1": 0x5678_9000; "dbgbcr1" = "dbgbcr1_el1": 0x1e6;
    "dbgwvr0" = "dbgwvr0_el1": 0x6789_0000; "dbgwcr0" = "dbgwcr0_el1": 0x1ffe;
    "dbgwvr1" = "dbgwvr1_el1": 0x7890_0000;
    "fpcr" = "fpcr": 0x0300_0000; "fpsr" = "fpsr": 0x1f;
};

/// Keys of pointer authentication, where there is any.
pub const POINTER_AUTHENTICATION: [Register; 10] = registers! {
    "apia-low" = "s3_0_c2_c1_0": 0x1111_1111_1111_1111; "apia-high" = "s3_0_c2_c1_1": 0x2222_2222_2222_2222;
    "apib-low" = "s3_0_c2_c1_2": 0x3333_3333_3333_3333; "apib-high" = "s3_0_c2_c1_3": 0x4444_4444_4444_4444;
    "apda-low" = "s3_0_c2_c2_0": 0x5555_5555_5555_5555; "apda-high" = "s3_0_c2_c2_1": 0x6666_6666_6666_6666;
    "apdb-low" = "s3_0_c2_c2_2": 0x7777_7777_7777_7777; "apdb-high" = "s3_0_c2_c2_3": 0x8888_8888_8888_8888;
    "apga-low" = "s3_0_c2_c3_0": 0x9999_9999_9999_9999; "apga-high" = "s3_0_c2_c3_1": 0xaaaa_aaaa_aaaa_aaaa;
};

/// Reads the vector registers, two words each.
pub fn vectors() -> [u64; 64] {
    let mut words = [0_u64; 64];
    // SAFETY: writes 512 bytes at `words`.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "stp q0, q1, [{0}]", "stp q2, q3, [{0}, #32]", "stp q4, q5, [{0}, #64]", "stp q6, q7, [{0}, #96]",
            "stp q8, q9, [{0}, #128]", "stp q10, q11, [{0}, #160]", "stp q12, q13, [{0}, #192]",
            "stp q14, q15, [{0}, #224]", "stp q16, q17, [{0}, #256]", "stp q18, q19, [{0}, #288]",
            "stp q20, q21, [{0}, #320]", "stp q22, q23, [{0}, #352]", "stp q24, q25, [{0}, #384]",
            "stp q26, q27, [{0}, #416]", "stp q28, q29, [{0}, #448]", "stp q30, q31, [{0}, #480]",
            in(reg) words.as_mut_ptr(), options(nostack)
        );
    }
    core::hint::black_box(words)
}

/// Writes the vector registers.
pub fn set_vectors(words: &[u64; 64]) {
    // SAFETY: reads 512 bytes at `words`; soft floating point leaves the vector registers to us.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "ldp q0, q1, [{0}]", "ldp q2, q3, [{0}, #32]", "ldp q4, q5, [{0}, #64]", "ldp q6, q7, [{0}, #96]",
            "ldp q8, q9, [{0}, #128]", "ldp q10, q11, [{0}, #160]", "ldp q12, q13, [{0}, #192]",
            "ldp q14, q15, [{0}, #224]", "ldp q16, q17, [{0}, #256]", "ldp q18, q19, [{0}, #288]",
            "ldp q20, q21, [{0}, #320]", "ldp q22, q23, [{0}, #352]", "ldp q24, q25, [{0}, #384]",
            "ldp q26, q27, [{0}, #416]", "ldp q28, q29, [{0}, #448]", "ldp q30, q31, [{0}, #480]",
            in(reg) words.as_ptr(), options(nostack, readonly)
        );
    }
}
