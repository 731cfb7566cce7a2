//! The EL2 image: everything is in the library, entry included.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use hyp as _;

/// There is nothing to run on a host; `cargo xtask qemu` boots the image.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("portcullis is an EL2 image: run `cargo xtask qemu`");
}
