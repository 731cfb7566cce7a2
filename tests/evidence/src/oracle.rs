//! The judge of QEMU's trace: no stream reaches what its VM does not own, and closed means closed.
//!
//! Who owns a device is taken from the manifests; where a VM's memory is and which state a stream was in
//! can only come from EL2's report. A trace line seen after `c` `CFGI_STE` for its StreamID belongs to the
//! last state with `cfgi <= c`; before the first one, a stream is closed.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use platform::report::{MemoryKind, StreamState};
use smmu::addr::{PAGE_SIZE, StreamId};

use crate::interval::IntervalSet;
use crate::machine::Machine;
use crate::report::{self, Report};
use crate::trace::{Stream, Trace};

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The trace is empty, or has lost what any run begins with.
    Lost,
    /// A line of the trace could not be read.
    Unreadable(String),
    /// More happened than the trace could keep apart.
    Overflowed,
    /// `GBPA.ABORT` was never set.
    AbortNeverSet,
    /// `GBPA.ABORT` was cleared again.
    AbortCleared {
        /// How often.
        times: u64,
    },
    /// DMA went through a disabled SMMU after `GBPA.ABORT` was set.
    Disabled {
        /// Whose.
        sid: StreamId,
        /// How often.
        count: u64,
    },
    /// DMA went through a bypass STE.
    Bypassed {
        /// Whose.
        sid: StreamId,
        /// How often.
        count: u64,
    },
    /// The SMMU rejected a command.
    CommandError,
    /// EL2 says that a stream belongs to somebody else than the manifests say.
    Owner {
        /// The stream.
        sid: StreamId,
        /// Who the manifests say.
        configured: Option<String>,
        /// Who EL2 says.
        reported: Option<String>,
    },
    /// EL2 reported nothing of a stream that did DMA.
    Unreported {
        /// The stream.
        sid: StreamId,
    },
    /// EL2 issued more `CFGI_STE` than the trace has.
    LostCommands {
        /// For which stream.
        sid: StreamId,
        /// What EL2 says.
        reported: u64,
        /// What the trace has.
        traced: u64,
    },
    /// A stream did DMA so long ago that EL2 does not remember its state.
    Forgotten {
        /// The stream.
        sid: StreamId,
        /// After how many `CFGI_STE`.
        cfgi: u64,
    },
    /// DMA of a stream that no VM owns succeeded.
    Unowned {
        /// The stream.
        sid: StreamId,
        /// How often.
        count: u64,
    },
    /// DMA of a closed stream succeeded.
    Closed {
        /// The stream.
        sid: StreamId,
        /// Its state.
        state: StreamState,
        /// After how many `CFGI_STE`.
        cfgi: u64,
        /// How often.
        count: u64,
    },
    /// A stream reached memory that its VM does not own.
    Outside {
        /// The stream.
        sid: StreamId,
        /// Its VM.
        vm: String,
        /// The first piece of it, as physical addresses.
        reached: Range<u64>,
    },
    /// Two VMs own the same memory.
    Shared {
        /// The VMs.
        vms: [String; 2],
        /// The memory, as physical addresses.
        memory: Range<u64>,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let somebody = |vm: &Option<String>| vm.clone().unwrap_or_else(|| "nobody".into());
        match self {
            Self::Lost => f.write_str("QEMU's trace is lost"),
            Self::Unreadable(line) => write!(f, "QEMU's trace has an unreadable line: {line}"),
            Self::Overflowed => f.write_str("QEMU's trace is too varied to be judged"),
            Self::AbortNeverSet => f.write_str("GBPA.ABORT was never set"),
            Self::AbortCleared { times } => write!(f, "GBPA.ABORT was cleared {times} times"),
            Self::Disabled { sid, count } => {
                write!(f, "stream {sid} bypassed the disabled SMMU {count} times after GBPA.ABORT")
            }
            Self::Bypassed { sid, count } => {
                write!(f, "stream {sid} went through a bypass STE {count} times")
            }
            Self::CommandError => f.write_str("the SMMU rejected a command of EL2"),
            Self::Owner { sid, configured, reported } => write!(
                f,
                "stream {sid} belongs to {}, EL2 says {}",
                somebody(configured),
                somebody(reported)
            ),
            Self::Unreported { sid } => write!(f, "stream {sid} did DMA, EL2 does not report it"),
            Self::LostCommands { sid, reported, traced } => write!(
                f,
                "EL2 issued {reported} CFGI_STE for stream {sid}, QEMU's trace has {traced}"
            ),
            Self::Forgotten { sid, cfgi } => {
                write!(
                    f,
                    "EL2 does not remember stream {sid} after {cfgi} CFGI_STE, when it did DMA"
                )
            }
            Self::Unowned { sid, count } => {
                write!(f, "stream {sid} has no owner and did DMA {count} times")
            }
            Self::Closed { sid, state, cfgi, count } => write!(
                f,
                "stream {sid} did DMA {count} times in state {} (after {cfgi} CFGI_STE)",
                state_name(*state)
            ),
            Self::Outside { sid, vm, reached } => write!(
                f,
                "stream {sid} of {vm} reached {:#x}..{:#x} outside of it",
                reached.start, reached.end
            ),
            Self::Shared { vms: [a, b], memory } => {
                write!(f, "{a} and {b} share {:#x}..{:#x}", memory.start, memory.end)
            }
        }
    }
}

