//! What a guest can see and do through its configuration space.

use std::vec::Vec;

use platform::guest_map::{PCI_ECAM_SIZE, PCI_IO, PCI_IO_SIZE};
use platform::pcie::InterruptMap;
use proptest::prelude::*;
use smmu::addr::{Ipa, Pa};

use super::fake::{Guest, Op, Stage2, Step, at, play, requests};
use super::{BarMap, BusMaster, Effects, MapFailed, Target, Vpci, VpciError};
use crate::pci::fake::{
    EDU, Fake, NVME, PLATFORM_FEATURES, VIRTIO_BLK, World, edu, es1370, interrupt_map, nvme, ohci,
    virtio,
};
use crate::pci::{
    Bdf, How, Request, ResetPolicy, Scope, Unassignable, Width, quiesce, registers as reg,
};

impl Guest {
    fn read(&self, function: &str, register: u16, width: Width) -> u64 {
        self.vpci.config_read(&self.world, at(function).ecam_offset() + u64::from(register), width)
    }

    fn read32(&self, function: &str, register: u16) -> u32 {
        self.read(function, register, Width::Word) as u32
    }

    fn write(&mut self, function: &str, register: u16, width: Width, value: u64) -> Effects {
        let offset = at(function).ecam_offset() + u64::from(register);
        self.vpci.config_write(&self.world, &mut self.stage2, offset, width, value)
    }

    fn write32(&mut self, function: &str, register: u16, value: u32) {
        _ = self.write(function, register, Width::Word, value.into());
    }

    fn command(&mut self, function: &str, value: u16) -> Effects {
        self.write(function, reg::COMMAND, Width::Half, value.into())
    }

    fn pa(&self, physical: &str, bar: usize) -> u64 {
        self.topology.get(at(physical)).unwrap().bars[bar].unwrap().place.unwrap().cpu.raw()
    }

    fn hardware(&self, physical: &str, register: u16) -> u16 {
        self.world.with(at(physical), |fake| fake.get16(register))
    }

    /// Where each slot's function really is.
    fn address(&self, physical: &str) -> String {
        self.vpci.virtual_address(at(physical)).unwrap().to_string()
    }

    /// Walks the list as a driver does.
    fn capabilities(&self, function: &str) -> Vec<(u8, u8)> {
        let mut found = Vec::new();
        if self.read32(function, reg::COMMAND) >> 16 & 0x10 == 0 {
            return found;
        }
        let mut next = self.read(function, reg::CAPABILITIES, Width::Byte);
        while next != 0 {
            let header = self.read(function, next as u16, Width::Half);
            found.push((header as u8, next as u8));
            assert!(found.len() < 48);
            next = header >> 8;
        }
        found
    }
}

fn one(fake: Fake) -> Guest {
    let world = World::new();
    world.add(None, fake);
    Guest::new(world, &["00:01.0"])
}

#[test]
fn a_guest_sees_its_functions_and_nothing_else() {
    let world = World::new();
    world.add(None, edu(1));
    world.add(None, nvme(2));
    let guest = Guest::new(world, &["00:02.0"]);
    for slot in 0..=255 {
        let function = Bdf::from_requester_id(slot);
        let id = guest.vpci.config_read(&guest.world, function.ecam_offset(), Width::Word);
        let expected = if function == at("00:02.0") { NVME } else { u32::MAX };
        assert_eq!(id, expected.into(), "{function}");
    }
    assert_eq!(guest.vpci.config_read(&guest.world, PCI_ECAM_SIZE, Width::Word), u32::MAX.into());
    assert_eq!(guest.vpci.config_read(&guest.world, u64::MAX, Width::Double), u64::MAX);
    assert_eq!(guest.read32("00:02.0", reg::REVISION), 0x0108_0201);
    assert_eq!(guest.read32("00:02.0", reg::SUBSYSTEM), 0xbeef_1234);
    assert_eq!(guest.read("00:02.0", reg::HEADER_TYPE, Width::Byte), 0);
    assert_eq!(guest.read("00:02.0", reg::INTERRUPT_PIN, Width::Byte), 1);
}

#[test]
fn any_offset_and_width_reads_the_same_bytes() {
    let guest = one(nvme(1));
    let bytes: Vec<u64> = (0..4096).map(|at| guest.read("00:01.0", at, Width::Byte)).collect();
    for (width, step) in [(Width::Half, 1), (Width::Word, 1), (Width::Double, 1)] {
        for start in (0..4096_usize).step_by(step) {
            let expected = (0..width.bytes() as usize).rev().fold(0, |value, at| {
                // What comes after the function is nothing, even if a function is there.
                value << 8 | bytes.get(start + at).copied().unwrap_or(0xff)
            });
            assert_eq!(
                guest.read("00:01.0", start as u16, width),
                expected,
                "{start:#x} {width:?}"
            );
        }
    }
}

