//! One physical SMMU: taking it over, opening streams, and listening to what it reports.

use tock_registers::LocalRegisterCopy;
use tock_registers::fields::FieldValue;

use crate::addr::{StreamId, VmIndex, Vmid};
use crate::caps::{Capabilities, Class, Refusal};
use crate::cmd::{Command, Opcode};
use crate::error::{HostError, Wait};
use crate::event::Event;
use crate::guest::Features;
use crate::invalidate::Invalidation;
use crate::plan::{Plan, Step};
use crate::ports::{Frames, Hardware};
use crate::queue::{CommandQueue, EventQueue, active_errors, poll};
use crate::regs::{CR0, CR1, CR2, GBPA, GERROR, IRQ_CTRL, offset};
use crate::stage2::{Format, Stage2};
use crate::ste::{Stage1Config, Stage2Config, Ste};
use crate::streams::{MAX_STREAMS, Recording, Stage2Binding, State, Stream, Streams, Verdict};
use crate::strtab::StreamTable;

/// How long a control register may take to act.
const REGISTER_LIMIT_US: u64 = 100_000;

/// How many events a stream may have before it is silenced (C6, C7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Records of one open stream per window; above, its faults go unrecorded for a while.
    pub live_events: u32,
    /// The length of that window in microseconds.
    pub window_us: u64,
    /// How long they go unrecorded, in microseconds.
    pub mute_us: u64,
    /// Records of one watch; then the stream falls silent.
    pub watch_events: u32,
}

/// What the platform and the CPUs ask of the SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Width in bits of the largest StreamID that the platform sends.
    pub sid_bits: u8,
    /// Width in bits of every guest's address space.
    pub ipa_bits: u8,
    /// Width in bits of a physical address, as the CPUs say (`ID_AA64MMFR0_EL1.PARange`).
    pub pa_bits: u8,
    /// Whether the CPUs have FEAT_S2FWB.
    pub cpu_fwb: bool,
    /// Entries of the command queue, a power of two; fewer if the hardware has fewer.
    pub command_queue_log2: u8,
    /// Entries of the event queue, a power of two; fewer if the hardware has fewer.
    pub event_queue_log2: u8,
    /// How many events a stream may have.
    pub budgets: Budgets,
}

impl Config {
    /// What suits most machines: 40-bit guests, 256 commands, 8192 events (256 KiB).
    pub const fn new(sid_bits: u8, pa_bits: u8, cpu_fwb: bool) -> Self {
        Self {
            sid_bits,
            ipa_bits: 40,
            pa_bits,
            cpu_fwb,
            command_queue_log2: 8,
            event_queue_log2: 13,
            // Half of the queue, so that other streams are heard. QEMU refuses DMA in 4-byte pieces,
            // one record each: it is 16 KiB.
            budgets: Budgets {
                live_events: 4096,
                window_us: 100_000,
                mute_us: 400_000,
                watch_events: 4096,
            },
        }
    }
}

/// What the SMMU did since it was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `CMD_SYNC`s completed.
    pub syncs: u64,
    /// Event records taken from the queue.
    pub drained: u64,
    /// How often records were lost, for want of room or to an abort. How many, nobody knows.
    pub dropped: u64,
    /// Every bit of `GERROR` ever seen active.
    pub gerror: u32,
}

/// What one call of [`Smmu::drain_events`] achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// How many records it took.
    pub records: u32,
    /// Whether it left some in the queue: call again soon.
    pub more: bool,
}

/// Whose business an event is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Concern {
    /// The owner of its stream.
    pub owner: Option<VmIndex>,
    /// Whether it may be the owner's own doing, and so what the owner's own SMMU would have told it: stage 1 refused the
    /// transaction, or the stream refuses all on its owner's behalf.
    pub is_owners: bool,
}

/// What a guest's own stream table says of one of its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Configuration {
    /// Its transactions abort, and the guest does not want to hear of them.
    Abort,
    /// Its configuration is invalid: its transactions abort, and each leaves a record from which the guest's
    /// own is made.
    Refuse,
    /// It bypasses stage 1.
    Stage2,
    /// It goes through this stage 1.
    Nested(Stage1Config),
}

