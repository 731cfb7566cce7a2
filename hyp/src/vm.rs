//! A VM: what it is made of, and how it starts.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use heapless::Vec;
use log::Level;
use platform::bundle::{DmaAtBoot, MAX_FUNCTIONS, Reopen, Reset, Stage1, VmConfig};
use platform::dt::Trigger;
use platform::guest_map;
use platform::pcie::Bdf;
use platform::report::Name;
use smmu::addr::{Ipa, PAGE_SIZE, Pa, VmIndex, Vmid};
use smmu::error::HostError;
use smmu::ports::Frames;
use smmu::stage2::{Attributes, Format, Stage2, Stage2Error};
use smmu::streams::Stage2Binding;
use spin::Mutex;

use crate::arch::cpu::MAX_CPUS;
use crate::arch::{cache, gic, timer, tlb};
use crate::exits::Exits;
use crate::iommu::{Iommu, Iommus};
use crate::life::Life;
use crate::lines::{Lines, Say};
use crate::machine::{self, PciBus, VmInterrupts, hypervisor};
use crate::mem::frames::TableFrames;
use crate::mem::guest::{GuestRam, OutOfMemory, OutsideRam};
use crate::mem::shared::TableWords;
use crate::ownership::{Owned, VmFunctions};
use crate::pci::{self, Request, ResetPolicy, Scope};
use crate::psci::CpusOn;
use crate::takeover::{self, Suspicion};
use crate::teardown::{Teardowns, reopened};
use crate::vgic::{self, PhysicalSpi, Vgic};
use crate::vpci::{BarMap, MapFailed, Vpci, VpciError};
use crate::vsmmu::{self, GuestSmmu, NoFrames};
use crate::vuart::VirtualUart;

/// Why a VM was not made.
#[derive(Debug)]
pub enum VmError {
    /// There is not enough RAM for it.
    Memory(OutOfMemory),
    /// Its stage 2 could not be built.
    Stage2(Stage2Error),
    /// An image does not fit its RAM.
    Image,
    /// It is to have a stage 1 of its own, and the hardware cannot nest.
    NoStage1,
    /// Its interrupts make no GIC.
    Gic(vgic::ConfigError),
    /// Its functions make no bus.
    Pci(VpciError),
    /// A stream cannot be opened for it.
    Stream(HostError),
}

impl fmt::Display for VmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => write!(
                f,
                "{} KiB of its RAM could not be had: give the machine more memory",
                error.missing >> 10
            ),
            Self::Stage2(error) => write!(f, "{error}"),
            Self::NoStage1 => f.write_str(
                "stage1 = \"nested\", but its SMMU cannot nest stage 1 in stage 2: say \"none\", or leave it out",
            ),
            Self::Image => f.write_str("an image does not fit its RAM"),
            Self::Pci(error) => write!(f, "{error}"),
            Self::Stream(error) => write!(f, "{error}"),
            Self::Gic(error) => write!(f, "its interrupts make no GIC: {error:?}"),
        }
    }
}

/// The translation of a VM's CPUs and that of its devices. RAM is in both, through the same tables.
#[derive(Debug)]
pub struct Space {
    /// What CPUs reach.
    pub cpu: Stage2,
    /// What devices reach: RAM, nothing else.
    pub dma: Stage2,
    /// How many more tables the guest's BARs may make necessary at the same time.
    tables_left: u16,
}

/// Tables that a guest's BARs may need: eight functions at opposite ends of the windows. A guest that spreads more of them
/// runs into this, and nobody else into the end of the pool. What no BAR needs any more is given back.
const BAR_TABLES: u16 = 64;

/// Frames for tables, as many as the budget allows.
struct Budgeted<'a>(&'a mut u16);

impl Frames for Budgeted<'_> {
    fn allocate(&mut self, size: u64) -> Option<Pa> {
        *self.0 = self.0.checked_sub(1)?;
        TableFrames.allocate(size)
    }

    fn release(&mut self, at: Pa, size: u64) {
        *self.0 += 1;
        TableFrames.release(at, size);
    }
}

