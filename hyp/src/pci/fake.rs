//! A bus of made-up functions, which notes whatever no function should ever be asked to do.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::vec::Vec;

use platform::dt::{Interrupt, Trigger, Window, WindowKind};
use platform::pcie::{InterruptMap, IntxEntry};
use smmu::addr::Pa;
use smmu::ports::Clock;

use super::{
    Bdf, BusError, ConfigSpace, DeviceMemory, Patience, Topology, Width, enumerate,
    registers as reg,
};

/// Where the next capability goes, and what a function's space looks like.
#[derive(Clone)]
pub struct Fake {
    parent: Option<usize>,
    device: u8,
    function: u8,
    pub config: Vec<u8>,
    writable: Vec<u8>,
    clears: Vec<u8>,
    cold: Vec<u8>,
    /// Bits that nobody may ever set, by register.
    forbidden: Vec<(u16, u16)>,
    last_cap: u16,
    last_ext: u16,
    /// The bit that starts a function-level reset.
    flr: Option<(u16, u8)>,
    power: Option<u16>,
    /// Whether function-level reset, D3hot and bus reset do anything.
    pub resettable: bool,
    /// Whether it never answers again after a reset.
    pub fragile: bool,
    pub gone: bool,
    pub resets: u32,
    /// For virtio: features, the selector, and where the common configuration is.
    features: u64,
    select: u32,
    /// The device status of virtio; it resets unless `resettable` is false.
    pub status: u8,
    common: Option<(usize, u32)>,
    bars: [u64; 6],
}

impl Fake {
    pub fn new(device: u8, function: u8, id: u32, class: u32) -> Self {
        let mut fake = Self {
            parent: None,
            device,
            function,
            config: vec![0; 4096],
            writable: vec![0; 4096],
            clears: vec![0; 4096],
            cold: Vec::new(),
            forbidden: Vec::new(),
            last_cap: 0,
            last_ext: 0,
            flr: None,
            power: None,
            resettable: true,
            fragile: false,
            gone: false,
            resets: 0,
            features: 0,
            select: 0,
            status: 0,
            common: None,
            bars: [0; 6],
        };
        fake.put32(reg::VENDOR_ID, id);
        fake.put32(reg::REVISION, class << 8 | 1);
        fake.writable[0x04..0x06].copy_from_slice(&0x0547_u16.to_le_bytes());
        fake.clears[0x06..0x08].copy_from_slice(&reg::STATUS_ERRORS.to_le_bytes());
        fake.writable[0x0c] = 0xff;
        fake.writable[0x3c] = 0xff;
        fake.put32(reg::SUBSYSTEM, 0xbeef_1234);
        fake.rw32(reg::ROM, 0xfff8_0001);
        fake
    }

    fn put32(&mut self, at: u16, value: u32) {
        self.config[at.into()..][..4].copy_from_slice(&value.to_le_bytes());
    }

    pub fn put16(&mut self, at: u16, value: u16) {
        self.config[at.into()..][..2].copy_from_slice(&value.to_le_bytes());
    }

    fn rw32(&mut self, at: u16, mask: u32) {
        self.writable[at.into()..][..4].copy_from_slice(&mask.to_le_bytes());
    }

    fn rw16(&mut self, at: u16, mask: u16) {
        self.writable[at.into()..][..2].copy_from_slice(&mask.to_le_bytes());
    }

    pub fn get16(&self, at: u16) -> u16 {
        u16::from_le_bytes([self.config[usize::from(at)], self.config[usize::from(at) + 1]])
    }

    pub fn get32(&self, at: u16) -> u32 {
        u32::from(self.get16(at)) | u32::from(self.get16(at + 2)) << 16
    }

    pub fn pin(mut self, pin: u8) -> Self {
        self.config[0x3d] = pin;
        self
    }

    /// What firmware left in the command register.
    pub fn command(mut self, command: u16) -> Self {
        self.put16(reg::COMMAND, command);
        self
    }

    pub fn multi_function(mut self) -> Self {
        self.config[0x0e] |= 0x80;
        self
    }

