use platform::report::{Cause, Hex, StreamState, VmState};

use super::*;
use crate::fixture::{
    HYPERVISOR, LATE, NONCE, RAM, ROGUE, ROGUE_RAM, Run, SMMU, VICTIM, VICTIM_RAM, aborted,
    publish, refused, register, success,
};

#[test]
fn a_good_run_passes_with_a_table() {
    let run = Run::good();
    let verdict = run.judge();
    assert_eq!(verdict.findings, [""; 0]);
    assert!(verdict.pass);
    assert_eq!(
        verdict.table(),
        "\
device       owner   tried                  allowed  stopped  canary
00:01.0 edu  victim  own RAM                  2,048        0  ok
00:02.0 edu  rogue   own RAM                    128        0  -
00:02.0 edu  rogue   hypervisor 0x40030000        0      128  ok
00:02.0 edu  rogue   victim 0x40010000            0       64  ok
00:02.0 edu  rogue   smmu 0x9050000               0       64  -
00:02.0 edu  (dead)  late write 0x40006000        0        1  ok
three sources agree: guests, EL2, QEMU trace     PASS
"
    );
}

#[test]
fn the_file_says_what_the_table_says() {
    let file = Run::good().judge().file();
    assert_eq!((file.verdict.as_str(), file.reason.as_str()), ("pass", "three sources agree"));
    assert_eq!(file.report.sizes.smmu_text, Some(30_000));
    assert!(
        file.sources.guests.complete && file.sources.el2.complete && file.sources.qemu.complete
    );
    let mut run = Run::good();
    run.host = vec!["timed out after 60 s".into()];
    let file = run.judge().file();
    assert_eq!((file.verdict.as_str(), file.reason.as_str()), ("fail", "timed out after 60 s"));
}

#[test]
fn a_breach_in_the_trace_fails_before_everything_else() {
    let mut run = Run::good();
    run.insert("F_TRANSLATION", 0, vec![success(ROGUE, RAM, VICTIM_RAM)]);
    run.put(VICTIM_RAM, 64);
    run.fails("stream 0x10 of rogue reached 0x40010000..0x40011000 outside of it");
}

#[test]
fn further_findings_are_listed_before_the_last_line() {
    let mut run = Run::good();
    run.host = (0..12).map(|n| format!("problem {n}")).collect();
    let verdict = run.judge();
    let lines: Vec<_> = verdict.table().lines().skip(7).collect();
    assert_eq!(lines[0], "also: problem 1");
    assert_eq!(lines[7], "also: problem 8");
    assert_eq!(lines[8], "and 3 more");
    assert_eq!(lines[9], "three sources: guests, EL2, QEMU trace     FAIL: problem 0");
    assert_eq!(lines.len(), 10);
}

mod memory {
    use super::*;

    #[test]
    fn a_rogues_data_in_somebody_elses_memory_fails() {
        let mut run = Run::good();
        run.put(HYPERVISOR + 0x800, 5);
        run.fails("rogue wrote 0x40030800..0x40030814 of hypervisor");
        let table = run.judge().table().to_owned();
        let line =
            "00:02.0 edu  rogue   hypervisor 0x40030000        0      128  CHANGED 0x40030800";
        assert!(table.contains(line), "{table}");
    }

    #[test]
    fn its_own_memory_is_its_own() {
        let mut run = Run::good();
        run.put(ROGUE_RAM + 0x8000, 1024);
        assert!(run.judge().pass);
    }

    #[test]
    fn a_late_word_in_memory_fails() {
        let mut run = Run::good();
        run.put(ROGUE_RAM + 0x6000, 1);
        run.fails("late DMA of rogue wrote 0x40026000 of rogue");
        let table = run.judge().table().to_owned();
        let line =
            "00:02.0 edu  (dead)  late write 0x40006000        1        1  CHANGED 0x40026000";
        assert!(table.contains(line), "{table}");
    }

    #[test]
    fn a_single_word_at_a_forbidden_target_fails() {
        let mut run = Run::good();
        run.say("write address=0x40010000 accesses=64", "write address=0x40010000 accesses=1");
        let refusals =
            |line: &String| line.contains("iova=0x400100") && !line.contains("iova=0x40010000 ");
        // Each refusal is two lines.
        while let Some(at) = run.trace.iter().position(refusals) {
            run.trace.drain(at..at + 2);
        }
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() -= 63;
        assert_eq!(run.judge().findings, [""; 0]);
        run.put(VICTIM_RAM, 1);
        run.fails("rogue wrote 0x40010000 of victim");
    }

