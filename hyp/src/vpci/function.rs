//! One function as its guest sees it.

use super::capability::{Found, List, Shown};
use crate::pci::registers as reg;
use crate::pci::{Bar, BarKind, Bdf, Config, ConfigSpace, Function, Method, ResetPolicy};

/// The command bits that a guest can set.
const COMMAND_WRITABLE: u16 =
    reg::COMMAND_IO | reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER | reg::COMMAND_INTX_DISABLE;
/// A device serial number of version 1, with nothing after it.
const SERIAL_HEADER: u32 = 1 << 16 | reg::EXT_SERIAL as u32;
/// The device type "root complex integrated endpoint": what has no port above it, and hence no link to look
/// after.
const TYPE_INTEGRATED: u16 = 9;
/// The largest encoding of a read request size that is not reserved.
const MAX_READ_REQUEST: u16 = 5;

/// What a write asks for beyond the function's own state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    /// A BAR, or whether BARs decode, changed.
    pub(super) moved: bool,
    /// The guest asked for a reset.
    pub(super) reset: Option<Method>,
}

/// A function of the VM.
pub(super) struct VirtualFunction {
    pub(super) physical: Function,
    /// Where the guest sees it.
    pub(super) at: Bdf,
    /// Whether the guest's bus master bit reaches it.
    pub(super) admitted: bool,
    /// Whether a reset lost it: nothing decodes, nothing masters the bus.
    pub(super) lost: bool,
    /// Where each BAR is in the guest's address space now, if it is in sight.
    pub(super) shown: [Option<smmu::addr::Ipa>; 6],
    header_type: u8,
    pin: u8,
    policy: ResetPolicy,
    list: List,
    state: State,
}

/// What a reset of the function forgets.
#[derive(Clone, Debug, Default)]
struct State {
    command: u16,
    cache_line: u8,
    interrupt_line: u8,
    /// The address bits of each BAR register.
    bars: [u32; 6],
    /// Whether it is in D3hot.
    asleep: bool,
}

impl VirtualFunction {
    /// `shared` says that the guest sees further functions in the slot, `wired` that the pin leads somewhere.
    pub(super) fn new<H: ConfigSpace>(
        hardware: &H,
        physical: &Function,
        policy: ResetPolicy,
        at: Bdf,
        shared: bool,
        wired: bool,
    ) -> Self {
        Self {
            at,
            admitted: false,
            lost: false,
            shown: [None; 6],
            header_type: if shared { reg::HEADER_MULTI_FUNCTION } else { 0 },
            pin: physical.pin.filter(|_| wired).map_or(0, |pin| pin as u8),
            policy,
            list: List::of(&Config::new(hardware, physical.at), physical, policy),
            state: State::default(),
            physical: physical.clone(),
        }
    }

    /// The guest's own bus master bit.
    pub(super) const fn bus_master(&self) -> bool {
        self.state.command & reg::COMMAND_BUS_MASTER != 0
    }

    /// Clears the guest's bus master bit, and keeps it from the function.
    pub(super) const fn close(&mut self) {
        self.admitted = false;
        self.state.command &= !reg::COMMAND_BUS_MASTER;
    }

    /// Returns to what a reset leaves behind.
    pub(super) fn forget(&mut self) {
        self.state = State::default();
    }

    /// Puts back what the guest changed in the function itself, and clears the errors that it noted.
    pub(super) fn restore<H: ConfigSpace>(&self, hardware: &H) {
        let config = self.config(hardware);
        config.write16(reg::STATUS, reg::STATUS_ERRORS);
        if let Some(express) = self.physical.capabilities.express {
            config.write16(express.offset + reg::DEVICE_CONTROL, express.control);
            config.write16(express.offset + reg::DEVICE_STATUS, reg::DEVICE_STATUS_ERRORS);
        }
    }

    /// Brings the physical command register in line. BARs decode always: what the guest sees of them is a
    /// matter of stage 2.
    pub(super) fn apply_command<H: ConfigSpace>(&self, hardware: &H) {
        let mut command = self.physical.decode() | self.state.command & reg::COMMAND_INTX_DISABLE;
        if self.admitted && !self.lost && !self.state.asleep {
            command |= self.state.command & reg::COMMAND_BUS_MASTER;
        }
        self.config(hardware).write16(reg::COMMAND, command);
    }

