//! The EL2 image.
//!
//! What decides is safe code behind ports and tested on the host; what touches the machine is under `arch`
//! and `mem`, the only places with `unsafe`.
#![cfg_attr(target_os = "none", no_std)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
#[allow(unsafe_code)]
pub mod arch;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod emulate;
pub mod exits;
#[cfg(target_os = "none")]
pub mod far;
pub mod idregs;
pub mod inbox;
#[cfg(target_os = "none")]
pub mod interrupts;
#[cfg(target_os = "none")]
pub mod iommu;
pub mod life;
pub mod lines;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
#[allow(unsafe_code)]
pub mod mem;
pub mod mmu;
#[cfg(target_os = "none")]
pub mod operator;
pub mod ownership;
pub mod pci;
pub mod psci;
#[cfg(target_os = "none")]
pub mod report;
#[cfg(target_os = "none")]
pub mod run;
#[cfg(target_os = "none")]
pub mod start;
pub mod syndrome;
#[cfg(target_os = "none")]
pub mod takeover;
#[cfg(target_os = "none")]
pub mod teardown;
#[cfg(target_os = "none")]
pub mod turns;
#[cfg(target_os = "none")]
pub mod typing;
pub mod vgic;
#[cfg(target_os = "none")]
pub mod vm;
pub mod vpci;
#[cfg(target_os = "none")]
pub mod vsmmu;
pub mod vuart;
pub mod width;
