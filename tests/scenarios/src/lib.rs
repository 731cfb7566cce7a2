//! What an SMMUv3 is asked, and what is seen of it: the same for the model on the host and for the SMMU of a machine.
//!
//! [`run`] programs an SMMU by nothing but its registers and memory, lets a device access addresses, and says line by
//! line what became of each access and what the SMMU recorded. It knows nothing of the code under test: formats are
//! spelled out as in the specification. The model and QEMU's SMMU must say the same lines, but for [`DIFFERENCES`].
#![no_std]
#![forbid(unsafe_code)]

mod differences;
mod format;
mod play;
mod rig;

pub use differences::{DIFFERENCES, Difference};
pub use play::run;

use core::fmt::Arguments;

use smmu::addr::{Pa, StreamId};
use smmu::ports::{Memory, Registers};

/// A machine with an SMMU, and a device behind it.
pub trait Bench: Registers + Memory {
    /// Gives out memory: zeros, as many as `size` says, aligned to that.
    fn allocate(&mut self, size: u64) -> Pa;

    /// The device's StreamID, below 256.
    fn sid(&self) -> StreamId;

    /// The device writes four bytes to `address`, and all that follows from it happens. Returns whether they arrived at
    /// `target`.
    fn write(&mut self, address: u64, target: Pa) -> bool;

    /// The device reads four bytes from `address`, and all that follows from it happens.
    fn read(&mut self, address: u64);

    /// Takes the next line. The first one of two equal machines is the same, and so on.
    fn say(&mut self, line: Arguments<'_>);
}
