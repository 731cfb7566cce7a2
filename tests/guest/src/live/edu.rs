//! `edu`: one DMA, 100 ms after the command. Nothing resets the device.

use super::{Live, Room};
use crate::edu::{self, Edu, Operation, Transfer};
use crate::pci::{Bus, Function};

pub const ID: u32 = edu::ID;
const SIZE: u64 = 256;

pub fn start(function: Function, bus: &mut Bus<'_>, room: Room) -> Result<Live, &'static str> {
    let memory = room.memory;
    let edu = Edu::switch_on(function, bus)?;
    let next = Transfer { operation: Operation::Write, address: room.device, size: SIZE };
    let message =
        Transfer { operation: Operation::Read, address: room.device + super::MESSAGE, size: SIZE };
    edu.transfer(message)?;
    super::blank(memory);
    edu.transfer(next)?;
    super::arrives(memory)?;
    edu.prepare(next);
    Ok(Live { function, next, release: [Some(edu.command(next.operation, false)), None] })
}
