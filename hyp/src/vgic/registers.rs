//! The memory-mapped registers (IHI 0069, section 12).

use super::interrupt::Id;
use super::{INTIDS, PhysicalGic, PhysicalInterrupt, Place, Region, Vgic, Width};

/// One vCPU's two 64 KiB frames, RD_base and SGI_base.
const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
const FRAME_SIZE: u64 = 0x1_0000;

/// `GICD_CTLR`: affinity routing on, one Security state, nothing else implemented.
const CTLR_FIXED: u64 = 1 << 6 | 1 << 4;
const CTLR_GROUPS: u64 = 0b11;
const GICD_CTLR_RWP: u64 = 1 << 31;
const GICR_CTLR_RWP: u64 = 1 << 3;
/// `No1N`, `A3V`, `IDbits` + 1 = 10, no LPIs, no message-based SPIs.
const GICD_TYPER: u64 = 1 << 25 | 1 << 24 | 9 << 19 | (INTIDS as u64 / 32 - 1);
/// Arm's JEP106 code. Not 0: Linux takes that for a part with errata.
const IIDR: u64 = 0x43b;
const GICR_TYPER_LAST: u64 = 1 << 4;
const WAKER_PROCESSOR_SLEEP: u64 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u64 = 1 << 2;
/// `PIDR4` to `PIDR7`, `PIDR0` to `PIDR3`, `CIDR0` to `CIDR3`; `PIDR2.ArchRev` = 3.
const ID_REGISTERS: [u8; 12] = [0x44, 0, 0, 0, 0x92, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];

/// What the bits of a register with one bit for each interrupt mean.
#[derive(Clone, Copy)]
enum Bits {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

/// A register that describes interrupts; the distributor and SGI_base have them at the same offsets.
enum Field {
    Bits(Bits),
    Priority,
    Config,
}

/// A register that exists.
enum Register {
    DistributorControl,
    DistributorType,
    Implementer,
    /// `GICD_IROUTER<n>` of the SPI with this index; all, the lower or the upper half.
    Route(usize, Part),
    /// Part of [`ID_REGISTERS`].
    Identification(usize),
    RedistributorControl(usize),
    RedistributorType(usize, Part),
    Waker(usize),
    /// `count` interrupts from `first` on.
    Interrupts {
        field: Field,
        bank: usize,
        first: u32,
        count: u32,
    },
}

/// Which part of a 64-bit register is accessed.
#[derive(Clone, Copy)]
enum Part {
    All,
    Low,
    High,
}

impl Part {
    fn of(offset: u64, width: Width) -> Self {
        match width {
            Width::Double => Self::All,
            _ if offset & 4 == 0 => Self::Low,
            _ => Self::High,
        }
    }

    fn read(self, whole: u64) -> u64 {
        match self {
            Self::All => whole,
            Self::Low => whole & 0xffff_ffff,
            Self::High => whole >> 32,
        }
    }

