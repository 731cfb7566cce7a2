//! The formats of the `smmu` crate against positions written down independently, and against the model's
//! decoders.

use proptest::prelude::*;
use smmu::addr::{Iova, Ipa, Pa, StreamId, Vmid};
use smmu::cmd::{Command as Ours, Granule, Pages};
use smmu::event::{Event, FaultClass};
use smmu::stage2::Format;
use smmu::ste::{Stage2Config, Ste};

use super::cases;
use crate::decode::{self, Command, bits};
use crate::profile::Profile;

/// An STE field: name, highest and lowest bit (section 5.2 of Arm IHI 0070), value.
type Field = (&'static str, usize, usize, u64);

/// Checks that the words have these fields, and nothing outside them.
fn check(words: &[u64], fields: &[Field]) {
    let mut rest = words.to_vec();
    for &(name, high, low, value) in fields {
        assert_eq!(bits(words, high, low), value, "{name} [{high}:{low}] of {words:x?}");
        rest[low / 64] &= !(u64::MAX >> (63 - (high - low)) << (low % 64));
    }
    assert!(rest.iter().all(|word| *word == 0), "{rest:x?} lies outside all fields");
}

#[test]
fn an_ste_has_each_field_where_the_specification_puts_it() {
    check(&Ste::Abort.encode(), &[("V", 0, 0, 1), ("Config", 3, 1, 0b000)]);
    let ste = Ste::Stage2(Stage2Config {
        vmid: Vmid(0xa5c3),
        root: Pa::new(0xfed_cba9_8000),
        format: Format::new(40, 44, true).unwrap(),
        record: true,
        stall_disable: true,
    });
    check(
        &ste.encode(),
        &[
            ("V", 0, 0, 1),
            ("Config", 3, 1, 0b110),
            ("S1Fmt", 5, 4, 0),
            ("S1ContextPtr", 55, 6, 0),
            ("S1CDMax", 63, 59, 0),
            ("S1DSS", 65, 64, 0),
            ("S1CIR", 67, 66, 0),
            ("S1COR", 69, 68, 0),
            ("S1CSH", 71, 70, 0),
            ("DRE", 76, 76, 0),
            ("CONT", 80, 77, 0),
            ("DCP", 81, 81, 0),
            ("PPAR", 82, 82, 0),
            // Linux: STRTAB_STE_1_MEV is bit 19 of word 1.
            ("MEV", 83, 83, 1),
            // Linux: STRTAB_STE_1_S2FWB is bit 25 of word 1.
            ("S2FWB", 89, 89, 1),
            // Linux: STRTAB_STE_1_S1STALLD is bit 27 of word 1; QEMU: C_BAD_STE with 1 and no stalls.
            ("S1STALLD", 91, 91, 1),
            ("EATS", 93, 92, 0),
            ("STRW", 95, 94, 0),
            ("MemAttr", 99, 96, 0),
            ("MTCFG", 100, 100, 0),
            ("ALLOCCFG", 104, 101, 0),
            ("SHCFG", 109, 108, 1),
            ("NSCFG", 111, 110, 0),
            ("PRIVCFG", 113, 112, 0),
            ("INSTCFG", 115, 114, 0),
            ("S2VMID", 143, 128, 0xa5c3),
            ("S2T0SZ", 165, 160, 24),
            ("S2SL0", 167, 166, 1),
            ("S2IR0", 169, 168, 1),
            ("S2OR0", 171, 170, 1),
            ("S2SH0", 173, 172, 3),
            ("S2TG", 175, 174, 0),
            ("S2PS", 178, 176, 4),
            // QEMU stops with 0.
            ("S2AA64", 179, 179, 1),
            ("S2ENDI", 180, 180, 0),
            ("S2AFFD", 181, 181, 0),
            ("S2PTW", 182, 182, 1),
            ("S2HD", 183, 183, 0),
            ("S2HA", 184, 184, 0),
            ("S2S", 185, 185, 0),
            ("S2R", 186, 186, 1),
            ("S2NSW", 192, 192, 0),
            ("S2TTB", 247, 196, 0xfed_cba9_8000 >> 4),
        ],
    );
}

/// A command of ours, and what the model has to make of it.
fn command() -> impl Strategy<Value = (Ours, Command)> {
    let vmid = any::<u16>().prop_map(Vmid);
    let granules = prop::sample::select(vec![Granule::K4, Granule::K16, Granule::K64]);
    let granules =
        (granules, 2_u8..4, 1_u8..=32, 0_u8..=31).prop_map(|(granule, level, multiple, scale)| {
            Pages::Granules { granule, level, multiple, scale }
        });
    let pages = prop_oneof![
        granules,
        Just(Pages::One),
        (1_u8..=32, 0_u8..=31)
            .prop_filter("reserved", |parts| *parts != (1, 0))
            .prop_map(|(multiple, scale)| Pages::Range { multiple, scale }),
    ];
    let size = |pages| match pages {
        Pages::One => 4096,
        Pages::Range { multiple, scale } => u64::from(multiple) << scale << 12,
        Pages::Granules { granule, multiple, scale, .. } => {
            u64::from(multiple) << scale << granule.log2()
        }
    };
    let first = |pages, at: u64| match pages {
        Pages::Granules { granule, .. } => at >> granule.log2() << granule.log2(),
        _ => at,
    };
    (
        any::<u32>(),
        vmid,
        any::<u16>(),
        (0_u64..1 << 52).prop_map(|page| page << 12),
        pages,
        0_u8..31,
    )
        .prop_flat_map(move |(sid, vmid, asid, at, pages, range)| {
            let id = StreamId(sid);
            let tag = vmid.0;
            let named = (first(pages, at), size(pages));
            let (address, ipa) = (Iova::new(at), Ipa::new(at));
            let group = ((2_u64 << range) - 1) as u32;
            (prop::bool::ANY, prop::sample::select((0..13).collect::<Vec<_>>())).prop_map(
                move |(leaf, which)| match which {
                    0 => (Ours::CfgiSte { sid: id, leaf }, Command::Configuration(sid, sid, !leaf)),
                    1 => (
                        Ours::CfgiSteRange { sid: id, range },
                        Command::Configuration(sid & !group, sid | group, false),
                    ),
                    2 => (Ours::CfgiAll, Command::Configuration(0, u32::MAX, true)),
                    3 => (
                        Ours::CfgiCd { sid: id, ssid: u32::from(asid), leaf },
                        Command::Context(sid),
                    ),
                    4 => (Ours::CfgiCdAll { sid: id }, Command::Context(sid)),
                    5 => (Ours::TlbiNhAll { vmid }, Command::Stage1(tag)),
                    6 => (Ours::TlbiNhAsid { vmid, asid }, Command::Asid(tag, asid)),
                    7 => (
                        Ours::TlbiNhVa { vmid, asid, address, pages, leaf },
                        Command::Address(tag, Some(asid), named, leaf),
                    ),
                    8 => (
                        Ours::TlbiNhVaa { vmid, address, pages, leaf },
                        Command::Address(tag, None, named, leaf),
                    ),
                    9 => (Ours::TlbiS12Vmall { vmid }, Command::Vmid(tag)),
                    10 => (
                        Ours::TlbiS2Ipa { vmid, address: ipa, pages, leaf },
                        Command::Ipa(tag, named, leaf),
                    ),
                    11 => (Ours::TlbiNsnhAll, Command::Everything),
                    _ => (Ours::Sync, Command::Sync),
                },
            )
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(500)))]

    #[test]
    fn the_model_understands_each_command_as_meant((ours, theirs) in command()) {
        prop_assert_eq!(decode::command(&ours.encode(), &Profile::NESTED), Ok(theirs));
    }

    #[test]
    fn the_model_understands_each_ste_as_meant(
        vmid: u16,
        input in 32_u8..=44,
        output in 40_u8..=44,
        root in 0_u64..1 << 20,
        record: bool,
        fwb: bool,
    ) {
        prop_assume!(input <= output);
        let format = Format::new(input, output, fwb);
        prop_assume!(format.is_ok());
        let format = format.unwrap();
        let root = (root * format.root_size()) & 0xff_ffff_ffff;
        let ste = Ste::Stage2(Stage2Config {
            vmid: Vmid(vmid),
            root: Pa::new(root),
            format,
            record,
            stall_disable: false,
        });
        let expected = decode::Ste::Stage2(decode::Stage2 {
            vmid,
            bits: input.into(),
            level: if input <= 43 { 1 } else { 0 },
            output_bits: format.output_bits().into(),
            table: root,
            record,
            stall: false,
            merge: true,
        });
        prop_assert_eq!(decode::ste(&ste.encode(), &Profile::NESTED), expected);
        prop_assert_eq!(decode::forbidden_in_ste(&ste.encode(), &Profile::NESTED), None);
    }

    /// Whatever words a command has: either the SMMU knows it, or it is illegal.
    #[test]
    fn no_command_confuses_the_model(low: u64, high: u64) {
        let _ = decode::command(&[low, high], &Profile::NESTED);
        let _ = decode::ste(&[low, high, low, high, low, high, low, high], &Profile::DANGEROUS);
        let _ = decode::cd(&[low, high, low, high, low, high, low, high], &Profile::DANGEROUS);
    }
}

