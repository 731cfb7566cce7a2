//! The default run in small: a victim, and a rogue that aims at everything and dies armed. Tests spoil it.

use std::collections::BTreeMap;
use std::io::Write;

use platform::report::{
    self as wire, Cause, Count, Events, Hex, MAX_LINE, MemoryKind, Record, Stopped, StreamState,
    VmState,
};
use smmu::addr::StreamId;

use crate::machine::{Device, Guest, Machine, Region, Vm};
use crate::memory::{RamFile, word};
use crate::report::{
    Collector, Entered, Exits, Memory, Report, Sizes, Smmu, Stream, Teardown, Vm as ReportedVm,
};
use crate::testimony::Testimony;
use crate::trace::Trace;
use crate::verdict::{Case, Verdict, judge};

pub const VICTIM: StreamId = StreamId(0x08);
pub const ROGUE: StreamId = StreamId(0x10);
pub const NONCE: u32 = 0x1234_abcd;
pub const RAM: u64 = 0x4000_0000;
/// Each VM has so much, from IPA [`RAM`].
pub const SIZE: u64 = 0x1_0000;
pub const VICTIM_RAM: u64 = RAM + SIZE;
pub const ROGUE_RAM: u64 = RAM + 2 * SIZE;
pub const HYPERVISOR: u64 = RAM + 3 * SIZE;
pub const SMMU: u64 = 0x905_0000;
/// Where the rogue's last DMA goes, as it sees it.
pub const LATE: u64 = RAM + 0x6000;

/// A run that can be spoiled before it is judged.
pub struct Run {
    pub machine: Machine,
    pub said: Vec<String>,
    pub trace: Vec<String>,
    pub report: Report,
    pub ram: Vec<u8>,
    pub host: Vec<String>,
    pub end_of_report: bool,
}

/// QEMU's lines for a translation.
pub fn success(sid: StreamId, iova: u64, pa: u64) -> String {
    let devfn = sid.0 & 0xff;
    format!(
        "smmuv3_translate_success smmuv3-iommu-memory-region-{devfn}-0 sid={sid} iova={iova:#x} \
         translated={pa:#x} perm=0x3 stage=2"
    )
}

/// QEMU's lines for `accesses` refused ones.
pub fn refused(sid: StreamId, address: u64, accesses: u64) -> Vec<String> {
    let devfn = sid.0 & 0xff;
    let lines = (0..accesses).flat_map(|index| {
        let iova = address + 4 * index;
        let event = "SMMU_EVT_F_TRANSLATION";
        [
            format!(
                "smmuv3-iommu-memory-region-{devfn}-0 translation failed for iova={iova:#x} ({event})"
            ),
            format!("smmuv3_record_event {event} sid={sid}"),
        ]
    });
    lines.collect()
}

/// QEMU's lines for a silent abort.
pub fn aborted(sid: StreamId, iova: u64) -> String {
    let devfn = sid.0 & 0xff;
    format!(
        "smmuv3_translate_abort smmuv3-iommu-memory-region-{devfn}-0 sid={sid} abort on iova:{iova:#x} is_write=0"
    )
}

/// QEMU's lines for a command.
pub fn command(opcode: &str) -> String {
    format!("smmuv3_cmdq_opcode <--- SMMU_CMD_{opcode}")
}

/// QEMU's lines for publishing a new state of a stream.
pub fn publish(sid: StreamId) -> Vec<String> {
    let invalidate = format!("smmuv3_cmdq_cfgi_ste streamid= {sid}");
    vec![command("CFGI_STE"), invalidate, command("SYNC")]
}

/// QEMU's line for a register write.
pub fn register(offset: u64, value: u64) -> String {
    format!("smmuv3_write_mmio addr: {offset:#x} val:{value:#x} size: 0x4(0)")
}

fn tried(op: &str, address: u64, arrived: u64) -> String {
    format!(
        "[rogue] @tried device=00:02.0 op={op} address={address:#x} accesses=64 arrived={arrived}"
    )
}

