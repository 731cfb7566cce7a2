//! Power control (PSCI, DEN 0022).

use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::call::{Conduit, call};
use crate::arch::cpu;

const SYSTEM_OFF: u32 = 0x8400_0008;

static OVER_HVC: AtomicBool = AtomicBool::new(false);

/// Uses `conduit` from now on.
pub fn attach(conduit: Conduit) {
    OVER_HVC.store(conduit == Conduit::Hvc, Ordering::Relaxed);
}

/// The conduit of the device tree.
pub fn conduit() -> Conduit {
    if OVER_HVC.load(Ordering::Relaxed) { Conduit::Hvc } else { Conduit::Smc }
}

/// Switches the machine off.
pub fn system_off() -> ! {
    loop {
        call(conduit(), SYSTEM_OFF, [0; 3]);
        cpu::wait_for_interrupt();
    }
}