/// Makes everything abort as long as the SMMU is disabled (`GBPA.ABORT`). Never undone (C1).
///
/// # Errors
///
/// [`HostError::Timeout`].
pub fn close_first(hw: &impl Hardware) -> Result<(), HostError> {
    let updated = || !gbpa(hw).is_set(GBPA::UPDATE);
    poll(hw, REGISTER_LIMIT_US, Wait::GbpaUpdate, updated)?;
    // UPDATE and the new value go into one write (section 6.3.14.1).
    let abort = GBPA::ABORT::SET + GBPA::UPDATE::SET;
    hw.write32(offset::GBPA, abort.modify(gbpa(hw).get()));
    poll(hw, REGISTER_LIMIT_US, Wait::GbpaUpdate, updated)
}

/// Disables the SMMU so that everything aborts: for a panic, and before a take-over. Needs no state, and
/// tries to disable even if `GBPA` does not answer, since it was set before.
///
/// # Errors
///
/// [`HostError::Timeout`]; then nothing is known.
pub fn stop(hw: &impl Hardware) -> Result<(), HostError> {
    let closed = close_first(hw);
    set_cr0(hw, CR0::SMMUEN::CLEAR)?;
    closed
}

fn gbpa(hw: &impl Hardware) -> LocalRegisterCopy<u32, GBPA::Register> {
    LocalRegisterCopy::new(hw.read32(offset::GBPA))
}

/// Writes a control register whose acknowledge register follows it in the end.
fn write_acknowledged(
    hw: &impl Hardware,
    (register, acknowledge): (u32, u32),
    value: u32,
    wait: Wait,
) -> Result<(), HostError> {
    hw.write32(register, value);
    poll(hw, REGISTER_LIMIT_US, wait, || hw.read32(acknowledge) == value)
}

fn set_cr0(hw: &impl Hardware, value: FieldValue<u32, CR0::Register>) -> Result<(), HostError> {
    write_acknowledged(hw, (offset::CR0, offset::CR0ACK), value.value, Wait::Cr0Ack)
}

fn set_irq_ctrl(
    hw: &impl Hardware,
    value: FieldValue<u32, IRQ_CTRL::Register>,
) -> Result<(), HostError> {
    write_acknowledged(hw, (offset::IRQ_CTRL, offset::IRQ_CTRLACK), value.value, Wait::IrqCtrlAck)
}

/// An SMMU that is ours.
///
/// Its streams are kept in `streams`, which the caller provides because of its size.
pub struct Smmu<'a, H: Hardware> {
    pub(crate) hw: H,
    caps: Capabilities,
    class: Class,
    format: Format,
    budgets: Budgets,
    table: StreamTable,
    pub(crate) commands: CommandQueue,
    pub(crate) events: EventQueue,
    pub(crate) streams: &'a mut Streams,
    /// Nothing is mapped in it.
    watch: Stage2Binding,
    dropped: u64,
    gerror: u32,
}

