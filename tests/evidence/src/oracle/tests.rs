use platform::report::Hex;

use super::*;
use crate::fixture::{
    HYPERVISOR, RAM, ROGUE, ROGUE_RAM, Run, SIZE, VICTIM_RAM, aborted, command, publish, refused,
    register, success,
};
use crate::machine::Guest;

fn findings(run: &Run) -> Vec<Finding> {
    judge(&run.traced(), Some(&run.report), &run.machine)
}

#[track_caller]
fn finds(run: &Run, finding: Finding) {
    assert_eq!(findings(run), [finding]);
}

#[test]
fn a_confined_run_is_acquitted() {
    assert_eq!(findings(&Run::good()), []);
}

#[test]
fn memory_of_others_must_not_be_reached() {
    for pa in [VICTIM_RAM, HYPERVISOR, ROGUE_RAM + SIZE, ROGUE_RAM - 1, 0x905_0000] {
        let mut run = Run::good();
        run.insert("F_TRANSLATION", 0, vec![success(ROGUE, RAM, pa)]);
        let start = pa / PAGE_SIZE * PAGE_SIZE;
        let reached = start..start + PAGE_SIZE;
        finds(&run, Finding::Outside { sid: ROGUE, vm: "rogue".into(), reached });
    }
}

#[test]
fn the_first_and_last_page_of_own_memory_may_be_reached() {
    let mut run = Run::good();
    let last = ROGUE_RAM + SIZE - 1;
    run.insert("F_TRANSLATION", 0, vec![success(ROGUE, RAM, ROGUE_RAM), success(ROGUE, RAM, last)]);
    assert_eq!(findings(&run), []);
}

#[test]
fn the_end_of_the_address_space_is_outside() {
    let mut run = Run::good();
    run.insert("F_TRANSLATION", 0, vec![success(ROGUE, u64::MAX, u64::MAX)]);
    let reached = 0xffff_ffff_ffff_f000..u64::MAX;
    finds(&run, Finding::Outside { sid: ROGUE, vm: "rogue".into(), reached });
}

#[test]
fn a_doorbell_is_reachable_and_registers_are_not() {
    let mut run = Run::good();
    let mut doorbell = run.report.vms[1].memory[0].clone();
    (doorbell.pa, doorbell.size, doorbell.kind) =
        (Hex(0x809_0000), PAGE_SIZE, MemoryKind::Doorbell);
    run.report.vms[1].memory.push(doorbell);
    run.insert("F_TRANSLATION", 0, vec![success(ROGUE, 0x809_0040, 0x809_0040)]);
    assert_eq!(findings(&run), []);
    for kind in [MemoryKind::Mmio, MemoryKind::Registers] {
        run.report.vms[1].memory[1].kind = kind;
        let reached = 0x809_0000..0x809_1000;
        finds(&run, Finding::Outside { sid: ROGUE, vm: "rogue".into(), reached });
    }
}

#[test]
fn a_closed_stream_must_not_succeed() {
    // After the second CFGI_STE the stream aborts, after the third it is watched, after the fourth it
    // aborts for good. Before the first one nobody owned it yet.
    let states = [
        (0, StreamState::Abort),
        (2, StreamState::Abort),
        (3, StreamState::Watch),
        (4, StreamState::Abort),
    ];
    for (cfgi, state) in states {
        let mut run = Run::good();
        let dma = success(ROGUE, RAM, ROGUE_RAM);
        match cfgi {
            0 => run.insert("cfgi_ste streamid= 0x10", 0, vec![dma]),
            4 => run.trace.push(dma),
            _ => run.insert("cfgi_ste streamid= 0x10", cfgi as usize, vec![dma]),
        }
        finds(&run, Finding::Closed { sid: ROGUE, state, cfgi, count: 1 });
    }
}

#[test]
fn a_stream_without_history_is_closed() {
    let mut run = Run::good();
    run.rogue().history.clear();
    run.rogue().transitions = 0;
    let state = StreamState::Abort;
    finds(&run, Finding::Closed { sid: ROGUE, state, cfgi: 1, count: 2 });
}

