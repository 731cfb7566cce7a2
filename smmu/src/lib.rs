//! SMMUv3 logic: formats, queues, the stream table, stage 2, update plans, invalidation and teardown.
//!
//! The crate owns no memory and touches no hardware: whatever it does to the machine it does through
//! the traits in [`ports`], so that the same code runs at EL2 and against a model on the host.
//! Section numbers without a name are those of Arm IHI 0070 (issue G.b), the SMMUv3 architecture.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod caps;
pub mod cmd;
pub mod device;
pub mod error;
pub mod event;
#[cfg(test)]
mod fake;
pub mod format;
pub mod guest;
mod history;
pub mod invalidate;
pub mod plan;
pub mod ports;
mod queue;
mod regs;
pub mod stage2;
pub mod ste;
pub mod streams;
mod strtab;
pub mod teardown;
