//! Addresses and identifiers that must never be mistaken for each other.

use core::fmt;

/// Bytes in the smallest page that stage 2 maps (4 KiB granule).
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// Returns the raw address.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// Returns the address `offset` bytes further, or `None` past the end of the 64-bit space.
            pub const fn checked_add(self, offset: u64) -> Option<Self> {
                match self.0.checked_add(offset) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// Returns the address `offset` bytes further.
            ///
            /// The caller knows that the sum stays inside the 64-bit space; a sum that does not panics.
            pub const fn add(self, offset: u64) -> Self {
                match self.checked_add(offset) {
                    Some(sum) => sum,
                    None => panic!("address overflow"),
                }
            }

            /// Rounds down to a multiple of `align`, a power of two.
            pub const fn align_down(self, align: u64) -> Self {
                Self(self.0 & !(align - 1))
            }

            /// Whether the address is a multiple of `align`, a power of two.
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & (align - 1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A physical address: what comes out of stage 2, and what EL2 itself uses.
    Pa
}
address! {
    /// An intermediate physical address: what a guest believes is physical, stage 2's input.
    Ipa
}
address! {
    /// The address a device put on the bus, before any translation.
    Iova
}

/// The StreamID by which the SMMU tells bus masters apart (section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct StreamId(pub u32);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The tag that keeps one VM's translations apart from another's in TLBs, of CPU and SMMU alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Vmid(pub u16);

impl Vmid {
    /// The VMID of every stream in *watch*: nothing is ever cached under it, because nothing is mapped.
    pub const WATCH: Self = Self(255);
}

/// Whose a stream is. What the number means is the caller's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct VmIndex(pub u8);
