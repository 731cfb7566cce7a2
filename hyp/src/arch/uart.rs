//! The physical PL011s.

use core::ptr::NonNull;

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use smmu::addr::Pa;

/// Takes the PL011 at `base`.
///
/// # Safety
///
/// A PL011 is mapped as Device memory at `base` for the rest of the run, and this is the only call for it.
///
/// # Panics
///
/// If `base` is 0.
pub unsafe fn take(base: Pa) -> Uart<'static> {
    let registers = NonNull::new(base.raw() as *mut PL011Registers).expect("no UART is at 0");
    // SAFETY: the caller's promise.
    Uart::new(unsafe { UniqueMmioPointer::new(registers) })
}

/// Takes the PL011 at `base` for people, and for a panic's last words.
pub fn install_console(base: Pa) {
    // SAFETY: `start` has mapped the console that the device tree names, once, before this.
    unsafe {
        crate::console::CONSOLE.install(take(base));
        crate::arch::fatal::set_console(base);
    }
}
