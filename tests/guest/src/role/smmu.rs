//! The SMMU suite: its whole register map and every command, legal and illegal, against what IHI 0070 requires
//! of an SMMU that says of itself what this one says.
//!
//! What is required stands in [`expected`], with what QEMU's own SMMU is known to do otherwise: natively the
//! suite meets that one, and there each of these differences has to show.

mod commands;
mod events;
pub mod expected;
mod map;
mod queues;
mod updates;

use core::cell::Cell;
use core::fmt::Arguments;

use self::expected::Difference;
use super::{Check, device_works, done, memory};
use crate::arch::cpu;
use crate::edu::Edu;
use crate::machine::Machine;
use crate::pci::{Bus, COMMAND_BUS_MASTER};
use crate::smmu::format::{Identity, command, ste};
use crate::smmu::{self, Commands, Events, Pool, Registers, Shape, Smmu, StreamTable};
use crate::{gic, interrupt, println};

/// What all parts of the suite work on.
struct Suite<'a> {
    machine: &'a Machine,
    registers: Registers,
    identity: Identity,
    /// The machine's own SMMU, not a virtual one.
    bare: bool,
    /// The differences that showed, a bit each.
    seen: Cell<u32>,
}

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    gic::start(machine);
    cpu::unmask_interrupts();
    let registers = Registers::find(machine)?;
    let identity = registers.identity();
    // No guest of Portcullis is told of a stage 2.
    let bare = identity.stage2();
    println!("@iommu smmu={}", if bare { "bare" } else { "virtual" });
    let suite = Suite { machine, registers, identity, bare, seen: Cell::new(0) };
    let wires = Wires::connect(machine)?;

    map::walk(&suite)?;
    updates::probe(&suite)?;
    let mut pool = Pool::new(machine);
    // All structures of the suite, made once.
    let log2 = identity.table_log2();
    let table = StreamTable::new(&mut pool, Shape::Linear { log2 })?;
    let events = Events::new(&mut pool, identity.event_queue_log2().min(8))?;
    let commands = Commands::new(&mut pool, identity.command_queue_log2().min(8))?;
    updates::guards(&suite, commands, events, table)?;
    commands::probe(&suite, &wires, Smmu::start(registers, commands, events, table)?)?;
    queues::probe(&suite, &mut pool, Smmu::start(registers, commands, events, table)?)?;
    let edu = Edu::find(machine, &mut Bus::new(machine)?)?;
    let sid = smmu::stream_id(machine, edu.function)?;
    let smmu = Smmu::start(registers, commands, events, table)?;
    events::probe(&suite, &wires, edu, sid, &mut pool, smmu)?;
    let mut smmu = Smmu::start(registers, commands, events, table)?;
    smmu.set_ste(sid, &ste::PASS)?;
    // A hypervisor may have stopped the device when the SMMU was disabled.
    edu.function.enable(COMMAND_BUS_MASTER);
    device_works(machine, edu)?;
    edu.function.disable(COMMAND_BUS_MASTER);
    smmu.stop()?;

    if bare {
        let mut differs = Check::new("differs-as-listed");
        for difference in Difference::ALL {
            differs.that(
                suite.seen.get() >> difference as u32 & 1 != 0,
                format_args!("{difference:?} does not show"),
            );
        }
    }
    done("smmu");
    Ok(())
}

impl Suite<'_> {
    /// One thing to look at, which is right or, on the machine's own SMMU, may be a known difference.
    fn that(&self, check: &mut Check, right: bool, known: Option<Difference>, seen: Arguments<'_>) {
        match known {
            Some(difference) if self.bare && !right => {
                self.seen.set(self.seen.get() | 1 << difference as u32);
            }
            _ => check.that(right, seen),
        }
    }
}

/// The interrupts of the SMMU, counted on this CPU.
struct Wires {
    eventq: u32,
    gerror: u32,
    cmdq_sync: Option<u32>,
}

impl Wires {
    fn connect(machine: &Machine) -> Result<Self, &'static str> {
        let [eventq, gerror, cmdq_sync] = smmu::node(machine)?.interrupts;
        for intid in [eventq, gerror, cmdq_sync].into_iter().flatten() {
            gic::configure_spi(intid, gic::Trigger::Edge, cpu::affinity());
            gic::enable(intid);
        }
        let missing = "smmu: eventq and gerror are not wired";
        Ok(Self { eventq: eventq.ok_or(missing)?, gerror: gerror.ok_or(missing)?, cmdq_sync })
    }
}

/// How often `intid` came so far.
fn count(intid: u32) -> u32 {
    interrupt::count(0, intid)
}

/// A harmless batch: an invalidation that is complete.
const FLUSH: [smmu::format::Command; 2] = [command::TLBI_NSNH_ALL, command::SYNC];