/// The CPUs' translation, as far as PCI changes it. Used on CPUs of the VM, whose `VTTBR_EL2` is the VM's.
impl BarMap for &Mutex<Space> {
    fn map(&mut self, ipa: Ipa, pa: Pa, size: u64) -> Result<(), MapFailed> {
        let mapped = {
            let Space { cpu, tables_left, .. } = &mut *self.lock();
            cpu.map(&TableWords, &mut Budgeted(tables_left), ipa, pa, size, Attributes::DEVICE)
        };
        mapped.map_err(|_| {
            // A first part, or a table on the way.
            self.unmap(ipa, size);
            MapFailed
        })
    }

    fn unmap(&mut self, ipa: Ipa, size: u64) {
        let Space { cpu, tables_left, .. } = &mut *self.lock();
        // The same range was mapped in one piece, so nothing needs to be split and nothing can fail.
        let _ = cpu.unmap(&TableWords, &mut TableFrames, ipa, size);
        // Devices reach RAM only, so no SMMU walks tables of the windows: once no CPU does, they are free (C3).
        loop {
            let emptied = cpu.detach(&TableWords, ipa, size);
            tlb::invalidate_guest();
            let Some(emptied) = emptied else { break };
            emptied.release(&mut Budgeted(tables_left));
        }
    }
}

/// What a virtual CPU is to PSCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// It does not run.
    Off,
    /// It was told to start, and has not begun.
    Starting {
        /// Where.
        entry: Ipa,
        /// With what in x0.
        argument: u64,
    },
    /// It runs.
    On,
}

/// A virtual CPU.
#[derive(Debug)]
pub struct Vcpu {
    /// The physical CPU that is its own.
    pub cpu: usize,
    /// Whether it runs.
    pub power: Mutex<Power>,
}

/// What is known of a function's past, and so what it takes to let it do DMA (C5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// It was reset, or nobody ever used it: it knows nothing.
    Clean,
    /// It has no reset, but a whole watch passed in silence while it did master the bus.
    Silent,
    /// It has no reset and was heard during the watch: what it was told to do, it may still do.
    Noisy,
    /// It mastered the bus since, or may have: what it was told to do then, it may still know.
    Used,
}

impl Vcpu {
    /// Takes the order to start, if there is one: the CPU is on from here.
    pub fn take_start(&self) -> Option<(Ipa, u64)> {
        let mut power = self.power.lock();
        let Power::Starting { entry, argument } = *power else { return None };
        *power = Power::On;
        Some((entry, argument))
    }
}

/// A VM.
pub struct Vm {
    /// Its place among the VMs.
    pub index: VmIndex,
    /// What it was made from.
    pub config: VmConfig<'static>,
    /// The tag of its translations, in CPUs and SMMUs alike.
    pub vmid: Vmid,
    /// Its RAM.
    pub ram: GuestRam,
    /// Its translations.
    pub space: Mutex<Space>,
    /// `VTCR_EL2` for its CPUs.
    pub vtcr: u64,
    /// `VTTBR_EL2` for its CPUs.
    pub vttbr: u64,
    /// What its streams are bound to.
    pub binding: Stage2Binding,
    /// Its functions, as the machine knows them.
    pub functions: VmFunctions,
    /// What is known of them, in the same order.
    pub pasts: Mutex<Vec<Past, MAX_FUNCTIONS>>,
    /// Its PCI bus.
    pub pci: Mutex<Vpci>,
    /// Its interrupt controller.
    pub vgic: Mutex<Vgic<VmInterrupts>>,
    /// The shared interrupts that it owns.
    pub spis: Vec<PhysicalSpi, { vgic::MAX_PHYSICAL_SPIS }>,
    /// The SMMU that it sees, if it sees one.
    pub smmu: Option<GuestSmmu>,
    /// Its console.
    pub uart: Mutex<VirtualUart>,
    /// Its CPUs.
    pub vcpus: Vec<Vcpu, MAX_CPUS>,
    /// How many of them are on.
    pub cpus_on: CpusOn,
    /// Where it is between birth and death.
    pub life: Mutex<Life>,
    /// Whether its CPUs have to leave guest code for good.
    pub stopping: AtomicBool,
    /// Whether another kernel may be about to take over.
    pub suspicion: Suspicion,
    /// How often it was started.
    pub boots: AtomicU32,
    /// Why its CPUs left guest code.
    pub exits: Exits,
    /// What EL2 may still say about it.
    pub lines: Lines,
    /// When its streams were closed, and why.
    pub teardowns: &'static Mutex<Teardowns>,
}