    #[test]
    fn memory_that_cannot_be_searched_fails() {
        let run = Run::good();
        let case = |ram| {
            let mut testimony = Testimony::new();
            run.said.iter().for_each(|line| {
                testimony.line(line);
            });
            let (collector, trace) = (run.collector(), run.traced());
            judge(&Case {
                machine: &run.machine,
                testimony: &testimony,
                report: &collector,
                trace: &trace,
                ram,
                smmu_text: None,
                host: &[],
            })
        };
        assert_eq!(case(None).reason, "physical memory was not searched");
        let gone = RamFile { path: "/nonexistent/ram".into(), base: RAM };
        let reason = case(Some(&gone)).reason;
        assert!(
            reason.starts_with("cannot read the machine's RAM in /nonexistent/ram: "),
            "{reason}"
        );
        let mut run = Run::good();
        run.ram.clear();
        run.fails("the machine's RAM file is empty");
    }
}

mod guests {
    use super::*;

    #[test]
    fn a_changed_canary_fails() {
        let mut run = Run::good();
        run.say("page=0x40006000 ok", "page=0x40006000 changed=0x40006010");
        run.fails("victim: canary 0x40006000 changed at 0x40006010");
        let table = run.judge().table().to_owned();
        assert!(
            table.contains("own RAM                  2,048        0  CHANGED 0x40006010"),
            "{table}"
        );
    }

    #[test]
    fn a_missing_canary_or_end_fails() {
        let mut run = Run::good();
        run.silence("@canary");
        run.fails("victim said nothing of its canaries");
        let mut run = Run::good();
        run.silence("@done role=rogue");
        run.fails("rogue did not come to its end");
        run.machine.vms[1].may_be_cut_off = true;
        assert!(run.judge().pass);
    }

    #[test]
    fn a_guest_in_the_wrong_role_fails() {
        let mut run = Run::good();
        run.say("@done role=rogue", "@done role=victim");
        run.fails("rogue is a rogue and says that it is a victim");
    }

    #[test]
    fn a_guests_own_failure_fails() {
        let mut run = Run::good();
        run.said.push("[victim] @check name=timer FAILED why=it stood still".into());
        run.fails("victim: @check name=timer FAILED why=it stood still");
    }

    #[test]
    fn what_a_guest_garbles_fails() {
        let mut run = Run::good();
        run.said.push("[victim] @tried device=00:01.0 op=wri".into());
        run.fails("victim said what nobody understands: @tried device=00:01.0 op=wri");
    }

    #[test]
    fn missing_text_fails() {
        let mut run = Run::good();
        run.machine.vms[0].expect = vec!["hello".into()];
        run.fails("victim never printed \"hello\"");
        run.said.push("[victim] hello, world".into());
        assert!(run.judge().pass);
    }

    #[test]
    fn a_guest_that_tells_of_no_dma_fails() {
        let mut run = Run::good();
        run.silence("@tried device=00:01.0");
        run.fails("victim told of no DMA by 00:01.0 edu");
    }

    #[test]
    fn a_guest_that_speaks_of_others_devices_fails() {
        let mut run = Run::good();
        run.said
            .push("[victim] @tried device=00:02.0 op=read address=0x0 accesses=1 arrived=0".into());
        run.fails("victim told of DMA by 00:02.0, which it does not own");
    }

    #[test]
    fn an_endless_guest_fails() {
        let mut run = Run::good();
        run.said.extend((0..=testimony_limit()).map(|_| "[victim] @check name=x ok".to_owned()));
        run.fails("victim said more than 65536 lines");
    }

    fn testimony_limit() -> usize {
        crate::testimony::LIMIT
    }
}

mod arrival {
    use super::*;

    #[test]
    fn legal_dma_that_does_not_arrive_fails() {
        let mut run = Run::good();
        run.say(
            "address=0x40005000 accesses=1024 arrived=1024",
            "address=0x40005000 accesses=1024 arrived=1023",
        );
        run.fails("DMA of 00:01.0 edu to 0x40005000: 1,023 of 1,024 accesses arrived");
    }