    pub fn io(mut self, index: u16, size: u32) -> Self {
        self.put32(0x10 + 4 * index, 1);
        self.rw32(0x10 + 4 * index, size.wrapping_neg());
        self.bars[usize::from(index)] = size.into();
        self
    }

    /// An I/O BAR whose upper address bits do not exist.
    pub fn io16(mut self, index: u16, size: u32) -> Self {
        self = self.io(index, size);
        self.rw32(0x10 + 4 * index, size.wrapping_neg() & 0xffff);
        self
    }

    pub fn mem32(mut self, index: u16, size: u32) -> Self {
        self.rw32(0x10 + 4 * index, size.wrapping_neg());
        self.bars[usize::from(index)] = size.into();
        self
    }

    pub fn mem64(mut self, index: u16, size: u64, prefetchable: bool) -> Self {
        self.put32(0x10 + 4 * index, if prefetchable { 0xc } else { 4 });
        self.rw32(0x10 + 4 * index, size.wrapping_neg() as u32);
        self.rw32(0x14 + 4 * index, (size.wrapping_neg() >> 32) as u32);
        self.bars[usize::from(index)] = size;
        self
    }

    /// Appends a standard capability.
    pub fn cap(mut self, id: u8, at: u16) -> Self {
        self.config[6] |= 0x10;
        let link = if self.last_cap == 0 { 0x34 } else { self.last_cap + 1 };
        self.config[usize::from(link)] = at as u8;
        self.config[usize::from(at)] = id;
        self.last_cap = at;
        self
    }

    /// Appends an extended capability.
    pub fn ext(mut self, id: u16, at: u16) -> Self {
        if self.last_ext != 0 {
            let header = self.get32(self.last_ext) | u32::from(at) << 20;
            self.put32(self.last_ext, header);
        }
        self.put32(at, 1 << 16 | u32::from(id));
        self.last_ext = at;
        self
    }

    /// Makes every bit of the registers of a capability writable, and forbids `bits` of the one at `control`.
    fn trap(mut self, control: u16, bits: u16, range: Range<u16>) -> Self {
        for at in range {
            self.writable[usize::from(at)] = 0xff;
        }
        self.forbidden.push((control, bits));
        self
    }

    pub fn msi(self, at: u16) -> Self {
        self.cap(reg::CAP_MSI, at).trap(at + 2, reg::MSI_ENABLE, at + 2..at + 14)
    }

    pub fn msix(self, at: u16) -> Self {
        self.cap(reg::CAP_MSIX, at).trap(at + 2, reg::MSIX_ENABLE, at + 2..at + 4)
    }

    pub fn ats(self, at: u16) -> Self {
        self.ext(reg::EXT_ATS, at).trap(at + 6, reg::ATS_ENABLE, at + 6..at + 8)
    }

    pub fn pri(self, at: u16) -> Self {
        self.ext(reg::EXT_PRI, at).trap(at + 4, reg::PRI_ENABLE, at + 4..at + 6)
    }

    pub fn pasid(self, at: u16) -> Self {
        self.ext(reg::EXT_PASID, at).trap(at + 6, reg::PASID_ENABLE, at + 6..at + 8)
    }

    pub fn sriov(self, at: u16) -> Self {
        self.ext(reg::EXT_SRIOV, at).trap(at + 8, reg::SRIOV_ENABLE, at + 8..at + 10)
    }

    /// Advanced error reporting, resizable BARs or anything else that a guest may not touch.
    pub fn opaque_ext(self, id: u16, at: u16) -> Self {
        self.ext(id, at).trap(at + 4, u16::MAX, at + 4..at + 32)
    }

    pub fn serial(mut self, at: u16, value: u64) -> Self {
        self = self.ext(reg::EXT_SERIAL, at);
        self.put32(at + 4, value as u32);
        self.put32(at + 8, (value >> 32) as u32);
        self
    }

    pub fn acs(mut self, at: u16) -> Self {
        self = self.ext(reg::EXT_ACS, at);
        self.put16(at + 4, 0x5f);
        self.rw16(at + 6, 0x5f);
        self
    }

