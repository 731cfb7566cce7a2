//! Where the linker put things. EL2 runs at physical addresses, so these are physical too.

use core::ops::Range;

use smmu::addr::{PAGE_SIZE, Pa};

use crate::far::far;

/// Bytes of every stack but the first CPU's.
const STACK_SIZE: u64 = 32768;
/// Bytes of every emergency stack with its guard; `vectors.S` counts in them too.
const EMERGENCY_STRIDE: u64 = 1 << 14;

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __stacks_start: u8;
    static __first_stack_end: u8;
    static __emergency_stack_start: u8;
    static __image_end: u8;
}

macro_rules! symbol {
    ($name:ident) => {{
        // SAFETY: the linker defines it inside the image or just behind it. Only its address is asked for.
        static POINTER: &u8 = unsafe { &$name };
        Pa::new(core::ptr::from_ref(far(&POINTER)).addr() as u64)
    }};
}

/// The whole image, stacks included.
pub fn image() -> Range<Pa> {
    symbol!(__image_start)..symbol!(__image_end)
}

/// Code.
pub fn text() -> Range<Pa> {
    symbol!(__image_start)..symbol!(__text_end)
}

/// Constants, relocated before anything ran.
pub fn rodata() -> Range<Pa> {
    symbol!(__text_end)..symbol!(__rodata_end)
}

/// Everything writable but the stacks.
pub fn data() -> Range<Pa> {
    symbol!(__rodata_end)..symbol!(__stacks_start)
}

/// CPU `number`'s stack; the page below is a guard.
pub fn stack(number: usize) -> Range<Pa> {
    let first_end = symbol!(__first_stack_end);
    match number.checked_sub(1) {
        None => symbol!(__stacks_start).add(PAGE_SIZE)..first_end,
        Some(index) => {
            let guard = first_end.add(index as u64 * (PAGE_SIZE + STACK_SIZE));
            guard.add(PAGE_SIZE)..guard.add(PAGE_SIZE + STACK_SIZE)
        }
    }
}

/// CPU `number`'s stack for exceptions that EL2 takes itself; the page below is a guard.
pub fn emergency_stack(number: usize) -> Range<Pa> {
    let guard = symbol!(__emergency_stack_start).add(number as u64 * EMERGENCY_STRIDE);
    guard.add(PAGE_SIZE)..guard.add(EMERGENCY_STRIDE)
}
