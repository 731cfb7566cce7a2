//! The closing of a VM's streams, whatever the cause: the VM ends, or another kernel or driver takes over.
//!
//! [`begin`] may be called on any CPU, ends the VM, and returns with the streams closed (C4). [`advance`] runs on
//! the VM's first CPU once its guest code has ended, and takes the VM from watch to its next start or to its rest.
//! [`hand_over`] is called on a CPU of a VM that runs on, and returns when the guest may go on.

use core::fmt::Write as _;
use core::sync::atomic::Ordering;

use heapless::{Deque, String, Vec};
use log::Level;
use platform::bundle::{MAX_FUNCTIONS, MAX_VMS};
use platform::pcie::Bdf;
use platform::report::{
    Cause, MAX_MOMENTS, Moment, Quiesced, Record, Teardown, TeardownFunction, TeardownMoment, What,
};
use smmu::error::HostError;
use smmu::streams::Stream;
use spin::Mutex;

use crate::arch::{firmware, pmu, timer};
use crate::console::CONSOLE;
use crate::far::far;
use crate::life::{End, HandOver, Life, Next, Turn};
use crate::lines::Say;
use crate::machine::{self, Hypervisor, gic, hypervisor};
use crate::ownership::Owned;
use crate::pci::{self, Request, ResetPolicy, Scope};
use crate::vm::{self, Past, Vm};
use crate::{interrupts, report, takeover};

/// How long devices that have no reset are watched.
const WATCH_US: u64 = 250_000;
/// How often the event queue is looked at while a CPU does nothing but watch.
const LOOK_US: u64 = 1_000;

/// The most closes of a VM that are remembered.
pub const MAX_TEARDOWNS: usize = 8;

/// When a VM's streams were closed, and why, and what followed.
#[derive(Debug)]
pub struct Teardowns {
    last: Deque<Noted, MAX_TEARDOWNS>,
    /// How many there were before the first in `last`.
    forgotten: usize,
}

/// Those of every VM: in one place, because they are too large to be handed about on a stack.
static TEARDOWNS: [Mutex<Teardowns>; MAX_VMS] = [const { Mutex::new(Teardowns::new()) }; MAX_VMS];

/// One close, and what is reported of it.
#[derive(Debug)]
pub struct Noted {
    began_us: u64,
    teardown: Teardown,
    quiesced: Vec<Quiesced, MAX_FUNCTIONS>,
    moments: Vec<Moment, MAX_MOMENTS>,
}

impl Noted {
    /// The report's record number `index` of it, if it has so many; it is the one number `teardown` of its VM there.
    pub fn record(&self, index: usize, teardown: u32) -> Option<Record> {
        let Some(index) = index.checked_sub(1) else {
            return Some(Record::Teardown(self.teardown.clone()));
        };
        let vm = self.teardown.vm.clone();
        if let Some(function) = self.quiesced.get(index).cloned() {
            return Some(Record::TeardownFunction(TeardownFunction { vm, teardown, function }));
        }
        let moment = self.moments.get(index - self.quiesced.len()).cloned()?;
        Some(Record::TeardownMoment(TeardownMoment { vm, teardown, moment }))
    }
}

/// Names one close of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TeardownId(usize);

impl Teardowns {
    const fn new() -> Self {
        Self { last: Deque::new(), forgotten: 0 }
    }