impl<'a, H: Hardware> Smmu<'a, H> {
    /// Takes the SMMU over, whatever state firmware left it in, so that every stream aborts and every
    /// later event is ours.
    ///
    /// # Errors
    ///
    /// [`Refusal`] if the hardware lacks something. Everything aborts then as well.
    pub fn take_over(
        hw: H,
        config: &Config,
        streams: &'a mut Streams,
        frames: &mut dyn Frames,
    ) -> Result<Self, Refusal> {
        stop(&hw)?;
        let caps = Capabilities::read(&hw);
        let class = caps.class(config)?;
        let output_bits = caps.output_bits().min(config.pa_bits);
        let format = Format::new(config.ipa_bits, output_bits, caps.fwb() && config.cpu_fwb)
            .map_err(|_| Refusal::OutputSize { has: output_bits, needs: config.ipa_bits })?;

        let table = StreamTable::allocate(&caps, config.sid_bits, &hw, frames)
            .ok_or(Refusal::OutOfMemory)?;
        let command_log2 = config.command_queue_log2.min(caps.command_queue_log2());
        let commands = CommandQueue::allocate(command_log2, caps.command_batch_limit(), frames)
            .ok_or(Refusal::OutOfMemory)?;
        let event_log2 = config.event_queue_log2.min(caps.event_queue_log2());
        let events = EventQueue::allocate(event_log2, frames).ok_or(Refusal::OutOfMemory)?;
        let empty = Stage2::new(format, frames).map_err(|_| Refusal::OutOfMemory)?;
        let watch = Stage2Binding::new(&empty, Vmid::WATCH);
        let budgets = config.budgets;
        let mut smmu = Self {
            hw,
            caps,
            class,
            format,
            budgets,
            table,
            commands,
            events,
            streams,
            watch,
            dropped: 0,
            gerror: 0,
        };
        smmu.start()?;
        Ok(smmu)
    }

    /// Programs the SMMU and enables it, in the order of section 3.11.
    fn start(&mut self) -> Result<(), HostError> {
        let hw = &self.hw;
        let attributes = CR1::QUEUE_IC::WriteBack
            + CR1::QUEUE_OC::WriteBack
            + CR1::QUEUE_SH::Inner
            + CR1::TABLE_IC::WriteBack
            + CR1::TABLE_OC::WriteBack
            + CR1::TABLE_SH::Inner;
        hw.write32(offset::CR1, attributes.value);
        // PTM: no CPU's broadcast TLBI counts here; what has to go is named by commands.
        // RECINVSID: a StreamID without STE is named, not hidden (C6).
        hw.write32(offset::CR2, (CR2::PTM::SET + CR2::RECINVSID::SET).value);
        self.table.install(hw);
        self.commands.install(hw);
        self.events.install(hw);
        // A predecessor's errors are over; a command error that stayed active would stop our queue.
        hw.write32(offset::GERRORN, hw.read32(offset::GERROR));

        let mut enabled = CR0::CMDQEN::SET;
        set_cr0(hw, enabled)?;
        for command in [Command::CfgiAll, Command::TlbiNsnhAll] {
            self.commands.push(hw, command)?;
        }
        self.commands.sync(hw)?;

        enabled += CR0::EVENTQEN::SET;
        // ATSCHK: without it, what a device calls translated would pass unchecked. It acts before SMMUEN
        // does, because the bits of one write may act one after the other.
        if self.caps.ats() {
            enabled += CR0::ATSCHK::SET;
        }
        set_cr0(hw, enabled)?;
        // Interrupts are wires: no MSI address may stay behind that a predecessor chose.
        set_irq_ctrl(hw, IRQ_CTRL::EVENTQ_IRQEN::CLEAR)?;
        hw.write64(offset::GERROR_IRQ_CFG0, 0);
        hw.write64(offset::EVENTQ_IRQ_CFG0, 0);
        set_irq_ctrl(hw, IRQ_CTRL::EVENTQ_IRQEN::SET + IRQ_CTRL::GERROR_IRQEN::SET)?;

        set_cr0(hw, enabled + CR0::SMMUEN::SET)
    }

    /// The hardware it drives.
    pub fn hardware(&self) -> &H {
        &self.hw
    }

    /// What guests can be offered on it.
    pub fn class(&self) -> Class {
        self.class
    }

    /// What it offers a guest that is to have a stage 1 of its own, if it can nest.
    pub fn nesting(&self) -> Option<Features> {
        (self.class == Class::Nested).then(|| Features::of(&self.caps))
    }

