//! Patterns in a page, word by word.

/// What separates two neighbouring words of a signature; odd, so that all words differ.
const STEP: u32 = 0x9e37_79b9;

/// The pattern by which an attacker's data is found in physical memory, whoever looks for it.
pub fn signature(nonce: u32) -> impl Fn(u32) -> u32 + Copy {
    move |index| nonce.wrapping_add(index.wrapping_mul(STEP))
}

/// What memory holds before a device writes to it: no word of a signature's neighbourhood, and not zero.
pub fn poison(index: u32) -> u32 {
    0x5050_0001 | index << 1
}
