//! One interrupt's way, step by step.

use crate::vgic::Region::{Distributor as D, Redistributor as R};
use crate::vgic::Width::Word;
use crate::vgic::model::Machine;
use crate::vgic::*;

const GICD_CTLR_RWP: u64 = 1 << 31;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;

/// A level-sensitive and an edge-triggered SPI of the model's VM, and the PL011's.
const LEVEL: u32 = 36;
const EDGE: u32 = 35;
const UART: u32 = 33;

fn physical(virt: u32) -> PhysicalInterrupt {
    PhysicalInterrupt::Spi { intid: virt + 65 }
}

impl Machine {
    fn drive(&mut self, virt: u32, high: bool) {
        self.gic.drive(physical(virt), high);
        self.settle();
    }

    fn take(&mut self, vcpu: usize) -> Option<u32> {
        let taken = self.cpus[vcpu].acknowledge();
        self.settle();
        taken
    }

    fn finish(&mut self, vcpu: usize, intid: u32) {
        self.end(vcpu, intid);
        self.settle();
    }
}

#[test]
fn a_level_comes_again_while_it_is_high() {
    let mut machine = Machine::running(1, 4);
    machine.drive(LEVEL, true);
    for _ in 0..3 {
        assert_eq!(machine.take(0), Some(LEVEL));
        assert!(machine.gic.get(physical(LEVEL)).active);
        assert_eq!(machine.take(0), None, "not while it is active");
        machine.finish(0, LEVEL);
    }
    assert_eq!(machine.take(0), Some(LEVEL));
    machine.drive(LEVEL, false);
    machine.finish(0, LEVEL);
    assert_eq!(machine.take(0), None);
    assert!(machine.is_idle());
}

#[test]
fn an_emulated_level_comes_again_while_it_is_high() {
    let mut machine = Machine::running(1, 4);
    machine.exit(0, |vgic, _| vgic.set_line(UART, true));
    for _ in 0..3 {
        assert_eq!(machine.take(0), Some(UART));
        assert_eq!(machine.take(0), None);
        machine.finish(0, UART);
    }
    assert_eq!(machine.take(0), Some(UART));
    machine.exit(0, |vgic, _| vgic.set_line(UART, false));
    let exits = machine.exits;
    machine.finish(0, UART);
    assert_eq!(machine.exits, exits, "no maintenance interrupt once the line is low");
    assert_eq!(machine.take(0), None);
    machine.exit(0, |vgic, _| vgic.set_line(UART, true));
    machine.exit(0, |vgic, _| vgic.set_line(UART, false));
    assert_eq!(machine.take(0), None, "withdrawn");
    assert!(machine.is_idle());
}

#[test]
fn an_intx_may_cost_one_exit() {
    let mut machine = Machine::running(1, 4);
    let exits = machine.exits;
    machine.drive(LEVEL, true);
    assert_eq!(machine.take(0), Some(LEVEL));
    machine.drive(LEVEL, false);
    machine.finish(0, LEVEL);
    assert_eq!(machine.exits - exits, 1);
}

#[test]
fn a_line_that_drops_unseen_is_taken_back() {
    let mut machine = Machine::running(1, 4);
    machine.drive(LEVEL, true);
    machine.drive(LEVEL, false);
    machine.exit(0, |_, _| ());
    assert_eq!(machine.take(0), None);
    assert!(!machine.gic.get(physical(LEVEL)).active);
    // Seen too late: one spurious interrupt, then silence.
    machine.drive(LEVEL, true);
    machine.drive(LEVEL, false);
    assert_eq!(machine.take(0), Some(LEVEL));
    machine.finish(0, LEVEL);
    assert_eq!(machine.take(0), None);
    machine.drive(LEVEL, true);
    assert_eq!(machine.take(0), Some(LEVEL), "and it still works");
    machine.drive(LEVEL, false);
    machine.finish(0, LEVEL);
    assert!(machine.is_idle());
}

