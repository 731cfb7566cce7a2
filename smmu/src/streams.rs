//! What is known of each stream: whose it is, in which state, and what its device tried.

use heapless::Vec;

use crate::addr::{Iova, Pa, StreamId, VmIndex, Vmid};
use crate::device::Budgets;
use crate::error::HostError;
use crate::event::{Event, Kind};
use crate::history::History;
use crate::stage2::{Format, Stage2};
use crate::ste::Stage1Config;

/// The most streams of one SMMU.
pub const MAX_STREAMS: usize = 128;

/// What the physical stream table says of a stream (C2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Everything aborts, silently.
    Abort,
    /// Everything aborts, and is recorded: stage 2 on a table without any mapping.
    Watch,
    /// Stage 2 of its VM only.
    Stage2,
    /// The guest's stage 1 on its VM's stage 2.
    Nested,
}

impl State {
    /// Whether anything can get through.
    pub const fn is_open(self) -> bool {
        match self {
            Self::Abort | Self::Watch => false,
            Self::Stage2 | Self::Nested => true,
        }
    }
}

/// A state that a stream entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state.
    pub state: State,
    /// How many `CMD_CFGI_STE` for this stream had been issued when the state could first be seen: for a
    /// closing state including the one that makes it certain, for any other without it.
    pub cfgi: u64,
}

/// The stage 2 that a stream is bound to, and the tag of its translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Binding {
    pub(crate) root: Pa,
    pub(crate) format: Format,
    pub(crate) vmid: Vmid,
}

impl Stage2Binding {
    /// Binds to `tables` under `vmid`.
    pub fn new(tables: &Stage2, vmid: Vmid) -> Self {
        Self { root: tables.root(), format: tables.format(), vmid }
    }
}

/// DMA that arrived while the stream was watched: after its owner was gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// How many refused transactions were recorded.
    pub count: u64,
    /// The address of the first one that had one.
    pub first: Option<Iova>,
    /// Whether that one was a write.
    pub write: Option<bool>,
    /// Whether the stream went silent because its budget was spent.
    pub silenced: bool,
}

impl Stopped {
    fn note(&mut self, event: &Event) {
        self.count += 1;
        if let (None, Some(input)) = (self.first, event.input) {
            self.first = Some(input.address);
            self.write = Some(input.write);
        }
    }
}

/// What an event means for the stream it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Keep,
    /// It is above its budget: stop recording its faults for a while (C7).
    Mute,
    /// It is above its budget although it is muted: what it does is recorded whatever its STE says, so that nothing
    /// but *abort* helps.
    Deafen,
    /// Its watch budget is spent: no more records (C6).
    Silence,
}

/// What an STE makes of its stream's faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recording {
    /// It records them.
    On,
    /// It hides those that `STE.S2R` governs.
    Off,
    /// It aborts, so that there are none.
    Abort,
}

/// One stream.
#[derive(Clone, Debug)]
pub struct Stream {
    sid: StreamId,
    /// Where its STE is.
    pub(crate) entry: Pa,
    owner: Option<VmIndex>,
    state: State,
    /// What it is bound to unless it is in *abort*.
    pub(crate) binding: Option<Stage2Binding>,
    /// The guest's half of its STE while it is in *nested*.
    pub(crate) stage1: Option<Stage1Config>,
    /// It is in *watch* because its owner's own configuration is invalid, not because its owner is gone.
    refuses: bool,
    /// A teardown closed it, and it was in no other state since.
    pub(crate) closed: bool,
    cfgi: u64,
    transitions: u64,
    history: History,
    faults: [u64; Kind::COUNT],
    armed_at_close: bool,
    stopped: Stopped,
    stopped_in_watch: Stopped,
    /// When the first of these was found.
    stopped_at_us: Option<u64>,
    /// How many of these were told.
    told: u64,
    /// Records with a smaller sequence number are a former owner's.
    owned_from: u64,
    /// Records with a smaller sequence number are from before the watch.
    watched_from: u64,
    /// How many records the current watch may still have.
    watch_left: u32,
    window_start_us: u64,
    window_events: u32,
    /// When recording is to be switched on again.
    muted_until_us: Option<u64>,
    /// Records with a smaller sequence number are from before it was muted.
    muted_from: u64,
    /// It was heard while it was muted: `F_TRANSL_FORBIDDEN`, for one, is recorded whatever `STE.S2R` says.
    unmutable: bool,
    mutes: u32,
}