    pub fn power(mut self, at: u16, no_soft_reset: bool) -> Self {
        self = self.cap(reg::CAP_POWER, at);
        self.put16(at + 2, 0xfe03);
        self.put16(at + 4, if no_soft_reset { 8 } else { 0 });
        self.rw16(at + 4, 0x0103);
        self.power = Some(at);
        self
    }

    /// PCI Express with device type `port`.
    pub fn express(mut self, at: u16, port: u16, flr: bool) -> Self {
        self = self.cap(reg::CAP_EXPRESS, at);
        self.put16(at + 2, 2 | port << 4);
        self.put32(at + 4, 0x8021 | if flr { reg::DEVICE_CAPABILITIES_FLR } else { 0 });
        self.put16(at + 8, 0x2810);
        self.rw16(at + 8, 0x7fff);
        self.clears[usize::from(at) + 10] = 0xf;
        // Link and slot control, which no guest may touch.
        self.rw16(at + 16, u16::MAX);
        self.rw16(at + 24, u16::MAX);
        self.forbidden.extend([(at + 16, u16::MAX), (at + 24, u16::MAX), (at + 8, 0x0e0f)]);
        self.flr = flr.then_some((at + 9, 0x80));
        self
    }

    pub fn advanced(mut self, at: u16) -> Self {
        self = self.cap(reg::CAP_ADVANCED, at);
        self.config[usize::from(at) + 2] = 6;
        self.config[usize::from(at) + 3] = 3;
        self.flr = Some((at + 4, 1));
        self
    }

    /// A virtio structure of type `kind` at `offset` into BAR `bar`.
    pub fn virtio(mut self, at: u16, kind: u8, bar: u8, offset: u32, length: u32) -> Self {
        self = self.cap(reg::CAP_VENDOR, at);
        let bytes = if kind == 5 || kind == 2 { 20 } else { 16 };
        self.config[usize::from(at) + 2] = bytes;
        self.config[usize::from(at) + 3] = kind;
        self.config[usize::from(at) + 4] = bar;
        self.put32(at + 8, offset);
        self.put32(at + 12, length);
        match kind {
            1 => self.common = Some((bar.into(), offset)),
            5 => self = self.trap(at + 16, u16::MAX, at + 4..at + 20),
            _ => {}
        }
        self
    }

    pub fn features(mut self, features: u64) -> Self {
        self.features = features;
        self
    }

    /// Requests that never complete.
    pub fn pending(mut self, express: u16) -> Self {
        self.config[usize::from(express) + 10] |= 0x20;
        self
    }

    pub fn bridge(device: u8, port: Option<u16>) -> Self {
        let mut fake = Self::new(device, 0, 0x000c_1b36, 0x06_0400);
        fake.config[0x0e] = 1;
        fake.put32(reg::SUBSYSTEM, 0);
        for (at, mask) in [
            (0x18, 0x00ff_ffff),
            (0x1c, 0x0000_f0f0),
            (0x20, 0xfff0_fff0),
            (0x24, 0xfff0_fff0),
            (0x28, u32::MAX),
            (0x2c, u32::MAX),
            (0x30, 0),
            (0x38, 0xfff8_0001),
        ] {
            fake.rw32(at, mask);
        }
        fake.put32(0x24, 0x0001_0001);
        fake.writable[0x3e] = 0x40;
        match port {
            Some(port) => fake.express(0x40, port, false),
            None => fake,
        }
    }

    pub fn is_bridge(&self) -> bool {
        self.config[0x0e] & 0x7f == 1
    }

    pub fn armed(&self) -> bool {
        self.config[4] & 4 != 0
    }

    fn buses(&self) -> Option<(u8, u8)> {
        (self.is_bridge() && self.config[0x19] != 0).then(|| (self.config[0x19], self.config[0x1a]))
    }

    fn reset(&mut self) {
        if self.resettable {
            self.config.clone_from(&self.cold);
            self.resets += 1;
            self.gone = self.fragile;
        }
    }

    /// The bus addresses that BAR `index` answers to now.
    pub fn decoded(&self, index: usize) -> Option<Range<u64>> {
        let at = 0x10 + 4 * index as u16;
        let low = self.get32(at);
        let io = low & 1 != 0;
        if self.bars[index] == 0 || self.config[4] & if io { 1 } else { 2 } == 0 {
            return None;
        }
        let start = if io {
            u64::from(low & !3)
        } else if low & 4 != 0 {
            u64::from(low & !0xf) | u64::from(self.get32(at + 4)) << 32
        } else {
            u64::from(low & !0xf)
        };
        Some(start..start + self.bars[index])
    }
}

