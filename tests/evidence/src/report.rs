//! What EL2 reported: framed records from its own UART, put together again.
//!
//! [`Collector`] takes the UART's lines as they come and notices what is torn, missing or contradictory.
//! The [`Report`] is also the `vms`, `streams`, `smmu` and `sizes` part of the `--report` file; [`File`]
//! adds the verdict.

use std::collections::BTreeMap;
use std::fmt;

use platform::report::{
    self, Cause, FrameError, Hex, MemoryKind, Record, StreamState, TeardownFunction,
    TeardownMoment, VmState,
};
use serde::{Deserialize, Serialize};

/// The version of the records and of the file.
pub const VERSION: u32 = 1;

/// All that EL2 reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The VMs, in the order of the report.
    pub vms: Vec<Vm>,
    /// The streams, by StreamID.
    pub streams: Vec<Stream>,
    /// The SMMUs.
    pub smmu: Vec<Smmu>,
    /// Sizes in bytes.
    pub sizes: Sizes,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its unique name.
    pub name: String,
    /// What it was doing.
    pub state: VmState,
    /// How often it was started.
    pub boots: u32,
    /// The physical CPUs it runs on.
    pub cpus: Vec<u32>,
    /// Its address space.
    pub memory: Vec<Memory>,
    /// Why its CPUs left guest code.
    pub exits: Exits,
    /// Lines about it that EL2 left out on the console.
    #[serde(default)]
    pub lines_left_out: u64,
    /// How often one of its CPUs found a lock taken that VMs share.
    #[serde(default)]
    pub lock_waits: u64,
    /// The closes of its streams, in order.
    pub teardowns: Vec<Teardown>,
}

/// One piece of a VM's address space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Where the guest sees it.
    pub ipa: Hex,
    /// Where it is.
    pub pa: Hex,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// Why a VM's CPUs left guest code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// All CPUs and reasons together.
    pub total: u64,
    /// By reason.
    pub by_reason: BTreeMap<String, u64>,
}

/// One close of a VM's streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Teardown {
    /// Why.
    pub cause: Cause,
    /// How many streams.
    pub streams: u32,
    /// EL2 instructions to the last closed stream, where a deterministic counter exists.
    pub instructions: Option<u64>,
    /// What became of each function.
    pub quiesced: Vec<report::Quiesced>,
    /// What happened when, in the order in which EL2 found out.
    #[serde(default)]
    pub moments: Vec<report::Moment>,
}

/// One stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Its StreamID.
    pub sid: u32,
    /// Its owner.
    pub vm: Option<String>,
    /// The function behind it.
    pub device: String,
    /// Its last state.
    pub state: StreamState,
    /// How often the state changed.
    pub transitions: u64,
    /// Its states, in order.
    pub history: Vec<Entered>,
    /// Recorded events by name.
    pub faults: BTreeMap<String, u64>,
    /// Whether its function could still do DMA when its owner went.
    pub armed_at_close: bool,
    /// Whether its events were switched off because they came too fast.
    pub muted: bool,
    /// What its function tried after its owner went.
    pub stopped_after_teardown: report::Stopped,
}

impl Stream {
    /// How often it was opened, as far as its history goes back.
    pub fn openings(&self) -> usize {
        self.history.iter().filter(|entered| entered.state.is_open()).count()
    }
}

/// A state that a stream entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entered {
    /// The state.
    pub state: StreamState,
    /// How many `CFGI_STE` for this StreamID had been issued, the one that made the state sure included.
    pub cfgi: u64,
}

/// One SMMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Smmu {
    /// Its registers.
    pub base: Hex,
    /// `nested` or `stage2`.
    pub class: String,
    /// Commands issued, by opcode name.
    pub commands: BTreeMap<String, u64>,
    /// `CMD_SYNC`s issued.
    pub syncs: u64,
    /// Batches taken over from guests.
    pub guest_batches: u64,
    /// Event records.
    pub events: report::Events,
    /// Every `GERROR` bit ever seen active.
    pub gerror: u32,
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Code of the image.
    pub image_text: u64,
    /// The `smmu` crate's share of it. EL2 cannot know; the host reads it from the ELF file.
    pub smmu_text: Option<u64>,
    /// EL2's memory beside guest RAM: its image, and its frames that are in use.
    pub el2_memory: u64,
    /// Guest RAM that is in use.
    #[serde(default)]
    pub guest_memory: u64,
}

/// The `--report` file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Of the format.
    pub version: u32,
    /// `pass` or `fail`.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// What each source had to say.
    pub sources: Sources,
    /// What EL2 reported; empty lists natively or if the report was lost.
    #[serde(flatten)]
    pub report: Report,
}

/// The state of the three sources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The guests.
    pub guests: Source,
    /// EL2. Natively there is none.
    pub el2: Source,
    /// QEMU's trace.
    pub qemu: Source,
}

/// The state of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Whether it was read completely. Whether it agrees with the others is the verdict's business.
    pub complete: bool,
    /// How many lines it had.
    pub lines: u64,
    /// What is wrong with it.
    pub problem: Option<String>,
}

