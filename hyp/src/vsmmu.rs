//! The SMMU that a VM sees, on this machine: its traps, its events, its share of time.
//!
//! What it does is [`smmu::guest`]'s; here is what it does it with. A write of the guest's is answered on the CPU that
//! traps, under the VM's own lock, inside of which the locks of the physical SMMUs are taken for one operation each. So a
//! guest that is busy with its SMMU waits for itself: others wait for its single operations, never for its batches. What
//! one batch leaves is continued by the VM's CPUs when EL2's timer says so, and the guest runs in between.
//!
//! Events that are found under a physical SMMU's lock wait in an [`Inbox`]; the VM's own CPUs hand them on.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use heapless::Vec;
use platform::bundle::{MAX_FUNCTIONS, OnCrashKexec};
use platform::guest_map;
use platform::report::Cause;
use smmu::addr::{StreamId, Vmid};
use smmu::cmd::Command;
use smmu::device::Configuration;
use smmu::error::HostError;
use smmu::event::Event;
pub use smmu::guest::Width;
use smmu::guest::{
    CONTROL, Config, Counters, Features, Interrupts, MAX_GUEST_STREAMS, Physical, Ports, StreamMap,
    VirtualSmmu, Work,
};
use spin::{Mutex, MutexGuard};

use crate::arch::{cpu, timer};
use crate::inbox::Inbox;
use crate::iommu::{Driver, Iommus, give_up};
use crate::machine::{VmInterrupts, gic, hypervisor};
use crate::mem::shared::RegisterPages;
use crate::ownership::{Owned, VmFunctions};
use crate::run::Running;
use crate::vgic::Vgic;
use crate::vm::Vm;
use crate::vpci::Vpci;
use crate::{takeover, teardown};

/// How long a guest runs between two pieces of the work that it has queued, in microseconds.
const PAUSE_US: u64 = 20;
/// Nothing is due.
const NEVER: u64 = u64::MAX;
/// Something has been due for ever.
const AT_ONCE: u64 = 0;

/// A VM's SMMU.
#[derive(Debug)]
pub struct GuestSmmu {
    state: Mutex<VirtualSmmu>,
    frames: RegisterPages,
    inbox: Mutex<Inbox>,
    /// Whether something may be in there. Changed with it locked.
    heard: AtomicBool,
    /// When a CPU of the VM has to look after it, on EL2's clock.
    due_us: AtomicU64,
}

/// There is no frame left for its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFrames;

/// What the SMMUs behind `owned`, or all of them for a VM without functions, offer a guest; `None` if one of them cannot
/// nest.
pub fn features(owned: &VmFunctions, iommus: &Iommus) -> Option<Features> {
    let behind = |phandle| owned.is_empty() || owned.iter().any(|f| f.smmu == phandle);
    let mut offers = iommus
        .0
        .iter()
        .filter(|iommu| behind(iommu.facts.phandle))
        .map(|iommu| iommu.lock().nesting());
    let first = offers.next()??;
    offers.try_fold(first, |common, offer| Some(common.common(offer?)))
}

impl GuestSmmu {
    /// Makes one in front of the functions that `owned` names and `pci` shows, in its state after reset.
    ///
    /// # Errors
    ///
    /// [`NoFrames`].
    pub fn new(
        vmid: Vmid,
        features: Features,
        owned: &VmFunctions,
        pci: &Vpci,
        iommus: &Iommus,
        abort: bool,
    ) -> Result<Self, NoFrames> {
        // Every function may be a stream.
        const { assert!(MAX_GUEST_STREAMS >= MAX_FUNCTIONS) }
        let mut streams: Vec<StreamMap, MAX_GUEST_STREAMS> = Vec::new();
        for function in owned {
            let number = iommus.0.iter().position(|iommu| iommu.facts.phandle == function.smmu);
            let (Some(number), Some(seen)) = (number, pci.virtual_address(function.address)) else {
                continue;
            };
            let map = StreamMap {
                virt: StreamId(seen.requester_id().into()),
                smmu: number as u8,
                phys: function.sid,
            };
            // Functions behind a bridge that speaks for them are one stream: the first one's STE decides.
            if streams.iter().all(|other| (other.smmu, other.phys) != (map.smmu, map.phys)) {
                // A VM has no more functions than that.
                let _ = streams.push(map);
            }
        }
        let config = Config {
            vmid,
            ipa_bits: guest_map::IPA_BITS as u8,
            sid_bits: guest_map::SMMU_SID_BITS,
            features,
            streams: &streams,
        };
        let smmu = Self {
            state: Mutex::new(VirtualSmmu::new(&config)),
            frames: RegisterPages::allocate().ok_or(NoFrames)?,
            inbox: Mutex::new(Inbox::new()),
            heard: AtomicBool::new(false),
            due_us: AtomicU64::new(NEVER),
        };
        smmu.reset(&mut smmu.lock(), abort);
        Ok(smmu)
    }

