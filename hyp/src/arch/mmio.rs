//! Device registers, by physical address (EL2's map is the identity).
//!
//! Accessors are single instructions with a base register and no write-back, so that the same addresses could
//! themselves be emulated by something below us.

use core::arch::asm;

use smmu::addr::Pa;

macro_rules! accessors {
    ($read:ident, $write:ident, $type:ty, $load:literal, $store:literal, $register:literal) => {
        /// Reads one register.
        ///
        /// # Safety
        ///
        /// `at` is aligned and mapped as Device memory, and reading it is meant.
        pub unsafe fn $read(at: Pa) -> $type {
            let value: u64;
            // SAFETY: the caller's promise.
            unsafe {
                asm!(concat!($load, " {value", $register, "}, [{at}]"), value = out(reg) value, at = in(reg) at.raw(),
                     options(nostack, preserves_flags));
            }
            value as $type
        }

        /// Writes one register.
        ///
        /// # Safety
        ///
        /// `at` is aligned and mapped as Device memory, and what the device does on this write keeps EL2's memory intact.
        pub unsafe fn $write(at: Pa, value: $type) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(concat!($store, " {value", $register, "}, [{at}]"), value = in(reg) u64::from(value), at = in(reg) at.raw(),
                     options(nostack, preserves_flags));
            }
        }
    };
}

accessors!(read8, write8, u8, "ldrb", "strb", ":w");
accessors!(read16, write16, u16, "ldrh", "strh", ":w");
accessors!(read32, write32, u32, "ldr", "str", ":w");
accessors!(read64, write64, u64, "ldr", "str", "");

/// A mapped register window.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    base: Pa,
    size: u64,
}

impl Window {
    /// Names the registers at `base`.
    ///
    /// # Safety
    ///
    /// `size` bytes from `base` are mapped as Device memory for the rest of the run, and no register in them makes a
    /// device write to memory that EL2 uses, except through addresses that EL2 itself puts there.
    pub const unsafe fn new(base: Pa, size: u64) -> Self {
        Self { base, size }
    }

    /// The window's first byte.
    pub const fn base(&self) -> Pa {
        self.base
    }

    /// Bytes in the window.
    pub const fn size(&self) -> u64 {
        self.size
    }

    fn at(&self, offset: u64, width: u64) -> Pa {
        assert!(offset.is_multiple_of(width) && offset < self.size, "register outside its window");
        self.base.add(offset)
    }

    /// Reads 8 bits at `offset`.
    pub fn read8(&self, offset: u64) -> u8 {
        // SAFETY: `at` checked alignment and bounds; `new` promised the mapping.
        unsafe { read8(self.at(offset, 1)) }
    }

    /// Reads 16 bits at `offset`.
    pub fn read16(&self, offset: u64) -> u16 {
        // SAFETY: as in `read8`.
        unsafe { read16(self.at(offset, 2)) }
    }

    /// Reads 32 bits at `offset`.
    pub fn read32(&self, offset: u64) -> u32 {
        // SAFETY: as in `read8`.
        unsafe { read32(self.at(offset, 4)) }
    }

    /// Reads 64 bits at `offset`.
    pub fn read64(&self, offset: u64) -> u64 {
        // SAFETY: as in `read8`.
        unsafe { read64(self.at(offset, 8)) }
    }

    /// Writes 8 bits at `offset`.
    pub fn write8(&self, offset: u64, value: u8) {
        // SAFETY: as in `read8`.
        unsafe { write8(self.at(offset, 1), value) }
    }

    /// Writes 16 bits at `offset`.
    pub fn write16(&self, offset: u64, value: u16) {
        // SAFETY: as in `read8`.
        unsafe { write16(self.at(offset, 2), value) }
    }

    /// Writes 32 bits at `offset`.
    pub fn write32(&self, offset: u64, value: u32) {
        // SAFETY: as in `read8`.
        unsafe { write32(self.at(offset, 4), value) }
    }

    /// Writes 64 bits at `offset`.
    pub fn write64(&self, offset: u64, value: u64) {
        // SAFETY: as in `read8`.
        unsafe { write64(self.at(offset, 8), value) }
    }
}
