//! The EL2 image.
#![cfg_attr(target_os = "none", no_std)]

pub mod pci;
pub mod vgic;
pub mod vpci;