impl Stream {
    fn new(sid: StreamId, entry: Pa, owner: Option<VmIndex>, owned_from: u64) -> Self {
        Self {
            sid,
            entry,
            owner,
            state: State::Abort,
            binding: None,
            stage1: None,
            refuses: false,
            closed: false,
            cfgi: 0,
            transitions: 0,
            history: History::new(),
            faults: [0; Kind::COUNT],
            armed_at_close: false,
            stopped: Stopped::default(),
            stopped_in_watch: Stopped::default(),
            stopped_at_us: None,
            told: 0,
            owned_from,
            watched_from: 0,
            watch_left: 0,
            window_start_us: 0,
            window_events: 0,
            muted_until_us: None,
            muted_from: 0,
            unmutable: false,
            mutes: 0,
        }
    }

    /// Its StreamID.
    pub fn sid(&self) -> StreamId {
        self.sid
    }

    /// Whose it is.
    pub fn owner(&self) -> Option<VmIndex> {
        self.owner
    }

    /// Its state now.
    pub fn state(&self) -> State {
        self.state
    }

    /// How often its state changed.
    pub fn transitions(&self) -> u64 {
        self.transitions
    }

    /// The last changes, oldest first: some hundreds, in as many bytes. Before the first, the state was *abort*.
    pub fn history(&self) -> impl Iterator<Item = Transition> + '_ {
        self.history.iter()
    }

    /// How many `CMD_CFGI_STE` were issued for it.
    pub fn cfgi(&self) -> u64 {
        self.cfgi
    }

    /// How many events of each kind were recorded for it, without those never seen.
    pub fn faults(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Kind::NAMES.iter().copied().zip(self.faults).filter(|(_, count)| *count != 0)
    }

    /// Whether its function could still do DMA when its owner went.
    pub fn armed_at_close(&self) -> bool {
        self.armed_at_close
    }

    /// Whether it is in *watch* only so that a running owner hears of transactions that its own stream table
    /// does not allow.
    pub fn refuses(&self) -> bool {
        self.refuses
    }

    /// Whether its faults go unrecorded at the moment.
    pub fn is_muted(&self) -> bool {
        self.muted_until_us.is_some()
    }

    /// What its STE is to make of its faults in `state`, if it is muted or not.
    pub(crate) fn recording(&self, state: State, muted: bool) -> Recording {
        match state {
            _ if !muted => Recording::On,
            // Whether stage-1 faults are recorded is the guest's CD's business, so nothing less helps.
            State::Nested => Recording::Abort,
            _ if self.unmutable => Recording::Abort,
            _ => Recording::Off,
        }
    }

    /// How often its faults were too many to record them all.
    pub fn mutes(&self) -> u32 {
        self.mutes
    }

    /// What its function tried after its owner went, over all watches.
    pub fn stopped_after_teardown(&self) -> Stopped {
        self.stopped
    }

    /// What its function tried during the last watch.
    pub fn stopped_in_watch(&self) -> Stopped {
        self.stopped_in_watch
    }

    /// When it first tried something during the last watch.
    pub fn stopped_at_us(&self) -> Option<u64> {
        self.stopped_at_us
    }

    /// Whether its function tried something in the last watch that [`Stream::tell_stopped`] has not told.
    pub fn has_untold(&self) -> bool {
        self.stopped_in_watch.count > self.told
    }

    /// Returns what its function tried during the last watch if there is more of it than at the last call.
    pub fn tell_stopped(&mut self) -> Option<Stopped> {
        let news = self.has_untold().then_some(self.stopped_in_watch);
        self.told = self.stopped_in_watch.count;
        news
    }

    /// Says that its function could still do DMA when its owner went.
    pub fn set_armed_at_close(&mut self) {
        self.armed_at_close = true;
    }

    /// Hands it over; records before number `owned_from` are the former owner's, and so nobody's.
    pub(crate) fn set_owner(&mut self, owner: Option<VmIndex>, owned_from: u64) {
        self.owner = owner;
        self.owned_from = owned_from;
    }

    /// As if so many had been issued, for tests of many.
    #[cfg(test)]
    pub(crate) fn pretend_commands(&mut self, cfgi: u64) {
        self.cfgi = cfgi;
    }

    /// Counts a `CMD_CFGI_STE`.
    pub(crate) fn count_cfgi(&mut self) {
        self.cfgi += 1;
    }

    /// Enters a state that could first be seen after `cfgi` commands.
    pub(crate) fn enter(&mut self, state: State, binding: Option<Stage2Binding>, cfgi: u64) {
        self.change(state, binding, None, false, cfgi);
        self.muted_until_us = None;
        self.unmutable = false;
        self.window_events = 0;
    }

    /// Enters a state that its owner asked for, which changes nothing about its being muted: an owner cannot
    /// buy a new budget that way.
    pub(crate) fn change(
        &mut self,
        state: State,
        binding: Option<Stage2Binding>,
        stage1: Option<Stage1Config>,
        refuses: bool,
        cfgi: u64,
    ) {
        if state != self.state {
            self.transitions += 1;
            self.history.add(Transition { state, cfgi });
        }
        if state.is_open() {
            // What comes after the next close is heard again.
            self.stopped_in_watch.silenced = false;
        }
        self.state = state;
        self.binding = binding;
        self.stage1 = stage1;
        self.refuses = refuses;
        self.closed = false;
    }

    /// Allows the watch that begins with record number `from` its budget.
    pub(crate) fn start_watch(&mut self, from: u64, budget: u32) {
        self.watched_from = from;
        self.watch_left = budget;
        self.refuses = false;
        self.stopped_in_watch = Stopped::default();
        self.stopped_at_us = None;
        self.told = 0;
    }

    /// Its STE has stopped recording faults until a time, as of record number `from`, or records them again.
    pub(crate) fn set_muted(&mut self, until_us: Option<u64>, from: u64) {
        self.muted_until_us = until_us;
        self.muted_from = from;
        self.window_events = 0;
        self.mutes += u32::from(until_us.is_some());
    }

    /// Muting it takes *abort* from now on.
    pub(crate) fn set_unmutable(&mut self) {
        self.unmutable = true;
    }

    pub(crate) fn is_mute_over(&self, now_us: u64) -> bool {
        self.muted_until_us.is_some_and(|until_us| until_us <= now_us)
    }

    pub(crate) fn set_silenced(&mut self) {
        self.stopped.silenced = true;
        self.stopped_in_watch.silenced = true;
    }

    /// Whether its owner may have caused this event.
    pub(crate) fn is_owners(&self, event: &Event, ipa_bits: u8) -> bool {
        self.refuses || self.state == State::Nested && !event.is_of_stage2(ipa_bits)
    }

    /// Accounts for record number `sequence`, taken at `now_us`. Returns whose it is and what follows.
    pub(crate) fn record(
        &mut self,
        event: &Event,
        sequence: u64,
        now_us: u64,
        budgets: &Budgets,
    ) -> (Option<VmIndex>, Verdict) {
        if sequence < self.owned_from {
            return (None, Verdict::Keep);
        }
        self.faults[event.kind.index()] += 1;
        let verdict = match self.state {
            State::Watch if self.refuses => self.record_live(sequence, now_us, budgets),
            State::Watch if sequence >= self.watched_from => self.record_stopped(event, now_us),
            State::Stage2 | State::Nested => self.record_live(sequence, now_us, budgets),
            _ => Verdict::Keep,
        };
        (self.owner, verdict)
    }

    fn record_stopped(&mut self, event: &Event, now_us: u64) -> Verdict {
        self.stopped_at_us = self.stopped_at_us.or(Some(now_us));
        self.stopped.note(event);
        self.stopped_in_watch.note(event);
        self.watch_left = self.watch_left.saturating_sub(1);
        if self.watch_left == 0 { Verdict::Silence } else { Verdict::Keep }
    }

    fn record_live(&mut self, sequence: u64, now_us: u64, budgets: &Budgets) -> Verdict {
        // What the queue held when it was muted says nothing new.
        if self.is_muted() && sequence < self.muted_from {
            return Verdict::Keep;
        }
        if now_us.saturating_sub(self.window_start_us) >= budgets.window_us {
            self.window_start_us = now_us;
            self.window_events = 0;
        }
        self.window_events = self.window_events.saturating_add(1);
        match self.window_events > budgets.live_events {
            true if !self.is_muted() => Verdict::Mute,
            true if !self.unmutable => Verdict::Deafen,
            _ => Verdict::Keep,
        }
    }
}

