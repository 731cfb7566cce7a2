//! Another kernel in place of this one: the image as it was loaded, entered as a boot loader enters it.

use core::arch::{asm, global_asm};
use core::ptr::addr_of;

use super::{boot, mem};

global_asm!(include_str!("kexec.S"));

unsafe extern "C" {
    static __bss_start: u8;
    static kexec_stub: u8;
    static kexec_stub_end: u8;
}

/// Bytes that [`keep`] needs: the image without its zeroed part, and one page for the code that puts it back.
pub const KEPT: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Copies the image to `at`, a page of free RAM with [`KEPT`] bytes behind it. To be called before anything has
/// changed what the copy is of.
pub fn keep(at: u64) {
    let start = boot::image().start;
    let size = addr_of!(__bss_start) as u64 - start;
    assert!(size + PAGE <= KEPT, "the image does not fit");
    copy(
        addr_of!(kexec_stub) as u64,
        at,
        addr_of!(kexec_stub_end) as u64 - addr_of!(kexec_stub) as u64,
    );
    copy(start, at + PAGE, size);
    mem::barrier();
}

fn copy(from: u64, to: u64, size: u64) {
    for offset in (0..size).step_by(8) {
        mem::write64(to + offset, mem::read64(from + offset));
    }
}

/// Switches the MMU off, puts the image that [`keep`] copied to `kept` back, and enters it with the device tree at
/// `tree`. Nothing else is switched off.
pub fn jump(kept: u64, tree: u64) -> ! {
    let image = boot::image().start;
    let end = addr_of!(__bss_start) as u64;
    // SAFETY: the stub was copied to `kept`, outside of everything that it overwrites, and runs without a stack.
    // No Rust object is used any more: the image starts anew, as after a reset.
    unsafe {
        asm!(
            "msr daifset, #0xf",
            "2: dc cvau, x4",
            "add x4, x4, #64",
            "cmp x4, x1",
            "b.lo 2b",
            "dsb sy",
            "ic iallu",
            "dsb sy",
            "isb",
            "br x5",
            in("x0") tree,
            in("x1") kept + PAGE,
            in("x2") image,
            in("x3") end,
            in("x4") kept,
            in("x5") kept,
            options(noreturn, nostack)
        );
    }
}

/// Writes one index of a queue after the other to the register at `address` for ever, whatever becomes of the image: by
/// registers of this CPU alone, and by instructions that the next image has in the same place.
pub fn ring(address: u64) -> ! {
    super::mem::refuse_own(address);
    // SAFETY: no Rust object lives there, and none is used any more on this CPU: it needs no stack, and nothing
    // interrupts it.
    unsafe {
        asm!(
            "msr daifset, #0xf",
            "2: add w1, w1, #1",
            "and w1, w1, #0x1ff",
            "str w1, [x0]",
            "b 2b",
            in("x0") address,
            in("x1") 0,
            options(noreturn, nostack)
        );
    }
}
