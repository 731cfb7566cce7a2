//! NVMe: reads that the disk behind it is slow to answer. The controller has mapped their buffers when it took the
//! commands, and neither an aborting SMMU nor bus master off takes them back.

use super::{Live, Room, arrives, blank, wait, writes};
use crate::arch::mem;
use crate::pci::{Bus, COMMAND_BUS_MASTER, Function};

pub const ID: u32 = 0x0010_1b36;
const CONFIGURATION: u64 = 0x14;
/// Enabled, submission entries of 64 bytes, completion entries of 16 bytes.
const ENABLE: u32 = 4 << 20 | 6 << 16 | 1;
const STATUS: u64 = 0x1c;
const READY: u32 = 1;
const ADMIN_ATTRIBUTES: u64 = 0x24;
const ADMIN_SUBMISSION: u64 = 0x28;
const ADMIN_COMPLETION: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
const ENTRIES: u32 = 16;
const CREATE_SUBMISSION: u32 = 1;
const CREATE_COMPLETION: u32 = 5;
const READ: u32 = 2;
const CONTIGUOUS: u32 = 1;
/// The size of a queue less one, and which queue it is.
const QUEUE_1: u32 = (ENTRIES - 1) << 16 | 1;
const BLOCKS_OF_A_PAGE: u32 = 4096 / 512;
/// Reads: one to see that it works, the others to be in flight.
const READS: u64 = 4;
const PAGE: u64 = 4096;

/// A pair of queues: where its entries and its doorbell are.
struct Queue {
    room: Room,
    submissions: u64,
    completions: u64,
    doorbell: u64,
}

impl Queue {
    /// Writes command number `index`.
    fn put(&self, index: u64, opcode: u32, namespace: u32, data: u64, arguments: [u32; 3]) {
        let entry = self.submissions + 64 * index;
        for offset in (0..64).step_by(8) {
            mem::write64(entry + offset, 0);
        }
        mem::write32(entry, opcode | (index as u32) << 16);
        mem::write32(entry + 4, namespace);
        mem::write64(entry + 24, self.room.seen(data));
        for (offset, argument) in (40..).step_by(4).zip(arguments) {
            mem::write32(entry + offset, argument);
        }
    }

    /// Tells the controller that there are `count` commands, and waits for the last one.
    fn run(&self, count: u64) -> Result<(), &'static str> {
        mem::barrier();
        mem::write32(self.doorbell, count as u32);
        // The last word of a completion: the phase, and above it the status.
        let last = self.completions + 16 * (count - 1) + 12;
        wait(|| mem::read32(last) >> 16 & 1 == 1, "nvme: a command does not complete")?;
        if mem::read32(last) >> 17 == 0 { Ok(()) } else { Err("nvme: a command failed") }
    }
}

pub fn start(function: Function, bus: &mut Bus<'_>, room: Room) -> Result<Live, &'static str> {
    let memory = room.memory;
    let registers = super::place(function, bus)?;
    let status = || mem::read32(registers + STATUS);
    mem::write32(registers + CONFIGURATION, 0);
    wait(|| status() & READY == 0, "nvme: it does not stop")?;
    function.enable(COMMAND_BUS_MASTER);
    let page = |number: u64| memory + PAGE * number;
    let admin =
        Queue { room, submissions: page(0), completions: page(1), doorbell: registers + DOORBELLS };
    let io = Queue {
        room,
        submissions: page(2),
        completions: page(3),
        doorbell: registers + DOORBELLS + 8,
    };
    for offset in (0..4 * PAGE).step_by(8) {
        mem::write64(memory + offset, 0);
    }
    mem::write32(registers + ADMIN_ATTRIBUTES, (ENTRIES - 1) << 16 | (ENTRIES - 1));
    for (register, queue) in [
        (ADMIN_SUBMISSION, room.seen(admin.submissions)),
        (ADMIN_COMPLETION, room.seen(admin.completions)),
    ] {
        mem::write32(registers + register, queue as u32);
        mem::write32(registers + register + 4, (queue >> 32) as u32);
    }
    mem::write32(registers + CONFIGURATION, ENABLE);
    wait(|| status() & READY != 0, "nvme: it does not start")?;
    admin.put(0, CREATE_COMPLETION, 0, io.completions, [QUEUE_1, CONTIGUOUS, 0]);
    admin.run(1)?;
    admin.put(1, CREATE_SUBMISSION, 0, io.submissions, [QUEUE_1, 1 << 16 | CONTIGUOUS, 0]);
    admin.run(2)?;

    let data = |read: u64| page(4 + read);
    for read in 0..READS {
        io.put(read, READ, 1, data(read), [0, 0, BLOCKS_OF_A_PAGE - 1]);
        blank(data(read));
    }
    io.run(1)?;
    arrives(data(0))?;
    let release = [Some((io.doorbell, READS as u32)), None];
    Ok(Live { release, ..writes(function, room.seen(data(1)), PAGE * (READS - 1)) })
}
