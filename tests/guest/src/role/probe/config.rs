//! Configuration space: every byte written, nothing but what a driver may change changes.

use super::{Check, aborted, check};
use crate::arch::{exception, mem};
use crate::pci::{self, Bus, COMMAND_BUS_MASTER, Function};

const SIZE: u64 = 4096;
/// More capabilities than either list can have.
const MOST: usize = 1000;
const STANDARD_START: u64 = 0x40;
const EXTENDED_START: u64 = 0x100;
const STATUS: u64 = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CAPABILITIES: u64 = 0x34;
const MSI: u8 = 0x05;
const MSI_X: u8 = 0x11;
const ATS: u16 = 0x0f;
const SR_IOV: u16 = 0x10;
const PRI: u16 = 0x13;
const PASID: u16 = 0x1b;
/// What a driver can never change: IDs, class and revision, header type, subsystem.
const CONSTANT: [u64; 4] = [0x00, 0x08, 0x0c, 0x2c];
const CONSTANT_MASK: [u32; 4] = [u32::MAX, u32::MAX, 0x00ff_0000, u32::MAX];

pub fn probe(bus: &mut Bus<'_>) -> Result<(), &'static str> {
    let bridge = bus.bridge;
    absent(bus);
    let mut constant = Check::new("config-identity");
    let mut hidden = Hidden {
        listed: Check::new("config-lists-nothing-hidden"),
        ends: Check::new("config-lists-end"),
        unlisted: Check::new("config-nothing-unlisted"),
    };
    for function in pci::functions(bridge) {
        let before = identity(function);
        hidden.look(function);
        for value in [0xff_u8, 0x00, 0xa5, 0x5a, 0xff] {
            for width in [1, 2, 4, 8] {
                write_everything(function, value, width);
                let after = identity(function);
                constant.that(
                    before == after,
                    format_args!(
                        "{function}: {before:x?} became {after:x?} by {value:#x}, width {width}"
                    ),
                );
                hidden.look(function);
            }
        }
        mem::write32(function.register(pci::COMMAND), 0);
        bus.assign(function)?;
        function.enable(COMMAND_BUS_MASTER);
    }
    // The other buses are not there at all.
    let seen = exception::catch(|| mem::write32(bridge.ecam + (1 << 20) + pci::COMMAND, u32::MAX));
    check("config-no-other-bus", aborted(seen), format_args!("{seen:x?}"));
    Ok(())
}

/// Slots without a function stay empty, whatever is written to them.
fn absent(bus: &Bus<'_>) {
    let mut check = Check::new("config-absent");
    for (device, function) in
        (0..32).flat_map(|device| (0..8).map(move |function| (device, function)))
    {
        let slot = Function::at(bus.bridge, device, function);
        if slot.id() != u32::MAX {
            continue;
        }
        for offset in (0..SIZE).step_by(64) {
            mem::write32(slot.register(offset + 4), u32::MAX);
            mem::write8(slot.register(offset), 0);
            let seen = (mem::read32(slot.register(offset)), mem::read8(slot.register(offset + 4)));
            check.that(
                seen == (u32::MAX, u8::MAX),
                format_args!("{seen:x?} in {slot} at {offset:#x}"),
            );
        }
    }
}

fn identity(function: Function) -> [u32; 4] {
    let mut seen = CONSTANT.map(|offset| mem::read32(function.register(offset)));
    for (value, mask) in seen.iter_mut().zip(CONSTANT_MASK) {
        *value &= mask;
    }
    seen
}

fn write_everything(function: Function, value: u8, width: u64) {
    for offset in (0..SIZE).step_by(width as usize) {
        let address = function.register(offset);
        let repeated = u64::from(value) * 0x0101_0101_0101_0101;
        match width {
            1 => mem::write8(address, value),
            2 => mem::write16(address, repeated as u16),
            4 => mem::write32(address, repeated as u32),
            // Wider than configuration accesses are: done in pieces, or refused.
            _ => _ = exception::catch(|| mem::write64(address, repeated)),
        }
    }
}

/// Capabilities that give DMA or interrupts past EL2 cannot be found, nor hit blindly.
struct Hidden {
    listed: Check,
    ends: Check,
    unlisted: Check,
}

impl Hidden {
    fn look(&mut self, function: Function) {
        let standard = self.standard(function);
        let extended = self.extended(function);
        let parts = [(standard, STANDARD_START, EXTENDED_START), (extended, EXTENDED_START, SIZE)];
        for (listed, from, to) in parts {
            self.ends.that(listed < MOST, format_args!("{function}: a loop"));
            // Where no capability is listed, there is nothing.
            let found =
                (from..to).step_by(4).find(|offset| mem::read32(function.register(*offset)) != 0);
            self.unlisted
                .that(listed != 0 || found.is_none(), format_args!("{function}: {found:x?}"));
        }
    }

    /// Follows the list of capabilities; returns how many there are.
    fn standard(&mut self, function: Function) -> usize {
        if mem::read16(function.register(STATUS)) & STATUS_CAPABILITIES == 0 {
            return 0;
        }
        let mut next = u64::from(mem::read8(function.register(CAPABILITIES)) & !3);
        let mut listed = 0;
        while next >= STANDARD_START && listed < MOST {
            let id = mem::read8(function.register(next));
            self.listed.that(
                ![MSI, MSI_X].contains(&id),
                format_args!("{function}: {id:#x} at {next:#x}"),
            );
            next = u64::from(mem::read8(function.register(next + 1)) & !3);
            listed += 1;
        }
        listed
    }

    /// Follows the list of extended capabilities; returns how many there are.
    fn extended(&mut self, function: Function) -> usize {
        let mut next = EXTENDED_START;
        let mut listed = 0;
        while next >= EXTENDED_START && listed < MOST {
            let header = mem::read32(function.register(next));
            if header == 0 || header == u32::MAX {
                break;
            }
            let id = header as u16;
            let harmless = ![ATS, SR_IOV, PRI, PASID].contains(&id);
            self.listed.that(harmless, format_args!("{function}: extended {id:#x} at {next:#x}"));
            next = u64::from(header >> 20 & !3);
            listed += 1;
        }
        listed
    }
}
