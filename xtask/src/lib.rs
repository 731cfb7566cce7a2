//! `cargo xtask`: set up what is missing, build, boot in QEMU, judge.
//!
//! The modules are the concepts; [`cli`] only names them for the command line. A run goes through them
//! in this order: [`manifest`] and [`kernel`] read what the user gave, [`plan`] decides which CPU and
//! which device belongs to whom, [`setup`] and [`image`] provide QEMU and the images, [`bundle`] packs
//! what the bootloader hands to EL2, [`machine`] writes QEMU's command line, [`run`] boots and listens,
//! and the `evidence` crate judges.
#![forbid(unsafe_code)]
// They panic when nobody reads: see `say`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod say;

pub mod bench;
pub mod builtin;
pub mod bundle;
pub mod catalog;
pub mod ci;
pub mod cli;
pub mod coverage;
pub mod device;
pub mod exit;
pub mod frames;
pub mod fuzz;
pub mod image;
pub mod interrupt;
pub mod kernel;
pub mod linux;
pub mod machine;
pub mod manifest;
pub mod mutants;
pub mod outputs;
pub mod plan;
pub mod prepare;
pub mod refusal;
pub mod request;
pub mod run;
pub mod scenario;
pub mod scratch;
pub mod setup;
pub mod silence;
pub mod size;
pub mod slots;
pub mod soak;
pub mod suite;
pub mod tool;
pub mod unsafety;
pub mod vm;
pub mod workspace;
