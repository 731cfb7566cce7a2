//! The virtual SMMU that a VM's own driver sees (chapter 6), on top of nested translation.
//!
//! Its registers live in frames that stage 2 maps read-only: a guest's reads cost no exit, and every value that a
//! read must find is published through [`RegisterFrames`]. Writes trap and come to [`VirtualSmmu::write`]. What is
//! published is never read back: all state is in [`VirtualSmmu`].
//!
//! Guest structures are copied once and the copy is decoded. What a guest says reaches a physical STE or command
//! only as one of the fields of [`Configuration`] and [`Command`] (C2); StreamIDs and VMIDs are replaced.
//! Stage-1 tables and CDs are never read here: the SMMU walks them itself, through stage 2.
//!
//! The methods are called with the lock of one `VirtualSmmu` held; [`Physical`] may take the physical SMMUs' locks
//! inside. So nobody who holds one of those may ask for this one.

use heapless::Vec;

use crate::addr::{Ipa, StreamId, Vmid};
use crate::cmd::Command;
use crate::device::Configuration;
use crate::error::HostError;
use crate::event::Event;

mod command;
mod event;
mod features;
mod locked;
mod queue;
mod registers;
mod ste;
mod table;

pub use features::Features;
pub use locked::Locked;

use command::GuestCommand;
use registers::{Registers, offset};
use table::StreamTable;

/// The most streams of one VM.
pub const MAX_GUEST_STREAMS: usize = 64;
/// The most physical SMMUs behind one virtual one.
pub const MAX_SMMUS: usize = 8;
/// The size in bytes of the register map, two pages of 64 KiB.
pub const REGISTERS_SIZE: u64 = 0x2_0000;
/// The offset of `CMDQ_PROD`: a write to it is what a batch of commands costs a guest.
pub const COMMAND_DOORBELL: u32 = offset::CMDQ_PROD;
/// The register by which the guest enables it: `CR0`.
pub const CONTROL: u32 = offset::CR0;
/// Only the first so many bytes of each 64 KiB page ever differ from zero.
pub const IMAGE_SIZE: u64 = 0x1000;

/// What one call does before it leaves the rest for later: a command counts one, an STE that is read again
/// [`STE_COST`] more. A full queue of commands without STEs fits.
const BUDGET: u32 = 272;
/// The most events that a `CMD_SYNC` brings with it.
const MAX_EVENTS: usize = 64;
/// What reading and installing one STE counts.
const STE_COST: u32 = 8;

/// An access to guest memory that is not entirely in the VM's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideRam;

/// The VM's RAM. Other CPUs of the VM, and its devices, may change it at any moment.
pub trait GuestMemory {
    /// Reads consecutive words from `ipa` on, each in one single-copy atomic load, in any order.
    /// `ipa` is a multiple of 8, and may be any such number.
    ///
    /// # Errors
    ///
    /// [`OutsideRam`] unless all of them are in the VM's RAM.
    fn read(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), OutsideRam>;

    /// Writes consecutive words. A later [`RegisterFrames::write32`] makes them visible first.
    ///
    /// # Errors
    ///
    /// [`OutsideRam`] unless all of them are in the VM's RAM; then nothing was written.
    fn write(&self, ipa: Ipa, words: &[u64]) -> Result<(), OutsideRam>;
}

/// The frames whose content is what the guest's reads find.
pub trait RegisterFrames {
    /// Makes the 32-bit register at `offset`, below [`REGISTERS_SIZE`] and within [`IMAGE_SIZE`] of its page, read
    /// as `value`. Whatever was written to guest memory or to another register before is visible before it.
    fn write32(&self, offset: u32, value: u32);
}

/// The physical SMMUs, as far as one VM's streams and tags go.
pub trait Physical {
    /// Does with the stream `sid` of SMMU number `smmu` what `to` says, on top of the VM's stage 2; see
    /// [`crate::device::Smmu::configure`].
    ///
    /// # Errors
    ///
    /// A failure of the host's.
    fn configure(&mut self, smmu: u8, sid: StreamId, to: &Configuration) -> Result<(), HostError>;

    /// Issues a command on SMMU number `smmu`, complete after the next [`Physical::sync`]; see
    /// [`crate::device::Smmu::relay`].
    ///
    /// # Errors
    ///
    /// A failure of the host's.
    fn relay(&mut self, smmu: u8, command: Command) -> Result<(), HostError>;

