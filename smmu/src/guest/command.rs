//! A guest's commands (chapter 4), decoded into what a virtual SMMU without stage 2, ATS and stalls has.

use crate::addr::{Iova, StreamId, Vmid};
use crate::cmd::{Command, Granule, Pages};
use crate::guest::CommandError;
use crate::guest::features::Features;

/// What a legal command asks for, in the guest's terms and without a VMID: it has only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestCommand {
    /// A hint that is not taken.
    Nothing,
    /// The commands before it are to be complete.
    Sync {
        /// And an interrupt is to say so.
        interrupt: bool,
    },
    /// The STEs of these StreamIDs changed.
    Ste {
        /// The first.
        first: u32,
        /// The last.
        last: u32,
    },
    /// One CD changed.
    Cd {
        /// The stream.
        sid: StreamId,
        /// Its substream.
        ssid: u32,
        /// Only the last level.
        leaf: bool,
    },
    /// All CDs of a stream changed.
    CdAll {
        /// The stream.
        sid: StreamId,
    },
    /// Translations changed.
    Tlb(Invalidation),
}

/// Which of the guest's translations are to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// All of them.
    All,
    /// Those of one address space.
    Asid(u16),
    /// Some of one address space, or of all.
    Address {
        /// The address space.
        asid: Option<u16>,
        /// The first address.
        address: Iova,
        /// How many.
        pages: Pages,
        /// Only the last level.
        leaf: bool,
    },
}

impl Invalidation {
    /// The physical command that does it for the VM with this tag.
    pub fn tagged(self, vmid: Vmid) -> Command {
        match self {
            Self::All => Command::TlbiNhAll { vmid },
            Self::Asid(asid) => Command::TlbiNhAsid { vmid, asid },
            Self::Address { asid: Some(asid), address, pages, leaf } => {
                Command::TlbiNhVa { vmid, asid, address, pages, leaf }
            }
            Self::Address { asid: None, address, pages, leaf } => {
                Command::TlbiNhVaa { vmid, address, pages, leaf }
            }
        }
    }
}

impl GuestCommand {
    /// Decodes a copy of an entry.
    ///
    /// # Errors
    ///
    /// [`CommandError::Illegal`] for what such an SMMU does not have.
    pub fn decode([low, high]: [u64; 2], features: &Features) -> Result<Self, CommandError> {
        let sid = StreamId((low >> 32) as u32);
        let leaf = high & 1 != 0;
        let opcode = low as u8;
        // SSEC: no Non-secure command names a Secure stream (section 4.1.6).
        if matches!(opcode, 0x01..=0x06) && low >> 10 & 1 != 0 {
            return Err(CommandError::Illegal);
        }
        Ok(match opcode {
            // CMD_PREFETCH_CONFIG, CMD_PREFETCH_ADDR.
            0x01 | 0x02 => Self::Nothing,
            // CMD_CFGI_STE. Level-1 descriptors are always read again, so Leaf makes no difference.
            0x03 => Self::Ste { first: sid.0, last: sid.0 },
            // CMD_CFGI_STE_RANGE, CMD_CFGI_ALL.
            0x04 => {
                let group = u32::MAX >> (31 - (high & 0x1f) as u32);
                Self::Ste { first: sid.0 & !group, last: sid.0 | group }
            }
            // CMD_CFGI_CD. There are no substreams, so the SubstreamID means nothing.
            0x05 => Self::Cd { sid, ssid: 0, leaf },
            // CMD_CFGI_CD_ALL.
            0x06 => Self::CdAll { sid },
            // CMD_TLBI_NH_ALL; CMD_TLBI_NSNH_ALL, which is the same without a stage 2.
            0x10 | 0x30 => Self::Tlb(Invalidation::All),
            // CMD_TLBI_NH_ASID.
            0x11 => Self::Tlb(Invalidation::Asid(asid(low, features))),
            // CMD_TLBI_NH_VA, CMD_TLBI_NH_VAA.
            0x12 | 0x13 => Self::Tlb(Invalidation::Address {
                asid: (opcode == 0x12).then(|| asid(low, features)),
                address: Iova::new(high & !0xfff),
                pages: pages(low, high, features)?,
                leaf,
            }),
            // CMD_SYNC: CS is SIG_NONE, SIG_IRQ or SIG_SEV, for which nobody waits.
            0x46 => match low >> 12 & 0b11 {
                0b11 => return Err(CommandError::Illegal),
                signal => Self::Sync { interrupt: signal == 0b01 },
            },
            _ => return Err(CommandError::Illegal),
        })
    }
}

fn asid(low: u64, features: &Features) -> u16 {
    let asid = (low >> 48) as u16;
    if features.asid16() { asid } else { asid & 0xff }
}

/// What a TLB invalidation names (section 4.4.1.1).
fn pages(low: u64, high: u64, features: &Features) -> Result<Pages, CommandError> {
    let granule = match high >> 10 & 0b11 {
        1 => Granule::K4,
        2 => Granule::K16,
        3 => Granule::K64,
        _ => return Ok(Pages::One),
    };
    if !features.ranges() {
        // The fields are not there.
        return Ok(Pages::One);
    }
    if !features.has(granule) {
        // Nothing can be cached under it, and the hardware's answer to it would stop our queue, not the guest's.
        return Err(CommandError::Illegal);
    }
    let (number, scale) = ((low >> 12 & 0x1f) as u8, (low >> 20 & 0x1f) as u8);
    let level = match (granule, (high >> 8 & 0b11) as u8) {
        // There are no leaves at that level: it is no hint.
        (Granule::K16, 1) => 0,
        (_, level) => level,
    };
    if (number, scale, level) == (0, 0, 0) {
        return Err(CommandError::Illegal);
    }
    Ok(Pages::Granules { granule, level, multiple: number + 1, scale })
}