/// Everything together: a host bridge, a clock that runs when it is looked at, and notes.
pub struct World {
    pub fakes: RefCell<Vec<Fake>>,
    time: Cell<u64>,
    /// When whoever waits last looked after what cannot wait.
    attended: Cell<u64>,
    longest_unattended: Cell<u64>,
    /// What went wrong.
    violations: RefCell<Vec<String>>,
    /// Whether an endpoint may get the bus master bit now.
    pub mastering: Cell<bool>,
    pub windows: Vec<Window>,
}

/// Offset from bus to CPU addresses, so that nobody confuses them.
pub const MEM_OFFSET: u64 = 0x40_0000_0000;

fn window(kind: WindowKind, pci: u64, size: u64, offset: u64) -> Window {
    let cpu = platform::dt::Range { base: Pa::new(pci + offset), size };
    Window { kind, prefetchable: false, pci, cpu }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    pub fn new() -> Self {
        let host = Fake::new(0, 0, 0x0008_1b36, 0x06_0000);
        let world = Self {
            fakes: RefCell::default(),
            time: Cell::new(0),
            attended: Cell::new(0),
            longest_unattended: Cell::new(0),
            violations: RefCell::default(),
            mastering: Cell::new(false),
            windows: vec![
                window(WindowKind::Io, 0, 0x1_0000, 0x3eff_0000),
                window(WindowKind::Mem32, 0x1000_0000, 0x2eff_0000, MEM_OFFSET),
                window(WindowKind::Mem64, 0x80_0000_0000, 0x80_0000_0000, MEM_OFFSET),
            ],
        };
        world.add(None, host);
        world
    }

    /// Adds a function to the bus below `parent`, and returns its number here.
    pub fn add(&self, parent: Option<usize>, mut fake: Fake) -> usize {
        fake.parent = parent;
        fake.cold.clone_from(&fake.config);
        fake.cold[4..6].fill(0);
        fake.cold[0x3c] = 0;
        if let Some(power) = fake.power {
            fake.cold[usize::from(power) + 4] &= !3;
        }
        self.fakes.borrow_mut().push(fake);
        self.fakes.borrow().len() - 1
    }

    pub fn enumerate(&self) -> Topology {
        let mut topology = Topology::new();
        enumerate(self, 0..=255, &self.windows, &mut topology).unwrap();
        self.check();
        topology
    }

    /// Fails if anything went wrong so far.
    pub fn check(&self) {
        assert_eq!(*self.violations.borrow(), Vec::<String>::new());
    }

    fn blame(&self, what: String) {
        self.violations.borrow_mut().push(what);
    }

    /// Who answers to `at`: requests travel from bridge to bridge.
    pub fn find(&self, at: Bdf) -> Option<usize> {
        let fakes = self.fakes.borrow();
        let mut parent = None;
        let mut bus = 0;
        while bus != at.bus() {
            let mut takers = (0..fakes.len()).filter(|&index| {
                fakes[index].parent == parent
                    && fakes[index]
                        .buses()
                        .is_some_and(|(first, last)| (first..=last).contains(&at.bus()))
            });
            let taker = takers.next()?;
            if takers.next().is_some() {
                self.blame(format!("two bridges pass on requests for bus {}", at.bus()));
            }
            parent = Some(taker);
            bus = fakes[taker].buses()?.0;
        }
        (0..fakes.len()).find(|&index| {
            let fake = &fakes[index];
            fake.parent == parent
                && (fake.device, fake.function) == (at.device(), at.function())
                && !fake.gone
        })
    }

    pub fn armed(&self, at: Bdf) -> bool {
        self.fakes.borrow()[self.find(at).unwrap()].armed()
    }

    pub fn with<R>(&self, at: Bdf, look: impl FnOnce(&mut Fake) -> R) -> R {
        let index = self.find(at).unwrap();
        look(&mut self.fakes.borrow_mut()[index])
    }

    /// Follows what a write set in motion.
    fn react(&self, index: usize, old: &[u8]) {
        let mut fakes = self.fakes.borrow_mut();
        let fake = &mut fakes[index];
        for &(register, bits) in &fake.forbidden {
            let before =
                u16::from_le_bytes([old[usize::from(register)], old[usize::from(register) + 1]]);
            let set = fake.get16(register) & bits & !before;
            if set != 0 {
                self.blame(format!("forbidden bits {set:#x} of register {register:#x} set"));
            }
        }
        let endpoint = fake.config[0x0e] & 0x7f == 0;
        if endpoint && fake.armed() && old[4] & 4 == 0 && !self.mastering.get() {
            self.blame(format!("bus master on of {index}"));
        }
        if fake.config[4] & 3 != 0 && fake.config[0x10..0x28] != old[0x10..0x28] {
            self.blame(format!("a BAR of {index} moved while it decoded"));
        }
        let awoken = |power: usize| old[power + 4] & 0xb == 3 && fake.config[power + 4] & 3 == 0;
        if fake.power.map(usize::from).is_some_and(awoken) {
            fake.reset();
        }
        if fake.is_bridge() && old[0x3e] & 0x40 == 0 && fake.config[0x3e] & 0x40 != 0 {
            for fake in fakes.iter_mut().filter(|fake| fake.parent == Some(index)) {
                fake.reset();
            }
        }
    }

    fn structure(&self, at: Pa) -> Option<(usize, u64)> {
        let fakes = self.fakes.borrow();
        fakes.iter().enumerate().find_map(|(index, fake)| {
            let (bar, offset) = fake.common?;
            let start = fake.decoded(bar)?.start + u64::from(offset) + MEM_OFFSET;
            let inside = at.raw().checked_sub(start)?;
            (inside < 24).then_some((index, inside))
        })
    }
}

