//! Discovery: the firmware's device tree becomes typed facts, or a refusal that names the node.
//!
//! Nothing is guessed. What this machine does not say, or says in a way that this code does not understand,
//! stops the boot with a message instead of a fault later.

mod discovery;
mod pcie;
mod refusal;
#[cfg(test)]
mod tests;
mod tree;

use heapless::{String, Vec};
use smmu::addr::Pa;

pub use self::discovery::{console, discover};
pub use self::refusal::{Path, Problem, Refusal};
pub use crate::fdt::{BlobError, total_size};
use crate::pcie::{Bdf, InterruptMap, IommuMap, MsiMap};

/// Bits of the largest physical address that the architecture has (`ID_AA64MMFR0_EL1.PARange` up to 52 bits).
pub const PA_BITS: u32 = 52;
/// The most memory regions.
pub const MAX_MEMORY: usize = 8;
/// The most reserved regions.
pub const MAX_RESERVED: usize = 16;
/// The most CPUs.
pub const MAX_CPUS: usize = 16;
/// The most redistributor regions.
pub const MAX_REDISTRIBUTORS: usize = 4;
/// The most interrupt translation services.
pub const MAX_ITS: usize = 16;
/// The most of each other kind of device: UART, SMMU, PCI host bridge.
pub const MAX_DEVICES: usize = 4;
/// The most windows of a PCI host bridge.
pub const MAX_WINDOWS: usize = 4;
/// The most virtio-mmio transports.
pub const MAX_VIRTIO_MMIO: usize = 32;
/// The longest command line in bytes.
pub const MAX_BOOTARGS: usize = 512;

/// Names a node inside one device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Phandle(pub u32);

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The first address.
    pub base: Pa,
    /// Bytes. What comes from a device tree ends inside [`PA_BITS`].
    pub size: u64,
}

impl Range {
    /// Checks that a range ends inside the physical address space; `None` if it does not.
    pub fn new(base: Pa, size: u64) -> Option<Self> {
        let end = base.checked_add(size)?;
        (end.raw() <= 1 << PA_BITS).then_some(Self { base, size })
    }

    /// Returns the last address, for a range that is not empty.
    pub fn last(self) -> Option<Pa> {
        self.base.checked_add(self.size.checked_sub(1)?)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        match (self.last(), other.last()) {
            (Some(last), Some(other_last)) => self.base <= other_last && other.base <= last,
            _ => false,
        }
    }
}

/// How an interrupt is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// By an edge.
    Edge,
    /// By a level.
    Level,
}

/// An interrupt of the GIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interrupt {
    /// Its INTID: PPIs from 16, SPIs from 32; none of the extended ranges.
    pub intid: u32,
    /// How it is signalled.
    pub trigger: Trigger,
}

/// A CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its affinity fields, placed as in `MPIDR_EL1`, all other bits 0.
    pub mpidr: u64,
}

/// How the firmware's PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// By `SMC`.
    Smc,
    /// By `HVC`.
    Hvc,
}

/// A run of redistributors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redistributors {
    /// Their registers.
    pub range: Range,
    /// Bytes from one to the next, where the tree says so; else `GICR_TYPER` tells.
    pub stride: Option<u64>,
}

/// An interrupt translation service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Its {
    /// Its registers: the control and the translation frame.
    pub range: Range,
    /// How the tree refers to it.
    pub phandle: Option<Phandle>,
}

/// The GICv3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gic {
    /// The distributor's registers.
    pub distributor: Range,
    /// The redistributors.
    pub redistributors: Vec<Redistributors, MAX_REDISTRIBUTORS>,
    /// The ITSs, if there are any.
    pub its: Vec<Its, MAX_ITS>,
    /// The maintenance interrupt of the virtual CPU interfaces.
    pub maintenance: Interrupt,
}

/// The generic timer's interrupts, each a PPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// The secure physical timer.
    pub secure_physical: Option<Interrupt>,
    /// The non-secure EL1 physical timer.
    pub physical: Interrupt,
    /// The virtual timer.
    pub virtual_: Interrupt,
    /// The non-secure EL2 physical timer.
    pub hypervisor: Interrupt,
    /// The non-secure EL2 virtual timer, which only CPUs with VHE have.
    pub hypervisor_virtual: Option<Interrupt>,
}

/// A PL011.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart {
    /// Its registers.
    pub range: Range,
    /// Its combined interrupt.
    pub interrupt: Option<Interrupt>,
}

