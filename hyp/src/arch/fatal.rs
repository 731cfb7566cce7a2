//! The end of EL2: a broken host invariant. The SMMU stays closed (C1), the cause is named, the machine stops.

use core::arch::asm;
use core::fmt::{self, Write as _};
use core::sync::atomic::{AtomicU64, Ordering};

use platform::dt::MAX_DEVICES;
use smmu::addr::Pa;

use crate::arch::{cpu, firmware, mmio, sysreg};
use crate::mem::shared::SmmuHardware;

/// Where the last words go: a PL011's data register, or 0 before a UART was found.
static CONSOLE: AtomicU64 = AtomicU64::new(0);
/// The SMMUs that have to be closed: their register bases, 0 where there is none.
static SMMUS: [AtomicU64; MAX_DEVICES] = [const { AtomicU64::new(0) }; MAX_DEVICES];
/// The number of the CPU that is dying, plus 1; 0 while none is.
static DYING: AtomicU64 = AtomicU64::new(0);

/// From now on a panic prints on the PL011 at `base`.
///
/// # Safety
///
/// A PL011 is mapped as Device memory at `base` for the rest of the run.
pub unsafe fn set_console(base: Pa) {
    CONSOLE.store(base.raw(), Ordering::Relaxed);
}

/// From now on a panic closes this SMMU too.
pub fn close_on_panic(hardware: &SmmuHardware) {
    let free = SMMUS.iter().find(|slot| slot.load(Ordering::Relaxed) == 0);
    if let Some(slot) = free {
        slot.store(hardware.base().raw(), Ordering::Relaxed);
    }
}

/// The raw console: no lock, no state, for the last words only.
struct LastWords;

impl fmt::Write for LastWords {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let base = CONSOLE.load(Ordering::Relaxed);
        if base != 0 {
            for byte in text.bytes() {
                // SAFETY: `set_console` promised a mapped PL011; its data register is the first one.
                unsafe { mmio::write32(Pa::new(base), u32::from(byte)) };
            }
        }
        Ok(())
    }
}

const CR0: u64 = 0x20;

/// Stops the machine because of `cause`.
fn die(cause: fmt::Arguments<'_>) -> ! {
    for smmu in SMMUS.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|&base| base != 0) {
        // With GBPA.ABORT set, a disabled SMMU aborts everything.
        // SAFETY: only `close_on_panic` sets it, from hardware that is mapped for ever; disabling the SMMU can only stop DMA.
        unsafe { mmio::write32(Pa::new(smmu).add(CR0), 0) };
    }
    sysreg::dsb_sy();
    let this = cpu::number() as u64 + 1;
    match DYING.compare_exchange(0, this, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {
            let _ = writeln!(
                LastWords,
                "\n[el2] fatal: {cause}; the SMMU is closed, the machine stops\r"
            );
            firmware::system_off()
        }
        // It died of dying.
        Err(first) if first == this => firmware::system_off(),
        // Another CPU is about to say why.
        Err(_) => park(),
    }
}

#[unsafe(no_mangle)]
extern "C" fn fatal_exception(kind: u64) -> ! {
    let name = ["sync", "irq", "fiq", "serror"][kind as usize % 4];
    die(format_args!(
        "{name} exception at EL2: ESR {:#x} ELR {:#x} FAR {:#x}",
        sysreg::esr_el2(),
        sysreg::elr_el2(),
        sysreg::far_el2()
    ))
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(location) => {
            die(format_args!("{} ({}:{})", info.message(), location.file(), location.line()))
        }
        None => die(format_args!("{}", info.message())),
    }
}

/// This CPU does nothing any more.
pub fn park() -> ! {
    loop {
        // SAFETY: waits for an event that changes nothing.
        unsafe { asm!("wfe", options(nomem, nostack, preserves_flags)) };
    }
}
