//! One physical function.

use core::fmt;

use smmu::addr::{PAGE_SIZE, Pa};

use super::{Bdf, Capabilities, Config, ConfigSpace, Pin, reg};

/// The vendor ID of every virtio device.
const VIRTIO_VENDOR: u16 = 0x1af4;
/// The device IDs of virtio devices, transitional and modern (virtio 1.2, section 4.1.2).
const VIRTIO_DEVICES: core::ops::RangeInclusive<u16> = 0x1000..=0x107f;

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; the BAR has two registers.
    Memory64,
}

/// Where a BAR was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its address on the bus: what the BAR holds.
    pub bus: u64,
    /// Where CPUs see it.
    pub cpu: Pa,
}

/// A BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// What it decodes.
    pub kind: BarKind,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
    /// Bytes, a power of two.
    pub size: u64,
    /// Where it is, or `None` if no window had room for it. A memory BAR shares its 4 KiB pages with nothing.
    pub place: Option<Place>,
}

impl Bar {
    /// Whether it decodes memory.
    pub const fn is_memory(&self) -> bool {
        !matches!(self.kind, BarKind::Io)
    }

    /// Whether stage 2 can map it: it is memory in whole pages.
    pub const fn is_mappable(&self) -> bool {
        self.is_memory() && self.size >= PAGE_SIZE
    }

    /// Returns the bits of the register that say what it decodes.
    pub const fn flags(&self) -> u32 {
        let kind = match self.kind {
            BarKind::Io => 1,
            BarKind::Memory32 => 0,
            BarKind::Memory64 => 4,
        };
        kind | if self.prefetchable { 8 } else { 0 }
    }
}

/// A bridge to another bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The bus below it.
    pub secondary: u8,
    /// The last bus below it.
    pub subordinate: u8,
}

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An endpoint: what a VM can own.
    Endpoint,
    /// A bridge to another PCI bus, which EL2 keeps.
    Bridge(Bridge),
    /// The host bridge (class 0600), which EL2 keeps and whose BARs it leaves alone.
    HostBridge,
    /// Something whose registers EL2 does not know.
    Unknown,
}

/// Why no VM can own a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unassignable {
    /// It is a bridge, or nothing that EL2 knows.
    NotAnEndpoint,
    /// No window had room for one of its memory BARs.
    NoSpace {
        /// Which BAR.
        bar: u8,
    },
    /// Its registers are at fixed addresses (enhanced allocation).
    FixedAddresses,
}

impl fmt::Display for Unassignable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnEndpoint => f.write_str("it is a bridge or of an unknown kind: assign endpoints"),
            Self::NoSpace { bar } => {
                write!(f, "the host bridge's windows have no room for its BAR {bar}: remove other devices")
            }
            Self::FixedAddresses => {
                f.write_str("its registers are at fixed addresses (enhanced allocation), which is not supported")
            }
        }
    }
}

/// A physical function, as [`super::enumerate`] left it: silent, in D0, its BARs placed and decoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its address.
    pub at: Bdf,
    /// What it is.
    pub kind: Kind,
    /// Its vendor ID.
    pub vendor: u16,
    /// Its device ID.
    pub device: u16,
    /// Its subsystem vendor ID, and subsystem ID in the upper half; 0 for a bridge.
    pub subsystem: u32,
    /// Its revision ID, and class code in the upper three bytes.
    pub revision: u32,
    /// Its BARs. A 64-bit BAR is at its first register, and the next entry is `None`.
    pub bars: [Option<Bar>; 6],
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// The interrupt pin it uses.
    pub pin: Option<Pin>,
    /// Whether it was allowed to do DMA when EL2 found it.
    pub armed_at_boot: bool,
    /// Whether its device has further functions.
    pub multi_function: bool,
    /// Whether access control keeps it from its neighbours, and them from it.
    pub isolated: bool,
    /// The largest payload that the whole path to the root can carry, encoded as in device control.
    pub max_payload: u8,
    /// The bridge above it, as an index into the topology.
    pub(super) parent: Option<u8>,
    /// Functions with the same group cannot be isolated from each other.
    pub(super) group: u8,
}

impl Function {
    /// Checks that a VM can own the function. Whether its DMA can be confined is another question: see
    /// [`super::dma_check`] and [`super::Topology::inseparable`].
    ///
    /// # Errors
    ///
    /// Why none can.
    pub fn assignable(&self) -> Result<(), Unassignable> {
        if self.kind != Kind::Endpoint {
            return Err(Unassignable::NotAnEndpoint);
        }
        if self.capabilities.enhanced_allocation {
            return Err(Unassignable::FixedAddresses);
        }
        for (bar, index) in self.bars.iter().zip(0..) {
            if bar.is_some_and(|bar| bar.is_memory() && bar.place.is_none()) {
                return Err(Unassignable::NoSpace { bar: index });
            }
        }
        Ok(())
    }

    /// Whether it is a virtio device.
    pub fn is_virtio(&self) -> bool {
        self.vendor == VIRTIO_VENDOR && VIRTIO_DEVICES.contains(&self.device)
    }

    /// Whether it is on the root bus.
    pub const fn is_on_root_bus(&self) -> bool {
        self.parent.is_none()
    }

    /// Returns the command bits with which EL2 lets it decode its BARs: never bus master.
    pub(crate) fn decode(&self) -> u16 {
        let mut command = 0;
        let all_placed = |memory: bool| {
            let mut bars =
                self.bars.iter().flatten().filter(|bar| bar.is_memory() == memory).peekable();
            bars.peek().is_some() && bars.all(|bar| bar.place.is_some())
        };
        if all_placed(true) {
            command |= reg::COMMAND_MEMORY;
        }
        if all_placed(false) {
            command |= reg::COMMAND_IO;
        }
        command
    }

    /// Writes every BAR's place into its registers; 0 where it has none.
    pub(super) fn write_bars<C: ConfigSpace>(&self, config: &Config<'_, C>) {
        for (bar, offset) in self.placed_bars() {
            let bus = bar.place.map_or(0, |place| place.bus);
            config.write32(offset, bus as u32);
            if bar.kind == BarKind::Memory64 {
                config.write32(offset + 4, (bus >> 32) as u32);
            }
        }
    }

    /// Whether every BAR is where it was placed.
    pub(super) fn bars_in_place<C: ConfigSpace>(&self, config: &Config<'_, C>) -> bool {
        self.placed_bars().all(|(bar, offset)| {
            let bus = bar.place.map_or(0, |place| place.bus);
            config.read32(offset) == bus as u32 | bar.flags()
                && (bar.kind != BarKind::Memory64
                    || config.read32(offset + 4) == (bus >> 32) as u32)
        })
    }

    fn placed_bars(&self) -> impl Iterator<Item = (&Bar, u16)> {
        let offsets = (reg::BAR0..).step_by(4);
        self.bars.iter().zip(offsets).filter_map(|(bar, offset)| Some((bar.as_ref()?, offset)))
    }
}
