//! The EL2 image.
//!
//! What decides is safe code behind ports and tested on the host; what touches the machine is under [`arch`]
//! and [`mem`], the only places with `unsafe`.
#![cfg_attr(target_os = "none", no_std)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
#[allow(unsafe_code)]
pub mod arch;
#[cfg(target_os = "none")]
pub mod console;
pub mod idregs;
#[cfg(target_os = "none")]
#[allow(unsafe_code)]
pub mod mem;
pub mod pci;
pub mod psci;
#[cfg(target_os = "none")]
pub mod start;
pub mod syndrome;
pub mod vgic;
pub mod vpci;
pub mod vuart;