    /// What it says it can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.caps
    }

    /// The format of every stage 2 that CPUs and this SMMU share.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The streams ever attached.
    pub fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.streams.iter()
    }

    /// Returns one of them, to read it or to note something that the caller knows.
    pub fn stream_mut(&mut self, sid: StreamId) -> Option<&mut Stream> {
        self.streams.find(sid)
    }

    /// Makes a stream known, closed, and `owner`'s; or hands a closed one over.
    ///
    /// # Errors
    ///
    /// [`HostError::StreamOpen`], [`HostError::TooManyStreams`], those of the stream table, or a failure of
    /// the hardware.
    pub fn attach(
        &mut self,
        sid: StreamId,
        owner: Option<VmIndex>,
        frames: &mut dyn Frames,
    ) -> Result<(), HostError> {
        let owned_from = self.events.frontier(&self.hw);
        if let Some(stream) = self.streams.find(sid) {
            if stream.state().is_open() {
                return Err(HostError::StreamOpen(sid));
            }
            stream.set_owner(owner, owned_from);
            return Ok(());
        }
        if self.streams.is_full() {
            return Err(HostError::TooManyStreams);
        }
        let (entry, new_path) = self.table.ensure(sid, &self.hw, frames)?;
        let stream = self.streams.add(sid, entry, owner, owned_from)?;
        if new_path {
            stream.count_cfgi();
            self.commands.push(&self.hw, Command::CfgiSte { sid, leaf: false })?;
            self.commands.sync(&self.hw)?;
        }
        Ok(())
    }

    /// Opens a closed stream: its transactions go through `binding`'s stage 2 and nothing else.
    ///
    /// # Errors
    ///
    /// [`HostError::UnknownStream`], [`HostError::Unowned`], [`HostError::StreamOpen`],
    /// [`HostError::BadVmid`], or a failure of the hardware.
    pub fn open_stage2(&mut self, sid: StreamId, binding: &Stage2Binding) -> Result<(), HostError> {
        self.check(sid, binding)?;
        match self.streams.get(sid)?.state() {
            State::Abort => {}
            State::Watch => self.silence(sid)?,
            State::Stage2 | State::Nested => return Err(HostError::StreamOpen(sid)),
        }
        self.open(sid, *binding, State::Stage2)
    }

    /// Whether the owner of `sid` may have its stream bound to `binding`.
    fn check(&mut self, sid: StreamId, binding: &Stage2Binding) -> Result<(), HostError> {
        let Vmid(vmid) = binding.vmid;
        if vmid == 0 || binding.vmid == Vmid::WATCH || (vmid > 0xff && !self.caps.vmid16()) {
            return Err(HostError::BadVmid(binding.vmid));
        }
        let stream = self.streams.get(sid)?;
        let owner = stream.owner();
        if owner.is_none() {
            return Err(HostError::Unowned(sid));
        }
        // One VM, one VMID, one stage 2: STEs that share a VMID must not differ (section 5.2.1).
        let related = |(theirs, other): (Option<VmIndex>, Stage2Binding)| {
            theirs == owner || other.vmid == binding.vmid
        };
        if self.open_streams().filter(|open| related(*open)).any(|open| open != (owner, *binding)) {
            return Err(HostError::BadVmid(binding.vmid));
        }
        Ok(())
    }

    /// Does with a stream what its owner's own stream table says, on top of `binding`, while the owner runs.
    /// Its STE and what belongs to it are forgotten in any case; but a caller that changes nothing has to
    /// [`Smmu::sync`] before that is certain.
    ///
    /// A closed stream that is watched stays watched unless this opens it (C6), and a muted one muted.
    ///
    /// # Errors
    ///
    /// [`HostError::UnknownStream`], [`HostError::Unowned`], [`HostError::BadVmid`], or a failure of the
    /// hardware.
    pub fn configure(
        &mut self,
        sid: StreamId,
        binding: &Stage2Binding,
        to: &Configuration,
    ) -> Result<(), HostError> {
        self.check(sid, binding)?;
        let stream = self.streams.get(sid)?;
        let (state, binding, stage1, refuses) = match *to {
            Configuration::Abort => (State::Abort, None, None, false),
            Configuration::Refuse => (State::Watch, Some(self.watch), None, true),
            Configuration::Stage2 => (State::Stage2, Some(*binding), None, false),
            Configuration::Nested(stage1) => (State::Nested, Some(*binding), Some(stage1), false),
        };
        if stream.state() == State::Watch && !stream.refuses() && !state.is_open() {
            return Ok(());
        }
        let (recording, cfgi) = (stream.recording(state, stream.is_muted()), stream.cfgi());
        let old = self.current_ste(sid)?;
        let new = self.ste(state, binding, stage1, recording);
        if old == new {
            self.streams.get(sid)?.change(state, binding, stage1, refuses, cfgi);
            return self.run(sid, &[Step::Cfgi]);
        }
        if new == Ste::Abort {
            self.run(sid, Plan::close(&new.encode()).steps())?;
            let stream = self.streams.get(sid)?;
            stream.change(state, binding, stage1, refuses, stream.cfgi());
            return Ok(());
        }
        let plan = match Plan::between(&old, &new) {
            // A close of the VM leaves words behind that only this plan is sure to write.
            _ if old == Ste::Abort => Plan::open(&new.encode()),
            Some(plan) => plan,
            None => {
                self.run(sid, Plan::close(&Ste::Abort.encode()).steps())?;
                let stream = self.streams.get(sid)?;
                stream.change(State::Abort, None, None, false, stream.cfgi());
                Plan::open(&new.encode())
            }
        };
        // Before the first store, as in `open`.
        let stream = self.streams.get(sid)?;
        stream.change(state, binding, stage1, refuses, stream.cfgi() + plan.cfgi_before_change());
        self.run(sid, plan.steps())
    }

    /// Issues one of the commands by which a guest invalidates what belongs to its stage 1. It is complete
    /// after the next [`Smmu::sync`].
    ///
    /// # Errors
    ///
    /// [`HostError::Foreign`] if the command is of another kind, or is not about `owner` and `vmid`; or a
    /// failure of the hardware.
    pub fn relay(&mut self, owner: VmIndex, vmid: Vmid, command: Command) -> Result<(), HostError> {
        let allowed = match command {
            Command::CfgiCd { sid, .. } | Command::CfgiCdAll { sid } => {
                self.streams.find(sid).is_some_and(|stream| stream.owner() == Some(owner))
            }
            Command::TlbiNhAll { vmid: tag }
            | Command::TlbiNhAsid { vmid: tag, .. }
            | Command::TlbiNhVa { vmid: tag, .. }
            | Command::TlbiNhVaa { vmid: tag, .. } => tag == vmid && vmid != Vmid::WATCH,
            Command::Sync => true,
            _ => false,
        };
        if !allowed {
            return Err(HostError::Foreign(command.opcode()));
        }
        self.commands.push(&self.hw, command)
    }

    /// Waits until every command issued so far is complete.
    ///
    /// # Errors
    ///
    /// A failure of the hardware.
    pub fn sync(&mut self) -> Result<(), HostError> {
        self.commands.sync(&self.hw)
    }

    /// Invalidates what the SMMU may have cached of a VM's stage 2, and waits until it has.
    ///
    /// # Errors
    ///
    /// A failure of the hardware.
    pub fn invalidate(&mut self, vmid: Vmid, invalidation: &Invalidation) -> Result<(), HostError> {
        let (hw, commands) = (&self.hw, &mut self.commands);
        invalidation.commands(vmid, &self.caps, |command| commands.push(hw, command))?;
        commands.sync(hw)
    }

    /// Takes at most `budget` event records, accounts for them, and shows each to `sink` together with
    /// whose business it is. Streams above their budgets are silenced, those that were long enough are
    /// heard again: call it on the event interrupt, and now and then without one.
    ///
    /// # Errors
    ///
    /// A failure of the hardware.
    pub fn drain_events(
        &mut self,
        budget: u32,
        sink: &mut dyn FnMut(&Event, Concern),
    ) -> Result<Drained, HostError> {
        self.unmute_due()?;
        let (waiting, lost) = self.events.poll(&self.hw);
        self.dropped += u64::from(lost);
        let records = waiting.min(budget);
        let mut outcome = Ok(());
        for _ in 0..records {
            let sequence = self.events.drained();
            let event = self.events.take(&self.hw);
            let now_us = self.hw.now_us();
            let (concern, verdict) = match self.streams.find(event.sid) {
                Some(stream) => {
                    let (owner, verdict) = stream.record(&event, sequence, now_us, &self.budgets);
                    let is_owners = stream.is_owners(&event, self.format.ipa_bits());
                    (Concern { owner, is_owners }, verdict)
                }
                None => (Concern::default(), Verdict::Keep),
            };
            sink(&event, concern);
            outcome = match verdict {
                Verdict::Keep => Ok(()),
                Verdict::Mute => self.set_recording(event.sid, Some(now_us + self.budgets.mute_us)),
                Verdict::Deafen => self.deafen(event.sid),
                Verdict::Silence => self.give_up_watching(event.sid),
            };
            if outcome.is_err() {
                break;
            }
        }
        if records > 0 {
            self.events.acknowledge(&self.hw);
        }
        // What arrived before the new CONS was written raises no interrupt any more (section 3.18).
        let more = self.events.pending(&self.hw) > 0;
        outcome.map(|()| Drained { records, more })
    }

    /// Whether [`Smmu::drain_events`] would find a record.
    pub fn has_events(&self) -> bool {
        self.events.pending(&self.hw) > 0
    }

    /// Looks at the global errors and acknowledges them. Lost events are only counted.
    ///
    /// # Errors
    ///
    /// [`HostError::Command`] or [`HostError::ServiceFailure`], after which the SMMU is of no more use.
    pub fn service_gerror(&mut self) -> Result<(), HostError> {
        let active = active_errors(&self.hw);
        self.gerror |= active.get();
        if active.is_set(GERROR::CMDQ_ERR) {
            return Err(self.commands.error(&self.hw));
        }
        if active.is_set(GERROR::SFM_ERR) {
            return Err(HostError::ServiceFailure);
        }
        // QEMU reports a full queue this way, without ever toggling OVFLG.
        self.dropped += u64::from(active.is_set(GERROR::EVENTQ_ABT_ERR));
        if active.get() != 0 {
            self.hw.write32(offset::GERRORN, self.hw.read32(offset::GERRORN) ^ active.get());
        }
        Ok(())
    }

    /// How often each command was issued, by name, without those never used.
    pub fn commands(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.commands
            .issued()
            .filter(|(_, count)| *count != 0)
            .map(|(opcode, count)| (opcode.name(), count))
    }

    /// Totals.
    pub fn counters(&self) -> Counters {
        Counters {
            syncs: self.commands.issued_of(Opcode::Sync),
            drained: self.events.drained(),
            dropped: self.dropped,
            gerror: self.gerror,
        }
    }

    /// Opens a stream in *abort* to `state`.
    pub(crate) fn open(
        &mut self,
        sid: StreamId,
        binding: Stage2Binding,
        state: State,
    ) -> Result<(), HostError> {
        let ste = self.ste(state, Some(binding), None, Recording::On);
        let stream = self.streams.get(sid)?;
        // Before the first store: if the hardware fails half-way, the stream counts as open. Of the
        // plan's two CFGI the second only makes certain what the last store already allowed.
        stream.enter(state, Some(binding), stream.cfgi() + 1);
        self.run(sid, Plan::open(&ste.encode()).steps())
    }

    /// The owner and the binding of each open stream.
    pub(crate) fn open_streams(
        &self,
    ) -> impl Iterator<Item = (Option<VmIndex>, Stage2Binding)> + '_ {
        let open = self.streams.iter().filter(|stream| stream.state().is_open());
        open.filter_map(|stream| Some((stream.owner(), stream.binding?)))
    }

    pub(crate) fn watch_binding(&self) -> Stage2Binding {
        self.watch
    }

    pub(crate) fn watch_budget(&self) -> u32 {
        self.budgets.watch_events
    }

    /// The STE of a stream in `state`.
    fn ste(
        &self,
        state: State,
        binding: Option<Stage2Binding>,
        stage1: Option<Stage1Config>,
        recording: Recording,
    ) -> Ste {
        let record = match recording {
            Recording::On => true,
            Recording::Off => false,
            Recording::Abort => return Ste::Abort,
        };
        let Some(Stage2Binding { root, format, vmid }) = binding else {
            return Ste::Abort;
        };
        let stage2 = Stage2Config { vmid, root, format, record, stall_disable: self.caps.stalls() };
        match (state, stage1) {
            (State::Abort, _) => Ste::Abort,
            (State::Nested, Some(stage1)) => Ste::Nested(stage1, stage2),
            _ => Ste::Stage2(stage2),
        }
    }

    /// The STE of a stream as it is now.
    fn current_ste(&mut self, sid: StreamId) -> Result<Ste, HostError> {
        let stream = self.streams.get(sid)?;
        let (state, binding) = (stream.state(), stream.binding);
        let (stage1, recording) = (stream.stage1, stream.recording(state, stream.is_muted()));
        Ok(self.ste(state, binding, stage1, recording))
    }

    /// Executes steps of a plan for one stream.
    pub(crate) fn run(&mut self, sid: StreamId, steps: &[Step]) -> Result<(), HostError> {
        let stream = self.streams.get(sid)?;
        for step in steps {
            match *step {
                Step::Store { word, value } => {
                    self.hw.store(stream.entry.add(u64::from(word) * 8), value)
                }
                Step::Publish => self.hw.publish(),
                Step::Cfgi => {
                    stream.count_cfgi();
                    self.commands.push(&self.hw, Command::CfgiSte { sid, leaf: true })?;
                }
                Step::Sync => self.commands.sync(&self.hw)?,
            }
        }
        Ok(())
    }

    /// Switches the recording of an open stream's faults off until a time, or on again.
    fn set_recording(
        &mut self,
        sid: StreamId,
        muted_until_us: Option<u64>,
    ) -> Result<(), HostError> {
        let old = self.current_ste(sid)?;
        self.record_instead_of(sid, &old, muted_until_us.is_some())?;
        let from = self.events.frontier(&self.hw);
        self.streams.get(sid)?.set_muted(muted_until_us, from);
        Ok(())
    }

    /// Makes a muted stream abort until it is heard again.
    fn deafen(&mut self, sid: StreamId) -> Result<(), HostError> {
        let old = self.current_ste(sid)?;
        self.streams.get(sid)?.set_unmutable();
        self.record_instead_of(sid, &old, true)
    }

    /// Replaces the STE `old` of an open stream by the one it has when it is muted, or when it is not.
    fn record_instead_of(
        &mut self,
        sid: StreamId,
        old: &Ste,
        muted: bool,
    ) -> Result<(), HostError> {
        let stream = self.streams.get(sid)?;
        let (state, binding, stage1) = (stream.state(), stream.binding, stream.stage1);
        let recording = stream.recording(state, muted);
        let new = self.ste(state, binding, stage1, recording);
        if new == Ste::Abort && *old != new {
            self.run(sid, Plan::close(&new.encode()).steps())?;
        } else if let Some(plan) = Plan::between(old, &new) {
            self.run(sid, plan.steps())?;
        }
        Ok(())
    }

    fn unmute_due(&mut self) -> Result<(), HostError> {
        let now_us = self.hw.now_us();
        for _ in 0..MAX_STREAMS {
            let Some(sid) =
                self.streams.iter().find(|stream| stream.is_mute_over(now_us)).map(Stream::sid)
            else {
                break;
            };
            self.set_recording(sid, None)?;
        }
        Ok(())
    }

    fn give_up_watching(&mut self, sid: StreamId) -> Result<(), HostError> {
        self.silence(sid)?;
        self.streams.get(sid)?.set_silenced();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
