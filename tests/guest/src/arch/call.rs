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

/// Calls `function` and returns what came back in `x0`.
pub fn call(conduit: Conduit, function: u32, arguments: [u64; 3]) -> u64 {
    match conduit {
        Conduit::Smc => call!("smc #0", function, arguments),
        Conduit::Hvc => call!("hvc #0", function, arguments),
    }
}
