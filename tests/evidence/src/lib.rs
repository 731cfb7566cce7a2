//! What really happened in a run: one implementation of the independent oracle and of the verdict.
//!
//! Three sources are read while the machine runs or right after it:
//!
//! - the guests' own words on the console ([`testimony`]), and the physical memory they left ([`memory`]);
//! - what EL2 counted ([`report`]);
//! - what QEMU's SMMU did, as its trace tells ([`trace`]).
//!
//! [`oracle`] judges the trace against the memory and the stream states that EL2 reported. [`verdict`]
//! compares all three cell by cell; a source that is missing or disagrees fails the run. What things may cost is in
//! [`budget`].
#![forbid(unsafe_code)]

pub mod budget;
#[cfg(test)]
mod fixture;
pub mod interval;
pub mod machine;
pub mod memory;
pub mod oracle;
pub mod report;
pub mod testimony;
pub mod timeline;
pub mod trace;
pub mod verdict;

pub use machine::Machine;
pub use report::Report;
pub use testimony::Testimony;
pub use trace::Trace;
pub use verdict::{Case, Verdict};
