use proptest::prelude::*;

use super::*;

/// QEMU 10.0.2 with two `edu` devices, driven through every kind of answer that its SMMU can give.
const CAPTURED: &str = include_str!("../../data/qemu-10.0.2.log");

const A: StreamId = StreamId(0x10);
const B: StreamId = StreamId(0x18);

fn read(lines: &str) -> Trace {
    let mut trace = Trace::new();
    for line in lines.lines() {
        trace.line(line);
    }
    assert_eq!(trace.unread(), None);
    trace
}

fn pages(set: &IntervalSet) -> Vec<u64> {
    set.iter().flatten().collect()
}

#[test]
fn a_captured_run_is_read_as_it_happened() {
    let trace = read(CAPTURED);
    let a = &trace.streams()[&A];
    // One access before GBPA.ABORT, one after it was cleared again.
    assert_eq!((a.open_before, a.disabled, a.bypassed), (1, 1, 0));
    assert_eq!(trace.abort_cleared(), 1);
    assert!(trace.abort_was_set());
    assert!(!trace.enabled());

    // GBPA.ABORT with the SMMU disabled: two silent aborts of four bytes each.
    assert_eq!(
        a.epochs[&0],
        Epoch { aborts: 2, refused: BTreeMap::from([(0x48000, 2)]), ..Epoch::default() }
    );
    let open = &a.epochs[&1];
    assert_eq!(open.successes, 3);
    assert_eq!(pages(&open.reached[&3]), [0x48000]);
    assert_eq!(pages(&open.reached[&1]), [0x48200]);
    assert_eq!(pages(&open.entered), [0x40000, 0x40400]);
    let events = [("F_PERMISSION".to_owned(), 2), ("F_TRANSLATION".to_owned(), 4)];
    assert_eq!(open.events, BTreeMap::from(events));
    assert_eq!(open.refused, BTreeMap::from([(0x40400, 2), (0x4a000, 4)]));
    assert_eq!(open.first, Some(Iova::new(0x4a00_0000)));
    // S2R=0: refused all the same, without records.
    assert_eq!((a.epochs[&2].unrecorded, a.epochs[&2].recorded()), (2, 0));
    assert_eq!(a.cfgi, 2);

    let b = &trace.streams()[&B];
    assert_eq!(b.epochs[&1].aborts, 2);
    assert_eq!((b.bypassed, pages(&b.open)), (1, vec![0x48000]));
    assert_eq!(b.events(), BTreeMap::from([("C_BAD_STE".to_owned(), 1)]));

    let commands = [("CFGI_STE", 5), ("CFGI_STE_RANGE", 1), ("INVALID", 2), ("SYNC", 2)];
    for (name, count) in commands {
        assert_eq!(trace.commands()[name], count, "{name}");
    }
    assert_eq!(trace.gerror(), 1);
    // "invalid STE" and "Illegal command type" are for people.
    let messages = CAPTURED.lines().filter(|line| !Trace::new().line(line)).count();
    assert_eq!(messages, 3);
    assert_eq!(trace.lines(), CAPTURED.lines().count() as u64 - 3);
}

#[test]
fn prefixes_do_not_matter() {
    let bare = "smmuv3_translate_success smmuv3-iommu-memory-region-16-1 sid=0x10 iova=0x1000 \
                translated=0x2000 perm=0x3 stage=2";
    for prefix in ["", "28911@1795428548.358866:", "2026-11-23T10:00:00.000000Z qemu: "] {
        let trace = read(&format!("{prefix}{bare}"));
        assert_eq!(trace.streams()[&A].successes(), 1, "{prefix:?}");
    }
}

#[test]
fn other_versions_of_the_format_are_read() {
    // Up to QEMU 9.0: decimal, no stage. From 11.1 on: another name for the event.
    let trace = read(
        "smmuv3_translate_success smmuv3-iommu-memory-region-16-1 sid=16 iova=0x1000 translated=0x2000 perm=0x2\n\
         smmuv3_cmdq_cfgi_ste streamid =16\n\
         smmuv3_record_event SMMU_EVT_F_TRANSLATION sid=16\n\
         smmuv3-iommu-memory-region-16-1 translation failed for iova=0x5004(SMMU_EVT_F_TRANSLATION)\n\
         smmuv3_propagate_event SMMU_EVT_F_TRANSLATION sid=0x10\n",
    );
    let stream = &trace.streams()[&A];
    assert_eq!(pages(&stream.epochs[&0].reached[&2]), [2]);
    assert_eq!(stream.epochs[&1].events["F_TRANSLATION"], 2);
    assert_eq!(stream.epochs[&1].refused, BTreeMap::from([(5, 1)]));
}