fn machine() -> Machine {
    let vm = |name: &str, nonce| Vm {
        name: name.into(),
        guest: Guest::BuiltIn { role: name.into(), nonce },
        expect: Vec::new(),
        may_be_cut_off: false,
    };
    let device = |sid: StreamId, vm: &str| {
        let address = format!("00:{:02x}.0", sid.0 >> 3);
        Device {
            sid,
            guest_address: address.clone(),
            address,
            label: "edu".into(),
            vm: Some(vm.into()),
            disk: None,
            driven: true,
        }
    };
    let mut regions = vec![Region { name: "hypervisor".into(), base: HYPERVISOR, size: SIZE }];
    regions.extend(Machine::virt_regions());
    Machine {
        native: false,
        ram: (RAM, 4 * SIZE),
        regions,
        vms: vec![vm("victim", None), vm("rogue", Some(NONCE))],
        devices: vec![device(VICTIM, "victim"), device(ROGUE, "rogue")],
    }
}

fn said() -> Vec<String> {
    let victim = |line: &str| format!("[victim] {line}");
    vec![
        "[el2] two VMs".into(),
        victim("@tried device=00:01.0 op=read address=0x40004000 accesses=1024 arrived=1024"),
        victim("@tried device=00:01.0 op=write address=0x40005000 accesses=1024 arrived=1024"),
        tried("read", RAM + 0x4000, 64),
        tried("write", RAM + 0x7000, 64),
        tried("write", HYPERVISOR, 0),
        tried("write", VICTIM_RAM, 0),
        tried("write", SMMU, 0),
        tried("read", HYPERVISOR, 0),
        format!("[rogue] @armed device=00:02.0 op=write address={LATE:#x} accesses=1"),
        "[rogue] @done role=rogue".into(),
        victim("@interrupts device=00:01.0 count=1"),
        victim("@canary page=0x40006000 ok"),
        victim("@done role=victim"),
    ]
}

fn trace() -> Vec<String> {
    let boot = [
        register(0x44, 0x8010_0000),
        command("CFGI_STE_RANGE"),
        command("TLBI_NSNH_ALL"),
        command("SYNC"),
        register(0x20, 0xd),
    ];
    let lines = [
        boot.to_vec(),
        publish(VICTIM),
        publish(ROGUE),
        vec![
            success(VICTIM, RAM + 0x4000, VICTIM_RAM + 0x4000),
            success(VICTIM, RAM + 0x5000, VICTIM_RAM + 0x5000),
            success(ROGUE, RAM + 0x4000, ROGUE_RAM + 0x4000),
            success(ROGUE, RAM + 0x7000, ROGUE_RAM + 0x7000),
        ],
        refused(ROGUE, HYPERVISOR, 64),
        refused(ROGUE, VICTIM_RAM, 64),
        refused(ROGUE, SMMU, 64),
        refused(ROGUE, HYPERVISOR, 64),
        publish(ROGUE),
        vec![command("TLBI_S12_VMALL"), command("SYNC")],
        publish(ROGUE),
        refused(ROGUE, LATE, 1),
        publish(ROGUE),
        publish(VICTIM),
    ];
    lines.concat()
}

