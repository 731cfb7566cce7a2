//! SMMUv3 logic: formats, queues, the stream table, stage 2, update plans, invalidation and teardown.
//!
//! The crate owns no memory and touches no hardware: whatever it does to the machine it does through
//! the traits in [`ports`], so that the same code runs at EL2 and against a model on the host.
//! Section numbers without a name are those of Arm IHI 0070, the SMMUv3 architecture.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod ports;
