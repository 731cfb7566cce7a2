//! Changes to the identity map: one slot of 1 GiB that nothing else uses.

use core::arch::asm;
use core::ptr::addr_of;

use super::{boot, mem};

unsafe extern "C" {
    static level1_tables: u64;
}

/// The slot: the last GiB of the 40-bit space, where no machine has anything.
const SLOT: u64 = 1023;
const GIB_SHIFT: u32 = 30;
const TABLE: u64 = 0b11;
/// Normal write-back, inner shareable, accessed, never executed.
const NORMAL_BLOCK: u64 = 1 << 54 | 1 << 53 | 1 << 10 | 3 << 8 | 1 << 2 | 1;

/// Maps the GiB around `address` once more, as Normal memory, and returns where `address` is there.
///
/// # Panics
///
/// If the image lies in that GiB.
pub fn as_normal(address: u64) -> u64 {
    let block = address >> GIB_SHIFT << GIB_SHIFT;
    assert_ne!(
        boot::image().start >> GIB_SHIFT,
        address >> GIB_SHIFT,
        "the image has one mapping only"
    );
    fill_slot(block | NORMAL_BLOCK);
    SLOT << GIB_SHIFT | (address - block)
}

/// Maps a GiB by the level 2 table at `table`, and returns where that GiB starts. No RAM is there, so that the
/// table walk itself must fail.
pub fn through_table(table: u64) -> u64 {
    fill_slot(table & !0xfff | TABLE);
    SLOT << GIB_SHIFT
}

/// Changes the slot, break before make.
fn fill_slot(descriptor: u64) {
    let entry = addr_of!(level1_tables) as u64 + SLOT * 8;
    for value in [0, descriptor] {
        // SAFETY: the tables are no Rust object, and nothing uses the slot but who asked for it. What it maps
        // is never the image: `as_normal` refuses that, and a table outside of RAM maps nothing at all.
        unsafe {
            asm!(
                "str {value}, [{entry}]", "dsb ishst", "tlbi vmalle1is", "dsb ish", "isb",
                value = in(reg) value, entry = in(reg) entry, options(nostack)
            );
        }
    }
    mem::barrier();
}
