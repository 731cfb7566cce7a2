//! The virtual GICv3 of one VM: distributor, redistributors and list registers (Arm IHI 0069).
//!
//! No LPIs, no ITS, one Security state (`GICD_CTLR.DS=1`), affinity routing always on. Each vCPU has a
//! physical CPU of its own, so the CPU interface is the hardware's, fed through list registers.
//!
//! # How an interrupt travels
//!
//! EL2 runs with `EOImode=1`. It acknowledges a physical interrupt, drops its priority and calls
//! [`Vgic::physical_interrupt`]; the physical interrupt stays *active*, so it cannot fire again, until the
//! guest deactivates the virtual one and a list register with `HW=1` passes that on.
//!
//! A physical interrupt that the guest may not be given goes back to the physical GIC: disabled there,
//! pending again if it was an edge, inactive. So nothing stays active behind a disabled interrupt, and a
//! level-sensitive one is pending exactly as long as its line says so.
//!
//! # What the caller does
//!
//! * [`Vgic::enter`] before a vCPU runs guest code, [`Vgic::leave`] after it did. Between the two the list
//!   registers own the state of what was loaded. A vCPU that was not kicked and had no maintenance
//!   interrupt may exit and resume without either; then no `ICH_*` register need be touched.
//! * `leave` comes first in every exit that calls another method on behalf of that vCPU, and when a vCPU is
//!   switched off; `enter` comes last.
//! * The maintenance interrupt (PPI 25), like [`PhysicalGic::kick`], asks for `leave` and `enter`.
//! * `ICC_SGI*R_EL1` and, when [`ListRegisters::hcr`] says so, `ICC_DIR_EL1` are trapped and passed on.
//!
//! # State in the list registers of a vCPU that runs
//!
//! Nobody waits for another vCPU. What a guest changes about an interrupt that another vCPU has loaded is
//! noted; that vCPU is kicked, and the note is settled at its next `leave`. Until then `RWP` reads as one
//! where the architecture has it so, and reads of pending and active bits give the state as loaded.
//!
//! An interrupt that is active stays with its vCPU. One that is only pending follows `GICD_IROUTER`, as soon
//! as it is in no list register: otherwise it would be lost with a vCPU that is switched off.

mod interrupt;
mod lists;
/// Only where there is no hardware: for tests and fuzzing. Its parts are named as the architecture names them.
#[cfg(not(target_os = "none"))]
#[allow(missing_docs)]
pub mod model;
mod registers;
#[cfg(test)]
mod tests;

use heapless::Vec;

pub use crate::width::Width;

use interrupt::{Id, Interrupt, IntidSet};

/// The most vCPUs a VM may have. vCPU n has affinity 0.0.0.n.
pub const MAX_VCPUS: usize = 16;
/// The most list registers the architecture allows.
pub const MAX_LIST_REGISTERS: usize = 16;
/// The most physical SPIs one VM may own.
pub const MAX_PHYSICAL_SPIS: usize = 32;
/// How many INTIDs a VM has: SGIs, PPIs, and SPIs 32 to 255.
pub const INTIDS: u32 = 256;

const SPIS: usize = INTIDS as usize - 32;
/// The virtual and the physical EL1 timer.
const TIMER_PPIS: [u32; 2] = [27, 30];

/// A physical interrupt that a VM owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhysicalInterrupt {
    /// A PPI of the physical CPU that runs `vcpu`.
    Ppi {
        /// Whose.
        vcpu: usize,
        /// 16 to 31.
        intid: u32,
    },
    /// An SPI.
    Spi {
        /// The physical INTID, 32 to 1019.
        intid: u32,
    },
}

