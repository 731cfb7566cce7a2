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

/// Makes the accesses.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let vcpus = input.below(4) as usize + 1;
    let list_registers = input.one_of(&[4, 1, 2, 16]);
    let thorough = input.below(8) == 0;
    let mut machine = if input.any() {
        Machine::running(vcpus, list_registers)
    } else {
        Machine::new(vcpus, list_registers)
    };
    for cpu in &mut machine.cpus {
        cpu.split_eoi = input.any();
    }
    for _ in 0..128 {
        if input.is_empty() {
            break;
        }
        let calls = machine.gic.calls.get();
        let vcpu = input.below(vcpus as u32) as usize;
        step(&mut machine, &mut input, vcpu);
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
    if thorough {
        reset(machine, vcpus, list_registers);
    }
}

fn step(machine: &mut Machine, input: &mut Input<'_>, vcpu: usize) {
    let region = if input.any() { Region::Distributor } else { Region::Redistributor };
    match input.below(16) {
        0..6 => {
            let (offset, width, value) =
                (input.near(&OFFSETS), input.one_of(&WIDTHS), input.near(&VALUES));
            machine.write(vcpu, region, offset, width, value);
        }
        6 | 7 => {
            let (offset, width) = (input.near(&OFFSETS), input.one_of(&WIDTHS));
            let value = machine.read(vcpu, region, offset, width);
            assert_eq!(value & !width.mask(), 0);
            assert!(value == 0 || offset.is_multiple_of(width.bytes()));
        }
        8 => {
            let register =
                input.one_of(&[SgiRegister::Sgi1r, SgiRegister::Asgi1r, SgiRegister::Sgi0r]);
            let value = input.near(&VALUES);
            machine.exit(vcpu, |vgic, vcpu| vgic.send_sgi(vcpu, register, value));
        }
        9 | 10 => {
            let interrupt = match input.below(4) {
                0 => PhysicalInterrupt::Ppi { vcpu, intid: input.one_of(&[27, 30]) },
                _ => PhysicalInterrupt::Spi { intid: PHYSICAL.start + input.below(32) },
            };
            machine.gic.drive(interrupt, input.any());
        }
        11 => {
            if let Some(intid) = machine.cpus[vcpu].acknowledge()
                && input.any()
            {
                machine.end(vcpu, intid);
            }
        }
        12 => machine.end(vcpu, input.any()),
        13 => machine.deactivate(vcpu, input.any()),
        14 => {
            let (intid, high) = (input.near(&[33, 200, 1019]) as u32, input.any());
            machine.exit(vcpu, |vgic, _| vgic.set_line(intid, high));
        }
        _ => match (machine.inside[vcpu], input.any()) {
            (true, true) => machine.leave(vcpu),
            (false, _) => machine.enter(vcpu),
            _ => _ = machine.poll(vcpu),
        },
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
    for intid in PHYSICAL {
        machine.gic.drive(PhysicalInterrupt::Spi { intid }, false);
    }
    for vcpu in 0..vcpus {
        for intid in [27, 30] {
            machine.gic.drive(PhysicalInterrupt::Ppi { vcpu, intid }, false);
        }
    }
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
