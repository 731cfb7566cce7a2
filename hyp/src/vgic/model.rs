//! Models of the hardware on both sides, and of an EL2 between them. Their own decoders of the `ICH_*`
//! registers, so that a wrong bit is noticed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

use crate::vgic::*;

/// One interrupt of the physical GIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    pub enabled: bool,
    pub cpu: usize,
    pub edge: bool,
    pub line: bool,
    pub latch: bool,
    pub active: bool,
}

impl Source {
    pub fn is_pending(&self) -> bool {
        self.latch || (self.line && !self.edge)
    }
}

/// The physical distributor and redistributors. SPIs belong to no CPU; their key says 99.
#[derive(Debug, Default)]
pub struct FakeGic {
    sources: RefCell<BTreeMap<(usize, u32), Source>>,
    kicked: RefCell<[bool; MAX_VCPUS]>,
    pub calls: Cell<usize>,
}

fn key(interrupt: PhysicalInterrupt) -> (usize, u32) {
    match interrupt {
        PhysicalInterrupt::Ppi { vcpu, intid } => (vcpu, intid),
        PhysicalInterrupt::Spi { intid } => (99, intid),
    }
}

impl FakeGic {
    pub fn with<R>(&self, at: PhysicalInterrupt, f: impl FnOnce(&mut Source) -> R) -> R {
        let mut sources = self.sources.borrow_mut();
        let cpu = if let PhysicalInterrupt::Ppi { vcpu, .. } = at { vcpu } else { 0 };
        f(sources.entry(key(at)).or_insert(Source { cpu, ..Source::default() }))
    }

    pub fn get(&self, at: PhysicalInterrupt) -> Source {
        self.with(at, |source| *source)
    }

    /// A device drives its line; a rising one is an edge.
    pub fn drive(&self, at: PhysicalInterrupt, high: bool) {
        self.with(at, |source| {
            source.latch |= high && !source.line && source.edge;
            source.line = high;
        });
    }

    /// EL2 on `cpu` acknowledges what is pending there.
    fn acknowledge(&self, cpu: usize) -> Option<u32> {
        let mut sources = self.sources.borrow_mut();
        let (&(_, intid), source) = sources
            .iter_mut()
            .find(|(_, s)| s.enabled && s.is_pending() && !s.active && s.cpu == cpu)?;
        source.active = true;
        source.latch = false;
        Some(intid)
    }

    /// The interrupts that anybody ever asked for, by CPU (99: an SPI) and INTID.
    pub fn touched(&self) -> Vec<(usize, u32)> {
        self.sources.borrow().keys().copied().collect()
    }

    pub fn any_active(&self) -> bool {
        self.sources.borrow().values().any(|source| source.active)
    }

    fn call<R>(&self, at: PhysicalInterrupt, f: impl FnOnce(&mut Source) -> R) -> R {
        self.calls.set(self.calls.get() + 1);
        self.with(at, f)
    }
}

impl PhysicalGic for Rc<FakeGic> {
    fn set_enabled(&self, interrupt: PhysicalInterrupt, enabled: bool) {
        self.call(interrupt, |source| source.enabled = enabled);
    }
    fn set_target(&self, intid: u32, vcpu: usize) {
        self.call(PhysicalInterrupt::Spi { intid }, |source| source.cpu = vcpu);
    }
    fn set_edge(&self, interrupt: PhysicalInterrupt, edge: bool) {
        self.call(interrupt, |source| source.edge = edge);
    }
    fn set_pending(&self, interrupt: PhysicalInterrupt, pending: bool) {
        self.call(interrupt, |source| source.latch = pending);
    }
    fn is_pending(&self, interrupt: PhysicalInterrupt) -> bool {
        self.call(interrupt, |source| source.is_pending())
    }
    fn deactivate(&self, interrupt: PhysicalInterrupt) {
        self.call(interrupt, |source| source.active = false);
    }
    fn kick(&self, vcpu: usize) {
        self.calls.set(self.calls.get() + 1);
        assert!(!self.kicked.borrow()[vcpu], "kicked twice");
        self.kicked.borrow_mut()[vcpu] = true;
    }
}

