//! The physical PCI host bridge: configuration space, BARs, and a clock to wait with.

use platform::dt::PcieHost;
use platform::pcie::Bdf;
use smmu::addr::Pa;
use smmu::ports::Clock;

use crate::arch::mmio::{self, Window};
use crate::arch::timer;
use crate::pci::{ConfigSpace, DeviceMemory, Width};

/// A host bridge whose configuration space EL2 has mapped, and of its windows what BARs occupy.
#[derive(Debug)]
pub struct HostBridge {
    ecam: Window,
    first_bus: u8,
    last_bus: u8,
    /// Where BARs may be: the first and the last address of each window.
    windows: heapless::Vec<(Pa, Pa), 4>,
}

impl HostBridge {
    /// Names the host bridge that `facts` describe.
    ///
    /// # Safety
    ///
    /// The ECAM range is mapped as Device memory for the rest of the run; so is every BAR before a register in it is used.
    pub unsafe fn new(facts: &PcieHost) -> Self {
        Self {
            // SAFETY: the caller's promise; configuration writes that make a function master the bus are confined by the SMMU.
            ecam: unsafe { Window::new(facts.ecam.base, facts.ecam.size) },
            first_bus: facts.first_bus,
            last_bus: facts.last_bus,
            windows: facts
                .windows
                .iter()
                .filter_map(|window| Some((window.cpu.base, window.cpu.last()?)))
                .collect(),
        }
    }

    fn register(&self, function: Bdf, offset: u16) -> Option<u64> {
        let bus = function.bus();
        if !(self.first_bus..=self.last_bus).contains(&bus) || offset >= 4096 {
            return None;
        }
        let at = u64::from(bus - self.first_bus) << 20
            | u64::from(function.requester_id() & 0xff) << 12
            | u64::from(offset);
        (at < self.ecam.size()).then_some(at)
    }

    fn holds(&self, at: Pa, width: Width) -> bool {
        at.is_aligned(width.bytes())
            && self.windows.iter().any(|&(first, last)| (first..=last).contains(&at))
    }
}

impl ConfigSpace for HostBridge {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        let Some(at) = self.register(function, offset) else { return u32::MAX };
        match width {
            Width::Byte => self.ecam.read8(at).into(),
            Width::Half => self.ecam.read16(at).into(),
            Width::Word | Width::Double => self.ecam.read32(at),
        }
    }

    fn write(&self, function: Bdf, offset: u16, width: Width, value: u32) {
        let Some(at) = self.register(function, offset) else { return };
        match width {
            Width::Byte => self.ecam.write8(at, value as u8),
            Width::Half => self.ecam.write16(at, value as u16),
            Width::Word | Width::Double => self.ecam.write32(at, value),
        }
    }
}

impl DeviceMemory for HostBridge {
    fn load(&self, at: Pa, width: Width) -> u64 {
        if !self.holds(at, width) {
            return width.mask();
        }
        // SAFETY: `holds` checked that the address is aligned and in a window of the bridge, where nothing but devices is; the
        // SMMU confines what they do. An address that no BAR occupies faults, which stops the machine but harms no memory.
        unsafe {
            match width {
                Width::Byte => mmio::read8(at).into(),
                Width::Half => mmio::read16(at).into(),
                Width::Word => mmio::read32(at).into(),
                Width::Double => mmio::read64(at),
            }
        }
    }

    fn store(&self, at: Pa, width: Width, value: u64) {
        if !self.holds(at, width) {
            return;
        }
        // SAFETY: as in `load`.
        unsafe {
            match width {
                Width::Byte => mmio::write8(at, value as u8),
                Width::Half => mmio::write16(at, value as u16),
                Width::Word => mmio::write32(at, value as u32),
                Width::Double => mmio::write64(at, value),
            }
        }
    }
}

impl Clock for HostBridge {
    fn now_us(&self) -> u64 {
        timer::now_us()
    }
}
