//! Statics that lie far from the code.
//!
//! The code is built for one MiB in each direction, where one instruction makes an address (`-Ccode-model=tiny`). The
//! large statics, which little code looks at, lie beyond it (`linker/hyp.ld`); their addresses are kept near.

use core::hint::black_box;

/// Where a static is, by way of a pointer to it that the compiler must read and may not know.
pub fn far<T: ?Sized>(pointer: &'static &'static T) -> &'static T {
    let unknown: &&T = black_box(pointer);
    unknown
}