#[test]
fn the_address_of_an_event_is_the_last_one_of_its_function() {
    let trace = read(
        "smmuv3-iommu-memory-region-16-1 translation failed for iova=0x9000 (SMMU_EVT_F_TRANSLATION)\n\
         smmuv3-iommu-memory-region-16-1 translation failed for iova=0x1000 (SMMU_EVT_F_TRANSLATION)\n\
         smmuv3-iommu-memory-region-24-2 translation failed for iova=0x2000 (SMMU_EVT_F_TRANSLATION)\n\
         smmuv3_record_event SMMU_EVT_F_TRANSLATION sid=0x10\n\
         smmuv3_record_event SMMU_EVT_F_TRANSLATION sid=0x18\n\
         smmuv3-iommu-memory-region-16-1 translation failed for iova=0x3000 (SMMU_EVT_F_PERMISSION)\n\
         smmuv3_record_event SMMU_EVT_F_ACCESS sid=0x10\n",
    );
    // The first message found no event, because nobody listened then: the access was refused all the same.
    let first = &trace.streams()[&A].epochs[&0];
    assert_eq!(first.refused, BTreeMap::from([(9, 1), (1, 1)]));
    assert_eq!((first.recorded(), first.unrecorded), (2, 1));
    assert_eq!(trace.streams()[&B].epochs[&0].refused, BTreeMap::from([(2, 1)]));
}

#[test]
fn a_function_behind_a_bridge_is_known_by_its_name() {
    let trace = read(
        "smmuv3_translate_abort smmuv3-iommu-memory-region-0-7 sid=0x100 abort on iova:0x1000 is_write=0\n\
         smmuv3-iommu-memory-region-0-7 translation failed for iova=0x1000 (no recorded event)\n\
         smmuv3-iommu-memory-region-0-9 translation failed for iova=0x1000 (no recorded event)\n",
    );
    assert_eq!(trace.streams()[&StreamId(0x100)].epochs[&0].unrecorded, 1);
    assert_eq!(trace.streams()[&StreamId(0)].epochs[&0].unrecorded, 1);
}

#[test]
fn qemus_talk_about_a_trace_event_is_not_one() {
    let mut trace = Trace::new();
    assert!(!trace.line("qemu: warning: trace event 'smmuv3_record_event' does not exist"));
    assert!(!trace.line("qemu: terminating on signal 15"));
    assert_eq!(trace.lines(), 0);
    assert_eq!(trace.unread(), None);
}

#[test]
fn a_torn_line_is_noticed() {
    let whole = "smmuv3_translate_success smmuv3-iommu-memory-region-16-1 sid=0x10 iova=0x1000 \
                 translated=0x2000";
    for line in
        [whole, "smmuv3_record_event SMMU_EVT_F_TRANSLATION", "smmuv3_write_mmio addr: 0x44 val:"]
    {
        let mut trace = Trace::new();
        assert!(trace.line(line));
        assert_eq!(trace.unread(), Some(line));
    }
}

#[test]
fn gbpa_without_update_is_ignored() {
    let trace = read("smmuv3_write_mmio addr: 0x44 val:0x100000 size: 0x4(0)\n");
    assert!(!trace.abort_was_set());
    let trace = read("smmuv3_write_mmio addr: 0x44 val:0x80001000 size: 0x4(0)\n");
    assert_eq!((trace.abort_was_set(), trace.abort_cleared()), (false, 0));
    let trace = read(
        "smmuv3_write_mmio addr: 0x44 val:0x80100000 size: 0x4(0)\n\
         smmuv3_write_mmio addr: 0x44 val:0x0 size: 0x4(0)\n\
         smmuv3_write_mmio addr: 0x44 val:0x80101000 size: 0x4(0)\n",
    );
    assert!(trace.abort_was_set());
    assert_eq!(trace.abort_cleared(), 0);
}

