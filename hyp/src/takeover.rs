//! Noticing that another kernel takes a VM over, although the old one told nobody.
//!
//! A kernel that starts another one switches the MMU of its CPU off, whether it is shut down in order or has crashed.
//! Where the CPU can let writes of `SCTLR_EL1` trap alone, that is seen before it happens. Otherwise all writes of
//! translation controls trap while only some of the VM's CPUs run, or after its SMMU was switched off: what comes
//! before another kernel. And whatever else of a CPU traps, its MMU is looked at: one that is off after it was on
//! means the same.
//!
//! Streams are closed and devices stopped as soon as that is noticed, for nothing tells then whose doing it is. Interrupt
//! controller and timers are put back when the guest shows that it is another kernel ([`Mmu::decide`]): one that only
//! changes its own tables goes on with them.
//!
//! [`Mmu::decide`]: crate::mmu::Mmu::decide

use core::sync::atomic::{AtomicBool, Ordering};

use platform::report::Cause;

use crate::arch::vcpu::{self, SCTLR_M};
use crate::life::HandOver;
use crate::machine::gic;
use crate::run::Running;
use crate::syndrome::{RegisterAccess, Trap};
use crate::teardown;
use crate::vm::{Power, Vm};

/// Whether a VM's translation controls trap.
#[derive(Debug, Default)]
pub struct Suspicion(AtomicBool);

impl Suspicion {
    /// Whether they do, or are about to.
    pub fn is_held(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Something happened that comes before another kernel: from now on the VM's translation controls trap, on its other
/// CPUs as soon as they take notice.
pub fn suspect(vm: &Vm) {
    let known = vcpu::has_fine_grained_traps() || vm.suspicion.0.swap(true, Ordering::AcqRel);
    if !known {
        vm.vcpus.iter().for_each(|vcpu| gic().kick(vcpu.cpu));
    }
}

/// One more of the VM's CPUs runs: with all of several running, nothing is about to happen.
pub fn trust(vm: &Vm) {
    let is_on = |vcpu: &crate::vm::Vcpu| *vcpu.power.lock() == Power::On;
    if vm.vcpus.len() > 1 && vm.vcpus.iter().all(is_on) {
        vm.suspicion.0.store(false, Ordering::Release);
    }
}

/// `SCTLR_EL1`, named as in a syndrome.
const SCTLR_EL1: (u8, u8, u8, u8, u8) = (3, 0, 1, 0, 0);

/// Looks at the MMU of a CPU whose guest code trapped because of `trap`. Returns whether the guest goes on.
pub fn look(running: &mut Running, trap: &Trap) -> bool {
    if running.mmu.sees(vcpu::mmu_is_on()) && !hand_over(running) {
        return false;
    }
    let switches_on = |access: &RegisterAccess| {
        let value = access.general.map_or(0, |number| running.registers.x[number]);
        access.register == SCTLR_EL1 && !access.read && value & SCTLR_M != 0
    };
    let resumes = matches!(trap, Trap::Register(access) if switches_on(access));
    if running.mmu.decide(resumes) {
        running.reset_interrupts();
        vcpu::reset_timers();
    }
    true
}

/// Carries out the guest's write of one of its translation controls; `false` if it is none.
pub fn write_control(running: &mut Running, register: (u8, u8, u8, u8, u8), value: u64) -> bool {
    if register == SCTLR_EL1 && running.mmu.sees(value & SCTLR_M != 0) && !hand_over(running) {
        // No instruction of this guest follows.
        return true;
    }
    vcpu::write_translation_control(register, value)
}

/// The MMU goes off: another kernel is taking over, unless the guest shows otherwise. Returns whether it goes on.
fn hand_over(running: &mut Running) -> bool {
    let vm = running.vm;
    // Who leaves its SMMU enabled did not shut it down.
    let crashed = vm.smmu.as_ref().is_some_and(|smmu| smmu.lock().is_enabled());
    let cause = if crashed { Cause::CrashKexec } else { Cause::MmuOff };
    if !teardown::hand_over(vm, cause) {
        return false;
    }
    if HandOver::after(cause, vm.config.on_crash_kexec) != HandOver::Preserve {
        running.mmu.leave_undecided();
    }
    true
}
