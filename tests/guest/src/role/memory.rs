//! Pages of RAM that a role works on, and patterns in them.
//!
//! RAM from its start: device tree, image, then from 4 MiB on pages for DMA, from 5 MiB on canaries.

use crate::arch::mem;
use crate::machine::Machine;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// What separates two neighbouring words of a signature; odd, so that all words differ.
const STEP: u32 = 0x9e37_79b9;
const DMA_OFFSET: u64 = 4 << 20;
const CANARY_OFFSET: u64 = 5 << 20;
const CANARIES: u64 = 8;

/// The page number `index` for DMA.
pub fn dma_page(machine: &Machine, index: u64) -> u64 {
    machine.ram.start + DMA_OFFSET + index * PAGE
}

/// The pages that nobody may write: spread evenly from 5 MiB after the start of RAM to its last page.
///
/// # Errors
///
/// A reason if there is too little RAM for them.
pub fn canary_pages(machine: &Machine) -> Result<impl Iterator<Item = u64> + Clone, &'static str> {
    let first = machine.ram.start + CANARY_OFFSET;
    let last = machine.ram.end.checked_sub(PAGE).ok_or("no RAM")?;
    let span = last.checked_sub(first + CANARIES * PAGE).ok_or("RAM is too small for canaries")?;
    let stride = (span / (CANARIES - 1)) & !(PAGE - 1);
    Ok((0..CANARIES)
        .map(move |index| if index == CANARIES - 1 { last } else { first + index * stride }))
}

/// The content of a page, word by word.
pub trait Pattern: Fn(u64) -> u32 {}

impl<F: Fn(u64) -> u32> Pattern for F {}

/// The pattern by which the data of a rogue is found in physical memory, whoever looks for it.
pub fn signature(nonce: u32) -> impl Pattern + Copy {
    move |index| nonce.wrapping_add((index as u32).wrapping_mul(STEP))
}

/// A pattern that no signature can be mistaken for: neighbouring words have nothing in common.
pub fn noise(seed: u32) -> impl Pattern + Copy {
    move |index| {
        let mixed = (seed ^ (index as u32).wrapping_mul(0x85eb_ca6b)).wrapping_mul(0xcc9e_2d51);
        let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x1b87_3593);
        mixed ^ mixed >> 13
    }
}

/// Fills `size` bytes at `address`.
pub fn fill(address: u64, size: u64, pattern: impl Pattern) {
    for index in 0..size / 4 {
        mem::write32(address + index * 4, pattern(index));
    }
    mem::barrier();
}

/// The address of the first word that does not follow the pattern.
pub fn first_change(address: u64, size: u64, pattern: impl Pattern) -> Option<u64> {
    (0..size / 4)
        .find(|index| mem::read32(address + index * 4) != pattern(*index))
        .map(|index| address + index * 4)
}

/// How many words follow the pattern.
pub fn matching(address: u64, size: u64, pattern: impl Pattern) -> u64 {
    (0..size / 4).filter(|index| mem::read32(address + index * 4) == pattern(*index)).count() as u64
}