impl ConfigSpace for World {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        let bytes = width.bytes() as usize;
        assert!(
            bytes <= 4 && usize::from(offset) % bytes == 0 && offset < 4096,
            "{offset:#x} {width:?}"
        );
        let Some(index) = self.find(function) else { return u32::MAX >> (32 - 8 * bytes) };
        let mut value = [0; 4];
        value[..bytes]
            .copy_from_slice(&self.fakes.borrow()[index].config[offset.into()..][..bytes]);
        u32::from_le_bytes(value)
    }

    fn write(&self, function: Bdf, offset: u16, width: Width, value: u32) {
        let bytes = width.bytes() as usize;
        assert!(
            bytes <= 4 && usize::from(offset) % bytes == 0 && offset < 4096,
            "{offset:#x} {width:?}"
        );
        let Some(index) = self.find(function) else { return };
        let old = self.fakes.borrow()[index].config.clone();
        let mut flr = false;
        {
            let fake = &mut self.fakes.borrow_mut()[index];
            for (at, byte) in (usize::from(offset)..).zip(value.to_le_bytes()).take(bytes) {
                let writable = fake.writable[at];
                fake.config[at] =
                    (old[at] & !writable | byte & writable) & !(byte & fake.clears[at]);
                flr |= fake
                    .flr
                    .is_some_and(|(register, bit)| usize::from(register) == at && byte & bit != 0);
            }
        }
        let status = offset == reg::STATUS || offset == reg::COMMAND && bytes == 4;
        let errors = if offset == reg::STATUS { value } else { value >> 16 };
        if status && errors & !u32::from(reg::STATUS_ERRORS) != 0 {
            self.blame(format!("{value:#x} written to the status of {index}"));
        }
        self.react(index, &old);
        if flr {
            self.fakes.borrow_mut()[index].reset();
        }
    }
}

impl DeviceMemory for World {
    fn load(&self, at: Pa, _: Width) -> Result<u64, BusError> {
        let Some((index, offset)) = self.structure(at) else { return Err(BusError) };
        let fake = &self.fakes.borrow()[index];
        Ok(match (offset, fake.select) {
            (20, _) => fake.status.into(),
            (0, select) => select.into(),
            (4, select @ (0 | 1)) => fake.features >> (32 * select) & u64::from(u32::MAX),
            _ => 0,
        })
    }