/// What the virtual GIC needs from the physical distributor and redistributors.
///
/// Every method is idempotent, never waits for another CPU, and may be called on any CPU.
pub trait PhysicalGic {
    /// Enables or disables forwarding (`ISENABLER`, `ICENABLER`).
    fn set_enabled(&self, interrupt: PhysicalInterrupt, enabled: bool);
    /// Routes the SPI `intid` to the CPU that runs `vcpu` (`GICD_IROUTER`).
    fn set_target(&self, intid: u32, vcpu: usize);
    /// Makes it edge-triggered or level-sensitive (`ICFGR`).
    fn set_edge(&self, interrupt: PhysicalInterrupt, edge: bool);
    /// Sets or clears the pending latch (`ISPENDR`, `ICPENDR`).
    fn set_pending(&self, interrupt: PhysicalInterrupt, pending: bool);
    /// Whether it is pending: the latch, or the line of a level-sensitive one (`ISPENDR`).
    fn is_pending(&self, interrupt: PhysicalInterrupt) -> bool;
    /// Clears the active state (`ICACTIVER`).
    fn deactivate(&self, interrupt: PhysicalInterrupt);
    /// The list registers of `vcpu` are out of date: it must [`Vgic::leave`] and [`Vgic::enter`] before it
    /// runs more guest code, and leave guest code soon if it runs any. Called at most once between an
    /// `enter` and the next `leave`, and only there; also for the calling CPU's own vCPU.
    fn kick(&self, vcpu: usize);
}

/// A physical SPI and what its VM calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalSpi {
    /// The VM's INTID, 32 to [`INTIDS`] - 1.
    pub virt: u32,
    /// The physical INTID, 32 to 1019.
    pub phys: u32,
    /// Whether it is edge-triggered until the guest says otherwise.
    pub edge: bool,
}

/// What a VM's GIC is made of. The timers' PPIs, 27 and 30, are always those of the physical CPUs.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: usize,
    /// How many list registers, `ICH_VTR_EL2.ListRegs` + 1.
    pub list_registers: usize,
    /// How many priority bits, `ICH_VTR_EL2.PRIbits` + 1: 5 to 8.
    pub priority_bits: u32,
    /// The physical SPIs that the VM owns.
    pub spis: Vec<PhysicalSpi, MAX_PHYSICAL_SPIS>,
}

/// Why a [`Config`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The number of vCPUs is out of range.
    Vcpus,
    /// The number of list registers is out of range.
    ListRegisters,
    /// The number of priority bits is out of range.
    PriorityBits,
    /// This SPI is out of range, or named twice.
    Spi(PhysicalSpi),
}

impl Config {
    fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus);
        }
        if !(1..=MAX_LIST_REGISTERS).contains(&self.list_registers) {
            return Err(ConfigError::ListRegisters);
        }
        if !(5..=8).contains(&self.priority_bits) {
            return Err(ConfigError::PriorityBits);
        }
        for (n, spi) in self.spis.iter().enumerate() {
            let twice = self.spis[..n].iter().any(|s| s.virt == spi.virt || s.phys == spi.phys);
            if twice || !(32..INTIDS).contains(&spi.virt) || !(32..1020).contains(&spi.phys) {
                return Err(ConfigError::Spi(*spi));
            }
        }
        Ok(())
    }
}

/// A register frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// `GICD_*`.
    Distributor,
    /// `GICR_*`: 128 KiB for each vCPU, one after the other.
    Redistributor,
}

/// Which system register generated an SGI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiRegister {
    /// `ICC_SGI1R_EL1`: SGIs of either group.
    Sgi1r,
    /// `ICC_ASGI1R_EL1`: SGIs of Group 0 only, there being no other Security state.
    Asgi1r,
    /// `ICC_SGI0R_EL1`: SGIs of Group 0 only.
    Sgi0r,
}

/// One vCPU's image of the `ICH_*_EL2` registers.
///
/// Before [`Vgic::leave`] the caller reads back `lr[..used]`, `vmcr`, and, if it has `LRENPIE` set, `hcr`.
#[derive(Clone, Debug)]
pub struct ListRegisters {
    /// `ICH_LR<n>_EL2`; those from `used` on are 0.
    pub lr: [u64; MAX_LIST_REGISTERS],
    /// How many of them are in use, from 0.
    pub used: usize,
    /// `ICH_HCR_EL2`.
    pub hcr: u64,
    /// `ICH_VMCR_EL2`; the virtual GIC only reads it.
    pub vmcr: u64,
}

impl ListRegisters {
    /// Returns the image of list registers in an unknown state: the first [`Vgic::enter`] clears them all.
    pub const fn new(list_registers: usize) -> Self {
        Self { lr: [0; MAX_LIST_REGISTERS], used: list_registers, hcr: 0, vmcr: 0 }
    }
}