fn report() -> Report {
    let vm = |name: &str, pa, quiesced: Vec<wire::Quiesced>| ReportedVm {
        name: name.into(),
        state: VmState::Off,
        boots: 1,
        cpus: vec![0],
        memory: vec![Memory { ipa: Hex(RAM), pa: Hex(pa), size: SIZE, kind: MemoryKind::Ram }],
        exits: Exits { total: 7, by_reason: BTreeMap::from([("wfi".into(), 7)]) },
        lines_left_out: 0,
        lock_waits: 0,
        teardowns: vec![Teardown {
            cause: Cause::SystemOff,
            streams: 1,
            instructions: None,
            quiesced,
            moments: Vec::new(),
        }],
    };
    let bus_master = wire::Quiesced {
        address: "00:02.0".try_into().unwrap(),
        how: "bus-master".try_into().unwrap(),
        clean: true,
    };
    let stream = |sid: StreamId, vm: &str, history: &[(StreamState, u64)]| Stream {
        sid: sid.0,
        vm: Some(vm.into()),
        device: "00:02.0 1234:11e8".into(),
        state: StreamState::Abort,
        transitions: history.len() as u64,
        history: history.iter().map(|&(state, cfgi)| Entered { state, cfgi }).collect(),
        faults: BTreeMap::new(),
        armed_at_close: false,
        muted: false,
        stopped_after_teardown: Stopped::default(),
    };
    use StreamState::{Abort, Stage2, Watch};
    let victim = stream(VICTIM, "victim", &[(Stage2, 1), (Abort, 2)]);
    let history = [(Abort, 0), (Stage2, 1), (Abort, 2), (Watch, 3), (Abort, 4)];
    let rogue = Stream {
        faults: BTreeMap::from([("F_TRANSLATION".into(), 4 * 64 + 1)]),
        armed_at_close: true,
        stopped_after_teardown: Stopped {
            count: 1,
            first: Some(Hex(LATE)),
            write: Some(true),
            silenced: false,
        },
        ..stream(ROGUE, "rogue", &history)
    };
    let commands = [
        ("CFGI_ALL", 1),
        ("TLBI_NSNH_ALL", 1),
        ("CFGI_STE", 6),
        ("TLBI_S12_VMALL", 1),
        ("SYNC", 8),
    ];
    Report {
        vms: vec![vm("victim", VICTIM_RAM, Vec::new()), vm("rogue", ROGUE_RAM, vec![bus_master])],
        streams: vec![victim, rogue],
        smmu: vec![Smmu {
            base: Hex(SMMU),
            class: "nested".into(),
            commands: commands.map(|(name, count)| (name.to_owned(), count)).into(),
            syncs: 8,
            guest_batches: 0,
            events: Events { drained: 257, forwarded: 0, dropped: 0, undelivered: 0 },
            gerror: 0,
        }],
        sizes: Sizes {
            image_text: 100_000,
            smmu_text: None,
            el2_memory: 2_000_000,
            guest_memory: 3_000_000,
        },
    }
}

impl Run {
    /// A run in which everything is as it should be.
    pub fn good() -> Self {
        let mut run = Self {
            machine: machine(),
            said: said(),
            trace: trace(),
            report: report(),
            ram: vec![0; 4 * SIZE as usize],
            host: Vec::new(),
            end_of_report: true,
        };
        run.put(ROGUE_RAM + 0x4000, 64);
        run.put(ROGUE_RAM + 0x7000, 64);
        run
    }

    /// Puts the rogue's data into physical memory.
    pub fn put(&mut self, pa: u64, words: u32) {
        for index in 0..words {
            let at = (pa - RAM) as usize + 4 * index as usize;
            self.ram[at..at + 4].copy_from_slice(&word(NONCE, index).to_le_bytes());
        }
    }

    /// Replaces `old` by `new` in what the guests said; it must be there.
    pub fn say(&mut self, old: &str, new: &str) {
        replace(&mut self.said, old, new);
    }

    /// Removes every line with `text` from what the guests said.
    pub fn silence(&mut self, text: &str) {
        let before = self.said.len();
        self.said.retain(|line| !line.contains(text));
        assert_ne!(self.said.len(), before, "{text}");
    }

    /// Puts `lines` into the trace before the `nth` line with `text`, counted from 0.
    pub fn insert(&mut self, text: &str, nth: usize, lines: Vec<String>) {
        let mut places = self.trace.iter().enumerate().filter(|(_, line)| line.contains(text));
        let at = places.nth(nth).expect(text).0;
        self.trace.splice(at..at, lines);
    }

    /// The stream of the rogue in the report.
    pub fn rogue(&mut self) -> &mut Stream {
        &mut self.report.streams[1]
    }

    /// What has been traced.
    pub fn traced(&self) -> Trace {
        let mut trace = Trace::new();
        for line in &self.trace {
            trace.line(line);
        }
        trace
    }

    /// Judges the run.
    pub fn judge(&self) -> Verdict {
        let mut testimony = Testimony::new();
        for vm in &self.machine.vms {
            vm.expect.iter().for_each(|text| testimony.expect(&vm.name, text));
        }
        for line in &self.said {
            testimony.line(line);
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&self.ram).unwrap();
        let ram = RamFile { path: file.path().into(), base: RAM };
        judge(&Case {
            machine: &self.machine,
            testimony: &testimony,
            report: &self.collector(),
            trace: &self.traced(),
            ram: Some(&ram),
            smmu_text: Some(30_000),
            host: &self.host,
        })
    }

