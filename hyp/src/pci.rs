//! The physical side of PCI: who is on the bus, where their registers are, and how to make them stop.
//!
//! Nobody numbered the buses or assigned the BARs before EL2 did, and firmware may have left devices armed.
//! [`enumerate`] therefore silences every function before anything else, and hands out a [`Topology`] in which
//! no function can do DMA, raise an interrupt or answer to an address that it shares with another one.
//! [`quiesce`] is the other end of a function's life in a VM: it stops, resets and restores it.
//!
//! Sections without a name are those of the PCI Express Base Specification, revision 5.0.

mod allocate;
mod capability;
mod config;
mod enumerate;
/// Only where there is no hardware: for tests and fuzzing. Its builders are named after what they build.
#[cfg(not(target_os = "none"))]
#[allow(missing_docs)]
pub mod fake;
mod function;
mod quiesce;
pub(crate) mod registers;
#[cfg(test)]
mod tests;
mod topology;
mod virtio;

/// The most functions that one VM owns.
pub use platform::bundle::MAX_FUNCTIONS as MAX_VM_FUNCTIONS;
pub use platform::pcie::{Bdf, Pin};
use smmu::addr::Pa;
use smmu::ports::Clock;

pub use crate::width::Width;

pub use self::capability::{Capabilities, Express, Port, Power};
pub(crate) use self::config::Config;
pub use self::enumerate::{PciError, enumerate};
pub use self::function::{Bar, BarKind, Bridge, Function, Kind, Place, Unassignable};
pub use self::quiesce::{
    How, Quiesced, Request, ResetPolicy, Scope, bus_master_off, bus_master_on, is_armed, quiesce,
};
pub(crate) use self::quiesce::{Method, reset_to_cold};
pub(crate) use self::registers as reg;
pub use self::topology::{MAX_FUNCTIONS, Topology};
pub(crate) use self::virtio::configuration_type;
pub use self::virtio::{Bypass, dma_check};

/// The physical configuration space (ECAM, section 7.2.2).
///
/// Accesses are naturally aligned, inside the function's 4 KiB and at most [`Width::Word`] wide. They are
/// non-posted: a write has reached the function when the call returns.
pub trait ConfigSpace {
    /// Reads a register of `function`; all ones if there is no such function.
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32;
    /// Writes a register of `function`. Bits of `value` above `width` are ignored.
    fn write(&self, function: Bdf, offset: u16, width: Width, value: u32);
}

/// The registers of devices, where their BARs were placed.
///
/// Accesses are naturally aligned.
pub trait DeviceMemory {
    /// Reads a device's register.
    ///
    /// # Errors
    ///
    /// [`BusError`]
    fn load(&self, at: Pa, width: Width) -> Result<u64, BusError>;
    /// Writes a device's register. Bits of `value` above `width` are ignored.
    ///
    /// # Errors
    ///
    /// [`BusError`]
    fn store(&self, at: Pa, width: Width, value: u64) -> Result<(), BusError>;
}

/// A clock to wait with, and what is worth doing meanwhile.
pub trait Patience: Clock {
    /// Called again and again while something is waited for, which may take a second: it does what cannot wait that
    /// long. A VM's locks may be held.
    fn meanwhile(&self);
}

/// A device, or the bus for want of one, answered an access with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusError;
