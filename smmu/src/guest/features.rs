//! What a virtual SMMU says it can do: its ID registers, built from zero bit by bit.

use crate::caps::Capabilities;
use crate::cmd::Granule;
use crate::guest::queue::MAX_LOG2;
use crate::regs::{IDR0, IDR1, IDR3, IDR5};

/// What the physical SMMUs behind a virtual one can all do, as far as a guest may know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    asid16: bool,
    two_level_contexts: bool,
    terminates: bool,
    hierarchical: bool,
    ranges: bool,
    bbm_level: u8,
    granules: u32,
    address_extension: u32,
    revision: u32,
}

/// The ID registers of one virtual SMMU. Those that are not here are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub idr0: u32,
    pub idr1: u32,
    pub idr3: u32,
    pub idr5: u32,
    pub aidr: u32,
}

impl Features {
    /// What one physical SMMU offers.
    pub fn of(caps: &Capabilities) -> Self {
        let (idr0, idr3, idr5) = (caps.idr0(), caps.idr3(), caps.idr5());
        Self {
            asid16: idr0.is_set(IDR0::ASID16),
            two_level_contexts: idr0.is_set(IDR0::CD2L),
            terminates: idr0.is_set(IDR0::TERM_MODEL),
            hierarchical: idr3.is_set(IDR3::HAD),
            ranges: idr3.is_set(IDR3::RIL),
            // 3 is reserved.
            bbm_level: (idr3.read(IDR3::BBML) as u8).min(2),
            granules: idr5.get()
                & (IDR5::GRAN4K::SET + IDR5::GRAN16K::SET + IDR5::GRAN64K::SET).value,
            // 2 and 3 are reserved.
            address_extension: idr5.read(IDR5::VAX).min(1),
            // Each revision requires some of them of an SMMU with a stage 1; 3.3 more than these.
            revision: match caps.revision() {
                0 => 0,
                _ if !idr3.is_set(IDR3::HAD) => 0,
                1 => 1,
                _ if !idr3.is_set(IDR3::RIL) || idr3.read(IDR3::BBML) == 0 => 1,
                _ => 2,
            },
        }
    }

    /// What both this and `other` can do, where streams of one VM come through several SMMUs.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self {
            asid16: self.asid16 && other.asid16,
            two_level_contexts: self.two_level_contexts && other.two_level_contexts,
            // Where one of them insists on CD.A, every CD needs it.
            terminates: self.terminates || other.terminates,
            hierarchical: self.hierarchical && other.hierarchical,
            ranges: self.ranges && other.ranges,
            bbm_level: self.bbm_level.min(other.bbm_level),
            granules: self.granules & other.granules,
            address_extension: self.address_extension.min(other.address_extension),
            revision: self.revision.min(other.revision),
        }
    }

    /// Whether ASIDs have 16 bits rather than 8.
    pub(super) fn asid16(&self) -> bool {
        self.asid16
    }

    /// Whether TLB invalidation takes ranges.
    pub(super) fn ranges(&self) -> bool {
        self.ranges
    }

    /// Whether translation tables may have this granule.
    pub(super) fn has(&self, granule: Granule) -> bool {
        let bit = match granule {
            Granule::K4 => IDR5::GRAN4K::SET,
            Granule::K16 => IDR5::GRAN16K::SET,
            Granule::K64 => IDR5::GRAN64K::SET,
        };
        self.granules & bit.value != 0
    }

    /// The ID registers for `sid_bits` of StreamID and an address space of `ipa_bits`.
    ///
    /// S2P, HYP, ATS, PRI, VMID16, BTM and HTTU are 0 because no guest gets them; SSIDSIZE because PASIDs are
    /// hidden in configuration space; SEV and MSI because a guest that polls `CMDQ_CONS` already costs no exit.
    pub(super) fn identify(&self, sid_bits: u8, ipa_bits: u8) -> Identity {
        let idr0 = IDR0::S1P::SET
            // AArch64 tables only.
            + IDR0::TTF.val(0b10)
            + IDR0::COHACC::SET
            + IDR0::ASID16.val(self.asid16.into())
            + IDR0::CD2L.val(self.two_level_contexts.into())
            + IDR0::TTENDIAN::Little
            + IDR0::STALL_MODEL::Terminate
            + IDR0::TERM_MODEL.val(self.terminates.into())
            + IDR0::ST_LEVEL::TwoLevel;
        let idr1 = IDR1::SIDSIZE.val(sid_bits.min(32).into())
            + IDR1::EVENTQS.val(MAX_LOG2.into())
            + IDR1::CMDQS.val(MAX_LOG2.into());
        let idr3 = IDR3::HAD.val(self.hierarchical.into())
            + IDR3::RIL.val(self.ranges.into())
            + IDR3::BBML.val(self.bbm_level.into());
        let oas = match ipa_bits {
            0..=35 => 0,
            36..=39 => 1,
            40..=41 => 2,
            42..=43 => 3,
            44..=47 => 4,
            _ => 5,
        };
        let idr5 =
            (IDR5::OAS.val(oas) + IDR5::VAX.val(self.address_extension)).value | self.granules;
        Identity { idr0: idr0.value, idr1: idr1.value, idr3: idr3.value, idr5, aidr: self.revision }
    }
}
