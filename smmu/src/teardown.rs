//! Closing streams, and the proof of it.

use heapless::Vec;

use crate::addr::{StreamId, VmIndex, Vmid};
use crate::cmd::Command;
use crate::device::Smmu;
use crate::error::HostError;
use crate::plan::Plan;
use crate::ports::Hardware;
use crate::ste::Ste;
use crate::streams::{MAX_STREAMS, Stage2Binding, State, Stream};

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
        let mixed = |(theirs, binding): (Option<VmIndex>, Stage2Binding)| {
            (theirs == Some(owner)) != (binding.vmid == vmid)
        };
        if self.open_streams().any(mixed) {
            return Err(HostError::BadVmid(vmid));
        }
        let theirs = |stream: &&Stream| stream.owner() == Some(owner) && stream.state().is_open();
        let sids: Vec<StreamId, MAX_STREAMS> =
            self.streams.iter().filter(theirs).map(Stream::sid).collect();
        let plan = Plan::close(&Ste::Abort.encode());
        let (until_sync, after_sync) = plan.around_sync();
        for &sid in &sids {
            self.run(sid, until_sync)?;
        }
        // Until this SYNC a walk may still begin at an old STE, and put what it finds where the TLBI has
        // already been.
        if !sids.is_empty() {
            self.commands.sync(&self.hw)?;
        }
        self.commands.push(&self.hw, Command::TlbiS12Vmall { vmid })?;
        self.commands.sync(&self.hw)?;
        for &sid in &sids {
            self.run(sid, after_sync)?;
            self.enter_abort(sid)?;
            self.streams.get(sid)?.closed = true;
        }
        Ok(Closed { owner, vmid, streams: sids.len() as u32 })
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
