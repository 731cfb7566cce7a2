//! System registers and instructions: what is there works, what is not is undefined.

use super::{Check, check, expect};
use crate::arch::exception::{self, Fault};
use crate::arch::{cpu, mem, odd};
use crate::{println, psci};

/// Fields of identification registers that a guest must find zero: name, CRm, Op2, lowest bit.
const HIDDEN: [(&str, u8, u8, u32); 15] = [
    ("hidden-el2", 4, 0, 8),
    ("hidden-el3", 4, 0, 12),
    ("hidden-ras", 4, 0, 28),
    ("hidden-sve", 4, 0, 32),
    ("hidden-mpam", 4, 0, 40),
    ("hidden-amu", 4, 0, 44),
    ("hidden-mte", 4, 1, 8),
    ("hidden-sme", 4, 1, 24),
    ("hidden-trace", 5, 0, 4),
    ("hidden-pmu", 5, 0, 8),
    ("hidden-spe", 5, 0, 32),
    ("hidden-trace-filter", 5, 0, 40),
    ("hidden-trace-buffer", 5, 0, 44),
    ("hidden-vhe", 7, 1, 8),
    ("hidden-nested", 7, 2, 24),
];

pub fn probe() {
    identification();
    let mut present = Check::new("registers-present");
    for (name, read) in odd::PRESENT {
        let seen = exception::catch(read);
        present.that(seen.is_ok(), format_args!("{name}: {seen:x?}"));
    }
    let mut absent = Check::new("registers-absent");
    for (name, read) in odd::ABSENT {
        let seen = exception::catch(read);
        absent.that(seen.is_err_and(Fault::is_undefined), format_args!("{name}: {seen:x?}"));
    }
    let mut defined = Check::new("registers-implementation-defined");
    for (name, read) in odd::IMPLEMENTATION_DEFINED {
        let seen = exception::catch(read);
        let fine = seen.is_ok() || seen.is_err_and(Fault::is_undefined);
        defined.that(fine, format_args!("{name}: {seen:x?}"));
    }
    let mut allowed = Check::new("instructions-allowed");
    for (name, run) in odd::ALLOWED {
        let seen = exception::catch(run);
        allowed.that(seen.is_ok(), format_args!("{name}: {seen:x?}"));
    }
    let mut undefined = Check::new("instructions-undefined");
    for (name, run) in odd::FORBIDDEN {
        let seen = exception::catch(run);
        undefined.that(seen.is_err_and(Fault::is_undefined), format_args!("{name}: {seen:x?}"));
    }
    // Whether they trap or not.
    let mut controls = Check::new("translation-controls");
    for (name, exchange) in odd::UNUSED_CONTROLS {
        for value in [0x1234_5678, 0xffff_0000, 0] {
            let (old, seen) = exchange(value);
            let wanted = if value == 0 { old } else { value };
            controls.that(seen == wanted, format_args!("{name}: {seen:#x} for {wanted:#x}"));
        }
    }
    for (name, exchange) in odd::CONTROLS {
        let (old, seen) = exchange(0);
        controls.that(seen == old, format_args!("{name}: {seen:#x} for {old:#x}"));
    }
    let survive = odd::vectors_survive(|| {
        println!("guest: vector registers are in use");
        psci::psci(psci::function::VERSION, [0; 3]);
        let _ = exception::catch(|| mem::read32(0x0b00_0000));
    });
    check("vector-registers-survive", survive, format_args!("changed by an exit"));
}

fn identification() {
    let mut readable = Check::new("identification");
    for odd::Identification { crm, op2, read } in odd::IDENTIFICATION {
        let seen = exception::catch(read);
        readable.that(seen.is_ok(), format_args!("CRm {crm}, Op2 {op2}: {seen:x?}"));
    }
    let field = |crm: u8, op2: u8, bit: u32| {
        let register = &odd::IDENTIFICATION[usize::from(crm - 1) * 8 + usize::from(op2)];
        exception::catch(register.read).map(|value| value >> bit & 0xf).unwrap_or(0xf)
    };
    for (name, crm, op2, bit) in HIDDEN {
        expect(name, field(crm, op2, bit), 0);
    }
    check("el1-is-there", matches!(field(4, 0, 4), 1 | 2), format_args!("{}", field(4, 0, 4)));
    expect("gic-system-registers", field(4, 0, 24), 1);
    check("physical-range", matches!(field(7, 0, 0), 2..=6), format_args!("{}", field(7, 0, 0)));
    expect("first-affinity", cpu::affinity() & 0xff_00ff_ffff, 0);
}