#[test]
fn a_guest_that_makes_a_level_pending_gets_it_though_the_line_drops() {
    let mut machine = Machine::running(1, 4);
    machine.drive(LEVEL, true);
    machine.set_bit(0, 0, LEVEL, ISPENDR);
    machine.drive(LEVEL, false);
    machine.exit(0, |_, _| ());
    assert_eq!(machine.take(0), Some(LEVEL));
    machine.finish(0, LEVEL);
    assert_eq!(machine.take(0), None);
    assert!(machine.is_idle());
}

#[test]
fn edges_are_neither_lost_nor_multiplied() {
    let mut machine = Machine::running(1, 4);
    for _ in 0..3 {
        machine.drive(EDGE, true);
        machine.drive(EDGE, false);
        assert_eq!(machine.take(0), Some(EDGE));
        machine.drive(EDGE, true);
        machine.drive(EDGE, false);
        assert_eq!(machine.take(0), None, "pending and active");
        machine.finish(0, EDGE);
        assert_eq!(machine.take(0), Some(EDGE));
        machine.finish(0, EDGE);
        assert_eq!(machine.take(0), None);
    }
    assert!(machine.is_idle());
}

#[test]
fn what_comes_twice_while_active_comes_when_it_has_ended() {
    let mut machine = Machine::running(1, 4);
    // A write on top of a physical edge that is active.
    machine.drive(EDGE, true);
    machine.drive(EDGE, false);
    assert_eq!(machine.take(0), Some(EDGE));
    machine.set_bit(0, 0, EDGE, ISPENDR);
    machine.finish(0, EDGE);
    assert!(!machine.gic.get(physical(EDGE)).active);
    assert_eq!(machine.take(0), Some(EDGE));
    // A physical edge, and a second write, on top of that write.
    machine.set_bit(0, 0, EDGE, ISPENDR);
    machine.drive(EDGE, true);
    machine.drive(EDGE, false);
    machine.finish(0, EDGE);
    assert_eq!(machine.take(0), Some(EDGE));
    machine.finish(0, EDGE);
    assert_eq!(machine.take(0), None);
    assert!(!machine.gic.get(physical(EDGE)).active);
    assert!(machine.is_idle());
    // A write on top of an emulated level that stays high.
    machine.exit(0, |vgic, _| vgic.set_line(UART, true));
    assert_eq!(machine.take(0), Some(UART));
    machine.set_bit(0, 0, UART, ISPENDR);
    for _ in 0..3 {
        machine.finish(0, UART);
        assert_eq!(machine.take(0), Some(UART));
    }
}

#[test]
fn an_emulated_line_may_be_an_edge() {
    let mut machine = Machine::running(1, 4);
    machine.write(0, D, 0xc08, Word, 0x8888_8888);
    machine.exit(0, |vgic, _| vgic.set_line(UART, true));
    assert_eq!(machine.take(0), Some(UART));
    machine.exit(0, |vgic, _| vgic.set_line(UART, true));
    machine.finish(0, UART);
    assert_eq!(machine.take(0), None, "no new edge");
    machine.exit(0, |vgic, _| vgic.set_line(UART, false));
    machine.exit(0, |vgic, _| vgic.set_line(UART, true));
    machine.exit(0, |vgic, _| vgic.set_line(UART, false));
    assert_eq!(machine.take(0), Some(UART), "the edge counts, not the level");
    machine.finish(0, UART);
    assert!(machine.is_idle());
}

#[test]
fn an_end_that_nobody_waits_for_ends_nothing() {
    let mut machine = Machine::running(1, 4);
    machine.leave(0);
    let mut lrs = ListRegisters::new(4);
    machine.vgic.enter(0, &mut lrs);
    machine.vgic.write(D, 0x300 + 4 * 6, Word, 1 << 8);
    lrs.hcr |= 3 << 27;
    machine.vgic.leave(0, &lrs);
    assert_eq!(machine.vgic.read(D, 0x300 + 4 * 6, Word), 1 << 8);
}

