//! Bare-metal EL1 guests with real DMA devices: one runtime, roles picked by `role=` in the bootargs.
//!
//! The image runs under Portcullis and, unchanged, on the bare machine. What a role saw leaves as plain lines
//! on its console (its *testimony*), one fact per line: `@tried`, `@armed`, `@canary`, `@interrupts`, `@check`
//! and at last `@done`.
//!
//! On any other target than the bare one the package is a stub, so that the workspace builds as a whole.

#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
#[allow(unsafe_code)]
mod arch;
#[cfg(target_os = "none")]
mod bootargs;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod edu;
#[cfg(target_os = "none")]
mod gic;
#[cfg(target_os = "none")]
mod interrupt;
#[cfg(target_os = "none")]
mod live;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod pci;
#[cfg(target_os = "none")]
mod psci;
#[cfg(target_os = "none")]
mod role;
#[cfg(target_os = "none")]
mod runtime;
#[cfg(target_os = "none")]
mod smmu;
#[cfg(target_os = "none")]
mod smp;
#[cfg(target_os = "none")]
mod timer;

#[cfg(target_os = "none")]
use runtime::primary;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "guest: a bare-metal image, built for aarch64-unknown-none-softfloat by `cargo xtask qemu`"
    );
    std::process::exit(2);
}