    /// The frames that its reads find.
    pub fn frames(&self) -> &RegisterPages {
        &self.frames
    }

    /// Puts it, whose `state` is held, in its state after reset, with `GBPA.ABORT` as given. The VM's streams are the
    /// caller's to open and to close.
    pub fn reset(&self, state: &mut VirtualSmmu, abort: bool) {
        self.inbox.lock().clear();
        self.due_us.store(NEVER, Ordering::Release);
        state.reset(abort, &self.frames);
    }

    /// Keeps it as it is. Taken before `life` and before the physical SMMUs, after `pci`.
    pub fn lock(&self) -> MutexGuard<'_, VirtualSmmu> {
        self.state.lock()
    }

    /// An event of SMMU number `smmu` that may be the guest's: a CPU of the VM will look at it.
    pub fn note(&self, smmu: u8, event: &Event) {
        let mut inbox = self.inbox.lock();
        inbox.put(smmu, event);
        self.heard.store(true, Ordering::Release);
        drop(inbox);
        self.due_us.store(AT_ONCE, Ordering::Release);
    }

    /// Totals. What did not even reach the virtual SMMU counts as dropped as well.
    pub fn counters(&self) -> Counters {
        let counters = self.state.lock().counters();
        Counters { dropped: counters.dropped + self.inbox.lock().lost(), ..counters }
    }

    /// Works on it on a CPU of `vm`, unless the VM is ending. Returns what that leaves to do and to raise.
    fn with(
        &self,
        vm: &Vm,
        work: impl FnOnce(&mut VirtualSmmu, &mut Ports<'_>) -> Result<Work, HostError>,
    ) -> (Work, Interrupts) {
        let mut state = self.state.lock();
        // Whoever ends the VM says so before the streams are closed with this lock held: what is done here is closed then.
        if teardown::is_stopping(vm) {
            return (Work::Done, Interrupts::default());
        }
        let iommus = hypervisor().iommus;
        let mut physical = Behind { vm, smmu: self, iommus, looked: false };
        let mut ports = Ports { memory: &vm.ram, frames: &self.frames, physical: &mut physical };
        let left = work(&mut state, &mut ports).unwrap_or_else(|error| give_up(error));
        if left == Work::More {
            self.due_us.fetch_min(timer::now_us() + PAUSE_US, Ordering::AcqRel);
        }
        (left, state.take_interrupts())
    }

    /// Does what is due. Returns what to raise.
    fn attend(&self, vm: &Vm) -> Interrupts {
        let due_us = self.due_us.load(Ordering::Acquire);
        if due_us == NEVER {
            return Interrupts::default();
        }
        if due_us > timer::now_us() {
            timer::alarm(due_us);
            return Interrupts::default();
        }
        self.due_us.store(NEVER, Ordering::Release);
        let (_, interrupts) = self.with(vm, |state, ports| {
            let left = state.resume(ports)?;
            // What is put in meanwhile makes it due again.
            let waiting = self.inbox.lock().len();
            for _ in 0..waiting {
                let Some((smmu, event)) = self.take() else { break };
                let _ = state.forward(ports.memory, ports.frames, smmu, &event);
            }
            Ok(left)
        });
        let due_us = self.due_us.load(Ordering::Acquire);
        if due_us != NEVER {
            timer::alarm(due_us);
        }
        interrupts
    }

    /// Takes the oldest event. What is put in under a physical SMMU's lock is seen by whoever has had that lock since.
    fn take(&self) -> Option<(u8, Event)> {
        if !self.heard.load(Ordering::Acquire) {
            return None;
        }
        let mut inbox = self.inbox.lock();
        let event = inbox.take();
        self.heard.store(!inbox.is_empty(), Ordering::Release);
        event
    }
}

/// The physical SMMUs, as far as a VM's virtual one reaches them.
struct Behind<'a> {
    vm: &'a Vm,
    smmu: &'a GuestSmmu,
    iommus: &'static Iommus,
    /// Whether the event queues were looked at for this batch.
    looked: bool,
}

