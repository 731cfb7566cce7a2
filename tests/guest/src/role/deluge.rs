//! The deluge: a driver that does nothing but invalidate, in full batches, without a pause.

use super::{device_works, done};
use crate::edu::Edu;
use crate::machine::Machine;
use crate::pci::{Bus, COMMAND_BUS_MASTER};
use crate::smmu::format::{Command, command, ste};
use crate::smmu::{self, Pool, Registers, Smmu};
use crate::timer::Deadline;

/// How long it lasts, and how many batches it has at least.
const LASTS_MS: u64 = 3000;
const BATCHES: u32 = 200;
/// Commands of one batch, the `CMD_SYNC` behind them included: nearly all that the queue has room for.
const BATCH: usize = 250;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let edu = Edu::find(machine, &mut Bus::new(machine)?)?;
    let sid = smmu::stream_id(machine, edu.function)?;
    let registers = Registers::find(machine)?;
    let mut pool = Pool::new(machine);
    let mut smmu = Smmu::start_linear(registers, &mut pool)?;
    smmu.set_ste(sid, &ste::PASS)?;
    let mut batch: [Command; BATCH] = [command::TLBI_NSNH_ALL; BATCH];
    batch[BATCH - 1] = command::SYNC;
    let end = Deadline::after_ms(LASTS_MS);
    for number in 0_u32.. {
        if number >= BATCHES && end.passed() {
            break;
        }
        smmu.issue(&batch)?;
    }
    edu.function.enable(COMMAND_BUS_MASTER);
    device_works(machine, edu)?;
    done("deluge");
    Ok(())
}
