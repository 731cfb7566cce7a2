//! virtio-blk over PCI: reads that the disk behind it is slow to answer. The device has mapped their buffers when
//! it took the requests.

use super::{Live, Room, arrives, blank, writes};
use crate::arch::mem;
use crate::pci::{Bus, COMMAND_BUS_MASTER, Function};

pub const ID: u32 = 0x1042_1af4;
/// Offsets in the BAR, in QEMU's fixed layout: the common configuration, and the queues' doorbells.
const FEATURE_SELECT: u64 = 0x08;
const FEATURE: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESCRIPTORS: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
const DOORBELL: u64 = 0x3000;
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
/// Features 32 and 33: version 1, and DMA that passes the IOMMU.
const FEATURES_HIGH: u32 = 0b11;
const NEXT: u64 = 1;
const DEVICE_WRITES: u64 = 2;
/// Reads: one to see that it works, the others to be in flight.
const READS: u64 = 4;
const SIZE: u64 = 4096;
const QUEUE: u64 = 16;
/// Where things are in the memory: the driver's and the device's ring, headers, statuses, and the data.
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const HEADERS: u64 = 0xc00;
const STATUSES: u64 = 0xe00;
const DATA: u64 = 0x1000;

pub fn start(function: Function, bus: &mut Bus<'_>, room: Room) -> Result<Live, &'static str> {
    let memory = room.memory;
    let registers = super::place(function, bus)?;
    let status = |bits: u8| mem::write8(registers + STATUS, bits);
    status(0);
    super::wait(|| mem::read8(registers + STATUS) == 0, "virtio-blk: no reset")?;
    function.enable(COMMAND_BUS_MASTER);
    status(ACKNOWLEDGE | DRIVER);
    for (half, features) in [(0, 0), (1, FEATURES_HIGH)] {
        mem::write32(registers + FEATURE_SELECT, half);
        mem::write32(registers + FEATURE, features);
    }
    status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if mem::read8(registers + STATUS) & FEATURES_OK == 0 {
        return Err("virtio-blk: features refused");
    }
    for offset in (0..DATA).step_by(8) {
        mem::write64(memory + offset, 0);
    }
    mem::write16(registers + QUEUE_SELECT, 0);
    mem::write16(registers + QUEUE_SIZE, QUEUE as u16);
    for (register, address) in [
        (QUEUE_DESCRIPTORS, room.device),
        (QUEUE_DRIVER, room.device + AVAILABLE),
        (QUEUE_DEVICE, room.device + USED),
    ] {
        mem::write32(registers + register, address as u32);
        mem::write32(registers + register + 4, (address >> 32) as u32);
    }
    mem::write16(registers + QUEUE_ENABLE, 1);
    status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);

    for read in 0..READS {
        // A header of zeros is a read from sector 0.
        let chain = [
            (HEADERS + 16 * read, 16, NEXT),
            (DATA + SIZE * read, SIZE, NEXT | DEVICE_WRITES),
            (STATUSES + 4 * read, 1, DEVICE_WRITES),
        ];
        for (index, (offset, size, flags)) in (3 * read..).zip(chain) {
            mem::write64(memory + 16 * index, room.device + offset);
            mem::write64(memory + 16 * index + 8, size | flags << 32 | (index + 1) << 48);
        }
        mem::write16(memory + AVAILABLE + 4 + 2 * read, 3 * read as u16);
        blank(memory + DATA + SIZE * read);
    }
    let available = |count: u64| (memory + AVAILABLE, (count as u32) << 16);
    let first = Live {
        release: [Some(available(1)), Some((registers + DOORBELL, 0))],
        ..writes(function, memory, 1)
    };
    first.release();
    arrives(memory + DATA)?;
    let release = [Some(available(READS)), Some((registers + DOORBELL, 0))];
    Ok(Live { release, ..writes(function, room.device + DATA + SIZE, SIZE * (READS - 1)) })
}
