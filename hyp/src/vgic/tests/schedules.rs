//! Guests, devices and EL2 in any order: nothing lost, nothing stuck, no input that panics.

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use crate::vgic::Region::{Distributor as D, Redistributor as R};
use crate::vgic::Width::{Byte, Double, Half, Word};
use crate::vgic::model::{Machine, owned_spis};
use crate::vgic::*;

/// One source's account. Times are in raises and deliveries of the whole world.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    raised: usize,
    delivered: usize,
    last_raised: usize,
    last_delivered: usize,
    /// Whether a level is high.
    high: bool,
    enabled: bool,
    /// Disabled, and `RWP` has said that it is.
    closed: bool,
}

struct World {
    machine: Machine,
    accounts: BTreeMap<(usize, u32), Account>,
    running: Vec<Vec<u32>>,
    now: usize,
}

fn physical(bank: usize, intid: u32) -> Option<PhysicalInterrupt> {
    match intid {
        27 | 30 => Some(PhysicalInterrupt::Ppi { vcpu: bank, intid }),
        35..67 => Some(PhysicalInterrupt::Spi { intid: intid + 65 }),
        _ => None,
    }
}

fn is_level(intid: u32) -> bool {
    matches!(intid, 27 | 30 | 33) || (35..67).contains(&intid) && intid.is_multiple_of(2)
}

impl World {
    /// All 16 SGIs and three PPIs of each vCPU, and 64 SPIs: 32 physical ones, the PL011's, 31 without source.
    fn new(vcpus: usize, list_registers: usize) -> Self {
        let mut machine = Machine::running(vcpus, list_registers);
        // Those without a source are edge-triggered.
        for vcpu in 0..vcpus as u64 {
            machine.write(0, R, vcpu * 0x2_0000 + 0x1_0c04, Word, 2 << 8);
        }
        for word in 6..7 {
            machine.write(0, D, 0xc00 + 8 * word, Word, 0xaaaa_aaaa);
            machine.write(0, D, 0xc04 + 8 * word, Word, 0xaaaa_aaaa);
        }
        let mut accounts = BTreeMap::new();
        for bank in 0..vcpus {
            for intid in (0..16).chain([20, 27, 30]) {
                accounts.insert((bank, intid), Account { enabled: true, ..Account::default() });
            }
        }
        for intid in owned_spis().map(|spi| spi.virt).chain([33]).chain(192..223) {
            accounts.insert((0, intid), Account { enabled: true, ..Account::default() });
        }
        Self { machine, accounts, running: vec![Vec::new(); vcpus], now: 0 }
    }

    fn source(&self, which: usize) -> (usize, u32) {
        *self.accounts.keys().nth(which % self.accounts.len()).unwrap()
    }

    fn drive(&mut self, (bank, intid): (usize, u32), high: bool, vcpu: usize) {
        match physical(bank, intid) {
            Some(at) => self.machine.gic.drive(at, high),
            None => self.machine.exit(vcpu, |vgic, _| vgic.set_line(intid, high)),
        }
        self.accounts.get_mut(&(bank, intid)).unwrap().high = high;
    }

    fn raise(&mut self, source: (usize, u32), vcpu: usize) {
        let (bank, intid) = source;
        let account = self.accounts.get_mut(&source).unwrap();
        if is_level(intid) && account.high {
            return;
        }
        self.now += 1;
        account.raised += 1;
        account.last_raised = self.now;
        if is_level(intid) {
            self.drive(source, true, vcpu);
        } else if let Some(at) = physical(bank, intid) {
            self.machine.gic.drive(at, true);
            self.machine.gic.drive(at, false);
        } else if intid < 16 {
            self.machine.send_sgi(vcpu, intid, 1 << bank);
        } else {
            self.machine.set_bit(vcpu, bank, intid, 0x200);
        }
    }

    /// The guest on `vcpu` takes an interrupt, if there is one; the device of a level is satisfied.
    fn take(&mut self, vcpu: usize) -> bool {
        let Some(intid) = self.machine.cpus[vcpu].acknowledge() else { return false };
        let source = (if intid < 32 { vcpu } else { 0 }, intid);
        self.running[vcpu].push(intid);
        self.now += 1;
        let account = self.accounts.get_mut(&source).expect("an interrupt nobody raised");
        assert!(!account.closed, "{intid} came after RWP said that it could not");
        account.delivered += 1;
        account.last_delivered = self.now;
        assert!(account.delivered <= account.raised, "{intid} out of nothing: {account:?}");
        if account.high {
            self.drive(source, false, vcpu);
        }
        true
    }

    fn end(&mut self, vcpu: usize) {
        if let Some(intid) = self.running[vcpu].pop() {
            self.machine.end(vcpu, intid);
            if self.machine.cpus[vcpu].split_eoi {
                self.machine.deactivate(vcpu, intid);
            }
        }
    }