#[test]
fn names_of_both_sides_meet() {
    for (qemu, el2, spec) in [
        ("SMMU_EVT_F_TRANSLATION", "f-translation", "F_TRANSLATION"),
        ("SMMU_EVT_F_TRANS_FORBIDDEN", "F_TRANSL_FORBIDDEN", "F_TRANSL_FORBIDDEN"),
        ("SMMU_EVT_E_PAGE_REQ", "E_PAGE_REQUEST", "E_PAGE_REQUEST"),
    ] {
        assert_eq!((event_name(qemu).as_str(), event_name(el2).as_str()), (spec, spec));
    }
    for (qemu, el2, name) in [
        ("SMMU_CMD_SYNC", "CMD_SYNC", "SYNC"),
        ("SMMU_CMD_TLBI_S12_VMALL", "TLBI_S12_VMALL", "TLBI_S12_VMALL"),
        ("SMMU_CMD_CFGI_STE_RANGE", "CFGI_ALL", "CFGI_STE_RANGE"),
    ] {
        assert_eq!((command_name(qemu).as_str(), command_name(el2).as_str()), (name, name));
    }
}

#[test]
fn memory_stays_bounded_and_says_so() {
    let mut trace = Trace::with_budget(64);
    for page in 0..100 {
        // Every other page, so that no two join.
        let page = page * 2 * PAGE_SIZE;
        trace.line(&format!(
            "smmuv3_translate_success smmuv3-iommu-memory-region-16-1 sid=0x10 iova=0x1000 \
             translated={page:#x} perm=0x3 stage=2"
        ));
        assert_eq!(trace.overflowed(), page / PAGE_SIZE / 2 > 61);
    }
    let stream = &trace.streams()[&A];
    assert_eq!(stream.epochs[&0].reached[&3].fragments(), 62);
    assert_eq!(stream.successes(), 100);
}

#[test]
fn refused_and_open_pages_are_bounded_too() {
    let mut trace = Trace::with_budget(64);
    for page in 0..100 {
        let iova = page * 2 * PAGE_SIZE;
        let name = "smmuv3-iommu-memory-region-16-1";
        trace.line(&format!("{name} translation failed for iova={iova:#x} (no recorded event)"));
        trace.line(&format!(
            "smmuv3_translate_bypass {name} sid=0x10 STE bypass iova:{iova:#x} is_write=1"
        ));
    }
    let stream = &trace.streams()[&A];
    assert!(trace.overflowed());
    assert!(stream.epochs[&0].refused.len() + stream.open.fragments() <= 64);
    assert_eq!((stream.epochs[&0].unrecorded, stream.bypassed), (100, 100));
}

#[test]
fn epochs_are_bounded_too() {
    let mut trace = Trace::with_budget(64);
    for _ in 0..100 {
        trace.line("smmuv3_cmdq_cfgi_ste streamid= 0x10");
        trace.line("smmuv3_record_event SMMU_EVT_C_BAD_STE sid=0x10");
    }
    assert!(trace.overflowed());
    let stream = &trace.streams()[&A];
    assert_eq!(stream.epochs.len(), 32);
    assert_eq!(stream.events()["C_BAD_STE"], 100);
}

#[test]
fn the_arguments_switch_on_what_is_read() {
    let arguments = qemu_arguments();
    assert_eq!(arguments[..2], ["-trace", EVENTS[0]]);
    assert_eq!(arguments[arguments.len() - 2..], ["-d", "guest_errors"]);
}

proptest! {
    /// QEMU is stopped at any moment, and its threads write to one pipe.
    #[test]
    fn torn_lines_are_harmless(line in 0..CAPTURED.lines().count(), cut in 0..200_usize, insert in ".{0,8}") {
        let line = CAPTURED.lines().nth(line).unwrap();
        let (start, end) = line.split_at(cut.min(line.len()));
        let mut trace = Trace::new();
        for torn in [start.to_owned(), format!("{start}{insert}{end}"), format!("{insert}{end}")] {
            trace.line(&torn);
        }
        prop_assert!(trace.streams().len() <= 3);
    }
}
