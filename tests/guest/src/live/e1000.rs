//! e1000 and e1000e, which receive alike: whatever arrives from the network goes to memory, for as long as there are descriptors.

use super::{Live, Room, arrives, blank, writes};
use crate::arch::mem;
use crate::pci::{Bus, COMMAND_BUS_MASTER, Function};

pub const ID: u32 = 0x100e_8086;
/// QEMU's e1000e says that it forgets everything in D3hot, and forgets nothing.
pub const ID_EXPRESS: u32 = 0x10d3_8086;
const CONTROL: u64 = 0x0000;
const CONTROL_LINK_UP: u32 = 1 << 6;
const RECEIVE_CONTROL: u64 = 0x0100;
/// Enabled, promiscuous in every way, broadcast accepted, 2 KiB per buffer.
const RECEIVE_ALL: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 15;
const RING_LOW: u64 = 0x2800;
const RING_HIGH: u64 = 0x2804;
const RING_LENGTH: u64 = 0x2808;
const RING_HEAD: u64 = 0x2810;
const RING_TAIL: u64 = 0x2818;
/// One page of descriptors, 16 bytes each.
const DESCRIPTORS: u64 = 256;
/// All of them lead to one buffer.
const BUFFER: u64 = 4096;

pub fn start(function: Function, bus: &mut Bus<'_>, room: Room) -> Result<Live, &'static str> {
    let memory = room.memory;
    super::place(function, bus)?;
    // The e1000e has more BARs behind this one.
    let registers = function.bars().next().ok_or("the source has no memory BAR")?;
    let registers = function.bar_address(registers);
    let buffer = memory + BUFFER;
    mem::write32(registers + RECEIVE_CONTROL, 0);
    function.enable(COMMAND_BUS_MASTER);
    for index in 0..DESCRIPTORS {
        mem::write64(memory + 16 * index, room.seen(buffer));
        mem::write64(memory + 16 * index + 8, 0);
    }
    blank(buffer);
    for (register, value) in [
        (CONTROL, mem::read32(registers + CONTROL) | CONTROL_LINK_UP),
        (RING_LOW, room.device as u32),
        (RING_HIGH, (room.device >> 32) as u32),
        (RING_LENGTH, (16 * DESCRIPTORS) as u32),
        (RING_HEAD, 0),
        (RING_TAIL, DESCRIPTORS as u32 - 1),
        (RECEIVE_CONTROL, RECEIVE_ALL),
    ] {
        mem::write32(registers + register, value);
    }
    arrives(buffer)?;
    Ok(writes(function, room.seen(buffer), 64))
}
