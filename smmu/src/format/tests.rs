//! That the formats are where the architecture has them, and that nothing else decodes.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::addr::{Iova, Ipa, Pa};
use crate::fake::cases;
use crate::format::cd::Cd;
use crate::format::command::Command;
use crate::format::event::Event;
use crate::format::ste::Ste;

/// Bits of one structure, with no gap where there should be none and no overlap.
fn check_layout(name: &str, words: usize, fields: &[Field]) {
    let mut used: Vec<u64> = std::vec![0; words];
    for field in fields {
        assert!(field.low <= field.high && field.high / 64 == field.low / 64, "{name}.{field:?}");
        let word = &mut used[field.low / 64];
        assert_eq!(*word & field.mask(), 0, "{name}.{field:?} overlaps another field");
        *word |= field.mask();
    }
}

#[test]
fn no_two_fields_overlap() {
    check_layout("STE", 8, Ste::FIELDS);
    check_layout("L1STD", 1, ste::Level1::FIELDS);
    check_layout("CD", 8, Cd::FIELDS);
    check_layout("L1CD", 1, cd::Level1::FIELDS);
    for it in register::ALL {
        let name = it.name;
        check_layout(name, 1, it.fields);
        assert!(it.fields.iter().all(|field| field.high < it.width as usize), "{name}");
        assert_eq!(it.offset % (it.width / 8), 0, "{name}");
        for other in register::ALL {
            let same = (it.base, it.offset, it.width) == (other.base, other.offset, other.width);
            assert_eq!(same, name == other.name, "{name}, {}", other.name);
        }
    }
}

/// Words in which few bits are set, or nearly all.
fn words<const N: usize>() -> impl Strategy<Value = [u64; N]> {
    let sparse = prop::collection::vec(0_usize..64 * N, 0..12).prop_map(|bits| {
        let mut words = [0; N];
        for bit in bits {
            words[bit / 64] |= 1 << (bit % 64);
        }
        words
    });
    let any = prop::collection::vec(any::<u64>(), N)
        .prop_map(|words| core::array::from_fn(|index| words[index]));
    prop_oneof![4 => sparse, 1 => any]
}

/// The same words without what lies outside all fields.
fn only<const N: usize>(mut words: [u64; N], fields: &[Field]) -> [u64; N] {
    let mut used = [0; N];
    for field in fields {
        used[field.low / 64] |= field.mask();
    }
    for (word, used) in words.iter_mut().zip(used) {
        *word &= used;
    }
    words
}

proptest! {
    #![proptest_config(cases(256))]

    /// Whatever decodes says those words and no others.
    #[test]
    fn what_decodes_is_encoded_again(ste in words::<8>(), cd in words::<8>(), event in words::<4>()) {
        if let Ok(decoded) = Ste::decode(&only(ste, Ste::FIELDS)) {
            prop_assert_eq!(decoded.encode(), only(ste, Ste::FIELDS));
        }
        if let Ok(decoded) = Cd::decode(&only(cd, Cd::FIELDS)) {
            prop_assert_eq!(decoded.encode(), only(cd, Cd::FIELDS));
        }
        for (code, name) in Event::ALL {
            let [first, rest @ ..] = event;
            let words = [first & !0xff | u64::from(*code), rest[0], rest[1], rest[2]];
            if let Ok(decoded) = Event::decode(&words) {
                prop_assert_eq!((decoded.encode(), decoded.name()), (words, *name));
            }
        }
    }

    #[test]
    fn commands_that_decode_are_encoded_again(command in words::<2>()) {
        let [low, high] = command;
        for (code, name) in Command::ALL {
            let words = [low & !0xff | u64::from(*code), high];
            if let Ok(decoded) = Command::decode(&words) {
                prop_assert_eq!((decoded.encode(), decoded.name()), (words, *name));
            }
        }
    }

    #[test]
    fn registers_that_decode_are_encoded_again([content] in words::<1>()) {
        let mut results: Vec<&str> = Vec::new();
        for register in register::ALL {
            let [content] = only([content], register.fields);
            match (register.again)(content) {
                Ok(again) => {
                    prop_assert_eq!(again, content, "{}", register.name);
                    // Of two layouts at most one is meant.
                    prop_assert!(!results.contains(&register.name), "{}", register.name);
                    results.push(register.name);
                }
                Err(Reserved::Encoding(_)) => {}
                Err(other) => prop_assert!(false, "{}: {other}", register.name),
            }
        }
    }

    #[test]
    fn stray_bits_of_registers_do_not_decode(bit in 0_usize..64) {
        for register in register::ALL {
            if only([1 << bit], register.fields) == [0] {
                // Whatever else is wrong with such a content, it does not decode.
                prop_assert!((register.again)(1 << bit).is_err(), "{}", register.name);
                let fields = register.fields.iter().fold(0, |bits, field| bits | field.mask());
                prop_assert!((register.again)(fields | 1 << bit).is_err(), "{}", register.name);
            }
        }
    }

    /// A bit outside all fields is never accepted, nor one that is reserved together with others.
    #[test]
    fn stray_bits_do_not_decode(bit in 0_usize..512) {
        let mut words = [0; 8];
        words[bit / 64] = 1 << (bit % 64);
        let stray = only(words, Ste::FIELDS) == [0; 8];
        let reserved = Reserved::Bits { word: bit / 64, bits: 1 << (bit % 64) };
        prop_assert_eq!(Ste::decode(&words) == Err(reserved), stray);
        // TG1 of an all-zero CD is reserved unless EPD1 is set.
        let stray = only(words, Cd::FIELDS) == [0; 8];
        words[0] |= 1 << 30;
        prop_assert_eq!(Cd::decode(&words) == Err(reserved), stray);
    }
}

