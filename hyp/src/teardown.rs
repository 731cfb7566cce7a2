//! The end of a VM: streams closed first, devices stopped, then what is left to do when none of its CPUs runs.
//!
//! [`begin`] may be called on any CPU and returns with the streams closed (C4). [`advance`] runs on the VM's
//! first CPU once its guest code has ended, and takes the VM from watch to its next start or to its rest.

use core::sync::atomic::Ordering;

use platform::report::Cause;
use smmu::error::HostError;
use smmu::streams::State;

use crate::arch::{firmware, timer};
use crate::console::CONSOLE;
use crate::life::{Life, Next};
use crate::machine::{self, gic, hypervisor};
use crate::report;
use crate::vm::Vm;

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
            return;
        }
        *life = Life::Stopping { cause, next };
    }
    vm.stopping.store(true, Ordering::Release);
    if let Err(error) = close(vm) {
        log::error!("{}: {error}; its memory is never used again", vm.name());
        *vm.life.lock() = Life::Crashed;
    }
    for vcpu in &vm.vcpus {
        gic().kick(vcpu.cpu);
    }
}

/// Closes the VM's streams, and begins to watch them.
fn close(vm: &Vm) -> Result<(), HostError> {
    let iommus = &hypervisor().iommus;
    let open = iommus.streams_of(vm.index, State::Stage2);
    let closed = iommus.close(vm.index, vm.vmid)?;
    for &(number, sid) in &open {
        iommus.0[number].lock().watch(sid)?;
    }
    drop(closed);
    Ok(())
}

/// Does what is left to do for `vm` on its first CPU, which runs no guest code.
pub fn advance(vm: &Vm) {
    let life = *vm.life.lock();
    match life {
        Life::Stopping { cause, next } if vm.is_parked() => {
            reset(vm);
            let until_us = timer::now_us() + WATCH_US;
            *vm.life.lock() = Life::Watching { cause, next, until_us };
            timer::alarm(until_us);
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
    let iommus = &hypervisor().iommus;
    iommus.settle();
    for (number, sid) in iommus.streams_of(vm.index, State::Watch) {
        if let Err(error) = iommus.0[number].lock().silence(sid) {
            log::error!("{}: {error}; its memory is never used again", vm.name());
            *vm.life.lock() = Life::Crashed;
            return;
        }
    }
    let _ = cause;
    vm.ram.scrub();
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
