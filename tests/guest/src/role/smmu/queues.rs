//! The command queue itself: every size, wrapping, moving while the SMMU is enabled, and memory that is none.

use super::{Check, FLUSH, Suite};
use crate::smmu::format::{cerror, command, cr0, gerror, register};
use crate::smmu::{Commands, Pool, Registers, Smmu, Stopped};

/// Where no machine has memory.
const NOWHERE: u64 = 0x0b00_0000;

pub fn probe(suite: &Suite<'_>, pool: &mut Pool, mut smmu: Smmu) -> Result<(), &'static str> {
    let registers = suite.registers;
    let base = pool.take(16 << 8)?;
    let largest = suite.identity.command_queue_log2().min(8);
    let mut check = Check::new("queues-of-every-size-wrap");
    for log2 in 0..=largest {
        let mut commands = Commands::at(base, log2);
        rebase(registers, &mut commands)?;
        for round in 0..(4_u32 << log2).min(64) {
            // From one to as many as fit.
            let many = round % (1 << log2) + 1;
            for _ in 0..many {
                commands.write(&[command::TLBI_NSNH_ALL]);
            }
            commands.ring(registers);
            let seen = commands.wait(registers);
            check.that(seen == Ok(()), format_args!("{many} in 2^{log2}: {seen:x?}"));
            seen.map_err(|_| "a queue does not wrap")?;
        }
        // The last index that there is, then the first one.
        check.same(registers.read(register::CMDQ_PROD), commands.prod());
    }
    drop(check);

    let mut check = Check::new("a-queue-moves-while-the-smmu-is-enabled");
    for at in [base, base + 0x400, base] {
        let mut commands = Commands::at(at, 4);
        rebase(registers, &mut commands)?;
        check.same(registers.read(register::CR0ACK) & cr0::SMMUEN, cr0::SMMUEN);
        check.same(commands.issue(registers, &FLUSH), Ok(()));
    }
    drop(check);

    let mut check = Check::new("commands-wait-for-the-queue");
    let mut commands = Commands::at(base, 4);
    registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN)?;
    commands.install(registers);
    commands.write(&FLUSH);
    commands.ring(registers);
    check.same(registers.read(register::CMDQ_CONS), 0);
    check.same(registers.read(register::CMDQ_PROD), commands.prod());
    registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN)?;
    check.same(commands.wait(registers), Ok(()));
    drop(check);

    nowhere(registers)?;
    rebase(registers, &mut smmu.commands)?;
    smmu.issue(&FLUSH)?;
    smmu.stop()
}

/// A queue that cannot be read stops with `CERROR_ABT`, and again after each acknowledgement.
fn nowhere(registers: Registers) -> Result<(), &'static str> {
    let mut check = Check::new("a-queue-that-is-no-memory-aborts");
    let mut commands = Commands::at(NOWHERE, 4);
    rebase(registers, &mut commands)?;
    // Nothing can be written there either: the index alone moves.
    registers.write(register::CMDQ_PROD, 2);
    let stopped = Stopped { cons: 0, code: cerror::ABT, error: true };
    for _ in 0..3 {
        let errors = |_| registers.errors() & gerror::CMDQ_ERR != 0;
        check.that(registers.poll(register::GERROR, errors), format_args!("no error"));
        let cons = registers.read(register::CMDQ_CONS);
        let seen = Stopped {
            cons: cons & 0xf_ffff,
            code: cons >> 24 & 0x7f,
            error: registers.errors() & gerror::CMDQ_ERR != 0,
        };
        check.same(seen, stopped);
        registers.acknowledge_errors();
    }
    // With an empty queue there is nothing to stop at.
    registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN)?;
    commands.install(registers);
    registers.acknowledge_errors();
    registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN)?;
    check.same(registers.errors() & gerror::CMDQ_ERR, 0);
    Ok(())
}

/// Replaces the command queue while the SMMU stays enabled.
fn rebase(registers: Registers, commands: &mut Commands) -> Result<(), &'static str> {
    registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN)?;
    commands.install(registers);
    registers.set_cr0(cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN)
}