/// The virtual CPU interface of one vCPU: what the guest's `ICC_*_EL1` accesses do with the list registers.
#[derive(Clone, Debug)]
pub struct CpuInterface {
    pub lr: Vec<u64>,
    pub hcr: u64,
    pub pmr: u8,
    pub enabled: [bool; 2],
    pub split_eoi: bool,
    /// Priority and group of what runs; the active priorities registers.
    pub running: Vec<(u8, usize)>,
}

fn intid(lr: u64) -> u32 {
    lr as u32
}
fn priority(lr: u64) -> u8 {
    (lr >> 48) as u8
}
fn group(lr: u64) -> usize {
    (lr >> 60 & 1) as usize
}
fn is_hw(lr: u64) -> bool {
    lr >> 61 & 1 != 0
}
fn state(lr: u64) -> u64 {
    lr >> 62
}
const PENDING: u64 = 1;
const ACTIVE: u64 = 2;

impl CpuInterface {
    pub fn new(list_registers: usize) -> Self {
        Self {
            // Unknown after a reset of the hardware.
            lr: vec![0x5090_0000_0000_0063; list_registers],
            hcr: 0,
            pmr: 0xff,
            enabled: [true; 2],
            split_eoi: false,
            running: Vec::new(),
        }
    }

    fn vmcr(&self) -> u64 {
        u64::from(self.pmr) << 24
            | u64::from(self.split_eoi) << 9
            | u64::from(self.enabled[1]) << 1
            | u64::from(self.enabled[0])
    }

    /// What `ICH_MISR_EL2` would show.
    pub fn maintenance(&self) -> bool {
        let valid = self.lr.iter().filter(|&&lr| state(lr) != 0).count();
        let pending = self.lr.iter().any(|&lr| state(lr) == PENDING);
        let bit = |n: u32| self.hcr >> n & 1 != 0;
        self.lr.iter().any(|&lr| state(lr) == 0 && !is_hw(lr) && lr >> 41 & 1 != 0)
            || (bit(1) && valid < 2)
            || (bit(2) && self.hcr >> 27 != 0)
            || (bit(3) && !pending)
            || (bit(4) && self.enabled[0])
            || (bit(5) && !self.enabled[0])
            || (bit(6) && self.enabled[1])
            || (bit(7) && !self.enabled[1])
    }

    fn running_priority(&self) -> u8 {
        self.running.last().map_or(0xff, |&(priority, _)| priority)
    }

    /// The list register of the highest priority pending interrupt, if it can be taken.
    fn highest(&self) -> Option<usize> {
        let best = (0..self.lr.len())
            .filter(|&n| state(self.lr[n]) == PENDING && self.enabled[group(self.lr[n])])
            .min_by_key(|&n| priority(self.lr[n]))?;
        let priority = priority(self.lr[best]);
        (priority < self.pmr && priority < self.running_priority()).then_some(best)
    }

    /// The INTID and the priority of the interrupt that is signalled.
    pub fn signalled(&self) -> Option<(u32, u8)> {
        self.highest().map(|n| (intid(self.lr[n]), priority(self.lr[n])))
    }

    /// `ICC_IAR<n>_EL1`.
    pub fn acknowledge(&mut self) -> Option<u32> {
        let n = self.highest()?;
        let lr = &mut self.lr[n];
        *lr = *lr & !(3 << 62) | ACTIVE << 62;
        self.running.push((priority(*lr), group(*lr)));
        Some(intid(*lr))
    }

    /// `ICC_EOIR<n>_EL1`, where the list register must match the priority that is dropped.
    pub fn end(&mut self, vcpu: usize, id: u32, gic: &FakeGic) {
        let Some(dropped) = self.running.pop() else { return };
        if self.split_eoi {
            return;
        }
        if let Some(&lr) = self.lr.iter().find(|&&lr| intid(lr) == id && state(lr) & ACTIVE != 0)
            && (priority(lr), group(lr)) != dropped
        {
            return;
        }
        self.deactivate(vcpu, id, gic);
    }

