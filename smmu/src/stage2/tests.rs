use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::addr::{VmIndex, Vmid};
use crate::fake::{FakeFrames, Unpublished, note_store};

#[derive(Default)]
struct Ram {
    words: RefCell<HashMap<u64, u64>>,
    stores: Cell<usize>,
    unpublished: Unpublished,
}

impl Memory for Ram {
    fn load(&self, at: Pa) -> u64 {
        self.words.borrow().get(&at.raw()).copied().unwrap_or(0)
    }

    fn store(&self, at: Pa, value: u64) {
        self.stores.set(self.stores.get() + 1);
        note_store(&self.unpublished, at.raw(), value);
        self.words.borrow_mut().insert(at.raw(), value);
    }

    fn publish(&self) {
        self.unpublished.borrow_mut().clear();
    }
}

struct Machine {
    memory: Ram,
    frames: FakeFrames,
    tables: Stage2,
}

impl Machine {
    fn new(format: Format) -> Self {
        let mut frames = FakeFrames::new();
        let tables = Stage2::new(format, &mut frames).unwrap();
        let memory = Ram { unpublished: frames.unpublished.clone(), ..Ram::default() };
        Self { memory, frames, tables }
    }

    fn map(
        &mut self,
        ipa: u64,
        pa: u64,
        size: u64,
        attributes: Attributes,
    ) -> Result<(), Stage2Error> {
        self.tables.map(
            &self.memory,
            &mut self.frames,
            Ipa::new(ipa),
            Pa::new(pa),
            size,
            attributes,
        )
    }

    fn unmap(&mut self, ipa: u64, size: u64) -> Result<Invalidation, Stage2Error> {
        self.tables.unmap(&self.memory, &mut self.frames, Ipa::new(ipa), size)
    }

    fn translate(&self, ipa: u64) -> Option<Translation> {
        self.tables.translate(&self.memory, Ipa::new(ipa))
    }