#[test]
fn dma_from_before_what_el2_remembers_cannot_be_judged() {
    let mut run = Run::good();
    run.rogue().history.drain(..2);
    finds(&run, Finding::Forgotten { sid: ROGUE, cfgi: 1 });
}

#[test]
fn a_guest_that_outruns_el2s_memory_is_still_confined() {
    let forger = || {
        let mut run = Run::good();
        run.rogue().history.drain(..2);
        run.machine.vms[1].guest = Guest::BuiltIn { role: "forger".into(), nonce: None };
        run
    };
    assert_eq!(findings(&forger()), []);
    let mut run = forger();
    run.insert("F_TRANSLATION", 0, vec![success(ROGUE, RAM, VICTIM_RAM)]);
    let reached = VICTIM_RAM..VICTIM_RAM + PAGE_SIZE;
    finds(&run, Finding::Outside { sid: ROGUE, vm: "rogue".into(), reached });
    // What EL2 does remember counts.
    let mut run = forger();
    run.trace.push(success(ROGUE, RAM, ROGUE_RAM));
    finds(&run, Finding::Closed { sid: ROGUE, state: StreamState::Abort, cfgi: 4, count: 1 });
}

#[test]
fn a_reopened_stream_may_succeed_again() {
    let mut run = Run::good();
    run.rogue().history.push(report::Entered { state: StreamState::Nested, cfgi: 5 });
    run.trace.extend(publish(ROGUE));
    run.trace.push(success(ROGUE, 0x1000, ROGUE_RAM));
    assert_eq!(findings(&run), []);
}

#[test]
fn streams_without_owner_must_not_succeed() {
    let sid = StreamId(0x18);
    let mut run = Run::good();
    run.trace.push(success(sid, RAM, ROGUE_RAM));
    assert_eq!(findings(&run), [Finding::Unowned { sid, count: 1 }, Finding::Unreported { sid },]);

    // Reported, and nobody's.
    let mut unowned = run.report.streams[1].clone();
    (unowned.sid, unowned.vm) = (sid.0, None);
    run.report.streams.push(unowned);
    let all = findings(&run);
    assert!(all.contains(&Finding::Unowned { sid, count: 1 }), "{all:?}");
}

#[test]
fn refusals_of_a_stream_without_owner_are_reported_or_silent() {
    let sid = StreamId(0x18);
    let mut run = Run::good();
    run.trace.push(aborted(sid, RAM));
    assert_eq!(findings(&run), []);
    run.trace.extend(refused(sid, RAM, 1));
    finds(&run, Finding::Unreported { sid });
}

#[test]
fn bypass_is_a_breach_at_any_time() {
    for at in [0, 30] {
        let mut run = Run::good();
        let line = "smmuv3_translate_bypass smmuv3-iommu-memory-region-16-0 sid=0x10 STE bypass \
                    iova:0x1000 is_write=1";
        run.trace.insert(at, line.into());
        finds(&run, Finding::Bypassed { sid: ROGUE, count: 1 });
    }
}

#[test]
fn a_disabled_smmu_is_open_only_before_el2_came() {
    let line = "smmuv3_translate_disable smmuv3-iommu-memory-region-16-0 sid=0x10 bypass (smmu disabled) \
                iova:0x1000 is_write=1";
    let mut run = Run::good();
    run.trace.insert(0, line.into());
    assert_eq!(findings(&run), []);
    run.trace.push(line.into());
    finds(&run, Finding::Disabled { sid: ROGUE, count: 1 });
}

#[test]
fn a_disabled_smmu_under_gbpa_abort_is_closed() {
    let mut run = Run::good();
    run.trace.push(register(0x20, 0));
    run.trace.push(aborted(ROGUE, RAM));
    assert_eq!(findings(&run), []);
}

#[test]
fn gbpa_abort_is_set_once_and_for_all() {
    let mut run = Run::good();
    run.trace.push(register(0x44, 0x8000_0000));
    finds(&run, Finding::AbortCleared { times: 1 });
    let mut run = Run::good();
    run.trace.remove(0);
    finds(&run, Finding::AbortNeverSet);
}