#[test]
fn each_vcpu_has_its_own_timers() {
    let mut machine = Machine::running(2, 4);
    for intid in [27, 30] {
        let timer = PhysicalInterrupt::Ppi { vcpu: 1, intid };
        machine.gic.drive(timer, true);
        machine.settle();
        assert_eq!(machine.take(0), None);
        assert_eq!(machine.take(1), Some(intid));
        machine.gic.drive(timer, false);
        machine.finish(1, intid);
        assert_eq!(machine.take(1), None);
    }
    assert!(machine.is_idle());
}

#[test]
fn a_disabled_interrupt_waits_without_being_stuck() {
    for (virt, by) in [(LEVEL, 0), (LEVEL, 1), (EDGE, 0), (EDGE, 1)] {
        let mut machine = Machine::running(2, 4);
        // EL2 has acknowledged it, the guest has not.
        machine.drive(virt, true);
        machine.set_bit(by, 0, virt, ICENABLER);
        machine.settle();
        assert_eq!(machine.take(0), None);
        let source = machine.gic.get(physical(virt));
        assert!(!source.active && !source.enabled && source.is_pending(), "given back");
        assert!(machine.bit(by, 0, virt, ISPENDR));
        machine.set_bit(by, 0, virt, ISENABLER);
        machine.settle();
        assert_eq!(machine.take(0), Some(virt));
        // Disabled while active: the guest ends it as ever.
        machine.set_bit(by, 0, virt, ICENABLER);
        machine.drive(virt, false);
        machine.finish(0, virt);
        assert!(!machine.gic.get(physical(virt)).active);
        machine.set_bit(by, 0, virt, ISENABLER);
        machine.settle();
        assert_eq!(machine.take(0), None);
        assert!(machine.is_idle());
    }
}

#[test]
fn rwp_tells_when_a_disabled_interrupt_can_no_longer_come() {
    let mut machine = Machine::running(2, 4);
    machine.drive(LEVEL, true);
    machine.set_bit(1, 0, LEVEL, ICENABLER);
    assert_ne!(machine.read(1, D, 0, Word) & GICD_CTLR_RWP, 0);
    assert!(machine.cpus[0].signalled().is_some(), "it still can");
    machine.poll(0);
    assert_eq!(machine.read(1, D, 0, Word) & GICD_CTLR_RWP, 0);
    assert_eq!(machine.take(0), None);

    machine.set_bit(1, 0, LEVEL, ISENABLER);
    machine.settle();
    machine.write(1, D, 0, Word, 1);
    assert_ne!(machine.read(1, D, 0, Word) & GICD_CTLR_RWP, 0);
    machine.settle();
    assert_eq!(machine.read(1, D, 0, Word), 0x51);
    assert_eq!(machine.take(0), None);
    machine.write(1, D, 0, Word, 3);
    machine.settle();
    assert_eq!(machine.take(0), Some(LEVEL));

    machine.send_sgi(1, 2, 1);
    machine.settle();
    machine.set_bit(1, 0, 2, ICENABLER);
    assert_eq!(machine.read(1, R, 0, Word), 8);
    assert_eq!(machine.read(1, R, 0x2_0000, Word), 0);
    machine.settle();
    assert_eq!(machine.read(1, R, 0, Word), 0);
}

