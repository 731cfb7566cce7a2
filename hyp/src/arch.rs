//! What only assembly can say: entry and exit of EL2, system registers, barriers, device registers.
//!
//! Functions here are safe where no use of them can break EL2's own memory safety; what they do to a guest
//! is for their callers to get right.

pub mod boot;
pub mod cache;
pub mod cpu;
pub mod fatal;
pub mod firmware;
pub mod gic;
pub mod idregs;
pub mod mmio;
pub mod pcie;
pub mod pmu;
pub mod sysreg;
pub mod timer;
pub mod tlb;
pub mod uart;
pub mod vcpu;