    /// Waits until every command issued on SMMU number `smmu` is complete.
    ///
    /// # Errors
    ///
    /// A failure of the host's.
    fn sync(&mut self, smmu: u8) -> Result<(), HostError>;

    /// Takes the oldest event of the VM's streams that is known and not forwarded yet, with the number of its
    /// SMMU. What a `CMD_SYNC` waited for includes the records of what was refused before it (section 4.7.3), so
    /// the guest gets those first.
    fn next_event(&mut self) -> Option<(u8, Event)> {
        None
    }
}

/// What the virtual SMMU works with during one call.
pub struct Ports<'a> {
    /// The VM's RAM.
    pub memory: &'a dyn GuestMemory,
    /// What its reads find.
    pub frames: &'a dyn RegisterFrames,
    /// What its devices go through.
    pub physical: &'a mut dyn Physical,
}

/// One of the VM's streams. No two have the same virtual, or the same physical, name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamMap {
    /// The StreamID that the guest knows.
    pub virt: StreamId,
    /// Which physical SMMU it comes through, below [`MAX_SMMUS`].
    pub smmu: u8,
    /// Its StreamID there.
    pub phys: StreamId,
}

/// What a virtual SMMU is made from.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// The tag of the VM's translations.
    pub vmid: Vmid,
    /// Width in bits of the VM's address space.
    pub ipa_bits: u8,
    /// Width in bits of a StreamID that the guest may use; all of `streams` have fewer.
    pub sid_bits: u8,
    /// What all of the physical SMMUs can do.
    pub features: Features,
    /// At most [`MAX_GUEST_STREAMS`].
    pub streams: &'a [StreamMap],
}

/// An access that is as wide as a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
}

/// What is left to do after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the guest waits for it"]
pub enum Work {
    /// Nothing.
    Done,
    /// Commands are left: let the guest run, and call [`VirtualSmmu::resume`] soon.
    More,
    /// The guest cleared `CR0.SMMUEN`, and it is not acknowledged yet (C4): close the VM's streams, then call
    /// [`VirtualSmmu::disabled`].
    Disable {
        /// Whether the guest asked for `GBPA.ABORT` while the SMMU was still enabled: what a kernel does that
        /// finds the SMMU in a predecessor's hands.
        taken_over: bool,
    },
}

/// Interrupts to raise: each is an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// The event queue is no longer empty.
    pub eventq: bool,
    /// A global error became active.
    pub gerror: bool,
    /// A `CMD_SYNC` that asked for it is complete.
    pub cmdq_sync: bool,
}

/// What became of a physical event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// The guest has it, in its own terms.
    Recorded,
    /// It was the guest's, but its queue is full, disabled or not in its RAM.
    Lost,
    /// It is no business of the guest's.
    Ours,
}

/// Totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands consumed.
    pub commands: u64,
    /// `CMD_SYNC`s among them: each ends a batch.
    pub batches: u64,
    /// Commands refused with `CERROR_ILL` or `CERROR_ABT`.
    pub errors: u64,
    /// Events in the guest's queue.
    pub forwarded: u64,
    /// Events that did not get there.
    pub dropped: u64,
    /// Writes to what is no register, or not as wide as one.
    pub unknown: u64,
}

/// What the guest's stream table makes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    /// The guest wants it to abort.
    Silent,
    /// It bypasses stage 1.
    Bypass,
    /// It has a stage 1, whose CD is there.
    Stage1(Ipa),
    /// Its transactions are the guest's events.
    Refused(table::Refused),
}

/// One of the VM's streams.
#[derive(Clone, Copy, Debug)]
struct Stream {
    map: StreamMap,
    /// Means nothing unless the virtual SMMU is enabled.
    view: View,
}

/// Why the command queue stopped (section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CommandError {
    /// `CERROR_ILL`.
    Illegal,
    /// `CERROR_ABT`: the command could not be read.
    Abort,
}