    fn deactivate(&mut self, vcpu: usize, id: u32, gic: &FakeGic) {
        let lr = self.lr.iter_mut().find(|lr| intid(**lr) == id && state(**lr) & ACTIVE != 0);
        match lr {
            Some(lr) => {
                *lr &= !(ACTIVE << 62);
                if is_hw(*lr) {
                    let intid = (*lr >> 32 & 0x1fff) as u32;
                    gic.with(
                        if intid < 32 {
                            PhysicalInterrupt::Ppi { vcpu, intid }
                        } else {
                            PhysicalInterrupt::Spi { intid }
                        },
                        |source| source.active = false,
                    );
                }
            }
            None => self.hcr = self.hcr.wrapping_add(1 << 27) & 0xffff_ffff,
        }
    }

    /// `ICC_DIR_EL1`; false if it is trapped.
    #[must_use]
    fn deactivate_or_trap(&mut self, vcpu: usize, id: u32, gic: &FakeGic) -> bool {
        if self.hcr >> 14 & 1 != 0 {
            return false;
        }
        if self.split_eoi {
            self.deactivate(vcpu, id, gic);
        }
        true
    }
}

/// A VM on its CPUs, with the EL2 that the virtual GIC is written for.
pub struct Machine {
    pub gic: Rc<FakeGic>,
    pub vgic: Vgic<Rc<FakeGic>>,
    pub cpus: Vec<CpuInterface>,
    lrs: Vec<ListRegisters>,
    /// Whether the vCPU is between `enter` and `leave`.
    pub inside: Vec<bool>,
    /// How often vCPUs left guest code.
    pub exits: usize,
}

/// The SPIs that the machine's VM owns: 35 to 66 on 100 to 131, the odd ones edge-triggered.
pub fn owned_spis() -> impl Iterator<Item = PhysicalSpi> {
    (35..67).map(|virt| PhysicalSpi { virt, phys: virt + 65, edge: virt % 2 == 1 })
}

impl Machine {
    pub fn new(vcpus: usize, list_registers: usize) -> Self {
        let gic = Rc::new(FakeGic::default());
        let config =
            Config { vcpus, list_registers, priority_bits: 5, spis: owned_spis().collect() };
        let vgic = Vgic::new(config, gic.clone()).unwrap();
        let mut machine = Self {
            gic,
            vgic,
            cpus: vec![CpuInterface::new(list_registers); vcpus],
            lrs: vec![ListRegisters::new(list_registers); vcpus],
            inside: vec![false; vcpus],
            exits: 0,
        };
        for vcpu in 0..vcpus {
            machine.enter(vcpu);
        }
        machine
    }

    /// A machine whose guest has enabled everything, in Group 1 at priority 0xa0, as Linux does.
    pub fn running(vcpus: usize, list_registers: usize) -> Self {
        let mut machine = Self::new(vcpus, list_registers);
        machine.configure();
        machine.settle();
        machine
    }

    /// The guest wakes its redistributors and enables everything, in Group 1 at priority 0xa0, as Linux does.
    pub fn configure(&mut self) {
        for bank in 0..self.cpus.len() as u64 {
            let frame = bank * 0x2_0000;
            self.write(0, Region::Redistributor, frame + 0x14, Width::Word, 0);
            for n in 0..8 {
                let at = frame + 0x1_0400 + 4 * n;
                self.write(0, Region::Redistributor, at, Width::Word, 0xa0a0_a0a0);
            }
        }
        for n in 8..64 {
            self.write(0, Region::Distributor, 0x400 + 4 * n, Width::Word, 0xa0a0_a0a0);
        }
        self.fill(0x80);
        self.fill(0x100);
        self.write(0, Region::Distributor, 0, Width::Word, 3);
    }

    /// Writes all ones to the array of bits at `array`, of all banks.
    pub fn fill(&mut self, array: u64) {
        for bank in 0..self.cpus.len() as u64 {
            let at = bank * 0x2_0000 + 0x1_0000 + array;
            self.write(0, Region::Redistributor, at, Width::Word, 0xffff_ffff);
        }
        for word in 1..8 {
            self.write(0, Region::Distributor, array + 4 * word, Width::Word, 0xffff_ffff);
        }
    }