#[test]
fn a_write_across_registers_reaches_both() {
    let mut guest = one(edu(1));
    // Interrupt line and the byte before it; then a word that ends in the next function.
    _ = guest.write("00:01.0", 0x3b, Width::Half, 0x55aa);
    assert_eq!(guest.read("00:01.0", reg::INTERRUPT_LINE, Width::Byte), 0x55);
    _ = guest.write("00:00.7", 0xffe, Width::Double, 0x0007_0000_0000_0000);
    assert_eq!(guest.read("00:01.0", reg::COMMAND, Width::Half), 0);
    // All of both BAR registers of a 64-bit BAR at once, not aligned to eight bytes.
    let mut guest = one(Fake::new(1, 0, NVME, 0).mem64(1, 0x4000, false));
    _ = guest.write("00:01.0", 0x14, Width::Double, 0x90_1234_4567);
    assert_eq!(guest.read("00:01.0", 0x14, Width::Double), 0x90_1234_4004);
}

#[test]
fn bars_are_sized_as_on_hardware() {
    let world = World::new();
    world.add(None, virtio(1, PLATFORM_FEATURES));
    world.add(None, es1370(2));
    world.add(None, Fake::new(3, 0, NVME, 0).mem64(0, 8 << 30, true));
    let mut guest = Guest::new(world, &["00:01.0", "00:02.0", "00:03.0"]);
    let mut size = |function, register| {
        // As Linux does: decode off, all ones, read, restore.
        let command = guest.read(function, reg::COMMAND, Width::Half);
        _ = guest.command(function, command as u16 & !3);
        let old = guest.read32(function, register);
        guest.write32(function, register, u32::MAX);
        let size = guest.read32(function, register);
        guest.write32(function, register, old);
        assert_eq!(guest.read32(function, register), old);
        size
    };
    assert_eq!(size("00:01.0", 0x14), 0xffff_f000);
    assert_eq!(size("00:01.0", 0x20), 0xffff_c00c);
    assert_eq!(size("00:01.0", 0x24), 0xffff_ffff);
    assert_eq!(size("00:02.0", 0x10), 0xffff_ffc1);
    assert_eq!(size("00:03.0", 0x10), 0x0000_000c);
    assert_eq!(size("00:03.0", 0x14), 0xffff_fffe);
    for nothing in [0x10, 0x18, 0x1c, 0x30] {
        assert_eq!(size("00:01.0", nothing), 0, "{nothing:#x}");
    }
}

#[test]
fn a_bar_is_mapped_while_it_decodes_inside_a_window() {
    let mut guest = one(edu(1));
    let pa = guest.pa("00:01.0", 0);
    guest.write32("00:01.0", 0x10, 0x1010_0000);
    assert_eq!(guest.stage2.log, []);
    _ = guest.command("00:01.0", reg::COMMAND_MEMORY);
    assert_eq!(guest.stage2.log, [Op::Map(0x1010_0000, pa, 1 << 20)]);
    guest.stage2.log.clear();
    // Moved while decoding: away first, then there.
    guest.write32("00:01.0", 0x10, 0x3000_0000);
    assert_eq!(
        guest.stage2.log,
        [Op::Unmap(0x1010_0000, 1 << 20), Op::Map(0x3000_0000, pa, 1 << 20)]
    );
    // Partly or wholly outside is not there at all; the register keeps what was written.
    for outside in [0x0ff0_0000, 0x3ef0_0000, 0x4000_0000, 0, 0xfff0_0000] {
        guest.write32("00:01.0", 0x10, outside);
        assert_eq!(guest.stage2.maps, [], "{outside:#x}");
        assert_eq!(guest.read32("00:01.0", 0x10), outside);
    }
    guest.write32("00:01.0", 0x10, 0x1000_0000);
    assert_eq!(guest.stage2.maps.len(), 1);
    _ = guest.command("00:01.0", 0);
    assert_eq!(guest.stage2.maps, []);
    guest.world.check();
}

#[test]
fn a_64_bit_bar_goes_into_either_window() {
    let mut guest = one(nvme(1));
    let pa = guest.pa("00:01.0", 0);
    _ = guest.command("00:01.0", reg::COMMAND_MEMORY);
    for (address, there) in [
        (0x1000_0000, true),
        (0x80_0000_0000, true),
        (0xff_ffff_c000, true),
        (0x100_0000_0000, false),
        (0x7f_ffff_c000, false),
        (0xffff_ffff_ffff_c000, false),
        (0x8000_0000_1000_0000, false),
    ] {
        _ = guest.write("00:01.0", 0x10, Width::Double, address);
        let expected: &[_] = if there { &[(address, pa, 0x4000)] } else { &[] };
        assert_eq!(guest.stage2.maps, expected, "{address:#x}");
    }
}