    #[test]
    fn forbidden_dma_that_arrives_fails() {
        let mut run = Run::good();
        run.say(
            "read address=0x40030000 accesses=64 arrived=0",
            "read address=0x40030000 accesses=64 arrived=3",
        );
        run.fails("DMA of 00:02.0 edu to 0x40030000: 3 accesses arrived, 0 were allowed");
    }

    #[test]
    fn dma_without_a_trace_fails() {
        let mut run = Run::good();
        run.trace.retain(|line| !line.contains("translate_success") || !line.contains("sid=0x8"));
        run.fails("QEMU's trace has no DMA of 00:01.0 edu to 0x40004000, victim saw it arrive");
    }

    #[test]
    fn forbidden_dma_that_qemu_did_not_stop_fails() {
        let mut run = Run::good();
        let stopped = run.trace.iter().position(|line| line.contains("iova=0x9050000 ")).unwrap();
        run.trace.drain(stopped..stopped + 2);
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() -= 1;
        run.fails("1 accesses of 00:02.0 edu to smmu 0x9050000 were not stopped");
    }

    #[test]
    fn a_forbidden_translation_fails_even_into_own_memory() {
        let mut run = Run::good();
        run.insert("F_TRANSLATION", 0, vec![success(ROGUE, SMMU, ROGUE_RAM)]);
        run.fails("QEMU let DMA of 00:02.0 edu to 0x9050000 through");
    }

    #[test]
    fn legal_dma_that_qemu_stopped_fails() {
        let mut run = Run::good();
        run.insert("translate_success", 0, refused(VICTIM, RAM + 0x4000, 2));
        run.report.streams[0].faults.insert("F_TRANSLATION".into(), 2);
        run.fails("2 legal accesses of 00:01.0 edu were stopped");
    }

    #[test]
    fn dma_that_no_guest_tells_of_fails() {
        let mut run = Run::good();
        run.insert("F_TRANSLATION", 0, refused(ROGUE, 0x4100_0000, 3));
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() += 3;
        run.fails("QEMU stopped 3 accesses of 00:02.0 edu that rogue tells nothing of");
        run.machine.vms[1].may_be_cut_off = true;
        assert!(run.judge().pass, "the guest had no time to tell");
    }

    #[test]
    fn more_stopped_than_tried_fails() {
        let mut run = Run::good();
        run.insert("F_TRANSLATION", 0, refused(ROGUE, SMMU, 1));
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() += 1;
        run.fails("QEMU stopped 65 accesses of 00:02.0 edu to smmu 0x9050000, rogue tried 64");
    }

    #[test]
    fn dma_across_the_end_of_own_memory_is_two_rows() {
        let mut run = Run::good();
        let edge = RAM + 0xff80;
        run.said.push(format!(
            "[rogue] @tried device=00:02.0 op=write address={edge:#x} accesses=64 arrived=32"
        ));
        run.insert("F_TRANSLATION", 0, vec![success(ROGUE, edge, ROGUE_RAM + 0xff80)]);
        run.insert("F_TRANSLATION", 0, refused(ROGUE, VICTIM_RAM, 32));
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() += 32;
        let verdict = run.judge();
        assert_eq!(verdict.findings, [""; 0]);
        assert!(verdict.table().contains("own RAM                    160        0"), "{verdict}");
        assert!(verdict.table().contains("victim 0x40010000            0       96"), "{verdict}");
    }
}

mod el2 {
    use super::*;

    #[test]
    fn other_event_counts_fail() {
        let mut run = Run::good();
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() += 1;
        run.fails("EL2 counts 258 F_TRANSLATION of 00:02.0 edu, QEMU 257");
        let mut run = Run::good();
        run.rogue().faults.clear();
        run.fails("EL2 counts 0 F_TRANSLATION of 00:02.0 edu, QEMU 257");
        let mut run = Run::good();
        run.rogue().faults.insert("F_PERMISSION".into(), 1);
        run.fails("EL2 counts 1 F_PERMISSION of 00:02.0 edu, QEMU 0");
    }