    /// Those of VM number `index`.
    pub fn of(index: usize) -> &'static Mutex<Self> {
        static POINTER: &[Mutex<Teardowns>; MAX_VMS] = &TEARDOWNS;
        &far(&POINTER)[index]
    }

    /// The last ones, oldest first.
    pub fn last(&self) -> impl Iterator<Item = TeardownId> + use<> {
        (self.forgotten..self.forgotten + self.last.len()).map(TeardownId)
    }

    fn add(&mut self, began_us: u64, teardown: Teardown) -> TeardownId {
        if self.last.is_full() {
            self.last.pop_front();
            self.forgotten += 1;
        }
        let noted = Noted { began_us, teardown, quiesced: Vec::new(), moments: Vec::new() };
        // There is room now.
        let _ = self.last.push_back(noted);
        TeardownId(self.forgotten + self.last.len() - 1)
    }

    /// The close with which the VM's `end` began.
    fn of_end(&self, end: End) -> Option<TeardownId> {
        // A hand-over that was under way may have been noted after it, but never has the same cause.
        let index = self.last.iter().rposition(|noted| noted.teardown.cause == end.cause)?;
        Some(TeardownId(self.forgotten + index))
    }

    /// The last close.
    fn newest(&self) -> Option<TeardownId> {
        Some(TeardownId(self.forgotten + self.last.len().checked_sub(1)?))
    }

    /// One of [`Teardowns::last`], unless it was forgotten meanwhile.
    pub fn get(&mut self, TeardownId(number): TeardownId) -> Option<&mut Noted> {
        self.last.get_mut(number.checked_sub(self.forgotten)?)
    }

    /// Adds what happened at `at_us`, on EL2's clock, to one that is not forgotten yet.
    fn mark(&mut self, id: TeardownId, at_us: u64, what: What, device: Option<Bdf>, count: u64) {
        let Some(Noted { began_us, moments, .. }) = self.get(id) else { return };
        let device = device.map(address).unwrap_or_default();
        if let Some(known) = moments.iter_mut().find(|m| m.what == what && m.device == device) {
            known.count = count;
            return;
        }
        // What does not fit is missing in a picture, nothing else.
        let _ =
            moments.push(Moment { at_us: at_us.saturating_sub(*began_us), what, device, count });
    }

    /// Adds what became of functions.
    fn note_quiesced(&mut self, id: TeardownId, outcomes: &[pci::Quiesced]) {
        let now_us = timer::now_us();
        for outcome in outcomes {
            self.mark(id, now_us, What::Quiesced, Some(outcome.function), 0);
            if let Some(Noted { quiesced, .. }) = self.get(id) {
                // No more functions than there is room for.
                let _ = quiesced.push(record(outcome));
            }
        }
    }
}

/// `BB:DD.F`, which has seven characters.
fn address(function: Bdf) -> String<8> {
    let mut address = String::new();
    let _ = write!(address, "{function}");
    address
}

/// Whether the VM's CPUs have to leave guest code for good.
pub fn is_stopping(vm: &Vm) -> bool {
    vm.stopping.load(Ordering::Acquire)
}

/// Ends `vm` because of `cause`, unless it is ending already. When this returns, its streams are closed.
pub fn begin(vm: &Vm, cause: Cause) {
    begin_with(vm, cause, Next::after(cause, vm.config.on_exit));
}

/// Ends `vm` because of `cause`; `next` follows.
pub fn begin_with(vm: &Vm, cause: Cause, next: Next) {
    {
        let mut life = vm.life.lock();
        if !life.end(End { cause, next }) {
            // The run's end is the operator's doing as well, and changes nothing that is under way.
            if cause == Cause::Operator && !life.overrule(next) {
                log::debug!("{}: nothing to end", vm.name());
            }
            return;
        }
        // Whoever finds the VM ending finds that its CPUs have to leave as well.
        vm.stopping.store(true, Ordering::Release);
    }
    match close(vm, cause) {
        Ok(_) => vm.life.lock().closed(),
        Err(error) => quarantine(vm, error),
    }
    kick_all(vm);
}

fn kick_all(vm: &Vm) {
    for vcpu in &vm.vcpus {
        gic().kick(vcpu.cpu);
    }
}

/// Nothing of this VM may be used again: there is no proof that its devices have stopped (C3).
fn quarantine(vm: &Vm, why: impl core::fmt::Display) {
    let text = format_args!("{}: {why}; its memory is never used again", vm.name());
    vm.say(Level::Error, Say::Always, text);
    let mut life = vm.life.lock();
    *life = Life::Crashed;
    vm.stopping.store(true, Ordering::Release);
}