#[test]
fn of_overlapping_bars_the_first_wins() {
    let world = World::new();
    world.add(None, edu(1));
    world.add(None, edu(2));
    let mut guest = Guest::new(world, &["00:01.0", "00:02.0"]);
    let (first, second) = (guest.pa("00:01.0", 0), guest.pa("00:02.0", 0));
    for function in ["00:02.0", "00:01.0"] {
        _ = guest.command(function, reg::COMMAND_MEMORY);
        guest.write32(function, 0x10, 0x1010_0000);
    }
    assert_eq!(
        guest.stage2.log,
        [
            Op::Map(0x1010_0000, second, 1 << 20),
            Op::Unmap(0x1010_0000, 1 << 20),
            Op::Map(0x1010_0000, first, 1 << 20)
        ]
    );
    // The other one appears when the first leaves.
    _ = guest.command("00:01.0", 0);
    assert_eq!(guest.stage2.maps, [(0x1010_0000, second, 1 << 20)]);
    let mapped: Vec<_> = guest.vpci.mapped().collect();
    assert_eq!(mapped, [(Ipa::new(0x1010_0000), Pa::new(second), 1 << 20)]);
}

#[test]
fn a_mapping_that_stage_2_refuses_is_tried_again() {
    let mut guest = one(edu(1));
    guest.stage2.full = true;
    guest.write32("00:01.0", 0x10, 0x1010_0000);
    _ = guest.command("00:01.0", reg::COMMAND_MEMORY);
    assert_eq!(guest.vpci.decode(Ipa::new(0x1010_0000), Width::Word), Target::Absent);
    guest.stage2.full = false;
    _ = guest.command("00:01.0", 0);
    _ = guest.command("00:01.0", reg::COMMAND_MEMORY);
    assert_eq!(guest.stage2.maps.len(), 1);
    assert_eq!(guest.vpci.decode(Ipa::new(0x1010_0000), Width::Word), Target::Mapped);
}

#[test]
fn small_and_io_bars_are_forwarded() {
    let world = World::new();
    world.add(None, ohci(1));
    world.add(None, es1370(2));
    let mut guest = Guest::new(world, &["00:01.0", "00:02.0"]);
    guest.write32("00:01.0", 0x10, 0x1000_0f00);
    guest.write32("00:02.0", 0x10, 0x1040);
    let decode = |guest: &Guest, ipa, width| guest.vpci.decode(Ipa::new(ipa), width);
    assert_eq!(decode(&guest, 0x1000_0f00, Width::Word), Target::Absent);
    _ = guest.command("00:01.0", reg::COMMAND_MEMORY | reg::COMMAND_IO);
    _ = guest.command("00:02.0", reg::COMMAND_IO);
    let (ohci, sound) = (guest.pa("00:01.0", 0), guest.pa("00:02.0", 0));
    assert_eq!(decode(&guest, 0x1000_0f00, Width::Word), Target::Forward(Pa::new(ohci)));
    assert_eq!(decode(&guest, 0x1000_0ffc, Width::Word), Target::Forward(Pa::new(ohci + 0xfc)));
    assert_eq!(decode(&guest, 0x1000_1000, Width::Byte), Target::Absent);
    assert_eq!(decode(&guest, 0x1000_0efc, Width::Word), Target::Absent);
    let io = PCI_IO.raw();
    assert_eq!(decode(&guest, io + 0x1044, Width::Byte), Target::Forward(Pa::new(sound + 4)));
    assert_eq!(decode(&guest, io + 0x1080, Width::Byte), Target::Absent);
    // EL2 could not make these accesses itself.
    assert_eq!(decode(&guest, 0x1000_0f02, Width::Word), Target::Absent);
    assert_eq!(decode(&guest, u64::MAX, Width::Byte), Target::Absent);
    assert_eq!(guest.stage2.log, []);
    // A BAR that is smaller than the access.
    let mut tiny = one(Fake::new(1, 0, EDU, 0).io(0, 4));
    tiny.write32("00:01.0", 0x10, 0x1000);
    _ = tiny.command("00:01.0", reg::COMMAND_IO);
    assert!(matches!(decode(&tiny, io + 0x1000, Width::Word), Target::Forward(_)));
    assert_eq!(decode(&tiny, io + 0x1000, Width::Double), Target::Absent);
    // The last port of the window, and past it.
    guest.write32("00:02.0", 0x10, PCI_IO_SIZE as u32 - 0x40);
    assert_eq!(decode(&guest, io + 0xffc0, Width::Word), Target::Forward(Pa::new(sound)));
    guest.write32("00:02.0", 0x10, PCI_IO_SIZE as u32);
    assert_eq!(decode(&guest, io + PCI_IO_SIZE, Width::Word), Target::Absent);
}

#[test]
fn what_a_guest_must_not_have_is_not_in_the_list() {
    let guest = one(nvme(1));
    assert_eq!(guest.capabilities("00:01.0"), [(reg::CAP_POWER, 0x60), (reg::CAP_EXPRESS, 0x80)]);
    // The serial number is all that is left of the extended list, and comes first.
    assert_eq!(guest.read("00:01.0", 0x100, Width::Word), 0x0001_0003);
    assert_eq!(guest.read("00:01.0", 0x104, Width::Double), 0x0102_0304_0506_0708);
    for register in (0x10c..0x1000).chain(0x40..0x60).chain(0xa0..0x100) {
        assert_eq!(guest.read("00:01.0", register, Width::Byte), 0, "{register:#x}");
    }
    let guest = one(edu(1));
    assert_eq!(guest.capabilities("00:01.0"), []);
    assert_eq!(guest.read("00:01.0", 0x100, Width::Word), 0);
}

