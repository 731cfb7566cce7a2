//! Finding, silencing, numbering and placing everything on the bus.

use core::fmt;
use core::ops::RangeInclusive;

use platform::dt::Window;

use super::allocate::{BridgeWindows, Passes, Range, Spaces};
use super::quiesce::to_d0;
use super::{
    Bar, BarKind, Bdf, Bridge, Capabilities, Config, ConfigSpace, Function, Kind, Patience, Pin,
    Port, Topology, reg,
};

/// The most bridges between a function and the root.
const MAX_DEPTH: usize = 8;
/// Class and subclass of a host bridge.
const CLASS_HOST_BRIDGE: u32 = 0x0600;

/// Why the bus could not be enumerated. Everything that was found up to there is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciError {
    /// The host bridge's bus range has no number left for what is below a bridge.
    BusNumbers {
        /// The bridge.
        bridge: Bdf,
    },
    /// Too many bridges on top of each other.
    TooDeep {
        /// The lowest bridge.
        bridge: Bdf,
    },
    /// There are more functions than [`super::MAX_FUNCTIONS`].
    TooManyFunctions {
        /// The first that was too many. It and those after it are silent, but not known.
        first: Bdf,
    },
}

impl fmt::Display for PciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BusNumbers { bridge } => {
                write!(
                    f,
                    "no bus number left below the PCI bridge {bridge}: enlarge the host bridge's bus-range"
                )
            }
            Self::TooDeep { bridge } => {
                write!(
                    f,
                    "more than {MAX_DEPTH} PCI bridges on top of each other at {bridge}: remove some"
                )
            }
            Self::TooManyFunctions { first } => {
                write!(
                    f,
                    "more than {} PCI functions, from {first} on: remove some",
                    super::MAX_FUNCTIONS
                )
            }
        }
    }
}

impl core::error::Error for PciError {}

/// Finds every function below one host bridge, and fills `topology`, which is empty.
///
/// `buses` are the host bridge's bus numbers, the root bus first; `windows` its windows. Afterwards every
/// endpoint is in D0, decodes its BARs, and neither masters the bus nor asserts an interrupt; what firmware had
/// switched on is recorded in [`Function::armed_at_boot`]. Bridges pass requests on in both directions. A BAR
/// for which there is no room has no place, and its function decodes no BAR of that kind.
///
/// # Errors
///
/// See [`PciError`].
pub fn enumerate<H: ConfigSpace + Patience>(
    hardware: &H,
    buses: RangeInclusive<u8>,
    windows: &[Window],
    topology: &mut Topology,
) -> Result<(), PciError> {
    let root = *buses.start();
    let mut walk = Walk { hardware, topology, last_used: root, last: *buses.end(), surplus: None };
    let numbered = walk.scan(root, None, 0);
    walk.topology.form_groups();
    numbered?;
    if let Some(first) = walk.surplus {
        return Err(PciError::TooManyFunctions { first });
    }
    let mut spaces = Spaces::new(windows);
    walk.place(None, &mut spaces);
    walk.enable();
    Ok(())
}

struct Walk<'a, H> {
    hardware: &'a H,
    topology: &'a mut Topology,
    /// The last bus number that was given out.
    last_used: u8,
    last: u8,
    surplus: Option<Bdf>,
}