    #[test]
    fn dropped_events_explain_a_difference_but_not_any() {
        let mut run = Run::good();
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() -= 5;
        run.report.smmu[0].events.dropped = 5;
        assert_eq!(run.judge().findings, [""; 0]);
        run.report.smmu[0].events.dropped = 6;
        run.fails("EL2 says that 6 events were dropped, QEMU has 5 that EL2 did not count");
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() += 6;
        run.fails("EL2 counts 258 F_TRANSLATION of 00:02.0 edu, QEMU 257");
    }

    #[test]
    fn other_commands_fail() {
        let mut run = Run::good();
        run.report.smmu[0].commands.insert("SYNC".into(), 9);
        run.fails("EL2 issued 9 SYNC, QEMU took 8");
        let mut run = Run::good();
        run.report.smmu[0].commands.remove("TLBI_S12_VMALL");
        run.fails("EL2 issued 0 TLBI_S12_VMALL, QEMU took 1");
    }

    #[test]
    fn a_gerror_that_el2_did_not_see_fails() {
        let mut run = Run::good();
        run.trace.push("smmuv3_write_gerror toggled=0x4, new GERROR=0x4".into());
        run.fails("QEMU set GERROR bits 0x4, EL2 saw 0x0");
        run.report.smmu[0].gerror = 0x4;
        assert!(run.judge().pass);
    }

    #[test]
    fn an_incomplete_report_fails_and_hides_nothing() {
        let mut run = Run::good();
        run.end_of_report = false;
        run.fails("EL2's report stops after 25 records");
        assert!(!run.judge().sources.el2.complete);
        run.trace.push(register(0x44, 0x8000_0000));
        run.fails("GBPA.ABORT was cleared 1 times");
    }

    #[test]
    fn a_vm_that_is_not_off_fails() {
        let states = [
            (VmState::Crashed, "rogue crashed"),
            (VmState::Running, "rogue still runs"),
            (VmState::Restarting, "rogue is between two boots"),
        ];
        for (state, reason) in states {
            let mut run = Run::good();
            run.report.vms[1].state = state;
            run.fails(reason);
        }
        let mut run = Run::good();
        run.report.vms[1].state = VmState::Crashed;
        let last = run.report.vms[1].teardowns.last_mut().unwrap();
        last.cause = Cause::SystemOff;
        last.quiesced[0].clean = false;
        run.fails(
            "rogue crashed: nothing proves that 00:02.0 is quiet after its end; where switching bus mastering off will \
             do, say reset = \"bus-master\" in a manifest's [[pci]]",
        );
        let mut run = Run::good();
        let ghost = crate::machine::Vm {
            name: "ghost".into(),
            guest: Guest::Other,
            expect: Vec::new(),
            may_be_cut_off: false,
        };
        run.machine.vms.push(ghost);
        run.fails("EL2 reported nothing of ghost");
    }
}

mod late {
    use super::*;

    #[test]
    fn another_count_fails() {
        let mut run = Run::good();
        run.rogue().stopped_after_teardown.count = 2;
        run.fails("EL2 counts 2 late accesses of 00:02.0 edu, QEMU 1");
    }

    #[test]
    fn a_silenced_stream_counts_no_further() {
        let mut run = Run::good();
        run.say("0x40006000 accesses=1", "0x40006000 accesses=3");
        // The budget is one; the rest aborts silently.
        run.trace.extend([aborted(ROGUE, LATE + 4), aborted(ROGUE, LATE + 8)]);
        run.rogue().stopped_after_teardown.silenced = true;
        let verdict = run.judge();
        assert_eq!(verdict.findings, [""; 0]);
        assert!(verdict.table().contains("late write 0x40006000        0        3"), "{verdict}");
    }

    #[test]
    fn a_silenced_stream_counts_no_more_than_there_was() {
        let mut run = Run::good();
        run.rogue().stopped_after_teardown.silenced = true;
        run.rogue().stopped_after_teardown.count = 2;
        run.fails("EL2 counts 2 late accesses of 00:02.0 edu, QEMU 1");
    }

    #[test]
    fn memory_cannot_tell_where_the_guest_wrote_before() {
        let mut run = Run::good();
        let late = format!("address={LATE:#x} accesses=1");
        run.say(&late, "address=0x40007000 accesses=1");
        run.trace
            .iter_mut()
            .for_each(|line| *line = line.replace("iova=0x40006000 ", "iova=0x40007000 "));
        run.rogue().stopped_after_teardown.first = Some(Hex(0x4000_7000));
        let verdict = run.judge();
        assert_eq!(verdict.findings, [""; 0]);
        assert!(
            verdict.table().contains("late write 0x40007000        0        1  -"),
            "{verdict}"
        );
    }

