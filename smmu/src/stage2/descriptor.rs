//! Translation table descriptors (Arm ARM D8.3), as stage 2 with the 4 KiB granule uses them.

use super::{Attributes, Format, LAST_LEVEL, MemoryType};
use crate::addr::Pa;

const VALID: u64 = 1;
/// A table at levels 0 to 2, a page at level 3; a block otherwise.
const TABLE_OR_PAGE: u64 = 1 << 1;
const MEM_ATTR_SHIFT: u32 = 2;
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESS_FLAG: u64 = 1 << 10;
/// `XN[1]`: without FEAT_XNX the only bit, with it and `XN[0]` clear "no execution at EL1 or EL0".
const EXECUTE_NEVER: u64 = 1 << 54;
/// Ignored by hardware in a table descriptor: the table below belongs to another root.
const BORROWED: u64 = 1 << 55;
/// Bits 47:12.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// `MemAttr` without FWB: Normal, outer and inner write-back.
const NORMAL: u64 = 0b1111;
/// `MemAttr` with FWB: Normal write-back whatever stage 1 says.
const NORMAL_FWB: u64 = 0b0110;
/// `MemAttr`, with and without FWB.
const DEVICE_NGNRE: u64 = 0b0001;

/// A descriptor as memory holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

/// What a descriptor means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing is mapped.
    Invalid,
    /// The next table.
    Table {
        /// Where it is.
        at: Pa,
        /// Whether it belongs to another root.
        borrowed: bool,
    },
    /// A block or page.
    Leaf {
        /// Where it leads.
        pa: Pa,
        /// What may be done there.
        attributes: Attributes,
    },
}

impl Descriptor {
    pub const INVALID: Self = Self(0);

    pub fn table(at: Pa) -> Self {
        Self(at.raw() | TABLE_OR_PAGE | VALID)
    }

    pub fn borrowed_table(at: Pa) -> Self {
        Self(Self::table(at).0 | BORROWED)
    }

    pub fn leaf(format: Format, level: u8, pa: Pa, attributes: Attributes) -> Self {
        let mut word = pa.raw() | ACCESS_FLAG | VALID;
        if level == LAST_LEVEL {
            word |= TABLE_OR_PAGE;
        }
        word |= match attributes.memory {
            MemoryType::Normal if format.fwb() => NORMAL_FWB << MEM_ATTR_SHIFT | INNER_SHAREABLE,
            MemoryType::Normal => NORMAL << MEM_ATTR_SHIFT | INNER_SHAREABLE,
            MemoryType::Device => DEVICE_NGNRE << MEM_ATTR_SHIFT,
        };
        if attributes.read {
            word |= READ;
        }
        if attributes.write {
            word |= WRITE;
        }
        if !attributes.execute {
            word |= EXECUTE_NEVER;
        }
        Self(word)
    }

    pub fn entry(self, level: u8) -> Entry {
        let Self(word) = self;
        let at = Pa::new(word & ADDRESS);
        if word & VALID == 0 {
            Entry::Invalid
        } else if word & TABLE_OR_PAGE != 0 && level < LAST_LEVEL {
            Entry::Table { at, borrowed: word & BORROWED != 0 }
        } else {
            let memory = match word >> MEM_ATTR_SHIFT & 0xf {
                DEVICE_NGNRE => MemoryType::Device,
                _ => MemoryType::Normal,
            };
            Entry::Leaf {
                pa: at,
                attributes: Attributes {
                    read: word & READ != 0,
                    write: word & WRITE != 0,
                    execute: word & EXECUTE_NEVER == 0,
                    memory,
                },
            }
        }
    }
}