#[test]
fn natively_the_smmu_may_be_left_alone_but_not_untraced() {
    let mut run = Run::good();
    run.machine.native = true;
    run.trace.clear();
    assert_eq!(integrity(&run.traced(), &run.machine), [Finding::Lost]);
    run.trace.push("smmu_add_mr smmuv3-iommu-memory-region-0-0".into());
    assert_eq!(integrity(&run.traced(), &run.machine), []);
    assert!(!run.traced().has_guest());
    run.machine.native = false;
    assert_eq!(integrity(&run.traced(), &run.machine), [Finding::Lost]);
}

#[test]
fn a_lost_torn_or_endless_trace_convicts() {
    let mut run = Run::good();
    run.trace.clear();
    assert!(findings(&run).contains(&Finding::Lost));
    let mut run = Run::good();
    run.trace.push("smmuv3_translate_success smmuv3-iommu".into());
    finds(&run, Finding::Unreadable("smmuv3_translate_success smmuv3-iommu".into()));
    let mut run = Run::good();
    run.trace.truncate(20);
    let lost = findings(&run);
    let expected = Finding::LostCommands { sid: ROGUE, reported: 4, traced: 1 };
    assert!(lost.contains(&expected), "{lost:?}");
}

#[test]
fn more_than_the_trace_can_hold_convicts() {
    let Run { report, machine, trace: lines, .. } = Run::good();
    let mut trace = Trace::with_budget(64);
    let scattered = (0..100).flat_map(|page| refused(ROGUE, page * PAGE_SIZE, 1));
    for line in lines.into_iter().chain(scattered) {
        trace.line(&line);
    }
    assert_eq!(judge(&trace, Some(&report), &machine), [Finding::Overflowed]);
}

#[test]
fn a_rejected_command_convicts() {
    let mut run = Run::good();
    run.trace.push(command("SYNC"));
    run.trace.push("smmuv3_write_gerror toggled=0x1, new GERROR=0x1".into());
    finds(&run, Finding::CommandError);
    // A full event queue is somebody else's fault.
    let mut run = Run::good();
    run.trace.push("smmuv3_write_gerror toggled=0x4, new GERROR=0x4".into());
    assert_eq!(findings(&run), []);
}

#[test]
fn el2_and_the_manifests_agree_on_owners() {
    let mut run = Run::good();
    run.rogue().vm = Some("victim".into());
    finds(
        &run,
        Finding::Owner {
            sid: ROGUE,
            configured: Some("rogue".into()),
            reported: Some("victim".into()),
        },
    );
    let mut run = Run::good();
    run.machine.devices[1].vm = None;
    let all = findings(&run);
    assert_eq!(all[0], Finding::Unowned { sid: ROGUE, count: 2 });
}

#[test]
fn vms_share_no_memory() {
    let mut run = Run::good();
    run.report.vms[1].memory[0].size += PAGE_SIZE;
    assert_eq!(findings(&run), []);
    run.report.vms[0].memory[0].size += PAGE_SIZE;
    finds(
        &run,
        Finding::Shared {
            vms: ["victim".into(), "rogue".into()],
            memory: ROGUE_RAM..ROGUE_RAM + PAGE_SIZE,
        },
    );
}

#[test]
fn without_a_report_the_trace_speaks_for_itself() {
    let mut run = Run::good();
    run.trace.push(register(0x44, 0x8000_0000));
    let findings = judge(&run.traced(), None, &run.machine);
    assert_eq!(findings, [Finding::AbortCleared { times: 1 }]);
}

#[test]
fn a_breach_comes_before_a_missing_count() {
    let mut run = Run::good();
    run.rogue().history.last_mut().unwrap().cfgi = 9;
    run.insert("F_TRANSLATION", 0, vec![success(ROGUE, RAM, VICTIM_RAM)]);
    assert!(matches!(findings(&run)[0], Finding::Outside { .. }));
}
