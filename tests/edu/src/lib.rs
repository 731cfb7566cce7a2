//! QEMU's `edu` device: 4 KiB of buffer, and DMA between it and memory 100 ms after the command.
//!
//! Registers are offsets in its BAR. Whoever drives it brings the accesses.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

use core::fmt;

/// Device ID in the high half, vendor ID in the low half.
pub const ID: u32 = 0x11e8_1234;
/// What [`register::IDENTIFICATION`] says.
pub const IDENTIFICATION: u32 = 0x0100_00ed;
/// The size of its BAR.
pub const BAR_SIZE: u64 = 1 << 20;
/// The size of the device's buffer: the most that one DMA moves. QEMU does not check, it overruns.
pub const BUFFER_SIZE: u64 = 4096;
/// Where the device has its buffer, in its own address space.
const BUFFER: u64 = 0x4_0000;

/// Where its registers are.
pub mod register {
    /// 32 bits: [`super::IDENTIFICATION`].
    pub const IDENTIFICATION: u64 = 0x00;
    /// 32 bits: reads as the inverse of what was written. No reset of the device clears it.
    pub const LIVENESS: u64 = 0x04;
    /// 32 bits: why the interrupt line is raised.
    pub const INTERRUPT_STATUS: u64 = 0x24;
    /// 32 bits: raises the line for the reasons written.
    pub const INTERRUPT_RAISE: u64 = 0x60;
    /// 32 bits: lowers the line for the reasons written.
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
    /// 64 bits: where the next DMA reads.
    pub const DMA_SOURCE: u64 = 0x80;
    /// 64 bits: where it writes.
    pub const DMA_DESTINATION: u64 = 0x88;
    /// 64 bits: how many bytes.
    pub const DMA_COUNT: u64 = 0x90;
    /// 32 bits: starts it; [`super::RUN`] is set as long as it lasts.
    pub const DMA_COMMAND: u64 = 0x98;
}

/// The bit of [`register::DMA_COMMAND`] that starts a DMA, and stays until it is over.
pub const RUN: u32 = 1;
const TO_MEMORY: u32 = 2;
const INTERRUPT: u32 = 4;

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

impl Operation {
    /// Source and destination of a DMA between the start of the buffer and the memory at `address`.
    pub const fn ends(self, address: u64) -> (u64, u64) {
        match self {
            Self::Read => (address, BUFFER),
            Self::Write => (BUFFER, address),
        }
    }

    /// The command that starts it, with an interrupt at its end or without.
    pub const fn command(self, interrupt: bool) -> u32 {
        let direction = if matches!(self, Self::Write) { TO_MEMORY } else { 0 };
        RUN | direction | if interrupt { INTERRUPT } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_goes_from_the_buffer_to_memory() {
        assert_eq!(Operation::Write.ends(0x1000), (0x4_0000, 0x1000));
        assert_eq!(Operation::Read.ends(0x1000), (0x1000, 0x4_0000));
        assert_eq!((Operation::Write.command(false), Operation::Read.command(true)), (3, 5));
    }
}