#[test]
fn virtio_structures_are_found_but_not_the_back_door() {
    let mut guest = one(virtio(1, PLATFORM_FEATURES));
    let found = guest.capabilities("00:01.0");
    let vendor: Vec<_> =
        found.iter().filter(|(id, _)| *id == reg::CAP_VENDOR).map(|(_, at)| *at).collect();
    assert_eq!(vendor, [0x70, 0x60, 0x50, 0x40]);
    assert_eq!(guest.read32("00:01.0", 0x78), 0x3000);
    // The notify multiplier is part of it, what follows is not.
    assert_eq!(guest.read("00:01.0", 0x73, Width::Byte), 2);
    for register in 0x84..0x98 {
        assert_eq!(guest.read("00:01.0", register, Width::Byte), 0);
    }
    // All of the back door: BAR, offset, length, data.
    for register in (0x84..0x98).step_by(4) {
        guest.write32("00:01.0", register, u32::MAX);
    }
    guest.world.check();
    // Any other vendor's capabilities mean anything.
    let guest = one(Fake::new(1, 0, EDU, 0).virtio(0x40, 1, 0, 0, 0x1000));
    assert_eq!(guest.capabilities("00:01.0"), []);
    // A capability ends where it says, not at the next word.
    let mut odd = Fake::new(1, 0, VIRTIO_BLK, 0).virtio(0x40, 3, 0, 0, 0x1000);
    odd.config[0x42] = 18;
    odd.config[0x50..0x54].fill(0x77);
    assert_eq!(one(odd).read32("00:01.0", 0x50), 0x7777);
}

#[test]
fn the_express_capability_is_that_of_an_integrated_endpoint() {
    let world = World::new();
    let port = world.add(None, Fake::bridge(1, Some(4)));
    world.add(Some(port), nvme(0));
    let mut guest = Guest::new(world, &["01:00.0"]);
    let slot = guest.address("01:00.0");
    assert_eq!(guest.read(&slot, 0x82, Width::Half), 0x92);
    // The port above carries 128 bytes, so that is what the function supports.
    assert_eq!(guest.read32(&slot, 0x84), 0x1000_8020);
    for register in (0x8c..0xc0).step_by(4) {
        guest.write32(&slot, register, u32::MAX);
        assert_eq!(guest.read32(&slot, register), 0);
    }
    // Payload and read request, error messages, No Snoop, a reserved size.
    _ = guest.write(&slot, 0x88, Width::Half, 0x5f3f);
    assert_eq!(guest.read(&slot, 0x88, Width::Half), 0x5110);
    _ = guest.write(&slot, 0x88, Width::Half, 0x7000);
    assert_eq!(guest.hardware("01:00.0", 0x88), 0x5000, "what the guest does not decide stays");
    guest.world.check();
}

#[test]
fn the_next_life_finds_device_control_and_errors_as_the_first_one_did() {
    // What firmware left counts as found, but for errors.
    let mut found = nvme(1);
    found.put16(0x88, 0x2830);
    found.put16(0x8a, 0x0003);
    found.put16(reg::STATUS, found.get16(reg::STATUS) | 0x2000);
    let mut guest = one(found);
    let seen = |guest: &Guest| {
        [0x88, 0x8a, reg::STATUS].map(|register| guest.read("00:01.0", register, Width::Half))
    };
    let cold = seen(&guest);
    assert_eq!(cold, [0x2030, 0, 0x10]);
    _ = guest.write("00:01.0", 0x88, Width::Half, 0x5110);
    let hardware = at("00:01.0");
    guest.world.with(hardware, |fake| fake.put16(0x8a, 0x000f));
    guest.world.with(hardware, |fake| fake.put16(reg::STATUS, 0xf910));
    let soiled = seen(&guest);
    assert_eq!(soiled, [0x5110, 0xf, 0xf910]);
    // Over a kexec it stays, whether the function is reset or not.
    guest.vpci.close(&guest.world, |_| false);
    let _ = quiesce(&guest.world, &guest.topology, &requests(&["00:01.0"]), Scope::All);
    assert_eq!(seen(&guest)[0], soiled[0]);
    guest.world.with(hardware, |fake| fake.put16(0x8a, 0x000f));
    guest.vpci.reset(&guest.world, &mut guest.stage2);
    assert_eq!(seen(&guest), cold);
    guest.world.check();
}

