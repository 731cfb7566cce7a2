//! Every structure of a Non-secure SMMUv3.0 to 3.4, as the architecture lays it out: the stream table entry, the
//! context descriptor, commands, event records and registers.
//!
//! What this crate writes for its guests is far less, and has types of its own that cannot say more:
//! [`crate::ste::Ste`], [`crate::cmd::Command`], [`crate::guest`]. This is for those who are on the other side of
//! an SMMU, or watch one: drivers of bare-metal guests, models, fuzzers. The hypervisor's image has nothing of it but
//! the numbers and names of the commands that it issues.
//!
//! Encoding is total: a value that is too wide stays inside its field. Decoding is strict: a reserved encoding or a
//! set bit outside every field is [`Reserved`], also where an SMMU would not look. So whatever decodes is encoded
//! to the same words again. Bits are numbered through the structure as the specification does.

use core::fmt;

pub mod cd;
pub mod command;
pub mod event;
pub mod register;
pub mod ste;

use crate::addr::{Iova, Ipa, Pa, StreamId, Vmid};

/// Where a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the specification.
    pub name: &'static str,
    /// Its highest bit.
    pub high: usize,
    /// Its lowest bit.
    pub low: usize,
}

impl Field {
    /// The field's bits in its word, which no field leaves.
    const fn mask(&self) -> u64 {
        u64::MAX >> (63 - (self.high - self.low)) << (self.low % 64)
    }
}

/// Why words are not what the architecture defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// This field has an encoding that is reserved, alone or together with another field.
    Encoding(&'static str),
    /// These bits of this 64-bit word lie outside all fields.
    Bits {
        /// Which word.
        word: usize,
        /// Its bits that should be 0.
        bits: u64,
    },
    /// There is no command or event of this number.
    Number(u8),
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encoding(field) => write!(f, "{field} has a reserved encoding"),
            Self::Bits { word, bits } => write!(f, "bits {bits:#x} of word {word} are reserved"),
            Self::Number(number) => write!(f, "number {number:#04x} is reserved"),
        }
    }
}

impl core::error::Error for Reserved {}

/// What a field can hold. `low` is the field's lowest bit within its word: an address is where it belongs.
pub trait Value: Copy {
    /// Returns the value of a field's bits, or `None` if they are reserved.
    fn from_bits(bits: u64, low: u32) -> Option<Self>;
    /// Returns the field's bits.
    fn to_bits(self, low: u32) -> u64;
}

impl Value for bool {
    fn from_bits(bits: u64, _: u32) -> Option<Self> {
        Some(bits != 0)
    }

    fn to_bits(self, _: u32) -> u64 {
        self.into()
    }
}

macro_rules! number {
    ($($type:ty)*) => {$(
        impl Value for $type {
            fn from_bits(bits: u64, _: u32) -> Option<Self> {
                bits.try_into().ok()
            }

            fn to_bits(self, _: u32) -> u64 {
                self.into()
            }
        }
    )*};
}

number!(u8 u16 u32 u64);

macro_rules! identifier {
    ($($type:ident)*) => {$(
        impl Value for $type {
            fn from_bits(bits: u64, _: u32) -> Option<Self> {
                bits.try_into().ok().map(Self)
            }

            fn to_bits(self, _: u32) -> u64 {
                self.0.into()
            }
        }
    )*};
}

identifier!(StreamId Vmid);

/// An address in the space that the rest of its structure says: physical, or intermediate physical where a stage 2
/// translates it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address(pub u64);

impl From<Pa> for Address {
    fn from(pa: Pa) -> Self {
        Self(pa.raw())
    }
}

impl From<Ipa> for Address {
    fn from(ipa: Ipa) -> Self {
        Self(ipa.raw())
    }
}

impl From<Iova> for Address {
    fn from(iova: Iova) -> Self {
        Self(iova.raw())
    }
}

impl Value for Address {
    fn from_bits(bits: u64, low: u32) -> Option<Self> {
        Some(Self(bits << low))
    }

    fn to_bits(self, low: u32) -> u64 {
        self.0 >> low
    }
}

