//! Enumeration, isolation, DMA checks and quiescing on made-up buses.

use std::ops::Range;
use std::vec::Vec;

use platform::dt::WindowKind;
use smmu::ports::Clock;

use super::fake::{
    EDU, Fake, MEM_OFFSET, NVME, PLATFORM_FEATURES, VIRTIO_BLK, World, edu, es1370, interrupt_map,
    nvme, ohci, virtio,
};
use super::{
    Bdf, Bypass, Function, How, Kind, MAX_FUNCTIONS, PciError, Quiesced, Request, ResetPolicy,
    Scope, Topology, Unassignable, bus_master_off, dma_check, enumerate, is_armed, quiesce,
    registers as reg,
};

const ROOT_PORT: Option<u16> = Some(4);
const UPSTREAM: Option<u16> = Some(5);
const DOWNSTREAM: Option<u16> = Some(6);
const TO_PCI: Option<u16> = Some(7);

fn at(text: &str) -> Bdf {
    text.parse().unwrap()
}

fn get<'a>(topology: &'a Topology, text: &str) -> &'a Function {
    topology.get(at(text)).unwrap()
}

/// One of everything: on the root bus, behind a root port, behind a switch, behind a conventional bridge.
fn zoo() -> World {
    let world = World::new();
    world.add(None, edu(1).command(7));
    world.add(None, ohci(2).mem32(1, 0x20));
    world.add(None, es1370(3).io16(1, 0x20));
    let port = world.add(None, Fake::bridge(4, ROOT_PORT).acs(0x100).command(7));
    world.add(Some(port), nvme(0).command(6));
    let port = world.add(None, Fake::bridge(5, ROOT_PORT).acs(0x100).mem32(0, 0x1000));
    let upstream = world.add(Some(port), Fake::bridge(0, UPSTREAM));
    for device in [0, 1] {
        let downstream = world.add(Some(upstream), Fake::bridge(device, DOWNSTREAM).acs(0x100));
        world.add(Some(downstream), virtio(0, PLATFORM_FEATURES));
    }
    let bridge = world.add(None, Fake::bridge(6, TO_PCI));
    world.add(Some(bridge), edu(3));
    world.add(Some(bridge), es1370(4).pin(2));
    world.add(
        None,
        Fake::new(7, 0, NVME, 0x03_0000).mem64(0, 256 << 20, true).mem64(2, 1 << 30, true),
    );
    world
}

fn ranges(world: &World) -> Vec<(bool, Range<u64>)> {
    let fakes = world.fakes.borrow();
    let all = fakes.iter().flat_map(|fake| (0..6).map(move |bar| (fake, bar)));
    all.filter_map(|(fake, bar)| {
        let io = fake.get32(0x10 + 4 * bar as u16) & 1 != 0;
        fake.decoded(bar).map(|range| (io, range))
    })
    .collect()
}

#[test]
fn every_bar_has_pages_of_its_own_inside_a_window() {
    let world = zoo();
    let topology = world.enumerate();
    let ranges = ranges(&world);
    assert_eq!(ranges.len(), 15);
    let pages = |range: &Range<u64>| range.start & !0xfff..(range.end + 0xfff) & !0xfff;
    for (index, (io, range)) in ranges.iter().enumerate() {
        let size = range.end - range.start;
        assert_eq!(range.start % size, 0, "{range:x?}");
        let fits = world.windows.iter().any(|window| {
            (window.kind == WindowKind::Io) == *io
                && window.pci <= range.start
                && range.end <= window.pci + window.cpu.size
        });
        assert!(fits, "{range:x?}");
        if !io {
            assert_eq!(range.start % 4096, 0);
        }
        for (other_io, other) in &ranges[index + 1..] {
            let (one, two) =
                if *io { (range.clone(), other.clone()) } else { (pages(range), pages(other)) };
            assert!(
                io != other_io || one.end <= two.start || two.end <= one.start,
                "{range:x?} {other:x?}"
            );
        }
    }
    // What the hypervisor believes is what the hardware holds.
    for function in topology.functions() {
        for (index, bar) in function.bars.iter().enumerate() {
            let decoded = world.with(function.at, |fake| fake.decoded(index));
            let place = bar.and_then(|bar| Some((bar.place?, bar.size)));
            assert_eq!(decoded, place.map(|(place, size)| place.bus..place.bus + size));
            if let (Some((place, _)), Some(bar)) = (place, bar) {
                let offset = if bar.is_memory() { MEM_OFFSET } else { 0x3eff_0000 };
                assert_eq!(place.cpu.raw(), place.bus + offset);
            }
        }
    }
    // Large 64-bit BARs leave the room below 4 GiB to others, small ones need not.
    let large = get(&topology, "00:07.0");
    assert!(large.bars[0].unwrap().place.unwrap().bus >= 1 << 32);
    assert!(get(&topology, "01:00.0").bars[0].unwrap().place.unwrap().bus < 1 << 32);
}