#[test]
fn a_guest_resets_its_function_and_nothing_moves() {
    for fake in [nvme(1), Fake::new(1, 0, EDU, 0).mem32(0, 0x4000).advanced(0x80)] {
        let advanced = fake.config[0x80] == reg::CAP_ADVANCED;
        let mut guest = one(fake);
        guest.world.mastering.set(true);
        guest.vpci.admit(&guest.world, at("00:01.0"));
        guest.write32("00:01.0", 0x10, 0x1010_0000);
        _ = guest.write("00:01.0", reg::INTERRUPT_LINE, Width::Byte, 9);
        _ = guest.command("00:01.0", reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER);
        assert!(guest.world.armed(at("00:01.0")));
        let effects = match advanced {
            true => guest.write("00:01.0", 0x84, Width::Byte, 1),
            false => guest.write("00:01.0", 0x88, Width::Half, 0x8000),
        };
        let done = effects.reset.unwrap();
        assert_eq!((done.how, done.clean, done.usable, done.armed), (How::Flr, true, true, true));
        assert_eq!(effects.bus_master, Some(BusMaster { function: at("00:01.0"), on: false }));
        assert_eq!(guest.world.with(at("00:01.0"), |fake| fake.resets), 1);
        // Cold for the guest, ready for the next mapping.
        assert_eq!(guest.stage2.maps, []);
        assert_eq!(guest.read32("00:01.0", 0x10) & !0xf, 0);
        assert_eq!(guest.read("00:01.0", reg::INTERRUPT_LINE, Width::Byte), 0);
        assert_eq!(guest.hardware("00:01.0", reg::COMMAND), reg::COMMAND_MEMORY);
        let start = guest.topology.get(at("00:01.0")).unwrap().bars[0].unwrap().place.unwrap().bus;
        assert_eq!(guest.world.with(at("00:01.0"), |fake| fake.decoded(0)).unwrap().start, start);
        guest.world.check();
    }
}

/// A stage 2 that looks at the function's resets whenever something is unmapped.
struct Witness<'a> {
    world: &'a World,
    resets: Option<u32>,
}

impl BarMap for Witness<'_> {
    fn map(&mut self, _: Ipa, _: Pa, _: u64) -> Result<(), MapFailed> {
        Ok(())
    }

    fn unmap(&mut self, _: Ipa, _: u64) {
        self.resets = Some(self.world.with(at("00:01.0"), |fake| fake.resets));
    }
}

#[test]
fn bars_are_out_of_reach_before_a_reset_starts() {
    let mut guest = one(nvme(1));
    let mut witness = Witness { world: &guest.world, resets: None };
    let base = at("00:01.0").ecam_offset();
    for (register, value) in [(0x10, 0x1000_0000), (0x04, 2), (0x88, 0x8000)] {
        _ = guest.vpci.config_write(
            &guest.world,
            &mut witness,
            base + register,
            Width::Word,
            value,
        );
    }
    assert_eq!(witness.resets, Some(0));
    assert_eq!(guest.world.with(at("00:01.0"), |fake| fake.resets), 1);
}

#[test]
fn a_function_that_a_reset_lost_is_out_of_reach() {
    let mut fragile = nvme(1);
    fragile.fragile = true;
    let mut guest = one(fragile);
    guest.vpci.admit(&guest.world, at("00:01.0"));
    let effects = guest.write("00:01.0", 0x88, Width::Half, 0x8000);
    assert!(!effects.reset.unwrap().usable);
    guest.write32("00:01.0", 0x10, 0x1010_0000);
    _ = guest.command("00:01.0", reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER);
    assert_eq!(guest.stage2.maps, []);
    // Even if it answers again, nobody knows in which state it is. A later reset brings it back.
    for fake in guest.world.fakes.borrow_mut().iter_mut() {
        (fake.gone, fake.fragile) = (false, false);
    }
    _ = guest.command("00:01.0", reg::COMMAND_MEMORY);
    _ = guest.command("00:01.0", reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER);
    assert_eq!(guest.stage2.maps, []);
    guest.world.check();
    let outcomes = quiesce(&guest.world, &guest.topology, &requests(&["00:01.0"]), Scope::All);
    assert!(outcomes[0].usable);
    guest.vpci.quiesced(&mut guest.stage2, &outcomes);
    assert_eq!(guest.stage2.maps.len(), 1);
}

#[test]
fn a_policy_against_resets_hides_them() {
    let world = World::new();
    world.add(None, nvme(1));
    world.add(None, Fake::new(2, 0, EDU, 0).advanced(0x80));
    let policy = ResetPolicy::BusMaster;
    let requests = ["00:01.0", "00:02.0"].map(|text| Request { function: at(text), policy });
    let mut guest = Guest::with(world, &requests);
    assert_eq!(guest.read32("00:01.0", 0x84) & reg::DEVICE_CAPABILITIES_FLR, 0);
    assert_eq!(guest.capabilities("00:02.0"), []);
    assert_eq!(guest.write("00:01.0", 0x88, Width::Half, 0x8000).reset, None);
    assert_eq!(guest.write("00:02.0", 0x84, Width::Byte, 1).reset, None);
    for state in [3, 0] {
        assert_eq!(guest.write("00:01.0", 0x64, Width::Half, state).reset, None);
    }
    assert_eq!(guest.world.with(at("00:01.0"), |fake| fake.resets), 0);
}