/// One VM's virtual SMMU.
#[derive(Debug)]
pub struct VirtualSmmu {
    vmid: Vmid,
    ipa_bits: u8,
    features: Features,
    sid_bits: u8,
    registers: Registers,
    streams: Vec<Stream, MAX_GUEST_STREAMS>,
    /// The physical SMMUs that they come through, a bit each.
    smmus: u8,
    /// `GBPA.ABORT` was asked for while enabled.
    taken_over: bool,
    /// Physical SMMUs with commands since their last `CMD_SYNC`.
    unsynced: u8,
    /// Those whose `CMD_SYNC` was issued and not waited for.
    unwaited: u8,
    /// The guest's last `CMD_SYNC` still has to be done for those in `unsynced`.
    sync_due: bool,
    interrupts: Interrupts,
    counters: Counters,
}

impl VirtualSmmu {
    /// Makes one, disabled. Reads find nothing until it is [`VirtualSmmu::reset`].
    ///
    /// Streams above [`MAX_GUEST_STREAMS`], or behind an SMMU above [`MAX_SMMUS`], are left out: what belongs to
    /// nobody aborts.
    pub fn new(config: &Config<'_>) -> Self {
        let usable = |map: &&StreamMap| usize::from(map.smmu) < MAX_SMMUS;
        let streams: Vec<Stream, MAX_GUEST_STREAMS> = config
            .streams
            .iter()
            .filter(usable)
            .take(MAX_GUEST_STREAMS)
            .map(|map| Stream { map: *map, view: View::Silent })
            .collect();
        let smmus = streams.iter().fold(0, |mask, stream| mask | 1 << stream.map.smmu);
        Self {
            vmid: config.vmid,
            ipa_bits: config.ipa_bits,
            features: config.features,
            sid_bits: config.sid_bits.min(32),
            registers: Registers::new(config.features.identify(config.sid_bits, config.ipa_bits)),
            streams,
            smmus,
            taken_over: false,
            unsynced: 0,
            unwaited: 0,
            sync_due: false,
            interrupts: Interrupts::default(),
            counters: Counters::default(),
        }
    }

    /// Puts it in the state after reset, with `GBPA.ABORT` as given, and publishes every register. The physical
    /// streams stay as they are: the caller has closed them, or opens them.
    pub fn reset(&mut self, abort: bool, frames: &dyn RegisterFrames) {
        self.taken_over = false;
        self.forget_batch();
        self.interrupts = Interrupts::default();
        self.registers.reset(abort);
        self.registers.publish_all(frames);
    }

    /// Answers a write of the guest's to `offset`, a multiple of the width.
    ///
    /// # Errors
    ///
    /// A failure of the host's: nothing is known of the VM's streams then.
    pub fn write(
        &mut self,
        ports: &mut Ports<'_>,
        offset: u32,
        width: Width,
        value: u64,
    ) -> Result<Work, HostError> {
        match width {
            Width::Word => self.write32(ports, offset, value as u32),
            // The halves of one register, or two neighbours.
            Width::Double => {
                let low = self.write32(ports, offset, value as u32)?;
                let high = self.write32(ports, offset | 4, (value >> 32) as u32)?;
                Ok(if low == Work::Done { high } else { low })
            }
        }
    }

    /// Counts a write that no register can answer: of another width, or unaligned.
    pub fn ignore_write(&mut self) {
        self.counters.unknown += 1;
    }

    /// Goes on with the command queue.
    ///
    /// # Errors
    ///
    /// A failure of the host's.
    pub fn resume(&mut self, ports: &mut Ports<'_>) -> Result<Work, HostError> {
        self.drain(ports)
    }

    /// The streams are closed: acknowledges that `CR0.SMMUEN` is 0. From now on they abort until there is a
    /// reason to open them again (C5), so `GBPA.ABORT` is 1.
    ///
    /// # Errors
    ///
    /// A failure of the host's.
    pub fn disabled(&mut self, ports: &mut Ports<'_>) -> Result<Work, HostError> {
        self.taken_over = false;
        self.registers.set_abort(true);
        self.registers.publish(ports.frames, offset::GBPA);
        self.acknowledge(ports.frames);
        self.drain(ports)
    }

    /// Whether the guest's stream table decides about its streams. If not, they are the caller's to open and to
    /// close, but for what a write to `GBPA` asks for.
    pub fn is_enabled(&self) -> bool {
        self.registers.is_enabled()
    }