#[test]
fn writes_reach_what_another_vcpu_has_loaded() {
    let mut machine = Machine::running(2, 4);
    for virt in [EDGE, LEVEL, 200, UART] {
        let owned = ![200, UART].contains(&virt);
        if owned {
            machine.drive(virt, true)
        } else {
            machine.set_bit(1, 0, virt, ISPENDR)
        }
        machine.settle();
        assert_eq!(machine.cpus[0].signalled(), Some((virt, 0xa0)));
        // ICPENDR, as long as no line says otherwise.
        if owned {
            machine.gic.drive(physical(virt), false);
        }
        machine.set_bit(1, 0, virt, ICPENDR);
        machine.settle();
        assert_eq!(machine.cpus[0].signalled(), None);
        assert!(machine.is_idle(), "{virt}");
        // ISPENDR while pending is nothing new; ISPENDR after ICPENDR is.
        machine.set_bit(1, 0, virt, ISPENDR);
        machine.settle();
        machine.set_bit(1, 0, virt, ISPENDR);
        machine.settle();
        machine.set_bit(1, 0, virt, ICPENDR);
        machine.set_bit(1, 0, virt, ISPENDR);
        machine.settle();
        assert_eq!(machine.take(0), Some(virt));
        machine.finish(0, virt);
        assert_eq!(machine.take(0), None);
        assert!(machine.is_idle(), "{virt}");
        // ICACTIVER and ISACTIVER.
        machine.set_bit(1, 0, virt, ISPENDR);
        machine.settle();
        assert_eq!(machine.take(0), Some(virt));
        machine.set_bit(1, 0, virt, ISPENDR);
        machine.settle();
        assert_eq!(machine.cpus[0].signalled(), None);
        machine.cpus[0].running.clear();
        machine.set_bit(1, 0, virt, ICACTIVER);
        machine.settle();
        assert_eq!(machine.cpus[0].signalled(), Some((virt, 0xa0)));
        machine.set_bit(1, 0, virt, ISACTIVER);
        machine.settle();
        assert_eq!(machine.cpus[0].signalled(), None);
        assert!(machine.bit(1, 0, virt, ISACTIVER) && machine.bit(1, 0, virt, ISPENDR));
        machine.set_bit(1, 0, virt, ICPENDR);
        machine.set_bit(1, 0, virt, ICACTIVER);
        machine.settle();
        assert!(machine.is_idle(), "{virt}");
    }
}

#[test]
fn icpendr_does_not_silence_a_line_that_is_high() {
    let mut machine = Machine::running(2, 4);
    for by in [0, 1] {
        machine.drive(LEVEL, true);
        machine.set_bit(by, 0, LEVEL, ICPENDR);
        machine.settle();
        assert_eq!(machine.take(0), Some(LEVEL));
        machine.drive(LEVEL, false);
        machine.finish(0, LEVEL);
        machine.exit(by, |vgic, _| vgic.set_line(UART, true));
        machine.set_bit(by, 0, UART, ICPENDR);
        machine.settle();
        assert_eq!(machine.take(0), Some(UART));
        machine.exit(by, |vgic, _| vgic.set_line(UART, false));
        machine.settle();
        machine.finish(0, UART);
        assert!(machine.is_idle());
    }
}

#[test]
fn icactiver_ends_an_intx_of_a_crashed_handler() {
    let mut machine = Machine::running(2, 4);
    machine.drive(LEVEL, true);
    assert_eq!(machine.take(0), Some(LEVEL));
    // Another kernel starts on vCPU 1, while vCPU 0 spins for ever.
    machine.set_bit(1, 0, LEVEL, ICACTIVER);
    machine.route(1, LEVEL, 1);
    machine.settle();
    assert_eq!(machine.take(1), Some(LEVEL));
    machine.drive(LEVEL, false);
    machine.finish(1, LEVEL);
    assert!(machine.is_idle());
}

#[test]
fn a_guest_that_polls_the_active_state_sees_the_end() {
    let mut machine = Machine::running(2, 4);
    machine.drive(LEVEL, true);
    assert_eq!(machine.take(0), Some(LEVEL));
    machine.exit(0, |_, _| ());
    assert!(machine.bit(1, 0, LEVEL, ISACTIVER));
    machine.settle();
    machine.drive(LEVEL, false);
    machine.finish(0, LEVEL);
    // synchronize_irq() on vCPU 1, while vCPU 0 has no reason to exit.
    machine.bit(1, 0, LEVEL, ISACTIVER);
    machine.settle();
    assert!(!machine.bit(1, 0, LEVEL, ISACTIVER));

    machine.send_sgi(1, 5, 1);
    machine.settle();
    assert_eq!(machine.take(0), Some(5));
    machine.bit(1, 0, 5, ISPENDR);
    machine.settle();
    assert!(!machine.bit(1, 0, 5, ISPENDR));
}

