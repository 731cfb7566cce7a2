//! System registers, interrupt masking and waiting of the CPU that runs this.

use core::arch::asm;

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident = $register:literal $(: $kind:ident)?;)*) => {
        $(registers!(@one $(#[$doc])* $name = $register $(: $kind)?);)*
    };
    (@one $(#[$doc:meta])* $name:ident = $register:literal: write) => {
        $(#[$doc])*
        pub fn $name(value: u64) {
            // SAFETY: none of the registers below moves, maps or unmaps memory that Rust objects live in.
            unsafe { asm!(concat!("msr ", $register, ", {}"), "isb", in(reg) value, options(nostack)) }
        }
    };
    (@one $(#[$doc:meta])* $name:ident = $register:literal) => {
        $(#[$doc])*
        pub fn $name() -> u64 {
            let value;
            // SAFETY: reading the registers below has no effect on memory.
            unsafe { asm!("isb", concat!("mrs {}, ", $register), out(reg) value, options(nostack)) }
            value
        }
    };
}

registers! {
    /// The virtual counter.
    counter = "cntvct_el0";
    /// How many times a second the counters count.
    counter_frequency = "cntfrq_el0";
    /// When the virtual timer fires.
    virtual_timer_compare = "cntv_cval_el0";
    /// The virtual timer: bit 0 enables, bit 1 masks.
    virtual_timer_control = "cntv_ctl_el0";
    /// When the physical timer fires.
    physical_timer_compare = "cntp_cval_el0";
    /// The physical timer: bit 0 enables, bit 1 masks.
    physical_timer_control = "cntp_ctl_el0";
    /// When the virtual timer fires.
    set_virtual_timer_compare = "cntv_cval_el0": write;
    /// The virtual timer: bit 0 enables, bit 1 masks.
    set_virtual_timer_control = "cntv_ctl_el0": write;
    /// The physical counter.
    physical_counter = "cntpct_el0";
    /// When the physical timer fires.
    set_physical_timer_compare = "cntp_cval_el0": write;
    /// The physical timer: bit 0 enables, bit 1 masks.
    set_physical_timer_control = "cntp_ctl_el0": write;
    /// This CPU's affinity.
    affinity = "mpidr_el1";
    /// Acknowledges the most urgent pending group 1 interrupt: its INTID, or 1023.
    acknowledge = "S3_0_C12_C12_0";
    /// Ends a group 1 interrupt: priority drop and deactivation.
    end_of_interrupt = "S3_0_C12_C12_1": write;
    /// The lowest priority that is still taken.
    set_priority_mask = "S3_0_C4_C6_0": write;
    /// How many priority bits split off into a group.
    set_binary_point = "S3_0_C12_C12_3": write;
    /// Sends a group 1 SGI.
    generate_sgi = "S3_0_C12_C11_5": write;
    /// Controls of the CPU interface.
    set_interface_control = "S3_0_C12_C12_4": write;
    /// Whether the CPU interface is reached by system registers.
    set_system_register_interface = "S3_0_C12_C12_5": write;
    /// Whether group 1 interrupts are taken.
    set_group1_enable = "S3_0_C12_C12_7": write;
    /// Where exceptions go.
    vectors = "vbar_el1";
    /// Where exceptions go; only bits that do not count may change.
    set_vectors = "vbar_el1": write;
}

/// Executes `count` instructions, an even number above 0.
pub fn spend(count: u64) {
    // SAFETY: a loop that touches one register and the flags.
    unsafe {
        asm!("0: subs {0}, {0}, #2", "b.ne 0b", inout(reg) count => _, options(nomem, nostack))
    }
}

/// The index of this CPU, 0 for the one that booted.
pub fn index() -> usize {
    let index: u64;
    // SAFETY: the entry code keeps the CPU's index in this register; reading it has no effect.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) index, options(nomem, nostack)) }
    index as usize
}

/// Lets this CPU take interrupts.
pub fn unmask_interrupts() {
    // SAFETY: the handler preserves every register and touches atomics and devices only.
    unsafe { asm!("msr daifclr, #2", "isb", options(nostack)) }
}

/// Keeps this CPU from taking interrupts.
pub fn mask_interrupts() {
    // SAFETY: masking interrupts has no effect on memory.
    unsafe { asm!("msr daifset, #2", options(nostack)) }
}

/// Sleeps until an interrupt is pending, masked or not.
pub fn wait_for_interrupt() {
    // SAFETY: a hint; the barrier lets earlier device accesses reach their device first.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) }
}