    fn set_enabled(&mut self, source: (usize, u32), vcpu: usize, enabled: bool) {
        self.machine.set_bit(vcpu, source.0, source.1, if enabled { 0x100 } else { 0x180 });
        let account = self.accounts.get_mut(&source).unwrap();
        account.enabled = enabled;
        account.closed = false;
    }

    /// The guest looks whether what it disabled is disabled.
    fn look_at_rwp(&mut self, vcpu: usize) {
        let done = self.machine.read(vcpu, D, 0, Word) >> 31 == 0;
        let private: Vec<bool> = (0..self.running.len() as u64)
            .map(|bank| self.machine.read(vcpu, R, bank * 0x2_0000, Word) == 0)
            .collect();
        for ((bank, intid), account) in &mut self.accounts {
            if !account.enabled && if *intid < 32 { private[*bank] } else { done } {
                account.closed = true;
            }
        }
    }

    /// Enables everything, and handles interrupts until there are none.
    fn drain(&mut self) {
        for which in 0..self.accounts.len() {
            self.set_enabled(self.source(which), 0, true);
        }
        let mut busy = true;
        while busy {
            self.machine.settle();
            busy = false;
            for vcpu in 0..self.running.len() {
                while !self.running[vcpu].is_empty() {
                    self.end(vcpu);
                    self.machine.settle();
                }
                busy |= self.take(vcpu);
            }
        }
    }

    /// Nothing is lost, nothing is stuck.
    fn balance(&mut self) {
        for (source, account) in &self.accounts {
            assert!(!account.high, "a level was never handled: {source:?}");
            // A line that dropped by itself owes nothing.
            let owes = !is_level(source.1) && account.last_raised > account.last_delivered;
            assert!(!owes, "lost: {source:?} {account:?}");
        }
        assert!(self.machine.is_idle());
    }

    fn step(&mut self, (what, which, by): (u8, u16, u8)) {
        let vcpu = by as usize % self.running.len();
        let source = self.source(which.into());
        match what {
            0..8 => self.raise(source, vcpu),
            8..14 => {
                self.machine.poll(vcpu);
            }
            14..20 => {
                self.take(vcpu);
            }
            20..25 => self.end(vcpu),
            25 => self.set_enabled(source, vcpu, false),
            26 => self.set_enabled(source, vcpu, true),
            27 => self.look_at_rwp(vcpu),
            28 if source.1 >= 32 => {
                let target = u64::from(which / 256) % self.running.len() as u64;
                self.machine.route(vcpu, source.1, target);
            }
            29 => {
                let priority = (which >> 8) as u8 & 0x70;
                self.machine.set_priority(vcpu, source.0, source.1, priority);
            }
            30 if is_level(source.1) && self.accounts[&source].high => {
                self.drive(source, false, vcpu);
            }
            // The vCPU is off for a while, or on again.
            31 => {
                if self.machine.inside[vcpu] && self.running[vcpu].is_empty() {
                    self.machine.leave(vcpu);
                    for lr in &mut self.machine.cpus[vcpu].lr {
                        *lr = 0;
                    }
                } else if !self.machine.inside[vcpu] {
                    self.machine.enter(vcpu);
                }
            }
            _ => {}
        }
    }
}

/// A deterministic stream of numbers (Knuth's MMIX constants).
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

#[test]
fn ten_thousand_interrupts_are_neither_lost_nor_stuck() {
    for (vcpus, list_registers) in [(1, 4), (2, 4), (2, 1), (2, 16)] {
        let mut world = World::new(vcpus, list_registers);
        let mut next = numbers(list_registers as u64);
        let mut raised = 0;
        while raised < 10_000 {
            // Bursts of all sources, then handlers that get some of the work done.
            for _ in 0..next() % 128 {
                let before = world.now;
                world.raise(world.source(next() as usize), next() as usize % vcpus);
                raised += world.now - before;
            }
            for _ in 0..next() % 256 {
                world.step((8 + (next() % 17) as u8, 0, next() as u8));
            }
        }
        world.drain();
        world.balance();
        let delivered: usize = world.accounts.values().map(|account| account.delivered).sum();
        assert!(delivered > 1_000, "the storm went on: {delivered}");
    }
}

#[test]
fn a_full_set_of_pending_interrupts_needs_few_exits() {
    // 64 SPIs, 16 SGIs and 3 PPIs at once; with one list register each costs an exit, or two.
    for (list_registers, most) in [(1, 170), (4, 50), (16, 15)] {
        let mut world = World::new(1, list_registers);
        for which in 0..world.accounts.len() {
            world.raise(world.source(which), 0);
        }
        world.machine.settle();
        let exits = world.machine.exits;
        let mut taken = 0;
        while world.take(0) {
            world.machine.settle();
            world.end(0);
            world.machine.settle();
            taken += 1;
        }
        assert_eq!(taken, 83);
        let exits = world.machine.exits - exits;
        assert!(exits <= most, "{exits} exits with {list_registers} list registers");
        world.balance();
    }
}