    /// The vCPU goes on.
    pub fn enter(&mut self, vcpu: usize) {
        let lrs = &mut self.lrs[vcpu];
        let count = self.vgic.enter(vcpu, lrs);
        let cpu = &mut self.cpus[vcpu];
        cpu.lr[..count].copy_from_slice(&lrs.lr[..count]);
        cpu.hcr = lrs.hcr;
        self.gic.kicked.borrow_mut()[vcpu] = false;
        self.inside[vcpu] = true;
        self.check(vcpu);
    }

    /// The vCPU leaves guest code, with the registers read back that the documentation names.
    pub fn leave(&mut self, vcpu: usize) {
        let (lrs, cpu) = (&mut self.lrs[vcpu], &self.cpus[vcpu]);
        let used = lrs.used;
        lrs.lr[..used].copy_from_slice(&cpu.lr[..used]);
        lrs.vmcr = cpu.vmcr();
        if lrs.hcr >> 2 & 1 != 0 {
            lrs.hcr = cpu.hcr;
        }
        self.vgic.leave(vcpu, lrs);
        self.inside[vcpu] = false;
        self.exits += 1;
    }

    /// What the architecture demands of list registers, and we of a vCPU that starts.
    fn check(&self, vcpu: usize) {
        let cpu = &self.cpus[vcpu];
        assert_eq!(cpu.hcr & 1, 1, "enabled");
        assert_eq!(cpu.hcr & !0xffff_ffff, 0);
        assert!(!cpu.maintenance(), "a maintenance interrupt before the first instruction");
        for (n, &lr) in cpu.lr.iter().enumerate().filter(|(_, lr)| state(**lr) != 0) {
            assert!(!cpu.lr[..n].iter().any(|&l| state(l) != 0 && intid(l) == intid(lr)));
            if is_hw(lr) {
                assert_ne!(state(lr), PENDING | ACTIVE, "the physical GIC has the pending state");
                assert!(lr >> 32 & 0x1fff >= 16, "no SGI");
            } else {
                assert_eq!(lr >> 32 & 0x1dff, 0, "reserved");
            }
            assert_eq!(priority(lr) & 7, 0, "implemented priority bits");
            let elsewhere = self.cpus.iter().enumerate().any(|(other, cpu)| {
                let held = |&l: &u64| state(l) != 0 && intid(l) == intid(lr);
                other != vcpu && self.inside[other] && cpu.lr.iter().any(held)
            });
            assert!(intid(lr) < 32 || !elsewhere, "SPI {} on two vCPUs at once", intid(lr));
        }
    }

    /// Does `f` in an exit of `vcpu`.
    pub fn exit<R>(
        &mut self,
        vcpu: usize,
        f: impl FnOnce(&mut Vgic<Rc<FakeGic>>, usize) -> R,
    ) -> R {
        let inside = self.inside[vcpu];
        if inside {
            self.leave(vcpu);
        }
        let result = f(&mut self.vgic, vcpu);
        if inside {
            self.enter(vcpu);
        }
        result
    }

    /// Takes the interrupts of EL2 on one CPU. Returns whether there was any.
    pub fn poll(&mut self, vcpu: usize) -> bool {
        let mut any = false;
        // A new one may come in the middle, but not for ever.
        for round in 0.. {
            assert!(round < 100, "EL2 gets no rest");
            let kicked = std::mem::take(&mut self.gic.kicked.borrow_mut()[vcpu]);
            let maintenance = self.inside[vcpu] && self.cpus[vcpu].maintenance();
            let physical = self.gic.acknowledge(vcpu);
            if !kicked && !maintenance && physical.is_none() {
                break;
            }
            any = true;
            self.exit(vcpu, |vgic, vcpu| {
                if let Some(intid) = physical {
                    vgic.physical_interrupt(vcpu, intid);
                }
            });
        }
        any
    }

