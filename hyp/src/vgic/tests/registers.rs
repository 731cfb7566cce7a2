//! What a driver reads and writes.

use crate::vgic::Region::{Distributor as D, Redistributor as R};
use crate::vgic::Width::{Byte, Double, Half, Word};
use crate::vgic::model::{Machine, Source, owned_spis};
use crate::vgic::*;

const SGI_BASE: u64 = 0x1_0000;
const SECOND: u64 = 0x2_0000;

#[test]
fn reset_values() {
    let mut machine = Machine::new(2, 4);
    for (region, offset, width, value) in [
        // GICD_CTLR: DS and ARE. GICD_TYPER: 256 INTIDs of 10 bits, Aff3, no 1-of-N, no LPIs, no MBIS.
        (D, 0x0000, Word, 0x50),
        (D, 0x0004, Word, 0x0348_0007),
        (D, 0x0008, Word, 0x43b),
        (D, 0x000c, Word, 0),
        (D, 0xffe8, Word, 0x3b),
        (D, 0xfff0, Word, 0x0d),
        // Of INTIDs 32 to 47 the odd ones from 35 on are edge-triggered.
        (D, 0x0c08, Word, 0x8888_8880),
        (D, 0x6100, Double, 0),
        (R, 0x0000, Word, 0),
        (R, 0x0004, Word, 0x43b),
        (R, 0x0008, Double, 0),
        (R, 0x0008, Word, 0),
        (R, 0x000c, Word, 0),
        (R, 0x0014, Word, 0b110),
        (R, 0xffe8, Word, 0x3b),
        (R, SECOND + 0x0008, Double, 0x0000_0001_0000_0110),
        (R, SECOND + 0x0008, Word, 0x110),
        (R, SECOND + 0x000c, Word, 1),
        (R, SGI_BASE + 0x0c00, Word, 0xaaaa_aaaa),
        (R, SGI_BASE + 0x0c04, Word, 0),
        // There are no more vCPUs.
        (R, 2 * SECOND + 0x0008, Double, 0),
        (R, 2 * SECOND + 0xffe8, Word, 0),
        (R, u64::MAX, Byte, 0),
        (D, u64::MAX - 7, Double, 0),
    ] {
        assert_eq!(
            machine.read(0, region, offset, width),
            value,
            "{region:?} {offset:#x} {width:?}"
        );
    }
    let mut one = Machine::new(1, 4);
    assert_eq!(one.read(0, R, 8, Double), 0x10, "the last");
}