/// Records that QEMU 10 wrote, as measured, as 32-bit words, and what they say: name, address, write,
/// stage 2, class.
#[test]
fn records_of_qemu_mean_what_they_should() {
    type Says = (&'static str, Option<(u64, bool)>, Option<(bool, FaultClass)>);
    let input = FaultClass::Input;
    let table: [([u32; 8], Says); 7] = [
        ([4, 0x10, 0, 0, 0, 0, 0, 0], ("C_BAD_STE", None, None)),
        ([2, 0x10, 0, 0, 0, 0, 0, 0], ("C_BAD_STREAMID", None, None)),
        (
            [0x10, 0x10, 0, 0x280, 0x1_1238, 0, 0x1_1238, 0],
            ("F_TRANSLATION", Some((0x1_1238, true)), Some((true, input))),
        ),
        (
            [0x10, 0x10, 0, 0x288, 0x1_1238, 0, 0x1_1238, 0],
            ("F_TRANSLATION", Some((0x1_1238, false)), Some((true, input))),
        ),
        (
            [0x13, 0x10, 0, 0x280, 0x1_1238, 0, 0x1_1238, 0],
            ("F_PERMISSION", Some((0x1_1238, true)), Some((true, input))),
        ),
        (
            [0x10, 0x10, 0, 0x200, 0x2_2abc, 0, 0, 0],
            ("F_TRANSLATION", Some((0x2_2abc, true)), Some((false, input))),
        ),
        (
            [0x10, 0x10, 0, 0x88, 0, 0, 0x4017_0000, 0],
            ("F_TRANSLATION", Some((0, false)), Some((true, FaultClass::Cd))),
        ),
    ];
    for (record, says) in table {
        let event = Event::decode(core::array::from_fn(|word| {
            u64::from(record[2 * word]) | u64::from(record[2 * word + 1]) << 32
        }));
        assert_eq!(event.sid, StreamId(0x10));
        let told = (
            event.kind.name(),
            event.input.map(|input| (input.address.raw(), input.write)),
            event.stage.map(|stage| (stage.stage2, stage.class)),
        );
        assert_eq!(told, says);
    }
}