    /// Whether the guest cleared `CR0.SMMUEN` and waits for [`VirtualSmmu::disabled`].
    pub fn is_disabling(&self) -> bool {
        self.registers.is_disabling()
    }

    /// Takes the interrupts that are to be raised.
    pub fn take_interrupts(&mut self) -> Interrupts {
        core::mem::take(&mut self.interrupts)
    }

    /// Totals.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Tells the guest of an event of SMMU number `smmu` if it is the guest's own doing: in its StreamIDs and
    /// addresses, nothing else of the record.
    pub fn forward(
        &mut self,
        memory: &dyn GuestMemory,
        frames: &dyn RegisterFrames,
        smmu: u8,
        event: &Event,
    ) -> Forwarded {
        let named = |stream: &&Stream| stream.map.smmu == smmu && stream.map.phys == event.sid;
        let Some(stream) = self.streams.iter().find(named).copied() else {
            return Forwarded::Ours;
        };
        if !self.is_enabled() {
            return Forwarded::Ours;
        }
        let words = match stream.view {
            View::Silent | View::Bypass => None,
            View::Refused(table::Refused::BadStreamId) if !self.registers.records_bad_streams() => {
                None
            }
            View::Refused(refused) => Some(event::refused(event, stream.map.virt, refused)),
            View::Stage1(context) => event::stage1(event, stream.map.virt, context, self.ipa_bits),
        };
        let Some(words) = words else {
            return Forwarded::Ours;
        };
        if self.record(memory, frames, &words) {
            self.counters.forwarded += 1;
            Forwarded::Recorded
        } else {
            self.counters.dropped += 1;
            Forwarded::Lost
        }
    }

    /// Writes a record to the guest's event queue (section 7.4), if there is room.
    fn record(
        &mut self,
        memory: &dyn GuestMemory,
        frames: &dyn RegisterFrames,
        words: &crate::event::Words,
    ) -> bool {
        if !self.registers.event_queue_runs() {
            return false;
        }
        let ring = self.registers.event_ring();
        let queue = self.registers.eventq;
        if ring.is_full(queue.prod, queue.cons) {
            if self.registers.overflow() {
                self.registers.publish(frames, offset::EVENTQ_PROD);
            }
            return false;
        }
        if memory.write(ring.entry(queue.prod), words).is_err() {
            self.raise(frames, registers::GlobalError::EventQueueAbort);
            return false;
        }
        self.registers.advance_events(ring);
        self.registers.publish(frames, offset::EVENTQ_PROD);
        // Only what makes the queue non-empty interrupts (section 3.18.2).
        let first = ring.is_empty(queue.prod, queue.cons);
        self.interrupts.eventq |= first && self.registers.event_interrupt_enabled();
        true
    }

    fn write32(&mut self, ports: &mut Ports<'_>, at: u32, value: u32) -> Result<Work, HostError> {
        let at = offset::canonical(at);
        match at {
            offset::CR0 => self.write_cr0(ports, value),
            offset::GBPA => self.write_gbpa(ports, value),
            offset::CMDQ_PROD | offset::GERRORN => {
                self.registers.write(at, value);
                self.registers.publish(ports.frames, at);
                self.drain(ports)
            }
            _ => {
                match self.registers.write(at, value) {
                    registers::Written::Stored => self.registers.publish(ports.frames, at),
                    registers::Written::Ignored => {}
                    registers::Written::Unknown => self.counters.unknown += 1,
                }
                Ok(Work::Done)
            }
        }
    }

    fn write_cr0(&mut self, ports: &mut Ports<'_>, value: u32) -> Result<Work, HostError> {
        let was = self.registers.is_enabled();
        let disabling = self.registers.is_disabling();
        self.registers.write(offset::CR0, value);
        self.registers.publish(ports.frames, offset::CR0);
        if disabling {
            // Acknowledged with what came before.
            return Ok(Work::Done);
        }
        match (was, self.registers.is_enabled()) {
            (true, false) => return Ok(Work::Disable { taken_over: self.taken_over }),
            (false, true) => {
                self.taken_over = false;
                self.load(ports, |_| true)?;
                self.sync_all(ports)?;
            }
            _ => {}
        }
        self.acknowledge(ports.frames);
        self.drain(ports)
    }