/// Closes the VM's streams, begins to watch them, and remembers it for the report. The SMMU that the guest sees is in its
/// state after reset then, unless the guest itself is in the middle of disabling it.
fn close(vm: &Vm, cause: Cause) -> Result<TeardownId, HostError> {
    let iommus = hypervisor().iommus;
    let began_us = timer::now_us();
    // Held until it is reset: no CPU of the VM opens a stream by it meanwhile.
    let smmu = vm.smmu.as_ref().map(|smmu| (smmu, smmu.lock()));
    let counter = pmu::start();
    let closed = iommus.close(vm.index, vm.vmid)?;
    let instructions = counter.map(|counter| counter.count());
    let closed_us = timer::now_us();
    iommus.watch_closed(vm.index)?;
    let watched_us = timer::now_us();
    if let Some((smmu, mut state)) = smmu
        && cause != Cause::SmmuDisable
    {
        smmu.reset(&mut state, true);
    }
    note_armed(vm);
    let streams = closed.iter().map(smmu::teardown::Closed::streams).sum();
    let id = note(vm, cause, streams, began_us, instructions);
    let mut teardowns = vm.teardowns.lock();
    teardowns.mark(id, closed_us, What::Closed, None, streams.into());
    teardowns.mark(id, watched_us, What::Watched, None, 0);
    Ok(id)
}

fn is_armed(owned: &Owned) -> bool {
    let bus = hypervisor().pci;
    bus.topology.get(owned.address).is_some_and(|f| pci::is_armed(&bus.hardware, f))
}

/// Notes which functions can still do DMA (C6).
fn note_armed(vm: &Vm) {
    for owned in vm.functions.iter().filter(|owned| is_armed(owned)) {
        if let Some(iommu) = hypervisor().iommus.find(owned.smmu)
            && let Some(stream) = iommu.lock().stream_mut(owned.sid)
        {
            stream.set_armed_at_close();
        }
    }
}

/// Remembers a close for the report.
fn note(
    vm: &Vm,
    cause: Cause,
    streams: u32,
    began_us: u64,
    instructions: Option<u64>,
) -> TeardownId {
    let text = format_args!("{}: {}, {streams} streams closed", vm.name(), cause.name());
    let say = if is_stopping(vm) { Say::Always } else { Say::IfRoom };
    vm.say(Level::Info, say, text);
    let teardown = Teardown { vm: vm.name().clone(), cause, streams, instructions };
    vm.teardowns.lock().add(began_us, teardown)
}

/// Closes the streams of a VM that runs on, because of `cause`, and stops its devices as the cause asks for. Returns
/// whether the guest goes on: if not, the VM ends, and nothing may tell the guest that the step completed (C4).
///
/// Afterwards every virtual bus master bit is 0, the streams are watched until their budget is spent, and they open
/// again only on evidence (C5). Called on a CPU of `vm`, inside a trap, while other CPUs of it may run anywhere, with
/// none of its locks held. It takes as long as the functions take to stop, see [`pci::quiesce`], and a watch more
/// where one that is armed has no reset.
#[must_use]
pub fn hand_over(vm: &Vm, cause: Cause) -> bool {
    loop {
        let turn = vm.life.lock().hand_over();
        match turn {
            Turn::Mine => break,
            Turn::Wait => core::hint::spin_loop(),
            Turn::Ended => return false,
        }
    }
    match close_and_stop(vm, cause) {
        Ok(None) => {}
        Ok(Some(restless)) => quarantine(vm, restless),
        Err(error) => quarantine(vm, error),
    }
    // A driver that gives its SMMU up may be a kernel that starts another one.
    takeover::suspect(vm);
    let goes_on = vm.life.lock().handed_over();
    if !goes_on {
        vm.say(Level::Info, Say::Always, format_args!("{}: ended during its hand-over", vm.name()));
        kick_all(vm);
    }
    goes_on
}

