//! QEMU's `edu` device, driven from userspace.

pub use edu::Operation;
use edu::{IDENTIFICATION, RUN, register};

use crate::arch::system;
use crate::driver::Driver;

/// The size of its BAR.
pub const BAR_SIZE: usize = edu::BAR_SIZE as usize;
const POLL_MS: u64 = 10;
/// How often it is looked whether a DMA has ended: a hundred times what it should take.
const POLLS: u32 = 1000;

/// An edu device that masters the bus.
pub struct Edu(Driver);

impl Edu {
    /// Recognises the device.
    ///
    /// # Errors
    ///
    /// A reason if it is another one.
    pub fn new(driver: Driver) -> Result<Self, &'static str> {
        match driver.registers.read32(register::IDENTIFICATION as usize) {
            IDENTIFICATION => Ok(Self(driver)),
            _ => Err("the device is not an edu"),
        }
    }

    /// Moves `size` bytes, at most 4 KiB, between the start of the buffer and the memory at `address`, an IPA where
    /// the VM sees no SMMU or lets the device pass it.
    ///
    /// # Errors
    ///
    /// A reason if it does not end.
    pub fn transfer(
        &self,
        operation: Operation,
        address: u64,
        size: u64,
    ) -> Result<(), &'static str> {
        let (source, destination) = operation.ends(address);
        let registers = &self.0.registers;
        registers.write64(register::DMA_SOURCE as usize, source);
        registers.write64(register::DMA_DESTINATION as usize, destination);
        registers.write64(register::DMA_COUNT as usize, size);
        registers.write32(register::DMA_COMMAND as usize, operation.command(false));
        for _ in 0..POLLS {
            if registers.read32(register::DMA_COMMAND as usize) & RUN == 0 {
                return Ok(());
            }
            system::sleep_ms(POLL_MS);
        }
        Err("a DMA does not end")
    }
}