    #[test]
    fn what_is_stopped_late_is_not_what_was_tried() {
        let mut run = Run::good();
        run.trace.push(aborted(ROGUE, SMMU));
        run.fails("rogue armed 00:02.0 edu for 1 late accesses, QEMU stopped 2");
    }

    #[test]
    fn another_address_or_direction_fails() {
        let mut run = Run::good();
        run.rogue().stopped_after_teardown.first = Some(Hex(LATE + 4));
        run.fails("late DMA of 00:02.0 edu began at 0x40006004 says EL2, at 0x40006000 QEMU");
        let mut run = Run::good();
        run.rogue().stopped_after_teardown.write = Some(false);
        run.fails("EL2 and rogue disagree on whether 00:02.0 edu read or wrote late");
    }

    #[test]
    fn an_unnamed_culprit_fails() {
        let mut run = Run::good();
        run.rogue().armed_at_close = false;
        run.fails("EL2 did not name 00:02.0 edu as armed, it did DMA afterwards");
    }

    /// Takes the late access out of trace and report.
    fn without_late_dma() -> Run {
        let mut run = Run::good();
        let at = run.trace.iter().position(|line| line.contains("iova=0x40006000 ")).unwrap();
        run.trace.drain(at..at + 2);
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() -= 1;
        run.rogue().stopped_after_teardown = Default::default();
        run
    }

    #[test]
    fn armed_dma_that_nobody_saw_fails() {
        let run = without_late_dma();
        run.fails("rogue armed 00:02.0 edu for 1 late accesses, QEMU stopped 0");
    }

    #[test]
    fn a_reset_cancels_armed_dma() {
        let mut run = without_late_dma();
        let quiesced = &mut run.report.vms[1].teardowns[0].quiesced[0];
        quiesced.how = "flr".try_into().unwrap();
        let verdict = run.judge();
        assert_eq!(verdict.findings, [""; 0]);
        assert!(
            verdict.table().contains("late write 0x40006000        0        0  ok"),
            "{verdict}"
        );
        run.report.vms[1].teardowns[0].quiesced[0].clean = false;
        run.fails("rogue armed 00:02.0 edu for 1 late accesses, QEMU stopped 0");
    }

    #[test]
    fn late_dma_of_a_silent_guest_has_a_row_too() {
        let mut run = Run::good();
        run.silence("@armed");
        run.fails("rogue armed 00:02.0 edu for 0 late accesses, QEMU stopped 1");
        run.machine.vms[1].guest = Guest::Other;
        let table = run.judge().table().to_owned();
        assert!(table.contains("00:02.0 edu  (dead)  late write 0x40006000"), "{table}");
    }

    #[test]
    fn dma_of_a_restarted_guest_is_not_late() {
        let mut run = Run::good();
        run.rogue().history.push(crate::report::Entered { state: StreamState::Stage2, cfgi: 5 });
        run.report.smmu[0].commands.insert("SYNC".into(), 9);
        run.report.smmu[0].commands.insert("CFGI_STE".into(), 7);
        run.trace.extend(publish(ROGUE));
        run.trace.extend(refused(ROGUE, SMMU, 64));
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() += 64;
        run.said.push(format!(
            "[rogue] @tried device=00:02.0 op=write address={SMMU:#x} accesses=64 arrived=0"
        ));
        let verdict = run.judge();
        assert_eq!(verdict.findings, [""; 0]);
        assert!(verdict.table().contains("smmu 0x9050000               0      128"), "{verdict}");
    }
}

mod linux {
    use super::*;

    /// The victim is Linux with a disk, and nobody attacks.
    fn run() -> Run {
        let mut run = Run::good();
        run.machine.vms[0].guest = Guest::Linux { nonce: None };
        run.machine.devices[0].label = "nvme".into();
        run.machine.devices[0].disk = Some("nvme0n1".into());
        run.silence("@tried device=00:01.0");
        run.silence("@canary");
        run.said.push("[victim] @disk name=nvme0n1 bytes=1048576 sha256=ok".into());
        run.said.push("[victim] @disk name=nvme0n1 write=ok bytes=1048576".into());
        run
    }

