//! The virtual GIC, once everyone has come back, against an ideal one without list registers.

use std::vec::Vec;

use proptest::prelude::*;

use crate::vgic::Region::{Distributor as D, Redistributor as R};
use crate::vgic::Width::Word;
use crate::vgic::model::Machine;
use crate::vgic::*;

/// SGIs, a PPI without source, the timers, the PL011, physical edges and levels, SPIs without source.
const UNIVERSE: [u32; 14] = [0, 1, 20, 27, 30, 33, 35, 36, 37, 38, 39, 40, 200, 201];

/// Those that are edge-triggered.
const EDGES: [u32; 7] = [0, 1, 20, 35, 37, 39, 201];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Software,
    Line,
    Edge,
    Level,
}

fn kind(intid: u32) -> Kind {
    match intid {
        33 => Kind::Line,
        27 | 30 => Kind::Level,
        35..67 if intid % 2 == 1 => Kind::Edge,
        35..67 => Kind::Level,
        _ => Kind::Software,
    }
}

/// One interrupt of the ideal GIC.
#[derive(Clone, Debug)]
struct Ideal {
    bank: usize,
    intid: u32,
    enabled: bool,
    group: usize,
    priority: u8,
    edge: bool,
    latch: bool,
    line: bool,
    active: bool,
    home: Option<usize>,
    route: Option<usize>,
    /// A physical edge came while it was pending. The architecture merges them, but EL2 has acknowledged
    /// the first one already: it may come twice.
    twice: bool,
}

impl Ideal {
    fn is_pending(&self) -> bool {
        self.latch || (self.line && !self.edge)
    }
}

struct Pair {
    machine: Machine,
    ideal: Vec<Ideal>,
    groups: [bool; 2],
    awake: Vec<bool>,
    /// For each vCPU what it acknowledged and has not ended.
    running: Vec<Vec<u32>>,
    /// With split EOI, what has dropped its priority and waits for its deactivation.
    dropped: Vec<(usize, u32)>,
}

impl Pair {
    fn new(vcpus: usize, list_registers: usize, split_eoi: bool) -> Self {
        let mut machine = Machine::running(vcpus, list_registers);
        for vcpu in 0..vcpus as u64 {
            machine.write(0, R, vcpu * 0x2_0000 + 0x1_0c04, Word, 2 << 8);
        }
        machine.write(0, D, 0xc30, Word, 2 << 18);
        let mut ideal = Vec::new();
        for intid in UNIVERSE {
            for bank in 0..if intid < 32 { vcpus } else { 1 } {
                ideal.push(Ideal {
                    bank,
                    intid,
                    enabled: true,
                    group: 1,
                    priority: 0xa0,
                    edge: EDGES.contains(&intid),
                    latch: false,
                    line: false,
                    active: false,
                    home: Some(bank),
                    route: Some(bank),
                    twice: false,
                });
            }
        }
        for cpu in &mut machine.cpus {
            cpu.split_eoi = split_eoi;
        }
        Self {
            machine,
            ideal,
            groups: [true; 2],
            awake: vec![true; vcpus],
            running: vec![Vec::new(); vcpus],
            dropped: Vec::new(),
        }
    }

    fn find(&mut self, vcpu: usize, intid: u32) -> &mut Ideal {
        let bank = if intid < 32 { vcpu } else { 0 };
        self.ideal.iter_mut().find(|i| (i.bank, i.intid) == (bank, intid)).unwrap()
    }