impl<H: ConfigSpace + Patience> Walk<'_, H> {
    fn config(&self, at: Bdf) -> Config<'_, H> {
        Config::new(self.hardware, at)
    }

    /// Finds and silences what is on `bus`, then what is below its bridges.
    fn scan(&mut self, bus: u8, parent: Option<u8>, depth: usize) -> Result<(), PciError> {
        let first = self.topology.functions.len();
        // The whole bus comes first, so that no bridge answers to a bus number that firmware gave it.
        for device in 0..self.devices_below(parent) {
            self.scan_device(bus, device, parent);
        }
        for index in first..self.topology.functions.len() {
            let function = &self.topology.functions[index];
            let (at, Kind::Bridge(_)) = (function.at, function.kind) else { continue };
            if depth == MAX_DEPTH {
                return Err(PciError::TooDeep { bridge: at });
            }
            let secondary = self.last_used.checked_add(1).filter(|&next| next <= self.last);
            let secondary = secondary.ok_or(PciError::BusNumbers { bridge: at })?;
            self.last_used = secondary;
            self.number(at, Bridge { secondary, subordinate: self.last });
            let scanned = self.scan(secondary, u8::try_from(index).ok(), depth + 1);
            let bridge = Bridge { secondary, subordinate: self.last_used };
            self.number(at, bridge);
            self.topology.functions[index].kind = Kind::Bridge(bridge);
            scanned?;
        }
        Ok(())
    }

    /// Returns how many device numbers are worth a look: below a port there is only device 0 (section 7.3.1).
    fn devices_below(&self, parent: Option<u8>) -> u8 {
        let bridge = parent.map(|parent| &self.topology.functions[usize::from(parent)]);
        let port =
            bridge.and_then(|bridge| bridge.capabilities.express).map(|express| express.port);
        if matches!(port, Some(Port::Root | Port::Downstream)) { 1 } else { 32 }
    }

    fn scan_device(&mut self, bus: u8, device: u8, parent: Option<u8>) {
        let mut functions = 1;
        let mut number = 0;
        while number < functions {
            let Some(at) = Bdf::new(bus, device, number) else { return };
            match self.examine(at, parent) {
                Some(multi_function) if number == 0 && multi_function => functions = 8,
                None if number == 0 => return,
                _ => {}
            }
            number += 1;
        }
    }

    /// Silences the function at `at` and notes what it is; returns whether its device has further functions, or
    /// `None` if there is none.
    fn examine(&mut self, at: Bdf, parent: Option<u8>) -> Option<bool> {
        let config = self.config(at);
        let id = config.read32(reg::VENDOR_ID);
        if matches!(id as u16, 0 | u16::MAX) {
            return None;
        }
        let command = config.read16(reg::COMMAND);
        config.write16(reg::COMMAND, command & !reg::COMMAND_BUS_MASTER);
        let header = config.read8(reg::HEADER_TYPE);
        let multi_function = header & reg::HEADER_MULTI_FUNCTION != 0;
        let revision = config.read32(reg::REVISION);
        let kind = match header & !reg::HEADER_MULTI_FUNCTION {
            _ if revision >> 16 == CLASS_HOST_BRIDGE => Kind::HostBridge,
            0 => Kind::Endpoint,
            1 => Kind::Bridge(Bridge { secondary: 0, subordinate: 0 }),
            _ => Kind::Unknown,
        };
        let capabilities = Capabilities::discover(&config);
        if let Some(power) = capabilities.power {
            to_d0(self.hardware, &config, power.offset);
        }
        let bars = match kind {
            Kind::Endpoint => {
                config.write16(reg::COMMAND, reg::COMMAND_INTX_DISABLE);
                config.write32(reg::ROM, 0);
                size_bars(&config, 6)
            }
            Kind::Bridge(_) => {
                config.write16(reg::COMMAND, reg::COMMAND_INTX_DISABLE);
                config.write32(reg::BRIDGE_ROM, 0);
                self.number(at, Bridge { secondary: 0, subordinate: 0 });
                size_bars(&config, 2)
            }
            Kind::HostBridge | Kind::Unknown => [None; 6],
        };
        let isolated = capabilities.isolate(&config);
        let function = Function {
            at,
            kind,
            vendor: id as u16,
            device: (id >> 16) as u16,
            subsystem: if kind == Kind::Endpoint { config.read32(reg::SUBSYSTEM) } else { 0 },
            revision,
            bars,
            pin: Pin::from_register(config.read8(reg::INTERRUPT_PIN)),
            armed_at_boot: command & reg::COMMAND_BUS_MASTER != 0,
            multi_function,
            isolated,
            max_payload: self.payload(&config, kind, &capabilities, parent),
            capabilities,
            parent,
            // The index it is about to get: alone until groups are formed.
            group: self.topology.functions.len() as u8,
        };
        if self.topology.functions.push(function).is_err() {
            self.surplus.get_or_insert(at);
        }
        Some(multi_function)
    }

    /// Returns the largest payload that fits the function and every bridge above it. A bridge keeps the one it
    /// has.
    fn payload(
        &self,
        config: &Config<'_, H>,
        kind: Kind,
        capabilities: &Capabilities,
        parent: Option<u8>,
    ) -> u8 {
        let above = parent.map_or(reg::DEVICE_CAPABILITIES_PAYLOAD as u8, |parent| {
            self.topology.functions[usize::from(parent)].max_payload
        });
        let Some(express) = capabilities.express else { return above };
        let own = if kind == Kind::Endpoint {
            config.read32(express.offset + reg::DEVICE_CAPABILITIES)
                & reg::DEVICE_CAPABILITIES_PAYLOAD
        } else {
            let control = config.read16(express.offset + reg::DEVICE_CONTROL);
            u32::from((control & reg::DEVICE_CONTROL_PAYLOAD) >> 5)
        };
        above.min(own as u8)
    }

    /// Tells a bridge its bus numbers.
    fn number(&self, at: Bdf, bridge: Bridge) {
        let numbers = [at.bus(), bridge.secondary, bridge.subordinate, 0];
        self.config(at).write32(reg::BUS_NUMBERS, u32::from_le_bytes(numbers));
    }

    /// Places the BARs of everything right below `parent`, the largest first so that alignment wastes nothing,
    /// then what is below the bridges among them.
    fn place(&mut self, parent: Option<u8>, spaces: &mut Spaces) {
        for order in (0..u64::BITS).rev() {
            for index in 0..self.topology.functions.len() {
                if self.topology.functions[index].parent == parent {
                    self.place_bars(index, 1 << order, spaces);
                }
            }
        }
        for index in 0..self.topology.functions.len() {
            let function = &self.topology.functions[index];
            if function.parent == parent && matches!(function.kind, Kind::Bridge(_)) {
                let at = function.at;
                let start = spaces.below_bridge(close_windows(&self.config(at)));
                let mut below = start;
                self.place(u8::try_from(index).ok(), &mut below);
                open_windows(&self.config(at), &spaces.close_bridge(&start, &below));
            }
        }
    }

    /// Places those BARs of a function that have `size` bytes.
    fn place_bars(&mut self, index: usize, size: u64, spaces: &mut Spaces) {
        let function = &mut self.topology.functions[index];
        for bar in function.bars.iter_mut().flatten().filter(|bar| bar.size == size) {
            bar.place = spaces.take(bar);
        }
    }

    /// Lets every function decode what was placed, and every bridge pass it on.
    fn enable(&self) {
        for function in &self.topology.functions {
            let config = self.config(function.at);
            match function.kind {
                Kind::Endpoint => {
                    function.write_bars(&config);
                    config.write16(reg::COMMAND, function.decode() | reg::COMMAND_INTX_DISABLE);
                }
                Kind::Bridge(_) => {
                    function.write_bars(&config);
                    // Everything below was silenced one by one: the bridge need not hold it back.
                    let passes = reg::COMMAND_IO | reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER;
                    config.write16(reg::COMMAND, passes | reg::COMMAND_INTX_DISABLE);
                }
                Kind::HostBridge | Kind::Unknown => {}
            }
        }
    }
}

