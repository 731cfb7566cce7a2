//! Everything that needs `unsafe`: entry, system calls, and memory that is mapped.
//!
//! What is exported is safe to call, because no mapping is ever seen as a Rust object: [`map::Mapping`] owns its
//! range of addresses and reaches it by single accesses only.

pub mod map;
mod start;
pub mod system;
