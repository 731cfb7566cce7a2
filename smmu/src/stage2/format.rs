//! The shape of a stage 2: sizes and where the walk starts.

use core::fmt;

use super::span;
use crate::addr::PAGE_SIZE;

/// Why no [`Format`] has the sizes asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// Width of an input address in bits.
    pub ipa_bits: u8,
    /// Width of an output address in bits.
    pub output_bits: u8,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ipa_bits, output_bits } = self;
        write!(
            f,
            "stage 2 cannot translate {ipa_bits}-bit to {output_bits}-bit addresses: \
             32 to 48 bits, input <= output"
        )
    }
}

impl core::error::Error for FormatError {}

/// The shape of a stage 2, from which `VTCR_EL2` and the STE's fields both follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    ipa_bits: u8,
    output_bits: u8,
    fwb: bool,
}

impl Format {
    /// Returns the format for `ipa_bits` of input and at most `output_bits` of output, which is rounded
    /// down to a size the architecture has. `fwb`: stage 2 alone decides about write-back, which
    /// `HCR_EL2.FWB` and `STE.S2FWB` then must say alike.
    ///
    /// # Errors
    ///
    /// [`FormatError`] unless 32 <= `ipa_bits` <= 48 and `ipa_bits` <= the rounded `output_bits`.
    pub const fn new(ipa_bits: u8, output_bits: u8, fwb: bool) -> Result<Self, FormatError> {
        let rounded = match output_bits {
            0..=31 => return Err(FormatError { ipa_bits, output_bits }),
            32..=35 => 32,
            36..=39 => 36,
            40..=41 => 40,
            42..=43 => 42,
            44..=47 => 44,
            _ => 48,
        };
        if ipa_bits < 32 || ipa_bits > rounded {
            return Err(FormatError { ipa_bits, output_bits });
        }
        Ok(Self { ipa_bits, output_bits: rounded, fwb })
    }

    /// Returns the format that fields laid out as in [`Format::vtcr`] describe.
    ///
    /// # Errors
    ///
    /// [`FormatError`] if no format has them.
    pub(crate) const fn from_vtcr(vtcr: u64, fwb: bool) -> Result<Self, FormatError> {
        let ipa_bits = 64 - (vtcr & 0x3f) as u8;
        let output_bits = match vtcr >> 16 & 7 {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            5 => 48,
            _ => 0,
        };
        match Self::new(ipa_bits, output_bits, fwb) {
            Ok(format) if format.vtcr() == vtcr => Ok(format),
            Ok(_) => Err(FormatError { ipa_bits, output_bits }),
            Err(error) => Err(error),
        }
    }

    /// Width of an input address in bits.
    pub const fn ipa_bits(self) -> u8 {
        self.ipa_bits
    }

    /// Width of an output address in bits.
    pub const fn output_bits(self) -> u8 {
        self.output_bits
    }

    /// Whether stage 2 alone decides about write-back.
    pub const fn fwb(self) -> bool {
        self.fwb
    }

    /// Bits 18:0 of `VTCR_EL2`: T0SZ, SL0, IRGN0, ORGN0, SH0, TG0 and PS. The STE has the same fields in
    /// the same order from bit 160 on. The CPU's remaining fields (RES1, VS, HA, HD) are the caller's.
    pub const fn vtcr(self) -> u64 {
        let t0sz = 64 - self.ipa_bits as u64;
        let sl0 = match self.start_level() {
            0 => 2,
            _ => 1,
        };
        let ps = match self.output_bits {
            32 => 0,
            36 => 1,
            40 => 2,
            42 => 3,
            44 => 4,
            _ => 5,
        };
        // Walks are inner shareable (SH0=3), write-back write-allocate (IRGN0=ORGN0=1), TG0=0 is 4 KiB.
        t0sz | sl0 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | ps << 16
    }

    /// Bytes of root table, a power of two and the root's alignment.
    pub const fn root_size(self) -> u64 {
        let size = 8 << (self.ipa_bits - span(self.start_level()).trailing_zeros() as u8);
        if size < PAGE_SIZE { PAGE_SIZE } else { size }
    }

    /// The level of the root table.
    pub(super) const fn start_level(self) -> u8 {
        if self.ipa_bits <= 43 { 1 } else { 0 }
    }
}