/// Where a vCPU is, seen from its list registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// After `leave`: nothing is loaded.
    Out,
    /// After `enter`: the hardware owns what is loaded.
    In,
    /// The same, and it has been told to come back.
    Kicked,
}

/// One vCPU: its redistributor and what its list registers hold.
#[derive(Debug)]
struct Cpu {
    /// SGIs and PPIs.
    private: [Interrupt; 32],
    /// The pending and active interrupts whose home is here.
    here: IntidSet,
    place: Place,
    /// The INTIDs in the list registers, as of `enter`.
    loaded: Vec<u8, MAX_LIST_REGISTERS>,
    /// `ICC_CTLR_EL1.EOImode`, as of `leave`.
    split_eoi: bool,
    /// `!GICR_WAKER.ProcessorSleep`.
    awake: bool,
    /// Something in its list registers must no longer be delivered: `RWP`.
    withdrawing: bool,
}

impl Cpu {
    const fn new() -> Self {
        Self {
            private: [Interrupt::new(); 32],
            here: IntidSet::new(),
            place: Place::Out,
            loaded: Vec::new(),
            split_eoi: false,
            awake: false,
            withdrawing: false,
        }
    }
}

/// The virtual GIC of one VM. It is not locked: the caller is.
#[derive(Debug)]
pub struct Vgic<P> {
    port: P,
    config: Config,
    /// `GICD_CTLR.EnableGrp0` and `EnableGrp1`.
    groups: [bool; 2],
    spis: [Interrupt; SPIS],
    /// `GICD_IROUTER<n>`: Aff3.Aff2.Aff1.Aff0.
    routes: [u32; SPIS],
    cpus: [Cpu; MAX_VCPUS],
}

impl<P: PhysicalGic> Vgic<P> {
    /// Returns a GIC in its reset state; the physical interrupts are disabled and inactive.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the part of `config` that no GIC can have.
    pub fn new(config: Config, port: P) -> Result<Self, ConfigError> {
        config.check()?;
        let mut vgic = Self {
            port,
            config,
            groups: [false; 2],
            spis: [Interrupt::new(); SPIS],
            routes: [0; SPIS],
            cpus: [const { Cpu::new() }; MAX_VCPUS],
        };
        vgic.reset();
        Ok(vgic)
    }

    /// Puts everything back to its state at a cold boot, the physical interrupts disabled and inactive.
    /// No vCPU runs guest code; each calls [`Vgic::enter`] before it does again, and the caller clears
    /// `ICH_AP0R<n>_EL2`, `ICH_AP1R<n>_EL2` and `ICH_VMCR_EL2`. The lines of software sources become low.
    pub fn reset(&mut self) {
        self.groups = [false; 2];
        self.spis.fill(Interrupt::new());
        self.routes.fill(0);
        for (vcpu, cpu) in self.cpus.iter_mut().enumerate() {
            *cpu = Cpu::new();
            for sgi in &mut cpu.private[..16] {
                sgi.edge = true;
            }
            for intid in TIMER_PPIS {
                cpu.private[intid as usize].phys = intid as u16;
                if vcpu < self.config.vcpus {
                    silence(&self.port, PhysicalInterrupt::Ppi { vcpu, intid }, false);
                }
            }
        }
        for &PhysicalSpi { virt, phys, edge } in &self.config.spis {
            let interrupt = &mut self.spis[virt as usize - 32];
            interrupt.phys = phys as u16;
            interrupt.edge = edge;
            silence(&self.port, PhysicalInterrupt::Spi { intid: phys }, edge);
            self.port.set_target(phys, 0);
        }
    }

    /// `vcpu` wrote `value` to a register that generates SGIs.
    pub fn send_sgi(&mut self, vcpu: usize, register: SgiRegister, value: u64) {
        let intid = (value >> 24 & 0xf) as u32;
        let everyone_else = value >> 40 & 1 != 0;
        // Aff3.Aff2.Aff1 of the targets; each bit of the list is one Aff0, from 16 times the range selector.
        let cluster =
            (value >> 48 & 0xff) << 24 | (value >> 32 & 0xff) << 16 | (value >> 16 & 0xff) << 8;
        let first = (value >> 44 & 0xf) * 16;
        for target in 0..self.config.vcpus {
            let named = (0..16).any(|bit| {
                value >> bit & 1 != 0 && vcpu_of((cluster | (first + bit)) as u32) == Some(target)
            });
            if if everyone_else { target != vcpu } else { named } {
                let group1 = self.cpus[target].private[intid as usize].group1;
                if register == SgiRegister::Sgi1r || !group1 {
                    self.set_pending(Id { bank: target, intid });
                }
            }
        }
    }

