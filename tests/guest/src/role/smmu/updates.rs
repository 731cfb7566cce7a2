//! Registers with a protocol: what acknowledges, what updates, and what is guarded while it is in use.

use super::expected::Difference;
use super::{Check, Suite};
use crate::smmu::format::{cr0, gbpa, irq_ctrl, register};
use crate::smmu::{Commands, Events, Smmu, StreamTable};

pub fn probe(suite: &Suite<'_>) -> Result<(), &'static str> {
    enables(suite)?;
    interrupts(suite);
    bypass_attributes(suite)
}

/// `CR0ACK` follows `CR0`, in the bits that there are (section 6.3.9).
fn enables(suite: &Suite<'_>) -> Result<(), &'static str> {
    let registers = suite.registers;
    let mut check = Check::new("cr0-is-acknowledged");
    // The queues are empty, wherever they are, so that enabling them is harmless.
    for value in [cr0::CMDQEN, cr0::EVENTQEN, cr0::CMDQEN | cr0::EVENTQEN, 0] {
        registers.write(register::CR0, value);
        let acknowledged = registers.poll(register::CR0ACK, |seen| seen == value);
        check.that(
            acknowledged,
            format_args!("{value:#x}: {:#x}", registers.read(register::CR0ACK)),
        );
        check.same(registers.read(register::CR0), value);
    }
    // PRIQEN without PRI, ATSCHK without ATS, and VMW without wildcards are RES0, like all others.
    let absent = !(cr0::SMMUEN | cr0::EVENTQEN | cr0::CMDQEN);
    let features =
        suite.identity.pri() || suite.identity.ats() || suite.identity.idr[0] >> 17 & 1 != 0;
    if !features {
        registers.write(register::CR0, absent);
        let mut reserved = Check::new("cr0-has-no-other-bits");
        for offset in [register::CR0, register::CR0ACK] {
            let settled = registers.read(offset);
            suite.that(
                &mut reserved,
                settled == 0,
                Some(Difference::StoresReservedBits),
                format_args!("{offset:#x}: {settled:#x}"),
            );
        }
    }
    registers.set_cr0(0)
}

/// `IRQ_CTRLACK` follows `IRQ_CTRL` (section 6.3.16).
fn interrupts(suite: &Suite<'_>) {
    let registers = suite.registers;
    let mut check = Check::new("irq-ctrl-is-acknowledged");
    for value in [irq_ctrl::GERROR, irq_ctrl::EVENTQ, irq_ctrl::GERROR | irq_ctrl::EVENTQ, 0] {
        registers.write(register::IRQ_CTRL, value);
        let acknowledged = registers.poll(register::IRQ_CTRLACK, |seen| seen == value);
        check.that(acknowledged, format_args!("{value:#x}"));
        check.same(registers.read(register::IRQ_CTRL), value);
    }
}

/// `GBPA` takes what is written with `UPDATE`, which clears itself (section 6.3.14).
fn bypass_attributes(suite: &Suite<'_>) -> Result<(), &'static str> {
    let registers = suite.registers;
    let mut check = Check::new("gbpa-updates");
    let before = registers.read(register::GBPA);
    for value in [gbpa::ABORT, 0, gbpa::ABORT] {
        registers.write(register::GBPA, gbpa::UPDATE | value);
        let updated = registers.poll(register::GBPA, |seen| seen & gbpa::UPDATE == 0);
        check.that(updated, format_args!("UPDATE does not clear itself"));
        let now = registers.read(register::GBPA);
        check.that(now & gbpa::ABORT == value, format_args!("{now:#x} instead of {value:#x}"));
        // Without UPDATE nothing happens.
        registers.write(register::GBPA, value ^ gbpa::ABORT);
        check.same(registers.read(register::GBPA), now);
    }
    registers.write(register::GBPA, gbpa::UPDATE | before);
    if registers.poll(register::GBPA, |seen| seen & gbpa::UPDATE == 0) {
        Ok(())
    } else {
        Err("smmu: GBPA.UPDATE does not clear itself")
    }
}

/// What is in use cannot be changed: each register with the enable that guards it (section 6.3).
pub fn guards(
    suite: &Suite<'_>,
    commands: Commands,
    events: Events,
    table: StreamTable,
) -> Result<(), &'static str> {
    let registers = suite.registers;
    let guarded: [(&str, u32, u32, u32); 10] = [
        ("CR1.TABLE", register::CR1, cr0::SMMUEN, 0xfc0),
        ("CR1.QUEUE", register::CR1, cr0::CMDQEN | cr0::EVENTQEN, 0x3f),
        ("CR2", register::CR2, cr0::SMMUEN, 0x2),
        ("STRTAB_BASE", register::STRTAB_BASE, cr0::SMMUEN, 0xffff_ffc0),
        ("STRTAB_BASE", register::STRTAB_BASE + 4, cr0::SMMUEN, 0x4000_00ff),
        ("STRTAB_BASE_CFG", register::STRTAB_BASE_CFG, cr0::SMMUEN, 0x3f),
        ("CMDQ_BASE", register::CMDQ_BASE, cr0::CMDQEN, 0xffff_ffff),
        ("CMDQ_CONS", register::CMDQ_CONS, cr0::CMDQEN, 0x3f),
        ("EVENTQ_BASE", register::EVENTQ_BASE, cr0::EVENTQEN, 0xffff_ffff),
        ("EVENTQ_PROD", register::EVENTQ_PROD, cr0::EVENTQEN, 0x8000_003f),
    ];
    // On the machine's own SMMU one attempt has to do: it takes effect.
    let attempts = if suite.bare { &guarded[..1] } else { &guarded[..] };
    let mut check = Check::new("what-is-in-use-cannot-be-changed");
    for (name, offset, guards, bits) in attempts {
        for (bit, others) in
            [(cr0::SMMUEN, 0), (cr0::CMDQEN, cr0::SMMUEN), (cr0::EVENTQEN, cr0::SMMUEN)]
        {
            if guards & bit == 0 {
                continue;
            }
            let smmu = Smmu::start(registers, commands, events, table)?;
            // Whatever else is disabled: this bit alone guards.
            registers.set_cr0(bit | others)?;
            let before = registers.read(*offset);
            registers.write(*offset, before ^ bits);
            let now = registers.read(*offset);
            suite.that(
                &mut check,
                now & bits == before & bits,
                Some(Difference::NothingIsGuarded),
                format_args!("{name} with CR0={bit:#x}: {now:#x}, was {before:#x}"),
            );
            registers.write(*offset, before);
            if !suite.bare {
                // And with it gone, nothing does.
                registers.set_cr0(cr0::CMDQEN | cr0::EVENTQEN & !bit)?;
                registers.set_cr0(0)?;
                registers.write(*offset, before ^ bits);
                let now = registers.read(*offset);
                check.that(
                    (now ^ before) & bits == *bits,
                    format_args!("{name} is not writable with CR0=0: {now:#x}, was {before:#x}"),
                );
            }
            smmu.stop()?;
        }
    }
    Ok(())
}
