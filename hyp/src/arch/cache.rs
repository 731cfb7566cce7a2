//! Data cache maintenance by address.

use core::arch::asm;

use smmu::addr::Pa;

use crate::arch::sysreg::{self, dsb_sy, read};

read!(
    /// Cache geometry.
    pub ctr_el0, "ctr_el0"
);

read!(
    /// What `DC ZVA` zeroes.
    dczid_el0, "dczid_el0"
);

/// Overwrites `size` bytes at `from` with zeros, both multiples of 2 KiB: no block of `DC ZVA` is larger.
///
/// # Safety
///
/// The range is mapped as Data, and nobody else uses it.
pub unsafe fn zero(from: Pa, size: u64) {
    const PROHIBITED: u64 = 1 << 4;
    let id = dczid_el0();
    if id & PROHIBITED != 0 {
        // SAFETY: the caller's promise.
        unsafe { core::ptr::write_bytes(from.raw() as *mut u8, 0, size as usize) };
        return;
    }
    let block = 4u64 << (id & 0xf);
    for at in (from.raw()..from.raw() + size).step_by(block as usize) {
        // SAFETY: the block is inside the range.
        unsafe { asm!("dc zva, {}", in(reg) at, options(nostack, preserves_flags)) };
    }
}

fn lines(from: Pa, size: u64) -> impl Iterator<Item = u64> {
    let line = 4u64 << (ctr_el0() >> 16 & 0xf);
    (from.raw() & !(line - 1)..from.raw() + size).step_by(line as usize)
}

/// Writes what the caches hold of this range back to memory, for readers whose caches are off.
pub fn clean(from: Pa, size: u64) {
    for line in lines(from, size) {
        // SAFETY: cleaning a line changes no value that any observer may read.
        unsafe { asm!("dc cvac, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    dsb_sy();
}

/// Writes the line of the word at `at`, which is aligned, back to memory, for readers whose caches are off.
pub fn clean_word(at: Pa) {
    // SAFETY: as in `clean`; no word spans two lines.
    unsafe { asm!("dc cvac, {}", in(reg) at.raw(), options(nostack, preserves_flags)) };
    dsb_sy();
}

/// Writes this range back to memory and drops it from the caches, for readers and writers whose caches are off.
pub fn clean_and_invalidate(from: Pa, size: u64) {
    for line in lines(from, size) {
        // SAFETY: as in `clean`; dropping a clean line changes no value.
        unsafe { asm!("dc civac, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    dsb_sy();
}

/// Drops every instruction cache line of every CPU: new code was copied somewhere.
pub fn invalidate_instructions() {
    // SAFETY: instruction caches hold no state of their own.
    unsafe { asm!("ic ialluis", options(nostack, preserves_flags)) };
    sysreg::dsb_ish();
    sysreg::isb();
}
