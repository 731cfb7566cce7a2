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
//! # What the caller does
//!
//! * [`Vgic::enter`] before a vCPU runs guest code, [`Vgic::leave`] after it did. Between the two the list
//!   registers own the state of what was loaded. A vCPU that was not kicked and had no maintenance
//!   interrupt may exit and resume without either; then no `ICH_*` register need be touched.
//! * `leave` comes first in every exit that calls another method for that vCPU, and when a vCPU is
//!   switched off; `enter` comes last.
//! * The maintenance interrupt (PPI 25), like [`PhysicalGic::kick`], asks for `leave` and `enter`.

use heapless::Vec;

/// The most vCPUs a VM may have. vCPU n has affinity 0.0.0.n.
pub const MAX_VCPUS: usize = 16;
/// The most list registers the architecture allows.
pub const MAX_LIST_REGISTERS: usize = 16;
/// The most physical SPIs one VM may own.
pub const MAX_PHYSICAL_SPIS: usize = 32;
/// How many INTIDs a VM has: SGIs, PPIs, and SPIs 32 to 255.
pub const INTIDS: u32 = 256;

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

/// A register frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// `GICD_*`.
    Distributor,
    /// `GICR_*`: 128 KiB for each vCPU, one after the other.
    Redistributor,
}

/// How much of a register is accessed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits: no GIC register has it.
    Half,
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
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

/// The virtual GIC of one VM. It is not locked: the caller is.
#[derive(Debug)]
pub struct Vgic<P> {
    port: P,
    config: Config,
}

impl<P: PhysicalGic> Vgic<P> {
    /// Returns a GIC in its reset state; the physical interrupts are disabled and inactive.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the part of `config` that no GIC can have.
    pub fn new(config: Config, port: P) -> Result<Self, ConfigError> {
        let mut vgic = Self { port, config };
        vgic.reset();
        Ok(vgic)
    }

    /// Puts everything back to its state at a cold boot, the physical interrupts disabled and inactive.
    /// No vCPU runs guest code; each calls [`Vgic::enter`] before it does again. The lines of software
    /// sources become low.
    pub fn reset(&mut self) {
        let _ = &self.port;
    }

    /// Reads a register on behalf of `vcpu`. What does not exist reads as zero.
    pub fn read(&mut self, vcpu: usize, region: Region, offset: u64, width: Width) -> u64 {
        let _ = (vcpu, region, offset, width);
        0
    }

    /// Writes a register on behalf of `vcpu`. Writes to what does not exist are ignored.
    pub fn write(&mut self, vcpu: usize, region: Region, offset: u64, width: Width, value: u64) {
        let _ = (vcpu, region, offset, width, value);
    }

    /// `vcpu` wrote `value` to a register that generates SGIs.
    pub fn send_sgi(&mut self, vcpu: usize, register: SgiRegister, value: u64) {
        let _ = (vcpu, register, value);
    }

    /// `vcpu` wrote `value` to `ICC_DIR_EL1`, and that was trapped (`ICH_HCR_EL2.TDIR`).
    pub fn deactivate(&mut self, vcpu: usize, value: u64) {
        let _ = (vcpu, value);
    }

    /// A device that EL2 emulates drives the line of the SPI `intid`.
    pub fn set_line(&mut self, intid: u32, high: bool) {
        let _ = (intid, high);
    }

    /// EL2 acknowledged the physical interrupt `intid` on the CPU of `vcpu` and dropped its priority.
    pub fn physical_interrupt(&mut self, vcpu: usize, intid: u32) {
        let _ = (vcpu, intid);
    }

    /// Fills the list registers before `vcpu` runs guest code. Returns how many of them, from 0, the
    /// caller has to write, beside `hcr`.
    pub fn enter(&mut self, vcpu: usize, lrs: &mut ListRegisters) -> usize {
        let _ = (vcpu, &self.config);
        lrs.used
    }

    /// Takes the state in the list registers back after `vcpu` ran guest code.
    pub fn leave(&mut self, vcpu: usize, lrs: &ListRegisters) {
        let _ = (vcpu, lrs);
    }
}
