//! From the first instruction to [`crate::start`].

use core::arch::global_asm;

use smmu::addr::Pa;

use crate::arch::{cache, cpu, sysreg};
use crate::mem::layout;

global_asm!(include_str!("boot.S"));
global_asm!(include_str!("vectors.S"));
global_asm!(include_str!("memory.S"));

/// What a secondary CPU reads, with its MMU off, before anything else. The layout is known to `boot.S`.
#[repr(C)]
struct SecondaryBoot {
    root: u64,
    sctlr: u64,
    stack_top: u64,
    number: u64,
}

unsafe extern "C" {
    fn secondary_entry();
    fn replace_map(root: u64, sctlr: u64);
    static vectors: u8;
}

#[unsafe(no_mangle)]
extern "C" fn primary_main(device_tree: u64) -> ! {
    cpu::set_number(0);
    install_vectors();
    crate::start::primary(Pa::new(device_tree))
}

#[unsafe(no_mangle)]
extern "C" fn secondary_main(number: u64) -> ! {
    cpu::set_number(number as usize);
    install_vectors();
    crate::start::secondary()
}

/// The CPU knows its number by now, which the vectors need to find its emergency stack.
fn install_vectors() {
    sysreg::vbar_el2_write(&raw const vectors as u64);
    sysreg::isb();
}

/// `SCTLR_EL2` under the final map: as at boot, and no writable page is executable.
const SCTLR_FINAL: u64 = 0x30c5_0830 | 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;

/// Replaces the boot map by the one whose root table is at `root`.
///
/// # Safety
///
/// `root` is a level-0 table, reachable by this CPU's walker, that maps the running code executable and read-only, the
/// stack and all data in use at the addresses they have now.
pub unsafe fn use_map(root: Pa) {
    // SAFETY: the caller's promise; the routine touches no memory while the MMU is off.
    unsafe { replace_map(root.raw(), SCTLR_FINAL) }
}

/// Starts CPU `number`, known to firmware as `mpidr`, with the map whose root table is at `root`.
///
/// # Errors
///
/// What firmware answered.
pub fn start_secondary(number: usize, mpidr: u64, root: Pa) -> Result<(), smccc::psci::Error> {
    let stack = layout::stack(number);
    let boot = SecondaryBoot {
        root: root.raw(),
        sctlr: SCTLR_FINAL,
        stack_top: stack.end.raw(),
        number: number as u64,
    };
    // The CPU reads this with its MMU off, so it has to be in memory. It is at the far end of the CPU's own stack, which
    // nobody else uses.
    let at = stack.start;
    // SAFETY: `at` is the mapped, 8-byte aligned lowest word of a stack on which nothing runs yet.
    unsafe { core::ptr::write_volatile(at.raw() as *mut SecondaryBoot, boot) };
    cache::clean(at, size_of::<SecondaryBoot>() as u64);
    let entry = secondary_entry as *const () as u64;
    smccc::psci::cpu_on::<smccc::Smc>(mpidr, entry, at.raw())
}
