//! The end of a VM: streams closed first, devices stopped, then what is left to do when none of its CPUs runs.
//!
//! [`begin`] may be called on any CPU and returns with the streams closed (C4). [`advance`] runs on the VM's
//! first CPU once its guest code has ended, and takes the VM from watch to its next start or to its rest.

use core::fmt::Write as _;
use core::sync::atomic::Ordering;

use heapless::{String, Vec};
use platform::bundle::MAX_FUNCTIONS;
use platform::report::{Cause, Quiesced, Teardown};
use smmu::error::HostError;
use smmu::streams::{State, Stopped};

use crate::arch::{firmware, pmu, timer};
use crate::console::CONSOLE;
use crate::life::{Life, Next};
use crate::machine::{self, Hypervisor, gic, hypervisor};
use crate::ownership::Owned;
use crate::pci::{self, Request, ResetPolicy, Scope};
use crate::vm::{self, Past, Vm};
use crate::{interrupts, report};

/// How long the devices of a dead VM are watched.
const WATCH_US: u64 = 250_000;

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
        if *life != Life::Running {
            // The run's end is the operator's doing as well, and changes nothing that is under way.
            if cause == Cause::Operator && !life.overrule(next) {
                log::debug!("{}: nothing to end", vm.name());
            }
            return;
        }
        *life = Life::Closing { cause, next };
    }
    vm.stopping.store(true, Ordering::Release);
    let counter = pmu::start();
    let closed = close(vm);
    let instructions = counter.map(|counter| counter.count());
    match closed {
        Ok(streams) => {
            note(vm, cause, streams, instructions);
            closed_for(vm);
        }
        Err(error) => quarantine(vm, error),
    }
    for vcpu in &vm.vcpus {
        gic().kick(vcpu.cpu);
    }
}

/// The streams are closed: the VM's CPUs may go on with its end.
fn closed_for(vm: &Vm) {
    let mut life = vm.life.lock();
    if let Life::Closing { cause, next } = *life {
        *life = Life::Stopping { cause, next };
    }
}

/// Nothing of this VM may be used again: there is no proof that its devices have stopped (C3).
fn quarantine(vm: &Vm, why: impl core::fmt::Display) {
    log::error!("{}: {why}; its memory is never used again", vm.name());
    *vm.life.lock() = Life::Crashed;
}

/// Closes the VM's streams and begins to watch them; returns how many there were.
fn close(vm: &Vm) -> Result<usize, HostError> {
    let Hypervisor { iommus, pci: bus, .. } = hypervisor();
    let open = iommus.streams_of(vm.index, State::Stage2);
    let _closed = iommus.close(vm.index, vm.vmid)?;
    for &(number, sid) in &open {
        iommus.0[number].lock().watch(sid)?;
    }
    // Only now: a reset that the guest asked for may hold this lock for a while. Functions linger on the bus, so
    // that what they still do is seen (C6).
    vm.pci.lock().close(&bus.hardware, |_| true);
    let armed = |owned: &&Owned| {
        bus.topology.get(owned.address).is_some_and(|f| pci::is_armed(&bus.hardware, f))
    };
    for owned in vm.functions.iter().filter(armed) {
        if let Some(iommu) = iommus.find(owned.smmu)
            && let Some(stream) = iommu.lock().stream_mut(owned.sid)
        {
            stream.set_armed_at_close();
        }
    }
    Ok(open.len())
}

/// Remembers the end of a VM for the report.
fn note(vm: &Vm, cause: Cause, streams: usize, instructions: Option<u64>) {
    log::info!("{}: {}, {streams} streams closed", vm.name(), cause.name());
    let mut teardowns = vm.teardowns.lock();
    if teardowns.is_full() {
        teardowns.pop_front();
    }
    let _ = teardowns.push_back(Teardown {
        vm: vm.name().clone(),
        cause,
        streams: streams as u32,
        instructions,
        quiesced: Vec::new(),
    });
}