    fn write_gbpa(&mut self, ports: &mut Ports<'_>, value: u32) -> Result<Work, HostError> {
        let Some(abort) = registers::requested_abort(value) else {
            return Ok(Work::Done);
        };
        if self.registers.is_disabling() {
            // From before the close, so no reason to open anything after it (C5).
            return Ok(Work::Done);
        }
        self.registers.set_abort(abort);
        if self.registers.is_enabled() {
            // It counts when the SMMU is disabled, which sets it anew.
            self.taken_over |= abort;
        } else {
            let to = if abort { Configuration::Abort } else { Configuration::Stage2 };
            for stream in &self.streams {
                ports.physical.configure(stream.map.smmu, stream.map.phys, &to)?;
            }
            self.sync_all(ports)?;
        }
        self.registers.publish(ports.frames, offset::GBPA);
        Ok(Work::Done)
    }

    /// `CR0ACK` follows `CR0`.
    fn acknowledge(&mut self, frames: &dyn RegisterFrames) {
        self.registers.acknowledge();
        self.registers.publish(frames, offset::CR0ACK);
    }

    /// Makes a global error active, unless it is.
    fn raise(&mut self, frames: &dyn RegisterFrames, error: registers::GlobalError) {
        if self.registers.raise(error) {
            self.registers.publish(frames, offset::GERROR);
            self.interrupts.gerror |= self.registers.error_interrupt_enabled();
        }
    }

    /// Reads the guest's STEs again for those streams for which `chosen` holds, and installs what they say.
    /// Returns how many that were.
    fn load(
        &mut self,
        ports: &mut Ports<'_>,
        chosen: impl Fn(StreamId) -> bool,
    ) -> Result<u32, HostError> {
        let mut count = 0;
        // The guest's stream table means nothing while it is disabled.
        if !self.is_enabled() {
            return Ok(0);
        }
        let table = StreamTable::new(&self.registers, self.sid_bits);
        for index in 0..self.streams.len() {
            let map = self.streams[index].map;
            if !chosen(map.virt) {
                continue;
            }
            count += 1;
            let (view, to) = match table.lookup(ports.memory, map.virt) {
                Err(refused) => (View::Refused(refused), Configuration::Refuse),
                Ok(ste::GuestSte::Abort) => (View::Silent, Configuration::Abort),
                Ok(ste::GuestSte::Bypass) => (View::Bypass, Configuration::Stage2),
                Ok(ste::GuestSte::Stage1(config)) => {
                    (View::Stage1(config.context), Configuration::Nested(config))
                }
            };
            self.order(ports)?;
            ports.physical.configure(map.smmu, map.phys, &to)?;
            self.unsynced |= 1 << map.smmu;
            self.streams[index].view = view;
        }
        Ok(count)
    }

    /// Consumes commands until the queue is empty, stops, or the budget is spent.
    fn drain(&mut self, ports: &mut Ports<'_>) -> Result<Work, HostError> {
        let mut left = BUDGET;
        let mut asked = false;
        let mut error = None;
        let first = self.registers.cmdq.cons;
        let ring = self.registers.command_ring();
        while self.registers.command_queue_runs() && left > 0 {
            let cons = ring.wrap(self.registers.cmdq.cons);
            if cons == ring.wrap(self.registers.cmdq.prod) {
                break;
            }
            left -= 1;
            let mut words = [0; 2];
            let command = match ports.memory.read(ring.entry(cons), &mut words) {
                Err(OutsideRam) => Err(CommandError::Abort),
                Ok(()) => GuestCommand::decode(words, &self.features),
            };
            match command {
                Ok(command) => {
                    left = left.saturating_sub(self.execute(ports, command, &mut asked)?);
                }
                Err(reason) => {
                    error = Some(reason);
                    break;
                }
            }
            self.counters.commands += 1;
            self.registers.advance_commands(ring);
        }
        if self.complete(ports)? {
            for _ in 0..MAX_EVENTS {
                let Some((smmu, event)) = ports.physical.next_event() else { break };
                let _ = self.forward(ports.memory, ports.frames, smmu, &event);
            }
        }
        self.interrupts.cmdq_sync |= asked;
        if let Some(reason) = error {
            self.counters.errors += 1;
            self.registers.set_command_error(match reason {
                CommandError::Illegal => 1,
                CommandError::Abort => 2,
            });
        }
        if error.is_some() || self.registers.cmdq.cons != first {
            // The work is done, so the guest may know.
            self.registers.publish(ports.frames, offset::CMDQ_CONS);
        }
        if error.is_some() {
            self.raise(ports.frames, registers::GlobalError::Command);
        }
        let more = self.registers.command_queue_runs()
            && !ring.is_empty(self.registers.cmdq.prod, self.registers.cmdq.cons);
        Ok(if more { Work::More } else { Work::Done })
    }

