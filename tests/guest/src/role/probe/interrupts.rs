//! The interrupt controller: every register read and written, and it works on.

use super::{Check, answered, expect};
use crate::arch::{cpu, exception, mem};
use crate::gic;
use crate::machine::Machine;

const DISTRIBUTOR_SIZE: u64 = 0x1_0000;
const GICD_TYPER: u64 = 0x0004;
const GICR_CTLR: u64 = 0x0000;
const GICR_CTLR_ENABLE_LPIS: u32 = 1;
const GICR_TYPER: u64 = 0x0008;
const GICR_PROPBASER: u64 = 0x0070;
const GICR_PENDBASER: u64 = 0x0078;

pub fn probe(machine: &Machine) {
    let frames =
        [(machine.distributor, DISTRIBUTOR_SIZE), (gic::redistributor(), gic::GICR_STRIDE)];
    expect("no-lpis-in-distributor", mem::read32(machine.distributor + GICD_TYPER) >> 17 & 1, 0);
    expect("no-lpis-in-redistributor", mem::read64(gic::redistributor() + GICR_TYPER) & 3, 0);

    cpu::mask_interrupts();
    let registers = || frames.into_iter().flat_map(|(base, size)| (base..base + size).step_by(4));
    let mut reads = Check::new("gic-reads");
    for address in registers() {
        let seen = exception::catch(|| mem::read32(address));
        reads.that(seen.is_ok(), format_args!("{seen:x?} at {address:#x}"));
    }
    let mut writes = Check::new("gic-writes");
    let mut lpis = Check::new("lpis-stay-off");
    for value in [u32::MAX, 0, 0x5555_5555, 0xaaaa_aaaa] {
        for address in registers() {
            let seen = exception::catch(|| mem::write32(address, value));
            writes.that(seen.is_ok(), format_args!("{seen:x?} at {address:#x}"));
        }
        // Other widths where some registers have them; any answer will do.
        for address in registers().step_by(4) {
            let double = u64::from(value) << 32 | u64::from(value);
            for seen in [
                exception::catch(|| mem::write8(address + 1, value as u8)),
                exception::catch(|| mem::write16(address + 2, value as u16)),
                exception::catch(|| mem::write64(address + 8, double)),
            ] {
                writes.that(answered(seen), format_args!("{seen:x?} at {address:#x}"));
            }
        }
        let own = gic::redistributor();
        lpis.same(mem::read32(own + GICR_CTLR) & GICR_CTLR_ENABLE_LPIS, 0);
        lpis.same(mem::read64(own + GICR_PROPBASER), 0);
        lpis.same(mem::read64(own + GICR_PENDBASER), 0);
    }
    gic::silence();
    gic::start(machine);
    cpu::unmask_interrupts();
}
