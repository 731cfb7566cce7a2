//! A Linux program that drives an `edu` device from userspace, and aims it at what its VM does not own.
//!
//! ```text
//! uio device=0000:00:01.0 uio=/dev/uio0 nonce=0x1234abcd targets=0x50000000,0x9050000
//! ```
//!
//! With `stray=0x12340000` in place of the last two it only writes there, and to a page that it has just let go of: to
//! what a VM with an SMMU of its own has not mapped for the device.
//!
//! `device=` is bound to `uio_pci_generic`, which made it `uio=`. Every DMA is told of as the built-in rogue tells of
//! its own: one `@tried` line each.
//!
//! The program is its own C library: it is built for the bare target, makes its own system calls, and runs on any
//! arm64 Linux with pages of 4 KiB. On any other target than the bare one the package is a stub, so that the
//! workspace builds as a whole.

#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
#[allow(unsafe_code)]
mod arch;
#[cfg(target_os = "none")]
mod arguments;
#[cfg(target_os = "none")]
mod attack;
#[cfg(target_os = "none")]
mod driver;
#[cfg(target_os = "none")]
mod edu;
#[cfg(target_os = "none")]
mod page;
#[cfg(target_os = "none")]
mod pattern;
#[cfg(target_os = "none")]
mod text;

#[cfg(target_os = "none")]
use attack::run;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "uio: a program for a Linux guest, built for aarch64-unknown-none-softfloat by the system tests"
    );
    std::process::exit(2);
}
