//! Every command: all opcodes, and for each the fields that decide.

use super::expected::{self, Verdict};
use super::{Check, FLUSH, Suite, Wires, count};
use crate::smmu::format::{Command, cerror, command, gerror, irq_ctrl};
use crate::smmu::{Smmu, Stopped};
use crate::timer::{self, Deadline};

/// Fields that no virtual machine has any business with: a VMID, a StreamID and a SubstreamID of others.
const FOREIGN: u64 = 0xbeef_00ff << 32 | 0xabc << 12;

pub fn probe(suite: &Suite<'_>, wires: &Wires, mut smmu: Smmu) -> Result<(), &'static str> {
    every_opcode(suite, &mut smmu)?;
    fields(suite, &mut smmu)?;
    signals(suite, wires, &mut smmu)?;
    error_interrupts(wires, &mut smmu)?;
    errors_last(&mut smmu)?;
    smmu.stop()
}

fn every_opcode(suite: &Suite<'_>, smmu: &mut Smmu) -> Result<(), &'static str> {
    let mut check = Check::new("every-opcode");
    for opcode in 0..=0xff {
        // Plain, with foreign identifiers, and of a Secure stream.
        for low in [opcode, opcode | FOREIGN, opcode | 1 << 10] {
            one(suite, smmu, &mut check, [low, 0])?;
        }
    }
    Ok(())
}

/// What fields make of commands that exist.
fn fields(suite: &Suite<'_>, smmu: &mut Smmu) -> Result<(), &'static str> {
    let mut check = Check::new("every-range");
    for granule in 0..4 {
        for level in 0..4 {
            for (number, scale) in [(0, 0), (1, 0), (0, 1), (31, 31), (7, 2)] {
                for opcode in [0x12, 0x13, 0x2a] {
                    let low = opcode | number << 12 | scale << 20;
                    let high = 0x1234_5000 | granule << 10 | level << 8;
                    one(suite, smmu, &mut check, [low, high])?;
                    one(suite, smmu, &mut check, [low | FOREIGN, high | 1])?;
                }
            }
        }
    }
    drop(check);
    let mut check = Check::new("every-stream");
    for sid in [0, 1, 0xff, 0x100, 0xffff, 0x1_0000, u32::MAX] {
        for leaf in [false, true] {
            one(suite, smmu, &mut check, command::cfgi_ste(sid, leaf))?;
        }
        for range in 0..32 {
            one(suite, smmu, &mut check, command::cfgi_ste_range(sid, range))?;
        }
        one(suite, smmu, &mut check, command::cfgi_cd(sid))?;
        one(suite, smmu, &mut check, command::cfgi_cd_all(sid))?;
        // A prefetch is a hint, also for an address that is nowhere.
        one(suite, smmu, &mut check, [0x01 | u64::from(sid) << 32, 0])?;
        one(suite, smmu, &mut check, [0x02 | u64::from(sid) << 32, u64::MAX << 12])?;
    }
    drop(check);
    let mut check = Check::new("every-sync");
    for signal in 0..4 {
        // An address and data for a message that nobody sends without IDR0.MSI, of all attributes.
        for attributes in [0, u64::MAX << 22 & 0xffff_f000 << 12, u64::MAX << 32] {
            for address in [0, 0x0809_0040, 0x4000_0000, u64::MAX << 2] {
                let low = 0x46 | signal << 12 | attributes;
                one(suite, smmu, &mut check, [low, address & 0x000f_ffff_ffff_fffc])?;
            }
        }
    }
    Ok(())
}

/// Issues one command between two that are legal, and compares what becomes of it.
fn one(
    suite: &Suite<'_>,
    smmu: &mut Smmu,
    check: &mut Check,
    words: Command,
) -> Result<(), &'static str> {
    let (wanted, known) = expected::command(words, suite.identity);
    let registers = smmu.registers;
    let index = smmu.commands.prod();
    let at = (index + 1) & (2 * smmu.commands.size() - 1);
    let seen = smmu.commands.issue(registers, &[command::SYNC, words, command::SYNC]);
    let stopped = Stopped { cons: at, code: cerror::ILL, error: true };
    let right = match wanted {
        Verdict::Legal => seen == Ok(()),
        Verdict::Illegal => seen == Err(stopped),
        Verdict::Unpredictable => seen == Ok(()) || seen == Err(stopped),
    };
    let as_seen = format_args!("{words:x?} is {wanted:?}: {seen:x?}");
    suite.that(check, right, if seen == Ok(()) { known } else { None }, as_seen);
    if seen.is_err() {
        // Repaired and acknowledged, the queue goes on at the entry that it reads again.
        smmu.commands.put(at, command::SYNC);
        registers.acknowledge_errors();
        let resumed = smmu.commands.wait(registers);
        check.that(resumed == Ok(()), format_args!("{words:x?} repaired: {resumed:x?}"));
        if resumed.is_err() {
            return Err("the command queue does not go on after a repair");
        }
    }
    Ok(())
}

/// `CMD_SYNC` signals its completion as it is asked to (section 4.7).
fn signals(suite: &Suite<'_>, wires: &Wires, smmu: &mut Smmu) -> Result<(), &'static str> {
    let Some(intid) = wires.cmdq_sync else { return Ok(()) };
    let mut check = Check::new("a-sync-signals");
    for round in 0..8 {
        let before = count(intid);
        smmu.issue(&[command::TLBI_NSNH_ALL, command::sync(1)])?;
        let came = timer::poll_every_ms(1, Deadline::after_ms(2000), || count(intid) != before);
        check.that(came, format_args!("no interrupt in round {round}"));
        check.that(count(intid) <= before + 1, format_args!("more than one in round {round}"));
    }
    let before = count(intid);
    smmu.issue(&[command::SYNC, command::sync(2), command::SYNC])?;
    timer::poll_every_ms(1, Deadline::after_ms(20), || false);
    let silent = count(intid) == before;
    suite.that(&mut check, silent, None, format_args!("an interrupt that nobody asked for"));
    Ok(())
}

/// `GERROR` interrupts if it is allowed to, and stays active until it is acknowledged.
fn error_interrupts(wires: &Wires, smmu: &mut Smmu) -> Result<(), &'static str> {
    let registers = smmu.registers;
    let mut check = Check::new("a-command-error-interrupts");
    for enabled in [true, false] {
        registers.set_irq_ctrl(if enabled { irq_ctrl::GERROR } else { 0 })?;
        let before = count(wires.gerror);
        let index = smmu.commands.prod();
        let seen = smmu.commands.issue(registers, &[[0xff, 0]]);
        check.that(seen.is_err(), format_args!("opcode 0xff is legal"));
        let came = || count(wires.gerror) != before;
        let patience = if enabled { 2000 } else { 20 };
        let came = timer::poll_every_ms(1, Deadline::after_ms(patience), came);
        check.same(came, enabled);
        check.same(registers.errors(), gerror::CMDQ_ERR);
        smmu.commands.put(index, command::SYNC);
        registers.acknowledge_errors();
        check.same(smmu.commands.wait(registers), Ok(()));
        check.same(registers.errors(), 0);
    }
    registers.set_irq_ctrl(0)
}

/// A stopped queue takes nothing until the error is acknowledged, and stops again where nothing was repaired.
fn errors_last(smmu: &mut Smmu) -> Result<(), &'static str> {
    let registers = smmu.registers;
    let mut check = Check::new("an-error-stops-the-queue");
    let index = smmu.commands.prod();
    let stopped = Stopped { cons: index, code: cerror::ILL, error: true };
    check.same(smmu.commands.issue(registers, &[[0xff, 0]]), Err(stopped));
    for _ in 0..4 {
        // More commands do not help, nor does an acknowledgement without a repair.
        check.same(smmu.commands.issue(registers, &FLUSH), Err(stopped));
        registers.acknowledge_errors();
        let again = registers.poll(crate::smmu::format::register::GERROR, |_| {
            registers.errors() & gerror::CMDQ_ERR != 0
        });
        check.that(again, format_args!("the queue did not stop again"));
        check.same(smmu.commands.wait(registers), Err(stopped));
    }
    // A repair without an acknowledgement does not help either.
    smmu.commands.put(index, command::SYNC);
    check.same(smmu.commands.issue(registers, &FLUSH), Err(stopped));
    registers.acknowledge_errors();
    check.same(smmu.commands.wait(registers), Ok(()));
    smmu.issue(&FLUSH)
}