/// Returns the first of the functions that `cause` asks to stop of which it is not sure that it did.
fn close_and_stop(vm: &Vm, cause: Cause) -> Result<Option<Restless>, HostError> {
    let hardware = &hypervisor().pci.hardware;
    // What the last watch heard was after its own cause.
    hypervisor().iommus.settle();
    tell_late_of(vm);
    let (id, scope, mut outcomes, mut bus) = match HandOver::after(cause, vm.config.on_crash_kexec)
    {
        HandOver::Preserve => {
            note(vm, cause, 0, timer::now_us(), None);
            return Ok(None);
        }
        HandOver::CloseOnly => {
            close(vm, cause)?;
            vm.pci.lock().close(hardware, |_| true);
            return Ok(None);
        }
        HandOver::CloseFirst(scope) => {
            let id = close(vm, cause)?;
            let mut bus = vm.pci.lock();
            bus.withdraw(&mut &vm.space);
            (id, scope, stop(vm, scope, forgets), bus)
        }
        HandOver::QuiesceFirst => {
            let mut bus = vm.pci.lock();
            bus.withdraw(&mut &vm.space);
            note_armed(vm);
            let outcomes = stop(vm, Scope::All, forgets);
            (close(vm, cause)?, Scope::All, outcomes, bus)
        }
    };
    bus.close(hardware, |_| true);
    if scope == Scope::All {
        let_linger(vm);
    }
    listen(vm);
    outcomes.extend(stop(vm, scope, |request| !forgets(request)));
    bus.quiesced(&mut &vm.space, &outcomes);
    drop(bus);
    vm.teardowns.lock().note_quiesced(id, &outcomes);
    Ok(restless(&outcomes))
}

/// Lets those functions master the bus that cannot be made to forget what they were told, and were told something: what
/// they still do is heard only so, and their streams are closed. A kernel that kept them from it stopped nothing else.
fn let_linger(vm: &Vm) {
    let Hypervisor { pci: bus, .. } = hypervisor();
    for (owned, past) in vm.functions.iter().zip(vm.pasts.lock().iter()) {
        if matches!(past, Past::Used | Past::Noisy)
            && !forgets(&vm::request(owned))
            && let Some(function) = bus.topology.get(owned.address)
        {
            pci::bus_master_on(&bus.hardware, function);
        }
    }
}

/// Watches functions that could do DMA and cannot be made to forget it, if there are any: time for culprits to show.
fn listen(vm: &Vm) {
    let requests = vm::requests(&vm.functions);
    let lingers = |(owned, request): (&Owned, &Request)| is_armed(owned) && !forgets(request);
    if !vm.functions.iter().zip(&requests).any(lingers) {
        return;
    }
    let start_us = timer::now_us();
    let mut look_us = start_us;
    while timer::now_us() - start_us < WATCH_US {
        if timer::now_us() >= look_us {
            hypervisor().iommus.settle();
            look_us += LOOK_US;
        }
        core::hint::spin_loop();
    }
}

/// Stops those functions of the VM for which `chosen` holds, and remembers what is known of them then (C5).
fn stop(vm: &Vm, scope: Scope, chosen: fn(&Request) -> bool) -> Vec<pci::Quiesced, MAX_FUNCTIONS> {
    let Hypervisor { iommus, pci: bus, .. } = hypervisor();
    let requests: Vec<Request, MAX_FUNCTIONS> =
        vm::requests(&vm.functions).into_iter().filter(chosen).collect();
    let outcomes = pci::quiesce(&bus.hardware, bus.topology, &requests, scope);
    iommus.settle();
    let mut pasts = vm.pasts.lock();
    for (owned, past) in vm.functions.iter().zip(pasts.iter_mut()) {
        let outcome = outcomes.iter().find(|outcome| outcome.function == owned.address);
        let Some(outcome) = outcome else { continue };
        *past = match outcome.how {
            how if how.is_reset() => Past::Clean,
            // What was heard may be heard again; and who was to be reset was not listened to.
            pci::How::BusMaster if was_heard(owned) || forgets(&vm::request(owned)) => Past::Noisy,
            pci::How::BusMaster if outcome.armed => Past::Silent,
            // Left alone, or not heard because it could not master the bus: what it knew it knows.
            _ => *past,
        };
    }
    outcomes
}