impl Vm {
    /// Makes VM number `index`: takes its RAM, builds its translations, and leaves it off.
    ///
    /// # Errors
    ///
    /// What is missing; the VM's memory is lost then, which does not matter as nothing is started.
    #[inline(never)]
    pub fn new(
        index: usize,
        config: VmConfig<'static>,
        format: Format,
        owned: VmFunctions,
        iommus: &Iommus,
        bus: &PciBus,
    ) -> Result<Self, VmError> {
        let pci = Vpci::new(&bus.hardware, bus.topology, &requests(&owned), bus.interrupts)
            .map_err(VmError::Pci)?;
        let spis: Vec<PhysicalSpi, { vgic::MAX_PHYSICAL_SPIS }> = pci
            .intx_lines()
            .iter()
            .map(|line| PhysicalSpi {
                virt: line.guest.intid,
                phys: line.physical.intid,
                edge: line.physical.trigger == Trigger::Edge,
            })
            .collect();
        let ram = GuestRam::allocate(guest_map::RAM, config.memory).map_err(VmError::Memory)?;
        // The allocator left its links in it, and whoever was here before us anything.
        ram.scrub(|| ());
        let vmid = Vmid(index as u16 + 1);
        let smmu = match (config.stage1, vsmmu::features(&owned, iommus)) {
            (Stage1::None, _) | (Stage1::Default, None) => None,
            (Stage1::Nested, None) => return Err(VmError::NoStage1),
            (Stage1::Nested | Stage1::Default, Some(features)) => {
                let abort = config.dma_at_boot == DmaAtBoot::Abort;
                let made = GuestSmmu::new(vmid, features, &owned, &pci, iommus, abort);
                Some(made.map_err(|NoFrames| VmError::Stage2(Stage2Error::OutOfMemory))?)
            }
        };
        let space = build_space(&ram, smmu.as_ref(), format).map_err(VmError::Stage2)?;
        let cpus: Vec<usize, MAX_CPUS> = config.cpus.iter().map(|&cpu| cpu as usize).collect();
        let vcpus = cpus.iter().map(|&cpu| Vcpu { cpu, power: Mutex::new(Power::Off) }).collect();
        let vgic = Vgic::new(
            vgic::Config {
                vcpus: cpus.len(),
                list_registers: gic::list_registers(),
                priority_bits: gic::priority_bits(),
                spis: spis.clone(),
            },
            VmInterrupts { cpus },
        )
        .map_err(VmError::Gic)?;
        let index = VmIndex(index as u8);
        let binding = Stage2Binding::new(&space.dma, vmid);
        let mut pasts = Vec::new();
        for function in &owned {
            let iommu = iommus.find(function.smmu).expect("`ownership` checked that it is ours");
            iommu.attach(function.sid, index).map_err(VmError::Stream)?;
            // As many as there are functions.
            let _ = pasts.push(past_at_boot(bus, iommu, function));
        }
        // RES1, and an eight-bit VMID, which every CPU has.
        let vtcr = format.vtcr() | 1 << 31;
        Ok(Self {
            index,
            vmid,
            vtcr,
            vttbr: space.cpu.root().raw() | u64::from(vmid.0) << 48,
            binding,
            pasts: Mutex::new(pasts),
            functions: owned,
            pci: Mutex::new(pci),
            ram,
            space: Mutex::new(space),
            vgic: Mutex::new(vgic),
            spis,
            smmu,
            uart: Mutex::new(VirtualUart::default()),
            vcpus,
            cpus_on: CpusOn::default(),
            life: Mutex::new(Life::default()),
            stopping: AtomicBool::new(false),
            suspicion: Suspicion::default(),
            boots: AtomicU32::new(0),
            exits: Exits::default(),
            lines: Lines::default(),
            teardowns: Teardowns::of(index.0.into()),
            config,
        })
    }

