//! `cargo xtask`: set up what is missing, build, boot in QEMU, judge.

pub mod linux;
pub mod setup;