/// Whether the function tried anything during its last watch.
fn was_heard(owned: &Owned) -> bool {
    let iommu = hypervisor().iommus.find(owned.smmu);
    iommu.is_some_and(|iommu| {
        iommu.lock().stream_mut(owned.sid).is_some_and(|stream| stream.stopped_in_watch().count > 0)
    })
}

/// A function for which there is no proof that it has stopped.
struct Restless(pci::Quiesced);

impl core::fmt::Display for Restless {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self(outcome) = self;
        let at = outcome.function;
        if outcome.unreset {
            // What helps where that is the device's way: the manifest can say that bus mastering is enough.
            write!(f, "{at} was not reset by what it has for that (see `reset = \"bus-master\"`)")
        } else if !outcome.clean {
            write!(f, "{at} does not stop")
        } else {
            write!(f, "{at} does not come back from its reset")
        }
    }
}

/// The first function for which there is no proof (C3).
fn restless(outcomes: &[pci::Quiesced]) -> Option<Restless> {
    outcomes.iter().find(|outcome| !(outcome.clean && outcome.usable)).copied().map(Restless)
}

fn record(outcome: &pci::Quiesced) -> Quiesced {
    let how = String::try_from(outcome.how.name()).unwrap_or_default();
    Quiesced { address: address(outcome.function), how, clean: outcome.clean }
}

/// Whether the function can be made to forget what it was told, so that it need not be watched.
fn forgets(request: &Request) -> bool {
    let topology = hypervisor().pci.topology;
    request.policy == ResetPolicy::Auto
        && topology.get(request.function).is_some_and(|f| topology.has_reset(f))
}

/// Does what is left to do for `vm` on its first CPU, which runs no guest code.
pub fn advance(vm: &Vm) {
    let life = *vm.life.lock();
    match life {
        Life::Stopping(end) if vm.is_parked() && stop_dead(vm, end, forgets) => {
            reset(vm);
            let_linger(vm);
            let until_us = timer::now_us() + WATCH_US;
            // Whatever the operator wanted meanwhile stays.
            let mut life = vm.life.lock();
            if let Life::Stopping(end) = *life {
                *life = Life::Watching { end, until_us };
            }
            drop(life);
            timer::alarm(until_us);
        }
        Life::Watching { end, until_us } if timer::now_us() >= until_us => end_watch(vm, end),
        Life::Watching { until_us, .. } => timer::alarm(until_us),
        _ => {}
    }
    finish_run();
}

/// Stops those functions of a VM without a running CPU for which `chosen` holds; returns whether they are quiet.
fn stop_dead(vm: &Vm, end: End, chosen: fn(&Request) -> bool) -> bool {
    let outcomes = stop(vm, Scope::All, chosen);
    vm.pci.lock().quiesced(&mut &vm.space, &outcomes);
    let mut teardowns = vm.teardowns.lock();
    if let Some(id) = teardowns.of_end(end) {
        teardowns.note_quiesced(id, &outcomes);
    }
    drop(teardowns);
    match restless(&outcomes) {
        None => true,
        Some(restless) => {
            quarantine(vm, restless);
            false
        }
    }
}

/// Puts everything that the VM sees of the machine back to its state at a cold boot.
fn reset(vm: &Vm) {
    let rest = core::mem::take(&mut *vm.uart.lock()).flush();
    if let Some(line) = rest {
        CONSOLE.line(format_args!("[{}] {line}", vm.name()));
    }
    vm.vgic.lock().reset();
    for vcpu in &vm.vcpus {
        *vcpu.power.lock() = crate::vm::Power::Off;
    }
}

