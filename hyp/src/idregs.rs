//! The identification registers a guest sees: an allow-list over the hardware's.
//!
//! A feature is shown only if a guest can use it with the traps of `arch/vcpu.rs`: what needs EL2's help
//! (SVE, SME, MTE, monitors, profiling, nested virtualization, a second stage of its own) reads as absent.

/// A field four bits wide at this bit.
const fn field(bit: u32) -> u64 {
    0xf << bit
}

/// The register (CRm, Op2) of the space Op0=3, Op1=0, CRn=0 as a guest sees it, `hardware` being the CPU's own value.
/// Everything not named here reads as zero, which means absent.
pub fn visible(crm: u8, op2: u8, hardware: u64) -> u64 {
    match (crm, op2) {
        // AArch32 at EL0, where there is any: nothing in these needs EL2.
        (1, 0 | 1 | 4..=7) | (2, _) | (3, 0..=2 | 4 | 6) => hardware,
        // ID_DFR0_EL1: debug, no monitors, no trace.
        (1, 2) => hardware & field(0),
        (4, 0) => pfr0(hardware),
        // ID_AA64PFR1_EL1: BT, SSBS.
        (4, 1) => hardware & (field(0) | field(4)),
        // ID_AA64DFR0_EL1: DebugVer, BRPs, WRPs, CTX_CMPs, DoubleLock.
        (5, 0) => hardware & (field(0) | field(12) | field(20) | field(28) | field(36)),
        // ID_AA64ISAR0_EL1: all but TME.
        (6, 0) => hardware & !field(24),
        // ID_AA64ISAR1_EL1: all but LS64, which HCRX_EL2 gates.
        (6, 1) => hardware & !field(60),
        // ID_AA64ISAR2_EL1: WFxT, RPRES, GPA3, APA3, PAC_frac, CLRBHB. MOPS is HCRX_EL2's.
        (6, 2) => hardware & (field(0) | field(4) | field(8) | field(12) | field(24) | field(28)),
        (7, 0) => mmfr0(hardware),
        // ID_AA64MMFR1_EL1: HAFDBS, HPDS, PAN, ETS, AFP.
        (7, 1) => hardware & (field(0) | field(12) | field(20) | field(36) | field(44)),
        // ID_AA64MMFR2_EL1: CnP, UAO, CCIDX, ST, AT, TTL, BBM, E0PD.
        (7, 2) => {
            hardware
                & (field(0)
                    | field(4)
                    | field(20)
                    | field(28)
                    | field(32)
                    | field(48)
                    | field(52)
                    | field(60))
        }
        _ => 0,
    }
}

/// `ID_AA64PFR0_EL1`: EL0 as it is, EL1 AArch64 only, FP, Advanced SIMD, the GIC's system registers, DIT, CSV2, CSV3.
fn pfr0(hardware: u64) -> u64 {
    const EL1_AARCH64: u64 = 1 << 4;
    const GIC_3_0: u64 = 1 << 24;
    // CSV2_2 and CSV2_3 add registers that trap: show no more than CSV2.
    let csv2 = (hardware >> 56 & 0xf).min(1) << 56;
    hardware & (field(0) | field(16) | field(20) | field(48) | field(60))
        | EL1_AARCH64
        | GIC_3_0
        | csv2
}

/// `ID_AA64MMFR0_EL1`: 40 bits of physical address at most, ASIDs, endianness, granules without LPA2.
fn mmfr0(hardware: u64) -> u64 {
    const PARANGE_40: u64 = 2;
    const GRANULE_4K_ABSENT: u64 = 0xf;
    let parange = (hardware & 0xf).min(PARANGE_40);
    let granule_16k = (hardware >> 20 & 0xf).min(1) << 20;
    let granule_4k = if hardware >> 28 & 0xf == GRANULE_4K_ABSENT { field(28) } else { 0 };
    hardware & (field(4) | field(8) | field(12) | field(16) | field(24))
        | parange
        | granule_16k
        | granule_4k
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything at once: each field of a register at 1.
    const ALL_ONES: u64 = 0x1111_1111_1111_1111;

    #[test]
    fn what_needs_el2_is_absent() {
        let pfr0 = visible(4, 0, ALL_ONES);
        for (name, bit) in [
            ("EL2", 8),
            ("EL3", 12),
            ("RAS", 28),
            ("SVE", 32),
            ("SEL2", 36),
            ("MPAM", 40),
            ("AMU", 44),
        ] {
            assert_eq!(pfr0 >> bit & 0xf, 0, "{name}");
        }
        assert_eq!(visible(4, 1, ALL_ONES) >> 8 & 0xf, 0, "MTE");
        assert_eq!(visible(5, 0, ALL_ONES) >> 8 & 0xf, 0, "PMUVer");
        assert_eq!(visible(7, 1, ALL_ONES) >> 8 & 0xf, 0, "VH");
        assert_eq!(visible(7, 2, ALL_ONES) >> 24 & 0xf, 0, "NV");
        assert_eq!(visible(6, 2, ALL_ONES) >> 16 & 0xf, 0, "MOPS");
    }

    #[test]
    fn what_is_not_known_is_zero() {
        for (crm, op2) in [(4, 4), (4, 5), (5, 1), (6, 3), (7, 3), (7, 4), (0, 3), (3, 7)] {
            assert_eq!(visible(crm, op2, u64::MAX), 0, "CRm {crm} Op2 {op2}");
        }
    }

    #[test]
    fn a_guest_sees_at_most_forty_bits_and_no_lpa2() {
        // cpu max: PARange 52 bits, TGran4 and TGran16 with LPA2.
        let seen = visible(7, 0, 0x1020_0000 | 2 << 20 | 6);
        assert_eq!(seen & 0xf, 2);
        assert_eq!(seen >> 28 & 0xf, 0);
        assert_eq!(seen >> 20 & 0xf, 1);
        // cortex-a57 without 16 KiB granule
        assert_eq!(visible(7, 0, 0x1124) & 0xf, 2);
        assert_eq!(visible(7, 0, 0xf000_1124) >> 28, 0xf);
    }

    #[test]
    fn the_gic_has_system_registers_and_el1_is_aarch64() {
        let pfr0 = visible(4, 0, 0x2222);
        assert_eq!(pfr0 >> 24 & 0xf, 1);
        assert_eq!(pfr0 >> 4 & 0xf, 1);
        assert_eq!(pfr0 & 0xf, 2);
    }
}
