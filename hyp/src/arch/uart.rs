//! The physical PL011s.

use core::ptr::NonNull;

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use smmu::addr::Pa;

/// Takes the PL011 at `base`.
///
/// # Panics
///
/// If `base` is 0.
pub fn take(base: Pa) -> Uart<'static> {
    let registers = NonNull::new(base.raw() as *mut PL011Registers).expect("no UART is at 0");
    // SAFETY: `start` maps each UART of the device tree as Device memory before it takes it, once.
    Uart::new(unsafe { UniqueMmioPointer::new(registers) })
}

/// Takes the PL011 at `base` for people, and for a panic's last words.
pub fn install_console(base: Pa) {
    crate::console::CONSOLE.install(take(base));
    // SAFETY: the UART just taken stays mapped.
    unsafe { crate::arch::fatal::set_console(base) };
}
