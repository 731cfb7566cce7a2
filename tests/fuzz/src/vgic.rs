//! A guest's accesses to its interrupt controller, on several vCPUs, between devices and the list registers.

use hyp::vgic::model::Machine;
use hyp::vgic::{PhysicalInterrupt, Region, SgiRegister, Width};

use crate::Input;

const WIDTHS: [Width; 4] = [Width::Word, Width::Byte, Width::Double, Width::Half];
/// Registers of both frames, a redistributor's second half, and the next redistributor.
const OFFSETS: [u64; 24] = [
    0, 0x8, 0x14, 0x80, 0x84, 0x100, 0x104, 0x180, 0x184, 0x200, 0x204, 0x280, 0x300, 0x304, 0x380,
    0x400, 0x423, 0xc04, 0xc08, 0x6118, 0x6640, 0xffe8, 0x1_0100, 0x2_0014,
];
const VALUES: [u64; 8] = [0, 1, 3, u64::MAX, 0x8080_8080, 1 << 31, 0x1_0000_0000, 1 << 40];
/// The VM's SPIs, virtual 35 to 66, are these.
const PHYSICAL: std::ops::Range<u32> = 100..132;
/// Calls of the physical GIC that one access may cost.
const MOST_CALLS: usize = 1024;
/// SGIs, PPIs, the timers', the emulated UART's, the VM's own of either trigger, and SPIs that nothing drives.
const INTIDS: [u32; 16] = [0, 1, 15, 16, 27, 30, 33, 35, 36, 37, 38, 65, 66, 67, 200, 255];
/// Those of them that only software makes pending: the guest's nesting interrupts, in the order of their urgency.
const NESTING: [u32; 9] = [0, 16, 1, 200, 33, 15, 255, 67, 20];
/// Registers with a bit for each interrupt: group, enable, disable, make pending, not pending, active, inactive.
const ARRAYS: [u64; 7] = [0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380];

/// Makes the accesses.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let vcpus = input.below(4) as usize + 1;
    let list_registers = input.one_of(&[4, 1, 2, 16]);
    let end: u8 = input.any();
    let mut machine = if input.any() {
        Machine::running(vcpus, list_registers)
    } else {
        Machine::new(vcpus, list_registers)
    };
    for cpu in &mut machine.cpus {
        cpu.split_eoi = input.any();
    }
    // Few interrupts, so that what happens to one of them adds up.
    let mut guest =
        Guest { focus: [input.one_of(&INTIDS), input.one_of(&INTIDS)], taken: Vec::new() };
    for _ in 0..128 {
        if input.is_empty() {
            break;
        }
        let calls = machine.gic.calls.get();
        let vcpu = input.below(vcpus as u32) as usize;
        step(&mut machine, &mut input, vcpu, &mut guest);
        let calls = machine.gic.calls.get() - calls;
        assert!(calls <= MOST_CALLS, "{calls} calls");
    }
    machine.settle();
    for (cpu, intid) in machine.gic.touched() {
        let own = if cpu == 99 {
            PHYSICAL.contains(&intid)
        } else {
            cpu < vcpus && [27, 30].contains(&intid)
        };
        assert!(own, "INTID {intid} of CPU {cpu} is not the VM's");
    }
    if end < 0x40 {
        reset(machine, vcpus, list_registers);
    } else {
        recover(machine, vcpus, end.into());
    }
}

/// What the guest is about.
struct Guest {
    /// The interrupts that it mostly uses.
    focus: [u32; 2],
    /// What it has acknowledged and not ended, and on which vCPU.
    taken: Vec<(usize, u32)>,
}

impl Guest {
    fn intid(&self, input: &mut Input<'_>) -> u32 {
        match input.below(8) {
            0 => input.one_of(&INTIDS),
            other => self.focus[other as usize % 2],
        }
    }
}

