//! The console: a PL011.

use core::fmt::{self, Write as _};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::arch::mem;

/// Prints one line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => { $crate::console::print_line(format_args!($($argument)*)) };
}

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const FR_TXFF: u32 = 1 << 5;
const LCR_H: u64 = 0x2c;
const LCR_H_FIFO_8BIT: u32 = 0x70;
const IMSC: u64 = 0x38;
const ICR: u64 = 0x44;
const TRANSMIT: u32 = 1 << 5;
const CR: u64 = 0x30;
const CR_ENABLE: u32 = 0x301;

/// Where every machine known so far has it: for what must be said before the device tree was read.
static BASE: AtomicU64 = AtomicU64::new(0x0900_0000);
static BUSY: AtomicBool = AtomicBool::new(false);
static PANICKING: AtomicBool = AtomicBool::new(false);

/// Uses the PL011 at `base` from now on.
pub fn attach(base: u64) {
    BASE.store(base, Ordering::Relaxed);
    mem::write32(base + LCR_H, LCR_H_FIFO_8BIT);
    mem::write32(base + CR, CR_ENABLE);
}

/// Whether the console interrupts when it can take more.
pub fn interrupt_on_transmit(on: bool) {
    mem::write32(BASE.load(Ordering::Relaxed) + IMSC, if on { TRANSMIT } else { 0 });
}

/// Takes the console's interrupt back.
pub fn acknowledge() {
    mem::write32(BASE.load(Ordering::Relaxed) + ICR, TRANSMIT);
}

/// Lets the last line through even if this CPU stopped in the middle of another one.
pub fn panicking() {
    PANICKING.store(true, Ordering::Relaxed);
}

/// Prints one line, never mixed with another CPU's.
pub fn print_line(text: fmt::Arguments<'_>) {
    while BUSY.swap(true, Ordering::Acquire) {
        if PANICKING.load(Ordering::Relaxed) {
            break;
        }
        core::hint::spin_loop();
    }
    let _ = writeln!(Uart(BASE.load(Ordering::Relaxed)), "{text}");
    BUSY.store(false, Ordering::Release);
}

struct Uart(u64);

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

impl Uart {
    fn put(&self, byte: u8) {
        while mem::read32(self.0 + FR) & FR_TXFF != 0 {
            core::hint::spin_loop();
        }
        mem::write32(self.0 + DR, byte.into());
    }
}