#[test]
fn what_is_written_reads_back() {
    let mut machine = Machine::new(2, 4);
    for (region, offset, width, written, read) in [
        (D, 0x0000, Word, 0xffff_ffff, 0x53),
        (D, 0x0000, Word, 0x2, 0x52),
        // Distributor, SGIs and PPIs: RAZ/WI under affinity routing. SPIs are there up to 255.
        (D, 0x0080, Word, 0xffff_ffff, 0),
        (D, 0x0100, Word, 0xffff_ffff, 0),
        (D, 0x0400, Word, 0xffff_ffff, 0),
        (D, 0x0c04, Word, 0xffff_ffff, 0),
        (D, 0x0084, Word, 0xffff_0000, 0xffff_0000),
        (D, 0x0104, Word, 0x0000_0010, 0x0000_0010),
        (D, 0x0104, Word, 0x0000_0100, 0x0000_0110),
        (D, 0x0184, Word, 0x0000_0010, 0x0000_0100),
        (D, 0x0104, Word, 0, 0x0000_0100),
        (D, 0x011c, Word, 0xf000_0000, 0xf000_0000),
        (D, 0x0120, Word, 0xffff_ffff, 0),
        (D, 0x0220, Word, 0xffff_ffff, 0),
        (D, 0x0208, Word, 0x8000_0000, 0x8000_0000),
        (D, 0x0208, Word, 0x0000_0001, 0x8000_0001),
        (D, 0x0288, Word, 0x8000_0000, 0x0000_0001),
        (D, 0x0308, Word, 0x8000_0000, 0x8000_0000),
        (D, 0x0388, Word, 0x8000_0000, 0),
        // Five priority bits.
        (D, 0x0420, Word, 0xffa7_0110, 0xf8a0_0010),
        (D, 0x0421, Byte, 0x47, 0x40),
        (D, 0x0420, Half, 0, 0),
        (D, 0x0420, Word, 0x0102_0380, 0x0000_0080),
        (D, 0x04ff, Byte, 0x80, 0x80),
        (D, 0x0500, Byte, 0x80, 0),
        (D, 0x0c0c, Word, 0xffff_ffff, 0xaaaa_aaaa),
        (D, 0x0c40, Word, 0xffff_ffff, 0),
        // IROUTER: Interrupt_Routing_Mode is RAZ/WI; whole and in halves.
        (D, 0x6100, Double, u64::MAX, 0x0000_00ff_00ff_ffff),
        (D, 0x6108, Double, 1, 1),
        (D, 0x610c, Word, 0x0000_0023, 0x0000_0023),
        (D, 0x6108, Double, 0x0000_0023_0000_0001, 0x0000_0023_0000_0001),
        (D, 0x6108, Word, 0x8000_0000, 0),
        (D, 0x6800, Double, 1, 0),
        // No message-based SPIs, no NSACR, no group modifier, no legacy targets and SGIs.
        (D, 0x0040, Word, 40, 0),
        (D, 0x0820, Word, 0x0101_0101, 0),
        (D, 0x0d04, Word, 0xffff_ffff, 0),
        (D, 0x0e08, Word, 0xffff_ffff, 0),
        (D, 0x0f00, Word, 0x0001_0001, 0),
        (D, 0x0f20, Word, 0xffff_ffff, 0),
        // Not in that width, not at that address.
        (D, 0x0104, Half, 0xffff, 0),
        (D, 0x0104, Byte, 0xff, 0),
        (D, 0x0106, Word, 0xffff_ffff, 0),
        (D, 0x0108, Double, u64::MAX, 0),
        (D, 0x0000, Byte, 0, 0),
        (R, 0x0000, Word, 0xffff_ffff, 0),
        (R, 0x0014, Word, 0, 0),
        (R, 0x0014, Word, 2, 6),
        (R, SGI_BASE + 0x0080, Word, 0xffff_ffff, 0xffff_ffff),
        (R, SGI_BASE + 0x0100, Word, 0x0001_0001, 0x0001_0001),
        (R, SGI_BASE + 0x0104, Word, 0xffff_ffff, 0),
        (R, SGI_BASE + 0x0180, Word, 0x0000_0001, 0x0001_0000),
        (R, SGI_BASE + 0x0200, Word, 0x0010_0001, 0x0010_0001),
        (R, SGI_BASE + 0x0280, Word, 0x0010_0000, 0x0000_0001),
        (R, SGI_BASE + 0x0300, Word, 0x0010_0001, 0x0010_0001),
        (R, SGI_BASE + 0x0380, Word, 0x0010_0000, 0x0000_0001),
        (R, SGI_BASE + 0x041f, Byte, 0xff, 0xf8),
        (R, SGI_BASE + 0x0420, Byte, 0xff, 0),
        (R, SGI_BASE + 0x0c00, Word, 0, 0xaaaa_aaaa),
        (R, SGI_BASE + 0x0c04, Word, 0xffff_ffff, 0xaaaa_aaaa),
        (R, SECOND + SGI_BASE + 0x0100, Word, 0x80, 0x80),
        (R, 2 * SECOND + SGI_BASE + 0x0100, Word, 0x80, 0),
    ] {
        machine.write(0, region, offset, width, written);
        let found = machine.read(0, region, offset, width);
        assert_eq!(found, read, "{region:?} {offset:#x} {width:?} {written:#x}");
    }
    assert_eq!(machine.read(0, R, SGI_BASE + 0x100, Word), 0x0001_0000, "each vCPU has its own");
    assert_eq!(machine.read(0, D, 0x420, Word), 0x0000_0080, "the half was ignored");
}

#[test]
fn an_owned_spi_acts_on_the_physical_one() {
    let mut machine = Machine::new(2, 4);
    let at = PhysicalInterrupt::Spi { intid: 101 };
    assert!(!machine.gic.get(at).enabled);
    machine.set_bit(0, 0, 36, 0x100);
    assert!(!machine.gic.get(at).enabled, "its group is disabled");
    machine.write(0, D, 0, Word, 1);
    assert!(machine.gic.get(at).enabled);
    machine.set_bit(0, 0, 36, 0x80);
    assert!(!machine.gic.get(at).enabled, "Group 1 is disabled");
    machine.write(0, D, 0, Word, 3);
    assert!(machine.gic.get(at).enabled);
    machine.route(0, 36, 1);
    assert_eq!(machine.gic.get(at).cpu, 1);
    machine.route(0, 36, 0x1_0000_0001);
    assert!(!machine.gic.get(at).enabled, "routed to nobody");
    machine.route(0, 36, 0);
    assert_eq!(machine.gic.get(at), Source { enabled: true, ..Source::default() });
    machine.write(0, D, 0xc08, Word, 0x2 << 8);
    assert!(machine.gic.get(at).edge);
    machine.set_bit(0, 0, 36, 0x180);
    assert!(!machine.gic.get(at).enabled);

    let timer = PhysicalInterrupt::Ppi { vcpu: 1, intid: 27 };
    machine.set_bit(0, 1, 27, 0x100);
    assert!(machine.gic.get(timer).enabled);
    assert!(!machine.gic.get(PhysicalInterrupt::Ppi { vcpu: 0, intid: 27 }).enabled);
}