/// What a guest, a device or EL2 may do to the virtual GIC.
type Poke = (u8, u64, u64, u8);

fn poke(machine: &mut Machine, (what, at, value, by): Poke) {
    let vcpus = machine.cpus.len();
    let vcpu = by as usize % vcpus;
    let width = [Byte, Half, Word, Word, Word, Double][(at >> 32) as usize % 6];
    // Most accesses near registers that exist, some anywhere.
    let offset = match what & 3 {
        0 => at % 0x1000,
        1 => (at % 0x1_0000) & !3,
        2 => at & !3,
        _ => at,
    };
    let region = if by & 16 == 0 { D } else { R };
    let offset =
        if region == R && what & 3 < 2 { offset + u64::from(by >> 5) * 0x1_0000 } else { offset };
    let intid = (value % 260) as u32;
    if matches!(what >> 2 & 15, 10..14) && !machine.inside[vcpu] {
        return;
    }
    match what >> 2 & 15 {
        0..4 => machine.write(vcpu, region, offset, width, value),
        4 => {
            machine.read(vcpu, region, offset, width);
        }
        // Not what the caller is told to do, and harmless.
        5 => machine.vgic.write(region, offset, width, value),
        6 => {
            let register = [SgiRegister::Sgi1r, SgiRegister::Asgi1r, SgiRegister::Sgi0r];
            machine.exit(vcpu, |vgic, vcpu| vgic.send_sgi(vcpu, register[at as usize % 3], value));
        }
        7 => machine.exit(vcpu, |vgic, _| vgic.set_line(intid, at & 1 != 0)),
        8 => {
            let at = PhysicalInterrupt::Spi { intid: 100 + (value % 40) as u32 };
            machine.gic.with(at, |source| {
                source.latch |= value & 64 != 0;
                source.line ^= true;
            });
        }
        9 => machine.exit(vcpu, |vgic, vcpu| vgic.physical_interrupt(vcpu, at as u32 % 1024)),
        10 => {
            machine.cpus[vcpu].acknowledge();
        }
        11 => machine.end(vcpu, intid),
        12 => machine.deactivate(vcpu, if by & 32 == 0 { intid } else { value as u32 }),
        13 => {
            let cpu = &mut machine.cpus[vcpu];
            cpu.split_eoi = value & 1 != 0;
            cpu.enabled = [value & 2 != 0, value & 4 != 0];
            cpu.pmr = (value >> 8) as u8;
        }
        14 => {
            machine.poll(vcpu);
        }
        _ => match value % 16 {
            0 => {
                for vcpu in 0..vcpus {
                    machine.leave(vcpu);
                }
                machine.vgic.reset();
                for vcpu in 0..vcpus {
                    machine.enter(vcpu);
                }
            }
            1 => machine.leave(vcpu),
            2 if !machine.inside[vcpu] => machine.enter(vcpu),
            _ => machine.settle(),
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_loses_an_interrupt(
        vcpus in 1..4_usize,
        list_registers in prop::sample::select(&[1, 2, 4, 16][..]),
        split_eoi in any::<bool>(),
        steps in prop::collection::vec((0..32_u8, any::<u16>(), any::<u8>()), 1..300),
        few in 1..64_u16,
    ) {
        let mut world = World::new(vcpus, list_registers);
        for cpu in &mut world.machine.cpus {
            cpu.split_eoi = split_eoi;
        }
        for (what, which, by) in steps {
            world.step((what, which % few + (which / few) % 3 * 31, by));
        }
        for vcpu in 0..vcpus {
            if !world.machine.inside[vcpu] {
                world.machine.enter(vcpu);
            }
        }
        world.drain();
        world.balance();
    }

    #[test]
    fn no_input_panics_or_keeps_el2_busy(
        vcpus in 1..4_usize,
        list_registers in prop::sample::select(&[1, 2, 4, 16][..]),
        pokes in prop::collection::vec(any::<Poke>(), 1..300),
    ) {
        let mut machine = Machine::running(vcpus, list_registers);
        for next in pokes {
            poke(&mut machine, next);
        }
        // The next guest finds a GIC that works.
        for vcpu in 0..vcpus {
            machine.leave(vcpu);
        }
        machine.vgic.reset();
        for spi in owned_spis() {
            machine.gic.with(PhysicalInterrupt::Spi { intid: spi.phys }, |source| source.line = false);
        }
        for vcpu in 0..vcpus {
            machine.enter(vcpu);
        }
        assert!(machine.is_idle());
    }
}