#[test]
fn bridges_pass_on_exactly_what_is_below_them() {
    let world = zoo();
    let topology = world.enumerate();
    let windows = |bridge: Bdf| {
        world.with(bridge, |fake| {
            let (io, memory) = (fake.get16(0x1c), fake.get32(0x20));
            let io = u64::from(io & 0xf0) << 8..(u64::from(io & 0xf000) | 0xfff) + 1;
            let memory =
                u64::from(memory & 0xfff0) << 16..(u64::from(memory & 0xfff0_0000) | 0xf_ffff) + 1;
            (io, memory)
        })
    };
    for function in topology.functions() {
        let bars: Vec<_> =
            function.bars.iter().flatten().map(|bar| (bar, bar.place.unwrap().bus)).collect();
        for bridge in
            topology.functions().iter().filter(|function| matches!(function.kind, Kind::Bridge(_)))
        {
            let above = topology.bridges_above(function).any(|other| other.at == bridge.at);
            let (io, memory) = windows(bridge.at);
            for (bar, bus) in &bars {
                let range = if bar.is_memory() { &memory } else { &io };
                let passes = range.contains(bus) && range.contains(&(bus + bar.size - 1));
                // A bridge's own BARs are above it.
                assert_eq!(passes, above, "{} of {} through {}", bus, function.at, bridge.at);
            }
        }
    }
    // Requests of devices go up, or nothing below could do DMA at all.
    assert!(world.armed(at("00:04.0")));
}

#[test]
fn a_large_prefetchable_bar_gets_above_4_gib_through_bridges() {
    let world = World::new();
    let port = world.add(None, Fake::bridge(1, ROOT_PORT));
    world.add(
        Some(port),
        Fake::new(0, 0, NVME, 0).mem64(0, 64 << 20, true).mem64(2, 64 << 20, false),
    );
    let topology = world.enumerate();
    let bars = get(&topology, "01:00.0").bars;
    assert_eq!(bars[0].unwrap().place.unwrap().bus, 0x80_0000_0000);
    // The other window of a bridge ends at 4 GiB.
    assert!(bars[2].unwrap().place.unwrap().bus < 1 << 32);
    world.with(at("00:01.0"), |fake| {
        assert_eq!(fake.get32(0x24) & 0xfff0_fff0, 0x03f0_0000);
        assert_eq!((fake.get32(0x28), fake.get32(0x2c)), (0x80, 0x80));
    });
}

#[test]
fn buses_are_numbered_depth_first() {
    let world = zoo();
    // Firmware had numbers of its own, which overlap.
    for bridge in world.fakes.borrow_mut().iter_mut().filter(|fake| fake.is_bridge()) {
        bridge.config[0x18..0x1b].copy_from_slice(&[0, 1, 9]);
    }
    let topology = world.enumerate();
    let found: Vec<_> =
        topology.functions().iter().map(|function| function.at.to_string()).collect();
    for expected in
        ["01:00.0", "02:00.0", "03:00.0", "03:01.0", "04:00.0", "05:00.0", "06:03.0", "06:04.0"]
    {
        assert!(found.iter().any(|found| found == expected), "{expected} in {found:?}");
    }
    let Kind::Bridge(bridge) = get(&topology, "00:05.0").kind else { panic!() };
    assert_eq!((bridge.secondary, bridge.subordinate), (2, 5));
    world.with(at("00:05.0"), |fake| assert_eq!(fake.config[0x18..0x1b], [0, 2, 5]));
}