/// All streams that were ever attached to one SMMU.
///
/// It is large, and so lives where the caller puts it rather than inside the driver.
#[derive(Debug, Default)]
pub struct Streams(Vec<Stream, MAX_STREAMS>);

impl Streams {
    /// None.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn iter(&self) -> core::slice::Iter<'_, Stream> {
        self.0.iter()
    }

    /// The stream at `index`, which is one of [`Streams::iter`]'s.
    pub(crate) fn at(&mut self, index: u8) -> &mut Stream {
        &mut self.0[usize::from(index)]
    }

    pub(crate) fn find(&mut self, sid: StreamId) -> Option<&mut Stream> {
        self.0.iter_mut().find(|stream| stream.sid == sid)
    }

    pub(crate) fn get(&mut self, sid: StreamId) -> Result<&mut Stream, HostError> {
        self.find(sid).ok_or(HostError::UnknownStream(sid))
    }

    /// Adds a stream in *abort*.
    pub(crate) fn add(
        &mut self,
        sid: StreamId,
        entry: Pa,
        owner: Option<VmIndex>,
        owned_from: u64,
    ) -> Result<&mut Stream, HostError> {
        self.0
            .push(Stream::new(sid, entry, owner, owned_from))
            .map_err(|_| HostError::TooManyStreams)?;
        self.get(sid)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.is_full()
    }
}
