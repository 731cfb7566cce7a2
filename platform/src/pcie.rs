//! How PCI functions are named: by address on the bus, by StreamID at the SMMU, by DeviceID at the ITS, and
//! by interrupt line.

use core::fmt;
use core::str::FromStr;

use heapless::Vec;
use serde::{Deserialize, Deserializer};
use smmu::addr::StreamId;

use crate::dt::{Interrupt, Phandle};

/// The most entries of one `iommu-map` or `msi-map`.
pub const MAX_MAP_ENTRIES: usize = 16;
/// The most entries of one `interrupt-map`: four pins of sixteen slots.
pub const MAX_INTX_ENTRIES: usize = 64;

/// A function's address: bus, device, function. Written `BB:DD.F` in lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Bdf(u16);

impl Bdf {
    /// Names `function` of `device` on `bus`, or `None` if there is no such device or function number.
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self((bus as u16) << 8 | (device as u16) << 3 | function as u16))
        } else {
            None
        }
    }

    /// Names the function that puts `requester_id` on the bus.
    pub const fn from_requester_id(requester_id: u16) -> Self {
        Self(requester_id)
    }

    /// Returns what the function puts on the bus to say who asks.
    pub const fn requester_id(self) -> u16 {
        self.0
    }

    /// Returns the bus number.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Returns the device number, 0 to 31.
    pub const fn device(self) -> u8 {
        (self.0 >> 3 & 0x1f) as u8
    }

    /// Returns the function number, 0 to 7.
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// Returns the offset in bytes of the function's 4 KiB of configuration space in an ECAM that starts at
    /// bus 0.
    pub const fn ecam_offset(self) -> u64 {
        (self.0 as u64) << 12
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not the address of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BdfError {
    /// It does not have the form of one.
    Form,
    /// Its device number is above 1f.
    Device,
    /// Its function number is above 7.
    Function,
}

impl fmt::Display for BdfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "not a PCI address: write bus:device.function in hex, such as 00:02.0",
            Self::Device => "no such PCI device number: the largest is 1f",
            Self::Function => "no such PCI function number: the largest is 7",
        })
    }
}

impl core::error::Error for BdfError {}

impl FromStr for Bdf {
    type Err = BdfError;

    fn from_str(text: &str) -> Result<Self, BdfError> {
        let form = |part: &str, digits: usize| {
            // `from_str_radix` alone would let a sign through.
            if part.len() == digits && part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                u8::from_str_radix(part, 16).map_err(|_| BdfError::Form)
            } else {
                Err(BdfError::Form)
            }
        };
        let (bus, rest) = text.split_once(':').ok_or(BdfError::Form)?;
        let (device, function) = rest.split_once('.').ok_or(BdfError::Form)?;
        let (bus, device, function) = (form(bus, 2)?, form(device, 2)?, form(function, 1)?);
        if device > 0x1f {
            return Err(BdfError::Device);
        }
        Self::new(bus, device, function).ok_or(BdfError::Function)
    }
}

impl<'de> Deserialize<'de> for Bdf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::deserialize(deserializer, "a PCI address such as \"00:02.0\"")
    }
}

/// One entry of an `iommu-map` or `msi-map`: `length` requester IDs from `rid_base` on become as many
/// identifiers from `base` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMapEntry {
    /// The first requester ID, after masking.
    pub rid_base: u32,
    /// Who the identifiers mean something to: an SMMU or an ITS.
    pub controller: Phandle,
    /// The identifier of `rid_base`.
    pub base: u32,
    /// How many.
    pub length: u32,
}

/// A map from requester IDs to the identifiers that a controller sees, as the `iommu-map` and `msi-map`
/// bindings define it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// The bits of the requester ID that count (`iommu-map-mask`, `msi-map-mask`).
    pub mask: u32,
    /// The entries, which do not overlap.
    pub entries: Vec<IdMapEntry, MAX_MAP_ENTRIES>,
}

impl Default for IdMap {
    fn default() -> Self {
        Self { mask: u32::MAX, entries: Vec::new() }
    }
}

impl IdMap {
    /// Translates a requester ID, or returns `None` if no entry covers it.
    pub fn translate(&self, bdf: Bdf) -> Option<(Phandle, u32)> {
        let masked = u32::from(bdf.requester_id()) & self.mask;
        self.entries.iter().find_map(|entry| {
            let offset = masked.checked_sub(entry.rid_base)?;
            let id = entry.base.checked_add(offset)?;
            (offset < entry.length).then_some((entry.controller, id))
        })
    }
}

/// The requester-ID to StreamID map of one host bridge (`iommu-map`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IommuMap(pub IdMap);

