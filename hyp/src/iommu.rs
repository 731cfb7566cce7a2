//! The machine's SMMUs, each behind one ticket lock.

use heapless::Vec;
use platform::bundle;
use platform::dt::{self, MAX_DEVICES, Phandle};
use smmu::addr::{Pa, StreamId, VmIndex, Vmid};
use smmu::caps::Refusal;
use smmu::device::{Config, Smmu};
use smmu::error::HostError;
use smmu::streams::{Stage2Binding, Stream, Streams};
use smmu::teardown::Closed;
use spin::{Mutex, MutexGuard};

use crate::arch::timer;
use crate::far::far;
use crate::mem::frames::TableFrames;
use crate::mem::shared::SmmuHardware;
use crate::turns::Shared;
use crate::{machine, vsmmu};

/// Records taken from an event queue before its lock is given up.
const EVENTS_AT_ONCE: u32 = 256;

/// Records taken for the sake of one batch of a guest's commands: most are not even that guest's.
const EVENTS_OF_A_BATCH: u32 = 64;

/// When a muted stream is looked at again.
const MUTED_AGAIN_US: u64 = 100_000;
/// How long late DMA is counted before it is told, so that one line tells of many.
const TOLD_AFTER_US: u64 = 250_000;

/// A driver of one SMMU.
pub type Driver = Smmu<'static, SmmuHardware>;

/// One SMMU.
pub struct Iommu {
    /// Its place among the SMMUs.
    number: u8,
    /// What the device tree says of it.
    pub facts: dt::Smmu,
    driver: Shared<Driver>,
}

impl Iommu {
    /// Takes over SMMU number `number`, so that every stream aborts.
    ///
    /// # Errors
    ///
    /// What the hardware lacks.
    pub fn take_over(
        number: usize,
        facts: dt::Smmu,
        hardware: SmmuHardware,
        config: &Config,
    ) -> Result<Self, Refusal> {
        // All functions of all VMs may be behind one.
        const { assert!(smmu::streams::MAX_STREAMS >= bundle::MAX_STREAMS) }
        static STREAMS: [Mutex<Streams>; MAX_DEVICES] =
            [const { Mutex::new(Streams::new()) }; MAX_DEVICES];
        static POINTER: &[Mutex<Streams>; MAX_DEVICES] = &STREAMS;
        // Each driver has its streams for ever.
        let streams = MutexGuard::leak(far(&POINTER)[number].lock());
        let driver = Smmu::take_over(hardware, config, streams, &mut TableFrames)?;
        Ok(Self { number: number as u8, facts, driver: Shared::new(driver) })
    }

    /// Where its registers are.
    pub fn base(&self) -> Pa {
        self.facts.range.base
    }

    /// Its driver.
    pub fn lock(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock()
    }

    /// Gives the closed stream `sid` to `owner`.
    ///
    /// # Errors
    ///
    /// A failure of the host's.
    pub fn attach(&self, sid: StreamId, owner: VmIndex) -> Result<(), HostError> {
        self.lock().attach(sid, Some(owner), &mut TableFrames)
    }

    /// Opens the stream `sid` to what `binding` translates.
    ///
    /// # Errors
    ///
    /// A failure of the host's: the stream stays closed.
    pub fn open(&self, sid: StreamId, binding: &Stage2Binding) -> Result<(), HostError> {
        self.lock().open_stage2(sid, binding)
    }

    /// Takes at most `budget` events, and tells the VMs whose they may be. Returns whether some are left.
    fn drain(&self, driver: &mut Driver, budget: u32) -> Result<bool, HostError> {
        let mut heard = 0_u32;
        let drained = driver.drain_events(budget, &mut |event, concern| {
            log::debug!("{} of stream {}", event.kind.name(), event.sid);
            let Some(VmIndex(owner)) = concern.owner.filter(|_| concern.is_owners) else { return };
            let vm = machine::vms().nth(owner.into());
            if let Some(smmu) = vm.and_then(|vm| vm.smmu.as_ref()) {
                smmu.note(self.number, event);
                heard |= 1 << owner;
            }
        })?;
        if driver.streams().any(Stream::is_muted) {
            timer::alarm(timer::now_us() + MUTED_AGAIN_US);
        }
        if driver.streams().any(Stream::has_untold) {
            timer::alarm(timer::now_us() + TOLD_AFTER_US);
        }
        machine::vms().filter(|vm| heard >> vm.index.0 & 1 != 0).for_each(vsmmu::wake);
        Ok(drained.more)
    }

    /// Looks at the events and errors that are pending.
    fn service(&self) {
        loop {
            let mut driver = self.lock();
            let more = self.drain(&mut driver, EVENTS_AT_ONCE);
            let outcome = driver.service_gerror();
            drop(driver);
            match (more, outcome) {
                (Ok(true), Ok(())) => {}
                (Ok(false), Ok(())) => return,
                (Err(error), _) | (_, Err(error)) => give_up(error),
            }
        }
    }
}

/// The hardware does not keep its promises, so nothing is known of anybody's streams: the machine stops, closed (C1).
#[cold]
#[inline(never)]
pub fn give_up(error: HostError) -> ! {
    panic!("{error}")
}

/// The machine's SMMUs.
pub struct Iommus(pub Vec<Iommu, MAX_DEVICES>);

impl Iommus {
    /// The SMMU that the device tree refers to as `phandle`.
    pub fn find(&self, phandle: Phandle) -> Option<&Iommu> {
        self.0.iter().find(|iommu| iommu.facts.phandle == phandle)
    }

    /// Handles the interrupt `intid` if it is an SMMU's.
    pub fn interrupt(&self, intid: u32) -> bool {
        let of = |iommu: &&Iommu| {
            let interrupts = iommu.facts.interrupts;
            interrupts.eventq().intid == intid || interrupts.gerror().intid == intid
        };
        match self.0.iter().find(of) {
            Some(iommu) => {
                iommu.service();
                true
            }
            None => false,
        }
    }

    /// Closes every stream of `owner`.
    ///
    /// # Errors
    ///
    /// A failure of the hardware: then nothing of the VM may be reused (C3).
    pub fn close(&self, owner: VmIndex, vmid: Vmid) -> Result<Vec<Closed, MAX_DEVICES>, HostError> {
        self.0.iter().map(|iommu| iommu.lock().close(owner, vmid)).collect()
    }

    /// Takes what is left in the event queues, so that counts are complete.
    pub fn settle(&self) {
        self.0.iter().for_each(Iommu::service);
    }

    /// Begins to watch what the close of `owner`'s streams has ended.
    ///
    /// # Errors
    ///
    /// A failure of the hardware.
    pub fn watch_closed(&self, owner: VmIndex) -> Result<(), HostError> {
        self.0.iter().try_for_each(|iommu| iommu.lock().watch_closed(owner))
    }

    /// Takes a bounded number of the events that are there, if any.
    pub fn collect(&self) {
        for iommu in &self.0 {
            let mut driver = iommu.lock();
            if driver.has_events() {
                iommu.drain(&mut driver, EVENTS_OF_A_BATCH).unwrap_or_else(|error| give_up(error));
            }
        }
    }
}