impl Physical for Behind<'_> {
    fn configure(&mut self, smmu: u8, sid: StreamId, to: &Configuration) -> Result<(), HostError> {
        let iommu = &self.iommus.0[usize::from(smmu)];
        let mut driver = iommu.lock();
        let is_open =
            |driver: &mut Driver| driver.stream_mut(sid).is_some_and(|s| s.state().is_open());
        let was_open = is_open(&mut driver);
        driver.configure(sid, &self.vm.binding, to)?;
        let opened = !was_open && is_open(&mut driver);
        drop(driver);
        if opened {
            let of = |owned: &&Owned| owned.smmu == iommu.facts.phandle && owned.sid == sid;
            self.vm
                .functions
                .iter()
                .filter(of)
                .for_each(|owned| teardown::reopened(self.vm, owned));
        }
        Ok(())
    }

    fn relay(&mut self, smmu: u8, command: Command) -> Result<(), HostError> {
        let Vm { index, vmid, .. } = *self.vm;
        self.iommus.0[usize::from(smmu)].lock().relay(index, vmid, command)
    }

    fn sync(&mut self, smmu: u8) -> Result<(), HostError> {
        self.iommus.0[usize::from(smmu)].lock().sync()
    }

    fn next_event(&mut self) -> Option<(u8, Event)> {
        if !core::mem::replace(&mut self.looked, true) {
            self.iommus.collect();
        }
        self.smmu.take()
    }
}

/// Makes a CPU of `vm` look after its SMMU soon.
pub fn wake(vm: &Vm) {
    let cpu = vm.vcpus[0].cpu;
    if cpu != cpu::number() {
        gic().kick(cpu);
    }
}

/// Raises `interrupts` as the edges that they are.
fn raise(gic: &mut Vgic<VmInterrupts>, interrupts: Interrupts) {
    let Interrupts { eventq, gerror, cmdq_sync } = interrupts;
    for (raised, line) in [
        (eventq, guest_map::SMMU_EVENTQ),
        (gerror, guest_map::SMMU_GERROR),
        (cmdq_sync, guest_map::SMMU_CMDQ_SYNC),
    ] {
        if raised {
            gic.set_line(line.intid, true);
            gic.set_line(line.intid, false);
        }
    }
}

fn raise_running(running: &mut Running, interrupts: Interrupts) {
    if interrupts != Interrupts::default() {
        running.with_gic(|gic| raise(gic, interrupts));
    }
}

/// Looks after the SMMU of the VM that runs here, before its guest code goes on.
pub fn attend(running: &mut Running) {
    if let Some(smmu) = &running.vm.smmu {
        let interrupts = smmu.attend(running.vm);
        raise_running(running, interrupts);
    }
}

/// The same on a CPU of `vm` that is off.
pub fn attend_idle(vm: &Vm) {
    if let Some(smmu) = &vm.smmu {
        let interrupts = smmu.attend(vm);
        if interrupts != Interrupts::default() {
            raise(&mut vm.vgic.lock(), interrupts);
        }
    }
}

/// Answers a write of `value` to the register at `offset`, a multiple of the width, which is `None` if no register has
/// it.
pub fn write(
    running: &mut Running,
    smmu: &GuestSmmu,
    offset: u32,
    width: Option<Width>,
    value: u64,
) {
    let vm = running.vm;
    let Some(width) = width else {
        smmu.lock().ignore_write();
        return;
    };
    let (left, interrupts) = smmu.with(vm, |state, ports| state.write(ports, offset, width, value));
    raise_running(running, interrupts);
    if let Work::Disable { taken_over } = left {
        // A new kernel that found it enabled has no use for what the manifest would preserve.
        let crashed = taken_over && vm.config.on_crash_kexec != OnCrashKexec::Preserve;
        let cause = if crashed { Cause::CrashKexec } else { Cause::SmmuDisable };
        // With its lock given up: devices are stopped as well. Until it is acknowledged the guest can open nothing.
        if teardown::hand_over(vm, cause) {
            let (_, interrupts) = smmu.with(vm, |state, ports| match state.is_disabling() {
                true => state.disabled(ports),
                // It was reset, because a new kernel began.
                false => Ok(Work::Done),
            });
            raise_running(running, interrupts);
        }
    } else if offset == CONTROL && smmu.lock().is_enabled() {
        takeover::trust(vm);
    }
}