fn step(machine: &mut Machine, input: &mut Input<'_>, vcpu: usize, guest: &mut Guest) {
    match input.below(26) {
        0..7 => tell(machine, input, vcpu, guest),
        7 | 8 => {
            let intid = guest.intid(input);
            match source(vcpu, intid) {
                Some(source) => machine.gic.drive(source, input.any()),
                None if intid < 16 => machine.send_sgi(vcpu, intid, input.any::<u8>().into()),
                None => machine.set_bit(vcpu, vcpu, intid, 0x200),
            }
        }
        9 => {
            let interrupt = PhysicalInterrupt::Spi { intid: PHYSICAL.start + input.below(32) };
            machine.gic.drive(interrupt, input.any());
        }
        10 => {
            let (intid, high) = (input.near(&[33, 200, 1019]) as u32, input.any());
            machine.exit(vcpu, |vgic, _| vgic.set_line(intid, high));
        }
        11 | 12 => machine.send_sgi(vcpu, input.below(16), input.any::<u8>().into()),
        13 => {
            let register =
                input.one_of(&[SgiRegister::Sgi1r, SgiRegister::Asgi1r, SgiRegister::Sgi0r]);
            let value = input.near(&VALUES);
            machine.exit(vcpu, |vgic, vcpu| vgic.send_sgi(vcpu, register, value));
        }
        14..17 if machine.inside[vcpu] => {
            if let Some(intid) = machine.cpus[vcpu].acknowledge() {
                guest.taken.push((vcpu, intid));
            }
        }
        17..19 => {
            // Mostly one that it has taken, mostly the last.
            let place = guest.taken.len().checked_sub(input.below(4) as usize + 1);
            let (vcpu, intid) =
                place.map_or_else(|| (vcpu, input.any()), |place| guest.taken.remove(place));
            if machine.inside[vcpu] {
                machine.end(vcpu, intid);
                if machine.cpus[vcpu].split_eoi && input.any() {
                    machine.deactivate(vcpu, intid);
                }
            }
        }
        19 if machine.inside[vcpu] => {
            let intid = if input.any() { guest.intid(input) } else { input.any() };
            machine.deactivate(vcpu, intid);
        }
        20 => match (machine.inside[vcpu], input.any()) {
            (true, true) => machine.leave(vcpu),
            (false, _) => machine.enter(vcpu),
            _ => _ = machine.poll(vcpu),
        },
        21 => _ = machine.poll(vcpu),
        24 | 25 => come_and_go(machine, guest.intid(input), vcpu),
        22 => {
            let region = if input.any() { Region::Distributor } else { Region::Redistributor };
            let (offset, width) = (input.near(&OFFSETS), input.one_of(&WIDTHS));
            let value = machine.read(vcpu, region, offset, width);
            assert_eq!(value & !width.mask(), 0);
            assert!(value == 0 || offset.is_multiple_of(width.bytes()));
        }
        _ => {
            let region = if input.any() { Region::Distributor } else { Region::Redistributor };
            let (offset, width, value) =
                (input.near(&OFFSETS), input.one_of(&WIDTHS), input.near(&VALUES));
            machine.write(vcpu, region, offset, width, value);
        }
    }
}

/// The guest writes a register that is there, about an interrupt or all of them.
fn tell(machine: &mut Machine, input: &mut Input<'_>, vcpu: usize, guest: &Guest) {
    let intid = guest.intid(input);
    let bank = input.below(machine.cpus.len() as u32) as usize;
    match input.below(18) {
        what @ 0..11 => {
            machine.set_bit(vcpu, bank, intid, ARRAYS[what as usize % ARRAYS.len()]);
        }
        11 => machine.set_priority(vcpu, bank, intid, input.one_of(&[0x20, 0xa0, 0xf8, 0x00])),
        12 if intid >= 32 => {
            machine.route(vcpu, intid, input.one_of(&[0, 1, 2, 3, 1 << 31, 0x100]));
        }
        12 | 13 => {
            // GICR_WAKER.ProcessorSleep.
            let asleep = input.one_of(&[0, 2]);
            let waker = bank as u64 * 0x2_0000 + 0x14;
            machine.write(vcpu, Region::Redistributor, waker, Width::Word, asleep);
        }
        // One that another vCPU may have: to itself, and on.
        14 | 15 if intid >= 32 => {
            machine.route(vcpu, intid, vcpu as u64);
            machine.set_bit(vcpu, bank, intid, input.one_of(&ARRAYS));
        }
        16 if intid >= 32 => {
            let (at, value) = (0xc00 + 4 * u64::from(intid / 16), input.one_of(&[0, 0xaaaa_aaaa]));
            machine.write(vcpu, Region::Distributor, at, Width::Word, value);
        }
        _ => {
            machine.write(
                vcpu,
                Region::Distributor,
                0,
                Width::Word,
                input.one_of(&[3, 3, 3, 2, 1, 0]),
            );
        }
    }
}