    /// `vcpu` wrote `value` to `ICC_DIR_EL1`, and that was trapped (`ICH_HCR_EL2.TDIR`).
    pub fn deactivate(&mut self, vcpu: usize, value: u64) {
        let intid = (value & 0xff_ffff) as u32;
        // With EOImode=0 hardware ignores the write.
        if self.cpu(vcpu).is_some_and(|cpu| cpu.split_eoi) && intid < INTIDS {
            self.clear_active(Id { bank: vcpu, intid });
        }
    }

    /// A device that EL2 emulates drives the line of the SPI `intid`. An SPI has one source: this does
    /// nothing for a physical one.
    pub fn set_line(&mut self, intid: u32, high: bool) {
        if !(32..INTIDS).contains(&intid) {
            return;
        }
        let id = Id { bank: 0, intid };
        let spi = self.interrupt_mut(id);
        if spi.phys != 0 || spi.line == high {
            return;
        }
        spi.line = high;
        spi.latch |= high && spi.edge;
        self.refresh(id);
    }

    /// EL2 acknowledged the physical interrupt `intid` on the CPU of `vcpu` and dropped its priority. One
    /// that is not this VM's is deactivated.
    pub fn physical_interrupt(&mut self, vcpu: usize, intid: u32) {
        if self.cpu(vcpu).is_none() || intid < 16 {
            return;
        }
        let (source, virt) = if intid < 32 {
            (PhysicalInterrupt::Ppi { vcpu, intid }, TIMER_PPIS.contains(&intid).then_some(intid))
        } else {
            let owned = self.config.spis.iter().find(|spi| spi.phys == intid);
            (PhysicalInterrupt::Spi { intid }, owned.map(|spi| spi.virt))
        };
        match virt {
            Some(intid) => {
                let id = Id { bank: vcpu, intid };
                self.interrupt_mut(id).hw_pending = true;
                self.refresh(id);
            }
            None => self.port.deactivate(source),
        }
    }

    fn cpu(&self, vcpu: usize) -> Option<&Cpu> {
        self.cpus[..self.config.vcpus].get(vcpu)
    }

    fn interrupt(&self, id: Id) -> &Interrupt {
        match id.spi() {
            Some(spi) => &self.spis[spi],
            None => &self.cpus[id.bank].private[id.intid as usize],
        }
    }

    fn interrupt_mut(&mut self, id: Id) -> &mut Interrupt {
        match id.spi() {
            Some(spi) => &mut self.spis[spi],
            None => &mut self.cpus[id.bank].private[id.intid as usize],
        }
    }

    /// The physical interrupt behind `id`.
    fn source(&self, id: Id) -> Option<PhysicalInterrupt> {
        match u32::from(self.interrupt(id).phys) {
            0 => None,
            intid if id.spi().is_some() => Some(PhysicalInterrupt::Spi { intid }),
            intid => Some(PhysicalInterrupt::Ppi { vcpu: id.bank, intid }),
        }
    }

    /// The vCPU that `id` goes to when it becomes pending.
    fn route(&self, id: Id) -> Option<usize> {
        match id.spi() {
            Some(spi) => vcpu_of(self.routes[spi]).filter(|&vcpu| vcpu < self.config.vcpus),
            None => Some(id.bank),
        }
    }

    /// Whether `id` is forwarded to `vcpu` when it is pending.
    fn is_forwarded(&self, id: Id, vcpu: usize) -> bool {
        self.is_open(id) && self.route(id) == Some(vcpu) && self.cpus[vcpu].awake
    }

    /// Whether the distributor forwards `id`, to wherever, when it is pending.
    fn is_open(&self, id: Id) -> bool {
        let interrupt = self.interrupt(id);
        interrupt.enabled && self.groups[usize::from(interrupt.group1)]
    }

