//! Mapped memory: registers of a device, or pages that a device reaches.

use core::arch::asm;

use super::system::{self, Errno, File};

const PROT_READ_WRITE: usize = 3;
const MAP_SHARED: usize = 1;
const MAP_POPULATE: usize = 0x8000;

/// A piece of a file in this program's address space.
#[derive(Debug)]
pub struct Mapping {
    base: usize,
    size: usize,
}

impl Mapping {
    /// Maps the first `size` bytes of `file`, all of them present.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn new(file: &File, size: usize) -> Result<Self, Errno> {
        let flags = MAP_SHARED | MAP_POPULATE;
        // SAFETY: without an address, the kernel chooses one that nothing is at.
        let base =
            unsafe { system::call(system::MMAP, [0, size, PROT_READ_WRITE, flags, file.0, 0]) }?;
        Ok(Self { base, size })
    }

    /// Its address in this program.
    pub fn address(&self) -> usize {
        self.base
    }

    fn at(&self, offset: usize, size: usize) -> usize {
        let end = offset.checked_add(size);
        assert!(
            offset.is_multiple_of(size) && end.is_some_and(|end| end <= self.size),
            "{offset:#x} is not in a mapping of {:#x} bytes",
            self.size
        );
        self.base + offset
    }

    /// Reads the four bytes at `offset`, once, after all earlier accesses.
    ///
    /// # Panics
    ///
    /// If `offset` is outside, or not aligned.
    pub fn read32(&self, offset: usize) -> u32 {
        let address = self.at(offset, 4);
        let value: u32;
        // SAFETY: the address is in the mapping, which this owns and which holds no Rust object.
        unsafe {
            asm!("dsb sy", "ldr {value:w}, [{address}]", "dsb sy", value = out(reg) value, address = in(reg) address,
                options(nostack));
        }
        value
    }

    /// Writes the four bytes at `offset`, once, after all earlier accesses.
    ///
    /// # Panics
    ///
    /// If `offset` is outside, or not aligned.
    pub fn write32(&self, offset: usize, value: u32) {
        let address = self.at(offset, 4);
        // SAFETY: as in `read32`.
        unsafe {
            asm!("dsb sy", "str {value:w}, [{address}]", value = in(reg) value, address = in(reg) address,
                options(nostack));
        }
    }

    /// Writes the eight bytes at `offset`, once, after all earlier accesses.
    ///
    /// # Panics
    ///
    /// If `offset` is outside, or not aligned.
    pub fn write64(&self, offset: usize, value: u64) {
        let address = self.at(offset, 8);
        // SAFETY: as in `read32`.
        unsafe {
            asm!("dsb sy", "str {value}, [{address}]", value = in(reg) value, address = in(reg) address,
                options(nostack));
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and nothing refers to it once its owner is gone.
        let _ = unsafe { system::call(system::MUNMAP, [self.base, self.size, 0, 0, 0, 0]) };
    }
}