#[test]
fn what_the_vm_does_not_own_never_reaches_hardware() {
    let mut machine = Machine::running(2, 4);
    let before = machine.gic.calls.get();
    let kicks = |machine: &Machine| machine.gic.calls.get();
    for intid in (32..35_u32).chain(67..256).chain((0..32).filter(|n| ![27, 30].contains(n))) {
        for vcpu in 0..2 {
            machine.leave(vcpu);
        }
        let write = |machine: &mut Machine, offset: u64| {
            let (region, at) = if intid < 32 {
                (R, SGI_BASE + offset)
            } else {
                (D, offset + u64::from(intid / 32) * 4)
            };
            machine.vgic.write(region, at, Word, 1 << (intid % 32));
        };
        for offset in [0x180, 0x200, 0x280, 0x100, 0x200, 0x280, 0x300, 0x380, 0x80] {
            write(&mut machine, offset);
        }
        if intid >= 32 {
            machine.vgic.write(D, 0x6000 + 8 * u64::from(intid), Double, 1);
        }
        for vcpu in 0..2 {
            machine.enter(vcpu);
        }
    }
    assert_eq!(kicks(&machine), before);
}

#[test]
fn no_gic_has_these_parts() {
    let good = Config {
        vcpus: 1,
        list_registers: 4,
        priority_bits: 5,
        spis: Vec::from_slice(&[PhysicalSpi { virt: 35, phys: 35, edge: false }]).unwrap(),
    };
    let refused = |change: fn(&mut Config)| {
        let mut config = good.clone();
        change(&mut config);
        Vgic::new(config, std::rc::Rc::<crate::vgic::model::FakeGic>::default()).err()
    };
    assert_eq!(refused(|_| ()), None);
    assert_eq!(refused(|c| c.vcpus = 0), Some(ConfigError::Vcpus));
    assert_eq!(refused(|c| c.vcpus = 17), Some(ConfigError::Vcpus));
    assert_eq!(refused(|c| c.list_registers = 0), Some(ConfigError::ListRegisters));
    assert_eq!(refused(|c| c.list_registers = 17), Some(ConfigError::ListRegisters));
    assert_eq!(refused(|c| c.priority_bits = 4), Some(ConfigError::PriorityBits));
    assert_eq!(refused(|c| c.priority_bits = 9), Some(ConfigError::PriorityBits));
    for bad in [(31, 40), (256, 40), (40, 31), (40, 1020), (35, 40), (40, 35)] {
        let mut config = good.clone();
        let spi = PhysicalSpi { virt: bad.0, phys: bad.1, edge: false };
        config.spis.push(spi).unwrap();
        let vgic = Vgic::new(config, std::rc::Rc::<crate::vgic::model::FakeGic>::default());
        assert_eq!(vgic.err(), Some(ConfigError::Spi(spi)), "{bad:?}");
    }
}

#[test]
fn reset_leaves_nothing_behind() {
    let mut machine = Machine::running(2, 4);
    for spi in owned_spis() {
        machine.gic.drive(PhysicalInterrupt::Spi { intid: spi.phys }, true);
    }
    machine.route(0, 36, 1);
    machine.gic.drive(PhysicalInterrupt::Ppi { vcpu: 1, intid: 27 }, true);
    machine.vgic.set_line(33, true);
    machine.send_sgi(0, 3, 0b11);
    machine.settle();
    machine.cpus[0].acknowledge().unwrap();
    machine.cpus[1].acknowledge().unwrap();
    for vcpu in 0..2 {
        machine.leave(vcpu);
    }
    machine.vgic.reset();
    assert!(!machine.gic.any_active());
    for spi in owned_spis() {
        let source = machine.gic.get(PhysicalInterrupt::Spi { intid: spi.phys });
        let level = Source { line: true, edge: spi.edge, ..Source::default() };
        assert_eq!(source, level);
    }
    assert_eq!(machine.read(0, D, 0, Word), 0x50);
    for vcpu in 0..2 {
        machine.enter(vcpu);
        assert_eq!(machine.cpus[vcpu].lr, [0; 4]);
    }
    for spi in owned_spis() {
        machine.gic.drive(PhysicalInterrupt::Spi { intid: spi.phys }, false);
    }
    machine.gic.drive(PhysicalInterrupt::Ppi { vcpu: 1, intid: 27 }, false);
    assert!(machine.is_idle());
}