#[test]
fn what_firmware_left_armed_is_recorded_and_silent() {
    let world = zoo();
    let topology = world.enumerate();
    assert!(get(&topology, "00:01.0").armed_at_boot);
    assert!(get(&topology, "01:00.0").armed_at_boot);
    assert!(!get(&topology, "00:02.0").armed_at_boot);
    for function in topology.functions().iter().filter(|function| function.kind == Kind::Endpoint) {
        assert!(!is_armed(&world, function), "{}", function.at);
        let command = world.with(function.at, |fake| fake.get16(reg::COMMAND));
        assert_eq!(command & reg::COMMAND_INTX_DISABLE, reg::COMMAND_INTX_DISABLE);
        assert_eq!(world.with(function.at, |fake| fake.get32(reg::ROM)), 0);
    }
}

#[test]
fn what_must_be_off_is_switched_off() {
    let world = World::new();
    let mut fake = nvme(1);
    for (register, bits) in [
        (0x42, reg::MSIX_ENABLE),
        (0x166, reg::ATS_ENABLE),
        (0x174, reg::PRI_ENABLE),
        (0x186, reg::PASID_ENABLE),
        (0x198, reg::SRIOV_ENABLE),
    ] {
        fake.put16(register, bits);
    }
    world.add(None, fake);
    let mut other = edu(2);
    other.put16(0x42, reg::MSI_ENABLE);
    // Its ROM decodes too, with the BARs' enable bit.
    other.put16(reg::ROM, 1);
    world.add(None, other);
    world.enumerate();
    for register in [0x42, 0x166, 0x174, 0x186, 0x198] {
        assert_eq!(world.with(at("00:01.0"), |fake| fake.get16(register)), 0, "{register:#x}");
    }
    let control = world.with(at("00:01.0"), |fake| fake.get16(0x80 + reg::DEVICE_CONTROL));
    assert_eq!(control & reg::DEVICE_CONTROL_NO_SNOOP, 0);
    assert_eq!(world.with(at("00:02.0"), |fake| fake.get16(0x42)), 0);
    assert_eq!(world.with(at("00:02.0"), |fake| fake.get16(reg::ROM)), 0);
}

#[test]
fn what_nobody_knows_is_silent_too() {
    let world = World::new();
    let mut cardbus = Fake::new(1, 0, EDU, 0x06_0700).command(7);
    cardbus.config[0x0e] = 2;
    world.add(None, cardbus);
    let topology = world.enumerate();
    let function = get(&topology, "00:01.0");
    assert_eq!((function.kind, function.armed_at_boot), (Kind::Unknown, true));
    assert!(!world.armed(at("00:01.0")));
    assert_eq!(function.assignable(), Err(Unassignable::NotAnEndpoint));
}

#[test]
fn a_function_in_d3_is_woken() {
    let world = World::new();
    let mut fake = nvme(1);
    fake.put16(0x64, 3);
    world.add(None, fake);
    let topology = world.enumerate();
    assert_eq!(world.with(at("00:01.0"), |fake| fake.get16(0x64) & 3), 0);
    assert_eq!(get(&topology, "00:01.0").assignable(), Ok(()));
}

#[test]
fn lists_that_never_end_do_no_harm() {
    let world = World::new();
    // Both lists lead back to themselves, and a capability claims more than the space has.
    let mut fake = nvme(1).cap(reg::CAP_EXPRESS, 0xfc).cap(reg::CAP_VENDOR, 0xf8);
    fake.config[0xf9] = 0x40;
    let header = 0x100 << 20 | 0x0001_0010;
    fake.config[0x190..0x194].copy_from_slice(&u32::to_le_bytes(header));
    world.add(None, fake);
    let topology = world.enumerate();
    assert_eq!(get(&topology, "00:01.0").capabilities.express.unwrap().offset, 0x80);
}