impl File {
    /// The file's text: JSON for people and programs.
    ///
    /// # Errors
    ///
    /// None in practice: every field has a JSON form.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

/// Why a report cannot be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No record ever came.
    Missing,
    /// The records stop without `End`.
    Unfinished {
        /// How many there were.
        records: u32,
    },
    /// A line was torn or changed on its way.
    Damaged {
        /// Its beginning.
        line: String,
    },
    /// A line's checksum is right and its record is not one that this host knows.
    Unknown {
        /// What the JSON reader says.
        why: String,
    },
    /// The version is not [`VERSION`].
    Version(u32),
    /// `End` names another number than the records that came before it.
    Count {
        /// What `End` says.
        said: u32,
        /// What came.
        came: u32,
    },
    /// A record came before `Begin` or after `End`.
    Misplaced,
    /// Two records say the same thing, or one speaks of something that no other introduces.
    Contradiction(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("EL2 reported nothing"),
            Self::Unfinished { records } => write!(f, "EL2's report stops after {records} records"),
            Self::Damaged { line } => write!(f, "a line of EL2's report is damaged: {line}"),
            Self::Unknown { why } => write!(f, "a record of EL2's report is not understood: {why}"),
            Self::Version(version) => {
                write!(f, "EL2's report has version {version}, this host reads {VERSION}")
            }
            Self::Count { said, came } => {
                write!(f, "EL2 says that its report has {said} records, {came} arrived")
            }
            Self::Misplaced => f.write_str("EL2's report has a record outside of Begin and End"),
            Self::Contradiction(what) => write!(f, "EL2's report contradicts itself: {what}"),
        }
    }
}

impl std::error::Error for Error {}

/// Puts a report together from the lines of EL2's UART.
///
/// Only a first fault is kept: what follows a torn line is not worth reading. A new `Begin` after a
/// finished report starts over, so that the last complete report counts.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    records: Vec<Record>,
    /// How many came since `Begin`, itself and `End` included.
    count: u32,
    begun: bool,
    ended: Option<u32>,
    error: Option<Error>,
    lines: u64,
}

impl Collector {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one line. Returns whether it belonged to the report; any other line is for an operator.
    pub fn line(&mut self, line: &str) -> bool {
        let line = line.trim_end_matches(['\r', '\n']);
        let json = match report::unframe(line) {
            Ok(json) => json,
            Err(FrameError::NotAFrame) => return false,
            Err(FrameError::Damaged | FrameError::TooLong) => {
                self.lines += 1;
                self.fail(Error::Damaged { line: line.chars().take(80).collect() });
                return true;
            }
        };
        self.lines += 1;
        match serde_json::from_str(json) {
            Ok(record) => self.record(record),
            Err(why) => self.fail(Error::Unknown { why: why.to_string() }),
        }
        true
    }

    fn record(&mut self, record: Record) {
        match record {
            Record::Begin { version } => {
                if version != VERSION {
                    self.fail(Error::Version(version));
                } else if self.begun && self.ended.is_none() {
                    self.fail(Error::Unfinished { records: self.count });
                }
                self.records.clear();
                self.count = 1;
                self.begun = true;
                self.ended = None;
            }
            _ if !self.begun || self.ended.is_some() => self.fail(Error::Misplaced),
            Record::End { records } => {
                self.ended = Some(records);
                self.count += 1;
            }
            record => {
                self.records.push(record);
                self.count += 1;
            }
        }
    }

    fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    /// How many lines belonged to the report.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Whether `End` was seen: nothing more is to come.
    pub fn is_finished(&self) -> bool {
        self.ended.is_some()
    }

    /// The report as far as it arrived, and what is wrong with it.
    pub fn finish(&self) -> (Report, Option<Error>) {
        let mut report = Report::default();
        let mut wrong = None;
        // Records come in any order: first what the others speak of.
        for add in [Report::introduce, Report::complete, Report::detail] {
            for record in &self.records {
                if let Err(what) = add(&mut report, record) {
                    wrong.get_or_insert(Error::Contradiction(what));
                }
            }
        }
        report.streams.sort_by_key(|stream| stream.sid);
        let count = self.count;
        let incomplete = match self.ended {
            None if self.begun => Some(Error::Unfinished { records: count }),
            None => Some(Error::Missing),
            Some(said) if said != count => Some(Error::Count { said, came: count }),
            Some(_) => None,
        };
        (report, self.error.clone().or(incomplete).or(wrong))
    }
}

impl Report {
    /// The VM called `name`.
    pub fn vm(&self, name: &str) -> Option<&Vm> {
        self.vms.iter().find(|vm| vm.name == name)
    }