#[test]
fn reserved_encodings_are_named() {
    let ste = |word: usize, bits: u64| {
        let mut words = [0; 8];
        words[word] = bits;
        Ste::decode(&words).map(|_| ())
    };
    let encoding = |name| Err(Reserved::Encoding(name));
    for config in 1..4 {
        assert_eq!(ste(0, config << 1), encoding("Config"));
    }
    assert_eq!(ste(0, 3 << 4), encoding("S1Fmt"));
    assert_eq!(ste(1, 3), encoding("S1DSS"));
    assert_eq!(ste(1, 1 << 6), encoding("S1CSH"));
    assert_eq!((ste(1, 1 << 30), ste(1, 3 << 30)), (encoding("STRW"), encoding("STRW")));
    assert_eq!((ste(1, 1 << 48), ste(1, 1 << 50)), (encoding("PRIVCFG"), encoding("INSTCFG")));
    assert_eq!((ste(2, 1 << 44), ste(2, 3 << 46)), (encoding("S2SH0"), encoding("S2TG")));
    assert_eq!((ste(2, 1 << 55), ste(2, 1 << 59)), (encoding("S2HD"), encoding("S2HAFT")));
    assert_eq!((ste(2, 1 << 56), ste(2, 3 << 55), ste(2, 9 << 56)), (Ok(()), Ok(()), Ok(())));
    assert_eq!(ste(2, 3 << 62), encoding("DPT_VMATCH"));
    assert_eq!(
        (ste(7, 1), ste(7, 5 << 60), ste(7, 3)),
        (encoding("S2POI"), encoding("S2POI"), Ok(()))
    );
    // S2NSW and S2NSA are a Secure stream's, MPAM_NS a Realm's.
    for (word, bits) in [(0, 1 << 56), (1, 1 << 41), (1, 1 << 46), (3, 1), (3, 2), (5, 1 << 8)] {
        assert_eq!(ste(word, bits), Err(Reserved::Bits { word, bits }));
    }

    let cd = |word: usize, bits: u64| {
        let mut words = [1 << 30, 0, 0, 0, 0, 0, 0, 0];
        words[word] |= bits;
        Cd::decode(&words).map(|_| ())
    };
    assert_eq!(Cd::decode(&[0; 8]), Err(Reserved::Encoding("TG1")));
    assert_eq!((cd(0, 3 << 6), cd(0, 1 << 12)), (encoding("TG0"), encoding("SH0")));
    assert_eq!(
        (cd(0, 1 << 42), cd(0, 3 << 42), cd(1, 8)),
        (encoding("HD"), Ok(()), encoding("HAFT"))
    );
    assert_eq!((cd(6, 4), cd(6, 6 << 45), cd(6, 7)), (encoding("PIIU"), encoding("PIIU"), Ok(())));
    assert_eq!((cd(7, 4), cd(7, 5), cd(7, 6)), (encoding("PIIP"), Ok(()), encoding("PIIP")));

    let command = |low: u64, high: u64| Command::decode(&[low, high]).map(|_| ());
    assert_eq!(command(0, 0), Err(Reserved::Number(0)));
    // CMD_TLBI_EL3_ALL and those of Secure state are not the Non-secure queue's.
    for number in [0x08, 0x18, 0x1a, 0x50, 0x60, 0xff] {
        assert_eq!(command(number.into(), 0), Err(Reserved::Number(number)));
    }
    // SSec.
    assert_eq!(command(0x403, 0), Err(Reserved::Bits { word: 0, bits: 0x400 }));
    // A range without a granule, one granule without a level, a width without a level.
    assert_eq!(command(0x1012, 0), encoding("TG"));
    assert_eq!((command(0x12, 1 << 8), command(0x12, 1 << 7)), (encoding("TG"), encoding("TG")));
    assert_eq!(command(0x2a, 1 << 10), encoding("TTL"));
    assert_eq!(command(0x102a, 1 << 10 | 1 << 7), encoding("TTL128"));
    assert_eq!((command(0x102a, 1 << 10), command(0x2a, 1 << 10 | 3 << 8)), (Ok(()), Ok(())));
    assert_eq!((command(0x40, 52), command(0x40, 53)), (Ok(()), encoding("Size")));
    assert_eq!((command(0x41, 3 << 12), command(0x3046, 0)), (encoding("Resp"), encoding("CS")));
    assert_eq!(command(0x46 | 1 << 22, 0), encoding("MSH"));
    assert_eq!((command(0x73, 9 << 8), command(0x73, 10 << 8)), (Ok(()), encoding("SIZE")));
    // No physical and no intermediate physical address has more than 56 bits.
    for number in [0x2a, 0x46, 0x73] {
        let reserved = Reserved::Bits { word: 1, bits: 1 << 56 };
        assert_eq!(command(number, 1 << 56), Err(reserved), "{number:#x}");
    }

    assert_eq!(Event::decode(&[0x26, 0, 0, 0]), Err(Reserved::Number(0x26)));
    assert_eq!(Event::decode(&[0x10, 3 << 40, 0, 0]), Err(Reserved::Encoding("CLASS")));
    assert_eq!(Event::decode(&[0x04, 0, 0, 1]), Err(Reserved::Bits { word: 3, bits: 1 }));
    // F_STREAM_DISABLED and F_TRANSL_FORBIDDEN name no substream, C_BAD_SUBSTREAMID always one; F_PERMISSION alone has
    // flags of its own.
    let stray = |number: u64, word: usize, bits: u64| {
        let mut words = [number, 0, 0, 0];
        words[word] |= bits;
        Event::decode(&words).err() == Some(Reserved::Bits { word, bits })
    };
    assert!([0x06, 0x07, 0x08].iter().all(|number| stray(*number, 0, 1 << 11)));
    assert!([0x06, 0x07].iter().all(|number| stray(*number, 0, 1 << 12)));
    assert!(!stray(0x08, 0, 1 << 12));
    for bit in [42, 43, 44, 45] {
        assert!([0x10, 0x11, 0x12].iter().all(|number| stray(*number, 1, 1 << bit)), "{bit}");
        assert!(!stray(0x13, 1, 1 << bit), "{bit}");
    }
    // F_BAD_ATS_TREQ names pages, and has gaps in its second word.
    assert!(stray(0x05, 2, 1 << 11) && !stray(0x05, 2, 1 << 12));
    assert!([4, 27, 32].iter().all(|bit| stray(0x05, 1, 1 << bit)));

    let register = |name, content| {
        let mut layouts = register::ALL.iter().filter(|register| register.name == name);
        layouts.find_map(|register| (register.again)(content).err())
    };
    let refused = |name| Some(Reserved::Encoding(name));
    assert_eq!((register("S2PII", 0xe << 4), register("S2PII", 5 << 60)), (None, refused("S2PII")));
    let most = 32 | 20 << 6 | 31 << 11 | 19 << 16 | 19 << 21;
    assert_eq!(register("IDR1", most), None);
    for (name, low) in [("SIDSIZE", 0), ("SSIDSIZE", 6), ("EVENTQS", 16), ("CMDQS", 21)] {
        assert_eq!(register("IDR1", most + (1 << low)), refused(name));
    }
    assert_eq!((register("GERRORN", 1 << 9), register("GERROR", 1 << 9)), (None, None));
    assert_eq!(register("IDR6", 8 << 24 | 8 << 16), None);
    assert_eq!(register("IDR6", 9 << 16), refused("CMDQ_CONTROL_PAGE_LOG2NUMQ"));
    assert_eq!(register("IDR6", 9 << 24), refused("CMDQ_CONTROL_PAGE_LOG2NUMP"));
    assert_eq!(register("DPT_BASE_CFG", 7), refused("DPTPS"));
    assert_eq!(register("DPT_BASE_CFG", 3 << 14), refused("DPTGS"));
    assert_eq!(register("DPT_BASE_CFG", 1 << 20), refused("L0DPTSZ"));
    assert_eq!(register("DPT_CFG_FAR", 4 << 4), refused("DPT_FAULTCODE"));
    assert_eq!(register("CMDQ_CONTROL_PAGE_BASE", 1), refused("CMDQGS"));
    assert_eq!(register("GATOS_ADDR", 0), refused("TYPE"));
    assert_eq!(register("VATOS_ADDR", 2 << 10), refused("TYPE"));
    assert_eq!(register("ECMDQ_CONS", 4 << 24), refused("ERR_REASON"));
    // The result of a virtual operation tells nothing of stage 2.
    let fault = 0x13 << 4 | 0b10 << 1 | 1;
    assert_eq!(register::VatosParFault::decode(&[fault]), Err(Reserved::Encoding("REASON")));
    let fault = register::GatosParFault::decode(&[fault | 0x4567_8000]).unwrap();
    assert_eq!(fault.code, register::OperationFault::Permission);
    assert_eq!((fault.reason, fault.addr), (register::Activity::Table, Address(0x4567_8000)));

    assert_eq!(ste::Level1::decode(&[11]).map(|_| ()), Ok(()));
    assert_eq!(ste::Level1::decode(&[12]).map(|_| ()), encoding("Span"));
    assert_eq!(cd::Level1::decode(&[2]), Err(Reserved::Bits { word: 0, bits: 2 }));
}