#[test]
fn bars_that_make_no_sense_are_not_there() {
    let world = World::new();
    // A 64-bit BAR in the last register, and one of reserved type.
    let mut fake = edu(1).mem32(1, 0x1000).mem32(5, 0x1000);
    fake.config[0x24] = 4;
    fake.config[0x14] = 6;
    world.add(None, fake);
    let topology = world.enumerate();
    let function = get(&topology, "00:01.0");
    assert!(function.bars[0].is_some());
    assert_eq!(function.bars[1..], [None; 5]);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let world = World::new();
    world.add(None, Fake::new(1, 0, NVME, 0).mem32(0, 0x8000_0000));
    world.add(None, edu(2));
    let topology = world.enumerate();
    assert_eq!(get(&topology, "00:01.0").assignable(), Err(Unassignable::NoSpace { bar: 0 }));
    assert_eq!(world.with(at("00:01.0"), |fake| fake.get16(reg::COMMAND) & 7), 0);
    assert_eq!(get(&topology, "00:02.0").assignable(), Ok(()));
    assert_eq!(get(&topology, "00:00.0").assignable(), Err(Unassignable::NotAnEndpoint));
}

#[test]
fn nothing_is_wasted_and_nothing_overhangs() {
    // Just enough room, if the larger one comes first.
    let mut world = World::new();
    world.windows[1].cpu.size = 0x10_1000;
    world.add(None, Fake::new(1, 0, EDU, 0).mem32(0, 0x1000));
    world.add(None, Fake::new(2, 0, EDU, 0).mem32(0, 0x10_0000));
    let topology = world.enumerate();
    assert!(topology.functions()[1..].iter().all(|function| function.assignable().is_ok()));
    // A bridge passes on whole megabytes: the last half of one is not for what is below it.
    let mut world = World::new();
    world.windows[1].cpu.size = 0x18_0000;
    let port = world.add(None, Fake::bridge(1, None));
    world.add(Some(port), Fake::new(1, 0, EDU, 0).mem32(0, 0x10_0000));
    world.add(Some(port), Fake::new(2, 0, EDU, 0).mem32(0, 0x1000));
    let topology = world.enumerate();
    assert_eq!(get(&topology, "01:01.0").assignable(), Ok(()));
    assert_eq!(get(&topology, "01:02.0").assignable(), Err(Unassignable::NoSpace { bar: 0 }));
}

#[test]
fn an_io_bar_without_a_window_costs_only_itself() {
    let mut world = World::new();
    world.windows.remove(0);
    world.add(None, edu(1).io(1, 0x40));
    let topology = world.enumerate();
    assert_eq!(get(&topology, "00:01.0").assignable(), Ok(()));
    assert_eq!(world.with(at("00:01.0"), |fake| fake.get16(reg::COMMAND) & 3), reg::COMMAND_MEMORY);
}

#[test]
fn enumeration_says_when_it_runs_out() {
    let world = World::new();
    let mut parent = None;
    for _ in 0..10 {
        parent = Some(world.add(parent, Fake::bridge(1, None)));
    }
    let mut topology = Topology::new();
    let result = enumerate(&world, 0..=255, &world.windows, &mut topology);
    assert_eq!(result, Err(PciError::TooDeep { bridge: at("08:01.0") }));
    let mut topology = Topology::new();
    let result = enumerate(&world, 0..=3, &world.windows, &mut topology);
    assert_eq!(result, Err(PciError::BusNumbers { bridge: at("03:01.0") }));

    let world = World::new();
    for device in 1..20 {
        for function in 0..8 {
            world.add(None, Fake::new(device, function, EDU, 0).multi_function().command(4));
        }
    }
    let mut topology = Topology::new();
    let result = enumerate(&world, 0..=255, &world.windows, &mut topology);
    assert_eq!(result, Err(PciError::TooManyFunctions { first: at("00:10.7") }));
    assert_eq!(topology.functions().len(), MAX_FUNCTIONS);
    assert!(world.fakes.borrow().iter().all(|fake| !fake.armed()), "also those that nobody knows");
}

fn group(topology: &Topology, text: &str) -> Vec<String> {
    topology.inseparable(get(topology, text)).map(|other| other.at.to_string()).collect()
}

