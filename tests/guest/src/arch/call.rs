//! Calls to what runs below: SMC and HVC (SMC Calling Convention, 64-bit registers).

use core::arch::asm;

/// Which instruction makes the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `smc #0`.
    Smc,
    /// `hvc #0`.
    Hvc,
}

macro_rules! call {
    ($instruction:literal, $function:expr, $arguments:expr) => {{
        let mut result = u64::from($function);
        // SAFETY: the callee keeps the calling convention: it changes x0 to x17 only, and memory only where
        // an argument says so; no caller passes the address of a Rust object.
        unsafe {
            asm!(
                $instruction,
                inout("x0") result,
                inout("x1") $arguments[0] => _,
                inout("x2") $arguments[1] => _,
                inout("x3") $arguments[2] => _,
                out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
                out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _,
                out("x16") _, out("x17") _,
                options(nostack)
            );
        }
        result
    }};
}

/// Calls with a number in the instruction that the convention reserves.
pub fn call_with_number(conduit: Conduit) -> u64 {
    match conduit {
        Conduit::Smc => call!("smc #0x1234", 0_u32, [0_u64; 3]),
        Conduit::Hvc => call!("hvc #0x1234", 0_u32, [0_u64; 3]),
    }
}

macro_rules! preserved {
    ($instruction:literal, $function:expr) => {{
        let changed: u64;
        // SAFETY: as above; x4 to x17 are declared as changed.
        unsafe {
            asm!(
                "mov x4, #0x44", "mov x5, #0x55", "mov x6, #0x66", "mov x7, #0x77", "mov x8, #0x88",
                "mov x9, #0x99", "mov x10, #0x10a", "mov x11, #0x11b", "mov x12, #0x12c", "mov x13, #0x13d",
                "mov x14, #0x14e", "mov x15, #0x15f", "mov x16, #0x160", "mov x17, #0x171",
                $instruction,
                "sub x4, x4, #0x44", "sub x5, x5, #0x55", "sub x6, x6, #0x66", "sub x7, x7, #0x77",
                "sub x8, x8, #0x88", "sub x9, x9, #0x99", "sub x10, x10, #0x10a", "sub x11, x11, #0x11b",
                "sub x12, x12, #0x12c", "sub x13, x13, #0x13d", "sub x14, x14, #0x14e",
                "sub x15, x15, #0x15f", "sub x16, x16, #0x160", "sub x17, x17, #0x171",
                "orr x4, x4, x5", "orr x4, x4, x6", "orr x4, x4, x7", "orr x4, x4, x8", "orr x4, x4, x9",
                "orr x4, x4, x10", "orr x4, x4, x11", "orr x4, x4, x12", "orr x4, x4, x13",
                "orr x4, x4, x14", "orr x4, x4, x15", "orr x4, x4, x16", "orr x4, x4, x17",
                inout("x0") u64::from($function) => _, out("x1") _, out("x2") _, out("x3") _,
                out("x4") changed, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
                out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _,
                out("x16") _, out("x17") _,
                options(nostack)
            );
        }
        changed == 0
    }};
}

/// Whether `function` leaves x4 to x17 alone, as version 1.1 of the convention promises.
pub fn preserves_registers(conduit: Conduit, function: u32) -> bool {
    match conduit {
        Conduit::Smc => preserved!("smc #0", function),
        Conduit::Hvc => preserved!("hvc #0", function),
    }
}

/// Calls `function` and returns what came back in `x0`.
pub fn call(conduit: Conduit, function: u32, arguments: [u64; 3]) -> u64 {
    match conduit {
        Conduit::Smc => call!("smc #0", function, arguments),
        Conduit::Hvc => call!("hvc #0", function, arguments),
    }
}
