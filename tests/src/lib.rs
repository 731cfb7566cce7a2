//! The system tests' harness: runs like `cargo xtask qemu`, in this process, with everything at hand to judge by.
#![forbid(unsafe_code)]

pub mod built_in;
pub mod cost;
pub mod differential;
pub mod linux;
pub mod run;
pub mod sabotage;
pub mod uio;