    fn word(&self, at: u64) -> u64 {
        self.memory.load(Pa::new(at))
    }
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn format40() -> Format {
    Format::new(40, 44, false).unwrap()
}

#[test]
fn formats_give_the_documented_fields() {
    // VTCR_EL2: T0SZ [5:0], SL0 [7:6], IRGN0 = ORGN0 = 1, SH0 = 3, TG0 = 0, PS [18:16].
    let walks = 1 << 8 | 1 << 10 | 3 << 12;
    assert_eq!(format40().vtcr(), 24 | 1 << 6 | walks | 4 << 16);
    assert_eq!(Format::new(44, 44, false).unwrap().vtcr(), 20 | 2 << 6 | walks | 4 << 16);
    assert_eq!(Format::new(48, 52, false).unwrap().vtcr(), 16 | 2 << 6 | walks | 5 << 16);
    // Two and sixteen concatenated level-1 tables; 32 and 512 entries of level 0.
    let root_size = |bits| Format::new(bits, 48, false).unwrap().root_size();
    assert_eq!([40, 43, 44, 48, 39, 32].map(root_size), [8192, 65536, 4096, 4096, 4096, 4096]);
    assert_eq!(Format::new(40, 41, false).unwrap().output_bits(), 40);
    assert!(Format::new(44, 43, false).is_err() && Format::new(49, 52, false).is_err());
    assert!(Format::new(31, 48, false).is_err());
}

#[test]
fn descriptors_have_the_documented_bits() {
    let mut machine = Machine::new(format40());
    let root = machine.tables.root().raw();
    machine.map(GIB, 4 * GIB, GIB, Attributes::RAM).unwrap();
    // Block: bits 1:0 = 01, MemAttr [5:2] = 1111, S2AP [7:6] = 11, SH [9:8] = 3, AF [10].
    assert_eq!(machine.word(root + 8), (4 * GIB) | 1 << 10 | 3 << 8 | 3 << 6 | 0b1111 << 2 | 0b01);
    machine.map(0, 0x900_0000, 4096, Attributes::DEVICE).unwrap();
    let level2 = machine.word(root) - 3;
    let level3 = machine.word(level2) - 3;
    // Page: bits 1:0 = 11, Device-nGnRE = 0001, XN [54].
    assert_eq!(machine.word(level3), 0x900_0000 | 1 << 10 | 3 << 6 | 0b0001 << 2 | 0b11 | 1 << 54);
    let read_only = Attributes { write: false, execute: false, ..Attributes::RAM };
    machine.map(4096, 0x5000_0000, 4096, read_only).unwrap();
    assert_eq!(
        machine.word(level3 + 8),
        0x5000_0000 | 1 << 10 | 3 << 8 | 1 << 6 | 0b1111 << 2 | 0b11 | 1 << 54
    );
    // With FWB, Normal is 0110: write-back whatever stage 1 says.
    let mut machine = Machine::new(Format::new(40, 44, true).unwrap());
    machine.map(GIB, 4 * GIB, GIB, Attributes::RAM).unwrap();
    assert_eq!(
        machine.word(machine.tables.root().raw() + 8),
        (4 * GIB) | 1 << 10 | 3 << 8 | 3 << 6 | 0b0110 << 2 | 0b01
    );
}

#[test]
fn half_a_gigabyte_of_ram_costs_one_table() {
    let mut machine = Machine::new(format40());
    machine.map(GIB, 0x8020_0000, 512 * MIB, Attributes::RAM).unwrap();
    assert_eq!(machine.frames.live.len(), 2);
    // One table descriptor and 256 blocks of 2 MiB.
    assert_eq!(machine.memory.stores.get(), 257);
    let last = machine.translate(GIB + 512 * MIB - 8).unwrap();
    assert_eq!((last.pa, last.contiguous), (Pa::new(0x8020_0000 + 512 * MIB - 8), 8));
    assert_eq!(machine.translate(GIB + 512 * MIB), None);
    assert_eq!(machine.translate(GIB - 1), None);
}

#[test]
fn addresses_past_the_input_size_lead_nowhere() {
    let mut machine = Machine::new(format40());
    machine.map((1 << 40) - 4096, 0x1000, 4096, Attributes::RAM).unwrap();
    assert_eq!(machine.translate((1 << 40) - 1).unwrap().pa, Pa::new(0x1fff));
    assert_eq!(machine.translate(1 << 40), None);
    assert_eq!(machine.translate(u64::MAX), None);
}

#[test]
fn bad_ranges_change_nothing() {
    let mut machine = Machine::new(format40());
    machine.map(GIB, GIB, 2 * MIB, Attributes::RAM).unwrap();
    let stores = machine.memory.stores.get();
    let ram = Attributes::RAM;
    assert_eq!(machine.map(0x800, 0, 4096, ram), Err(Stage2Error::Unaligned));
    assert_eq!(machine.map(0, 0x800, 4096, ram), Err(Stage2Error::Unaligned));
    assert_eq!(machine.map(0, 0, 100, ram), Err(Stage2Error::Unaligned));
    assert_eq!(machine.map(0, 0, 0, ram), Err(Stage2Error::OutOfRange));
    assert_eq!(machine.map((1 << 40) - 4096, 0, 8192, ram), Err(Stage2Error::OutOfRange));
    assert_eq!(machine.map(0, 1 << 44, 4096, ram), Err(Stage2Error::OutOfRange));
    assert_eq!(machine.map(0, !0xfff, 4096, ram), Err(Stage2Error::OutOfRange));
    assert_eq!(machine.map(!0xfff, 0, 4096, ram), Err(Stage2Error::OutOfRange));
    assert_eq!(machine.map(0, 0, 2 * GIB, ram), Err(Stage2Error::Overlap(Ipa::new(GIB))));
    assert_eq!(
        machine.map(GIB + 4096, 0, 4096, ram),
        Err(Stage2Error::Overlap(Ipa::new(GIB + 4096)))
    );
    assert_eq!(machine.unmap(0x800, 4096), Err(Stage2Error::Unaligned));
    assert_eq!(machine.unmap(1 << 40, 4096), Err(Stage2Error::OutOfRange));
    assert_eq!(machine.memory.stores.get(), stores);
}

#[test]
fn running_out_of_tables_is_an_error() {
    let mut machine = Machine::new(format40());
    machine.frames.left = 1;
    assert_eq!(machine.map(0, 0, 4096, Attributes::RAM), Err(Stage2Error::OutOfMemory));
    assert_eq!(machine.translate(0), None);
}

#[test]
fn a_shared_gigabyte_is_one_and_the_same() {
    for bits in [40, 44] {
        let mut cpu = Machine::new(Format::new(bits, 44, false).unwrap());
        let mut dma = Stage2::new(cpu.tables.format(), &mut cpu.frames).unwrap();
        // A whole GiB in one block, then RAM of half a GiB; device registers that no device may reach.
        cpu.map(GIB, 4 * GIB, GIB + 512 * MIB, Attributes::RAM).unwrap();
        cpu.map(0x900_0000, 0x900_0000, 4096, Attributes::DEVICE).unwrap();
        let Machine { memory, frames, tables } = &mut cpu;
        dma.share(memory, frames, tables, Ipa::new(GIB), 2 * GIB).unwrap();
        let reaches = |ipa: u64| dma.translate(memory, Ipa::new(ipa)).map(|found| found.pa.raw());
        assert_eq!(reaches(GIB + 0x1234), Some(4 * GIB + 0x1234));
        assert_eq!(reaches(2 * GIB + 511 * MIB), Some(5 * GIB + 511 * MIB));
        assert_eq!((reaches(2 * GIB + 512 * MIB), reaches(0x900_0000)), (None, None));
        // What the owner changes is seen through both, and nobody else changes it; what is shared stays a table.
        let all = Permissions { read: true, write: true, execute: true };
        let pages = (Ipa::new(GIB + 2 * MIB), 0x1000);
        let _ = tables.protect(memory, frames, pages.0, pages.1, all).unwrap();
        assert_eq!(dma.merge(memory, pages.0, 2), None);
        tables.merge(memory, pages.0, 2).unwrap().release(frames);
        assert_eq!(dma.translate(memory, pages.0).unwrap().contiguous, 2 * MIB);
        assert_eq!(tables.merge(memory, pages.0, 2), None);
        let _ = tables.unmap(memory, frames, Ipa::new(GIB + 0x1000), 0x1000).unwrap();
        let one = (Ipa::new(2 * GIB + 512 * MIB), Pa::new(8 * GIB));
        tables.map(memory, frames, one.0, one.1, 0x1000, Attributes::RAM).unwrap();
        assert_eq!(dma.translate(memory, Ipa::new(GIB + 0x1000)), None);
        assert_eq!(dma.translate(memory, one.0).unwrap().pa, one.1);
        let borrowed = Stage2Error::Borrowed(Ipa::new(GIB));
        let attributes = Attributes::RAM;
        assert_eq!(
            dma.map(memory, frames, Ipa::new(GIB), Pa::new(0), 0x1000, attributes),
            Err(borrowed)
        );
        assert_eq!(dma.unmap(memory, frames, Ipa::new(GIB), GIB), Err(borrowed));
        assert_eq!(dma.share(memory, frames, tables, Ipa::new(GIB), GIB), Err(borrowed));
        // Each table is given back once, by its owner.
        let proof = Closed::for_test(VmIndex(0), Vmid(1));
        dma.release(memory, frames, &proof);
        assert_eq!(tables.translate(memory, one.0).unwrap().pa, one.1);
        cpu.tables.release(&cpu.memory, &mut cpu.frames, &proof);
        assert!(cpu.frames.live.is_empty());
    }
}

#[test]
fn only_whole_gigabytes_of_one_format_are_shared() {
    let mut cpu = Machine::new(format40());
    let Machine { memory, frames, tables } = &mut cpu;
    let mut dma = Stage2::new(format40(), frames).unwrap();
    assert_eq!(dma.share(memory, frames, tables, Ipa::new(MIB), GIB), Err(Stage2Error::Unaligned));
    assert_eq!(dma.share(memory, frames, tables, Ipa::new(GIB), MIB), Err(Stage2Error::Unaligned));
    dma.map(memory, frames, Ipa::new(GIB), Pa::new(0), 4096, Attributes::RAM).unwrap();
    let overlap = Stage2Error::Overlap(Ipa::new(GIB));
    assert_eq!(dma.share(memory, frames, tables, Ipa::new(GIB), GIB), Err(overlap));
    let mut other = Stage2::new(Format::new(39, 44, false).unwrap(), frames).unwrap();
    let mismatch = Err(Stage2Error::FormatMismatch);
    assert_eq!(other.share(memory, frames, tables, Ipa::new(2 * GIB), GIB), mismatch);
}

/// One change of a stage 2, in pages.
#[derive(Clone, Copy, Debug)]
enum Change {
    Map { page: u64, to: u64, count: u64, attributes: Attributes },
    Unmap { page: u64, count: u64 },
    Protect { page: u64, count: u64, permissions: Permissions },
    Merge { page: u64 },
}

#[test]
fn every_change_has_its_rule() {
    use super::change::Change as Kind;
    use Between::{BreakFirst, InvalidateAfter, Nothing};
    // Arm ARM D8.16.1: break-before-make for the output address, the memory type and the size of a block; the size
    // alone is exempt with FEAT_BBM level 2.
    for (change, old, new) in [
        (Kind::Make, Nothing, Nothing),
        (Kind::Remove, InvalidateAfter, InvalidateAfter),
        (Kind::Protect, InvalidateAfter, InvalidateAfter),
        (Kind::Retype, BreakFirst, BreakFirst),
        (Kind::Move, BreakFirst, BreakFirst),
        (Kind::Split, BreakFirst, InvalidateAfter),
        (Kind::Merge, BreakFirst, InvalidateAfter),
    ] {
        let by_level = [0, 1, 2, 3].map(|level| change.between(level));
        assert_eq!(by_level, [old, old, new, new], "{change:?}");
        assert_eq!(RULES.iter().filter(|rule| rule.0 == change).count(), 1);
    }
}

#[test]
fn a_table_that_maps_nothing_is_taken_out() {
    for (format, levels) in [(format40(), 2), (Format::new(48, 48, false).unwrap(), 3)] {
        let mut machine = Machine::new(format);
        let (page, last) = (GIB + 6 * MIB + 0x3000, GIB + 6 * MIB - 0x1000);
        for at in [page, last] {
            machine.map(at, 4 * GIB, 4096, Attributes::DEVICE).unwrap();
        }
        let detach = |machine: &mut Machine, at, size| {
            let Machine { memory, tables, .. } = machine;
            let found = tables.detach(memory, Ipa::new(at), size);
            assert!(machine.memory.unpublished.borrow().is_empty());
            found
        };
        assert_eq!(machine.frames.live.len(), 1 + levels + 1);
        assert_eq!(detach(&mut machine, 0, 4 * GIB), None, "both are in use");
        assert_eq!(detach(&mut machine, 0x800, 4096), None, "no pages");
        let _ = machine.unmap(page, 4096).unwrap();
        for neighbour in [4, 8] {
            let found = detach(&mut machine, neighbour * MIB + GIB, 2 * MIB);
            assert_eq!(found, None, "its neighbour is empty");
        }
        let taken = detach(&mut machine, page, 4096).unwrap();
        assert_eq!(taken.stale, Invalidation::range(Ipa::new(GIB + 6 * MIB), 2 * MIB));
        // It is still walked until its invalidation.
        assert_eq!(machine.frames.live.len(), 1 + levels + 1);
        taken.release(&mut machine.frames);
        assert_eq!(detach(&mut machine, page, 4096), None);
        assert!(machine.translate(last).is_some());
        // The last one takes those above it along, and never the root; what is mapped next finds its way anew.
        let _ = machine.unmap(last, 4096).unwrap();
        let mut spans = [2 * MIB, GIB, 512 * GIB].into_iter();
        while let Some(taken) = detach(&mut machine, GIB, 8 * MIB) {
            let span = spans.next().unwrap();
            let start = Ipa::new(last).align_down(span);
            assert_eq!(taken.stale, Invalidation::range(start, span));
            taken.release(&mut machine.frames);
        }
        assert_eq!((spans.len(), machine.frames.live.len()), (3 - levels, 1));
        machine.map(page, 4 * GIB, 4096, Attributes::DEVICE).unwrap();
        assert!(machine.translate(page).is_some() && machine.frames.live.len() == 1 + levels);
    }
}

#[test]
fn a_borrowed_table_is_never_taken_out() {
    let mut cpu = Machine::new(format40());
    let Machine { memory, frames, tables } = &mut cpu;
    let mut dma = Stage2::new(format40(), frames).unwrap();
    dma.share(memory, frames, tables, Ipa::new(GIB), GIB).unwrap();
    assert_eq!(dma.detach(memory, Ipa::new(GIB), GIB), None);
}

#[test]
fn a_protected_page_splits_its_block_and_a_merge_joins_it_again() {
    let mut machine = Machine::new(format40());
    machine.map(GIB, 4 * GIB, GIB, Attributes::RAM).unwrap();
    let read_only = Permissions { read: true, write: false, execute: false };
    let page = Ipa::new(GIB + 6 * MIB + 0x3000);
    let Machine { memory, frames, tables } = &mut machine;
    let stale = tables.protect(memory, frames, page, 4096, read_only).unwrap();
    assert_eq!(stale, Invalidation::range(page, 4096));
    let found = tables.translate(memory, page).unwrap();
    assert_eq!((found.pa, found.contiguous), (Pa::new(4 * GIB + 6 * MIB + 0x3000), 4096));
    let expected = Attributes { write: false, execute: false, ..Attributes::RAM };
    assert_eq!(found.attributes, expected);
    let neighbour = tables.translate(memory, page.add(4096)).unwrap();
    assert_eq!(neighbour.attributes, Attributes::RAM);
    // One page differs: nothing to merge. Alike again: 2 MiB.
    assert_eq!(tables.merge(memory, page, 2), None);
    let all = Permissions { read: true, write: true, execute: true };
    let _ = tables.protect(memory, frames, page, 4096, all).unwrap();
    assert_eq!(tables.merge(memory, page, 1), None);
    let live = frames.live.len();
    let merged = tables.merge(memory, page, 2).unwrap();
    assert_eq!(merged.stale, Invalidation::range(Ipa::new(GIB + 6 * MIB), 2 * MIB));
    // It is still walked until its invalidation.
    assert_eq!(frames.live.len(), live);
    merged.release(frames);
    assert_eq!((frames.live.len(), tables.merge(memory, page, 2)), (live - 1, None));
    let found = tables.translate(memory, page).unwrap();
    assert_eq!(found.contiguous, 2 * MIB - 0x3000);
}

#[test]
fn what_cannot_be_one_block_is_not_merged() {
    let mut machine = Machine::new(Format::new(44, 44, false).unwrap());
    // 512 pages that do not begin at 2 MiB, and 511 that do.
    machine.map(2 * MIB, GIB + 4096, 2 * MIB, Attributes::RAM).unwrap();
    machine.map(4 * MIB, GIB, 2 * MIB - 4096, Attributes::RAM).unwrap();
    // A whole table of GiB blocks under a level-0 entry.
    machine.map(1 << 39, 0, 1 << 39, Attributes::RAM).unwrap();
    let Machine { memory, tables, .. } = &mut machine;
    for at in [2 * MIB, 4 * MIB, 1 << 39, 1 << 43, 1 << 44] {
        assert_eq!(tables.merge(memory, Ipa::new(at), 2), None, "{at:#x}");
    }
}

#[test]
fn leaves_have_all_three_sizes_for_every_input_size() {
    for bits in [40, 43, 44, 48] {
        let mut machine = Machine::new(Format::new(bits, 48, false).unwrap());
        // 2 GiB, 2 MiB and 4 KiB, the last of them at the end of the address space: with 40 to 43 bits in the last of
        // the concatenated root tables.
        let top = 1 << bits;
        for (ipa, size) in [(top - 2 * GIB, GIB), (top - GIB, 2 * MIB), (top - 4096, 4096)] {
            machine.map(ipa, 0x40_0000_0000 | ipa & (4 * GIB - 1), size, Attributes::RAM).unwrap();
            let found = machine.translate(ipa).unwrap();
            assert_eq!(
                (found.pa.raw(), found.contiguous),
                (0x40_0000_0000 | ipa & (4 * GIB - 1), size)
            );
            assert_eq!(machine.translate(ipa + size - 1).unwrap().contiguous, 1);
        }
        assert_eq!(machine.translate(top), None);
    }
}

/// Places and sizes around those of blocks, where mistakes live.
fn places() -> impl Strategy<Value = u64> {
    let gigabyte = 1_u64 << 18;
    prop_oneof![0_u64..64, 500_u64..530, Just(512), Just(1024), gigabyte - 3..gigabyte + 3]
}

/// Few pages, or many in large blocks: what a test can check in time.
fn mapping() -> impl Strategy<Value = (u64, u64, u64)> {
    let blocks = || prop_oneof![Just(0_u64), Just(1), Just(2), 510_u64..515];
    prop_oneof![
        3 => (places(), places(), prop_oneof![0_u64..64, 500_u64..530, Just(512), Just(1024)]),
        1 => (blocks(), blocks(), blocks()).prop_map(|(page, to, count)| (page * 512, to * 512, count * 512)),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let attributes = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(read, write, execute, device)| Attributes {
            read,
            write,
            execute,
            memory: if device { MemoryType::Device } else { MemoryType::Normal },
        },
    );
    let permissions = (any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(read, write, execute)| Permissions { read, write, execute });
    prop_oneof![
        (mapping(), attributes).prop_map(|((page, to, count), attributes)| Change::Map {
            page,
            to,
            count,
            attributes
        }),
        (places(), places()).prop_map(|(page, count)| Change::Unmap { page, count }),
        (places(), places(), permissions).prop_map(|(page, count, permissions)| Change::Protect {
            page,
            count,
            permissions
        }),
        places().prop_map(|page| Change::Merge { page }),
    ]
}

/// What a stage 2 is, told naively: runs of pages by first page, `(count, first target page, attributes)`.
#[derive(Default)]
struct Reference(BTreeMap<u64, (u64, u64, Attributes)>);

impl Reference {
    fn find(&self, page: u64) -> Option<(u64, Attributes)> {
        let (first, (count, to, attributes)) = self.0.range(..=page).next_back()?;
        (page < first + count).then_some((to + page - first, *attributes))
    }

