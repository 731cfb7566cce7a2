//! Which SMMU it is: its ID registers.

/// The ID registers of one SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// `IDR0`.
    pub idr0: u32,
    /// `IDR1`.
    pub idr1: u32,
    /// `IDR3`.
    pub idr3: u32,
    /// `IDR5`.
    pub idr5: u32,
    /// A full event queue shows as `GERROR.EVENTQ_ABT_ERR`, as in QEMU, rather than in `OVFLG`.
    pub overflows_like_qemu: bool,
}

impl Profile {
    /// QEMU 10 with stage=nested, as measured, with an architectural overflow.
    pub const NESTED: Self = Self {
        idr0: 0x0d44_101b,
        idr1: 0x0273_0010,
        idr3: 0x1414,
        idr5: 0x74,
        overflows_like_qemu: false,
    };
    /// QEMU 10 with stage=2, as measured.
    pub const STAGE2: Self = Self { idr0: 0x0d44_1019, overflows_like_qemu: true, ..Self::NESTED };
    /// Nested, and everything a driver has to switch off: ATS, and stalls where software allows them.
    pub const DANGEROUS: Self = Self { idr0: 0x0d44_101b & !(3 << 24) | 1 << 10, ..Self::NESTED };
    /// Nested, without two-level tables or range invalidation.
    pub const PLAIN: Self =
        Self { idr0: 0x0d44_101b & !(3 << 27), idr3: 0x1414 & !(1 << 10), ..Self::NESTED };
    /// All of them.
    pub const ALL: [Self; 4] = [Self::NESTED, Self::STAGE2, Self::DANGEROUS, Self::PLAIN];

    fn idr0_bit(&self, bit: u32) -> bool {
        self.idr0 >> bit & 1 != 0
    }

    /// `IDR0.S2P` `[0]` (section 6.3.1).
    pub fn stage2(&self) -> bool {
        self.idr0_bit(0)
    }

    /// `IDR0.S1P` `[1]`.
    pub fn stage1(&self) -> bool {
        self.idr0_bit(1)
    }

    /// `IDR0.ATS` `[10]`.
    pub fn ats(&self) -> bool {
        self.idr0_bit(10)
    }

    /// `IDR0.STALL_MODEL` `[25:24]` is 0: a transaction may stall if its configuration allows it.
    pub fn stalls(&self) -> bool {
        self.idr0 >> 24 & 3 == 0
    }

    /// `IDR3.RIL` `[10]` (section 6.3.4).
    pub fn range_invalidation(&self) -> bool {
        self.idr3 >> 10 & 1 != 0
    }

    /// `IDR5.OAS` `[2:0]` in bits (section 6.3.6).
    pub fn output_bits(&self) -> u32 {
        [32, 36, 40, 42, 44, 48, 52, 56][(self.idr5 & 7) as usize]
    }
}
