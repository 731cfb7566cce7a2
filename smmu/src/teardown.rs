//! Closing streams, and the proof of it.

use heapless::Vec;

use crate::addr::{StreamId, VmIndex, Vmid};
use crate::cmd::Command;
use crate::device::Smmu;
use crate::error::HostError;
use crate::plan::{Plan, Step};
use crate::ports::Hardware;
use crate::ste::Ste;
use crate::streams::{MAX_STREAMS, State, Stream};

/// Some of an SMMU's streams, by their places in the list.
type Selection = Vec<u8, MAX_STREAMS>;

/// Proof that no stream of a VM is open, and that the SMMU has forgotten all of the VM's translations:
/// only a completed `CMD_SYNC` makes one (C3).
///
/// It says nothing about devices that fetched or mapped a buffer before: they are quiesced as well before
/// memory is reused.
#[derive(Debug)]
#[must_use = "without it nothing of the VM can be freed"]
pub struct Closed {
    owner: VmIndex,
    vmid: Vmid,
    streams: u32,
}

impl Closed {
    /// How many of its streams were open.
    pub fn streams(&self) -> u32 {
        self.streams
    }

    /// Whose streams are closed.
    pub fn owner(&self) -> VmIndex {
        self.owner
    }

    /// Whose translations are gone.
    pub fn vmid(&self) -> Vmid {
        self.vmid
    }

    /// A proof of nothing, for tests of what needs one.
    #[cfg(test)]
    pub(crate) fn for_test(owner: VmIndex, vmid: Vmid) -> Self {
        Self { owner, vmid, streams: 0 }
    }
}

impl<H: Hardware> Smmu<'_, H> {
    /// Closes every stream of `owner`, whose translations are tagged `vmid`: afterwards they are in
    /// *abort*, and none of its transactions is under way inside the SMMU.
    ///
    /// # Errors
    ///
    /// [`HostError::BadVmid`] if a stream of `owner` is open under another tag, or another VM's under this
    /// one; or a failure of the hardware: then nothing is proven, and nothing may be reused (C3).
    pub fn close(&mut self, owner: VmIndex, vmid: Vmid) -> Result<Closed, HostError> {
        let mut open = Selection::new();
        for (index, stream) in self.streams.iter().enumerate().filter(|(_, s)| s.state().is_open())
        {
            let theirs = stream.owner() == Some(owner);
            if theirs != stream.binding.is_some_and(|binding| binding.vmid == vmid) {
                return Err(HostError::BadVmid(vmid));
            }
            if theirs {
                // It holds as many as there can be.
                let _ = open.push(index as u8);
            }
        }
        let plan = Plan::close(&Ste::Abort.encode());
        // What comes after the SYNC only tidies words that nobody looks at, and that every plan to open writes.
        let (until_sync, _) = plan.around_sync();
        // Until this SYNC a walk may still begin at an old STE, and put what it finds where the TLBI has
        // already been.
        if !open.is_empty() {
            self.run_together(&open, until_sync)?;
            self.commands.sync(&self.hw)?;
        }
        self.commands.push(&self.hw, Command::TlbiS12Vmall { vmid })?;
        self.commands.sync(&self.hw)?;
        for &index in &open {
            let stream = self.streams.at(index);
            stream.enter(State::Abort, None, stream.cfgi());
            stream.closed = true;
        }
        Ok(Closed { owner, vmid, streams: open.len() as u32 })
    }

    /// Executes steps of a plan for several streams at once, and what is needed once only once.
    fn run_together(&mut self, chosen: &Selection, steps: &[Step]) -> Result<(), HostError> {
        for step in steps {
            match *step {
                Step::Store { word, value } => {
                    for &index in chosen {
                        let entry = self.streams.at(index).entry;
                        self.hw.store(entry.add(u64::from(word) * 8), value);
                    }
                }
                Step::Publish => self.hw.publish(),
                Step::Cfgi => {
                    for &index in chosen {
                        let stream = self.streams.at(index);
                        stream.count_cfgi();
                        let command = Command::CfgiSte { sid: stream.sid(), leaf: true };
                        self.commands.push(&self.hw, command)?;
                    }
                }
                Step::Sync => self.commands.sync(&self.hw)?,
            }
        }
        Ok(())
    }

    /// Begins to watch `owner`'s streams after a close: those that it closed, those of which the owner itself was
    /// told before, and those that the owner kept closed. A watch that is under way goes on, and one whose budget is
    /// spent stays over.
    ///
    /// # Errors
    ///
    /// A failure of the hardware.
    pub fn watch_closed(&mut self, owner: VmIndex) -> Result<(), HostError> {
        let ended = |stream: &&Stream| {
            let spent = stream.state() != State::Abort || stream.stopped_in_watch().silenced;
            stream.owner() == Some(owner) && (stream.closed || stream.refuses() || !spent)
        };
        let sids: Vec<StreamId, MAX_STREAMS> =
            self.streams.iter().filter(ended).map(Stream::sid).collect();
        sids.into_iter().try_for_each(|sid| self.watch(sid))
    }

    /// Records what the device of a closed stream still tries, until its budget is spent.
    ///
    /// # Errors
    ///
    /// [`HostError::UnknownStream`], [`HostError::StreamOpen`], or a failure of the hardware.
    pub fn watch(&mut self, sid: StreamId) -> Result<(), HostError> {
        match self.streams.get(sid)?.state() {
            State::Abort => {}
            State::Watch if self.streams.get(sid)?.refuses() => self.silence(sid)?,
            State::Watch => return Ok(()),
            State::Stage2 | State::Nested => return Err(HostError::StreamOpen(sid)),
        }
        // What was refused before the close is in the queue by now, and is not late.
        let from = self.events.frontier(&self.hw);
        let budget = self.watch_budget();
        self.streams.get(sid)?.start_watch(from, budget);
        self.open(sid, self.watch_binding(), State::Watch)
    }

    /// Ends the watch of a stream: it aborts without a word.
    ///
    /// # Errors
    ///
    /// [`HostError::UnknownStream`], [`HostError::StreamOpen`], or a failure of the hardware.
    pub fn silence(&mut self, sid: StreamId) -> Result<(), HostError> {
        match self.streams.get(sid)?.state() {
            State::Abort => return Ok(()),
            State::Watch => {}
            State::Stage2 | State::Nested => return Err(HostError::StreamOpen(sid)),
        }
        self.run(sid, Plan::close(&Ste::Abort.encode()).steps())?;
        self.enter_abort(sid)
    }

    pub(crate) fn enter_abort(&mut self, sid: StreamId) -> Result<(), HostError> {
        let stream = self.streams.get(sid)?;
        stream.enter(State::Abort, None, stream.cfgi());
        Ok(())
    }
}
