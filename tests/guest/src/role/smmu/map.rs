//! The register map: every offset of both pages, read and written in every width.

use super::expected::{Access, Difference, Expected, registers};
use super::{Check, Suite};
use crate::arch::{exception, mem};
use crate::smmu::format::{PAGE, register};

/// What is written to a register.
const VALUES: [u64; 5] =
    [u64::MAX, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa, 0x0123_4567_89ab_cdef, 0];
/// Where implementations have registers of their own (section 6.2), page by page.
const OWN: [core::ops::Range<u32>; 2] = [0xe00..0xf00, 0xfd0..0x1000];

/// Walks the map while everything is disabled.
pub fn walk(suite: &Suite<'_>) -> Result<(), &'static str> {
    let registers = suite.registers;
    registers.set_cr0(0)?;
    registers.set_irq_ctrl(0)?;
    let known = registers_of(suite);
    zero(suite, &known);
    let before: [u64; 33] = known.map(|expected| read(suite, expected));
    identification(suite);
    unknown(suite, &known);
    stored(suite, &known);
    narrow(suite, &known);
    pairs(suite);
    zero(suite, &known);
    let mut after = Check::new("registers-are-as-before");
    for (expected, before) in known.iter().zip(before) {
        let now = read(suite, *expected);
        after.that(now == before, format_args!("{}: {now:#x}, was {before:#x}", expected.name));
    }
    Ok(())
}

fn registers_of(suite: &Suite<'_>) -> [Expected; 33] {
    registers(suite.identity)
}

fn read(suite: &Suite<'_>, expected: Expected) -> u64 {
    match expected.wide {
        true => suite.registers.read64(expected.offset),
        false => suite.registers.read(expected.offset).into(),
    }
}

/// Whatever firmware left in registers that are written below.
fn zero(suite: &Suite<'_>, known: &[Expected]) {
    for expected in known {
        if !matches!(expected.access, Access::Protocol { .. } | Access::ReadOnly(None)) {
            suite.registers.write(expected.offset, 0);
            if expected.wide {
                suite.registers.write(expected.offset + 4, 0);
            }
        }
    }
    suite.registers.acknowledge_errors();
}

/// What the ID registers may say at all: a stage, and what belongs together.
fn identification(suite: &Suite<'_>) {
    let identity = suite.identity;
    let idr = identity.idr;
    let mut check = Check::new("identification");
    check.that(identity.stage1() || identity.stage2(), format_args!("no stage"));
    check.that(idr[0] >> 2 & 2 != 0, format_args!("no AArch64 tables: {:#x}", idr[0]));
    check.that(identity.sid_bits() <= 32, format_args!("SIDSIZE {}", identity.sid_bits()));
    let sizes = [identity.command_queue_log2(), identity.event_queue_log2()];
    check.that(sizes.iter().all(|log2| *log2 <= 19), format_args!("{sizes:?}"));
    check.that(idr[5] & 7 <= 6 && idr[5] >> 4 & 7 != 0, format_args!("IDR5 {:#x}", idr[5]));
    // VMIDs of 16 bits, EL2 and its events only with a stage 2 or EL2; BTM, SEV and ATOS are free to be there.
    check.that(identity.stage2() || idr[0] >> 18 & 1 == 0, format_args!("IDR0 {:#x}", idr[0]));
    // Presets and relative bases are for SMMUs without memory.
    check.that(idr[1] >> 28 & 7 == 0, format_args!("IDR1 {:#x}", idr[1]));
    let aidr = suite.registers.read(register::AIDR);
    check.that(aidr >> 8 == 0 && aidr >> 4 == 0, format_args!("AIDR {aidr:#x}"));
    // What a revision requires (section 2): HAD from 3.1 on; BBML and RIL from 3.2 on.
    check.that(aidr & 0xf < 1 || idr[3] >> 2 & 1 != 0, format_args!("3.{aidr} without HAD"));
    check.that(
        aidr & 0xf < 2 || idr[3] >> 10 & 1 != 0 && idr[3] >> 11 & 3 != 0,
        format_args!("3.{aidr} without RIL or BBML"),
    );
    if !suite.bare {
        // What no guest is told of, whatever the hardware has.
        let hidden = identity.stage2() || identity.hyp() || identity.ats() || identity.pri();
        check.that(!hidden && !identity.msi(), format_args!("IDR0 {:#x}", idr[0]));
        check.that(!identity.stalls(), format_args!("stalls: IDR0 {:#x}", idr[0]));
    }
}

/// Every offset that has no register reads as zero, in every width, and stays so.
fn unknown(suite: &Suite<'_>, known: &[Expected]) {
    let registers = suite.registers;
    let mut check = Check::new("no-register-is-zero");
    for offset in (0..2 * PAGE).step_by(4) {
        let in_page = offset & (PAGE - 1);
        if OWN.iter().any(|own| own.contains(&in_page)) || covers(known, offset) {
            continue;
        }
        // Page 0 may show the event queue's indices as well (section 6.2).
        let alias = [register::EVENTQ_PROD, register::EVENTQ_CONS].contains(&(offset + PAGE));
        let value = registers.read(offset);
        let same = alias && value == registers.read(offset + PAGE);
        let page1 = offset >= PAGE && covers(known, in_page);
        let difference = page1.then_some(Difference::Page1IsPage0);
        suite.that(
            &mut check,
            value == 0 || same,
            difference,
            format_args!("{offset:#x}: {value:#x}"),
        );
        if alias || page1 && suite.bare {
            // Not written to: it is another register.
            continue;
        }
        registers.write(offset, u32::MAX);
        let value = registers.read(offset);
        check.that(value == 0, format_args!("{offset:#x} became {value:#x}"));
        if offset % 8 == 0 && !covers(known, offset + 4) {
            registers.write64(offset, u64::MAX);
            let wide = exception::catch(|| registers.read64(offset));
            check.that(!matches!(wide, Ok(1..)), format_args!("{offset:#x} became {wide:x?}"));
        }
    }
}

fn covers(known: &[Expected], offset: u32) -> bool {
    known.iter().any(|expected| {
        let size = if expected.wide { 8 } else { 4 };
        (expected.offset..expected.offset + size).contains(&offset)
    })
}

/// What is written is read back, as far as the register has it; in halves and, if it is wide, in one piece.
fn stored(suite: &Suite<'_>, known: &[Expected]) {
    for expected in known {
        let mut check = Check::new(expected.name);
        let registers = suite.registers;
        let before = read(suite, *expected);
        let (stored, maybe, fixed) = match expected.access {
            Access::ReadOnly(value) => {
                if let Some(value) = value {
                    check.same(before, value);
                }
                (0, 0, before)
            }
            Access::ReadWrite { stored, maybe } => (stored, maybe, 0),
            Access::Protocol { bits } => {
                check.that(before & !bits == 0, format_args!("{before:#x}"));
                continue;
            }
        };
        let width = if expected.wide { u64::MAX } else { u32::MAX.into() };
        let mut look = |value: u64, how: &str| {
            let value = value & width;
            let now = read(suite, *expected);
            let wanted = value & stored | fixed;
            let right = now & !maybe == wanted & !maybe && now & maybe & !value == 0;
            suite.that(
                &mut check,
                right,
                expected.known,
                format_args!("{how} {value:#x}: {now:#x} instead of {wanted:#x}"),
            );
        };
        for value in VALUES {
            // QEMU never goes back from a two-level table to a linear one.
            let sticky = expected.offset == register::STRTAB_BASE_CFG && value >> 16 & 3 == 1;
            if suite.bare && sticky {
                continue;
            }
            registers.write(expected.offset, value as u32);
            if expected.wide {
                registers.write(expected.offset + 4, (value >> 32) as u32);
            }
            look(value, "halves of");
            if expected.wide {
                registers.write64(expected.offset, !value);
                look(!value, "all of");
                registers.write64(expected.offset, 0);
            }
        }
        registers.write(expected.offset, 0);
    }
}

/// Accesses of 8 and 16 bits: they are nobody's, and change nothing (section 6.2).
fn narrow(suite: &Suite<'_>, known: &[Expected]) {
    let mut check = Check::new("narrow-accesses-change-nothing");
    for expected in known {
        let before = read(suite, *expected);
        let size = if expected.wide { 8 } else { 4 };
        for offset in expected.offset..expected.offset + size {
            let address = suite.registers.address(offset);
            let attempts = [
                exception::catch(|| _ = mem::read8(address)),
                exception::catch(|| _ = mem::read16(address & !1)),
                exception::catch(|| mem::write8(address, 0xff)),
                exception::catch(|| mem::write16(address & !1, 0xffff)),
            ];
            for seen in attempts {
                let answered = seen.is_ok() || seen.is_err_and(|fault| fault.is_external_abort());
                check.that(answered, format_args!("{}: {seen:x?}", expected.name));
            }
        }
        let now = read(suite, *expected);
        check.that(now == before, format_args!("{}: {now:#x}, was {before:#x}", expected.name));
    }
}

/// 64 bits on two registers of 32 bits: both, or neither; and nothing beside them.
fn pairs(suite: &Suite<'_>) {
    let registers = suite.registers;
    let mut check = Check::new("a-wide-access-is-two-or-none");
    for (low, value) in [(register::CR1, 0x2_0000_0d75), (register::CMDQ_PROD, 0)] {
        let attempt = exception::catch(|| registers.write64(low, value));
        let now = u64::from(registers.read(low + 4)) << 32 | u64::from(registers.read(low));
        let right = now == value || now == 0;
        check.that(right, format_args!("{low:#x}: {now:#x} after {attempt:x?}"));
        let wide = exception::catch(|| registers.read64(low));
        let right = wide.is_err() || wide == Ok(now) || wide == Ok(0);
        check.that(right, format_args!("{low:#x}: {wide:x?} is {now:#x}"));
    }
}
