//! Physical memory, given out once and taken back only with proof (C3).
//!
//! Two pools: what tables and queues of EL2 are made of, and what becomes guests' RAM. They never mix, so
//! that "may a VM's device reach this page" has one answer for as long as the machine runs.

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use buddy_system_allocator::Heap;
use smmu::addr::{PAGE_SIZE, Pa};
use smmu::ports::Frames;
use spin::Mutex;

/// Blocks of up to 2^39 bytes.
const ORDERS: usize = 40;

/// EL2's own frames.
pub static TABLES: Pool = Pool::new();
/// Guests' RAM.
pub static GUEST_RAM: Pool = Pool::new();

/// A pool of frames.
pub struct Pool {
    heap: Mutex<Heap<ORDERS>>,
    start: AtomicU64,
    end: AtomicU64,
}

impl Pool {
    const fn new() -> Self {
        Self {
            heap: Mutex::new(Heap::new()),
            start: AtomicU64::new(u64::MAX),
            end: AtomicU64::new(0),
        }
    }

    /// Adds memory to the pool, at boot.
    ///
    /// # Safety
    ///
    /// The range is mapped as Data, nothing else uses it, and no device reaches it.
    pub unsafe fn add(&self, range: Range<Pa>) {
        let start = range.start.raw().next_multiple_of(PAGE_SIZE);
        let end = range.end.align_down(PAGE_SIZE).raw();
        if start >= end {
            return;
        }
        self.start.fetch_min(start, Ordering::Relaxed);
        self.end.fetch_max(end, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.heap.lock().add_to_heap(start as usize, end as usize) };
    }

    /// Gives out `size` bytes, a power of two of at least a page, aligned to their size, with whatever is in them.
    pub fn allocate(&self, size: u64) -> Option<Pa> {
        let layout = layout(size)?;
        let block = self.heap.lock().alloc(layout).ok()?;
        Some(Pa::new(block.as_ptr() as u64))
    }

    /// Takes a block back. The caller has proof that nothing can reach it any more.
    ///
    /// # Safety
    ///
    /// The block came from [`Pool::allocate`] with this size, was not given back yet, and nobody uses it.
    pub unsafe fn release(&self, at: Pa, size: u64) {
        let (Some(layout), Some(block)) = (layout(size), NonNull::new(at.raw() as *mut u8)) else {
            return;
        };
        // SAFETY: the caller's promise.
        unsafe { self.heap.lock().dealloc(block, layout) };
    }

    /// Bytes given out, rounding included.
    pub fn used(&self) -> u64 {
        self.heap.lock().stats_alloc_actual() as u64
    }

    /// Whether `size` bytes from `at` lie between the pool's lowest and highest frame.
    pub fn spans(&self, at: Pa, size: u64) -> bool {
        at.raw() >= self.start.load(Ordering::Relaxed)
            && at.checked_add(size).is_some_and(|end| end.raw() <= self.end.load(Ordering::Relaxed))
    }
}

fn layout(size: u64) -> Option<core::alloc::Layout> {
    if !size.is_power_of_two() || size < PAGE_SIZE {
        return None;
    }
    core::alloc::Layout::from_size_align(size as usize, size as usize).ok()
}

/// The `smmu` crate's view of [`TABLES`].
pub struct TableFrames;

impl Frames for TableFrames {
    fn allocate(&mut self, size: u64) -> Option<Pa> {
        let at = TABLES.allocate(size)?;
        // SAFETY: the block is mapped as Data and ours alone.
        unsafe { core::ptr::write_bytes(at.raw() as *mut u8, 0, size as usize) };
        Some(at)
    }

    fn release(&mut self, at: Pa, size: u64) {
        // SAFETY: the trait's contract is this function's.
        unsafe { TABLES.release(at, size) }
    }
}

/// Gives `range` to `pool`, at boot.
pub fn fill(pool: &Pool, range: Range<Pa>) {
    // SAFETY: `start` calls this once for each piece of RAM that it has mapped as Data and in which nothing is; the SMMU is closed.
    unsafe { pool.add(range) }
}
