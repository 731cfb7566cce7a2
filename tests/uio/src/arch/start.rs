//! Entry: Linux starts a program with its arguments on the stack.

use core::arch::global_asm;
use core::ffi::{CStr, c_char};

use super::system;
use crate::println;

// The stack pointer leads to the number of arguments, then a pointer to each.
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "bl {main}",
    "brk #0",
    main = sym main,
);

/// The most arguments that are looked at.
const MOST: usize = 16;

extern "C" fn main(stack: *const usize) -> ! {
    let mut arguments = [c""; MOST];
    // SAFETY: `_start` passes the initial stack pointer, and Linux puts the number of arguments there.
    let count = unsafe { stack.read() };
    for (index, argument) in arguments.iter_mut().enumerate().take(count) {
        // SAFETY: that many pointers to strings that end with zero follow; both stay for the program's life.
        *argument = unsafe { CStr::from_ptr(stack.add(1 + index).read() as *const c_char) };
    }
    match crate::run(&arguments[..count.min(MOST)]) {
        Ok(()) => system::exit(0),
        Err(error) => {
            println!("uio: {error}");
            system::exit(1)
        }
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("uio: {}", info.message());
    system::exit(101)
}