    /// Does what one command says. Returns what it costs beside the command itself.
    fn execute(
        &mut self,
        ports: &mut Ports<'_>,
        command: GuestCommand,
        asked: &mut bool,
    ) -> Result<u32, HostError> {
        match command {
            GuestCommand::Nothing => {}
            GuestCommand::Sync { interrupt } => {
                self.counters.batches += 1;
                self.sync_due |= self.unsynced != 0;
                *asked |= interrupt;
            }
            GuestCommand::Ste { first, last } => {
                let count = self.load(ports, |sid| (first..=last).contains(&sid.0))?;
                return Ok(count * STE_COST);
            }
            GuestCommand::Cd { sid, ssid, leaf } => {
                self.relay_stream(ports, sid, |sid| Command::CfgiCd { sid, ssid, leaf })?;
            }
            GuestCommand::CdAll { sid } => {
                self.relay_stream(ports, sid, |sid| Command::CfgiCdAll { sid })?;
            }
            GuestCommand::Tlb(invalidation) => {
                let command = invalidation.tagged(self.vmid);
                for smmu in bits(self.smmus) {
                    self.relay(ports, smmu, command)?;
                }
            }
        }
        Ok(0)
    }

    /// Relays a command about one of the VM's streams; about any other there is nothing to do.
    fn relay_stream(
        &mut self,
        ports: &mut Ports<'_>,
        sid: StreamId,
        command: impl FnOnce(StreamId) -> Command,
    ) -> Result<(), HostError> {
        match self.streams.iter().find(|stream| stream.map.virt == sid).copied() {
            Some(stream) => self.relay(ports, stream.map.smmu, command(stream.map.phys)),
            None => Ok(()),
        }
    }

    #[inline]
    fn relay(
        &mut self,
        ports: &mut Ports<'_>,
        smmu: u8,
        command: Command,
    ) -> Result<(), HostError> {
        self.order(ports)?;
        ports.physical.relay(smmu, command)?;
        self.unsynced |= 1 << smmu;
        Ok(())
    }

    /// Puts the guest's last `CMD_SYNC` between what came before it and what comes now.
    #[inline]
    fn order(&mut self, ports: &mut Ports<'_>) -> Result<(), HostError> {
        if core::mem::take(&mut self.sync_due) {
            for smmu in bits(core::mem::take(&mut self.unsynced)) {
                ports.physical.relay(smmu, Command::Sync)?;
                self.unwaited |= 1 << smmu;
            }
        }
        Ok(())
    }

    /// Waits for what the guest's `CMD_SYNC`s asked for. Returns whether they asked for anything.
    fn complete(&mut self, ports: &mut Ports<'_>) -> Result<bool, HostError> {
        let due = if core::mem::take(&mut self.sync_due) { self.unsynced } else { 0 };
        let wait = due | core::mem::take(&mut self.unwaited);
        self.unsynced &= !wait;
        bits(wait).try_for_each(|smmu| ports.physical.sync(smmu))?;
        Ok(wait != 0)
    }

    /// Waits for everything on every SMMU that the VM's streams come through.
    fn sync_all(&mut self, ports: &mut Ports<'_>) -> Result<(), HostError> {
        self.forget_batch();
        bits(self.smmus).try_for_each(|smmu| ports.physical.sync(smmu))
    }

    fn forget_batch(&mut self) {
        self.unsynced = 0;
        self.unwaited = 0;
        self.sync_due = false;
    }
}

/// The numbers of the bits that are set.
fn bits(mut mask: u8) -> impl Iterator<Item = u8> {
    core::iter::from_fn(move || {
        let lowest = mask.trailing_zeros() as u8;
        (mask != 0).then(|| {
            mask &= mask - 1;
            lowest
        })
    })
}

#[cfg(test)]
mod tests;
