//! What the SMMU can do, as its ID registers say, and whether that is enough.

use core::fmt;

use tock_registers::LocalRegisterCopy;
use tock_registers::fields::FieldValue;

use crate::device::Config;
use crate::error::HostError;
use crate::ports::Registers;
use crate::regs::{AIDR, IDR0, IDR1, IDR3, IDR5, IIDR, offset};
use crate::strtab;

/// What guests can be offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A stage 1 of their own on top of stage 2.
    Nested,
    /// Stage 2 only: the hardware has no stage 1, or errata that break nesting.
    Stage2,
}

impl Class {
    /// The name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nested => "nested",
            Self::Stage2 => "stage2",
        }
    }
}

/// Why an SMMU cannot be taken over. Its Display says what is missing and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `IDR0.S2P` is 0.
    NoStage2,
    /// `IDR0.TTF` lacks AArch64 tables.
    NoAarch64Tables,
    /// `IDR0.COHACC` is 0.
    NotCoherent,
    /// `IDR0.TTENDIAN` excludes little-endian tables.
    NoLittleEndian,
    /// `IDR0.STALL_MODEL` forces faulting transactions to stall.
    ForcedStall,
    /// `IDR1.TABLES_PRESET`, `QUEUES_PRESET` or `REL`: the table or the queues are at fixed places.
    Preset,
    /// `IDR5.GRAN4K` is 0.
    No4kGranule,
    /// `IDR5.OAS` or the CPUs' `PARange` is smaller than the guests' address space.
    OutputSize {
        /// What both can output, in bits.
        has: u8,
        /// What the guests' address space needs, in bits.
        needs: u8,
    },
    /// `IDR1.SIDSIZE` is smaller than the platform's StreamIDs.
    StreamIdSize {
        /// What the SMMU takes, in bits.
        has: u8,
        /// What the platform sends, in bits.
        needs: u8,
    },
    /// `IDR0.ST_LEVEL` is 0 and a linear table for all StreamIDs would be too large.
    NoTwoLevelTable {
        /// What the platform sends, in bits.
        needs: u8,
    },
    /// No memory for tables and queues.
    OutOfMemory,
    /// The SMMU did not do what it was told while it was being taken over.
    Host(HostError),
}