/// The watch is over: silence the streams, name what was late, and go on to what follows.
fn end_watch(vm: &Vm, end: End) {
    let iommus = hypervisor().iommus;
    if !stop_dead(vm, end, |request| !forgets(request)) {
        return;
    }
    for owned in &vm.functions {
        let Some(iommu) = iommus.find(owned.smmu) else { continue };
        let silenced = iommu.lock().silence(owned.sid);
        if let Err(error) = silenced {
            return quarantine(vm, error);
        }
    }
    tell_late_of(vm);
    mark_end(vm, end, What::Ended);
    // Only now: it makes the functions stop, and those without a reset were to show what they still do.
    vm.pci.lock().reset(&hypervisor().pci.hardware, &mut &vm.space);
    // Other VMs' interrupts may be this CPU's to serve.
    vm.ram.scrub(|| interrupts::service(None));
    mark_end(vm, end, What::Scrubbed);
    // What the operator wants while its images are loaded keeps it from starting.
    while !vm.life.lock().rest() {
        match vm.boot() {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                // Whatever it opened before that.
                let _ = iommus.close(vm.index, vm.vmid);
                return quarantine(vm, error);
            }
        }
    }
}

fn mark_end(vm: &Vm, end: End, what: What) {
    let mut teardowns = vm.teardowns.lock();
    if let Some(id) = teardowns.of_end(end) {
        teardowns.mark(id, timer::now_us(), what, None, 0);
    }
}

/// The stream of a function of `vm` is open again, on whatever evidence: its watch is over.
pub fn reopened(vm: &Vm, owned: &Owned) {
    tell_late(vm, owned);
    let mut teardowns = vm.teardowns.lock();
    if let Some(id) = teardowns.newest() {
        teardowns.mark(id, timer::now_us(), What::Reopened, Some(owned.address), 0);
    }
}

/// Names the functions of VMs that run on which did DMA after a close.
pub fn tell_all_late() {
    // The others' are named when their watch ends.
    let watched = |vm: &&Vm| matches!(*vm.life.lock(), Life::Watching { .. });
    machine::vms().filter(|vm| !watched(vm)).for_each(tell_late_of);
}

fn tell_late_of(vm: &Vm) {
    vm.functions.iter().for_each(|owned| tell_late(vm, owned));
}

/// Names a function that did DMA after the last close of its VM, if it did so since it was named (C6).
fn tell_late(vm: &Vm, owned: &Owned) {
    let Hypervisor { iommus, pci: bus, .. } = hypervisor();
    let Some(iommu) = iommus.find(owned.smmu) else { return };
    let tell = |stream: &mut Stream| Some((stream.tell_stopped()?, stream.stopped_at_us()?));
    let Some((stopped, at_us)) = iommu.lock().stream_mut(owned.sid).and_then(tell) else { return };
    let mut teardowns = vm.teardowns.lock();
    let Some(id) = teardowns.newest() else { return };
    teardowns.mark(id, at_us, What::Late, Some(owned.address), stopped.count);
    if stopped.silenced {
        teardowns.mark(id, timer::now_us(), What::Silenced, Some(owned.address), 0);
    }
    let Some(Noted { teardown: Teardown { cause, .. }, .. }) = teardowns.get(id) else { return };
    let cause = *cause;
    drop(teardowns);
    let Some(first) = stopped.first else { return };
    let function = bus.topology.get(owned.address);
    let (vendor, device) = function.map_or((0, 0), |f| (f.vendor, f.device));
    let verb = if stopped.write == Some(true) { "wrote" } else { "read" };
    let silenced = if stopped.silenced { ", then silenced" } else { "" };
    let text = format_args!(
        "late DMA: {} ({vendor:04x}:{device:04x}) of {} {verb} {first} after {}, {} stopped{silenced}",
        owned.address,
        vm.name(),
        cause.name(),
        stopped.count
    );
    vm.say(Level::Warn, Say::IfRoom, text);
}

/// Ends the run when guest 0 is off, after every other VM was torn down, or when no VM runs any more.
fn finish_run() {
    if machine::vms().next().is_some_and(|guest| guest.life.lock().is_settled()) {
        for vm in machine::vms() {
            begin_with(vm, Cause::Operator, Next::Off);
        }
    }
    let settled = machine::vms().all(|vm| vm.life.lock().is_settled());
    if settled && report::claim_last() {
        report::send();
        firmware::system_off();
    }
}
