//! Memory: EL2's own map and frames, the words it shares with the SMMU, and guests' memory.

pub mod frames;
pub mod guest;
pub mod layout;
pub mod paging;
pub mod shared;

use core::ops::Range;

use platform::dt;
use smmu::addr::Pa;

use crate::arch::mmio::Window;
use crate::arch::pcie::HostBridge;

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

/// The bundle that the boot loader left in RAM, which `start` has mapped as Constants and keeps out of every pool.
pub fn bundle(range: Range<Pa>) -> &'static [u8] {
    let size = range.end.raw() - range.start.raw();
    // SAFETY: `start` maps the range before it asks for it, and nobody writes there.
    unsafe { core::slice::from_raw_parts(range.start.raw() as *const u8, size as usize) }
}

/// The registers of a device that the device tree names and `start` has just mapped, for ever.
pub fn device_window(range: dt::Range) -> Window {
    // SAFETY: `start` maps every range before it asks for its window; of these devices (GIC, SMMU) only the SMMU follows addresses
    // from its registers, and those are the `smmu` crate's, out of EL2's own frames.
    unsafe { Window::new(range.base, range.size) }
}

/// The PCI host bridge whose configuration space `start` has just mapped, for ever. `meanwhile` is what EL2 does as long
/// as it waits for a function.
pub fn host_bridge(facts: &dt::PcieHost, meanwhile: fn()) -> HostBridge {
    // SAFETY: `start` maps the ECAM range before this, and every BAR right after it was placed.
    unsafe { HostBridge::new(facts, meanwhile) }
}
