//! Single memory accesses that every emulated device understands.
//!
//! The compiler may merge a volatile access with the pointer arithmetic around it into a write-back form,
//! which leaves no syndrome to emulate it from; one instruction of assembly per access rules that out.

use core::arch::asm;

use super::boot;

macro_rules! accessors {
    ($($read:ident $write:ident $type:ty: $load:literal $store:literal;)*) => {$(
        /// Reads one naturally aligned value at `address`, once.
        pub fn $read(address: u64) -> $type {
            let value: u64;
            // SAFETY: a load changes no Rust object; where nothing answers, the exception vectors take over.
            unsafe {
                asm!($load, value = out(reg) value, address = in(reg) address, options(nostack));
            }
            value as $type
        }

        /// Writes one naturally aligned value at `address`, once.
        ///
        /// # Panics
        ///
        /// If `address` lies in the image or in the device tree, where Rust objects live.
        pub fn $write(address: u64, value: $type) {
            refuse_own(address);
            // SAFETY: no Rust object lives outside the image and the device tree, so none changes.
            unsafe {
                asm!($store, value = in(reg) u64::from(value), address = in(reg) address, options(nostack));
            }
        }
    )*};
}

accessors! {
    read8 write8 u8: "ldrb {value:w}, [{address}]" "strb {value:w}, [{address}]";
    read16 write16 u16: "ldrh {value:w}, [{address}]" "strh {value:w}, [{address}]";
    read32 write32 u32: "ldr {value:w}, [{address}]" "str {value:w}, [{address}]";
    read64 write64 u64: "ldr {value}, [{address}]" "str {value}, [{address}]";
}

pub(super) fn refuse_own(address: u64) {
    assert!(
        !boot::image().contains(&address) && !boot::tree().contains(&address),
        "write into the image or the device tree at {address:#x}"
    );
}

/// Orders all earlier memory accesses, of whatever type, before all later ones: needed on both sides of DMA.
pub fn barrier() {
    // SAFETY: a barrier changes no state.
    unsafe { asm!("dsb sy", options(nostack)) }
}