#[test]
fn sleep_takes_bars_and_bus_master_away() {
    for (no_soft_reset, resets) in [(false, 1), (true, 0)] {
        let mut guest = one(Fake::new(1, 0, NVME, 0).mem32(0, 0x1000).power(0x40, no_soft_reset));
        guest.world.mastering.set(true);
        guest.vpci.admit(&guest.world, at("00:01.0"));
        guest.write32("00:01.0", 0x10, 0x1010_0000);
        _ = guest.command("00:01.0", reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER);
        // D1 and D2 are not offered and not accepted; PME is neither.
        assert_eq!(guest.read32("00:01.0", 0x40) >> 16, 3);
        _ = guest.write("00:01.0", 0x44, Width::Half, 0x0101);
        assert_eq!(guest.read("00:01.0", 0x44, Width::Half) & 0x0103, 0);
        _ = guest.write("00:01.0", 0x44, Width::Half, 3);
        assert_eq!(guest.read("00:01.0", 0x44, Width::Byte) & 3, 3);
        assert_eq!(guest.stage2.maps, []);
        assert!(!guest.world.armed(at("00:01.0")));
        // The byte above the state does not wake it up.
        _ = guest.write("00:01.0", 0x45, Width::Byte, 0);
        assert_eq!(guest.read("00:01.0", 0x44, Width::Byte) & 3, 3);
        let effects = guest.write("00:01.0", 0x44, Width::Half, 0);
        assert_eq!(effects.reset.is_some(), resets == 1);
        assert_eq!(guest.world.with(at("00:01.0"), |fake| fake.resets), resets);
        // With a soft reset it starts over, without it goes on.
        assert_eq!(guest.stage2.maps.len(), usize::from(no_soft_reset));
        assert_eq!(guest.world.armed(at("00:01.0")), no_soft_reset);
        assert_eq!(guest.vpci.bus_master(at("00:01.0")), no_soft_reset);
        guest.world.check();
    }
}

#[test]
fn bus_master_needs_guest_and_owner() {
    let world = World::new();
    world.add(None, edu(1));
    world.add(None, edu(2));
    let mut guest = Guest::new(world, &["00:01.0", "00:02.0"]);
    let (one, two) = (at("00:01.0"), at("00:02.0"));
    // Not admitted: the guest sees its bit, the function does not; `World::check` would tell.
    let effects = guest.command("00:01.0", reg::COMMAND_BUS_MASTER);
    assert_eq!(effects.bus_master, Some(BusMaster { function: one, on: true }));
    assert_eq!(guest.read("00:01.0", reg::COMMAND, Width::Half), reg::COMMAND_BUS_MASTER.into());
    assert_eq!(guest.command("00:01.0", reg::COMMAND_BUS_MASTER), Effects::default());
    guest.world.check();

    guest.world.mastering.set(true);
    guest.vpci.admit(&guest.world, one);
    assert!(guest.world.armed(one) && !guest.world.armed(two));
    guest.vpci.admit(&guest.world, two);
    assert!(!guest.world.armed(two), "the guest did not ask for it");
    _ = guest.command("00:02.0", reg::COMMAND_BUS_MASTER);
    assert!(guest.world.armed(two));

    // The second lingers; neither can be armed again by the guest.
    guest.vpci.close(&guest.world, |function| function == two);
    assert!(!guest.world.armed(one) && guest.world.armed(two));
    assert!(!guest.vpci.bus_master(one) && !guest.vpci.bus_master(two));
    assert_eq!(guest.read("00:02.0", reg::COMMAND, Width::Half), 0);
    guest.world.mastering.set(false);
    let effects = guest.command("00:01.0", reg::COMMAND_BUS_MASTER | reg::COMMAND_MEMORY);
    assert_eq!(effects.bus_master, Some(BusMaster { function: one, on: true }));
    _ = guest.command("00:02.0", reg::COMMAND_BUS_MASTER);
    assert!(!guest.world.armed(one) && !guest.world.armed(two));
    guest.world.check();
}

#[test]
fn closing_keeps_the_rest_of_the_guests_view() {
    let mut guest = one(edu(1));
    guest.write32("00:01.0", 0x10, 0x1010_0000);
    _ = guest.command(
        "00:01.0",
        reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER | reg::COMMAND_INTX_DISABLE,
    );
    guest.vpci.close(&guest.world, |_| false);
    let kept = reg::COMMAND_MEMORY | reg::COMMAND_INTX_DISABLE;
    assert_eq!(guest.read("00:01.0", reg::COMMAND, Width::Half), kept.into());
    assert_eq!(guest.hardware("00:01.0", reg::COMMAND), kept);
    assert_eq!(guest.stage2.maps.len(), 1);
    // A cold start keeps nothing.
    guest.vpci.reset(&guest.world, &mut guest.stage2);
    assert_eq!(guest.read32("00:01.0", reg::COMMAND) & 0xffff, 0);
    assert_eq!(guest.read32("00:01.0", 0x10), 0);
    assert_eq!(guest.stage2.maps, []);
    assert_eq!(guest.hardware("00:01.0", reg::COMMAND), reg::COMMAND_MEMORY);
}