    fn first_in(&self, page: u64, count: u64) -> Option<u64> {
        if self.find(page).is_some() {
            return Some(page);
        }
        self.0.range(page..page + count).next().map(|(first, _)| *first)
    }

    fn map(&mut self, page: u64, to: u64, count: u64, attributes: Attributes) {
        self.0.insert(page, (count, to, attributes));
    }

    fn unmap(&mut self, page: u64, count: u64) {
        let end = page + count;
        for (first, (length, to, attributes)) in core::mem::take(&mut self.0) {
            let last = first + length;
            if first < page.min(last) {
                self.0.insert(first, (page.min(last) - first, to, attributes));
            }
            if last > end.max(first) {
                let start = end.max(first);
                self.0.insert(start, (last - start, to + start - first, attributes));
            }
        }
    }

    fn protect(&mut self, page: u64, count: u64, permissions: Permissions) {
        let Permissions { read, write, execute } = permissions;
        let parts = self.0.iter().filter_map(|(first, (length, to, attributes))| {
            let (start, end) = (page.max(*first), (page + count).min(first + length));
            let attributes = Attributes { read, write, execute, ..*attributes };
            (start < end).then(|| (start, (end - start, to + start - first, attributes)))
        });
        let parts: Vec<_> = parts.collect();
        self.unmap(page, count);
        self.0.extend(parts);
    }