/// The wired interrupts of an SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmmuInterrupts {
    /// One for everything.
    Combined(Interrupt),
    /// One for each source.
    Separate {
        /// The event queue is no longer empty.
        eventq: Interrupt,
        /// A global error became active.
        gerror: Interrupt,
        /// A `CMD_SYNC` completed.
        cmdq_sync: Option<Interrupt>,
        /// The PRI queue is no longer empty.
        priq: Option<Interrupt>,
    },
}

impl SmmuInterrupts {
    /// Returns the interrupt that announces event records.
    pub fn eventq(self) -> Interrupt {
        match self {
            Self::Combined(interrupt) | Self::Separate { eventq: interrupt, .. } => interrupt,
        }
    }

    /// Returns the interrupt that announces global errors.
    pub fn gerror(self) -> Interrupt {
        match self {
            Self::Combined(interrupt) | Self::Separate { gerror: interrupt, .. } => interrupt,
        }
    }
}

/// An SMMUv3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smmu {
    /// Its registers: both 64 KiB pages.
    pub range: Range,
    /// How host bridges refer to it.
    pub phandle: Phandle,
    /// Its interrupts.
    pub interrupts: SmmuInterrupts,
    /// Whether its table walks and queues are coherent with the CPUs' caches.
    pub dma_coherent: bool,
}

/// What a window of a PCI host bridge is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB on the bus.
    Mem32,
    /// Memory that 64-bit BARs can use.
    Mem64,
}

/// A window through which CPUs reach PCI devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// What it is for.
    pub kind: WindowKind,
    /// Whether it may hold prefetchable memory only.
    pub prefetchable: bool,
    /// Its first address on the bus: what goes into a BAR.
    pub pci: u64,
    /// Where CPUs see it.
    pub cpu: Range,
}

/// A PCI host bridge with ECAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcieHost {
    /// The configuration space: 1 MiB per bus, from `first_bus` on.
    pub ecam: Range,
    /// The root bus.
    pub first_bus: u8,
    /// The last bus number that may be given out.
    pub last_bus: u8,
    /// The windows, in the tree's order.
    pub windows: Vec<Window, MAX_WINDOWS>,
    /// Requester ID to StreamID; empty if there is no SMMU above the bridge.
    pub iommu_map: IommuMap,
    /// Requester ID to DeviceID; empty if there is no ITS.
    pub msi_map: MsiMap,
    /// Interrupt pins.
    pub intx: InterruptMap,
    /// Whether its devices' DMA is coherent with the CPUs' caches.
    pub dma_coherent: bool,
}

impl PcieHost {
    /// Returns the 4 KiB of configuration space of a function, or `None` if its bus is not of this bridge.
    pub fn config_space(&self, bdf: Bdf) -> Option<Pa> {
        if !(self.first_bus..=self.last_bus).contains(&bdf.bus()) {
            return None;
        }
        let offset = bdf.ecam_offset() - Bdf::new(self.first_bus, 0, 0)?.ecam_offset();
        self.ecam.base.checked_add(offset)
    }
}

/// What is known of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// RAM, by address; regions do not overlap.
    pub memory: Vec<Range, MAX_MEMORY>,
    /// What of it nobody may use: the memory reservation block and `/reserved-memory`.
    pub reserved: Vec<Range, MAX_RESERVED>,
    /// The CPUs, in the tree's order.
    pub cpus: Vec<Cpu, MAX_CPUS>,
    /// How to call PSCI.
    pub psci: Conduit,
    /// The interrupt controller.
    pub gic: Gic,
    /// The generic timer.
    pub timers: Timers,
    /// The UARTs: the console (`stdout-path`) first, then by alias (`serial0`, `serial1`, ...), then the others.
    pub uarts: Vec<Uart, MAX_DEVICES>,
    /// The SMMUs, at least one.
    pub smmus: Vec<Smmu, MAX_DEVICES>,
    /// The PCI host bridges.
    pub pcie: Vec<PcieHost, MAX_DEVICES>,
    /// The virtio-mmio transports, whose DMA passes no SMMU.
    pub virtio_mmio: Vec<Range, MAX_VIRTIO_MMIO>,
    /// What the boot loader loaded: the bundle.
    pub initrd: Option<Range>,
    /// The hypervisor's command line.
    pub bootargs: String<MAX_BOOTARGS>,
}