/// What drives an interrupt, if it is a device.
fn source(vcpu: usize, intid: u32) -> Option<PhysicalInterrupt> {
    match intid {
        27 | 30 => Some(PhysicalInterrupt::Ppi { vcpu, intid }),
        35..67 => Some(PhysicalInterrupt::Spi { intid: intid + 65 }),
        _ => None,
    }
}

/// What is pending and what is active, as far as it is in no list register.
fn states(machine: &mut Machine) -> Vec<u64> {
    let banks = (0..machine.cpus.len() as u64).map(|bank| bank * 0x2_0000 + 0x1_0000);
    let words = banks.map(|frame| (Region::Redistributor, frame));
    let words = words.chain((1..8).map(|word| (Region::Distributor, 4 * word)));
    words
        .flat_map(|(region, at)| {
            [0x200, 0x300].map(|array| machine.vgic.read(region, array + at, Width::Word))
        })
        .collect()
}

/// vCPUs that enter and leave without running the guest in between change nothing, not even about an interrupt that has
/// just been made pending.
fn come_and_go(machine: &mut Machine, intid: u32, bank: usize) {
    let inside = machine.inside.clone();
    let all = |machine: &mut Machine, enter: bool| {
        for vcpu in 0..machine.cpus.len() {
            match (machine.inside[vcpu], enter) {
                (false, true) => machine.enter(vcpu),
                (true, false) => machine.leave(vcpu),
                _ => {}
            }
        }
    };
    // The first time, lines are looked at that have become low.
    all(machine, true);
    all(machine, false);
    machine.set_bit(0, bank, intid, 0x200);
    let before = states(machine);
    all(machine, true);
    all(machine, false);
    assert_eq!(states(machine), before, "lost or found on the way");
    for vcpu in (0..inside.len()).filter(|vcpu| inside[*vcpu]) {
        machine.enter(vcpu);
    }
}

/// Whatever came before: a guest that puts itself right, with devices that are quiet, has nothing left, and each kind of
/// interrupt arrives where it should.
fn recover(mut machine: Machine, vcpus: usize, variant: usize) {
    quiet(&mut machine, vcpus);
    for vcpu in 0..vcpus {
        if !machine.inside[vcpu] {
            machine.enter(vcpu);
        }
        let cpu = &mut machine.cpus[vcpu];
        cpu.running.clear();
        cpu.split_eoi = variant & 1 != 0;
    }
    machine.settle();
    machine.fill(0x280);
    machine.fill(0x380);
    machine.settle();
    assert!(machine.is_idle(), "something is left");
    machine.configure();
    machine.settle();
    assert!(machine.is_idle(), "something came back");
    let target = vcpus - 1;
    for intid in INTIDS {
        raise(&mut machine, target, intid);
        take(&mut machine, target, intid);
        if let Some(source) = source(target, intid) {
            machine.gic.drive(source, false);
        }
        end(&mut machine, target, intid);
        assert!(machine.is_idle(), "INTID {intid} does not end");
    }
    flood(&mut machine, target);
    assert!(machine.is_idle(), "something is left of many interrupts");
    nest(&mut machine, target, variant);
    assert!(machine.is_idle(), "something is left of nested interrupts");
}

/// More interrupts at once than there may be list registers for: each comes, once.
fn flood(machine: &mut Machine, target: usize) {
    for intid in NESTING {
        raise(machine, target, intid);
    }
    let mut missing = NESTING.to_vec();
    while !missing.is_empty() {
        machine.settle();
        let intid = machine.cpus[target].acknowledge();
        let place = missing.iter().position(|it| Some(*it) == intid);
        let intid =
            missing.swap_remove(place.unwrap_or_else(|| panic!("{intid:?} of {missing:?}")));
        end(machine, target, intid);
    }
}