#[test]
fn status_errors_clear_and_the_rest_stays() {
    let mut guest = one(edu(1));
    guest.world.with(at("00:01.0"), |fake| fake.put16(reg::STATUS, 0xf91f));
    assert_eq!(guest.read("00:01.0", reg::STATUS, Width::Half), 0xf908);
    // A write of the command alone clears nothing.
    _ = guest.command("00:01.0", 0xffff);
    assert_eq!(guest.read("00:01.0", reg::STATUS, Width::Half), 0xf908);
    _ = guest.write("00:01.0", reg::STATUS, Width::Half, 0x8fff);
    assert_eq!(guest.read("00:01.0", reg::STATUS, Width::Half), 0x7008);
    assert_eq!(guest.read("00:01.0", reg::COMMAND, Width::Half), 0x0407);
}

#[test]
fn slots_and_function_numbers() {
    let world = World::new();
    world.add(None, edu(2));
    for function in 0..3 {
        world.add(None, Fake::new(3, function, NVME, 0).multi_function().pin(function + 1));
        world.add(
            None,
            Fake::new(4, function, NVME, 0).multi_function().express(0x40, 0, true).acs(0x100),
        );
    }
    let port = world.add(None, Fake::bridge(5, Some(4)));
    world.add(Some(port), virtio(0, PLATFORM_FEATURES));
    let guest = Guest::new(
        world,
        &["01:00.0", "00:04.1", "00:03.2", "00:03.0", "00:03.1", "00:02.0", "00:04.2"],
    );
    // On the root bus: its own slot. A whole device: its own functions.
    assert_eq!(guest.address("00:02.0"), "00:02.0");
    for function in ["00:03.0", "00:03.1", "00:03.2"] {
        assert_eq!(guest.address(function), function);
        assert_eq!(guest.read(function, reg::HEADER_TYPE, Width::Byte), 0x80);
    }
    // Lone functions: function 0, one of them in the device's slot.
    assert_eq!(guest.address("00:04.1"), "00:04.0");
    assert_eq!(guest.read("00:04.0", reg::HEADER_TYPE, Width::Byte), 0);
    // A bridge that nobody sees takes no slot.
    assert_eq!(guest.address("00:04.2"), "00:05.0");
    // INTA behind slot 5 arrives at line 1, as it does at the same pin of slots 1, 5, 9.
    assert_eq!(guest.address("01:00.0"), "00:01.0");
    assert_eq!(guest.read32("00:01.0", 0), VIRTIO_BLK);
    assert_eq!(guest.read32("00:07.0", 0), u32::MAX);
    let pairs: Vec<_> = guest
        .vpci
        .intx_lines()
        .iter()
        .map(|line| (line.guest.intid, line.physical.intid))
        .collect();
    assert_eq!(pairs.len(), 4);
    assert!(pairs.iter().all(|(guest, physical)| guest == physical), "{pairs:?}");
}

/// Every physical line has one virtual line, and the other way round, and every pin arrives there.
fn assert_one_to_one(guest: &Guest, map: &InterruptMap) {
    let lines = guest.vpci.intx_lines();
    for (index, line) in lines.iter().enumerate() {
        for other in &lines[index + 1..] {
            assert_ne!(line.guest.intid, other.guest.intid);
            assert_ne!(line.physical.intid, other.physical.intid);
        }
    }
    for (function, seen) in guest.vpci.functions() {
        let Some(physical) = guest.topology.interrupt(function, map) else { continue };
        let guest_line = 35 + (function.pin.unwrap() as u32 - 1 + u32::from(seen.device())) % 4;
        assert!(lines.iter().any(|line| (line.guest.intid, line.physical.intid) == (guest_line, physical.intid)));
    }
}

#[test]
fn lines_stay_apart_whatever_the_board_does() {
    // As on QEMU's virt machine; every slot's pins on the same four lines; lines in reverse.
    let mut shared = interrupt_map();
    let mut reversed = interrupt_map();
    for entry in &mut shared.entries {
        entry.interrupt.intid = 100 + 2 * entry.pin;
    }
    for entry in &mut reversed.entries {
        entry.interrupt.intid = 200 - entry.interrupt.intid;
    }
    for map in [interrupt_map(), shared, reversed] {
        let world = World::new();
        for device in 1..9 {
            world.add(None, edu(device).pin(1 + device % 3));
        }
        let port = world.add(None, Fake::bridge(9, None));
        world.add(Some(port), edu(0));
        world.add(Some(port), es1370(7).pin(4));
        let topology = world.enumerate();
        let all = ["00:01.0", "00:02.0", "00:03.0", "00:04.0", "00:08.0", "01:00.0", "01:07.0"];
        let vpci = Vpci::new(&world, &topology, &requests(&all), &map).unwrap();
        assert_one_to_one(&Guest { world, topology, vpci, stage2: Stage2::default() }, &map);
    }
}