    fn write(self, whole: u64, value: u64) -> u64 {
        match self {
            Self::All => value,
            Self::Low => whole & !0xffff_ffff | value & 0xffff_ffff,
            Self::High => whole & 0xffff_ffff | value << 32,
        }
    }
}

/// Finds the register at `offset`, if there is one that can be accessed that way.
fn decode(region: Region, offset: u64, width: Width, vcpus: usize) -> Option<Register> {
    if !offset.is_multiple_of(width.bytes()) {
        return None;
    }
    match region {
        Region::Distributor => distributor(offset, width),
        Region::Redistributor => {
            let vcpu = usize::try_from(offset / REDISTRIBUTOR_SIZE).ok().filter(|&v| v < vcpus)?;
            match offset % REDISTRIBUTOR_SIZE {
                offset if offset < FRAME_SIZE => redistributor(vcpu, offset, width),
                offset => interrupts(offset - FRAME_SIZE, width, vcpu, 0..32),
            }
        }
    }
}

fn distributor(offset: u64, width: Width) -> Option<Register> {
    match (offset, width) {
        (0x0000, Width::Word) => Some(Register::DistributorControl),
        (0x0004, Width::Word) => Some(Register::DistributorType),
        (0x0008, Width::Word) => Some(Register::Implementer),
        (0x6100..0x8000, Width::Word | Width::Double) => {
            let spi = (offset as usize - 0x6100) / 8;
            (spi < super::SPIS).then_some(Register::Route(spi, Part::of(offset, width)))
        }
        _ => identification(offset, width).or_else(|| interrupts(offset, width, 0, 32..INTIDS)),
    }
}

fn redistributor(vcpu: usize, offset: u64, width: Width) -> Option<Register> {
    match (offset, width) {
        (0x0000, Width::Word) => Some(Register::RedistributorControl(vcpu)),
        (0x0004, Width::Word) => Some(Register::Implementer),
        (0x0008, Width::Word | Width::Double) | (0x000c, Width::Word) => {
            Some(Register::RedistributorType(vcpu, Part::of(offset, width)))
        }
        (0x0014, Width::Word) => Some(Register::Waker(vcpu)),
        _ => identification(offset, width),
    }
}

fn identification(offset: u64, width: Width) -> Option<Register> {
    match (offset, width) {
        (0xffd0..0x1_0000, Width::Word) => {
            Some(Register::Identification((offset as usize - 0xffd0) / 4))
        }
        _ => None,
    }
}

/// Finds a register about interrupts, all of them within `valid`.
fn interrupts(
    offset: u64,
    width: Width,
    bank: usize,
    valid: core::ops::Range<u32>,
) -> Option<Register> {
    let at = u32::try_from(offset).ok()?;
    let (field, first, count) = match (at, width) {
        (0x080..0x400, Width::Word) => {
            let bits = match at / 0x80 {
                1 => Bits::Group,
                2 => Bits::SetEnable,
                3 => Bits::ClearEnable,
                4 => Bits::SetPending,
                5 => Bits::ClearPending,
                6 => Bits::SetActive,
                _ => Bits::ClearActive,
            };
            (Field::Bits(bits), at % 0x80 * 8, 32)
        }
        (0x400..0x800, Width::Byte) => (Field::Priority, at - 0x400, 1),
        (0x400..0x800, Width::Word) => (Field::Priority, at - 0x400, 4),
        (0xc00..0xd00, Width::Word) => (Field::Config, (at - 0xc00) * 4, 16),
        _ => return None,
    };
    (valid.start <= first && first < valid.end).then_some(Register::Interrupts {
        field,
        bank,
        first,
        count,
    })
}

impl<P: PhysicalGic> Vgic<P> {
    /// Reads a register; `offset` is from the start of the whole `region`. What does not exist, or not in
    /// that width, reads as zero.
    pub fn read(&mut self, region: Region, offset: u64, width: Width) -> u64 {
        let Some(register) = decode(region, offset, width, self.config.vcpus) else { return 0 };
        match register {
            Register::DistributorControl => {
                let groups = u64::from(self.groups[0]) | u64::from(self.groups[1]) << 1;
                let busy = self.cpus.iter().any(|cpu| cpu.withdrawing);
                groups | CTLR_FIXED | if busy { GICD_CTLR_RWP } else { 0 }
            }
            Register::DistributorType => GICD_TYPER,
            Register::Implementer => IIDR,
            Register::Route(spi, part) => part.read(self.router(spi)),
            Register::Identification(n) => ID_REGISTERS[n].into(),
            Register::RedistributorControl(vcpu) => {
                if self.cpus[vcpu].withdrawing {
                    GICR_CTLR_RWP
                } else {
                    0
                }
            }
            Register::RedistributorType(vcpu, part) => {
                let last = if vcpu + 1 == self.config.vcpus { GICR_TYPER_LAST } else { 0 };
                let vcpu = vcpu as u64;
                part.read(vcpu << 32 | vcpu << 8 | last)
            }
            Register::Waker(vcpu) => match &self.cpus[vcpu] {
                cpu if cpu.awake => 0,
                cpu if cpu.withdrawing => WAKER_PROCESSOR_SLEEP,
                _ => WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP,
            },
            Register::Interrupts { field, bank, first, count } => {
                let mut value = 0;
                for n in 0..count {
                    let id = Id { bank, intid: first + n };
                    value |= match field {
                        Field::Bits(bits) => u64::from(self.read_bit(id, bits)) << n,
                        Field::Priority => u64::from(self.interrupt(id).priority) << (8 * n),
                        Field::Config => u64::from(self.interrupt(id).edge) << (2 * n + 1),
                    };
                }
                value
            }
        }
    }

    /// Writes a register; `offset` is from the start of the whole `region`. Writes to what does not exist,
    /// or not in that width, are ignored.
    pub fn write(&mut self, region: Region, offset: u64, width: Width, value: u64) {
        let Some(register) = decode(region, offset, width, self.config.vcpus) else { return };
        match register {
            Register::DistributorControl => self.set_groups(value & CTLR_GROUPS),
            Register::Route(spi, part) => {
                self.set_router(spi, part.write(self.router(spi), value));
            }
            Register::Waker(vcpu) => self.set_awake(vcpu, value & WAKER_PROCESSOR_SLEEP == 0),
            Register::Interrupts { field, bank, first, count } => {
                for n in 0..count {
                    let id = Id { bank, intid: first + n };
                    match field {
                        Field::Bits(bits) => self.write_bit(id, bits, value >> n & 1 != 0),
                        Field::Priority => self.set_priority(id, (value >> (8 * n)) as u8),
                        Field::Config => self.set_edge(id, value >> (2 * n + 1) & 1 != 0),
                    }
                }
            }
            Register::DistributorType
            | Register::Implementer
            | Register::Identification(_)
            | Register::RedistributorControl(_)
            | Register::RedistributorType(..) => {}
        }
    }