    /// Asserts that the run fails for `reason`, before any other.
    #[track_caller]
    pub fn fails(&self, reason: &str) {
        let verdict = self.judge();
        assert!(!verdict.pass, "passes, where it should say: {reason}");
        assert_eq!(verdict.reason, reason, "{:#?}", verdict.findings);
        let last = verdict.table().lines().last().unwrap().to_owned();
        assert!(last.ends_with(&format!("     FAIL: {reason}")), "{last}");
    }

    /// The report as EL2 sends it.
    pub fn collector(&self) -> Collector {
        let mut collector = Collector::new();
        let mut send = |record: &Record| {
            let mut line = heapless::String::<MAX_LINE>::new();
            wire::frame(record, &mut line).unwrap();
            collector.line(&line);
        };
        let records = records(&self.report);
        send(&Record::Begin { version: 1 });
        records.iter().for_each(&mut send);
        if self.end_of_report {
            send(&Record::End { records: records.len() as u32 + 2 });
        }
        collector
    }
}

#[track_caller]
fn replace(lines: &mut [String], old: &str, new: &str) {
    let line = lines.iter_mut().find(|line| line.contains(old)).expect(old);
    *line = line.replace(old, new);
}

/// The records that make up `report`.
fn records(report: &Report) -> Vec<Record> {
    let name = |name: &str| wire::Name::try_from(name).unwrap();
    let counts = |counts: &BTreeMap<String, u64>| -> Vec<Count> {
        let counts = counts.iter();
        counts
            .map(|(name, &count)| Count { name: name.as_str().try_into().unwrap(), count })
            .collect()
    };
    let mut records = Vec::new();
    for vm in &report.vms {
        records.push(Record::Vm(wire::Vm {
            name: name(&vm.name),
            state: vm.state,
            boots: vm.boots,
            cpus: vm.cpus.iter().copied().collect(),
            exits: vm.exits.total,
            lines_left_out: vm.lines_left_out,
            lock_waits: vm.lock_waits,
        }));
        records.extend(vm.memory.iter().map(|piece| {
            let Memory { ipa, pa, size, kind } = *piece;
            Record::VmMemory(wire::VmMemory { vm: name(&vm.name), ipa, pa, size, kind })
        }));
        for (teardown, index) in vm.teardowns.iter().zip(0..) {
            let of = name(&vm.name);
            records.push(Record::Teardown(wire::Teardown {
                vm: of.clone(),
                cause: teardown.cause,
                streams: teardown.streams,
                instructions: teardown.instructions,
            }));
            records.extend(teardown.quiesced.iter().cloned().map(|function| {
                let vm = of.clone();
                Record::TeardownFunction(wire::TeardownFunction { vm, teardown: index, function })
            }));
            records.extend(teardown.moments.iter().cloned().map(|moment| {
                let vm = of.clone();
                Record::TeardownMoment(wire::TeardownMoment { vm, teardown: index, moment })
            }));
        }
    }
    for stream in &report.streams {
        let sid = stream.sid;
        records.push(Record::Stream(wire::Stream {
            sid,
            vm: stream.vm.as_deref().map(name),
            device: stream.device.as_str().try_into().unwrap(),
            state: stream.state,
            transitions: stream.transitions,
            armed_at_close: stream.armed_at_close,
            muted: stream.muted,
            stopped_after_teardown: stream.stopped_after_teardown,
        }));
        records.extend(
            stream
                .history
                .iter()
                .map(|&Entered { state, cfgi }| Record::Step(wire::Step { sid, state, cfgi })),
        );
        let faults = counts(&stream.faults).into_iter();
        records.extend(faults.map(|event| Record::Fault(wire::Fault { sid, event })));
    }
    for smmu in &report.smmu {
        records.push(Record::Smmu(wire::Smmu {
            base: smmu.base,
            class: smmu.class.as_str().try_into().unwrap(),
            syncs: smmu.syncs,
            guest_batches: smmu.guest_batches,
            events: smmu.events,
            gerror: smmu.gerror,
        }));
        let commands = counts(&smmu.commands).into_iter();
        records.extend(
            commands.map(|opcode| Record::Command(wire::Command { base: smmu.base, opcode })),
        );
    }
    records.push(Record::Sizes(wire::Sizes {
        image_text: report.sizes.image_text,
        el2_memory: report.sizes.el2_memory,
        guest_memory: report.sizes.guest_memory,
    }));
    records
}