    /// Returns BAR `index` and the bus address at which the guest wants it, if it decodes there.
    pub(super) fn decoding(&self, index: usize) -> Option<(&Bar, u64)> {
        let bar = self.bar(index)?;
        let enable = if bar.is_memory() { reg::COMMAND_MEMORY } else { reg::COMMAND_IO };
        let awake = !self.lost && !self.state.asleep;
        if !awake || self.state.command & enable == 0 {
            return None;
        }
        let low = u64::from(self.state.bars[index]);
        let high = match bar.kind {
            BarKind::Memory64 => u64::from(*self.state.bars.get(index + 1)?),
            BarKind::Io | BarKind::Memory32 => 0,
        };
        Some((bar, high << 32 | low))
    }

    /// Returns BAR `index` as the guest sees it: one that was not placed is not there.
    fn bar(&self, index: usize) -> Option<&Bar> {
        self.physical.bars.get(index)?.as_ref().filter(|bar| bar.place.is_some())
    }

    fn config<'h, H: ConfigSpace>(&self, hardware: &'h H) -> Config<'h, H> {
        Config::new(hardware, self.physical.at)
    }

    /// Reads the aligned word at `register`.
    pub(super) fn read<H: ConfigSpace>(&self, hardware: &H, register: u16) -> u32 {
        let config = self.config(hardware);
        match register {
            reg::VENDOR_ID => word(self.physical.vendor, self.physical.device),
            reg::COMMAND => word(self.state.command, self.status(&config)),
            reg::REVISION => self.physical.revision,
            reg::CACHE_LINE => u32::from_le_bytes([self.state.cache_line, 0, self.header_type, 0]),
            reg::BAR0..reg::BARS_END => self.bar_register(usize::from(register - reg::BAR0) / 4),
            reg::SUBSYSTEM => self.physical.subsystem,
            reg::CAPABILITIES => self.list.first().into(),
            reg::INTERRUPT_LINE => {
                let line = u16::from_le_bytes([self.state.interrupt_line, self.pin]);
                word(line, config.read16(reg::MIN_GRANT))
            }
            reg::STANDARD_START..reg::EXTENDED_START => self
                .list
                .find(register)
                .map_or(0, |found| found.present(self.read_capability(&config, &found))),
            reg::EXTENDED_START..reg::SPACE_END => {
                self.read_serial(&config, register - reg::EXTENDED_START)
            }
            _ => 0,
        }
    }

    fn status<H: ConfigSpace>(&self, config: &Config<'_, H>) -> u16 {
        let list = if self.list.first() == 0 { 0 } else { reg::STATUS_CAPABILITIES };
        config.read16(reg::STATUS) & reg::STATUS_READABLE | list
    }

    fn bar_register(&self, register: usize) -> u32 {
        let flags = self.bar(register).map_or(0, Bar::flags);
        self.state.bars[register] | flags
    }

    fn read_capability<H: ConfigSpace>(&self, config: &Config<'_, H>, found: &Found) -> u32 {
        let start = found.start;
        match (found.what, found.inside) {
            (Shown::Power, 0) => word(
                0,
                config.read16(start + reg::POWER_CAPABILITIES) & reg::POWER_CAPABILITIES_READABLE,
            ),
            (Shown::Power, reg::POWER_CONTROL) => {
                let state = if self.state.asleep { reg::POWER_D3 } else { 0 };
                let keeps = if self.forgets_in_sleep() { 0 } else { reg::POWER_NO_SOFT_RESET };
                u32::from(state | keeps)
            }
            (Shown::Express, 0) => {
                word(0, express_flags(config.read16(start + reg::EXPRESS_FLAGS)))
            }
            (Shown::Express, reg::DEVICE_CAPABILITIES) => self.device_capabilities(config, start),
            (Shown::Express, reg::DEVICE_CONTROL) => word(
                config.read16(start + reg::DEVICE_CONTROL) & reg::DEVICE_CONTROL_WRITABLE,
                config.read16(start + reg::DEVICE_STATUS) & reg::DEVICE_STATUS_READABLE,
            ),
            (Shown::Advanced, 0) => u32::from_le_bytes([
                0,
                0,
                reg::ADVANCED_LENGTH as u8,
                reg::ADVANCED_CAPABILITIES_RESET,
            ]),
            (Shown::Advanced, reg::ADVANCED_CONTROL) => {
                let status =
                    config.read8(start + reg::ADVANCED_STATUS) & reg::ADVANCED_STATUS_PENDING;
                u32::from_le_bytes([0, status, 0, 0])
            }
            (Shown::Virtio, inside) => config.read32(start + inside),
            _ => 0,
        }
    }

    fn device_capabilities<H: ConfigSpace>(&self, config: &Config<'_, H>, start: u16) -> u32 {
        let mut readable = reg::DEVICE_CAPABILITIES_READABLE;
        if self.policy == ResetPolicy::BusMaster {
            readable &= !reg::DEVICE_CAPABILITIES_FLR;
        }
        config.read32(start + reg::DEVICE_CAPABILITIES) & readable
            | u32::from(self.physical.max_payload)
    }

    /// Whether going to D3hot and back resets the function.
    fn forgets_in_sleep(&self) -> bool {
        self.policy == ResetPolicy::Auto
            && self.physical.capabilities.power.is_some_and(|power| power.forgets)
    }

    /// Reads the extended space, `inside` bytes from its start: a serial number or nothing.
    fn read_serial<H: ConfigSpace>(&self, config: &Config<'_, H>, inside: u16) -> u32 {
        match (self.physical.capabilities.serial, inside) {
            (Some(_), 0) => SERIAL_HEADER,
            (Some(serial), 4 | 8) => config.read32(serial + inside),
            _ => 0,
        }
    }

    /// Writes those bits of the aligned word at `register` that are set in `mask`, whole bytes of which at
    /// least one;
    /// `value` has no others.
    pub(super) fn write<H: ConfigSpace>(
        &mut self,
        hardware: &H,
        register: u16,
        value: u32,
        mask: u32,
    ) -> Change {
        let config = Config::new(hardware, self.physical.at);
        match register {
            reg::COMMAND => {
                let errors = (value >> 16) as u16 & reg::STATUS_ERRORS;
                if errors != 0 {
                    config.write16(reg::STATUS, errors);
                }
                self.write_command(hardware, merge(self.state.command.into(), value, mask) as u16)
            }
            reg::CACHE_LINE => {
                self.state.cache_line = merge(self.state.cache_line.into(), value, mask) as u8;
                Change::default()
            }
            reg::BAR0..reg::BARS_END => {
                self.write_bar(usize::from(register - reg::BAR0) / 4, value, mask)
            }
            reg::INTERRUPT_LINE => {
                self.state.interrupt_line =
                    merge(self.state.interrupt_line.into(), value, mask) as u8;
                Change::default()
            }
            reg::STANDARD_START..reg::EXTENDED_START => match self.list.find(register) {
                Some(found) => self.write_capability(hardware, &config, &found, value, mask),
                None => Change::default(),
            },
            _ => Change::default(),
        }
    }

    fn write_command<H: ConfigSpace>(&mut self, hardware: &H, command: u16) -> Change {
        let changed = self.state.command ^ command & COMMAND_WRITABLE;
        if changed == 0 {
            return Change::default();
        }
        self.state.command ^= changed;
        self.apply_command(hardware);
        Change { moved: changed & (reg::COMMAND_IO | reg::COMMAND_MEMORY) != 0, reset: None }
    }

    fn write_bar(&mut self, register: usize, value: u32, mask: u32) -> Change {
        let address_bits =
            match (self.bar(register), register.checked_sub(1).and_then(|low| self.bar(low))) {
                (Some(bar), _) => bar.size.wrapping_neg() as u32,
                (None, Some(bar)) if bar.kind == BarKind::Memory64 => {
                    (bar.size.wrapping_neg() >> 32) as u32
                }
                (None, _) => 0,
            };
        let old = self.state.bars[register];
        let new = merge(old, value, mask) & address_bits;
        self.state.bars[register] = new;
        Change { moved: new != old, reset: None }
    }

    fn write_capability<H: ConfigSpace>(
        &mut self,
        hardware: &H,
        config: &Config<'_, H>,
        found: &Found,
        value: u32,
        mask: u32,
    ) -> Change {
        let reset = match (found.what, found.inside) {
            (Shown::Power, reg::POWER_CONTROL) if mask & 0xff != 0 => {
                return self.write_power(hardware, value as u16 & reg::POWER_STATE);
            }
            (Shown::Express, reg::DEVICE_CONTROL) => {
                self.write_device_control(config, found.start, value, mask)
            }
            (Shown::Advanced, reg::ADVANCED_CONTROL) => {
                value as u8 & reg::ADVANCED_CONTROL_FLR != 0
            }
            _ => false,
        };
        Change { moved: false, reset: reset.then_some(Method::Flr) }
    }

    /// Moves the function between D0 and D3hot, as the guest sees it. The function itself stays in D0, where it
    /// answers to EL2, and is reset on the way back if that is what it does.
    fn write_power<H: ConfigSpace>(&mut self, hardware: &H, state: u16) -> Change {
        match (self.state.asleep, state) {
            (true, 0) if self.forgets_in_sleep() => {
                return Change { moved: true, reset: Some(Method::Pm) };
            }
            (true, 0) => self.state.asleep = false,
            (false, reg::POWER_D3) => self.state.asleep = true,
            // D1 and D2 do not exist here, and the same state again changes nothing.
            _ => return Change::default(),
        }
        self.apply_command(hardware);
        Change { moved: true, reset: None }
    }

    /// Returns whether the guest asked for a reset.
    fn write_device_control<H: ConfigSpace>(
        &self,
        config: &Config<'_, H>,
        start: u16,
        value: u32,
        mask: u32,
    ) -> bool {
        let errors = (value >> 16) as u16 & reg::DEVICE_STATUS_ERRORS;
        if errors != 0 {
            config.write16(start + reg::DEVICE_STATUS, errors);
        }
        let flr = self.policy == ResetPolicy::Auto
            && self.physical.capabilities.express.is_some_and(|express| express.flr);
        if flr && value as u16 & reg::DEVICE_CONTROL_FLR != 0 {
            return true;
        }
        let writable = reg::DEVICE_CONTROL_WRITABLE & mask as u16;
        if writable != 0 {
            let old = config.read16(start + reg::DEVICE_CONTROL) & !reg::DEVICE_CONTROL_FLR;
            let wanted = old & !writable | value as u16 & writable;
            config.write16(start + reg::DEVICE_CONTROL, self.confine_device_control(old, wanted));
        }
        false
    }

    /// Keeps sizes to what the path can carry and the specification defines.
    fn confine_device_control(&self, old: u16, wanted: u16) -> u16 {
        let payload =
            (wanted & reg::DEVICE_CONTROL_PAYLOAD).min(u16::from(self.physical.max_payload) << 5);
        let read_request = wanted & reg::DEVICE_CONTROL_READ_REQUEST;
        let read_request = if read_request >> 12 > MAX_READ_REQUEST {
            old & reg::DEVICE_CONTROL_READ_REQUEST
        } else {
            read_request
        };
        wanted & !(reg::DEVICE_CONTROL_PAYLOAD | reg::DEVICE_CONTROL_READ_REQUEST)
            | payload
            | read_request
    }
}

/// Shows an endpoint below a port as one on the root bus, where it seems to be, without MSI.
const fn express_flags(flags: u16) -> u16 {
    flags & reg::EXPRESS_VERSION | TYPE_INTEGRATED << 4
}

const fn word(low: u16, high: u16) -> u32 {
    (high as u32) << 16 | low as u32
}

const fn merge(old: u32, value: u32, mask: u32) -> u32 {
    old & !mask | value & mask
}
