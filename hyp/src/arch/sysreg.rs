//! System registers: those of `aarch64-cpu` under one roof with those that it does not know, and barriers.
//!
//! No accessor here is an ordering point for memory: whoever publishes memory through a register writes
//! store, [`dsb_ishst`], register, [`isb`].

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    ELR_EL2, ESR_EL2, FAR_EL2, HPFAR_EL2, ID_AA64MMFR0_EL1, MIDR_EL1, MPIDR_EL1, VBAR_EL2,
};
use tock_registers::interfaces::{Readable, Writeable};

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

/// Sets the vector table of EL2.
pub fn vbar_el2_write(value: u64) {
    VBAR_EL2.set(value);
}

/// Syndrome of the last exception to EL2.
pub fn esr_el2() -> u64 {
    ESR_EL2.get()
}

/// Virtual address of the last abort to EL2.
pub fn far_el2() -> u64 {
    FAR_EL2.get()
}

/// `HPFAR_EL2`: IPA of the last stage-2 abort, bits 47:12 at 43:4.
pub fn hpfar_el2() -> u64 {
    HPFAR_EL2.get()
}

/// Return address of the last exception to EL2.
pub fn elr_el2() -> u64 {
    ELR_EL2.get()
}

/// This CPU's affinity.
pub fn mpidr_el1() -> u64 {
    MPIDR_EL1.get()
}

/// Memory model features.
pub fn id_aa64mmfr0_el1() -> u64 {
    ID_AA64MMFR0_EL1.get()
}

/// This CPU's make.
pub fn midr_el1() -> u64 {
    MIDR_EL1.get()
}

/// Waits until every earlier memory access of this CPU is complete, for the whole system.
pub fn dsb_sy() {
    barrier::dsb(barrier::SY);
}

/// Waits until every earlier store of this CPU is visible to the inner shareable domain, walkers included.
pub fn dsb_ishst() {
    barrier::dsb(barrier::ISHST);
}

/// Waits until every earlier access of this CPU, TLB maintenance included, is complete in the inner shareable domain.
pub fn dsb_ish() {
    barrier::dsb(barrier::ISH);
}

/// Makes every earlier register write take effect for the instructions that follow.
pub fn isb() {
    barrier::isb(barrier::SY);
}

/// Sleeps until an interrupt is pending, whether masked or not.
pub fn wfi() {
    // SAFETY: EL2 keeps interrupts masked; the CPU goes on at the next instruction.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) }
}
