//! The firmware below us: PSCI over SMC.

use crate::arch::fatal;

/// Switches the machine off.
pub fn system_off() -> ! {
    // Nothing is left to do with an error: the streams are closed already.
    let _ = smccc::psci::system_off::<smccc::Smc>();
    fatal::park()
}
