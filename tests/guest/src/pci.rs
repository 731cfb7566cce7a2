//! PCI: configuration space, the functions of bus 0 and their memory BARs.

use core::fmt;
use core::ops::Range;

use crate::arch::mem;
use crate::machine::{Bridge, Machine};

/// Offset of the vendor and device IDs.
pub const ID: u64 = 0x00;
/// Offset of the command register.
pub const COMMAND: u64 = 0x04;
/// Command register: the function decodes its I/O BARs.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command register: the function decodes its memory BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: the function may start DMA.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
const HEADER_TYPE: u64 = 0x0e;
const BAR0: u64 = 0x10;
const INTERRUPT_PIN: u64 = 0x3d;

/// A function on bus 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Function {
    device: u8,
    function: u8,
    config: u64,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.device, self.function)
    }
}

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which one, 0 to 5; a 64-bit BAR takes the next one too.
    pub index: u8,
    /// Bytes, a power of two.
    pub size: u64,
    /// Whether it is a 64-bit BAR.
    pub is_64bit: bool,
}

impl Function {
    /// The function `device.function` of bus 0, whether there is one or not.
    pub fn at(bridge: &Bridge, device: u8, function: u8) -> Self {
        let config = bridge.ecam + (u64::from(device) << 15 | u64::from(function) << 12);
        Self { device, function, config }
    }

    /// The address of the configuration register at `offset`.
    pub fn register(self, offset: u64) -> u64 {
        self.config + offset
    }

    /// Its requester ID.
    pub fn requester_id(self) -> u32 {
        u32::from(self.device) << 3 | u32::from(self.function)
    }

    /// Vendor ID in the low half, device ID in the high half.
    pub fn id(self) -> u32 {
        mem::read32(self.register(ID))
    }

    /// Sets bits in the command register.
    pub fn enable(self, bits: u16) {
        let command = mem::read16(self.register(COMMAND));
        mem::write16(self.register(COMMAND), command | bits);
    }

    /// Clears bits in the command register.
    pub fn disable(self, bits: u16) {
        let command = mem::read16(self.register(COMMAND));
        mem::write16(self.register(COMMAND), command & !bits);
    }

    /// The INTID of its INTx line, if it has one.
    pub fn intx(self, bridge: &Bridge) -> Option<u32> {
        let pin = mem::read8(self.register(INTERRUPT_PIN));
        let lines = &bridge.intx[usize::from(self.device) % 4];
        usize::from(pin).checked_sub(1).and_then(|pin| *lines.get(pin)?)
    }

    /// Finds out what the BAR at `index` is; its value is kept, decoding must be off.
    ///
    /// I/O BARs and absent ones are `None`.
    pub fn bar(self, index: u8) -> Option<Bar> {
        let register = self.register(BAR0 + u64::from(index) * 4);
        let size_of = |register| {
            let old = mem::read32(register);
            mem::write32(register, u32::MAX);
            let mask = mem::read32(register);
            mem::write32(register, old);
            mask
        };
        let low = size_of(register);
        if low == 0 || low & 1 != 0 {
            return None;
        }
        let is_64bit = low & 6 == 4 && index < 5;
        let high = if is_64bit { size_of(register + 4) } else { u32::MAX };
        let mask = u64::from(high) << 32 | u64::from(low & !0xf);
        Some(Bar { index, size: mask.wrapping_neg(), is_64bit })
    }

    /// Writes the BAR's address.
    pub fn set_bar(self, bar: Bar, address: u64) {
        let register = self.register(BAR0 + u64::from(bar.index) * 4);
        mem::write32(register, address as u32);
        if bar.is_64bit {
            mem::write32(register + 4, (address >> 32) as u32);
        }
    }

    /// Reads the BAR's address back.
    pub fn bar_address(self, bar: Bar) -> u64 {
        let register = self.register(BAR0 + u64::from(bar.index) * 4);
        let high = if bar.is_64bit { mem::read32(register + 4) } else { 0 };
        u64::from(high) << 32 | u64::from(mem::read32(register) & !0xf)
    }

    /// Places the I/O BAR at `index` at a port that is a multiple of its size.
    pub fn set_io_bar(self, index: u8, port: u64) {
        mem::write32(self.register(BAR0 + u64::from(index) * 4), port as u32);
    }

    /// Its memory BARs.
    pub fn bars(self) -> impl Iterator<Item = Bar> {
        let mut next = 0;
        core::iter::from_fn(move || {
            while next < 6 {
                let bar = self.bar(next);
                next += if bar.is_some_and(|bar| bar.is_64bit) { 2 } else { 1 };
                if bar.is_some() {
                    return bar;
                }
            }
            None
        })
    }
}

/// The functions on bus 0.
pub fn functions(bridge: &Bridge) -> impl Iterator<Item = Function> {
    (0..32).flat_map(move |device| {
        let first = Function::at(bridge, device, 0);
        let present = first.id() != u32::MAX;
        let several = present && mem::read8(first.register(HEADER_TYPE)) & 0x80 != 0;
        let count = if several { 8 } else { u8::from(present) };
        (0..count)
            .map(move |function| Function::at(bridge, device, function))
            .filter(|function| function.id() != u32::MAX)
    })
}

/// The host bridge and a cursor in its 32-bit window.
#[derive(Debug)]
pub struct Bus<'a> {
    /// The host bridge.
    pub bridge: &'a Bridge,
    free: Range<u64>,
}

impl<'a> Bus<'a> {
    /// The machine's bus, with nothing assigned yet.
    ///
    /// # Errors
    ///
    /// A reason if there is no host bridge.
    pub fn new(machine: &'a Machine) -> Result<Self, &'static str> {
        let bridge = machine.bridge.as_ref().ok_or("no PCI host bridge")?;
        Ok(Self { bridge, free: bridge.mem32.clone() })
    }

    /// Gives every memory BAR of `function` an address and lets it decode.
    ///
    /// # Errors
    ///
    /// A reason if the window is full.
    pub fn assign(&mut self, function: Function) -> Result<(), &'static str> {
        function.disable(COMMAND_MEMORY);
        for bar in function.bars() {
            let address = self.take(bar.size)?;
            function.set_bar(bar, address);
        }
        function.enable(COMMAND_MEMORY);
        Ok(())
    }

    /// Takes `size` bytes, a power of two, from the window.
    ///
    /// # Errors
    ///
    /// A reason if the window is full.
    pub fn take(&mut self, size: u64) -> Result<u64, &'static str> {
        let address = self.free.start.next_multiple_of(size);
        let end = address.checked_add(size).filter(|end| *end <= self.free.end);
        self.free.start = end.ok_or("the PCI memory window is full")?;
        Ok(address)
    }
}