/// Judges `trace` against what EL2 reported of the same run; without a report, what the trace alone says.
///
/// Returns everything that is wrong, the gravest first; an empty list acquits.
pub fn judge(trace: &Trace, report: Option<&Report>, machine: &Machine) -> Vec<Finding> {
    let mut findings = integrity(trace, machine);
    if trace.register_writes() > 0 && !trace.abort_was_set() {
        findings.push(Finding::AbortNeverSet);
    }
    if trace.abort_cleared() > 0 {
        findings.push(Finding::AbortCleared { times: trace.abort_cleared() });
    }
    if trace.gerror() & GERROR_CMDQ_ERR != 0 {
        findings.push(Finding::CommandError);
    }
    for (&sid, stream) in trace.streams() {
        untranslated(sid, stream, &mut findings);
    }
    if let Some(report) = report {
        for (&sid, stream) in trace.streams() {
            confined(sid, stream, report, machine, &mut findings);
        }
        owners(report, machine, &mut findings);
        lost_commands(trace, report, &mut findings);
        shared(report, &mut findings);
    }
    findings.sort_by_key(gravity);
    findings
}

/// What is wrong with the trace itself, whatever it tells.
///
/// EL2 always writes registers. Natively a guest may leave the SMMU and every device alone; then QEMU's own bus
/// masters show that there is a trace.
pub fn integrity(trace: &Trace, machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(line) = trace.unread() {
        findings.push(Finding::Unreadable(line.to_owned()));
    }
    if trace.overflowed() {
        findings.push(Finding::Overflowed);
    }
    let signs = if machine.native { trace.lines() } else { trace.register_writes() };
    if signs == 0 {
        findings.push(Finding::Lost);
    }
    findings
}

/// The state that `stream` was in after `cfgi` `CFGI_STE`.
pub fn state_at(stream: &report::Stream, cfgi: u64) -> StreamState {
    let entered = stream.history.iter().rev().find(|entered| entered.cfgi <= cfgi);
    entered.map_or(StreamState::Abort, |entered| entered.state)
}

/// Whether `stream` was closed after `cfgi` `CFGI_STE`, having been open before: its owner was gone.
pub fn closed_again(stream: &report::Stream, cfgi: u64) -> bool {
    let opened = stream.history.iter().any(|e| e.cfgi <= cfgi && e.state.is_open());
    opened && !state_at(stream, cfgi).is_open()
}

/// Whether `stream` was opened at some time after `cfgi` `CFGI_STE`.
pub fn opened_after(stream: &report::Stream, cfgi: u64) -> bool {
    stream.history.iter().any(|entered| entered.cfgi > cfgi && entered.state.is_open())
}

/// The pages, by physical page number, that devices of `vm` may reach.
pub fn reachable(vm: &report::Vm) -> IntervalSet {
    let kinds = [MemoryKind::Ram, MemoryKind::Doorbell];
    let pieces = vm.memory.iter().filter(|piece| kinds.contains(&piece.kind));
    pieces.map(|piece| pages(piece.pa.0, piece.size)).collect()
}

/// The numbers of the pages that `size` bytes at `address` touch.
pub fn pages(address: u64, size: u64) -> Range<u64> {
    match size {
        0 => 0..0,
        _ => address / PAGE_SIZE..address.saturating_add(size - 1) / PAGE_SIZE + 1,
    }
}

/// The addresses in a range of pages. The last page of the 64-bit space loses its last byte.
fn addresses(pages: &Range<u64>) -> Range<u64> {
    pages.start.saturating_mul(PAGE_SIZE)..pages.end.saturating_mul(PAGE_SIZE)
}

/// Whether the state of `stream` after `cfgi` `CFGI_STE` fell out of EL2's bounded memory.
fn forgotten(stream: &report::Stream, cfgi: u64) -> bool {
    let first = stream.history.first().map_or(u64::MAX, |first| first.cfgi);
    usize::try_from(stream.transitions).is_ok_and(|all| all > stream.history.len()) && cfgi < first
}

const GERROR_CMDQ_ERR: u32 = 1;