    #[test]
    fn a_disk_is_a_row() {
        let verdict = run().judge();
        assert_eq!(verdict.findings, [""; 0]);
        let row = "00:01.0 nvme  victim  its driver's DMA             2        0  ok";
        assert!(verdict.table().contains(row), "{verdict}");
    }

    #[test]
    fn an_attack_from_userspace_is_judged_as_any_other() {
        let attack = || {
            let mut run = Run::good();
            run.machine.vms[1].guest = Guest::Linux { nonce: Some(NONCE) };
            run
        };
        let (run, rogue) = (attack().judge(), Run::good().judge());
        assert_eq!(run.findings, [""; 0]);
        assert_eq!(run.table(), rogue.table());
        let mut run = attack();
        run.put(VICTIM_RAM, 64);
        assert!(!run.judge().pass, "its data is in another VM's memory");
        let mut run = attack();
        run.silence("@tried device=00:02.0 op=write address=0x9050000");
        run.fails("QEMU stopped 64 accesses of 00:02.0 edu that rogue tells nothing of");
    }

    #[test]
    fn what_is_stopped_before_the_owner_starts_is_not_late() {
        let mut run = run();
        run.insert("cfgi_ste streamid= 0x8", 0, vec![aborted(VICTIM, RAM)]);
        let verdict = run.judge();
        assert_eq!(verdict.findings, [""; 0]);
        let row = "00:01.0 nvme  victim  its driver's DMA             2        1  ok";
        assert!(verdict.table().contains(row), "{verdict}");
        assert!(!verdict.table().contains("00:01.0 nvme  (dead)"), "{verdict}");
    }

    #[test]
    fn a_disk_with_the_wrong_content_fails() {
        let mut run = run();
        run.say("write=ok", "write=BAD");
        run.fails("victim: @disk name=nvme0n1 write=BAD bytes=1048576");
        assert!(run.judge().table().contains("CHANGED"));
    }

    #[test]
    fn a_disk_that_is_not_told_of_fails() {
        let mut run = run();
        run.silence("write=ok");
        run.fails("victim did not tell what it read from and wrote to nvme0n1");
    }

    #[test]
    fn a_disk_that_was_read_without_a_trace_fails() {
        let mut run = run();
        run.trace.retain(|line| !line.contains("translate_success") || !line.contains("sid=0x8"));
        run.fails("QEMU's trace has no DMA of 00:01.0 nvme, victim read its disk");
    }
}

mod strangers {
    use super::*;

    #[test]
    fn a_device_without_owner_is_a_row_if_it_did_anything() {
        let mut run = Run::good();
        let mut device = run.machine.devices[1].clone();
        (device.sid, device.address, device.vm) =
            (smmu::addr::StreamId(0x18), "00:03.0".into(), None);
        run.machine.devices.push(device);
        let mut stream = run.report.streams[1].clone();
        (stream.sid, stream.vm) = (0x18, None);
        stream.history.clear();
        stream.faults.clear();
        stream.stopped_after_teardown = Default::default();
        run.report.streams.push(stream);
        assert_eq!(run.judge().findings, [""; 0]);
        assert!(!run.judge().table().contains("00:03.0"));
        run.trace.push(aborted(smmu::addr::StreamId(0x18), RAM));
        let verdict = run.judge();
        assert_eq!(verdict.findings, [""; 0]);
        let row = "00:03.0 edu  -       any DMA                      0        1  -";
        assert!(verdict.table().contains(row), "{verdict}");
    }

    #[test]
    fn an_unknown_stream_is_shown_and_fails_if_it_was_recorded() {
        let mut run = Run::good();
        let sid = smmu::addr::StreamId(0x18);
        run.trace.push(aborted(sid, RAM));
        assert!(run.judge().table().contains("stream 0x18  -       unknown DMA"));
        assert!(run.judge().pass, "it was stopped without a word");
        run.trace.extend(refused(sid, RAM, 1));
        run.fails("stream 0x18 did DMA, EL2 does not report it");
    }
}

mod native {
    use super::*;
    use crate::machine::Region;