/// Interrupts that preempt each other, each more urgent than the one before, some pending again while they are active,
/// end in the reverse order, as often as they came.
fn nest(machine: &mut Machine, target: usize, variant: usize) {
    let nested: Vec<u32> = (0..1 + variant % 8)
        .map(|depth| NESTING[(variant / 8 + depth * (1 + variant / 2 % 2 * 3)) % NESTING.len()])
        .collect();
    let comes_again = |depth: usize| (variant >> (depth % 6)) & 1 != 0;
    for (depth, &intid) in nested.iter().enumerate() {
        machine.set_priority(0, target, intid, 0xf0 - 8 * depth as u8);
        raise(machine, target, intid);
        take(machine, target, intid);
        if comes_again(depth) {
            raise(machine, target, intid);
            // Not with the priority at which it is active.
            if variant & 0x40 != 0 {
                machine.set_priority(0, target, intid, 8);
            }
        }
    }
    for (depth, &intid) in nested.iter().enumerate().rev() {
        end(machine, target, intid);
        if comes_again(depth) {
            take(machine, target, intid);
            end(machine, target, intid);
        }
        for (other, &intid) in nested.iter().enumerate() {
            let active = machine.bit(0, target, intid, 0x300);
            assert_eq!(active, other < depth, "INTID {intid} after {depth} are left");
        }
    }
}

fn raise(machine: &mut Machine, target: usize, intid: u32) {
    if intid >= 32 {
        machine.route(0, intid, target as u64);
    }
    match source(target, intid) {
        Some(source) => machine.gic.drive(source, true),
        None if intid < 16 => machine.send_sgi(0, intid, 1 << target),
        None => machine.set_bit(0, target, intid, 0x200),
    }
}

fn take(machine: &mut Machine, target: usize, intid: u32) {
    machine.settle();
    let acknowledged = machine.cpus[target].acknowledge();
    assert_eq!(acknowledged, Some(intid), "INTID {intid} does not arrive");
}

fn end(machine: &mut Machine, target: usize, intid: u32) {
    machine.end(target, intid);
    if machine.cpus[target].split_eoi {
        machine.deactivate(target, intid);
    }
    machine.settle();
}

/// No device has anything to say.
fn quiet(machine: &mut Machine, vcpus: usize) {
    for intid in PHYSICAL {
        machine.gic.drive(PhysicalInterrupt::Spi { intid }, false);
    }
    for vcpu in 0..vcpus {
        for intid in [27, 30] {
            machine.gic.drive(PhysicalInterrupt::Ppi { vcpu, intid }, false);
        }
    }
    for intid in 32..256 {
        machine.vgic.set_line(intid, false);
    }
}

/// After a reset, every register reads as at a cold boot.
fn reset(mut machine: Machine, vcpus: usize, list_registers: usize) {
    for vcpu in 0..vcpus {
        if machine.inside[vcpu] {
            machine.leave(vcpu);
        }
    }
    // The lines are the devices', not the GIC's.
    quiet(&mut machine, vcpus);
    machine.vgic.reset();
    assert!(!machine.gic.any_active());
    let mut cold = Machine::new(vcpus, list_registers);
    let frames = (0..vcpus as u64).flat_map(|vcpu| [vcpu * 0x2_0000, vcpu * 0x2_0000 + 0x1_0000]);
    let redistributors =
        frames.flat_map(|frame| (0..0xd00).map(move |at| (Region::Redistributor, frame + at)));
    let distributor = (0..0xd00).chain(0x6100..0x6800).map(|at| (Region::Distributor, at));
    for (region, at) in distributor.chain(redistributors).filter(|(_, at)| at % 4 == 0) {
        let expected = cold.vgic.read(region, at, Width::Word);
        assert_eq!(machine.vgic.read(region, at, Width::Word), expected, "{region:?} {at:#x}");
    }
}