    fn store(&self, at: Pa, _: Width, value: u64) -> Result<(), BusError> {
        let Some((index, offset)) = self.structure(at) else { return Err(BusError) };
        let fake = &mut self.fakes.borrow_mut()[index];
        match offset {
            0 => fake.select = value as u32,
            20 if fake.resettable => fake.status = value as u8,
            _ => {}
        }
        Ok(())
    }
}

impl Clock for World {
    fn now_us(&self) -> u64 {
        self.time.set(self.time.get() + 100);
        let unattended = self.time.get() - self.attended.get();
        self.longest_unattended.set(self.longest_unattended.get().max(unattended));
        self.time.get()
    }
}

impl World {
    /// The longest time in microseconds that passed without a look at what cannot wait.
    pub fn longest_unattended_us(&self) -> u64 {
        self.longest_unattended.get()
    }
}

impl Patience for World {
    fn meanwhile(&self) {
        self.attended.set(self.time.get());
    }
}

/// QEMU virt's: SPI 3 to 6, swizzled.
pub fn interrupt_map() -> InterruptMap {
    let mut map = InterruptMap { unit_mask: 0x1800, pin_mask: 7, entries: heapless::Vec::new() };
    for device in 0..4_u32 {
        for pin in 1..=4 {
            let intid = 35 + (pin - 1 + device) % 4;
            let interrupt = Interrupt { intid, trigger: Trigger::Level };
            map.entries.push(IntxEntry { unit: device << 11, pin, interrupt }).unwrap();
        }
    }
    map
}

pub const EDU: u32 = 0x11e8_1234;
pub const NVME: u32 = 0x0010_1b36;
pub const VIRTIO_BLK: u32 = 0x1042_1af4;
pub const OHCI: u32 = 0x003f_106b;
pub const ES1370: u32 = 0x5000_1274;
/// `VIRTIO_F_VERSION_1` and `VIRTIO_F_ACCESS_PLATFORM`.
pub const PLATFORM_FEATURES: u64 = 3 << 32;

/// A 1 MiB BAR, MSI, no reset.
pub fn edu(device: u8) -> Fake {
    let mut fake = Fake::new(device, 0, EDU, 0x00_ff00).pin(1).mem32(0, 1 << 20).msi(0x40);
    fake.resettable = false;
    fake
}

/// A 64-bit BAR with MSI-X, function-level reset, and all that must not be used.
pub fn nvme(device: u8) -> Fake {
    Fake::new(device, 0, NVME, 0x01_0802)
        .pin(1)
        .mem64(0, 0x4000, false)
        .msix(0x40)
        .express(0x80, 0, true)
        .power(0x60, false)
        .opaque_ext(0x0001, 0x100)
        .serial(0x148, 0x0102_0304_0506_0708)
        .ats(0x160)
        .pri(0x170)
        .pasid(0x180)
        .sriov(0x190)
}

/// A modern virtio device.
pub fn virtio(device: u8, features: u64) -> Fake {
    Fake::new(device, 0, VIRTIO_BLK, 0x01_8000)
        .pin(1)
        .mem32(1, 0x1000)
        .mem64(4, 0x4000, true)
        .msix(0x98)
        .virtio(0x84, 5, 0, 0, 0)
        .virtio(0x70, 2, 4, 0x3000, 0x1000)
        .virtio(0x60, 4, 4, 0x2000, 0x1000)
        .virtio(0x50, 3, 4, 0x1000, 0x1000)
        .virtio(0x40, 1, 4, 0, 0x1000)
        .express(0xc0, 0, true)
        .features(features)
}

/// A 256-byte BAR.
pub fn ohci(device: u8) -> Fake {
    let mut fake = Fake::new(device, 0, OHCI, 0x0c_0310).pin(1).mem32(0, 0x100);
    fake.resettable = false;
    fake
}

/// An I/O BAR.
pub fn es1370(device: u8) -> Fake {
    let mut fake = Fake::new(device, 0, ES1370, 0x04_0100).pin(1).io(0, 0x40).power(0x44, true);
    fake.resettable = false;
    fake
}
