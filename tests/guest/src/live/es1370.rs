//! ES1370 (Ensoniq AudioPCI): its capture channel fills a ring of memory for ever, whatever becomes of the writes.

use super::{Live, Room, arrives, blank, writes};
use crate::arch::mem;
use crate::pci::{Bus, COMMAND_BUS_MASTER, COMMAND_IO, Function};

pub const ID: u32 = 0x5000_1274;
const CONTROL: u64 = 0x00;
const CONTROL_ADC_ENABLE: u32 = 1 << 4;
/// The sample rate's divider.
const CONTROL_DIVIDER: u32 = 30 << 16;
const MEMORY_PAGE: u64 = 0x0c;
const ADC_SAMPLE_COUNT: u64 = 0x2c;
/// On the memory page of the capture channel.
const ADC_PAGE: u32 = 0xd;
const ADC_FRAME_ADDRESS: u64 = 0x30;
const ADC_FRAME_SIZE: u64 = 0x34;
const RING: u64 = 4096;

pub fn start(function: Function, bus: &mut Bus<'_>, room: Room) -> Result<Live, &'static str> {
    let memory = room.memory;
    let (ports, offset) = bus.bridge.io.clone().ok_or("no PCI I/O window")?;
    // Port 0 is no address for a BAR.
    let port = ports.start + 0x1000;
    function.set_io_bar(0, port);
    function.enable(COMMAND_IO);
    let registers = port + offset;
    mem::write32(registers + CONTROL, 0);
    function.enable(COMMAND_BUS_MASTER);
    blank(memory);
    mem::write32(registers + MEMORY_PAGE, ADC_PAGE);
    mem::write32(registers + ADC_FRAME_ADDRESS, room.device as u32);
    mem::write32(registers + ADC_FRAME_SIZE, (RING / 4 - 1) as u32);
    mem::write32(registers + ADC_SAMPLE_COUNT, 0xffff);
    mem::write32(registers + CONTROL, CONTROL_DIVIDER | CONTROL_ADC_ENABLE);
    arrives(memory)?;
    Ok(writes(function, room.device, RING))
}