#[test]
fn functions_of_a_device_are_one_unless_all_have_acs() {
    let world = World::new();
    for function in 0..2 {
        world.add(None, Fake::new(1, function, NVME, 0).multi_function());
        world.add(
            None,
            Fake::new(2, function, NVME, 0).multi_function().express(0x40, 0, true).acs(0x100),
        );
        let mixed = Fake::new(3, function, NVME, 0).multi_function().express(0x40, 0, true);
        world.add(None, if function == 0 { mixed.acs(0x100) } else { mixed });
    }
    let topology = world.enumerate();
    assert_eq!(group(&topology, "00:01.0"), ["00:01.1"]);
    assert_eq!(group(&topology, "00:02.0"), [""; 0]);
    assert_eq!(group(&topology, "00:03.0"), ["00:03.1"]);
    assert_eq!(world.with(at("00:02.0"), |fake| fake.get16(0x106)), 0x1f);
}

#[test]
fn a_conventional_bridge_makes_one_of_what_is_below() {
    let world = zoo();
    let topology = world.enumerate();
    assert_eq!(group(&topology, "06:03.0"), ["06:04.0"]);
    assert_eq!(topology.requester(get(&topology, "06:03.0")), at("06:00.0"));
    assert_eq!(topology.requester(get(&topology, "06:04.0")), at("06:00.0"));
    assert_eq!(topology.requester(get(&topology, "04:00.0")), at("04:00.0"));
    assert_eq!(group(&topology, "04:00.0"), [""; 0]);

    let world = World::new();
    let bridge = world.add(None, Fake::bridge(1, None));
    world.add(Some(bridge), edu(2));
    world.add(None, edu(3));
    let topology = world.enumerate();
    assert_eq!(topology.requester(get(&topology, "01:02.0")), at("00:01.0"));
    assert_eq!(group(&topology, "00:03.0"), [""; 0]);
}

#[test]
fn a_switch_without_acs_makes_one_of_what_is_below() {
    let world = World::new();
    let port = world.add(None, Fake::bridge(1, ROOT_PORT).acs(0x100));
    let upstream = world.add(Some(port), Fake::bridge(0, UPSTREAM));
    for device in 0..3 {
        let downstream = Fake::bridge(device, DOWNSTREAM);
        let downstream =
            world.add(Some(upstream), if device == 2 { downstream.acs(0x100) } else { downstream });
        world.add(Some(downstream), nvme(0));
    }
    let port = world.add(None, Fake::bridge(2, ROOT_PORT));
    world.add(Some(port), nvme(0));
    let topology = world.enumerate();
    // The third one's own port keeps it from the others, but not the others from it.
    assert_eq!(group(&topology, "03:00.0"), ["04:00.0", "05:00.0"]);
    assert_eq!(group(&topology, "05:00.0"), ["03:00.0", "04:00.0"]);
    assert_eq!(group(&topology, "06:00.0"), [""; 0]);
}

#[test]
fn pins_swizzle_through_bridges() {
    let world = zoo();
    let topology = world.enumerate();
    let map = interrupt_map();
    let intid =
        |text| topology.interrupt(get(&topology, text), &map).map(|interrupt| interrupt.intid);
    assert_eq!(intid("00:01.0"), Some(36));
    // INTA of device 0 behind device 4.
    assert_eq!(intid("01:00.0"), Some(35));
    // INTA of device 0 behind downstream port 1, device 0, device 5.
    assert_eq!(intid("05:00.0"), Some(35 + (1 + 5) % 4));
    // INTB of device 4 behind device 6.
    assert_eq!(intid("06:04.0"), Some(35 + (1 + 4 + 6) % 4));
    assert_eq!(intid("00:07.0"), None);
}

