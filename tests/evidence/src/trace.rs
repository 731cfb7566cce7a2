//! QEMU's own SMMU trace, the witness that neither EL2 nor a guest can talk to.
//!
//! [`Trace`] reads it line by line while QEMU runs and keeps, per StreamID and epoch, what was reached
//! and what was refused. Memory stays bounded whatever the guests do: past [`BUDGET`] entries the trace
//! says that it is [`overflowed`](Trace::overflowed), and the run fails.
//!
//! What QEMU's lines do *not* say: `is_write` and `perm` describe the answer and not the access, a
//! success stands for all bytes up to the end of the mapping, a recorded event has no address (it
//! is taken from the message of `-d guest_errors` just before it), and several SMMUs are not told apart.

use std::collections::BTreeMap;
use std::ops::Range;

use smmu::addr::{Iova, PAGE_SIZE, StreamId};

use crate::interval::IntervalSet;

mod line;

use line::Line;

/// The trace events to switch on, one `-trace` each. Patterns never make QEMU complain: 11.1 renamed
/// `smmuv3_record_event` to `smmuv3_propagate_event`.
///
/// `smmu_add_mr` comes with every bus master when QEMU starts, whatever the guest does: it proves that there is a trace.
pub const EVENTS: [&str; 7] = [
    "smmu_add_mr",
    "smmuv3_translate_*",
    "smmuv3_*_event",
    "smmuv3_cmdq_opcode*",
    "smmuv3_cmdq_cfgi_ste*",
    "smmuv3_write_mmio",
    "smmuv3_write_gerror",
];

/// The `-d` items that the trace needs: the SMMU reports the address of a refused access only there.
pub const LOG_ITEMS: &str = "guest_errors";

/// How many ranges, pages and epochs a trace may fill before it gives up.
pub const BUDGET: usize = 1 << 18;

/// How many messages may wait for the event that belongs to them.
const PENDING: usize = 16;

const CR0: u64 = 0x20;
const CR0_SMMUEN: u64 = 1;
const GBPA: u64 = 0x44;
const GBPA_ABORT: u64 = 1 << 20;
const GBPA_UPDATE: u64 = 1 << 31;

/// The QEMU arguments that make it write the trace, on stderr unless `-D` says otherwise.
pub fn qemu_arguments() -> Vec<String> {
    let events = EVENTS.iter().flat_map(|event| ["-trace".to_owned(), (*event).to_owned()]);
    events.chain(["-d".to_owned(), LOG_ITEMS.to_owned()]).collect()
}

/// What QEMU's SMMU did, so far.
#[derive(Clone, Debug)]
pub struct Trace {
    budget: usize,
    lines: u64,
    masters: u64,
    streams: BTreeMap<StreamId, Stream>,
    commands: BTreeMap<String, u64>,
    register_writes: u64,
    enabled: bool,
    abort: bool,
    abort_ever: bool,
    abort_cleared: u64,
    gerror: u32,
    unread: Option<String>,
    entries: usize,
    overflowed: bool,
    /// StreamIDs by the name of QEMU's memory region, learned from lines that have both.
    names: BTreeMap<String, StreamId>,
    pending: Vec<Refusal>,
}

/// A refusal of which only the message has been seen yet.
#[derive(Clone, Debug)]
struct Refusal {
    devfn: u8,
    event: String,
    iova: Iova,
}

/// What one StreamID's bus master did.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// How many `CFGI_STE` commands for this StreamID have been consumed: the current epoch.
    pub cfgi: u64,
    /// What happened, by epoch. Epochs in which nothing happened are absent.
    pub epochs: BTreeMap<u64, Epoch>,
    /// Untranslated accesses before `GBPA.ABORT` was first set.
    pub open_before: u64,
    /// Untranslated accesses after it, through a disabled SMMU.
    pub disabled: u64,
    /// Untranslated accesses through a bypass STE.
    pub bypassed: u64,
    /// The pages that untranslated accesses named, input and output address in one.
    pub open: IntervalSet,
}