#[test]
fn what_is_pending_follows_its_route_and_what_is_active_stays() {
    let mut machine = Machine::running(2, 4);
    machine.write(1, D, 0xc30, Word, 2 << 16);
    for virt in [LEVEL, EDGE, 200] {
        let raise = |machine: &mut Machine| {
            if virt == 200 {
                machine.set_bit(1, 0, virt, ISPENDR)
            } else {
                machine.drive(virt, true)
            }
            machine.settle();
        };
        machine.route(1, virt, 0);
        raise(&mut machine);
        machine.route(1, virt, 1);
        machine.settle();
        assert_eq!(machine.take(0), None);
        assert_eq!(machine.take(1), Some(virt));
        machine.route(1, virt, 0);
        if virt != LEVEL {
            machine.set_bit(1, 0, virt, ISPENDR);
        }
        machine.settle();
        assert_eq!((machine.take(0), machine.take(1)), (None, None));
        machine.finish(1, virt);
        assert_eq!((machine.take(1), machine.take(0)), (None, Some(virt)));
        if virt != 200 {
            machine.drive(virt, false);
        }
        machine.finish(0, virt);
        assert!(machine.is_idle());
    }
}

#[test]
fn a_vcpu_that_is_off_gives_its_spis_away() {
    let mut machine = Machine::running(2, 4);
    machine.drive(LEVEL, true);
    machine.leave(0);
    machine.drive(38, true);
    for virt in [LEVEL, 38] {
        machine.route(1, virt, 1);
        machine.settle();
        assert_eq!(machine.take(1), Some(virt));
        machine.drive(virt, false);
        machine.finish(1, virt);
    }
    machine.enter(0);
    assert_eq!(machine.take(0), None);
    // What nobody takes is there when it is on again, and has kicked nobody.
    machine.leave(0);
    machine.send_sgi(1, 4, 1);
    assert!(!machine.poll(0));
    machine.enter(0);
    assert_eq!(machine.take(0), Some(4));
}

#[test]
fn it_may_fire_again_elsewhere_before_its_end_is_known() {
    let mut machine = Machine::running(2, 4);
    machine.drive(LEVEL, true);
    assert_eq!(machine.take(0), Some(LEVEL));
    machine.route(1, LEVEL, 1);
    machine.settle();
    machine.end(0, LEVEL);
    machine.poll(1);
    assert_eq!(machine.cpus[1].signalled(), None, "vCPU 0 has not come back yet");
    machine.settle();
    assert_eq!(machine.take(1), Some(LEVEL));
    machine.drive(LEVEL, false);
    machine.finish(1, LEVEL);
    assert!(machine.is_idle());
}

#[test]
fn sgis_go_where_the_register_says() {
    let targets = |register, value: u64| {
        let mut machine = Machine::running(4, 4);
        machine.exit(1, |vgic, vcpu| vgic.send_sgi(vcpu, register, 7 << 24 | value));
        machine.settle();
        let taken = [0, 1, 2, 3].map(|vcpu| machine.take(vcpu));
        taken.map(|intid| intid.inspect(|&intid| assert_eq!(intid, 7)).is_some())
    };
    let sgi1r = |value| targets(SgiRegister::Sgi1r, value);
    assert_eq!(sgi1r(0b0001), [true, false, false, false]);
    assert_eq!(sgi1r(0b1010), [false, true, false, true]);
    assert_eq!(sgi1r(0xffff), [true; 4]);
    assert_eq!(sgi1r(0), [false; 4]);
    assert_eq!(sgi1r(1 << 40), [true, false, true, true], "all but self");
    assert_eq!(sgi1r(1 << 40 | 0xffff), [true, false, true, true]);
    assert_eq!(sgi1r(1 << 44 | 0xffff), [false; 4], "Aff0 16 to 31");
    assert_eq!(sgi1r(0xf << 44 | 0xffff), [false; 4]);
    assert_eq!(sgi1r(1 << 16 | 0xffff), [false; 4], "Aff1");
    assert_eq!(sgi1r(1 << 32 | 0xffff), [false; 4], "Aff2");
    assert_eq!(sgi1r(1 << 48 | 0xffff), [false; 4], "Aff3");
    assert_eq!(sgi1r(0xff00_0000_f000_0000 | 0b1), [true, false, false, false], "reserved");
    assert_eq!(targets(SgiRegister::Sgi0r, 0xffff), [false; 4], "Group 0 only");
    assert_eq!(targets(SgiRegister::Asgi1r, 0xffff), [false; 4], "Group 0 only");

    let mut machine = Machine::running(1, 4);
    machine.write(0, R, 0x1_0080, Word, 0xffff_0000);
    for register in [SgiRegister::Sgi1r, SgiRegister::Sgi0r, SgiRegister::Asgi1r] {
        machine.exit(0, |vgic, vcpu| vgic.send_sgi(vcpu, register, 7 << 24 | 1));
        assert_eq!(machine.take(0), Some(7));
        machine.finish(0, 7);
    }
}