const fn state_name(state: StreamState) -> &'static str {
    match state {
        StreamState::Abort => "abort",
        StreamState::Watch => "watch",
        StreamState::Stage2 => "stage2",
        StreamState::Nested => "nested",
    }
}

/// DMA that got where it must not be comes first; then what opened the way; then the sources' faults.
const fn gravity(finding: &Finding) -> u8 {
    match finding {
        Finding::Outside { .. } => 0,
        Finding::Bypassed { .. } | Finding::Disabled { .. } => 1,
        Finding::Unowned { .. } | Finding::Closed { .. } => 2,
        Finding::AbortCleared { .. } | Finding::AbortNeverSet => 3,
        Finding::Shared { .. } | Finding::Owner { .. } => 4,
        _ => 5,
    }
}

fn untranslated(sid: StreamId, stream: &Stream, findings: &mut Vec<Finding>) {
    if stream.disabled > 0 {
        findings.push(Finding::Disabled { sid, count: stream.disabled });
    }
    if stream.bypassed > 0 {
        findings.push(Finding::Bypassed { sid, count: stream.bypassed });
    }
}

fn confined(
    sid: StreamId,
    traced: &Stream,
    report: &Report,
    machine: &Machine,
    findings: &mut Vec<Finding>,
) {
    let configured = machine.device(sid).and_then(|device| device.vm.clone());
    let Some(reported) = report.stream(sid.0) else {
        // Who is nobody's is stopped without a word; what is recorded must be told (C6).
        if traced.successes() > 0 || !traced.events().is_empty() {
            findings.push(Finding::Unreported { sid });
        }
        if traced.successes() > 0 {
            findings.push(Finding::Unowned { sid, count: traced.successes() });
        }
        return;
    };
    let owner = configured.as_deref().and_then(|name| machine.vm(name));
    let outruns = owner.is_some_and(|vm| vm.guest.outruns_history());
    let mut reached = IntervalSet::new();
    for (&cfgi, epoch) in traced.epochs.iter().filter(|(_, epoch)| epoch.successes > 0) {
        let state = state_at(reported, cfgi);
        if forgotten(reported, cfgi) {
            // What was reached then is looked at all the same.
            if !outruns {
                findings.push(Finding::Forgotten { sid, cfgi });
            }
        } else if !state.is_open() {
            findings.push(Finding::Closed { sid, state, cfgi, count: epoch.successes });
        }
        epoch.pages().iter().for_each(|range| reached.insert(range));
    }
    let Some(owner) = configured else {
        if traced.successes() > 0 {
            findings.push(Finding::Unowned { sid, count: traced.successes() });
        }
        return;
    };
    let allowed = report.vm(&owner).map(reachable).unwrap_or_default();
    if let Some(outside) = reached.difference(&allowed).iter().next() {
        let reached = addresses(&outside);
        findings.push(Finding::Outside { sid, vm: owner, reached });
    }
}

fn owners(report: &Report, machine: &Machine, findings: &mut Vec<Finding>) {
    let devices = machine.devices.iter().map(|device| device.sid);
    let streams = report.streams.iter().map(|stream| StreamId(stream.sid));
    for sid in devices.chain(streams).collect::<BTreeSet<_>>() {
        let configured = machine.device(sid).and_then(|device| device.vm.clone());
        let reported = report.stream(sid.0).and_then(|stream| stream.vm.clone());
        if configured != reported {
            findings.push(Finding::Owner { sid, configured, reported });
        }
    }
}

fn lost_commands(trace: &Trace, report: &Report, findings: &mut Vec<Finding>) {
    for stream in &report.streams {
        let sid = StreamId(stream.sid);
        // QEMU traces no command for a StreamID without a function behind it.
        let Some(traced) = trace.streams().get(&sid) else { continue };
        let reported = stream.history.last().map_or(0, |last| last.cfgi);
        if reported > traced.cfgi {
            findings.push(Finding::LostCommands { sid, reported, traced: traced.cfgi });
        }
    }
}

fn shared(report: &Report, findings: &mut Vec<Finding>) {
    let ram = |vm: &report::Vm| -> IntervalSet {
        let pieces = vm.memory.iter().filter(|piece| piece.kind == MemoryKind::Ram);
        pieces.map(|piece| pages(piece.pa.0, piece.size)).collect()
    };
    for (at, a) in report.vms.iter().enumerate() {
        for b in &report.vms[at + 1..] {
            let (mine, theirs) = (ram(a), ram(b));
            let both = mine.difference(&mine.difference(&theirs));
            if let Some(both) = both.iter().next() {
                let memory = addresses(&both);
                findings.push(Finding::Shared { vms: [a.name.clone(), b.name.clone()], memory });
            }
        }
    }
}

#[cfg(test)]
mod tests;