    /// Pages at which something begins or ends, and their neighbours.
    fn edges(&self) -> Vec<u64> {
        let ends = self.0.iter().flat_map(|(first, (count, ..))| [*first, first + count]);
        ends.flat_map(|page| [page.saturating_sub(1), page, page + 1]).collect()
    }
}

proptest! {
    #![proptest_config(crate::fake::cases(96))]

    #[test]
    fn tables_mean_what_was_mapped(
        changes in prop::collection::vec(change(), 1..12),
        bits in prop_oneof![Just(40_u8), Just(44), Just(48)],
        probes in prop::collection::vec(0_u64..1 << 19, 16),
    ) {
        let mut machine = Machine::new(Format::new(bits, 48, false).unwrap());
        let mut reference = Reference::default();
        for change in changes {
            match change {
                Change::Map { page, to, count, attributes } => {
                    let result = machine.map(page << 12, to << 12, count << 12, attributes);
                    let expected = if count == 0 {
                        Err(Stage2Error::OutOfRange)
                    } else if let Some(taken) = reference.first_in(page, count) {
                        Err(Stage2Error::Overlap(Ipa::new(taken << 12)))
                    } else {
                        reference.map(page, to, count, attributes);
                        Ok(())
                    };
                    prop_assert_eq!(result, expected);
                }
                Change::Unmap { page, count: 0 } => {
                    prop_assert_eq!(machine.unmap(page << 12, 0), Err(Stage2Error::OutOfRange));
                }
                Change::Unmap { page, count } => {
                    let stale = machine.unmap(page << 12, count << 12).unwrap();
                    prop_assert_eq!(stale, Invalidation::range(Ipa::new(page << 12), count << 12));
                    reference.unmap(page, count);
                }
                Change::Protect { page, count, permissions } => {
                    let range = (Ipa::new(page << 12), count << 12);
                    let Machine { memory, frames, tables } = &mut machine;
                    let result = tables.protect(memory, frames, range.0, range.1, permissions);
                    if count == 0 {
                        prop_assert_eq!(result, Err(Stage2Error::OutOfRange));
                    } else {
                        prop_assert_eq!(result, Ok(Invalidation::range(range.0, range.1)));
                        reference.protect(page, count, permissions);
                    }
                }
                Change::Merge { page } => {
                    let Machine { memory, frames, tables } = &mut machine;
                    if let Some(merged) = tables.merge(memory, Ipa::new(page << 12), 2) {
                        merged.release(frames);
                    }
                }
            }
            for page in reference.edges().into_iter().chain(probes.iter().copied()) {
                let found = machine.translate(page << 12);
                let got = found.map(|found| (found.pa.raw() >> 12, found.attributes));
                prop_assert_eq!(got, reference.find(page), "page {:#x}", page);
                // The last page of the block that claims to be contiguous is.
                if let Some(found) = found {
                    let last = (found.contiguous >> 12) - 1;
                    let expected = Some(((found.pa.raw() >> 12) + last, found.attributes));
                    prop_assert_eq!(reference.find(page + last), expected);
                }
            }
        }
        let proof = Closed::for_test(VmIndex(0), Vmid(1));
        machine.tables.release(&machine.memory, &mut machine.frames, &proof);
        prop_assert!(machine.frames.live.is_empty());
    }
}

#[test]
fn every_size_has_its_encoding() {
    for (bits, ps) in [(32, 0), (36, 1), (40, 2), (42, 3), (44, 4), (48, 5)] {
        let format = Format::new(32, bits, false).unwrap();
        assert_eq!(format.vtcr() >> 16, ps);
        assert_eq!(Format::from_vtcr(format.vtcr(), false), Ok(format));
        // A walk that starts elsewhere, or that is not cacheable, is none of ours.
        for other in [format.vtcr() ^ 3 << 6, format.vtcr() & !(1 << 8), format.vtcr() | 1 << 14] {
            assert_eq!(
                Format::from_vtcr(other, false),
                Err(FormatError { ipa_bits: 32, output_bits: bits })
            );
        }
    }
    assert!(Format::from_vtcr(32 | 6 << 16, false).is_err());
}

#[test]
fn the_last_page_of_each_size_can_be_mapped() {
    let mut machine = Machine::new(format40());
    let last = (1 << 44) - 4096;
    machine.map(0, last, 4096, Attributes::RAM).unwrap();
    assert_eq!(machine.translate(8).unwrap().pa, Pa::new(last + 8));
}

/// The 4 KiB granule has no blocks at level 0 (Arm ARM D8.3.1).
#[test]
fn half_a_terabyte_is_no_block() {
    let mut machine = Machine::new(Format::new(48, 48, false).unwrap());
    machine.map(0, 0, 512 * GIB, Attributes::RAM).unwrap();
    let root = machine.word(machine.tables.root().raw());
    assert_eq!(root & 0b11, 0b11, "a table");
    assert_eq!(machine.word((root & !0xfff) + 8 * 511) & 0b11, 0b01, "a block of 1 GiB");
}

#[test]
fn errors_say_what_is_wrong() {
    for (error, parts) in [
        (Stage2Error::Unaligned, ["stage 2", "not aligned"]),
        (Stage2Error::OutOfRange, ["stage 2", "leaves the address space"]),
        (Stage2Error::Overlap(Ipa::new(0x1000)), ["0x1000", "mapped"]),
        (Stage2Error::Borrowed(Ipa::new(0x1000)), ["0x1000", "another root"]),
        (Stage2Error::FormatMismatch, ["different formats", "share"]),
        (Stage2Error::OutOfMemory, ["no memory left", "give EL2 more"]),
    ] {
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    let text = Format::new(49, 48, false).unwrap_err().to_string();
    assert!(text.contains("49-bit to 48-bit"), "{text}");
}
