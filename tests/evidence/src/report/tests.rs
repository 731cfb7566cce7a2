use platform::report::{Command, Count, Events, Fault, MAX_LINE, Step, Stopped, VmExits, VmMemory};

use super::*;

fn framed(record: &Record) -> String {
    let mut line = heapless::String::<MAX_LINE>::new();
    report::frame(record, &mut line).unwrap();
    line.as_str().into()
}

fn count(name: &str, count: u64) -> Count {
    Count { name: name.try_into().unwrap(), count }
}

/// Everything that a report can say, in no helpful order.
fn records() -> Vec<Record> {
    let vm: report::Name = "rogue".try_into().unwrap();
    let quiesced = report::Quiesced {
        address: "00:02.0".try_into().unwrap(),
        how: "bus-master".try_into().unwrap(),
        clean: false,
    };
    vec![
        Record::Step(Step { sid: 0x10, state: StreamState::Stage2, cfgi: 1 }),
        Record::Step(Step { sid: 0x10, state: StreamState::Watch, cfgi: 3 }),
        Record::Fault(Fault { sid: 0x10, event: count("F_TRANSLATION", 64) }),
        Record::VmExits(VmExits { vm: vm.clone(), reason: count("wfi", 7) }),
        Record::VmMemory(VmMemory {
            vm: vm.clone(),
            ipa: Hex(0x4000_0000),
            pa: Hex(0x4600_0000),
            size: 0x100_0000,
            kind: MemoryKind::Ram,
        }),
        Record::Teardown(report::Teardown {
            vm: vm.clone(),
            cause: Cause::SystemOff,
            streams: 1,
            instructions: None,
        }),
        Record::Command(Command { base: Hex(0x905_0000), opcode: count("CMD_SYNC", 9) }),
        Record::Stream(report::Stream {
            sid: 0x10,
            vm: Some(vm.clone()),
            device: "00:02.0 1234:11e8".try_into().unwrap(),
            state: StreamState::Abort,
            transitions: 4,
            armed_at_close: true,
            muted: false,
            stopped_after_teardown: Stopped {
                count: 1,
                first: Some(Hex(0x4040_2000)),
                write: Some(true),
                silenced: false,
            },
        }),
        Record::Vm(report::Vm {
            name: vm.clone(),
            state: VmState::Off,
            boots: 1,
            cpus: [1].into_iter().collect(),
            exits: 10,
            lines_left_out: 2,
            lock_waits: 3,
        }),
        Record::Smmu(report::Smmu {
            base: Hex(0x905_0000),
            class: "nested".try_into().unwrap(),
            syncs: 9,
            guest_batches: 0,
            events: Events { drained: 64, forwarded: 0, dropped: 0, undelivered: 0 },
            gerror: 0,
        }),
        Record::Sizes(report::Sizes { image_text: 1000, el2_memory: 2000, guest_memory: 4000 }),
        Record::TeardownFunction(report::TeardownFunction {
            vm: vm.clone(),
            teardown: 0,
            function: quiesced,
        }),
        Record::TeardownMoment(report::TeardownMoment {
            vm,
            teardown: 0,
            moment: report::Moment {
                at_us: 42,
                what: report::What::Late,
                device: "00:02.0".try_into().unwrap(),
                count: 1,
            },
        }),
    ]
}

fn collect(records: &[Record]) -> Collector {
    let mut collector = Collector::new();
    collector.line(&framed(&Record::Begin { version: 1 }));
    for record in records {
        assert!(collector.line(&framed(record)));
    }
    collector.line(&framed(&Record::End { records: records.len() as u32 + 2 }));
    collector
}

fn error(collector: &Collector) -> Error {
    collector.finish().1.expect("a faulty report")
}

#[test]
fn the_file_has_the_documented_names_and_nesting() {
    let (mut report, error) = collect(&records()).finish();
    assert_eq!(error, None);
    report.sizes.smmu_text = Some(300);
    let source = Source { complete: true, lines: 13, problem: None };
    let sources = Sources { guests: source.clone(), el2: source.clone(), qemu: source };
    let file = File {
        version: 1,
        verdict: "pass".into(),
        reason: "three sources agree".into(),
        sources,
        report,
    };
    let text = file.to_json().unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let source = serde_json::json!({ "complete": true, "lines": 13, "problem": null });
    let expected = serde_json::json!({
        "version": 1,
        "verdict": "pass",
        "reason": "three sources agree",
        "sources": { "guests": source, "el2": source, "qemu": source },
        "vms": [{
            "name": "rogue", "state": "off", "boots": 1, "cpus": [1],
            "memory": [{ "ipa": "0x40000000", "pa": "0x46000000", "size": 0x100_0000, "kind": "ram" }],
            "exits": { "total": 10, "by_reason": { "wfi": 7 } },
            "lines_left_out": 2,
            "lock_waits": 3,
            "teardowns": [{
                "cause": "system-off", "streams": 1, "instructions": null,
                "quiesced": [{ "address": "00:02.0", "how": "bus-master", "clean": false }],
                "moments": [{ "at_us": 42, "what": "late", "device": "00:02.0", "count": 1 }],
            }],
        }],
        "streams": [{
            "sid": 16, "vm": "rogue", "device": "00:02.0 1234:11e8", "state": "abort", "transitions": 4,
            "history": [{ "state": "stage2", "cfgi": 1 }, { "state": "watch", "cfgi": 3 }],
            "faults": { "F_TRANSLATION": 64 }, "armed_at_close": true, "muted": false,
            "stopped_after_teardown":
                { "count": 1, "first": "0x40402000", "write": true, "silenced": false },
        }],
        "smmu": [{
            "base": "0x9050000", "class": "nested", "commands": { "CMD_SYNC": 9 }, "syncs": 9,
            "guest_batches": 0, "events": { "drained": 64, "forwarded": 0, "dropped": 0, "undelivered": 0 }, "gerror": 0,
        }],
        "sizes": { "image_text": 1000, "smmu_text": 300, "el2_memory": 2000, "guest_memory": 4000 },
    });
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_str::<File>(&text).unwrap(), file);
}