impl From<HostError> for Refusal {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoStage2 => f.write_str(
                "the SMMU has no stage 2 (IDR0.S2P=0), so it cannot confine a guest; \
                 use hardware with stage 2, on QEMU machine virt-9.2 or later or stage=2",
            ),
            Self::NoAarch64Tables => f.write_str(
                "the SMMU cannot walk AArch64 tables (IDR0.TTF[1]=0), which EL2 shares with it; \
                 use other hardware",
            ),
            Self::NotCoherent => f.write_str(
                "the SMMU does not access memory coherently (IDR0.COHACC=0); \
                 check that the firmware enables it",
            ),
            Self::NoLittleEndian => f.write_str(
                "the SMMU walks no little-endian tables (IDR0.TTENDIAN); use other hardware",
            ),
            Self::ForcedStall => f.write_str(
                "the SMMU can only stall on a fault (IDR0.STALL_MODEL=2), \
                 so that one guest could block others; use other hardware",
            ),
            Self::Preset => f.write_str(
                "the SMMU has its table or queues at fixed addresses \
                 (IDR1.TABLES_PRESET, QUEUES_PRESET or REL), where EL2 cannot protect them; \
                 use other hardware",
            ),
            Self::No4kGranule => {
                f.write_str("the SMMU has no 4 KiB granule (IDR5.GRAN4K=0); use other hardware")
            }
            Self::OutputSize { has, needs } => write!(
                f,
                "SMMU and CPUs share {has}-bit physical addresses (IDR5.OAS, PARange), \
                 guests need {needs}; use other hardware"
            ),
            Self::StreamIdSize { has, needs } => write!(
                f,
                "the SMMU takes {has}-bit StreamIDs (IDR1.SIDSIZE), \
                 the device tree's iommu-map sends {needs}; correct it"
            ),
            Self::NoTwoLevelTable { needs } => write!(
                f,
                "the SMMU has no two-level stream table (IDR0.ST_LEVEL=0), \
                 and a linear one for {needs}-bit StreamIDs is too large; narrow iommu-map"
            ),
            Self::OutOfMemory => {
                f.write_str("no memory left for the SMMU's tables and queues; give EL2 more")
            }
            Self::Host(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Refusal {}

/// The ID registers of one SMMU.
#[derive(Clone, Copy)]
pub struct Capabilities {
    idr0: LocalRegisterCopy<u32, IDR0::Register>,
    idr1: LocalRegisterCopy<u32, IDR1::Register>,
    idr3: LocalRegisterCopy<u32, IDR3::Register>,
    idr5: LocalRegisterCopy<u32, IDR5::Register>,
    iidr: LocalRegisterCopy<u32, IIDR::Register>,
    aidr: LocalRegisterCopy<u32, AIDR::Register>,
}

impl Capabilities {
    /// Reads them.
    pub fn read(hw: &impl Registers) -> Self {
        Self {
            idr0: LocalRegisterCopy::new(hw.read32(offset::IDR0)),
            idr1: LocalRegisterCopy::new(hw.read32(offset::IDR1)),
            idr3: LocalRegisterCopy::new(hw.read32(offset::IDR3)),
            idr5: LocalRegisterCopy::new(hw.read32(offset::IDR5)),
            iidr: LocalRegisterCopy::new(hw.read32(offset::IIDR)),
            aidr: LocalRegisterCopy::new(hw.read32(offset::AIDR)),
        }
    }

    /// What guests can be offered on this SMMU, given what the platform needs of it.
    ///
    /// # Errors
    ///
    /// The first thing that is missing.
    pub fn class(&self, config: &Config) -> Result<Class, Refusal> {
        let Self { idr0, idr1, idr5, .. } = self;
        if !self.stage2() {
            return Err(Refusal::NoStage2);
        }
        if idr0.read(IDR0::TTF) & 0b10 == 0 {
            return Err(Refusal::NoAarch64Tables);
        }
        if !idr0.is_set(IDR0::COHACC) {
            return Err(Refusal::NotCoherent);
        }
        if !matches!(
            idr0.read_as_enum(IDR0::TTENDIAN),
            Some(IDR0::TTENDIAN::Value::Mixed | IDR0::TTENDIAN::Value::Little)
        ) {
            return Err(Refusal::NoLittleEndian);
        }
        if idr0.matches_all(IDR0::STALL_MODEL::Stall) {
            return Err(Refusal::ForcedStall);
        }
        if idr1.any_matching_bits_set(
            IDR1::TABLES_PRESET::SET + IDR1::QUEUES_PRESET::SET + IDR1::REL::SET,
        ) {
            return Err(Refusal::Preset);
        }
        if !idr5.is_set(IDR5::GRAN4K) {
            return Err(Refusal::No4kGranule);
        }
        if self.output_bits() < config.ipa_bits {
            return Err(Refusal::OutputSize { has: self.output_bits(), needs: config.ipa_bits });
        }
        if self.stream_id_bits() < config.sid_bits {
            return Err(Refusal::StreamIdSize {
                has: self.stream_id_bits(),
                needs: config.sid_bits,
            });
        }
        if !self.two_level_table() && config.sid_bits > strtab::LINEAR_MAX_LOG2 {
            return Err(Refusal::NoTwoLevelTable { needs: config.sid_bits });
        }
        Ok(if self.stage1() && !self.nesting_is_broken() { Class::Nested } else { Class::Stage2 })
    }

    pub(crate) fn idr0(&self) -> LocalRegisterCopy<u32, IDR0::Register> {
        self.idr0
    }

    pub(crate) fn idr3(&self) -> LocalRegisterCopy<u32, IDR3::Register> {
        self.idr3
    }

    pub(crate) fn idr5(&self) -> LocalRegisterCopy<u32, IDR5::Register> {
        self.idr5
    }

    /// The minor revision of SMMUv3; a later major one counts as the last of those.
    pub(crate) fn revision(&self) -> u32 {
        if self.aidr.read(AIDR::MAJOR) == 0 { self.aidr.read(AIDR::MINOR) } else { u32::MAX }
    }

    /// Whether there is a stage 1 at all. Without one, the commands that invalidate it are illegal.
    pub fn stage1(&self) -> bool {
        self.idr0.is_set(IDR0::S1P)
    }

    fn stage2(&self) -> bool {
        self.idr0.is_set(IDR0::S2P)
    }

    /// Whether stages 1 and 2 together do not work as documented: Arm errata 1209401 (MMU-600 before
    /// r2), 2268618 and 2812531 (MMU-700 before r1p1).
    fn nesting_is_broken(&self) -> bool {
        self.is_arm_before(IIDR::PRODUCT::Mmu600, (2, 0))
            || self.is_arm_before(IIDR::PRODUCT::Mmu700, (1, 1))
    }

    /// How many commands may be issued between two `CMD_SYNC`s: MMU-700 before r1p1 may hang after more
    /// than Linux sends it (Arm erratum 2812531).
    pub fn command_batch_limit(&self) -> u32 {
        if self.is_arm_before(IIDR::PRODUCT::Mmu700, (1, 1)) { 62 } else { u32::MAX }
    }

    /// Whether it is this product of Arm's in a release before `(variant, revision)`.
    fn is_arm_before(
        &self,
        product: FieldValue<u32, IIDR::Register>,
        fixed_in: (u32, u32),
    ) -> bool {
        self.iidr.matches_all(IIDR::IMPLEMENTER::Arm + product)
            && (self.iidr.read(IIDR::VARIANT), self.iidr.read(IIDR::REVISION)) < fixed_in
    }

    /// Whether a faulting transaction could stall if an STE allowed it.
    pub fn stalls(&self) -> bool {
        self.idr0.matches_all(IDR0::STALL_MODEL::StallOrTerminate)
    }

    /// Whether devices may present translated addresses.
    pub fn ats(&self) -> bool {
        self.idr0.is_set(IDR0::ATS)
    }

    /// Whether VMIDs have 16 bits rather than 8.
    pub fn vmid16(&self) -> bool {
        self.idr0.is_set(IDR0::VMID16)
    }

    /// Whether the stream table may have two levels.
    pub fn two_level_table(&self) -> bool {
        self.idr0.matches_all(IDR0::ST_LEVEL::TwoLevel)
    }

    /// Width of a StreamID in bits.
    pub fn stream_id_bits(&self) -> u8 {
        self.idr1.read(IDR1::SIDSIZE) as u8
    }

    /// The most entries a command queue may have, as a power of two.
    pub fn command_queue_log2(&self) -> u8 {
        self.idr1.read(IDR1::CMDQS) as u8
    }

    /// The most entries an event queue may have, as a power of two.
    pub fn event_queue_log2(&self) -> u8 {
        self.idr1.read(IDR1::EVENTQS) as u8
    }

    /// Whether stage 2 may force write-back (`STE.S2FWB`).
    pub fn fwb(&self) -> bool {
        self.idr3.is_set(IDR3::FWB)
    }

    /// Whether TLB invalidation takes ranges.
    pub fn range_invalidation(&self) -> bool {
        self.idr3.is_set(IDR3::RIL)
    }

    /// How freely a live block may be replaced by a table of the same mapping: 0, 1 or 2
    /// (section 3.21.1.1).
    pub fn bbm_level(&self) -> u8 {
        self.idr3.read(IDR3::BBML) as u8
    }

    /// Width of an output address in bits. A reserved encoding counts as the smallest size.
    pub fn output_bits(&self) -> u8 {
        match self.idr5.read(IDR5::OAS) {
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            5 => 48,
            6 => 52,
            _ => 32,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;
    use crate::fake::{Fake, QEMU_NESTED, QEMU_STAGE1, QEMU_STAGE2};

    fn class_of(ids: [u32; 5]) -> Result<Class, Refusal> {
        Capabilities::read(&Fake::new(ids)).class(&Config::new(16, 48, false))
    }

    /// QEMU's nested SMMU with some bits of one register changed.
    fn changed(register: usize, clear: u32, set: u32) -> Result<Class, Refusal> {
        let mut ids = QEMU_NESTED;
        ids[register] = ids[register] & !clear | set;
        class_of(ids)
    }

    #[test]
    fn qemus_stages_are_told_apart() {
        assert_eq!(class_of(QEMU_NESTED), Ok(Class::Nested));
        assert_eq!(class_of(QEMU_STAGE2), Ok(Class::Stage2));
        assert_eq!(class_of(QEMU_STAGE1), Err(Refusal::NoStage2));
    }

    #[test]
    fn qemus_sizes_are_read_right() {
        let caps = Capabilities::read(&Fake::new(QEMU_NESTED));
        assert_eq!((caps.stream_id_bits(), caps.output_bits(), caps.bbm_level()), (16, 44, 2));
        assert_eq!((caps.command_queue_log2(), caps.event_queue_log2()), (19, 19));
        assert!(
            caps.range_invalidation() && caps.two_level_table() && caps.vmid16() && caps.stage1()
        );
        assert!(!caps.fwb() && !caps.ats() && !caps.stalls());
    }

    #[test]
    fn a_forced_write_back_is_seen() {
        let mut ids = QEMU_NESTED;
        ids[2] |= 1 << 8;
        assert!(Capabilities::read(&Fake::new(ids)).fwb());
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(changed(0, 0b11 << 2, 0b01 << 2), Err(Refusal::NoAarch64Tables));
        assert_eq!(changed(0, 1 << 4, 0), Err(Refusal::NotCoherent));
        assert_eq!(changed(0, 0, 0b11 << 21), Err(Refusal::NoLittleEndian));
        assert_eq!(changed(0, 0b11 << 21, 0), Ok(Class::Nested));
        assert_eq!(changed(0, 0b11 << 24, 0b10 << 24), Err(Refusal::ForcedStall));
        for preset in 28..=30 {
            assert_eq!(changed(1, 0, 1 << preset), Err(Refusal::Preset));
        }
        assert_eq!(changed(1, 0x3f, 15), Err(Refusal::StreamIdSize { has: 15, needs: 16 }));
        assert_eq!(changed(0, 0b11 << 27, 0), Err(Refusal::NoTwoLevelTable { needs: 16 }));
        assert_eq!(changed(3, 1 << 4, 0), Err(Refusal::No4kGranule));
        assert_eq!(changed(3, 7, 1), Err(Refusal::OutputSize { has: 36, needs: 40 }));
        // As much as is needed is enough.
        assert_eq!(changed(3, 7, 2), Ok(Class::Nested));
        let mut linear = QEMU_NESTED;
        linear[0] &= !(0b11 << 27);
        let class = |sid_bits| {
            Capabilities::read(&Fake::new(linear)).class(&Config::new(sid_bits, 48, false))
        };
        assert_eq!(class(strtab::LINEAR_MAX_LOG2), Ok(Class::Nested));
        let needs = strtab::LINEAR_MAX_LOG2 + 1;
        assert_eq!(class(needs), Err(Refusal::NoTwoLevelTable { needs }));
        assert!(Refusal::NoStage2.to_string().contains("IDR0.S2P=0"));
    }

    #[test]
    fn known_errata_cost_nesting_and_nothing_else() {
        let arm = |product: u32, variant: u32, revision: u32| {
            let mut ids = QEMU_NESTED;
            ids[4] = product << 20 | variant << 16 | revision << 12 | 0x43b;
            let caps = Capabilities::read(&Fake::new(ids));
            (class_of(ids).unwrap(), caps.command_batch_limit())
        };
        assert_eq!(arm(0x483, 1, 9), (Class::Stage2, u32::MAX));
        assert_eq!(arm(0x483, 2, 0), (Class::Nested, u32::MAX));
        assert_eq!(arm(0x487, 1, 0), (Class::Stage2, 62));
        assert_eq!(arm(0x487, 1, 1), (Class::Nested, u32::MAX));
        assert_eq!(arm(0x48a, 0, 0), (Class::Nested, u32::MAX));
        // Another implementer's product of the same number is another product.
        assert_eq!(changed(4, u32::MAX, 0x483 << 20 | 0x4e), Ok(Class::Nested));
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        for (refusal, parts) in [
            (Refusal::NoStage2, ["IDR0.S2P=0", "virt-9.2"]),
            (Refusal::NoAarch64Tables, ["IDR0.TTF[1]=0", "other hardware"]),
            (Refusal::NotCoherent, ["IDR0.COHACC=0", "firmware"]),
            (Refusal::NoLittleEndian, ["IDR0.TTENDIAN", "other hardware"]),
            (Refusal::ForcedStall, ["IDR0.STALL_MODEL=2", "other hardware"]),
            (Refusal::Preset, ["IDR1.TABLES_PRESET", "other hardware"]),
            (Refusal::No4kGranule, ["IDR5.GRAN4K=0", "other hardware"]),
            (Refusal::OutputSize { has: 36, needs: 40 }, ["share 36-bit", "need 40"]),
            (Refusal::StreamIdSize { has: 8, needs: 16 }, ["takes 8-bit", "sends 16"]),
            (Refusal::NoTwoLevelTable { needs: 16 }, ["for 16-bit", "iommu-map"]),
            (Refusal::OutOfMemory, ["no memory left", "give EL2 more"]),
            (HostError::ServiceFailure.into(), ["SMMU", "service failure"]),
        ] {
            let text = refusal.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
        assert_eq!((Class::Nested.name(), Class::Stage2.name()), ("nested", "stage2"));
    }

    #[test]
    fn sizes_have_their_encodings() {
        let bits = |oas: u32| {
            let mut ids = QEMU_NESTED;
            ids[3] = ids[3] & !7 | oas;
            Capabilities::read(&Fake::new(ids)).output_bits()
        };
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(bits), [32, 36, 40, 42, 44, 48, 52, 32]);
        let queues = |field: u32| {
            let mut ids = QEMU_NESTED;
            ids[1] = field << 21 | (field + 1) << 16 | (field + 2);
            let caps = Capabilities::read(&Fake::new(ids));
            (caps.command_queue_log2(), caps.event_queue_log2(), caps.stream_id_bits())
        };
        assert_eq!(queues(7), (7, 8, 9));
    }

    #[test]
    fn a_later_architecture_counts_as_the_last_known() {
        let revision = |aidr: u32| {
            let fake = Fake::new(QEMU_NESTED);
            fake.set_register(0x1c, aidr);
            Capabilities::read(&fake).revision()
        };
        assert_eq!([0, 1, 4, 0x10].map(revision), [0, 1, 4, u32::MAX]);
    }
}
