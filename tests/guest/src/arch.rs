//! Everything that needs `unsafe`: entry, exceptions, memory and system registers of this CPU.
//!
//! What is exported is safe to call, because the runtime keeps one rule: Rust objects live inside the linked
//! image only. [`mem`] refuses to write there, and reaches everything else by volatile accesses.

pub mod boot;
pub mod call;
pub mod cpu;
pub mod exception;
pub mod kexec;
pub mod mem;
pub mod odd;
pub mod state;
pub mod tables;