    /// Its unique name.
    pub fn name(&self) -> &Name {
        &self.config.name
    }

    /// Says `text`, which names this VM, if its budget of lines allows it (C7).
    #[inline(never)]
    pub fn say(&self, level: Level, say: Say, text: fmt::Arguments<'_>) {
        // What the log leaves out by itself costs nothing.
        if level > log::max_level() {
            return;
        }
        let Some(untold) = self.lines.ask(level, say, timer::now_us()) else { return };
        let left_out = format_args!("{}: {untold} lines left out", self.name());
        let before = (untold > 0).then_some((Level::Warn, left_out));
        for (level, text) in before.into_iter().chain([(level, text)]) {
            log::log!(level, "{text}");
        }
    }

    /// Loads its images and tells its first CPU to start, unless something else is to follow by then; returns whether it
    /// starts. Its RAM holds nothing but zeros and what this wrote before, no CPU of it runs.
    ///
    /// # Errors
    ///
    /// [`VmError::Image`], or [`VmError::Stream`]: then some of its streams may be open.
    pub fn boot(&self) -> Result<bool, VmError> {
        let images = [Some(self.config.kernel), self.config.initrd, Some(self.config.device_tree)];
        for image in images.into_iter().flatten() {
            self.ram.copy_in(image.load, image.data).map_err(|OutsideRam| VmError::Image)?;
        }
        cache::invalidate_instructions();
        // Held until its streams are open: an end that comes meanwhile closes them.
        let mut life = self.life.lock();
        if !life.start() {
            return Ok(false);
        }
        if self.config.dma_at_boot == DmaAtBoot::Stage2 {
            for (function, past) in self.functions.iter().zip(self.pasts.lock().iter()) {
                if *past == Past::Clean {
                    self.open(function).map_err(VmError::Stream)?;
                }
            }
        }
        self.boots.fetch_add(1, Ordering::Relaxed);
        // As long as its first CPU runs alone.
        takeover::suspect(self);
        self.stopping.store(false, Ordering::Release);
        self.cpus_on.first();
        *self.vcpus[0].power.lock() = Power::Starting {
            entry: self.config.entry,
            argument: self.config.device_tree.load.raw(),
        };
        machine::gic().kick(self.vcpus[0].cpu);
        Ok(true)
    }

