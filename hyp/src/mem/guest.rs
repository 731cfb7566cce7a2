//! A VM's RAM: which frames it is made of, and EL2's hands in it.

use core::sync::atomic::{AtomicU64, Ordering};

use heapless::Vec;
use smmu::addr::{Ipa, Pa};
use smmu::guest::GuestMemory;
pub use smmu::guest::OutsideRam;

use crate::arch::cache;
use crate::mem::frames::GUEST_RAM;

/// The most pieces a VM's RAM may be made of.
pub const MAX_SEGMENTS: usize = 32;
/// The smallest piece: a level-2 block.
const SMALLEST: u64 = 2 << 20;
/// The largest piece: a level-1 block.
const LARGEST: u64 = 1 << 30;

/// A contiguous piece of a VM's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where the guest sees it.
    pub ipa: Ipa,
    /// Where it is.
    pub pa: Pa,
    /// Bytes; a power of two.
    pub size: u64,
}

/// A VM's RAM, taken from [`GUEST_RAM`] and never given back to anything but another VM.
#[derive(Debug)]
pub struct GuestRam {
    segments: Vec<Segment, MAX_SEGMENTS>,
}

/// There is not enough memory, or it is too scattered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Bytes that could not be had.
    pub missing: u64,
}

impl GuestRam {
    /// Takes `size` bytes, a multiple of 2 MiB, for a VM that sees them from `base` (1 GiB aligned), in the
    /// largest blocks there are.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; nothing stays taken.
    pub fn allocate(base: Ipa, size: u64) -> Result<Self, OutOfMemory> {
        let mut ram = Self { segments: Vec::new() };
        let (mut ipa, mut left, mut largest) = (base, size, LARGEST);
        while left > 0 {
            let want = largest.min(1 << left.ilog2());
            match GUEST_RAM.allocate(want) {
                Some(pa) => {
                    if ram.segments.push(Segment { ipa, pa, size: want }).is_err() {
                        // SAFETY: just allocated with this size, used by nobody.
                        unsafe { GUEST_RAM.release(pa, want) };
                        break;
                    }
                    ipa = ipa.add(want);
                    left -= want;
                }
                None if want > SMALLEST => largest = want / 2,
                None => break,
            }
        }
        if left == 0 {
            return Ok(ram);
        }
        for segment in &ram.segments {
            // SAFETY: allocated above with this size, used by nobody.
            unsafe { GUEST_RAM.release(segment.pa, segment.size) };
        }
        Err(OutOfMemory { missing: left })
    }

    /// The pieces, in ascending guest addresses.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether `ipa` is in this RAM.
    pub fn contains(&self, ipa: Ipa) -> bool {
        self.segments.iter().any(|s| ipa >= s.ipa && ipa.raw() - s.ipa.raw() < s.size)
    }

    /// Copies `bytes` to `ipa`, to the point of coherency. No CPU of the VM runs.
    ///
    /// # Errors
    ///
    /// [`OutsideRam`] if any byte would land elsewhere; some may have been copied then.
    pub fn copy_in(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), OutsideRam> {
        let mut done = 0;
        while done < bytes.len() {
            let at = ipa.checked_add(done as u64).ok_or(OutsideRam)?;
            let segment = self
                .segments
                .iter()
                .find(|s| at >= s.ipa && at.raw() - s.ipa.raw() < s.size)
                .ok_or(OutsideRam)?;
            let offset = at.raw() - segment.ipa.raw();
            let length = (bytes.len() - done).min((segment.size - offset) as usize);
            let pa = segment.pa.add(offset);
            // SAFETY: the target lies inside a segment, which is mapped as Data and overlaps nothing of EL2's.
            unsafe {
                core::ptr::copy_nonoverlapping(bytes[done..].as_ptr(), pa.raw() as *mut u8, length);
            }
            cache::clean(pa, length as u64);
            done += length;
        }
        Ok(())
    }

    /// Overwrites all of it with zeros, to the point of coherency. No CPU of the VM runs and none of its devices
    /// reaches it. `between` is called after every 2 MiB, so that nobody has to wait for all of it.
    pub fn scrub(&self, between: impl Fn()) {
        for segment in &self.segments {
            for piece in 0..segment.size / SMALLEST {
                let pa = segment.pa.add(piece * SMALLEST);
                // SAFETY: as in `copy_in`.
                unsafe { cache::zero(pa, SMALLEST) };
                cache::clean_and_invalidate(pa, SMALLEST);
                between();
            }
        }
    }
}

impl GuestRam {
    /// Calls `work` with each of `count` words from `ipa` on, and its number. The VM's CPUs and devices may change them at
    /// any moment. They are reached through EL2's caches: a guest whose own are off cleans and invalidates, as for any
    /// coherent device.
    fn each_word(
        &self,
        ipa: Ipa,
        count: usize,
        mut work: impl FnMut(usize, &AtomicU64),
    ) -> Result<(), OutsideRam> {
        let mut index = 0;
        while index < count {
            let at = ipa.checked_add(8 * index as u64).ok_or(OutsideRam)?;
            let inside = |s: &&Segment| at >= s.ipa && at.raw() - s.ipa.raw() < s.size;
            let segment = self.segments.iter().find(inside).filter(|_| at.is_aligned(8));
            let segment = segment.ok_or(OutsideRam)?;
            let offset = at.raw() - segment.ipa.raw();
            let length = ((segment.size - offset) / 8).min((count - index) as u64) as usize;
            let from = segment.pa.raw() + offset;
            // SAFETY: the words are aligned and inside a segment, whose size is a multiple of theirs and which is mapped as
            // Data for ever; while a CPU of the VM runs, EL2 reaches it only here, atomically.
            let words = unsafe { core::slice::from_raw_parts(from as *const AtomicU64, length) };
            for word in words {
                work(index, word);
                index += 1;
            }
        }
        Ok(())
    }
}

impl GuestMemory for GuestRam {
    fn read(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), OutsideRam> {
        self.each_word(ipa, words.len(), |index, word| words[index] = word.load(Ordering::Relaxed))
    }

    fn write(&self, ipa: Ipa, words: &[u64]) -> Result<(), OutsideRam> {
        self.each_word(ipa, words.len(), |_, _| ())?;
        self.each_word(ipa, words.len(), |index, word| word.store(words[index], Ordering::Relaxed))
    }
}