#[test]
fn an_sgi_sent_again_comes_again() {
    let mut machine = Machine::running(2, 4);
    machine.send_sgi(1, 5, 1);
    machine.send_sgi(1, 5, 1);
    machine.settle();
    assert_eq!(machine.take(0), Some(5), "merged while pending");
    machine.send_sgi(1, 5, 1);
    machine.settle();
    machine.finish(0, 5);
    assert_eq!(machine.take(0), Some(5));
    machine.finish(0, 5);
    // Acknowledged, and sent again before the vCPU comes back.
    machine.send_sgi(1, 5, 1);
    machine.poll(0);
    assert_eq!(machine.cpus[0].acknowledge(), Some(5));
    machine.send_sgi(1, 5, 1);
    machine.finish(0, 5);
    assert_eq!(machine.take(0), Some(5));
    machine.finish(0, 5);
    assert!(machine.is_idle());
}

#[test]
fn nested_interrupts_beyond_the_list_registers_end_in_order() {
    for list_registers in [1, 2, 4] {
        let mut machine = Machine::running(1, list_registers);
        let nest = [EDGE, LEVEL, 200, UART, 5, 27, 201, 6];
        let raise = |machine: &mut Machine, intid: u32, high: bool| match intid {
            27 => machine.gic.drive(PhysicalInterrupt::Ppi { vcpu: 0, intid }, high),
            UART => machine.exit(0, |vgic, _| vgic.set_line(UART, high)),
            EDGE | LEVEL => machine.gic.drive(physical(intid), high),
            _ if high => machine.set_bit(0, 0, intid, ISPENDR),
            _ => {}
        };
        for (n, intid) in nest.into_iter().enumerate() {
            machine.set_priority(0, 0, intid, 0xe0 - 0x10 * n as u8);
            raise(&mut machine, intid, true);
            machine.settle();
            assert_eq!(machine.take(0), Some(intid), "{list_registers}");
            raise(&mut machine, intid, false);
            machine.settle();
        }
        for intid in nest {
            assert!(machine.bit(0, 0, intid, ISACTIVER));
        }
        for (n, intid) in nest.into_iter().enumerate().rev() {
            // One that arrives now is taken at once if it is urgent enough.
            machine.send_sgi(0, 8, 1);
            machine.set_priority(0, 0, 8, 0xe0 - 0x10 * n as u8 - 8);
            assert_eq!(machine.take(0), Some(8));
            machine.finish(0, 8);
            machine.finish(0, intid);
            assert!(!machine.bit(0, 0, intid, ISACTIVER), "{list_registers} {intid}");
        }
        assert!(machine.is_idle());
    }
}