/// Takes a field out of `rest`, which keeps the others.
fn take<T: Value>(rest: &mut [u64], field: &Field) -> Result<T, Reserved> {
    let low = (field.low % 64) as u32;
    let word = &mut rest[field.low / 64];
    let bits = (*word & field.mask()) >> low;
    *word &= !field.mask();
    T::from_bits(bits, low).ok_or(Reserved::Encoding(field.name))
}

/// Puts a field where it belongs, and nothing anywhere else.
fn put<T: Value>(words: &mut [u64], field: &Field, value: T) {
    let low = (field.low % 64) as u32;
    words[field.low / 64] |= value.to_bits(low) << low & field.mask();
}

/// Whether anything is left that no field took.
fn expect_zero(rest: &[u64]) -> Result<(), Reserved> {
    match rest.iter().position(|word| *word != 0) {
        None => Ok(()),
        Some(word) => Err(Reserved::Bits { word, bits: rest[word] }),
    }
}

/// Whether one of sixteen permissions of stage 2, four bits each, is reserved (`S2POI`, `S2PII`).
fn has_reserved_permission(permissions: u64) -> bool {
    (0..16).any(|index| matches!(permissions >> (4 * index) & 0xf, 0b0001 | 0b0101))
}

/// Declares a structure of `words` 64-bit words with its fields, their types, names and bits. `check` says which
/// combination is reserved, by the field that makes it so.
macro_rules! structure {
    (
        $(#[$doc:meta])*
        $name:ident: $words:literal {
            $($(#[$field_doc:meta])* $field:ident: $type:ty = $label:literal [$high:literal : $low:literal],)*
        }
        $(check $check:expr;)?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $name {
            /// Where its fields are.
            pub const FIELDS: &'static [$crate::format::Field] = &[
                $($crate::format::Field { name: $label, high: $high, low: $low },)*
            ];

            /// Returns the words that say this.
            pub fn encode(&self) -> [u64; $words] {
                #[allow(unused_mut)] // a command may have no operands
                let mut words = [0; $words];
                $($crate::format::put(
                    &mut words,
                    &$crate::format::Field { name: $label, high: $high, low: $low },
                    self.$field,
                );)*
                words
            }

            /// Returns what the words say.
            ///
            /// # Errors
            ///
            /// [`Reserved`](crate::format::Reserved) for what the architecture does not define.
            pub fn decode(words: &[u64; $words]) -> Result<Self, $crate::format::Reserved> {
                #[allow(unused_mut)]
                let mut rest = *words;
                let decoded = Self {
                    $($field: $crate::format::take(
                        &mut rest,
                        &$crate::format::Field { name: $label, high: $high, low: $low },
                    )?,)*
                };
                $crate::format::expect_zero(&rest)?;
                $(
                    let check: fn(&Self) -> Option<&'static str> = $check;
                    if let Some(field) = check(&decoded) {
                        return Err($crate::format::Reserved::Encoding(field));
                    }
                )?
                Ok(decoded)
            }
        }
    };
}

/// Declares what comes in kinds that the low byte of the first word tells apart: each with its section, its number
/// and its name, after the structure that has the rest of its `words` words.
macro_rules! numbered {
    (
        $(#[$doc:meta])*
        $name:ident: $words:literal {
            $($(#[$kind_doc:meta])* $kind:ident = $code:literal, $label:literal;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$kind_doc])* $kind($kind),)*
        }

        impl $name {
            /// The numbers and names of all of them.
            pub const ALL: &'static [(u8, &'static str)] = &[$(($code, $label)),*];

            /// Its number.
            pub const fn code(&self) -> u8 {
                match self {
                    $(Self::$kind(_) => $code,)*
                }
            }

            /// Its name in the specification.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => $label,)*
                }
            }

            /// Returns the words that say this.
            pub fn encode(&self) -> [u64; $words] {
                let mut words = match self {
                    $(Self::$kind(rest) => rest.encode(),)*
                };
                words[0] |= u64::from(self.code());
                words
            }

            /// Returns what the words say.
            ///
            /// # Errors
            ///
            /// [`Reserved`](crate::format::Reserved).
            pub fn decode(words: &[u64; $words]) -> Result<Self, $crate::format::Reserved> {
                let mut rest = *words;
                rest[0] &= !0xff;
                match words[0] as u8 {
                    $($code => $kind::decode(&rest).map(Self::$kind),)*
                    number => Err($crate::format::Reserved::Number(number)),
                }
            }
        }

        $(
            impl $kind {
                /// Its number.
                pub const CODE: u8 = $code;
                /// Its name in the specification.
                pub const NAME: &'static str = $label;
            }

            impl From<$kind> for $name {
                fn from(kind: $kind) -> Self {
                    Self::$kind(kind)
                }
            }
        )*
    };
}

/// Declares what the encodings of a field mean; any other is reserved. The first is the default.
macro_rules! encoding {
    (
        $(#[$doc:meta])*
        $name:ident {
            $(#[$first_doc:meta])* $first:ident = $first_code:literal,
            $($(#[$variant_doc:meta])* $variant:ident = $code:literal,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum $name {
            $(#[$first_doc])*
            #[default]
            $first,
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[Self::$first, $(Self::$variant),*];
        }

        impl $crate::format::Value for $name {
            fn from_bits(bits: u64, _: u32) -> Option<Self> {
                match bits {
                    $first_code => Some(Self::$first),
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }

            fn to_bits(self, _: u32) -> u64 {
                match self {
                    Self::$first => $first_code,
                    $(Self::$variant => $code,)*
                }
            }
        }
    };
}

use {encoding, numbered, structure};

encoding! {
    /// How an access to a table is cached, in an inner or an outer cache (`S1CIR`, `S2IR0`, `IR0` and their like).
    Cacheability {
        /// Non-cacheable.
        NonCacheable = 0b00,
        /// Write-back, allocating on reads and on writes.
        WriteBack = 0b01,
        /// Write-through, allocating on reads.
        WriteThrough = 0b10,
        /// Write-back, allocating on reads only.
        WriteBackReadAllocate = 0b11,
    }
}

encoding! {
    /// With whom an access to a table is shared (`S1CSH`, `S2SH0`, `SH0` and their like).
    Shareability {
        /// Nobody.
        NonShareable = 0b00,
        /// The outer domain.
        Outer = 0b10,
        /// The inner domain.
        Inner = 0b11,
    }
}

encoding! {
    /// What the SMMU does to an attribute of a transaction that exists twice (`PRIVCFG`, `INSTCFG`).
    Override {
        /// The device's own counts.
        Incoming = 0b00,
        /// Unprivileged, or data.
        Clear = 0b10,
        /// Privileged, or instruction.
        Set = 0b11,
    }
}

encoding! {
    /// What the SMMU does to the shareability of a transaction (`SHCFG`).
    ShareabilityOverride {
        /// Non-shareable.
        NonShareable = 0b00,
        /// The device's own counts.
        Incoming = 0b01,
        /// Outer shareable.
        Outer = 0b10,
        /// Inner shareable.
        Inner = 0b11,
    }
}

encoding! {
    /// Width of an output address in bits (`S2PS`, `IPS`, `OAS`).
    AddressSize {
        /// 32.
        Bits32 = 0,
        /// 36.
        Bits36 = 1,
        /// 40.
        Bits40 = 2,
        /// 42.
        Bits42 = 3,
        /// 44.
        Bits44 = 4,
        /// 48.
        Bits48 = 5,
        /// 52, from SMMUv3.1 on.
        Bits52 = 6,
        /// 56, from SMMUv3.4 on.
        Bits56 = 7,
    }
}

encoding! {
    /// Granule of the tables of stage 2 and of the lower half of stage 1 (`S2TG`, `TG0`).
    Granule0 {
        /// 4 KiB.
        K4 = 0b00,
        /// 64 KiB.
        K64 = 0b01,
        /// 16 KiB.
        K16 = 0b10,
    }
}

encoding! {
    /// Granule of the tables of the upper half of stage 1 (`TG1`), which has an encoding of its own.
    Granule1 {
        /// None: reserved unless the half is switched off (`EPD1`).
        None = 0b00,
        /// 16 KiB.
        K16 = 0b01,
        /// 4 KiB.
        K4 = 0b10,
        /// 64 KiB.
        K64 = 0b11,
    }
}

#[cfg(test)]
mod tests;