    fn disabled(iova: u64) -> String {
        format!(
            "smmuv3_translate_disable smmuv3-iommu-memory-region-16-0 sid=0x10 bypass (smmu disabled) \
             iova:{iova:#x} is_write=1"
        )
    }

    /// The rogue alone on the bare machine: everything that it tries succeeds.
    fn run() -> Run {
        let mut run = Run::good();
        run.machine.native = true;
        run.machine.vms.remove(0);
        run.machine.devices.remove(0);
        let bystander = Region { name: "bystander".into(), base: HYPERVISOR, size: 0x1_0000 };
        run.machine.regions[0] = bystander;
        let said = |op: &str, address: u64, arrived: u64| {
            format!(
                "[rogue] @tried device=00:02.0 op={op} address={address:#x} accesses=64 arrived={arrived}"
            )
        };
        run.said = vec![
            said("read", RAM + 0x4000, 64),
            said("write", RAM + 0x7000, 64),
            said("write", HYPERVISOR, 0),
            format!("[rogue] @armed device=00:02.0 op=write address={LATE:#x} accesses=1"),
            "[rogue] @done role=rogue".into(),
        ];
        run.trace =
            [RAM + 0x4000, RAM + 0x7000, HYPERVISOR, LATE].into_iter().map(disabled).collect();
        run.ram.fill(0);
        run.put(RAM + 0x4000, 64);
        run.put(RAM + 0x7000, 64);
        run.put(HYPERVISOR, 64);
        run.put(LATE, 1);
        run
    }

    #[test]
    fn the_table_shows_what_was_corrupted() {
        let verdict = run().judge();
        assert_eq!(
            verdict.table(),
            "\
device       owner   tried                  allowed  stopped  canary
00:02.0 edu  rogue   own RAM                    128        0  -
00:02.0 edu  rogue   bystander 0x40030000        64        0  CHANGED 0x40030000
00:02.0 edu  (dead)  late write 0x40006000        1        0  CHANGED 0x40006000
also: late DMA of rogue wrote 0x40006000 of RAM
also: rogue wrote 0x40030000..0x40030100 of bystander
two sources: guests, QEMU trace     FAIL: 64 accesses of 00:02.0 edu to bystander 0x40030000 were not stopped
"
        );
        assert_eq!(verdict.report, Report { sizes: verdict.report.sizes, ..Report::default() });
        assert!(!verdict.sources.el2.complete);
    }

    #[test]
    fn a_successor_tells_which_device_wrote_where() {
        let mut run = run();
        for page in
            ["0x40000000 changed=0x40006000 words=7", "0x40100000 changed=0x40100000 words=2"]
        {
            run.said.push(format!("[rogue] @canary page={page}"));
        }
        let allowed = |run: &Run| {
            let table = run.judge().table().to_owned();
            let late = table.lines().find(|line| line.contains("(dead)")).unwrap().to_owned();
            late.split_whitespace().nth(6).unwrap().to_owned()
        };
        assert_eq!(allowed(&run), "7");
        // No other device was armed, so it was this one.
        run.say("op=write address=0x40006000", "op=write address=0x40206000");
        assert_eq!(allowed(&run), "9");
    }

    #[test]
    fn a_guest_that_harms_nobody_passes() {
        let mut run = run();
        run.silence("address=0x40030000");
        run.silence("@armed");
        run.ram[(HYPERVISOR - RAM) as usize..].fill(0);
        run.ram[(LATE - RAM) as usize..][..4].fill(0);
        let verdict = run.judge();
        assert_eq!(verdict.findings, [""; 0]);
        assert!(
            verdict.table().ends_with("two sources agree: guests, QEMU trace     PASS\n"),
            "{verdict}"
        );
    }

    #[test]
    fn a_lost_trace_fails() {
        let mut run = run();
        run.trace.clear();
        run.fails("QEMU's trace is lost");
    }
}

/// A guest whose own SMMU leads its device's addresses.
mod translated {
    use super::*;
    use crate::report::Entered;

    /// Where the rogue's own stage 1 maps something.
    const IOVA: u64 = 0x1234_5000;
    const TO: &str = "to=0x40005000";

