//! Device registers, by physical address (EL2's map is the identity).
//!
//! Accessors are single instructions with a base register and no write-back, so that the same addresses could
//! themselves be emulated by something below us.

use core::arch::asm;

use smmu::addr::Pa;

use crate::width::Width;

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

accessors!(read32, write32, u32, "ldr", "str", ":w");
accessors!(read64, write64, u64, "ldr", "str", "");

/// What came of an access that may be answered with an error. The layout is known to `vectors.S`.
#[repr(C)]
struct Answer {
    value: u64,
    answered: u64,
}

unsafe extern "C" {
    fn guarded_load(at: u64, width_log2: u64) -> Answer;
    fn guarded_store(at: u64, width_log2: u64, value: u64) -> Answer;
}

/// Reads one register of a device that may answer with an external abort; `None` if it did.
///
/// # Safety
///
/// As for [`read32`].
pub unsafe fn try_read(at: Pa, width: Width) -> Option<u64> {
    // SAFETY: the caller's promise; the routine touches nothing else, and an abort makes it return.
    let answer = unsafe { guarded_load(at.raw(), width.bytes().trailing_zeros().into()) };
    (answer.answered != 0).then_some(answer.value)
}

/// Writes one register of a device that may answer with an external abort; `false` if it did. One that arrives later
/// is a system error.
///
/// # Safety
///
/// As for [`write32`].
pub unsafe fn try_write(at: Pa, width: Width, value: u64) -> bool {
    // SAFETY: the caller's promise; the routine touches nothing else, and an abort makes it return.
    let answer = unsafe { guarded_store(at.raw(), width.bytes().trailing_zeros().into(), value) };
    answer.answered != 0
}

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

    #[inline(always)] // With both constants there is one comparison left.
    fn at(&self, offset: u64, width: u64) -> Pa {
        assert!(offset.is_multiple_of(width) && offset < self.size, "register outside its window");
        self.base.add(offset)
    }

    /// Reads `width` at `offset`; `None` if what is there answers with an error.
    pub fn try_read(&self, offset: u64, width: Width) -> Option<u64> {
        // SAFETY: `at` checked alignment and bounds; `new` promised the mapping.
        unsafe { try_read(self.at(offset, width.bytes()), width) }
    }

    /// Writes `width` at `offset`; `false` if what is there answers with an error.
    pub fn try_write(&self, offset: u64, width: Width, value: u64) -> bool {
        // SAFETY: as in `try_read`.
        unsafe { try_write(self.at(offset, width.bytes()), width, value) }
    }

    /// Reads 32 bits at `offset`.
    pub fn read32(&self, offset: u64) -> u32 {
        // SAFETY: as in `try_read`.
        unsafe { read32(self.at(offset, 4)) }
    }

    /// Reads 64 bits at `offset`.
    pub fn read64(&self, offset: u64) -> u64 {
        // SAFETY: as in `try_read`.
        unsafe { read64(self.at(offset, 8)) }
    }

    /// Writes 32 bits at `offset`.
    pub fn write32(&self, offset: u64, value: u32) {
        // SAFETY: as in `try_read`.
        unsafe { write32(self.at(offset, 4), value) }
    }

    /// Writes 64 bits at `offset`.
    pub fn write64(&self, offset: u64, value: u64) {
        // SAFETY: as in `try_read`.
        unsafe { write64(self.at(offset, 8), value) }
    }
}