#[test]
fn other_lines_are_not_the_reports() {
    let mut collector = Collector::new();
    assert!(!collector.line("portcullis> kill rogue"));
    assert_eq!(collector.lines(), 0);
    assert_eq!(error(&collector), Error::Missing);
}

#[test]
fn line_ends_do_not_matter() {
    let mut collector = Collector::new();
    assert!(collector.line(&(framed(&Record::Begin { version: 1 }) + "\r\n")));
    assert!(collector.line(&(framed(&Record::End { records: 2 }) + "\r")));
    assert!(collector.is_finished());
    assert_eq!(collector.finish(), (Report::default(), None));
}

#[test]
fn a_report_that_stops_is_no_report() {
    let mut collector = Collector::new();
    collector.line(&framed(&Record::Begin { version: 1 }));
    collector.line(&framed(&records()[10]));
    assert!(!collector.is_finished());
    assert_eq!(error(&collector), Error::Unfinished { records: 2 });
    // What came is still there to look at.
    assert_eq!(collector.finish().0.sizes.image_text, 1000);
}

#[test]
fn a_lost_or_surplus_record_is_noticed() {
    let mut collector = Collector::new();
    collector.line(&framed(&Record::Begin { version: 1 }));
    collector.line(&framed(&Record::End { records: 3 }));
    assert_eq!(error(&collector), Error::Count { said: 3, came: 2 });

    let mut collector = Collector::new();
    collector.line(&framed(&Record::Begin { version: 1 }));
    collector.line(&framed(&records()[10]));
    collector.line(&framed(&Record::End { records: 2 }));
    assert_eq!(error(&collector), Error::Count { said: 2, came: 3 });
}

#[test]
fn a_damaged_line_is_noticed_whatever_follows() {
    let mut collector = collect(&records());
    let damaged = framed(&records()[3]).replace("wfi", "wfe");
    assert!(collector.line(&damaged));
    assert!(matches!(error(&collector), Error::Damaged { .. }));
}

#[test]
fn an_unknown_version_or_record_is_refused() {
    let mut collector = Collector::new();
    collector.line(&framed(&Record::Begin { version: 2 }));
    assert_eq!(error(&collector), Error::Version(2));

    let mut collector = Collector::new();
    let json = r#"{"news":1}"#;
    assert!(collector.line(&format!("@portcullis {:08x} {json}", crc32(json.as_bytes()))));
    assert!(matches!(error(&collector), Error::Unknown { .. }));
}

#[test]
fn records_outside_of_the_report_are_refused() {
    let mut collector = collect(&[]);
    collector.line(&framed(&records()[10]));
    assert_eq!(error(&collector), Error::Misplaced);
}

#[test]
fn the_last_complete_report_counts() {
    let mut collector = collect(&records()[10..]);
    collector.line(&framed(&Record::Begin { version: 1 }));
    assert!(!collector.is_finished());
    collector.line(&framed(&Record::End { records: 2 }));
    assert_eq!(collector.finish(), (Report::default(), None));

    let mut collector = Collector::new();
    collector.line(&framed(&Record::Begin { version: 1 }));
    collector.line(&framed(&Record::Begin { version: 1 }));
    assert_eq!(error(&collector), Error::Unfinished { records: 1 });
}

#[test]
fn contradictions_are_noticed() {
    let all = records();
    let twice = |at: usize| [&all[..], &all[at..=at]].concat();
    for at in [2, 3, 6, 7, 8, 9] {
        let error = error(&collect(&twice(at)));
        assert!(matches!(error, Error::Contradiction(_)), "record {at}: {error}");
    }
    // Each of these speaks of something that is not there any more.
    for missing in [5, 7, 8, 9] {
        let without: Vec<_> = all
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != missing)
            .map(|(_, r)| r.clone())
            .collect();
        let error = error(&collect(&without));
        assert!(matches!(error, Error::Contradiction(_)), "without record {missing}: {error}");
    }
    let backwards = [&all[1..2], &all[0..1], &all[7..8]].concat();
    assert!(matches!(error(&collect(&backwards)), Error::Contradiction(_)));
}

/// The checksum of a frame, as section 3.1.1 of RFC 1952 defines it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
