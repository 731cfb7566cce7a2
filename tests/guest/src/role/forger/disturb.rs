//! What the second CPU does to the first one's structures.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::{Order, Registers, smp};
use crate::arch::mem;
use crate::machine::Machine;
use crate::smmu::format::{cr0, register, ste};

static KIND: AtomicU32 = AtomicU32::new(0);
static WHERE: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static STOP: AtomicBool = AtomicBool::new(false);

/// What is disturbed.
#[derive(Clone, Copy, Debug)]
pub enum Disturbance {
    /// Structures in memory, which change to something that is legal, and to something that is not.
    Structures {
        /// A stream table entry.
        ste: u64,
        /// A CD.
        context: u64,
        /// A table of stage 1.
        table: u64,
        /// A command queue of 256 entries.
        queue: u64,
    },
    /// `CMDQ_PROD`, which moves by most of a round.
    Producer {
        /// The SMMU.
        registers: Registers,
    },
    /// `CR0`.
    Enables {
        /// The SMMU.
        registers: Registers,
    },
}

/// A disturbance that goes on.
#[must_use]
pub struct Disturbed(u32);

impl Disturbance {
    /// Lets the second CPU begin.
    pub fn begin(self, machine: &Machine) -> Disturbed {
        let (kind, at) = match self {
            Self::Structures { ste, context, table, queue } => (0, [ste, context, table, queue]),
            Self::Producer { registers } => (1, [registers.address(0), 0, 0, 0]),
            Self::Enables { registers } => (2, [registers.address(0), 0, 0, 0]),
        };
        KIND.store(kind, Ordering::Relaxed);
        for (place, value) in WHERE.iter().zip(at) {
            place.store(value, Ordering::Relaxed);
        }
        STOP.store(false, Ordering::Release);
        let before = smp::answers(1);
        smp::order(machine, 1, Order::Disturb);
        Disturbed(before)
    }
}

impl Disturbed {
    /// Lets the second CPU stop; says whether it did.
    pub fn end(self, _machine: &Machine) -> bool {
        STOP.store(true, Ordering::Release);
        smp::patiently(|| smp::answers(1) != self.0)
    }
}

/// The second CPU's part.
pub fn disturb() {
    let at = WHERE.each_ref().map(|place| place.load(Ordering::Relaxed));
    let kind = KIND.load(Ordering::Relaxed);
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    while !STOP.load(Ordering::Acquire) {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        match kind {
            0 => structures(at, noise),
            1 => mem::write32(at[0] + u64::from(register::CMDQ_PROD), noise as u32 & 0x1ff),
            _ => {
                let enables = cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN;
                mem::write32(at[0] + u64::from(register::CR0), noise as u32 & enables);
            }
        }
    }
}

/// Changes one word of something.
fn structures([ste, context, table, queue]: [u64; 4], noise: u64) {
    let good = [ste::PASS[0], ste::stage1(context)[0], ste::ABORT[0], 0];
    let index = noise >> 8 & 7;
    match noise & 7 {
        // Legal entries, torn by the SMMU's own reads.
        0 | 1 => mem::write64(ste, good[(noise >> 3 & 3) as usize]),
        // Anything at all, stage 2 included.
        2 => mem::write64(ste + 8 * index, noise.rotate_left(29)),
        3 => mem::write64(ste, noise.rotate_left(17) | 1),
        // The CD: its root, its attributes, all of it.
        4 => mem::write64(context + 8 * (index & 1), noise.rotate_left(41)),
        // A table of stage 1.
        5 => mem::write64(table + 8 * (noise >> 8 & 0x1ff), noise.rotate_left(13)),
        // A command, before, while or after it is read.
        6 => mem::write64(queue + 16 * (noise >> 8 & 0xff), noise.rotate_left(7)),
        _ => mem::write64(queue + 16 * (noise >> 8 & 0xff) + 8, noise.rotate_left(3)),
    }
}