/// Finds the BARs in the first `count` registers, and leaves them 0. The function must not decode meanwhile
/// (section 7.5.1.2.1).
fn size_bars<C: ConfigSpace>(config: &Config<'_, C>, count: usize) -> [Option<Bar>; 6] {
    let mut bars = [None; 6];
    let probe = |index: usize| {
        let offset = reg::BAR0 + 4 * index as u16;
        config.write32(offset, u32::MAX);
        let value = config.read32(offset);
        config.write32(offset, 0);
        value
    };
    let mut index = 0;
    while index < count {
        let low = probe(index);
        let mut registers = 1;
        let bar = if low & 1 != 0 {
            let mask = low & !3;
            // A function may leave out the upper half of an I/O address.
            let mask = if mask >> 16 == 0 { mask | 0xffff_0000 } else { mask };
            let implemented = low & !3 != 0;
            implemented.then(|| (BarKind::Io, false, u64::from(mask.wrapping_neg())))
        } else {
            let prefetchable = low & 8 != 0;
            let mask = low & !0xf;
            match low >> 1 & 3 {
                2 if index + 1 < count => {
                    registers = 2;
                    let mask = u64::from(probe(index + 1)) << 32 | u64::from(mask);
                    Some((BarKind::Memory64, prefetchable, mask.wrapping_neg()))
                }
                // 1 is memory below 1 MiB, long gone: it fits below 4 GiB.
                0 | 1 => Some((BarKind::Memory32, prefetchable, u64::from(mask.wrapping_neg()))),
                _ => None,
            }
        };
        // A size of 0 is a register that is not there; any other that is no power of two is a broken one.
        bars[index] = bar
            .filter(|&(_, _, size)| size.is_power_of_two())
            .map(|(kind, prefetchable, size)| Bar { kind, prefetchable, size, place: None });
        index += registers;
    }
    bars
}

/// Closes all windows of a bridge, and returns which it has.
fn close_windows<C: ConfigSpace>(config: &Config<'_, C>) -> Passes {
    config.write16(reg::IO_WINDOW, 0x00f0);
    config.write32(reg::IO_WINDOW_UPPER, 0);
    config.write32(reg::MEMORY_WINDOW, 0x0000_fff0);
    config.write32(reg::PREFETCH_WINDOW, 0x0000_fff0);
    config.write32(reg::PREFETCH_BASE_UPPER, u32::MAX);
    config.write32(reg::PREFETCH_LIMIT_UPPER, 0);
    let prefetch = config.read16(reg::PREFETCH_WINDOW);
    Passes {
        io: config.read8(reg::IO_WINDOW) & 0xf0 != 0,
        prefetch64: prefetch & 0xfff0 != 0 && prefetch & 0xf == 1,
    }
}

/// Opens the windows that are needed.
fn open_windows<C: ConfigSpace>(config: &Config<'_, C>, windows: &BridgeWindows) {
    if let Some(Range { first, last }) = windows.io {
        // Ports fit into 16 bits, their upper four are what a window is made of.
        config.write16(reg::IO_WINDOW, (first >> 8) as u16 & 0xf0 | last as u16 & 0xf000);
    }
    let units =
        |range: Range| (range.first >> 16) as u32 & 0xfff0 | range.last as u32 & 0xfff0_0000;
    if let Some(range) = windows.memory {
        config.write32(reg::MEMORY_WINDOW, units(range));
    }
    if let Some(range) = windows.prefetch {
        config.write32(reg::PREFETCH_BASE_UPPER, (range.first >> 32) as u32);
        config.write32(reg::PREFETCH_LIMIT_UPPER, (range.last >> 32) as u32);
        config.write32(reg::PREFETCH_WINDOW, units(range));
    }
}