#[test]
fn an_overlong_value_stays_in_its_field() {
    let all = Ste {
        context: Address(!0),
        context_log2: 0xff,
        contiguous: 0xff,
        stage2_size: 0xff,
        stage2_table: Address(!0),
        vms: Address(!0),
        ..Ste::default()
    };
    let words = all.encode();
    assert_eq!(words[0], 0x00ff_ffff_ffff_ffc0 | 0x1f << 59);
    assert_eq!((words[1], words[2]), (0xf << 13, 0x3f << 32));
    // S2TTB [247:196] holds address bits 55:4, VMSPtr [375:332] 55:12.
    assert_eq!((words[3], words[5]), (0x00ff_ffff_ffff_fff0, 0x00ff_ffff_ffff_f000));
}

#[test]
fn errors_say_where() {
    use std::string::ToString;
    assert_eq!(Reserved::Encoding("S2TG").to_string(), "S2TG has a reserved encoding");
    assert_eq!(Reserved::Bits { word: 3, bits: 2 }.to_string(), "bits 0x2 of word 3 are reserved");
    assert_eq!(Reserved::Number(9).to_string(), "number 0x09 is reserved");
}

/// Every encoding that a type has is its own, and comes back.
#[test]
fn encodings_come_back() {
    fn check<T: Value + PartialEq + fmt::Debug>(all: &[T], width: u32) {
        let known = (0..1 << width).filter_map(|bits| T::from_bits(bits, 0));
        assert_eq!(known.count(), all.len());
        for value in all {
            assert_eq!(T::from_bits(value.to_bits(0), 0), Some(*value));
        }
    }
    check(Cacheability::ALL, 2);
    check(Shareability::ALL, 2);
    check(Override::ALL, 2);
    check(ShareabilityOverride::ALL, 2);
    check(AddressSize::ALL, 3);
    check(Granule0::ALL, 2);
    check(Granule1::ALL, 2);
    check(ste::Config::ALL, 3);
    check(ste::ContextTable::ALL, 2);
    check(ste::DefaultSubstream::ALL, 2);
    check(ste::Ats::ALL, 2);
    check(ste::StreamWorld::ALL, 2);
    check(ste::VmidMatch::ALL, 2);
    check(command::TlbGranule::ALL, 2);
    check(command::PriAnswer::ALL, 2);
    check(command::Signal::ALL, 2);
    check(command::PermissionSize::ALL, 4);
    check(event::Class::ALL, 2);
    check(register::TableLevels::ALL, 2);
    check(register::StallModel::ALL, 2);
    check(register::Endianness::ALL, 2);
    check(register::FlagUpdate::ALL, 2);
    check(register::TableFormats::ALL, 2);
    check(register::BreakBeforeMake::ALL, 2);
    check(register::VirtualSize::ALL, 2);
    check(register::TableCacheability::ALL, 2);
    check(register::VmidWildcard::ALL, 3);
    check(register::TableFormat::ALL, 2);
    check(register::Split::ALL, 5);
    check(register::CommandError::ALL, 7);
    check(register::Translated::ALL, 2);
    check(register::VirtuallyTranslated::ALL, 2);
    check(register::Success::ALL, 1);
    check(register::Failure::ALL, 1);
    check(register::Activity::ALL, 2);
    check(register::VirtualActivity::ALL, 2);
    check(register::OperationFault::ALL, 8);
    check(register::PermissionTableReach::ALL, 3);
    check(register::PermissionTableSpan::ALL, 4);
    check(register::PermissionTableFault::ALL, 4);
    check(register::ControlPageSize::ALL, 2);
}

#[test]
fn addresses_of_all_spaces_are_the_same_bits() {
    let [pa, ipa, iova] = [
        Address::from(Pa::new(0x1234_5000)),
        Address::from(Ipa::new(0x1234_5000)),
        Address::from(Iova::new(0x1234_5000)),
    ];
    assert_eq!([pa, ipa, iova], [Address(0x1234_5000); 3]);
}
