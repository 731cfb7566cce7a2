//! Entry and the image's own extent.

use core::arch::global_asm;
use core::ops::Range;
use core::ptr::addr_of;
use core::sync::atomic::{AtomicU64, Ordering};

use dtoolkit::fdt::Fdt;

/// The most CPUs that the runtime has stacks and per-CPU state for.
pub const MAX_CPUS: usize = 16;
const STACK_SIZE: usize = 16 * 1024;

global_asm!(include_str!("boot.S"), stack_size = const STACK_SIZE, max_cpus = const MAX_CPUS);

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
    fn secondary_entry();
}

static ENTERED: AtomicU64 = AtomicU64::new(0);
static TREE_START: AtomicU64 = AtomicU64::new(0);
static TREE_END: AtomicU64 = AtomicU64::new(0);

/// Where the image lies, its zeroed part and its stacks included.
pub fn image() -> Range<u64> {
    addr_of!(__image_start) as u64..addr_of!(__image_end) as u64
}

/// Where the device tree lies; empty until [`device_tree`] found one.
pub fn tree() -> Range<u64> {
    TREE_START.load(Ordering::Relaxed)..TREE_END.load(Ordering::Relaxed)
}

/// What the virtual counter was when the first CPU entered the image.
pub fn entered() -> u64 {
    ENTERED.load(Ordering::Relaxed)
}

/// The address at which [`crate::smp`] starts other CPUs, with their index as context.
pub fn secondary_entry_address() -> u64 {
    secondary_entry as *const () as u64
}

/// Returns the device tree at `address`, if a valid one lies there.
pub fn device_tree(address: u64) -> Option<Fdt<'static>> {
    const MAGIC: [u8; 4] = [0xd0, 0x0d, 0xfe, 0xed];
    const MAX_SIZE: u32 = 2 << 20;

    let ram = 0x4000_0000..0x8000_0000_u64;
    if !address.is_multiple_of(8) || !ram.contains(&address) {
        return None;
    }
    let header = [super::mem::read32(address), super::mem::read32(address + 4)];
    let size = u32::from_be(header[1]);
    if header[0].to_ne_bytes() != MAGIC || size > MAX_SIZE {
        return None;
    }
    // SAFETY: the range is Normal memory in the mapped first GiB of RAM, starts with the magic of a device tree
    // and its own size, and nobody writes to it: `mem` refuses to from here on, and no role aims DMA there.
    let tree = unsafe { Fdt::from_raw(address as *const u8) }.ok()?;
    TREE_START.store(address, Ordering::Relaxed);
    TREE_END.store(address + u64::from(size), Ordering::Relaxed);
    Some(tree)
}

#[unsafe(no_mangle)]
extern "C" fn guest_primary(tree: u64, entered: u64) -> ! {
    ENTERED.store(entered, Ordering::Relaxed);
    crate::primary(tree)
}

#[unsafe(no_mangle)]
extern "C" fn guest_secondary(index: usize) -> ! {
    crate::smp::secondary(index)
}
