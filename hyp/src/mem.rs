//! Memory: EL2's own map and frames, the words it shares with the SMMU, and guests' memory.

pub mod frames;
pub mod guest;
pub mod layout;
pub mod paging;
pub mod shared;

use core::ops::Range;

use smmu::addr::Pa;

/// The arm64 boot protocol's limit on the size of a device tree.
pub const DEVICE_TREE_LIMIT: u64 = 2 << 20;

/// The device tree that the boot loader left at `at`, or `None` if there is none.
pub fn device_tree(at: Pa) -> Option<&'static [u8]> {
    if !at.is_aligned(8) || at.raw() == 0 {
        return None;
    }
    // SAFETY: boot.S mapped 2 MiB from here; the boot loader promises that x0 points to memory.
    let header = unsafe { (at.raw() as *const [u8; 8]).read_volatile() };
    let size = platform::dt::total_size(header).ok()?;
    (u64::from(size) <= DEVICE_TREE_LIMIT)
        // SAFETY: as above; nobody writes there, `start` keeps the range out of every pool.
        .then(|| unsafe { core::slice::from_raw_parts(at.raw() as *const u8, size as usize) })
}

/// Bytes that the boot loader left in RAM.
///
/// # Safety
///
/// The range is mapped, and nobody ever writes there.
pub unsafe fn loaded(range: Range<Pa>) -> &'static [u8] {
    let size = range.end.raw() - range.start.raw();
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(range.start.raw() as *const u8, size as usize) }
}