    fn read_bit(&mut self, id: Id, bits: Bits) -> bool {
        let interrupt = *self.interrupt(id);
        match bits {
            Bits::Group => interrupt.group1,
            Bits::SetEnable | Bits::ClearEnable => interrupt.enabled,
            Bits::SetPending | Bits::ClearPending => {
                self.recall(id);
                interrupt.is_pending()
                    || interrupt.lent_latch
                    || interrupt.lent_hw
                    || self.source(id).is_some_and(|source| self.port.is_pending(source))
            }
            Bits::SetActive | Bits::ClearActive => {
                self.recall(id);
                interrupt.active
            }
        }
    }

    /// Makes the vCPU that has `id` loaded bring its state back: a guest that polls the state sees it.
    fn recall(&mut self, id: Id) {
        let interrupt = self.interrupt(id);
        if let (true, Some(home)) = (interrupt.loaded, interrupt.home) {
            self.kick(home.into());
        }
    }

    fn write_bit(&mut self, id: Id, bits: Bits, bit: bool) {
        match bits {
            Bits::Group if bit != self.interrupt(id).group1 => {
                self.interrupt_mut(id).group1 = bit;
                self.refresh(id);
            }
            Bits::SetEnable if bit => self.set_enabled(id, true),
            Bits::ClearEnable if bit => self.set_enabled(id, false),
            Bits::SetPending if bit => self.set_pending(id),
            Bits::ClearPending if bit => self.clear_pending(id),
            Bits::SetActive if bit => self.set_active(id),
            Bits::ClearActive if bit => self.clear_active(id),
            _ => {}
        }
    }

    fn set_enabled(&mut self, id: Id, enabled: bool) {
        if enabled != self.interrupt(id).enabled {
            self.interrupt_mut(id).enabled = enabled;
            self.refresh(id);
        }
    }

    fn set_priority(&mut self, id: Id, priority: u8) {
        let priority = priority & (0xff00_u16 >> self.config.priority_bits) as u8;
        if priority != self.interrupt(id).priority {
            self.interrupt_mut(id).priority = priority;
            self.refresh(id);
        }
    }

    fn set_edge(&mut self, id: Id, edge: bool) {
        // SGIs are always edge-triggered.
        if id.intid < 16 || edge == self.interrupt(id).edge {
            return;
        }
        self.interrupt_mut(id).edge = edge;
        if let Some(source) = self.source(id) {
            self.port.set_edge(source, edge);
        }
        self.refresh(id);
    }

    fn set_groups(&mut self, groups: u64) {
        let old = self.groups;
        self.groups = [groups & 1 != 0, groups & 2 != 0];
        if self.groups == old {
            return;
        }
        for n in 0..self.config.spis.len() {
            self.refresh(Id { bank: 0, intid: self.config.spis[n].virt });
        }
        let disabled = (old[0] && !self.groups[0]) || (old[1] && !self.groups[1]);
        for vcpu in 0..self.config.vcpus {
            for intid in super::TIMER_PPIS {
                self.refresh(Id { bank: vcpu, intid });
            }
            self.reconsider(vcpu, disabled);
        }
    }

    fn set_awake(&mut self, vcpu: usize, awake: bool) {
        if awake != self.cpus[vcpu].awake {
            self.cpus[vcpu].awake = awake;
            self.reconsider(vcpu, !awake);
        }
    }

    /// What `vcpu` may be given changed; with `less`, it may be less than what is loaded.
    fn reconsider(&mut self, vcpu: usize, less: bool) {
        let cpu = &mut self.cpus[vcpu];
        if cpu.place != Place::Out && !cpu.here.is_empty() {
            cpu.withdrawing |= less && !cpu.loaded.is_empty();
            self.kick(vcpu);
        }
    }

    fn router(&self, spi: usize) -> u64 {
        let route = u64::from(self.routes[spi]);
        (route & 0xff00_0000) << 8 | route & 0xff_ffff
    }

    fn set_router(&mut self, spi: usize, value: u64) {
        // `Interrupt_Routing_Mode` is RAZ/WI: there is no 1-of-N routing.
        let route = (value >> 8 & 0xff00_0000) as u32 | (value & 0xff_ffff) as u32;
        if route == self.routes[spi] {
            return;
        }
        self.routes[spi] = route;
        let id = Id { bank: 0, intid: spi as u32 + 32 };
        if let Some(PhysicalInterrupt::Spi { intid }) = self.source(id)
            && let Some(vcpu) = self.route(id)
        {
            self.port.set_target(intid, vcpu);
        }
        self.refresh(id);
    }
}