/// What happened between two `CFGI_STE` for one StreamID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epoch {
    /// Physical pages reached, by what the mapping allows (bit 0 read, bit 1 write).
    pub reached: BTreeMap<u8, IntervalSet>,
    /// The pages of input addresses that were translated.
    pub entered: IntervalSet,
    /// Translations that succeeded.
    pub successes: u64,
    /// Accesses that were aborted silently.
    pub aborts: u64,
    /// Accesses that were refused without a record, because the stream's records are off.
    pub unrecorded: u64,
    /// Recorded events, by their name in the specification.
    pub events: BTreeMap<String, u64>,
    /// Refused accesses of all three kinds by the page of their address, as far as it is known.
    pub refused: BTreeMap<u64, u64>,
    /// The first address of a recorded event.
    pub first: Option<Iova>,
}

impl Trace {
    /// An empty trace.
    pub fn new() -> Self {
        Self::with_budget(BUDGET)
    }

    pub(crate) fn with_budget(budget: usize) -> Self {
        Self {
            budget,
            lines: 0,
            masters: 0,
            streams: BTreeMap::new(),
            commands: BTreeMap::new(),
            register_writes: 0,
            enabled: false,
            abort: false,
            abort_ever: false,
            abort_cleared: 0,
            gerror: 0,
            unread: None,
            entries: 0,
            overflowed: false,
            names: BTreeMap::new(),
            pending: Vec::new(),
        }
    }

    /// Takes one line of QEMU's output. Returns whether it belonged to the trace; any other line is
    /// QEMU's own message and somebody may want to see it.
    pub fn line(&mut self, line: &str) -> bool {
        let Some(parsed) = Line::parse(line) else { return false };
        self.lines += 1;
        match parsed {
            Ok(parsed) => self.take(parsed),
            Err(line::Unreadable) => {
                self.unread.get_or_insert_with(|| line.chars().take(200).collect());
            }
        }
        true
    }

    fn take(&mut self, line: Line<'_>) {
        match line {
            Line::Success { name, sid, iova, translated, perm } => {
                self.learn(name, sid);
                self.epoch(sid, |epoch, full| {
                    epoch.successes += 1;
                    if !full {
                        epoch.reached.entry(perm).or_default().insert(page_of(translated.raw()));
                        epoch.entered.insert(page_of(iova.raw()));
                    }
                });
            }
            Line::Abort { name, sid, iova } => {
                self.learn(name, sid);
                self.refuse(sid, Some(iova), |epoch| epoch.aborts += 1);
            }
            Line::Disabled { name, sid, iova } => {
                self.learn(name, sid);
                let known = self.abort_ever;
                self.open(sid, iova, |stream| {
                    *(if known { &mut stream.disabled } else { &mut stream.open_before }) += 1;
                });
            }
            Line::Bypass { name, sid, iova } => {
                self.learn(name, sid);
                self.open(sid, iova, |stream| stream.bypassed += 1);
            }
            Line::Failed { name, iova, event } => {
                let Some(devfn) = line::devfn(name) else { return };
                // A function that no line has named yet is on bus 0.
                let sid = self.names.get(name).copied().unwrap_or(StreamId(devfn.into()));
                // QEMU records a refusal before it looks at the same function's next access, unless the queue is off.
                let untold = |refusal: &Refusal| refusal.devfn == devfn;
                if let Some(at) = self.pending.iter().position(untold) {
                    let refusal = self.pending.remove(at);
                    self.refuse(sid, Some(refusal.iova), |epoch| epoch.unrecorded += 1);
                }
                if event.starts_with("SMMU_EVT_") {
                    if self.pending.len() == PENDING {
                        self.pending.remove(0);
                    }
                    self.pending.push(Refusal { devfn, event: event_name(event), iova });
                } else {
                    // No event follows.
                    self.refuse(sid, Some(iova), |epoch| epoch.unrecorded += 1);
                }
            }
            Line::Event { event, sid } => {
                let event = event_name(event);
                let mine = |r: &Refusal| u32::from(r.devfn) == sid.0 & 0xff && r.event == event;
                let iova =
                    self.pending.iter().rposition(mine).map(|at| self.pending.remove(at).iova);
                self.refuse(sid, iova, |epoch| {
                    *epoch.events.entry(event).or_default() += 1;
                    epoch.first = epoch.first.or(iova);
                });
            }
            Line::CfgiSte { sid } => {
                let stream = self.streams.entry(sid).or_default();
                stream.cfgi = stream.cfgi.saturating_add(1);
            }
            Line::Command { opcode } => {
                *self.commands.entry(command_name(opcode)).or_default() += 1
            }
            Line::RegisterWrite { offset, value } => self.register_write(offset, value),
            Line::Gerror { toggled } => self.gerror |= toggled,
            Line::Master => self.masters += 1,
            Line::Other => {}
        }
    }