#[test]
fn virtio_has_to_offer_access_platform() {
    let world = World::new();
    world.add(None, virtio(1, PLATFORM_FEATURES));
    world.add(None, virtio(2, 1 << 32));
    world.add(None, Fake::new(3, 0, 0x1001_1af4, 0).io(0, 0x40));
    world.add(None, edu(4));
    // The structure is not where it claims to be.
    world.add(
        None,
        Fake::new(5, 0, VIRTIO_BLK, 0).mem32(0, 0x1000).virtio(0x40, 1, 0, 0xff0, 0x1000),
    );
    world.add(None, Fake::new(6, 0, VIRTIO_BLK, 0).io(0, 0x1000).virtio(0x40, 1, 0, 0, 0x1000));
    world.add(None, Fake::new(7, 0, VIRTIO_BLK, 0).mem32(0, 0x1000).virtio(0x40, 1, 6, 0, 0x1000));
    let topology = world.enumerate();
    let check = |text| dma_check(&world, get(&topology, text));
    assert_eq!(check("00:01.0"), Ok(()));
    assert_eq!(check("00:02.0"), Err(Bypass::NoAccessPlatform));
    assert_eq!(check("00:03.0"), Err(Bypass::NoModernInterface));
    assert_eq!(check("00:04.0"), Ok(()));
    for text in ["00:05.0", "00:06.0", "00:07.0"] {
        assert_eq!(check(text), Err(Bypass::NoModernInterface), "{text}");
    }
}

fn stop(world: &World, topology: &Topology, functions: &[&str], scope: Scope) -> Vec<Quiesced> {
    let requests: Vec<_> = functions
        .iter()
        .map(|text| Request { function: at(text), policy: ResetPolicy::Auto })
        .collect();
    quiesce(world, topology, &requests, scope).to_vec()
}

/// Arms a function as its driver would.
fn arm(world: &World, text: &str) {
    world.with(at(text), |fake| fake.config[4] |= 4);
}

fn assert_in_place(world: &World, topology: &Topology, text: &str) {
    let function = get(topology, text);
    for (index, bar) in function.bars.iter().enumerate() {
        let bus = bar.map(|bar| bar.place.unwrap().bus);
        assert_eq!(
            world.with(function.at, |fake| fake.decoded(index)).map(|range| range.start),
            bus
        );
    }
}

#[test]
fn a_function_level_reset_is_restored() {
    let world = zoo();
    let topology = world.enumerate();
    arm(&world, "01:00.0");
    // The guest had allowed larger reads, and disabled the pin.
    world.with(at("01:00.0"), |fake| {
        fake.put16(0x88, 0x5010);
        fake.config[5] |= 4;
        fake.config[0x3c] = 7;
    });
    let [done] = stop(&world, &topology, &["01:00.0"], Scope::All)[..] else { panic!() };
    assert_eq!(
        done,
        Quiesced {
            function: at("01:00.0"),
            armed: true,
            how: How::Flr,
            clean: true,
            unreset: false,
            usable: true
        }
    );
    assert_in_place(&world, &topology, "01:00.0");
    world.with(at("01:00.0"), |fake| {
        assert_eq!(fake.resets, 1);
        assert_eq!(fake.get16(0x88), 0x5010);
        assert_eq!(fake.get16(reg::COMMAND), reg::COMMAND_MEMORY | reg::COMMAND_INTX_DISABLE);
        assert_eq!(fake.config[0x3c], 7);
    });
    world.check();
}

#[test]
fn a_reset_brings_back_nothing_that_must_be_off() {
    let world = World::new();
    // A function that comes out of reset with MSI-X on, and without access control.
    let mut fake = nvme(1).multi_function().acs(0x1c0);
    fake.put16(0x42, reg::MSIX_ENABLE);
    world.add(None, fake);
    let topology = world.enumerate();
    let done = stop(&world, &topology, &["00:01.0"], Scope::All);
    assert_eq!((done[0].how, done[0].usable), (How::Flr, true));
    assert_eq!(world.with(at("00:01.0"), |fake| fake.get16(0x42)), 0);
    assert_eq!(world.with(at("00:01.0"), |fake| fake.get16(0x1c6)), 0x1f);
    let control = world.with(at("00:01.0"), |fake| fake.get16(0x80 + reg::DEVICE_CONTROL));
    assert_eq!(control & reg::DEVICE_CONTROL_NO_SNOOP, 0);
}

