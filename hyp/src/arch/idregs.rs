//! The CPU's own identification registers, by number.

use core::arch::asm;

macro_rules! identification {
    ($crm:expr, $op2:expr, [$(($m:literal, $o:literal, $name:literal)),* $(,)?]) => {
        match ($crm, $op2) {
            $(
                ($m, $o) => {
                    let value: u64;
                    // SAFETY: reading an identification register has no effect.
                    unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
                    value
                }
            )*
            _ => 0,
        }
    };
}

/// Reads the register (CRm, Op2) of the space Op0=3, Op1=0, CRn=0; 0 for what no architecture version names.
pub fn read(crm: u8, op2: u8) -> u64 {
    identification!(
        crm,
        op2,
        [
            (1, 0, "s3_0_c0_c1_0"),
            (1, 1, "s3_0_c0_c1_1"),
            (1, 2, "s3_0_c0_c1_2"),
            (1, 3, "s3_0_c0_c1_3"),
            (1, 4, "s3_0_c0_c1_4"),
            (1, 5, "s3_0_c0_c1_5"),
            (1, 6, "s3_0_c0_c1_6"),
            (1, 7, "s3_0_c0_c1_7"),
            (2, 0, "s3_0_c0_c2_0"),
            (2, 1, "s3_0_c0_c2_1"),
            (2, 2, "s3_0_c0_c2_2"),
            (2, 3, "s3_0_c0_c2_3"),
            (2, 4, "s3_0_c0_c2_4"),
            (2, 5, "s3_0_c0_c2_5"),
            (2, 6, "s3_0_c0_c2_6"),
            (2, 7, "s3_0_c0_c2_7"),
            (3, 0, "s3_0_c0_c3_0"),
            (3, 1, "s3_0_c0_c3_1"),
            (3, 2, "s3_0_c0_c3_2"),
            (3, 4, "s3_0_c0_c3_4"),
            (3, 6, "s3_0_c0_c3_6"),
            (4, 0, "s3_0_c0_c4_0"),
            (4, 1, "s3_0_c0_c4_1"),
            (5, 0, "s3_0_c0_c5_0"),
            (6, 0, "s3_0_c0_c6_0"),
            (6, 1, "s3_0_c0_c6_1"),
            (6, 2, "s3_0_c0_c6_2"),
            (7, 0, "s3_0_c0_c7_0"),
            (7, 1, "s3_0_c0_c7_1"),
            (7, 2, "s3_0_c0_c7_2"),
        ]
    )
}