    fn learn(&mut self, name: &str, sid: StreamId) {
        if self.names.get(name) != Some(&sid) {
            self.names.insert(name.to_owned(), sid);
        }
    }

    /// Lets `happen` change what is known of the current epoch. It must add no entries once the budget is
    /// spent; from then on a new epoch is part of the last one.
    fn epoch(&mut self, sid: StreamId, happen: impl FnOnce(&mut Epoch, bool)) {
        let full = self.entries >= self.budget;
        self.overflowed |= full;
        let stream = self.streams.entry(sid).or_default();
        let number = match stream.epochs.last_key_value() {
            Some((&last, _)) if full => last,
            _ => stream.cfgi,
        };
        let before = stream.epochs.get(&number).map_or(0, Epoch::cost);
        let epoch = stream.epochs.entry(number).or_default();
        happen(epoch, full);
        self.entries = (self.entries + epoch.cost()).saturating_sub(before);
    }

    fn refuse(&mut self, sid: StreamId, iova: Option<Iova>, count: impl FnOnce(&mut Epoch)) {
        self.epoch(sid, |epoch, full| {
            count(epoch);
            if let Some(iova) = iova {
                let page = page_of(iova.raw()).start;
                if !full || epoch.refused.contains_key(&page) {
                    *epoch.refused.entry(page).or_default() += 1;
                }
            }
        });
    }

    fn open(&mut self, sid: StreamId, iova: Iova, count: impl FnOnce(&mut Stream)) {
        let full = self.entries >= self.budget;
        self.overflowed |= full;
        let stream = self.streams.entry(sid).or_default();
        count(stream);
        if !full {
            let before = stream.open.fragments();
            stream.open.insert(page_of(iova.raw()));
            self.entries = (self.entries + stream.open.fragments()).saturating_sub(before);
        }
    }

    fn register_write(&mut self, offset: u64, value: u64) {
        self.register_writes += 1;
        match offset {
            CR0 => self.enabled = value & CR0_SMMUEN != 0,
            // Without UPDATE the write has no effect (section 6.3.14).
            GBPA if value & GBPA_UPDATE != 0 => {
                let abort = value & GBPA_ABORT != 0;
                self.abort_cleared += u64::from(self.abort && !abort);
                self.abort = abort;
                self.abort_ever |= abort;
            }
            _ => {}
        }
    }

    /// How many lines of the trace there were.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Whether a guest or a device of its did anything that the trace tells of.
    pub fn has_guest(&self) -> bool {
        self.lines > self.masters
    }

    /// Every StreamID that appeared.
    pub fn streams(&self) -> &BTreeMap<StreamId, Stream> {
        &self.streams
    }

    /// Consumed commands by their name in the specification, without `CMD_`. `CFGI_ALL` is
    /// `CFGI_STE_RANGE` with the largest range.
    pub fn commands(&self) -> &BTreeMap<String, u64> {
        &self.commands
    }

    /// How many register writes there were: zero means that nobody touched the SMMU or that the trace is
    /// lost.
    pub fn register_writes(&self) -> u64 {
        self.register_writes
    }

    /// Whether `CR0.SMMUEN` was last written as 1.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Whether `GBPA.ABORT` was ever set.
    pub fn abort_was_set(&self) -> bool {
        self.abort_ever
    }

    /// How often `GBPA.ABORT` went from 1 to 0.
    pub fn abort_cleared(&self) -> u64 {
        self.abort_cleared
    }

