//! The physical PCI host bridge: configuration space, BARs, and a clock to wait with.

use platform::dt::PcieHost;
use platform::pcie::Bdf;
use smmu::addr::Pa;
use smmu::ports::Clock;

use crate::arch::mmio::{self, Window};
use crate::arch::timer;
use crate::pci::{BusError, ConfigSpace, DeviceMemory, Patience, Width};

/// A host bridge whose configuration space EL2 has mapped, and of its windows what BARs occupy.
#[derive(Debug)]
pub struct HostBridge {
    ecam: Window,
    first_bus: u8,
    last_bus: u8,
    /// Where BARs may be: the first and the last address of each window.
    windows: heapless::Vec<(Pa, Pa), 4>,
    meanwhile: fn(),
}

impl HostBridge {
    /// Names the host bridge that `facts` describe. `meanwhile` is what EL2 does as long as it waits for a function.
    ///
    /// # Safety
    ///
    /// The ECAM range is mapped as Device memory for the rest of the run; so is every BAR before a register in it is used.
    pub unsafe fn new(facts: &PcieHost, meanwhile: fn()) -> Self {
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
            meanwhile,
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
        // Bridges answer for functions that are not there, with all ones or with an error.
        let answer = self
            .register(function, offset)
            .and_then(|at| self.ecam.try_read(at, width.min(Width::Word)));
        answer.map_or(width.mask() as u32, |value| value as u32)
    }

    fn write(&self, function: Bdf, offset: u16, width: Width, value: u32) {
        if let Some(at) = self.register(function, offset) {
            // What nobody takes is lost, as it is on a bus.
            let _ = self.ecam.try_write(at, width.min(Width::Word), value.into());
        }
    }
}

impl DeviceMemory for HostBridge {
    fn load(&self, at: Pa, width: Width) -> Result<u64, BusError> {
        if !self.holds(at, width) {
            return Err(BusError);
        }
        // SAFETY: `holds` checked that the address is aligned and in a window of the bridge, where nothing but devices is; the
        // SMMU confines what they do.
        unsafe { mmio::try_read(at, width) }.ok_or(BusError)
    }

    fn store(&self, at: Pa, width: Width, value: u64) -> Result<(), BusError> {
        // SAFETY: as in `load`.
        let answered = self.holds(at, width) && unsafe { mmio::try_write(at, width, value) };
        if answered { Ok(()) } else { Err(BusError) }
    }
}

impl Clock for HostBridge {
    fn now_us(&self) -> u64 {
        timer::now_us()
    }
}

impl Patience for HostBridge {
    fn meanwhile(&self) {
        (self.meanwhile)();
    }
}
