//! The address space: where nothing is, nothing answers; what is emulated answers only to plain accesses.

use super::{Check, aborted, answered, check};
use crate::arch::exception::{self, Fault};
use crate::arch::{cpu, mem, odd, tables};
use crate::machine::Machine;

/// Where the fixed guest map has nothing, although machines often do.
const VACANT: [u64; 19] = [
    0x0000_0000,    // flash
    0x0400_0000,    // flash
    0x0801_0000,    // GICv2m
    0x0808_0000,    // ITS
    0x0809_0040,    // its doorbell
    0x0901_0000,    // RTC
    0x0902_0000,    // fw_cfg
    0x0903_0000,    // GPIO
    0x0904_0000,    // second UART
    0x0905_0000,    // SMMU, unless the guest has one
    0x0906_00a8,    // its second page
    0x0a00_0000,    // virtio-mmio
    0x0c00_0000,    // platform bus
    0x3f00_0000,    // low ECAM
    0x40_0000_0000, // high redistributors
    0x40_1010_0000, // configuration space of bus 1
    0x40_2000_0000, // beyond ECAM
    0xc0_0000_0000, // 64-bit window, nothing in it
    0xff_bfff_f000, // near the end of the space
];

pub fn probe(machine: &Machine) {
    let ecam = machine.bridge.as_ref().map_or(0, |bridge| bridge.ecam);
    // Registers that reading does not change and that ignore writes.
    let emulated = [
        machine.uart + 0xfe8,
        machine.distributor + 0xffe8,
        machine.redistributors.start + 0xffe8,
        ecam,
    ];
    vacant(machine);
    vectors();
    for (name, access) in odd::WITHOUT_SYNDROME {
        let mut check = Check::new(name);
        for address in emulated {
            let seen = exception::catch(|| access(address));
            check.that(aborted(seen), format_args!("{seen:x?} at {address:#x}"));
        }
    }
    for (name, access) in odd::WITH_SYNDROME {
        let mut check = Check::new(name);
        for address in emulated {
            let seen = exception::catch(|| access(address));
            check.that(seen.is_ok(), format_args!("{seen:x?} at {address:#x}"));
        }
    }
    for (name, access) in odd::ON_NORMAL_MEMORY {
        let mut check = Check::new(name);
        for address in emulated {
            let alias = tables::as_normal(address);
            let seen = exception::catch(|| access(alias));
            check.that(aborted(seen), format_args!("{seen:x?} at {address:#x}"));
        }
    }
    for (name, access) in odd::MISALIGNED {
        let mut check = Check::new(name);
        for address in emulated {
            let alias = tables::as_normal(address & !0xf);
            let seen = exception::catch(|| access(alias));
            check.that(answered(seen), format_args!("{seen:x?} at {address:#x}"));
        }
    }
    let mut widths = Check::new("any-width");
    for address in emulated {
        for seen in [
            exception::catch(|| _ = mem::read8(address)),
            exception::catch(|| _ = mem::read16(address)),
            exception::catch(|| _ = mem::read64(address & !7)),
            exception::catch(|| mem::write8(address, 0)),
            exception::catch(|| mem::write16(address, 0)),
            exception::catch(|| mem::write64(address & !7, 0)),
        ] {
            widths.that(answered(seen), format_args!("{seen:x?} at {address:#x}"));
        }
    }
    let mut walks = Check::new("stage-1-walk");
    for table in emulated.into_iter().chain([0x0b00_0000, machine.ram.end]) {
        let address = tables::through_table(table);
        let seen = exception::catch(|| mem::read32(address));
        let aborted = seen.is_err_and(Fault::is_external_abort_of_walk);
        walks.that(aborted, format_args!("{seen:x?} by a table at {table:#x}"));
    }
}

/// `VBAR_EL1[10:0]` are RES0 and say nothing of where an exception goes, even if a CPU keeps some of them. Only what the
/// hypervisor answers is tried: QEMU itself adds them.
fn vectors() {
    let mut check = Check::new("vector-bits");
    let base = cpu::vectors();
    for bits in [0x20, 0x7e0] {
        cpu::mask_interrupts();
        cpu::set_vectors(base | bits);
        let seen = exception::catch(|| _ = mem::read32(VACANT[0]));
        cpu::set_vectors(base);
        cpu::unmask_interrupts();
        check.that(aborted(seen), format_args!("{seen:x?} with VBAR_EL1 + {bits:#x}"));
    }
}

fn vacant(machine: &Machine) {
    // On the bare machine the console is what follows the last redistributor.
    let vacant = VACANT
        .into_iter()
        .chain([machine.ram.end, machine.redistributors.end, machine.uart + 0x1000])
        .filter(|address| *address != machine.uart)
        .filter(|address| {
            !machine.smmu.as_ref().is_some_and(|smmu| smmu.registers.contains(address))
        });
    let plain: [odd::Access; 7] = [
        ("read-8", |address| _ = mem::read8(address)),
        ("read-16", |address| _ = mem::read16(address)),
        ("read-32", |address| _ = mem::read32(address)),
        ("read-64", |address| _ = mem::read64(address)),
        ("write-8", |address| mem::write8(address, 0)),
        ("write-32", |address| mem::write32(address, u32::MAX)),
        ("write-64", |address| mem::write64(address, u64::MAX)),
    ];
    let mut check = Check::new("vacant");
    for address in vacant {
        for (name, access) in plain.into_iter().chain(odd::WITHOUT_SYNDROME) {
            let seen = exception::catch(|| access(address));
            check.that(aborted(seen), format_args!("{name}: {seen:x?} at {address:#x}"));
        }
    }
    drop(check);
    if machine.ram.end < 0x8000_0000 {
        let seen = exception::catch(|| odd::execute(machine.ram.end));
        let refused = seen.is_err_and(Fault::is_external_fetch_abort);
        self::check("vacant-fetch", refused, format_args!("{seen:x?}"));
        let seen = exception::catch(|| _ = mem::read64(machine.ram.end - 4));
        self::check("read-across-the-end-of-ram", aborted(seen), format_args!("{seen:x?}"));
    }
}