    /// Every `GERROR` bit that ever toggled on.
    pub fn gerror(&self) -> u32 {
        self.gerror
    }

    /// Whether more happened than the trace could keep apart.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// A line that began like a trace line and could not be read: torn, or of a QEMU not known here.
    pub fn unread(&self) -> Option<&str> {
        self.unread.as_deref()
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl Stream {
    /// Accesses refused at the page of `iova`, in all epochs that `wanted` picks.
    pub fn refused_at(&self, iova: Iova, wanted: impl Fn(u64) -> bool) -> u64 {
        let page = iova.raw() / PAGE_SIZE;
        let epochs = self.epochs.iter().filter(|(number, _)| wanted(**number));
        epochs.filter_map(|(_, epoch)| epoch.refused.get(&page)).sum()
    }

    /// Recorded events by name, over all epochs.
    pub fn events(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for (event, count) in self.epochs.values().flat_map(|epoch| &epoch.events) {
            *sum.entry(event.clone()).or_default() += count;
        }
        sum
    }

    /// Translations that succeeded, over all epochs.
    pub fn successes(&self) -> u64 {
        self.epochs.values().map(|epoch| epoch.successes).sum()
    }

    /// Accesses refused in all epochs that `wanted` picks: recorded, silent and unrecorded.
    pub fn refusals(&self, wanted: impl Fn(u64) -> bool) -> u64 {
        let epochs = self.epochs.iter().filter(|(number, _)| wanted(**number));
        epochs.map(|(_, epoch)| epoch.refusals()).sum()
    }

    /// Whether an access that began in the page of `iova` went through, translated or not.
    pub fn entered(&self, iova: Iova) -> bool {
        let page = iova.raw() / PAGE_SIZE;
        self.open.contains(page) || self.epochs.values().any(|epoch| epoch.entered.contains(page))
    }

    /// Accesses that nothing translated.
    pub fn untranslated(&self) -> u64 {
        self.open_before + self.disabled + self.bypassed
    }

    /// Whether the bus master was seen doing DMA at all.
    pub fn is_idle(&self) -> bool {
        self.epochs.is_empty() && self.untranslated() == 0
    }
}

impl Epoch {
    fn cost(&self) -> usize {
        let reached: usize = self.reached.values().map(IntervalSet::fragments).sum();
        1 + reached + self.entered.fragments() + self.events.len() + self.refused.len()
    }

    /// Recorded events of all names.
    pub fn recorded(&self) -> u64 {
        self.events.values().sum()
    }

    /// Accesses refused: recorded, silent and unrecorded.
    pub fn refusals(&self) -> u64 {
        self.recorded() + self.aborts + self.unrecorded
    }

    /// The physical pages reached, whatever the mapping allowed.
    pub fn pages(&self) -> IntervalSet {
        self.reached.values().flat_map(IntervalSet::iter).collect()
    }
}

/// The page of an address, as a range of one page number.
fn page_of(address: u64) -> Range<u64> {
    let page = address / PAGE_SIZE;
    page..page + 1
}

/// The specification's name of an event, from QEMU's or EL2's.
pub fn event_name(name: &str) -> String {
    let name =
        name.strip_prefix("SMMU_EVT_").unwrap_or(name).to_ascii_uppercase().replace('-', "_");
    match name.as_str() {
        "F_TRANS_FORBIDDEN" => "F_TRANSL_FORBIDDEN".into(),
        "E_PAGE_REQ" => "E_PAGE_REQUEST".into(),
        _ => name,
    }
}

/// A command's name without prefix, from QEMU's or EL2's. QEMU has one name for `CFGI_ALL` and
/// `CFGI_STE_RANGE`, which share an opcode.
pub fn command_name(name: &str) -> String {
    let name = name.to_ascii_uppercase().replace('-', "_");
    let name = name.strip_prefix("SMMU_").unwrap_or(&name);
    match name.strip_prefix("CMD_").unwrap_or(name) {
        "CFGI_ALL" => "CFGI_STE_RANGE".into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests;