/// Stops those functions of the VM for which `chosen` holds, and returns whether all of them are quiet for sure.
fn quiesce(vm: &Vm, chosen: impl Fn(&Request) -> bool) -> bool {
    let bus = hypervisor().pci;
    let requests: Vec<Request, MAX_FUNCTIONS> =
        vm::requests(&vm.functions).into_iter().filter(chosen).collect();
    let outcomes = pci::quiesce(&bus.hardware, bus.topology, &requests, Scope::All);
    vm.pci.lock().quiesced(&mut &vm.space, &outcomes);
    let mut pasts = vm.pasts.lock();
    for outcome in &outcomes {
        let owned = vm.functions.iter().position(|owned| owned.address == outcome.function);
        if let Some(past) = owned.and_then(|index| pasts.get_mut(index)) {
            *past = if outcome.how.is_reset() { Past::Clean } else { Past::Silent };
        }
    }
    drop(pasts);
    if let Some(teardown) = vm.teardowns.lock().back_mut() {
        for outcome in &outcomes {
            // No more functions than the record has room for.
            let _ = teardown.quiesced.push(record(outcome));
        }
    }
    outcomes.iter().all(|outcome| outcome.clean && outcome.usable)
}

fn record(outcome: &pci::Quiesced) -> Quiesced {
    let mut address = String::new();
    // `BB:DD.F` has seven characters.
    let _ = write!(address, "{}", outcome.function);
    let how = String::try_from(outcome.how.name()).unwrap_or_default();
    Quiesced { address, how, clean: outcome.clean }
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
        Life::Stopping { cause, next } if vm.is_parked() => {
            if quiesce(vm, forgets) {
                reset(vm);
                let until_us = timer::now_us() + WATCH_US;
                *vm.life.lock() = Life::Watching { cause, next, until_us };
                timer::alarm(until_us);
            } else {
                quarantine(vm, "a function does not stop");
            }
        }
        Life::Watching { cause, next, until_us } if timer::now_us() >= until_us => {
            end_watch(vm, cause, next);
        }
        Life::Watching { until_us, .. } => timer::alarm(until_us),
        _ => {}
    }
    finish_run();
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
fn end_watch(vm: &Vm, cause: Cause, next: Next) {
    let iommus = hypervisor().iommus;
    if !quiesce(vm, |request| !forgets(request)) {
        return quarantine(vm, "a function does not stop");
    }
    iommus.settle();
    for (index, owned) in vm.functions.iter().enumerate() {
        let Some(iommu) = iommus.find(owned.smmu) else { continue };
        let mut driver = iommu.lock();
        if let Err(error) = driver.silence(owned.sid) {
            drop(driver);
            return quarantine(vm, error);
        }
        if let Some(stream) = driver.stream_mut(owned.sid) {
            let late = stream.stopped_in_watch();
            drop(driver);
            name_late(vm, owned, cause, late);
            // What cannot be reset and was heard may be heard again.
            if late.count > 0
                && let Some(past @ Past::Silent) = vm.pasts.lock().get_mut(index)
            {
                *past = Past::Noisy;
            }
        }
    }
    // Only now: it makes the functions stop, and those without a reset were to show what they still do.
    vm.pci.lock().reset(&hypervisor().pci.hardware, &mut &vm.space);
    // Other VMs' interrupts may be this CPU's to serve.
    vm.ram.scrub(|| interrupts::service(None));
    match next {
        Next::Off => *vm.life.lock() = Life::Off,
        Next::Crashed => *vm.life.lock() = Life::Crashed,
        Next::Restart => {
            if let Err(error) = vm.boot() {
                log::error!("{}: {error}", vm.name());
                *vm.life.lock() = Life::Crashed;
            }
        }
    }
}

/// Names a function that did DMA after its owner was gone (C6).
fn name_late(vm: &Vm, owned: &Owned, cause: Cause, stopped: Stopped) {
    let Some(first) = stopped.first else { return };
    let function = hypervisor().pci.topology.get(owned.address);
    let (vendor, device) = function.map_or((0, 0), |f| (f.vendor, f.device));
    let verb = if stopped.write == Some(true) { "wrote" } else { "read" };
    let silenced = if stopped.silenced { ", then silenced" } else { "" };
    log::warn!(
        "late DMA: {} ({vendor:04x}:{device:04x}) of {} {verb} {first} after {}, {} stopped{silenced}",
        owned.address,
        vm.name(),
        cause.name(),
        stopped.count
    );
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
