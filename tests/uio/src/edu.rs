//! QEMU's `edu` device: 4 KiB of buffer, and DMA between it and memory 100 ms after the command.

use core::fmt;

use crate::arch::system;
use crate::driver::Driver;

/// The size of its BAR.
pub const BAR_SIZE: usize = 1 << 20;
const IDENTIFICATION: usize = 0;
const EDU: u32 = 0x0100_00ed;
/// Where the device has its buffer, in its own address space.
const BUFFER: u64 = 0x4_0000;
const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;
const DMA_RUN: u32 = 1;
const DMA_TO_MEMORY: u32 = 2;
const POLL_MS: u64 = 10;
/// How often it is looked whether a DMA has ended: a hundred times what it should take.
const POLLS: u32 = 1000;

/// Which way a DMA goes, as the memory sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The device reads memory into its buffer.
    Read,
    /// The device writes its buffer to memory.
    Write,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// An edu device that masters the bus.
pub struct Edu(Driver);

impl Edu {
    /// Recognises the device.
    ///
    /// # Errors
    ///
    /// A reason if it is another one.
    pub fn new(driver: Driver) -> Result<Self, &'static str> {
        match driver.registers.read32(IDENTIFICATION) {
            EDU => Ok(Self(driver)),
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
        let (source, destination, direction) = match operation {
            Operation::Read => (address, BUFFER, 0),
            Operation::Write => (BUFFER, address, DMA_TO_MEMORY),
        };
        let registers = &self.0.registers;
        registers.write64(DMA_SOURCE, source);
        registers.write64(DMA_DESTINATION, destination);
        registers.write64(DMA_COUNT, size);
        registers.write32(DMA_COMMAND, DMA_RUN | direction);
        for _ in 0..POLLS {
            if registers.read32(DMA_COMMAND) & DMA_RUN == 0 {
                return Ok(());
            }
            system::sleep_ms(POLL_MS);
        }
        Err("a DMA does not end")
    }
}
