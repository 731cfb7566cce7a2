//! Power control (PSCI 1.1, DEN 0022) as its caller sees it.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::call::{Conduit, call};
use crate::arch::cpu;

/// Function IDs (section 5.1), 64-bit ones where there are two.
pub mod function {
    /// `PSCI_VERSION`.
    pub const VERSION: u32 = 0x8400_0000;
    /// `CPU_SUSPEND`.
    pub const CPU_SUSPEND: u32 = 0xc400_0001;
    /// `CPU_OFF`.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// `CPU_ON`.
    pub const CPU_ON: u32 = 0xc400_0003;
    /// `AFFINITY_INFO`.
    pub const AFFINITY_INFO: u32 = 0xc400_0004;
    /// `SYSTEM_OFF`.
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    /// `SYSTEM_RESET`.
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    /// `PSCI_FEATURES`.
    pub const FEATURES: u32 = 0x8400_000a;
}

/// What a call returns (section 5.2.2).
pub type Status = i32;
/// The call did what it says; also: the CPU is on (`AFFINITY_INFO`).
pub const SUCCESS: Status = 0;
/// `AFFINITY_INFO`: the CPU is off.
pub const OFF: Status = 1;
/// There is no such function.
pub const NOT_SUPPORTED: Status = -1;
/// An argument names nothing that exists.
pub const INVALID_PARAMETERS: Status = -2;
/// The CPU may not go off.
pub const DENIED: Status = -3;
/// The CPU is on.
pub const ALREADY_ON: Status = -4;

static OVER_HVC: AtomicBool = AtomicBool::new(false);

/// Uses `conduit` from now on.
pub fn attach(conduit: Conduit) {
    OVER_HVC.store(conduit == Conduit::Hvc, Ordering::Relaxed);
}

/// Calls a function by the conduit of the device tree.
pub fn psci(function: u32, arguments: [u64; 3]) -> Status {
    let conduit = if OVER_HVC.load(Ordering::Relaxed) { Conduit::Hvc } else { Conduit::Smc };
    call(conduit, function, arguments) as Status
}

/// Says whether the CPU of this affinity is on.
pub fn affinity_info(affinity: u64) -> Status {
    psci(function::AFFINITY_INFO, [affinity, 0, 0])
}

/// Switches the machine off.
pub fn system_off() -> ! {
    loop {
        psci(function::SYSTEM_OFF, [0; 3]);
        cpu::wait_for_interrupt();
    }
}

/// Starts the machine over.
pub fn system_reset() -> ! {
    loop {
        psci(function::SYSTEM_RESET, [0; 3]);
        cpu::wait_for_interrupt();
    }
}
