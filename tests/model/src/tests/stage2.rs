//! The stage-2 builder against another one: the `aarch64-paging` crate, where formats overlap. That one has
//! no concatenated roots, so addresses stay below 39 bits, where both walks are the same.

use aarch64_paging::descriptor::Stage2Attributes as Theirs;
use aarch64_paging::linearmap::LinearMap;
use aarch64_paging::paging::{Constraints, MemoryRegion, Stage2 as Regime};
use proptest::prelude::*;
use smmu::addr::{Ipa, Pa};
use smmu::ports::Memory;
use smmu::stage2::{Attributes, Format, MemoryType, Stage2};

use super::cases;
use crate::chooser::Chooser;
use crate::decode::{Descriptor, descriptor};
use crate::machine::Machine;
use crate::profile::Profile;

const PAGE: u64 = 4096;
/// From intermediate to physical addresses: whole GiB, so that blocks of every size are possible.
const OFFSET: u64 = 4 << 30;

/// Our attributes and theirs.
fn attributes() -> impl Strategy<Value = (Attributes, Theirs)> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(read, write, execute, device)| {
            let memory = if device { MemoryType::Device } else { MemoryType::Normal };
            let mut theirs = Theirs::VALID | Theirs::ACCESS_FLAG;
            theirs |= match memory {
                MemoryType::Device => Theirs::MEMATTR_DEVICE_nGnRE,
                MemoryType::Normal => {
                    Theirs::MEMATTR_NORMAL_INNER_WB
                        | Theirs::MEMATTR_NORMAL_OUTER_WB
                        | Theirs::SH_INNER
                }
            };
            theirs |= if read { Theirs::S2AP_ACCESS_RO } else { Theirs::S2AP_ACCESS_NONE };
            theirs |= if write { Theirs::S2AP_ACCESS_WO } else { Theirs::S2AP_ACCESS_NONE };
            theirs |= if execute { Theirs::empty() } else { Theirs::XN };
            (Attributes { read, write, execute, memory }, theirs)
        },
    )
}

/// First page and count: at and around the edges of pages, 2 MiB and 1 GiB blocks.
fn range() -> impl Strategy<Value = (u64, u64)> {
    let edge = prop_oneof![
        0_u64..8,
        508_u64..516,
        (0_u64..6).prop_map(|block| block * 512),
        (1_u64..4, 0_u64..3).prop_map(|(gib, page)| (gib << 18) + page),
    ];
    let count =
        prop_oneof![1_u64..9, 500_u64..530, Just(512), Just(1 << 18), Just((1 << 18) + 513)];
    (edge, count)
}

/// The descriptor of ours by which the address is mapped, and its level.
fn ours(machine: &Machine, tables: &Stage2, ipa: u64) -> Option<(u64, usize)> {
    let mut level = if tables.format().ipa_bits() <= 43 { 1 } else { 0 };
    let mut table = tables.root().raw();
    let mut mask = u64::MAX;
    loop {
        let index = (ipa >> (39 - 9 * level)) & mask;
        let word = machine.load(Pa::new(table + index * 8));
        match descriptor(word, level) {
            Descriptor::Invalid => return None,
            Descriptor::Table(next) => table = next,
            Descriptor::Leaf { .. } => return Some((word, level as usize)),
        }
        level += 1;
        mask = 0x1ff;
    }
}

/// The page descriptor that says of one page what a leaf says of all of its own.
fn page(word: u64, level: usize, ipa: u64) -> u64 {
    let offset = ipa & ((PAGE << (9 * (3 - level))) - 1);
    (word | 0b10) + (offset & !(PAGE - 1))
}

fn region((page, count): (u64, u64)) -> MemoryRegion {
    MemoryRegion::new((page * PAGE) as usize, ((page + count) * PAGE) as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(60)))]

    #[test]
    fn two_builders_make_the_same_tables(
        bits in prop_oneof![Just(39_u8), Just(40), Just(44), Just(48)],
        changes in prop::collection::vec((range(), prop::option::weighted(0.7, attributes())), 1..8),
    ) {
        let machine = Machine::new(Profile::NESTED, Chooser::plain());
        let mut frames = machine.frames();
        let mut tables = Stage2::new(Format::new(bits, 48, false).unwrap(), &mut frames).unwrap();
        let mut other = LinearMap::new(1, OFFSET as isize, Regime);
        let constraints = Constraints::NO_CONTIGUOUS_HINT;
        for ((page, count), change) in &changes {
            let (ipa, size) = (Ipa::new(page * PAGE), count * PAGE);
            let pa = Pa::new(page * PAGE + OFFSET);
            match change {
                Some((attributes, theirs)) => {
                    if tables.map(&machine, &mut frames, ipa, pa, size, *attributes).is_ok() {
                        let flags = *theirs;
                        other.map_range_with_constraints(&region((*page, *count)), flags, constraints).unwrap();
                    }
                }
                None => {
                    let _ = tables.unmap(&machine, &mut frames, ipa, size).unwrap();
                    other.map_range_with_constraints(&region((*page, *count)), Theirs::empty(), constraints).unwrap();
                }
            }
        }
        let mut theirs = std::collections::BTreeMap::new();
        other.walk_range(&region((0, 1 << 21)), &mut |region, descriptor, level| {
            if descriptor.is_valid() && (level == 3 || !descriptor.is_table_or_page()) {
                let word = descriptor.output_address().0 | descriptor.flags().bits();
                theirs.insert(region.start().0 as u64, (region.end().0 as u64, word as u64, level));
            }
            Ok(())
        }).unwrap();
        // What they map, we map: to the same address with the same attributes, and by the same words at the
        // same levels unless something was unmapped, after which they keep tables that are not needed.
        let exact = changes.iter().all(|(_, change)| change.is_some());
        for (start, (end, word, level)) in &theirs {
            for at in [*start, end - PAGE] {
                let Some((our_word, our_level)) = ours(&machine, &tables, at) else {
                    return Err(TestCaseError::fail(format!("{at:#x} is not mapped")));
                };
                let theirs = page(*word, *level, at);
                prop_assert_eq!(page(our_word, our_level, at), theirs, "{:#x}", at);
                prop_assert!(!exact || (our_word, our_level) == (*word, *level), "{:#x}", at);
            }
        }
        // What they do not map, we do not: at every edge.
        let edges = changes.iter().flat_map(|((page, count), _)| [*page, page + count]);
        for number in edges.flat_map(|edge| [edge.saturating_sub(1), edge]) {
            let at = number * PAGE;
            let mapped = theirs.range(..=at).next_back().is_some_and(|(_, (end, ..))| at < *end);
            prop_assert_eq!(ours(&machine, &tables, at).is_some(), mapped, "{:#x}", at);
        }
    }
}