    /// The state of `id` changed: brings its physical side, its home and the vCPU there up to date.
    fn refresh(&mut self, id: Id) {
        let route = self.route(id);
        let open = self.is_open(id);
        self.gate(id, open && route.is_some());
        let Interrupt { loaded, active, home: old, .. } = *self.interrupt(id);
        if loaded {
            if let Some(home) = old {
                self.cpus[home as usize].withdrawing |= !open;
                self.kick(home as usize);
            }
            return;
        }
        let pending = self.interrupt(id).is_pending();
        let home = if active { old } else { route.map(|vcpu| vcpu as u8) };
        self.interrupt_mut(id).home = home;
        if let Some(old) = old {
            self.cpus[old as usize].here.set(id.intid, false);
        }
        if let Some(home) = home.map(usize::from) {
            self.cpus[home].here.set(id.intid, active || pending);
            if active || (pending && self.is_forwarded(id, home)) {
                self.kick(home);
            }
        }
    }

    /// Enables or disables the physical interrupt behind `id`; a disabled one is given back.
    fn gate(&mut self, id: Id, on: bool) {
        let Some(source) = self.source(id) else { return };
        let Interrupt { forwarded, hw_pending, edge, .. } = *self.interrupt(id);
        if forwarded != on {
            self.port.set_enabled(source, on);
            self.interrupt_mut(id).forwarded = on;
        }
        if !on && hw_pending {
            if edge {
                self.port.set_pending(source, true);
            }
            self.port.deactivate(source);
            self.interrupt_mut(id).hw_pending = false;
        }
    }

    fn kick(&mut self, vcpu: usize) {
        if self.cpus[vcpu].place == Place::In {
            self.cpus[vcpu].place = Place::Kicked;
            self.port.kick(vcpu);
        }
    }

    /// Makes `id` pending by software.
    fn set_pending(&mut self, id: Id) {
        if !self.interrupt(id).latch {
            self.interrupt_mut(id).latch = true;
            self.refresh(id);
        }
    }

    /// Clears what made `id` pending, except a line that is still high.
    fn clear_pending(&mut self, id: Id) {
        let source = self.source(id);
        if let Some(source) = source {
            self.port.set_pending(source, false);
        }
        let interrupt = self.interrupt_mut(id);
        interrupt.latch = false;
        interrupt.drop_pending = interrupt.loaded;
        if core::mem::take(&mut interrupt.hw_pending)
            && let Some(source) = source
        {
            self.port.deactivate(source);
        }
        self.refresh(id);
    }

    /// Makes `id` active by software.
    fn set_active(&mut self, id: Id) {
        // One that is routed to nobody must have a vCPU that can end it, too.
        let home = self.route(id).unwrap_or(0);
        let interrupt = self.interrupt_mut(id);
        if interrupt.loaded {
            interrupt.force_active = Some(true);
        } else if !interrupt.active {
            interrupt.activate(interrupt.priority, interrupt.group1);
            interrupt.acknowledged = false;
            // A list register that just came back may have been that of another vCPU.
            if let Some(old) = interrupt.home.replace(home as u8) {
                self.cpus[old as usize].here.set(id.intid, false);
            }
        }
        self.refresh(id);
    }

    /// Makes `id` inactive by software.
    fn clear_active(&mut self, id: Id) {
        let interrupt = self.interrupt_mut(id);
        if interrupt.loaded {
            interrupt.force_active = Some(false);
        } else if interrupt.active {
            interrupt.active = false;
            if core::mem::take(&mut interrupt.tied)
                && let Some(source) = self.source(id)
            {
                self.port.deactivate(source);
            }
        }
        self.refresh(id);
    }
}

/// Disables a physical interrupt and makes it neither pending nor active.
fn silence(port: &impl PhysicalGic, source: PhysicalInterrupt, edge: bool) {
    port.set_enabled(source, false);
    port.set_edge(source, edge);
    port.set_pending(source, false);
    port.deactivate(source);
}

/// The vCPU whose affinity is `affinity` (Aff3.Aff2.Aff1.Aff0).
fn vcpu_of(affinity: u32) -> Option<usize> {
    usize::try_from(affinity).ok().filter(|&vcpu| vcpu < MAX_VCPUS)
}