    /// The stream `sid`.
    pub fn stream(&self, sid: u32) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.sid == sid)
    }

    /// Event records that EL2 knows to be lost, over all SMMUs.
    pub fn dropped(&self) -> u64 {
        self.smmu.iter().fold(0, |sum, smmu| smmu.events.dropped.saturating_add(sum))
    }

    fn introduce(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::Vm(vm) => {
                if self.vm(&vm.name).is_some() {
                    return Err(format!("two records for VM {}", vm.name));
                }
                self.vms.push(Vm {
                    name: vm.name.as_str().into(),
                    state: vm.state,
                    boots: vm.boots,
                    cpus: vm.cpus.to_vec(),
                    memory: Vec::new(),
                    exits: Exits { total: vm.exits, by_reason: BTreeMap::new() },
                    lines_left_out: vm.lines_left_out,
                    lock_waits: vm.lock_waits,
                    teardowns: Vec::new(),
                });
            }
            Record::Stream(stream) => {
                if self.stream(stream.sid).is_some() {
                    return Err(format!("two records for stream {:#x}", stream.sid));
                }
                self.streams.push(Stream {
                    sid: stream.sid,
                    vm: stream.vm.as_deref().map(str::to_owned),
                    device: stream.device.as_str().into(),
                    state: stream.state,
                    transitions: stream.transitions,
                    history: Vec::new(),
                    faults: BTreeMap::new(),
                    armed_at_close: stream.armed_at_close,
                    muted: stream.muted,
                    stopped_after_teardown: stream.stopped_after_teardown,
                });
            }
            Record::Smmu(smmu) => {
                if self.smmu.iter().any(|known| known.base == smmu.base) {
                    return Err(format!("two records for the SMMU at {:#x}", smmu.base.0));
                }
                self.smmu.push(Smmu {
                    base: smmu.base,
                    class: smmu.class.as_str().into(),
                    commands: BTreeMap::new(),
                    syncs: smmu.syncs,
                    guest_batches: smmu.guest_batches,
                    events: smmu.events,
                    gerror: smmu.gerror,
                });
            }
            Record::Sizes(sizes) => {
                self.sizes.image_text = sizes.image_text;
                self.sizes.el2_memory = sizes.el2_memory;
                self.sizes.guest_memory = sizes.guest_memory;
            }
            _ => {}
        }
        Ok(())
    }

    fn complete(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::VmMemory(piece) => self.known_vm(&piece.vm)?.memory.push(Memory {
                ipa: piece.ipa,
                pa: piece.pa,
                size: piece.size,
                kind: piece.kind,
            }),
            Record::VmExits(exits) => {
                once(&mut self.known_vm(&exits.vm)?.exits.by_reason, &exits.reason)?;
            }
            Record::Teardown(teardown) => self.known_vm(&teardown.vm)?.teardowns.push(Teardown {
                cause: teardown.cause,
                streams: teardown.streams,
                instructions: teardown.instructions,
                quiesced: Vec::new(),
                moments: Vec::new(),
            }),
            Record::Step(step) => {
                let history = &mut self.known_stream(step.sid)?.history;
                if history.last().is_some_and(|last| last.cfgi > step.cfgi) {
                    return Err(format!("the history of stream {:#x} goes backwards", step.sid));
                }
                history.push(Entered { state: step.state, cfgi: step.cfgi });
            }
            Record::Fault(fault) => once(&mut self.known_stream(fault.sid)?.faults, &fault.event)?,
            Record::Command(command) => {
                let smmu = self.smmu.iter_mut().find(|smmu| smmu.base == command.base);
                let smmu = smmu.ok_or_else(|| format!("no SMMU at {:#x}", command.base.0))?;
                once(&mut smmu.commands, &command.opcode)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn detail(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::TeardownFunction(TeardownFunction { vm, teardown, function }) => {
                self.known_teardown(vm, *teardown)?.quiesced.push(function.clone());
            }
            Record::TeardownMoment(TeardownMoment { vm, teardown, moment }) => {
                self.known_teardown(vm, *teardown)?.moments.push(moment.clone());
            }
            _ => {}
        }
        Ok(())
    }

    fn known_teardown(&mut self, vm: &str, index: u32) -> Result<&mut Teardown, String> {
        let teardown = self.known_vm(vm)?.teardowns.get_mut(index as usize);
        teardown.ok_or_else(|| format!("a record for teardown {index} of VM {vm}, which has none"))
    }

    fn known_vm(&mut self, name: &str) -> Result<&mut Vm, String> {
        let vm = self.vms.iter_mut().find(|vm| vm.name == name);
        vm.ok_or_else(|| format!("a record for VM {name}, which has none of its own"))
    }

    fn known_stream(&mut self, sid: u32) -> Result<&mut Stream, String> {
        let stream = self.streams.iter_mut().find(|stream| stream.sid == sid);
        stream.ok_or_else(|| format!("a record for stream {sid:#x}, which has none of its own"))
    }
}

fn once(counts: &mut BTreeMap<String, u64>, count: &report::Count) -> Result<(), String> {
    match counts.insert(count.name.as_str().into(), count.count) {
        None => Ok(()),
        Some(_) => Err(format!("{} is counted twice", count.name)),
    }
}

#[cfg(test)]
mod tests;
