//! System registers that `aarch64-cpu` does not know, and the two barriers between them.
//!
//! No accessor here is an ordering point for memory: whoever publishes memory through a register writes
//! store, [`dsb_ishst`], register, [`isb`].

use core::arch::asm;

macro_rules! read {
    ($(#[$doc:meta])* $visible:vis $function:ident, $register:literal) => {
        $(#[$doc])*
        $visible fn $function() -> u64 {
            let value;
            // SAFETY: reading this register has no side effect on memory or control flow.
            unsafe { core::arch::asm!(concat!("mrs {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    };
}

macro_rules! write {
    ($(#[$doc:meta])* $visible:vis $function:ident, $register:literal) => {
        $(#[$doc])*
        $visible fn $function(value: u64) {
            // SAFETY: the register governs the guest or this CPU's exceptions, not the memory that Rust code uses.
            unsafe { core::arch::asm!(concat!("msr ", $register, ", {}"), in(reg) value, options(nomem, nostack, preserves_flags)) };
        }
    };
}

pub(crate) use {read, write};

write!(
    /// Sets the vector table of EL2.
    pub vbar_el2_write, "vbar_el2"
);
read!(
    /// Syndrome of the last exception to EL2.
    pub esr_el2, "esr_el2"
);
read!(
    /// Virtual address of the last abort to EL2.
    pub far_el2, "far_el2"
);
read!(
    /// `HPFAR_EL2`: IPA of the last stage-2 abort, bits 47:12 at 43:4.
    pub hpfar_el2, "hpfar_el2"
);
read!(
    /// Return address of the last exception to EL2.
    pub elr_el2, "elr_el2"
);
read!(
    /// This CPU's affinity.
    pub mpidr_el1, "mpidr_el1"
);
read!(
    /// Memory model features.
    pub id_aa64mmfr0_el1, "id_aa64mmfr0_el1"
);
read!(
    /// This CPU's make.
    pub midr_el1, "midr_el1"
);

/// Waits until every earlier memory access of this CPU is complete, for the whole system.
pub fn dsb_sy() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) }
}

/// Waits until every earlier store of this CPU is visible to the inner shareable domain, walkers included.
pub fn dsb_ishst() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) }
}

/// Waits until every earlier access of this CPU, TLB maintenance included, is complete in the inner shareable domain.
pub fn dsb_ish() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) }
}

/// Makes every earlier register write take effect for the instructions that follow.
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) }
}

/// Sleeps until an interrupt is pending, whether masked or not.
pub fn wfi() {
    // SAFETY: EL2 keeps interrupts masked; the CPU goes on at the next instruction.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) }
}