    /// Lets all CPUs take the interrupts of EL2 until there are none.
    pub fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100, "EL2 gets no rest");
            let mut any = false;
            for vcpu in 0..self.cpus.len() {
                any |= self.poll(vcpu);
            }
            if !any {
                break;
            }
        }
    }

    pub fn write(&mut self, vcpu: usize, region: Region, offset: u64, width: Width, value: u64) {
        self.exit(vcpu, |vgic, _| vgic.write(region, offset, width, value));
    }

    pub fn read(&mut self, vcpu: usize, region: Region, offset: u64, width: Width) -> u64 {
        self.exit(vcpu, |vgic, _| vgic.read(region, offset, width))
    }

    /// The register at `offset` that has one bit for each interrupt, of `bank` or of the distributor.
    fn word(bank: usize, intid: u32, offset: u64) -> (Region, u64) {
        if intid < 32 {
            (Region::Redistributor, bank as u64 * 0x2_0000 + 0x1_0000 + offset)
        } else {
            (Region::Distributor, offset + u64::from(intid / 32) * 4)
        }
    }

    /// `vcpu` writes one to the bit of an interrupt, in the register array at `offset`.
    pub fn set_bit(&mut self, vcpu: usize, bank: usize, intid: u32, offset: u64) {
        let (region, offset) = Self::word(bank, intid, offset);
        self.write(vcpu, region, offset, Width::Word, 1 << (intid % 32));
    }

    pub fn bit(&mut self, vcpu: usize, bank: usize, intid: u32, offset: u64) -> bool {
        let (region, offset) = Self::word(bank, intid, offset);
        self.read(vcpu, region, offset, Width::Word) >> (intid % 32) & 1 != 0
    }

    pub fn set_priority(&mut self, vcpu: usize, bank: usize, intid: u32, priority: u8) {
        let (region, base) = if intid < 32 {
            (Region::Redistributor, bank as u64 * 0x2_0000 + 0x1_0400)
        } else {
            (Region::Distributor, 0x400)
        };
        self.write(vcpu, region, base + u64::from(intid), Width::Byte, priority.into());
    }

    pub fn route(&mut self, vcpu: usize, intid: u32, target: u64) {
        let offset = 0x6000 + 8 * u64::from(intid);
        self.write(vcpu, Region::Distributor, offset, Width::Double, target);
    }

    /// `ICC_SGI1R_EL1` by `vcpu` to the vCPUs in `targets`.
    pub fn send_sgi(&mut self, vcpu: usize, intid: u32, targets: u16) {
        let value = u64::from(intid) << 24 | u64::from(targets);
        self.exit(vcpu, |vgic, vcpu| vgic.send_sgi(vcpu, SgiRegister::Sgi1r, value));
    }

    pub fn end(&mut self, vcpu: usize, intid: u32) {
        self.cpus[vcpu].end(vcpu, intid, &self.gic);
    }

    /// `vcpu` writes `ICC_DIR_EL1`.
    pub fn deactivate(&mut self, vcpu: usize, intid: u32) {
        if !self.cpus[vcpu].deactivate_or_trap(vcpu, intid, &self.gic) {
            self.exit(vcpu, |vgic, vcpu| vgic.deactivate(vcpu, intid.into()));
        }
    }

    /// Whether nothing is pending or active anywhere.
    pub fn is_idle(&mut self) -> bool {
        for vcpu in 0..self.cpus.len() {
            self.leave(vcpu);
        }
        let vcpus = self.cpus.len();
        let busy = (0..vcpus).any(|bank| {
            [0x200, 0x300].into_iter().any(|offset| {
                let (region, at) = Self::word(bank, 0, offset);
                self.vgic.read(region, at, Width::Word) != 0
            })
        }) || (1..8).any(|word| {
            [0x200, 0x300].into_iter().any(|offset| {
                self.vgic.read(Region::Distributor, offset + 4 * word, Width::Word) != 0
            })
        });
        for vcpu in 0..vcpus {
            self.enter(vcpu);
        }
        let loaded = self.cpus.iter().any(|cpu| cpu.lr.iter().any(|&lr| state(lr) != 0));
        !busy && !loaded && !self.gic.any_active()
    }
}
