//! The CPUs' stage-2 TLBs. The tables are the `smmu` crate's; these are the CPU's half of each invalidation.

use core::arch::asm;

use smmu::addr::Ipa;

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

/// Removes what is cached for `pages` 4 KiB pages from `ipa` for the VMID that `VTTBR_EL2` holds, on all CPUs.
pub fn invalidate_ipa(ipa: Ipa, pages: u64) {
    dsb_ishst();
    // Beyond this many single operations dropping the VMID is cheaper.
    if pages > 512 {
        // SAFETY: TLB maintenance for the current VMID.
        unsafe { asm!("tlbi vmalls12e1is", options(nostack, preserves_flags)) };
    } else {
        for page in 0..pages {
            let operand = (ipa.raw() >> 12) + page;
            // SAFETY: as above.
            unsafe {
                asm!("tlbi ipas2e1is, {}", in(reg) operand, options(nostack, preserves_flags))
            };
        }
        dsb_ish();
        // Entries that combine both stages are not tagged by IPA.
        // SAFETY: as above.
        unsafe { asm!("tlbi vmalle1is", options(nostack, preserves_flags)) };
    }
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
