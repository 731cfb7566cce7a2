//! `pci-ohci`: once operational it writes the number of every frame, 1,000 a second. The first access that is
//! refused stops it.

use super::{Live, Room, arrives, blank, writes};
use crate::arch::mem;
use crate::pci::{Bus, COMMAND_BUS_MASTER, Function};

pub const ID: u32 = 0x003f_106b;
const CONTROL: u64 = 0x04;
const CONTROL_OPERATIONAL: u32 = 2 << 6;
const COMMAND_STATUS: u64 = 0x08;
const COMMAND_STATUS_RESET: u32 = 1;
const COMMUNICATIONS_AREA: u64 = 0x18;
/// In the communications area: frame number, pad, done head.
const FRAME_NUMBER: u64 = 0x80;

pub fn start(function: Function, bus: &mut Bus<'_>, room: Room) -> Result<Live, &'static str> {
    let memory = room.memory;
    let registers = super::place(function, bus)?;
    mem::write32(registers + COMMAND_STATUS, COMMAND_STATUS_RESET);
    function.enable(COMMAND_BUS_MASTER);
    for word in 0..64 {
        mem::write32(memory + 4 * word, 0);
    }
    blank(memory + FRAME_NUMBER);
    mem::write32(registers + COMMUNICATIONS_AREA, room.device as u32);
    mem::write32(registers + CONTROL, CONTROL_OPERATIONAL);
    arrives(memory + FRAME_NUMBER)?;
    Ok(writes(function, room.device + FRAME_NUMBER, 8))
}