#[test]
fn what_cannot_be_wired_is_refused() {
    // One line for all pins: pins A and B of one device cannot both arrive there.
    let mut map = interrupt_map();
    for entry in &mut map.entries {
        entry.interrupt.intid = 50;
    }
    let world = World::new();
    world.add(None, Fake::new(1, 0, EDU, 0).multi_function().pin(1));
    world.add(None, Fake::new(1, 1, EDU, 0).multi_function().pin(2));
    world.add(None, edu(2));
    let topology = world.enumerate();
    let build = |functions: &[&str], map: &InterruptMap| {
        Vpci::new(&world, &topology, &requests(functions), map).map(|_| ())
    };
    assert_eq!(build(&["00:01.0", "00:01.1"], &map), Err(VpciError::NoSlots));
    assert_eq!(build(&["00:01.0", "00:02.0"], &map), Ok(()));
    // More lines than a guest has.
    for (entry, intid) in map.entries.iter_mut().zip(50..) {
        entry.interrupt.intid = intid;
    }
    let many = World::new();
    for device in 1..4 {
        for function in 0..2 {
            many.add(None, Fake::new(device, function, EDU, 0).multi_function().pin(function + 1));
        }
    }
    let all = ["00:01.0", "00:01.1", "00:02.0", "00:02.1", "00:03.0"];
    let result = Vpci::new(&many, &many.enumerate(), &requests(&all), &map).map(|_| ());
    assert_eq!(result, Err(VpciError::TooManyLines));

    assert_eq!(build(&["00:05.0"], &map), Err(VpciError::Unknown { function: at("00:05.0") }));
    assert_eq!(
        build(&["00:02.0", "00:02.0"], &map),
        Err(VpciError::Twice { function: at("00:02.0") })
    );
    let why = Unassignable::NotAnEndpoint;
    assert_eq!(
        build(&["00:00.0"], &map),
        Err(VpciError::Unassignable { function: at("00:00.0"), why })
    );
}

#[test]
fn a_pin_that_leads_nowhere_is_not_shown() {
    let world = World::new();
    world.add(None, edu(1));
    let topology = world.enumerate();
    let vpci =
        Vpci::new(&world, &topology, &requests(&["00:01.0"]), &InterruptMap::default()).unwrap();
    assert_eq!(vpci.config_read(&world, (1 << 15) + 0x3d, Width::Byte), 0);
    assert_eq!(vpci.intx_lines(), []);
}

/// Everything that a guest could own, and something that it does not.
fn offset() -> impl Strategy<Value = u64> {
    let slot = prop_oneof![8 => 0_u64..9, 1 => 0_u64..40].prop_map(|slot| slot << 15);
    let function = prop_oneof![6 => Just(0_u64), 1 => 0_u64..8].prop_map(|function| function << 12);
    let register = prop_oneof![
        4 => prop::sample::select(vec![0x04_u64, 0x10, 0x14, 0x18, 0x20, 0x24]),
        3 => 0_u64..0x100,
        1 => 0x100_u64..0x1a0,
        1 => 0_u64..0x1000,
    ];
    (slot, function, register).prop_map(|(slot, function, register)| slot | function | register)
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        Just(u64::MAX),
        0_u64..8,
        // Addresses inside the windows, often the same ones.
        (0x100_u64..0x3f0).prop_map(|mib| mib << 20),
        (0_u64..4).prop_map(|mib| 0x1000_0000 | mib << 20),
        (0_u64..4).prop_map(|index| 0x80_0000_0000 + (index << 14)),
        (0_u64..0x10).prop_map(|page| page << 12 | 0x07),
        (0_u64..0x100).prop_map(|bit| 1 << (bit % 64)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let width = || prop::sample::select(vec![Width::Byte, Width::Half, Width::Word, Width::Double]);
    prop_oneof![
        30 => (offset(), width(), value()).prop_map(|(offset, width, value)| Step::Write { offset, width, value }),
        5 => (offset(), width()).prop_map(|(offset, width)| Step::Read { offset, width }),
        1 => (any::<u64>(), width(), value()).prop_map(|(offset, width, value)| Step::Write { offset, width, value }),
        2 => (offset(), value(), width()).prop_map(|(offset, base, width)| Step::Probe { ipa: Ipa::new(base.wrapping_add(offset)), width }),
        1 => Just(Step::Close),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a guest writes, in whatever width and at whatever place: nothing panics, no function gets a bit
    /// that is not the guest's to give, and stage 2 shows each BAR's own pages, inside a window, once.
    #[test]
    fn no_write_goes_further_than_the_list(admitted in any::<bool>(), steps in prop::collection::vec(step(), 1..120)) {
        play(admitted, &steps);
    }
}