    fn step(&mut self, (what, which, by, value): (u8, u8, u8, u8)) {
        let vcpus = self.awake.len();
        let vcpu = by as usize % vcpus;
        let which = which as usize % self.ideal.len();
        let Ideal { bank, intid, .. } = self.ideal[which];
        let machine = &mut self.machine;
        let ideal = &mut self.ideal[which];
        match what {
            0..10 => match kind(intid) {
                Kind::Software if intid < 16 => {
                    machine.send_sgi(vcpu, intid, 1 << bank);
                    ideal.latch = true;
                }
                Kind::Software => {
                    machine.set_bit(vcpu, bank, intid, 0x200);
                    ideal.latch = true;
                }
                Kind::Line => {
                    let high = value % 2 == 0;
                    machine.exit(vcpu, |vgic, _| vgic.set_line(intid, high));
                    ideal.line = high;
                }
                Kind::Edge => {
                    let at = PhysicalInterrupt::Spi { intid: intid + 65 };
                    machine.gic.drive(at, true);
                    machine.gic.drive(at, false);
                    ideal.twice |= ideal.is_pending();
                    ideal.latch = true;
                }
                Kind::Level => {
                    let high = value % 2 == 0;
                    let at = if intid < 32 {
                        PhysicalInterrupt::Ppi { vcpu: bank, intid }
                    } else {
                        PhysicalInterrupt::Spi { intid: intid + 65 }
                    };
                    machine.gic.drive(at, high);
                    ideal.line = high;
                    // Nothing tells EL2 that a line has become low, but it looks.
                    for vcpu in 0..vcpus {
                        machine.exit(vcpu, |_, _| ());
                    }
                }
            },
            10..18 => {
                if let Some(intid) = machine.cpus[vcpu].acknowledge() {
                    self.running[vcpu].push(intid);
                    let ideal = self.find(vcpu, intid);
                    if ideal.is_pending() {
                        ideal.latch = false;
                    } else {
                        assert!(ideal.twice);
                        ideal.twice = false;
                    }
                    ideal.active = true;
                    ideal.home = Some(vcpu);
                }
            }
            18..24 => {
                if let Some(intid) = self.running[vcpu].pop() {
                    machine.end(vcpu, intid);
                    if machine.cpus[vcpu].split_eoi {
                        self.dropped.push((vcpu, intid));
                    } else {
                        self.find(vcpu, intid).active = false;
                    }
                }
            }
            24..28 if !self.dropped.is_empty() => {
                let (owner, intid) = self.dropped.remove(value as usize % self.dropped.len());
                let vcpu = if intid < 32 { owner } else { vcpu };
                machine.deactivate(vcpu, intid);
                self.find(vcpu, intid).active = false;
            }
            28 => {
                machine.set_bit(vcpu, bank, intid, 0x100);
                ideal.enabled = true;
            }
            29 => {
                machine.set_bit(vcpu, bank, intid, 0x180);
                ideal.enabled = false;
            }
            30 => {
                machine.set_bit(vcpu, bank, intid, 0x200);
                ideal.latch = true;
            }
            31 => {
                machine.set_bit(vcpu, bank, intid, 0x280);
                ideal.latch = false;
                ideal.twice = false;
            }
            32 => {
                machine.set_bit(vcpu, bank, intid, 0x300);
                ideal.active = true;
                ideal.home.get_or_insert(0);
            }
            33 => {
                // Without split EOI, ending what is no longer active is unpredictable.
                let split = machine.cpus[0].split_eoi;
                let owner = |(cpu, ids): (usize, &Vec<u32>)| {
                    (intid >= 32 || cpu == bank) && ids.contains(&intid)
                };
                if split || !self.running.iter().enumerate().any(owner) {
                    machine.set_bit(vcpu, bank, intid, 0x380);
                    ideal.active = false;
                }
            }
            34..37 => {
                ideal.priority = value & 0xf8;
                machine.set_priority(vcpu, bank, intid, value);
            }
            37..39 if intid >= 32 => {
                let target = value as usize % (vcpus + 1);
                ideal.route = (target < vcpus).then_some(target);
                machine.route(vcpu, intid, if target < vcpus { target as u64 } else { 0x100 });
            }
            39 => {
                ideal.group ^= 1;
                let (region, offset) = if intid < 32 {
                    (R, bank as u64 * 0x2_0000 + 0x1_0080)
                } else {
                    (D, 0x80 + u64::from(intid / 32) * 4)
                };
                let word = machine.read(vcpu, region, offset, Word) ^ 1 << (intid % 32);
                machine.write(vcpu, region, offset, Word, word);
            }
            40 => {
                self.groups = [value & 1 != 0, value & 2 != 0];
                machine.write(vcpu, D, 0, Word, u64::from(value) & 3);
            }
            41 => {
                self.awake[bank] = value & 2 == 0;
                let offset = bank as u64 * 0x2_0000 + 0x14;
                machine.write(vcpu, R, offset, Word, u64::from(value) & 2);
            }
            42 => machine.cpus[vcpu].pmr = value | 0x80,
            43 => machine.cpus[vcpu].enabled = [value & 1 != 0, value & 6 != 0],
            44 => {
                // The first look makes everyone come back, the second one is exact.
                self.inspect(vcpu);
                self.machine.settle();
                for (found, ideal) in self.inspect(vcpu).into_iter().zip(&self.ideal) {
                    let pending = found[1] || ideal.twice;
                    let expected = [ideal.enabled, ideal.is_pending() || ideal.twice, ideal.active];
                    assert_eq!([found[0], pending, found[2]], expected, "{ideal:?}");
                }
            }
            _ => {}
        }
        self.machine.settle();
        self.compare();
    }