    /// The rogue's device writes 16 times through a stage 1, and is refused as often after an unmap.
    fn run() -> Run {
        let mut run = Run::good();
        let tried = |arrived: u64, to: &str| {
            format!(
                "[rogue] @tried device=00:02.0 op=write address={IOVA:#x} accesses=16 arrived={arrived} {to}"
            )
        };
        let at = run.said.iter().position(|line| line.contains("[rogue] @armed")).unwrap();
        run.said.splice(at..at, [tried(16, TO), tried(0, "to=nowhere")]);
        let mut lines = vec![success(ROGUE, IOVA, ROGUE_RAM + 0x5000)];
        lines.extend(refused(ROGUE, IOVA, 16));
        run.insert("F_TRANSLATION", 0, lines);
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() += 16;
        run
    }

    #[test]
    fn what_is_mapped_arrives_and_what_is_not_is_stopped() {
        let run = run();
        let verdict = run.judge();
        assert_eq!(verdict.findings, [""; 0]);
        let row = "00:02.0 edu  rogue   through its own SMMU        16       16  -";
        assert!(verdict.table().contains(row), "{}", verdict.table());
    }

    #[test]
    fn what_does_not_arrive_fails() {
        let mut run = run();
        run.say("arrived=16 to=0x40005000", "arrived=15 to=0x40005000");
        run.fails(
            "DMA of 00:02.0 edu to 0x12345000, which leads to To(40005000): 15 accesses arrived instead of 16",
        );
    }

    #[test]
    fn what_is_not_stopped_fails() {
        let mut run = run();
        run.say("arrived=0 to=nowhere", "arrived=0 to=0x40005000");
        run.fails(
            "DMA of 00:02.0 edu to 0x12345000, which leads to To(40005000): 0 accesses arrived instead of 16",
        );
        let mut run = super::translated::run();
        run.say("arrived=16 to=0x40005000", "arrived=0 to=nowhere");
        run.fails("QEMU stopped 16 accesses of 00:02.0 edu to 0x12345000, rogue expects 32");
    }

    #[test]
    fn what_nobody_can_tell_is_stopped_or_not_but_not_more_often_than_it_was_tried() {
        for stopped in [0, 7, 16] {
            let mut run = run();
            let maybe = format!(
                "[rogue] @tried device=00:02.0 op=write address={IOVA:#x} accesses=16 arrived=0 to=anywhere"
            );
            let at = run.said.iter().position(|line| line.contains("[rogue] @armed")).unwrap();
            run.said.insert(at, maybe);
            if stopped > 0 {
                run.insert("F_TRANSLATION", 0, refused(ROGUE, IOVA, stopped));
            }
            *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() += stopped;
            assert_eq!(run.judge().findings, [""; 0], "{stopped}");
        }
        let mut run = run();
        run.insert("F_TRANSLATION", 0, refused(ROGUE, IOVA, 1));
        *run.rogue().faults.get_mut("F_TRANSLATION").unwrap() += 1;
        run.fails("QEMU stopped 17 accesses of 00:02.0 edu to 0x12345000, rogue expects 16");
    }

    #[test]
    fn foreign_memory_is_not_reached_through_it() {
        let mut run = run();
        let foreign = format!("to={:#x}", RAM + 4 * crate::fixture::SIZE);
        run.say(TO, &foreign);
        let reason = run.judge().reason;
        assert!(reason.ends_with("16 accesses arrived instead of 0"), "{reason}");
    }

    #[test]
    fn a_stream_that_its_owner_closed_and_opened_is_not_late() {
        let mut run = run();
        // Closed by its owner before the refusals, and opened after them.
        let first = format!("iova={IOVA:#x} (");
        run.insert(&first, 0, publish(ROGUE));
        run.insert("iova=0x40030000", 0, publish(ROGUE));
        use StreamState::{Abort, Stage2, Watch};
        let history =
            [(Abort, 0), (Stage2, 1), (Abort, 2), (Stage2, 3), (Abort, 4), (Watch, 5), (Abort, 6)];
        run.rogue().transitions = history.len() as u64;
        run.rogue().history = history.map(|(state, cfgi)| Entered { state, cfgi }).to_vec();
        for command in ["CFGI_STE", "SYNC"] {
            *run.report.smmu[0].commands.get_mut(command).unwrap() += 2;
        }
        assert_eq!(run.judge().findings, [""; 0]);
    }
}