#[test]
fn a_reset_that_did_not_happen_is_not_believed() {
    let world = World::new();
    let mut fake = nvme(1);
    fake.resettable = false;
    world.add(None, fake);
    let topology = world.enumerate();
    arm(&world, "00:01.0");
    let [done] = stop(&world, &topology, &["00:01.0"], Scope::All)[..] else { panic!() };
    // Neither function-level reset nor D3hot did anything, and nothing is above it: what it holds is unknown (C3).
    assert_eq!((done.how, done.unreset), (How::BusMaster, true));
    assert_eq!((done.clean, done.usable), (false, true));
    assert!(!world.armed(at("00:01.0")));

    // The operator says that bus master off will do.
    let request = Request { function: at("00:01.0"), policy: ResetPolicy::BusMaster };
    let [done] = quiesce(&world, &topology, &[request], Scope::All)[..] else { panic!() };
    assert_eq!((done.how, done.unreset), (How::BusMaster, false));
    assert_eq!((done.clean, done.usable), (true, true));
}

#[test]
fn methods_are_tried_from_the_best_down() {
    let world = World::new();
    world.add(None, Fake::new(1, 0, EDU, 0).mem32(0, 0x1000).advanced(0x50).power(0x40, false));
    world.add(None, Fake::new(2, 0, EDU, 0).mem32(0, 0x1000).power(0x40, false));
    world.add(None, Fake::new(3, 0, EDU, 0).mem32(0, 0x1000).power(0x40, true));
    let port = world.add(None, Fake::bridge(4, ROOT_PORT));
    world.add(Some(port), Fake::new(0, 0, EDU, 0).mem32(0, 0x1000));
    let topology = world.enumerate();
    let all = ["00:01.0", "00:02.0", "00:03.0", "01:00.0"];
    let done = stop(&world, &topology, &all, Scope::All);
    let how: Vec<_> = done.iter().map(|done| done.how).collect();
    assert_eq!(how, [How::Flr, How::Pm, How::BusMaster, How::BusReset]);
    assert!(done.iter().all(|done| done.clean && done.usable && !done.armed));
    for text in all {
        assert_in_place(&world, &topology, text);
    }
    world.check();
}

#[test]
fn a_virtio_device_without_a_reset_of_its_own_is_told_to_forget() {
    let world = World::new();
    let conventional = |device| {
        Fake::new(device, 0, VIRTIO_BLK, 0)
            .mem64(4, 0x4000, true)
            .virtio(0x40, 1, 4, 0x100, 0x1000)
            .features(PLATFORM_FEATURES)
    };
    world.add(None, conventional(1));
    let mut stubborn = conventional(2);
    stubborn.resettable = false;
    world.add(None, stubborn);
    let topology = world.enumerate();
    for text in ["00:01.0", "00:02.0"] {
        world.with(at(text), |fake| fake.status = 0xf);
        arm(&world, text);
    }
    let done = stop(&world, &topology, &["00:01.0", "00:02.0"], Scope::All);
    assert_eq!((done[0].how, done[0].clean, done[0].usable), (How::Virtio, true, true));
    assert_eq!(world.with(at("00:01.0"), |fake| fake.status), 0);
    assert_eq!((done[1].how, done[1].unreset, done[1].clean), (How::BusMaster, true, false));
    assert!(!world.armed(at("00:01.0")) && !world.armed(at("00:02.0")));
}

#[test]
fn who_has_a_reset() {
    let world = zoo();
    world.add(None, Fake::new(8, 0, EDU, 0).advanced(0x40));
    world.add(None, Fake::new(9, 0, EDU, 0).power(0x40, false));
    world.add(None, Fake::new(10, 0, EDU, 0).power(0x40, true));
    world.add(None, virtio(11, PLATFORM_FEATURES));
    let topology = world.enumerate();
    for (text, expected) in [
        ("00:01.0", false),
        ("00:03.0", false),
        ("01:00.0", true),
        ("06:03.0", true),
        ("00:08.0", true),
        ("00:09.0", true),
        ("00:0a.0", false),
        ("00:0b.0", true),
        // On its parent's bus is a bridge, which nobody could restore.
        ("02:00.0", false),
    ] {
        assert_eq!(topology.has_reset(get(&topology, text)), expected, "{text}");
    }
}

