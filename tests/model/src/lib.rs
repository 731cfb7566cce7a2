//! A software SMMUv3 that does whatever the architecture allows at the worst moment.
//!
//! [`machine::Machine`] implements the ports of the `smmu` crate. At every store, barrier, register access
//! and look at the clock, an adversary may fetch any STE, CD or table word that is reachable, keep stale
//! copies until the exact `CMD_CFGI_*` or `CMD_TLBI_*` **and** a `CMD_SYNC` are complete, consume commands
//! late, deliver events late, hold accesses back that it has translated, and show the SMMU stores in any
//! order that no barrier forbids. Every decoder is written from the specification and shares nothing with
//! the crate under test.
//!
//! What must never happen is a [`violation::Property`]; the machine remembers the first one it sees.
#![forbid(unsafe_code)]

pub mod bench;
pub mod chooser;
pub mod decode;
pub mod host;
pub mod machine;
pub mod memory;
pub mod profile;
mod smmu;
pub mod violation;

#[cfg(test)]
mod tests;
