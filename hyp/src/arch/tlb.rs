//! The CPUs' stage-2 TLBs. The tables are the `smmu` crate's; these are the CPU's half of each invalidation.

use core::arch::asm;

use crate::arch::sysreg::{dsb_ish, dsb_ishst, isb, write};

write!(
    /// The stage-2 root and VMID that the next guest entry and stage-2 TLB maintenance use.
    pub vttbr_el2_write, "vttbr_el2"
);

/// Removes what this CPU holds for the VMID in `VTTBR_EL2`, and every instruction that it fetched ahead: a guest starts.
pub fn forget_guest() {
    dsb_ishst();
    // SAFETY: maintenance of caches that hold no state of their own; no guest runs on this CPU.
    unsafe {
        asm!("tlbi vmalls12e1", "dsb nsh", "ic iallu", "dsb nsh", options(nostack, preserves_flags))
    };
    isb();
}

/// Removes what is cached for the VMID that `VTTBR_EL2` holds, walks of its tables included, on all CPUs.
pub fn invalidate_guest() {
    dsb_ishst();
    // SAFETY: TLB maintenance for the current VMID.
    unsafe { asm!("tlbi vmalls12e1is", options(nostack, preserves_flags)) };
    dsb_ish();
    isb();
}

/// Removes everything that any guest may have left in this CPU's and its peers' TLBs.
pub fn invalidate_guests() {
    dsb_ishst();
    // SAFETY: TLB maintenance of regimes that EL2 does not use.
    unsafe { asm!("tlbi alle1is", options(nostack, preserves_flags)) };
    dsb_ish();
    isb();
}