impl IommuMap {
    /// Returns the SMMU behind which the function is, and its StreamID there; `None` if its DMA passes
    /// no SMMU.
    pub fn stream(&self, bdf: Bdf) -> Option<(Phandle, StreamId)> {
        self.0.translate(bdf).map(|(smmu, id)| (smmu, StreamId(id)))
    }
}

/// The requester-ID to DeviceID map of one host bridge (`msi-map`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MsiMap(pub IdMap);

impl MsiMap {
    /// Returns the ITS to which the function's MSIs go, and its DeviceID there.
    pub fn device_id(&self, bdf: Bdf) -> Option<(Phandle, u32)> {
        self.0.translate(bdf)
    }
}

/// An interrupt pin, numbered as in the Interrupt Pin register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Pin {
    /// INTA#.
    A = 1,
    /// INTB#.
    B,
    /// INTC#.
    C,
    /// INTD#.
    D,
}

impl Pin {
    /// Every pin, in order.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// Decodes the Interrupt Pin register; `None` for 0 (the function has no pin) and for reserved values.
    pub const fn from_register(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::A),
            2 => Some(Self::B),
            3 => Some(Self::C),
            4 => Some(Self::D),
            _ => None,
        }
    }

    /// Returns the pin on the upper side of a bridge, or the line of a root bus, that this pin of `device`
    /// is wired to.
    pub const fn swizzle(self, device: u8) -> Self {
        Self::ALL[(self as usize - 1 + device as usize) % 4]
    }
}

/// One entry of an `interrupt-map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntxEntry {
    /// The first cell of the unit address, after masking: bus in bits 23:16, device in 15:11, function in 10:8.
    pub unit: u32,
    /// The pin's number, after masking.
    pub pin: u32,
    /// Where it arrives.
    pub interrupt: Interrupt,
}

/// How the interrupt pins of one host bridge reach the interrupt controller (`interrupt-map`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterruptMap {
    /// The bits of the first unit address cell that count (`interrupt-map-mask`).
    pub unit_mask: u32,
    /// The bits of the pin's number that count.
    pub pin_mask: u32,
    /// The entries.
    pub entries: Vec<IntxEntry, MAX_INTX_ENTRIES>,
}

impl InterruptMap {
    /// Returns the interrupt that `pin` of the function at `bdf` raises, for a function on the root bus. Below
    /// bridges, [`Pin::swizzle`] once per bridge and ask for the bridge that is on the root bus.
    pub fn interrupt(&self, bdf: Bdf, pin: Pin) -> Option<Interrupt> {
        let unit = u32::from(bdf.requester_id()) << 8 & self.unit_mask;
        let pin = pin as u32 & self.pin_mask;
        self.entries
            .iter()
            .find(|entry| entry.unit == unit && entry.pin == pin)
            .map(|entry| entry.interrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for (text, requester_id) in [("00:02.0", 0x10), ("ff:1f.7", 0xffff), ("0a:00.3", 0xa03)] {
            let bdf: Bdf = text.parse().unwrap();
            assert_eq!(bdf.requester_id(), requester_id);
            assert_eq!(bdf.to_string(), text);
            assert_eq!(Bdf::new(bdf.bus(), bdf.device(), bdf.function()), Some(bdf));
        }
        assert_eq!("0A:1F.0".parse::<Bdf>().unwrap().to_string(), "0a:1f.0");
        assert_eq!("01:02.3".parse::<Bdf>().unwrap().ecam_offset(), 0x11_3000);
        assert_eq!(Bdf::new(0, 32, 0), None);
        assert_eq!(Bdf::new(0, 0, 8), None);
    }

    #[test]
    fn other_texts_are_refused_for_their_own_reason() {
        for text in
            ["", "00:02", "00.02.0", "0:2.0", "+1:02.0", "00:02.00", "0000:00:02.0", "00:02.g"]
        {
            assert_eq!(text.parse::<Bdf>(), Err(BdfError::Form), "{text}");
        }
        assert_eq!("00:20.0".parse::<Bdf>(), Err(BdfError::Device));
        assert_eq!("00:02.8".parse::<Bdf>(), Err(BdfError::Function));
    }

    #[test]
    fn pins_turn_by_one_per_slot() {
        assert_eq!(Pin::A.swizzle(0), Pin::A);
        assert_eq!(Pin::A.swizzle(1), Pin::B);
        assert_eq!(Pin::C.swizzle(30), Pin::A);
        assert_eq!(Pin::D.swizzle(1), Pin::A);
        assert_eq!(Pin::from_register(0), None);
        assert_eq!(Pin::from_register(4), Some(Pin::D));
        assert_eq!(Pin::from_register(5), None);
    }
}