    fn inspect(&mut self, vcpu: usize) -> Vec<[bool; 3]> {
        let machine = &mut self.machine;
        let bits = |i: &Ideal| {
            [0x100, 0x200, 0x300].map(|offset| machine.bit(vcpu, i.bank, i.intid, offset))
        };
        self.ideal.iter().map(bits).collect()
    }

    /// Every vCPU is offered what the ideal GIC would offer.
    fn compare(&mut self) {
        for ideal in self.ideal.iter_mut().filter(|i| !i.active) {
            ideal.home = ideal.route;
        }
        for (vcpu, cpu) in self.machine.cpus.iter().enumerate() {
            let limit = cpu.running.last().map_or(0xff, |r| r.0).min(cpu.pmr);
            let candidates = self.ideal.iter().filter(|i| {
                let open = i.enabled && self.groups[i.group] && cpu.enabled[i.group];
                let here = i.home == Some(vcpu) && self.awake[vcpu];
                open && here && !i.active && i.priority < limit
            });
            let best = candidates.clone().filter(|i| i.is_pending()).map(|i| i.priority).min();
            match cpu.signalled() {
                None => assert_eq!(best, None, "lost: vCPU {vcpu} {:x?}", cpu.lr),
                Some((intid, priority)) => {
                    let found = candidates.clone().find(|i| i.intid == intid);
                    let found = found.unwrap_or_else(|| panic!("vCPU {vcpu} was offered {intid}"));
                    assert!(found.is_pending() || found.twice, "out of nothing: {found:?}");
                    assert_eq!(priority, found.priority);
                    assert!(best.is_none_or(|best| priority <= best), "not the most urgent");
                }
            }
        }
    }

    /// Ends everything, enables everything, takes everything: then there is nothing.
    fn drain(&mut self) {
        for vcpu in 0..self.awake.len() {
            while !self.running[vcpu].is_empty() {
                self.step((18, 0, vcpu as u8, 0));
            }
        }
        while !self.dropped.is_empty() {
            self.step((24, 0, 0, 0));
        }
        for which in 0..self.ideal.len() as u8 {
            self.step((33, which, 0, 0));
            self.step((28, which, 0, 0));
            self.step((37, which, 0, 0));
            if matches!(kind(self.ideal[which as usize].intid), Kind::Line | Kind::Level) {
                self.step((0, which, 0, 1));
            }
            self.step((41, which, 0, 0));
        }
        self.step((40, 0, 0, 3));
        for vcpu in 0..self.awake.len() as u8 {
            self.step((42, 0, vcpu, 0xff));
            self.step((43, 0, vcpu, 0xff));
            for _ in 0..4 * UNIVERSE.len() {
                self.step((10, 0, vcpu, 0));
                self.step((18, 0, vcpu, 0));
                while !self.dropped.is_empty() {
                    self.step((24, 0, vcpu, 0));
                }
            }
        }
        assert!(self.ideal.iter().all(|i| !i.is_pending() && !i.active));
        assert!(self.machine.is_idle());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn guests_cannot_tell_it_from_the_ideal(
        vcpus in 1..4_usize,
        list_registers in prop::sample::select(&[1, 2, 4, 16][..]),
        split_eoi in any::<bool>(),
        // Few interrupts meet each other more often.
        (first, few) in (any::<u8>(), 1..20_u8),
        steps in prop::collection::vec((0..45_u8, any::<u8>(), any::<u8>(), any::<u8>()), 1..200),
    ) {
        let mut pair = Pair::new(vcpus, list_registers, split_eoi);
        for (what, which, by, value) in steps {
            pair.step((what, first % 64 + which % few, by, value));
        }
        pair.drain();
    }
}