#[test]
fn a_bus_is_reset_only_if_all_of_it_is_the_owners() {
    let world = World::new();
    let port = world.add(None, Fake::bridge(1, None));
    world.add(Some(port), Fake::new(1, 0, EDU, 0).mem32(0, 0x1000));
    world.add(Some(port), Fake::new(2, 0, EDU, 0).mem32(0, 0x1000));
    let topology = world.enumerate();
    let done = stop(&world, &topology, &["01:01.0"], Scope::All);
    // Nothing was tried, so that nothing failed.
    assert_eq!((done[0].how, done[0].unreset, done[0].clean), (How::BusMaster, false, true));
    assert_eq!(world.with(at("01:02.0"), |fake| fake.resets), 0);

    // The operator forbids to reset one of them.
    let requests = [
        Request { function: at("01:01.0"), policy: ResetPolicy::Auto },
        Request { function: at("01:02.0"), policy: ResetPolicy::BusMaster },
    ];
    let done = quiesce(&world, &topology, &requests, Scope::All);
    assert!(done.iter().all(|done| done.how == How::BusMaster));
    assert_eq!(world.with(at("01:02.0"), |fake| fake.resets), 0);

    let done = stop(&world, &topology, &["01:01.0", "01:02.0"], Scope::All);
    assert!(done.iter().all(|done| done.how == How::BusReset && done.usable));
    assert_eq!(world.with(at("01:02.0"), |fake| fake.resets), 1);
    for text in ["01:01.0", "01:02.0"] {
        assert_in_place(&world, &topology, text);
    }
}

#[test]
fn idle_functions_can_be_left_alone() {
    let world = zoo();
    let topology = world.enumerate();
    arm(&world, "00:01.0");
    let before = world.with(at("01:00.0"), |fake| fake.config.clone());
    let done = stop(&world, &topology, &["00:01.0", "01:00.0"], Scope::Armed);
    assert_eq!((done[0].how, done[0].armed), (How::BusMaster, true));
    assert_eq!((done[1].how, done[1].armed, done[1].clean), (How::Idle, false, true));
    assert_eq!(world.with(at("01:00.0"), |fake| fake.config.clone()), before);
    assert_eq!(How::Idle.name(), "idle");
}

#[test]
fn a_function_that_never_finishes_or_never_returns_is_not_clean() {
    let world = World::new();
    world.add(None, Fake::new(1, 0, EDU, 0).mem32(0, 0x1000).express(0x40, 0, false).pending(0x40));
    let mut fragile = nvme(2);
    fragile.fragile = true;
    world.add(None, fragile);
    let topology = world.enumerate();
    let done = stop(&world, &topology, &["00:01.0", "00:02.0"], Scope::Armed);
    assert_eq!((done[0].how, done[0].clean, done[0].usable), (How::BusMaster, false, true));
    // It was idle and would not have been touched; asked again, it is gone.
    assert_eq!(done[1].how, How::Idle);
    let done = stop(&world, &topology, &["00:02.0"], Scope::All);
    assert_eq!((done[0].how, done[0].clean, done[0].usable), (How::BusMaster, false, false));
}

/// C7: resets and what is waited for before them take seconds, in which other VMs' events must be heard.
#[test]
fn nothing_that_cannot_wait_waits_for_functions() {
    let world = zoo();
    world.add(None, nvme(8));
    world.add(None, Fake::new(9, 0, EDU, 0).mem32(0, 0x1000).express(0x40, 0, false).pending(0x40));
    let topology = world.enumerate();
    for text in ["00:08.0", "00:09.0", "01:00.0"] {
        arm(&world, text);
    }
    let before = world.now_us();
    let done = stop(&world, &topology, &["00:08.0", "00:09.0", "01:00.0"], Scope::All);
    assert!(done.iter().any(|done| done.how == How::Flr));
    assert!(world.now_us() - before > 100_000, "the reset was not waited for");
    assert!(world.longest_unattended_us() < 10_000, "{} us", world.longest_unattended_us());
}

#[test]
fn bus_master_goes_off_and_that_is_read_back() {
    let world = zoo();
    let topology = world.enumerate();
    arm(&world, "00:01.0");
    let function = get(&topology, "00:01.0");
    assert!(is_armed(&world, function));
    assert!(bus_master_off(&world, function));
    assert!(!is_armed(&world, function));
}