#[test]
fn with_split_eoi_many_stay_active_and_end_in_any_order() {
    for (vcpus, list_registers) in [(1, 1), (1, 4), (3, 1), (3, 4)] {
        let mut machine = Machine::running(vcpus, list_registers);
        for cpu in &mut machine.cpus {
            cpu.split_eoi = true;
        }
        let virts: std::vec::Vec<u32> = (35..47).collect();
        for &virt in &virts {
            machine.route(0, virt, u64::from(virt) % vcpus as u64);
            machine.drive(virt, true);
            let vcpu = virt as usize % vcpus;
            assert_eq!(machine.take(vcpu), Some(virt));
            machine.finish(vcpu, virt);
            machine.drive(virt, false);
        }
        for n in 0..virts.len() {
            // 5 is prime to 12: all of them, crosswise; any vCPU may end an SPI.
            let virt = virts[n * 5 % 12];
            assert!(machine.bit(0, 0, virt, ISACTIVER));
            machine.deactivate(n % vcpus, virt);
            machine.settle();
            assert!(!machine.bit(0, 0, virt, ISACTIVER), "{vcpus} {list_registers} {virt}");
            assert!(!machine.gic.get(physical(virt)).active);
        }
        assert!(machine.is_idle());
    }
}

#[test]
fn an_active_state_that_was_written_belongs_to_the_right_vcpu() {
    let mut machine = Machine::new(2, 4);
    machine.set_bit(0, 1, 20, ISACTIVER);
    machine.settle();
    assert_eq!([machine.cpus[0].lr[0], machine.cpus[1].lr[0]], [0, 1 << 63 | 20]);
    machine.set_bit(0, 1, 20, ICACTIVER);
    machine.settle();
    assert!(machine.is_idle());
}

#[test]
fn an_active_state_that_was_written_is_on_one_vcpu_only() {
    let mut machine = Machine::running(2, 1);
    machine.exit(0, |vgic, _| vgic.set_line(UART, true));
    assert_eq!(machine.take(0), Some(UART));
    machine.route(0, UART, 1);
    machine.exit(0, |vgic, _| vgic.set_line(UART, false));
    machine.settle();
    // Nobody waits for this end: vCPU 0 still has it loaded when vCPU 1, its new home, makes it active.
    machine.finish(0, UART);
    machine.set_bit(1, 0, UART, ISACTIVER);
    machine.settle();
    assert!(machine.cpus[0].lr.iter().all(|lr| lr >> 62 == 0), "{:x?}", machine.cpus[0].lr);
    assert!(machine.cpus[1].lr.iter().any(|lr| lr >> 62 == 2), "{:x?}", machine.cpus[1].lr);
    machine.set_bit(1, 0, UART, ICACTIVER);
    machine.settle();
    assert!(machine.is_idle());
}

#[test]
fn dir_without_split_eoi_is_ignored() {
    let mut machine = Machine::running(2, 4);
    machine.drive(LEVEL, true);
    assert_eq!(machine.take(0), Some(LEVEL));
    machine.deactivate(0, LEVEL);
    machine.deactivate(0, 1023);
    machine.deactivate(0, 0xff_ffff);
    assert!(machine.bit(0, 0, LEVEL, ISACTIVER));
}

#[test]
fn what_is_reprogrammed_while_active_still_ends() {
    let mut machine = Machine::running(1, 4);
    machine.drive(LEVEL, true);
    assert_eq!(machine.take(0), Some(LEVEL));
    machine.set_priority(0, 0, LEVEL, 0x20);
    machine.write(0, D, 0x84, Word, 0);
    machine.drive(LEVEL, false);
    machine.finish(0, LEVEL);
    assert!(machine.is_idle());
}

