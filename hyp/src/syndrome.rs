//! What `ESR_EL2` says about an exception from a guest (Arm ARM, D19.2.37).

use smmu::addr::Ipa;

use crate::width::Width;

/// A load or store that the syndrome describes completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Whether it stores.
    pub write: bool,
    /// How wide it is in memory.
    pub width: Width,
    /// The general register, 0 to 30, or `None` for the zero register.
    pub register: Option<usize>,
    /// Whether a loaded value is sign-extended.
    pub signed: bool,
    /// Whether the register is used as a 64-bit one.
    pub sixty_four: bool,
    /// Whether the most significant byte is first in memory. No syndrome says so: it is the guest's state.
    pub big_endian: bool,
}

impl Access {
    /// What a store of `register` writes to a device, whose registers are little-endian.
    pub fn stored(&self, register: u64) -> u64 {
        if self.big_endian { self.width.swapped(register) } else { register }
    }

    /// What a load that read `value` from a device leaves in its register.
    pub fn extend(&self, value: u64) -> u64 {
        let bits = self.width.bytes() * 8;
        let value = self.stored(value) & self.width.mask();
        let extended = if self.signed && bits < 64 {
            (((value << (64 - bits)) as i64) >> (64 - bits)) as u64
        } else {
            value
        };
        if self.sixty_four { extended } else { extended & 0xffff_ffff }
    }
}

/// An access to a system register (`MRS`, `MSR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterAccess {
    /// Op0, Op1, CRn, CRm, Op2.
    pub register: (u8, u8, u8, u8, u8),
    /// Whether it reads.
    pub read: bool,
    /// The general register, 0 to 30, or `None` for the zero register.
    pub general: Option<usize>,
}

/// Why a guest trapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// `WFI` or `WFE`.
    Wait,
    /// `HVC`, from AArch64.
    Hvc(u16),
    /// `SMC`, from AArch64.
    Smc(u16),
    /// A system register.
    Register(RegisterAccess),
    /// A stage-2 fault of a data access that the syndrome describes.
    Data {
        /// What was accessed, up to the last byte's address bits.
        ipa: Ipa,
        /// How.
        access: Access,
    },
    /// A stage-2 fault that nothing can be emulated from: a fetch, a table walk, or an access without syndrome.
    Opaque {
        /// The page, as far as it is known.
        ipa: Ipa,
    },
    /// Anything else: an instruction that this machine does not have.
    Undefined,
}

fn general(number: u64) -> Option<usize> {
    (number & 31 != 31).then_some((number & 31) as usize)
}

impl Trap {
    /// Decodes `ESR_EL2`, `FAR_EL2` and `HPFAR_EL2`.
    pub fn decode(esr: u64, far: u64, hpfar: u64) -> Self {
        let ipa = Ipa::new((hpfar >> 4 & 0xff_ffff_ffff) << 12 | far & 0xfff);
        match esr >> 26 & 0x3f {
            0x01 => Self::Wait,
            0x16 => Self::Hvc(esr as u16),
            0x17 => Self::Smc(esr as u16),
            0x18 => Self::Register(RegisterAccess {
                register: (
                    (esr >> 20 & 3) as u8,
                    (esr >> 14 & 7) as u8,
                    (esr >> 10 & 0xf) as u8,
                    (esr >> 1 & 0xf) as u8,
                    (esr >> 17 & 7) as u8,
                ),
                read: esr & 1 != 0,
                general: general(esr >> 5),
            }),
            0x20 => Self::Opaque { ipa },
            0x24 => Self::data(esr, ipa),
            _ => Self::Undefined,
        }
    }

    fn data(esr: u64, ipa: Ipa) -> Self {
        const ISV: u64 = 1 << 24;
        const S1PTW: u64 = 1 << 7;
        const CACHE_MAINTENANCE: u64 = 1 << 8;
        if esr & ISV == 0 || esr & (S1PTW | CACHE_MAINTENANCE) != 0 {
            return Self::Opaque { ipa };
        }
        Self::Data {
            ipa,
            access: Access {
                write: esr & 1 << 6 != 0,
                width: match esr >> 22 & 3 {
                    0 => Width::Byte,
                    1 => Width::Half,
                    2 => Width::Word,
                    _ => Width::Double,
                },
                register: general(esr >> 16),
                signed: esr & 1 << 21 != 0,
                sixty_four: esr & 1 << 15 != 0,
                big_endian: false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_store_to_a_device_is_described() {
        // str w3, [x0] at 0x0900_0038: ISV, SAS=2, SRT=3, WnR, translation fault level 3.
        let trap = Trap::decode(0x9383_0047, 0xffff_8000_1000_0038, 0x9_0000);
        let access = Access {
            write: true,
            width: Width::Word,
            register: Some(3),
            signed: false,
            sixty_four: false,
            big_endian: false,
        };
        assert_eq!(trap, Trap::Data { ipa: Ipa::new(0x0900_0038), access });
    }

    #[test]
    fn an_access_without_syndrome_is_opaque() {
        let trap = Trap::decode(0x9200_0047, 0x38, 0x9_0000);
        assert_eq!(trap, Trap::Opaque { ipa: Ipa::new(0x0900_0038) });
    }

    #[test]
    fn a_table_walk_is_opaque_even_with_syndrome() {
        let trap = Trap::decode(0x9383_00c7, 0x38, 0x9_0000);
        assert_eq!(trap, Trap::Opaque { ipa: Ipa::new(0x0900_0038) });
    }

    #[test]
    fn loads_extend_as_the_instruction_says() {
        let load = |width, signed, sixty_four| Access {
            write: false,
            width,
            register: Some(0),
            signed,
            sixty_four,
            big_endian: false,
        };
        assert_eq!(load(Width::Byte, false, false).extend(0x1ff), 0xff);
        assert_eq!(load(Width::Byte, true, false).extend(0x80), 0xffff_ff80);
        assert_eq!(load(Width::Half, true, true).extend(0x8000), 0xffff_ffff_ffff_8000);
        assert_eq!(load(Width::Double, false, true).extend(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_big_endian_guest_has_the_bytes_the_other_way_round() {
        let access = |width, signed| Access {
            write: false,
            width,
            register: Some(0),
            signed,
            sixty_four: true,
            big_endian: true,
        };
        for (width, stored) in [
            (Width::Byte, 0x88),
            (Width::Half, 0x8877),
            (Width::Word, 0x8877_6655),
            (Width::Double, 0x8877_6655_4433_2211),
        ] {
            assert_eq!(access(width, false).stored(0x1122_3344_5566_7788), stored);
            assert_eq!(access(width, false).extend(stored), 0x1122_3344_5566_7788 & width.mask());
        }
        assert_eq!(access(Width::Half, true).extend(0x0080), 0xffff_ffff_ffff_8000);
    }

    #[test]
    fn the_zero_register_is_no_register() {
        // msr osdlr_el1, xzr: op0=2 op1=0 CRn=1 CRm=3 op2=4
        let esr = 0x18 << 26 | 1 << 25 | 2 << 20 | 4 << 17 | 1 << 10 | 31 << 5 | 3 << 1;
        let Trap::Register(access) = Trap::decode(esr, 0, 0) else { panic!("not a register trap") };
        assert_eq!(access.register, (2, 0, 1, 3, 4));
        assert_eq!(access.general, None);
        assert!(!access.read);
    }
}