    /// Opens the stream of one of its functions; returns whether it was closed.
    fn open(&self, function: &Owned) -> Result<bool, HostError> {
        let iommu = hypervisor().iommus.find(function.smmu);
        match iommu.expect("`ownership` checked that it is ours").open(function.sid, &self.binding)
        {
            Ok(()) => Ok(true),
            Err(HostError::StreamOpen(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The guest switched bus mastering on for its function at `address`: whether the function may obey. That may be
    /// evidence on which its stream is opened (C5), unless the guest's SMMU is enabled and so decides about it.
    pub fn may_master(&self, address: Bdf) -> bool {
        // Held until the stream is open: what the guest's SMMU decides meanwhile comes after it.
        let smmu = self.smmu.as_ref().map(GuestSmmu::lock);
        // Likewise: a close that begins meanwhile closes it again.
        let life = self.life.lock();
        if !life.may_open() {
            return false;
        }
        let Some(index) = self.functions.iter().position(|owned| owned.address == address) else {
            return false;
        };
        let function = &self.functions[index];
        let past = &mut self.pasts.lock()[index];
        let decided = smmu.as_ref().is_some_and(|smmu| smmu.is_enabled() || smmu.is_disabling());
        let evidence = match *past {
            _ if decided => false,
            Past::Clean | Past::Silent => self.config.reopen == Reopen::Device,
            Past::Noisy | Past::Used => false,
        };
        if evidence {
            match self.open(function) {
                Ok(true) => {
                    reopened(self, function);
                    if *past == Past::Silent {
                        let text = format_args!("{}: {address} is used again unreset", self.name());
                        self.say(Level::Warn, Say::IfRoom, text);
                    }
                }
                Ok(false) => {}
                Err(error) => {
                    self.say(Level::Error, Say::IfRoom, format_args!("{}: {error}", self.name()));
                    return false;
                }
            }
        }
        // Where the guest has an SMMU, that may open the stream later, on better evidence.
        let obeys = smmu.is_some() || self.is_open(function);
        if obeys {
            *past = Past::Used;
        }
        obeys
    }

    /// Whether the stream of one of its functions is open.
    fn is_open(&self, function: &Owned) -> bool {
        let iommu = hypervisor().iommus.find(function.smmu);
        iommu.is_some_and(|iommu| {
            iommu.lock().stream_mut(function.sid).is_some_and(|stream| stream.state().is_open())
        })
    }

    /// Whether none of its CPUs runs guest code.
    pub fn is_parked(&self) -> bool {
        self.vcpus.iter().all(|vcpu| *vcpu.power.lock() == Power::Off)
    }
}

/// A function as PCI needs to know it to stop it.
pub fn request(function: &Owned) -> Request {
    let policy = match function.reset {
        Reset::Auto => ResetPolicy::Auto,
        Reset::BusMaster => ResetPolicy::BusMaster,
    };
    Request { function: function.address, policy }
}

/// Likewise all of a VM.
pub fn requests(functions: &[Owned]) -> Vec<Request, MAX_FUNCTIONS> {
    functions.iter().map(request).collect()
}

/// EL2's boot is the end of an unknown predecessor: what it left armed is stopped, and remembered (C1, C6).
fn past_at_boot(bus: &PciBus, iommu: &Iommu, owned: &Owned) -> Past {
    if !bus.topology.get(owned.address).is_some_and(|function| function.armed_at_boot) {
        return Past::Clean;
    }
    if let Some(stream) = iommu.lock().stream_mut(owned.sid) {
        stream.set_armed_at_close();
    }
    let request = requests(core::slice::from_ref(owned));
    let outcomes = pci::quiesce(&bus.hardware, bus.topology, &request, Scope::All);
    let reset = outcomes.iter().all(|outcome| outcome.how.is_reset() && outcome.clean);
    if reset { Past::Clean } else { Past::Noisy }
}

fn build_space(
    ram: &GuestRam,
    smmu: Option<&GuestSmmu>,
    format: Format,
) -> Result<Space, Stage2Error> {
    let (memory, mut frames) = (TableWords, TableFrames);
    let mut cpu = Stage2::new(format, &mut frames)?;
    let mut dma = Stage2::new(format, &mut frames)?;
    let mut end = Pa::new(0);
    for segment in ram.segments() {
        cpu.map(&memory, &mut frames, segment.ipa, segment.pa, segment.size, Attributes::RAM)?;
        end = end.max(Pa::new(segment.ipa.raw() + segment.size));
    }
    // Nothing but RAM lies in the GiB that RAM touches, so the devices' root can lead to the CPUs' tables.
    let shared = (end.raw() - guest_map::RAM.raw()).next_multiple_of(1 << 30);
    dma.share(&memory, &mut frames, &mut cpu, guest_map::RAM, shared)?;
    for (ipa, pa) in smmu.into_iter().flat_map(|smmu| smmu.frames().map(guest_map::SMMU)) {
        cpu.map(&memory, &mut frames, ipa, pa, PAGE_SIZE, Attributes::REGISTERS)?;
    }
    Ok(Space { cpu, dma, tables_left: BAR_TABLES })
}