#[test]
fn a_group_that_the_vcpu_disabled_blocks_nobody() {
    for list_registers in [1, 4] {
        let mut machine = Machine::running(1, list_registers);
        machine.cpus[0].enabled = [false, true];
        // Ten interrupts of Group 0, each more urgent than the others.
        for intid in 100..110 {
            machine.set_priority(0, 0, intid, 0x40);
        }
        machine.write(0, D, 0x80 + 12, Word, !0x3ff0);
        for intid in (100..110).chain(200..210) {
            machine.set_bit(0, 0, intid, ISPENDR);
        }
        machine.settle();
        for intid in 200..205 {
            assert_eq!(machine.take(0), Some(intid));
            machine.finish(0, intid);
        }
        machine.cpus[0].enabled = [true, false];
        machine.settle();
        for intid in 100..110 {
            assert_eq!(machine.take(0), Some(intid));
            machine.finish(0, intid);
        }
        assert_eq!(machine.take(0), None);
        machine.cpus[0].enabled = [true, true];
        machine.settle();
        for intid in 205..210 {
            assert_eq!(machine.take(0), Some(intid));
            machine.finish(0, intid);
        }
        assert!(machine.is_idle());
        // The list registers are full of Group 1 when the vCPU disables that.
        for intid in 100..110 {
            machine.set_priority(0, 0, intid, 0xc0);
        }
        for intid in (100..110).chain(200..210) {
            machine.set_bit(0, 0, intid, ISPENDR);
        }
        machine.settle();
        machine.cpus[0].enabled = [true, false];
        machine.settle();
        assert_eq!(machine.take(0), Some(100));
    }
}

#[test]
fn a_redistributor_asleep_forwards_nothing() {
    let mut machine = Machine::running(2, 4);
    machine.send_sgi(0, 5, 2);
    machine.settle();
    machine.write(0, R, 0x2_0014, Word, 2);
    assert_eq!(machine.read(0, R, 0x2_0014, Word), 2, "its children are not asleep yet");
    machine.settle();
    assert_eq!(machine.read(0, R, 0x2_0014, Word), 6);
    assert_eq!(machine.take(1), None);
    machine.write(0, R, 0x2_0014, Word, 0);
    machine.settle();
    assert_eq!(machine.take(1), Some(5));
}

#[test]
fn the_most_urgent_is_taken_first() {
    for list_registers in [1, 4, 16] {
        let mut machine = Machine::running(1, list_registers);
        let mut urgency: std::vec::Vec<(u8, u32)> =
            (0..64).map(|n| (((n * 37) % 31 * 8) as u8, if n < 8 { n } else { n + 60 })).collect();
        for &(priority, intid) in &urgency {
            machine.set_priority(0, 0, intid, priority);
            machine.set_bit(0, 0, intid, ISPENDR);
        }
        urgency.sort_unstable();
        for (_, intid) in urgency {
            assert_eq!(machine.take(0), Some(intid));
            machine.finish(0, intid);
        }
        assert!(machine.is_idle());
    }
}

#[test]
fn nothing_pending_costs_nothing() {
    let mut machine = Machine::running(2, 4);
    let mut lrs = ListRegisters::new(4);
    assert_eq!(machine.vgic.enter(0, &mut lrs), 4, "unknown list registers are cleared once");
    let calls = machine.gic.calls.get();
    for _ in 0..3 {
        machine.vgic.leave(0, &lrs);
        assert_eq!(machine.vgic.enter(0, &mut lrs), 0);
    }
    machine.vgic.leave(0, &lrs);
    assert_eq!(machine.gic.calls.get(), calls);
    // Nobody kicks a vCPU that will look anyway.
    machine.vgic.send_sgi(0, SgiRegister::Sgi1r, 3);
    assert_eq!(machine.gic.calls.get(), calls + 1, "vCPU 1 only");
    assert_eq!(machine.vgic.enter(0, &mut lrs), 1);
    assert_eq!(lrs.used, 1);
}

#[test]
fn what_is_not_the_vms_does_not_stay_active() {
    let mut machine = Machine::running(1, 4);
    for at in [PhysicalInterrupt::Spi { intid: 99 }, PhysicalInterrupt::Ppi { vcpu: 0, intid: 29 }]
    {
        machine.gic.with(at, |source| {
            source.enabled = true;
            source.latch = true;
        });
        machine.settle();
        assert!(!machine.gic.get(at).active);
    }
    machine.vgic.physical_interrupt(0, 3);
    machine.vgic.physical_interrupt(9, 101);
    machine.vgic.set_line(LEVEL, true);
    machine.vgic.set_line(31, true);
    machine.vgic.set_line(u32::MAX, true);
    assert!(machine.is_idle());
}
