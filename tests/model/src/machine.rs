//! The machine around the SMMU: ports, devices, virtual machines, and the judge.

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use smmu::addr::Pa;
use smmu::ports::{Clock, Frames, Memory};

use crate::chooser::Chooser;
use crate::decode::{self, Ste};
use crate::memory::{FORBIDDEN, POISON, PhysicalMemory};
use crate::profile::Profile;
use crate::smmu::cache::{Caches, Translation, overlaps};
use crate::violation::{Property, Violation};

/// Where frames come from.
const FRAMES: u64 = 0x80_0000_0000;
/// Where firmware put its tables.
const FIRMWARE: u64 = 0x70_0000_0000;
/// The VMID of streams that are watched: no VM's.
const WATCH: u16 = 255;
/// What devices write.
const MARK: u64 = 0xd0d0_d0d0_d0d0_d0d0;
/// Caches larger than this forget something.
const CACHE_LIMIT: usize = 24;

/// What a device puts on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its StreamID.
    pub sid: u32,
    /// Its address.
    pub address: u64,
    /// Its direction.
    pub write: bool,
    /// Whether the device claims that the address is physical (ATS).
    pub translated: bool,
}

impl Transaction {
    /// An ordinary write.
    pub const fn write(sid: u32, address: u64) -> Self {
        Self { sid, address, write: true, translated: false }
    }
}

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It reaches this physical address, now or a little later.
    Reaches(u64),
    /// It aborts.
    Aborted,
    /// It passes untranslated.
    Bypassed,
    /// It waits for a command that names it by this tag.
    Stalled(u16),
}

/// What the adversary may do between two steps of the CPU, when it follows a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Consume a command.
    Consume,
    /// Read these words of an STE, or those missing since the last time.
    Fetch(u32, u8),
    /// A device does this, and the access stays under way.
    Dma(Transaction),
    /// Some store becomes visible.
    Leak,
    /// Everything under way completes.
    Land,
}

/// A VM as the judge knows it.
#[derive(Clone, Debug)]
struct Vm {
    vmid: u16,
    root: u64,
    retired: bool,
    /// Its devices may do DMA for ever.
    quarantined: bool,
    /// What its devices may reach: (IPA, PA, size, writable).
    mappings: Vec<(u64, u64, u64, bool)>,
}

/// An access on its way to memory, already translated.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// Whose it is; `None`: the SMMU's own, of a guest's table.
    pub sid: Option<u32>,
    /// The VM whose translation it uses.
    pub vm: Option<usize>,
    pub ipa: u64,
    pub pa: u64,
    pub write: bool,
    pub translation: Translation,
}

/// A DMA device.
#[derive(Clone, Debug, Default)]
struct Device {
    /// Buffers that it, or its model, has mapped: they can be reached without asking the SMMU again.
    mapped: Vec<(usize, u64, u64)>,
    /// It takes no notice of a reset.
    stuck: bool,
}

/// How hardware stops answering.
#[derive(Clone, Copy, Debug)]
enum Health {
    Well,
    /// It does this many things more.
    Failing(u64),
}

/// Everything there is.
pub(crate) struct World {
    pub chooser: Chooser,
    pub memory: PhysicalMemory,
    pub profile: Profile,
    pub regs: crate::smmu::Registers,
    pub caches: Caches,
    pub in_flight: Vec<Access>,
    pub late_events: VecDeque<[u64; 4]>,
    /// Transactions that wait, by their tags.
    pub stalled: Vec<(u16, Transaction)>,
    pub last_tag: u16,
    /// `GBPA.ABORT` has taken effect.
    pub closed: bool,
    /// The driver says that the SMMU is its own.
    pub taken_over: bool,
    pub commands: u64,
    pub events: u64,
    pub overflows: u64,
    operations: u64,
    health: Health,
    /// The hardware did not answer at least once.
    pub has_failed: bool,
    progress: u64,
    now_us: u64,
    next_frame: u64,
    frames_left: usize,
    vms: Vec<Vm>,
    permits: BTreeMap<u32, usize>,
    devices: BTreeMap<u32, Device>,
    addresses: Vec<u64>,
    /// Where guests have CDs.
    contexts: BTreeSet<u64>,
    firmware: Option<(u64, u64)>,
    violation: Option<Violation>,
    adversary: bool,
    menu: Vec<Action>,
}

impl World {
    pub(crate) fn violate(&mut self, property: Property, what: String) {
        self.violation.get_or_insert(Violation { property, what });
    }

    /// Whether the hardware still works; counts what it does.
    pub(crate) fn hardware_may_act(&mut self) -> bool {
        match &mut self.health {
            Health::Failing(0) => {
                self.has_failed = true;
                return false;
            }
            Health::Failing(left) => *left -= 1,
            Health::Well => {}
        }
        self.progress += 1;
        true
    }

    /// Whether what the SMMU is told is the driver's doing rather than a predecessor's.
    pub(crate) fn is_ours(&self) -> bool {
        self.taken_over || self.closed && self.regs.strtab_base & !(1 << 62) != FIRMWARE
    }

    /// Judges an STE that the SMMU has read, whether it will use it or not.
    pub(crate) fn judge(&mut self, sid: u32, words: &[u64; 8]) {
        if !self.is_ours() {
            return;
        }
        let stage2 = match decode::ste(words, &self.profile) {
            Ste::Abort => return,
            Ste::Bad(reason) => {
                let what = format!("stream {sid:#x} met a bad STE ({reason}): {words:x?}");
                return self.violate(Property::NoMixture, what);
            }
            Ste::Bypass | Ste::Stage1 => {
                let what = format!("stream {sid:#x} has an STE without stage 2: {words:x?}");
                return self.violate(Property::Stage2Always, what);
            }
            Ste::Nested(context, _) if !self.contexts.contains(&context) => {
                let what =
                    format!("stream {sid:#x} has its CD at {context:#x}, which nobody meant");
                return self.violate(Property::NoMixture, what);
            }
            Ste::Stage2(stage2) | Ste::Nested(_, stage2) => stage2,
        };
        if let Some(field) = decode::forbidden_in_ste(words, &self.profile) {
            self.violate(Property::Stage2Always, format!("{field} in the STE of stream {sid:#x}"));
        }
        let known = self.vms.iter().any(|vm| (vm.vmid, vm.root) == (stage2.vmid, stage2.table));
        if !known && stage2.vmid != WATCH {
            let what = format!("stream {sid:#x} met an STE that nobody meant: {stage2:x?}");
            self.violate(Property::NoMixture, what);
        }
    }

    /// Reads a word of the SMMU's own structures.
    pub(crate) fn read_own(&mut self, at: u64, what: &str) -> u64 {
        if !self.memory.is_live(at) {
            self.violate(
                Property::NoPoison,
                format!("the SMMU reads {what} at {at:#x}, which is not its"),
            );
            return POISON;
        }
        self.memory.observe(at, &mut self.chooser)
    }

    /// Writes a word of the SMMU's own structures.
    pub(crate) fn write_own(&mut self, at: u64, value: u64) {
        if !self.memory.is_live(at) {
            self.violate(Property::NoPoison, format!("the SMMU writes {at:#x}, which is not its"));
            return;
        }
        self.memory.store_dma(at, value);
    }

    pub(crate) fn vm_of(&self, vmid: u16) -> Option<usize> {
        self.vms.iter().rposition(|vm| vm.vmid == vmid)
    }

    /// A translation succeeded: the access is under way.
    pub(crate) fn accept(&mut self, transaction: Transaction, translation: Translation) -> Access {
        let Transaction { sid, address, write, .. } = transaction;
        let offset = address - translation.base;
        let access = Access {
            sid: Some(sid),
            vm: self.permits.get(&sid).copied(),
            ipa: translation.ipa + offset,
            pa: translation.pa + offset,
            write,
            translation,
        };
        self.check_landing(&access);
        access
    }

    /// Judges an access that reaches memory now.
    pub(crate) fn check_landing(&mut self, access: &Access) {
        let Access { sid, vm, ipa, pa, write, .. } = access;
        let who = sid.map_or("the SMMU".into(), |sid| format!("stream {sid:#x}"));
        let Some(vm) = *vm else {
            let what = format!("{who} reaches {pa:#x} though it is closed");
            return self.violate(Property::Confinement, what);
        };
        if self.vms[vm].retired {
            let what = format!("{who} reaches {pa:#x} of a VM that is gone");
            return self.violate(Property::NoReuseBeforeProof, what);
        }
        if let Some(sid) = sid
            && self.permits.get(sid) != Some(&vm)
        {
            let what = format!("{who} reaches {pa:#x} after it was closed");
            return self.violate(Property::NoReuseBeforeProof, what);
        }
        if !self.vms[vm].covers(*ipa, *pa, *write) {
            let what = format!("{who} reaches {pa:#x} for {ipa:#x}, which VM {vm} was not given");
            self.violate(Property::Confinement, what);
        }
    }

    fn land(&mut self, access: &Access) {
        self.check_landing(access);
        if access.write && !self.memory.is_live(access.pa) {
            self.memory.store_dma(access.pa & !7, MARK);
        }
    }

    pub(crate) fn land_all(&mut self) {
        for access in std::mem::take(&mut self.in_flight) {
            self.land(&access);
        }
    }

    pub(crate) fn land_doomed(&mut self) {
        let (doomed, rest) = std::mem::take(&mut self.in_flight)
            .into_iter()
            .partition(|access: &Access| access.translation.doomed);
        self.in_flight = rest;
        for access in Vec::<Access>::into_iter(doomed) {
            self.land(&access);
        }
    }

    pub(crate) fn dma(&mut self, transaction: Transaction) -> Outcome {
        match self.translate(transaction) {
            Err(outcome) => outcome,
            Ok(access) => {
                let outcome = Outcome::Reaches(access.pa);
                if let (Some(vm), Some(sid)) = (access.vm, access.sid)
                    && self.chooser.unusual(3)
                    && let Some(device) = self.devices.get_mut(&sid)
                {
                    device.mapped.push((vm, access.ipa, access.pa));
                }
                self.in_flight.push(access);
                outcome
            }
        }
    }

    /// A device uses a buffer that it mapped before.
    fn use_mapped(&mut self) {
        let mapped: Vec<(u32, (usize, u64, u64))> = self
            .devices
            .iter()
            .flat_map(|(sid, device)| device.mapped.iter().map(|buffer| (*sid, *buffer)))
            .collect();
        if mapped.is_empty() {
            return;
        }
        let (sid, (vm, ipa, pa)) = mapped[self.chooser.choose(mapped.len())];
        if self.vms[vm].retired {
            let what = format!(
                "device {sid:#x} writes its buffer at {pa:#x} ({ipa:#x}) of a VM that is gone"
            );
            self.violate(Property::NoReuseBeforeQuiesce, what);
        }
    }

    fn random_transaction(&mut self) -> Option<Transaction> {
        let sids: Vec<u32> = self.devices.keys().copied().collect();
        if sids.is_empty() || self.addresses.is_empty() {
            return None;
        }
        let sid = sids[self.chooser.choose(sids.len())];
        let address = self.addresses[self.chooser.choose(self.addresses.len())];
        let write = self.chooser.choose(3) != 0;
        let translated = self.chooser.choose(16) == 15;
        Some(Transaction { sid, address, write, translated })
    }

    /// The adversary's turn.
    fn step(&mut self) {
        self.operations += 1;
        if !self.adversary {
            return;
        }
        if self.chooser.is_scripted() {
            let choice = self.chooser.choose(self.menu.len() + 1);
            if let Some(index) = choice.checked_sub(1) {
                self.act(self.menu[index]);
            }
            return;
        }
        for _ in 0..self.chooser.choose(3) {
            self.act_at_random();
        }
        while self.caches.translations.len() + self.caches.walks.len() + self.caches.stes.len()
            > CACHE_LIMIT
        {
            let choice = self.chooser.choose(48);
            self.caches.evict(choice);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Consume => self.consume(1),
            Action::Fetch(sid, words) => self.fetch(sid, words),
            Action::Dma(transaction) => {
                let _ = self.dma(transaction);
            }
            Action::Leak => self.memory.leak(&mut self.chooser),
            Action::Land => self.land_all(),
        }
    }

    fn act_at_random(&mut self) {
        match self.chooser.choose(12) {
            0 | 1 => self.consume(1),
            2 | 3 => {
                let sids: Vec<u32> = self.devices.keys().copied().collect();
                if !sids.is_empty() {
                    let sid = sids[self.chooser.choose(sids.len())];
                    let words = self.chooser.choose(256) as u8;
                    self.fetch(sid, words);
                }
            }
            4..=6 => {
                if let Some(transaction) = self.random_transaction() {
                    let _ = self.dma(transaction);
                }
            }
            7 => {
                if !self.in_flight.is_empty() {
                    let index = self.chooser.choose(self.in_flight.len());
                    let access = self.in_flight.swap_remove(index);
                    self.land(&access);
                }
            }
            8 => {
                let choice = self.chooser.choose(48);
                self.caches.evict(choice);
            }
            9 => self.memory.leak(&mut self.chooser),
            10 => self.deliver(1),
            _ => {
                self.use_mapped();
                self.acknowledge();
            }
        }
    }

    /// Looks for anything that still knows the VM or these tables.
    fn check_forgotten(&mut self, vmid: Option<u16>, block: Option<(u64, u64)>, what: &str) {
        let tagged = |tag: u16| Some(tag) == vmid;
        let inside = |at: u64| block.is_some_and(|block| overlaps(block, (at, 1)));
        let caches = &self.caches;
        let mut known = None;
        if caches.translations.iter().any(|entry| tagged(entry.vmid) || inside(entry.pa)) {
            known = Some("a translation");
        } else if caches.walks.iter().any(|walk| tagged(walk.vmid) || inside(walk.next)) {
            known = Some("a table");
        } else if caches.stes.iter().any(|ste| {
            let open = ste.words[0] & 0b1101 == 0b1101;
            open && (tagged(ste.words[2] as u16) || inside(ste.words[3] & 0x000f_ffff_ffff_fff0))
        }) {
            known = Some("an STE");
        } else if self.in_flight.iter().any(|access| tagged(access.translation.vmid)) {
            known = Some("an access under way");
        }
        if let Some(known) = known {
            let what = format!("the SMMU still has {known} when {what}");
            self.violate(Property::NoReuseBeforeProof, what);
        }
    }
}

impl Vm {
    fn covers(&self, ipa: u64, pa: u64, write: bool) -> bool {
        self.mappings.iter().any(|(start, target, size, writable)| {
            ipa.checked_sub(*start).is_some_and(|offset| offset < *size && target + offset == pa)
                && (*writable || !write)
        })
    }
}

/// A VM of the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmId(usize);

/// The machine. It implements the ports of the `smmu` crate.
pub struct Machine(RefCell<World>);

impl Machine {
    /// A machine after reset, with an adversary that decides by `chooser` once it is let loose.
    pub fn new(profile: Profile, chooser: Chooser) -> Self {
        let regs = crate::smmu::Registers {
            // Use-incoming shareability, ABORT=0.
            gbpa: 0x1000,
            gbpa_before: 0x1000,
            ..Default::default()
        };
        let mut chooser = chooser;
        chooser.pause(true);
        Self(RefCell::new(World {
            chooser,
            memory: PhysicalMemory::default(),
            profile,
            regs,
            caches: Caches::default(),
            in_flight: Vec::new(),
            late_events: VecDeque::new(),
            stalled: Vec::new(),
            last_tag: 0,
            closed: false,
            taken_over: false,
            commands: 0,
            events: 0,
            overflows: 0,
            operations: 0,
            health: Health::Well,
            has_failed: false,
            progress: 0,
            now_us: 0,
            next_frame: FRAMES,
            frames_left: usize::MAX,
            vms: Vec::new(),
            permits: BTreeMap::new(),
            devices: BTreeMap::new(),
            addresses: vec![0, FORBIDDEN],
            contexts: BTreeSet::new(),
            firmware: None,
            violation: None,
            adversary: false,
            menu: Vec::new(),
        }))
    }

    fn world(&self) -> RefMut<'_, World> {
        self.0.borrow_mut()
    }

    /// Leaves the SMMU as careless firmware would: enabled, with a linear table of STEs that bypass, an
    /// error pending, and everything cached.
    pub fn boot_firmware(&self) {
        let mut world = self.world();
        let log2 = 8_u32;
        let size = 64 << log2;
        world.memory.allocate(FIRMWARE, size);
        for index in 0..1 << log2 {
            // V=1, Config=0b100.
            world.memory.store(FIRMWARE + index * 64, 0b1001);
        }
        world.memory.flush();
        world.firmware = Some((FIRMWARE, size));
        world.regs.strtab_base = FIRMWARE;
        world.regs.strtab_base_cfg = log2;
        (world.regs.cr0, world.regs.cr0ack) = (1, 1);
        world.regs.gerror = 1;
        for sid in 0..1 << log2 {
            world.fetch(sid, 0xff);
        }
        for vmid in 0..=255 {
            world.caches.translations.push(Translation {
                vmid,
                asid: None,
                base: 0,
                size: 1 << 40,
                ipa: 0,
                pa: 0,
                read: true,
                write: true,
                doomed: false,
            });
        }
    }

    /// Lets the adversary act between steps, or stops it.
    pub fn set_adversary(&self, on: bool) {
        let mut world = self.world();
        world.adversary = on;
        world.chooser.pause(!on);
    }

    /// What an adversary with a script chooses from.
    pub fn set_menu(&self, menu: Vec<Action>) {
        self.world().menu = menu;
    }

    /// Gives the adversary `steps` turns.
    pub fn run(&self, steps: usize) {
        for _ in 0..steps {
            self.world().step();
        }
    }

    /// The driver says that the SMMU is its own: from now on nothing may pass around the stream table,
    /// and firmware's tables are anybody's memory.
    pub fn taken_over(&self) {
        let mut world = self.world();
        world.taken_over = true;
        if !world.closed {
            world.violate(Property::ClosedFromTheStart, "GBPA.ABORT was never set".into());
        }
        if let Some((at, size)) = world.firmware.take() {
            world.check_forgotten(None, Some((at, size)), "it was taken over");
            if world.caches.stes.iter().any(|ste| ste.words[0] == 0b1001) {
                world.violate(
                    Property::ClosedFromTheStart,
                    "firmware's STEs are still cached".into(),
                );
            }
            if world.caches.translations.iter().any(|entry| entry.size == 1 << 40) {
                world.violate(
                    Property::ClosedFromTheStart,
                    "firmware's translations are still cached".into(),
                );
            }
            world.memory.release(at, size);
        }
    }

    /// A VM whose stage 2 begins at `root` and whose translations are tagged `vmid`.
    pub fn add_vm(&self, vmid: u16, root: u64) -> VmId {
        let mut world = self.world();
        if world.vms.iter().any(|vm| vm.quarantined && vm.vmid == vmid) {
            let what = format!("VMID {vmid} is used again though its VM is in quarantine");
            world.violate(Property::NoReuseBeforeQuiesce, what);
        }
        let mappings = Vec::new();
        world.vms.push(Vm { vmid, root, retired: false, quarantined: false, mappings });
        VmId(world.vms.len() - 1)
    }

    /// From now on the VM's devices may reach this.
    pub fn give(&self, VmId(vm): VmId, ipa: u64, pa: u64, size: u64, writable: bool) {
        self.world().vms[vm].mappings.push((ipa, pa, size, writable));
    }

    /// From now on they may no longer.
    pub fn take(&self, VmId(vm): VmId, ipa: u64, size: u64) {
        let mut world = self.world();
        let end = ipa + size;
        let old = std::mem::take(&mut world.vms[vm].mappings);
        for (start, pa, length, writable) in old {
            let last = start + length;
            if start < ipa.min(last) {
                world.vms[vm].mappings.push((start, pa, ipa.min(last) - start, writable));
            }
            if last > end.max(start) {
                let first = end.max(start);
                world.vms[vm].mappings.push((first, pa + (first - start), last - first, writable));
            }
        }
        // The memory may be anybody's now: nothing may know the way to it.
        let vmid = world.vms[vm].vmid;
        let stale = world
            .caches
            .translations
            .iter()
            .any(|entry| entry.vmid == vmid && overlaps((entry.ipa, entry.size), (ipa, size)));
        if stale {
            world.violate(
                Property::NoReuseBeforeProof,
                "the SMMU still has a translation of memory that was taken away".into(),
            );
        }
        let late = world.in_flight.iter().any(|access| {
            access.translation.vmid == vmid && overlaps((access.ipa, 1), (ipa, size))
        });
        if late {
            world.violate(
                Property::NoReuseBeforeProof,
                "an access to memory that was taken away is still under way".into(),
            );
        }
    }

    /// The driver says that the SMMU has forgotten everything that is tagged `vmid`.
    pub fn forgotten(&self, vmid: u16) {
        self.world().check_forgotten(Some(vmid), None, "its VM is closed");
    }

    /// The VM's memory and VMID are anybody's from now on.
    pub fn retire(&self, VmId(vm): VmId) {
        let mut world = self.world();
        let vmid = world.vms[vm].vmid;
        world.check_forgotten(Some(vmid), None, "its VM is retired");
        let armed =
            world.devices.values().any(|device| device.mapped.iter().any(|buffer| buffer.0 == vm));
        if armed {
            world.violate(
                Property::NoReuseBeforeQuiesce,
                "a device still has a buffer of the VM that is retired".into(),
            );
        }
        if world.vms[vm].quarantined {
            world.violate(
                Property::NoReuseBeforeQuiesce,
                "a VM is retired though it is in quarantine".into(),
            );
        }
        world.vms[vm].retired = true;
    }

    /// Nothing of the VM may be anybody else's any more: its memory, its tables, its VMID.
    pub fn quarantine(&self, VmId(vm): VmId) {
        self.world().vms[vm].quarantined = true;
    }

    /// From now on the stream may reach what the VM was given.
    pub fn permit(&self, sid: u32, VmId(vm): VmId) {
        self.world().permits.insert(sid, vm);
    }

    /// From now on the stream reaches nothing.
    pub fn forbid(&self, sid: u32) {
        self.world().permits.remove(&sid);
        self.check_closed(sid);
    }

    /// The driver says that no transaction of the stream gets through from now on.
    pub fn check_closed(&self, sid: u32) {
        let mut world = self.world();
        let open = world.caches.stes.iter().any(|ste| {
            ste.sid == sid && ste.words[0] & 0b1101 == 0b1101 && ste.words[2] as u16 != 255
        });
        if open {
            let what = format!("stream {sid:#x} is closed, and the SMMU still has an open STE");
            world.violate(Property::NoReuseBeforeProof, what);
        }
    }

    /// Plugs in a device.
    pub fn add_device(&self, sid: u32) {
        self.world().devices.entry(sid).or_default();
    }

    /// Pulls all devices out: only [`Machine::dma`] makes transactions from now on.
    pub fn unplug_all(&self) {
        let mut world = self.world();
        world.land_all();
        world.devices.clear();
    }

    /// Resets a device: it forgets its buffers, and what it had under way completes before. Returns whether it did.
    pub fn reset_device(&self, sid: u32) -> bool {
        let mut world = self.world();
        world.land_all();
        let device = world.devices.entry(sid).or_default();
        if !device.stuck {
            device.mapped.clear();
        }
        !device.stuck
    }

    /// From now on the device takes no notice of a reset.
    pub fn stick(&self, sid: u32) {
        self.world().devices.entry(sid).or_default().stuck = true;
    }

    /// The device maps the buffer of a transaction that the SMMU lets through, and keeps it until it is reset.
    pub fn map_buffer(&self, transaction: Transaction) {
        let mut world = self.world();
        if let Ok(Access { sid: Some(sid), vm: Some(vm), ipa, pa, .. }) =
            world.translate(transaction)
        {
            world.devices.entry(sid).or_default().mapped.push((vm, ipa, pa));
        }
    }

    /// An intermediate physical address where guests have a CD.
    pub fn add_context(&self, ipa: u64) {
        self.world().contexts.insert(ipa);
    }

    /// An address that devices try.
    pub fn tempt(&self, address: u64) {
        self.world().addresses.push(address);
    }

    /// A device's transaction; the access may stay under way.
    pub fn dma(&self, transaction: Transaction) -> Outcome {
        self.world().dma(transaction)
    }

    /// Everything under way completes.
    pub fn land(&self) {
        self.world().land_all();
    }

    /// The hardware stops answering after it has done `progress` things more.
    pub fn fail_after(&self, progress: u64) {
        self.world().health = Health::Failing(progress);
    }

    /// The hardware answers again.
    pub fn heal(&self) {
        self.world().health = Health::Well;
    }

    /// Whether the hardware ever failed to answer.
    pub fn has_failed(&self) -> bool {
        self.world().has_failed
    }

    /// How many things the hardware did: commands consumed, registers acknowledged.
    pub fn progress(&self) -> u64 {
        self.world().progress
    }

    /// How often the CPU did anything: stores, barriers, register accesses, looks at the clock.
    pub fn operations(&self) -> u64 {
        self.world().operations
    }

    /// How many commands were consumed, how many event records written, and how often there was no room for one.
    pub fn counts(&self) -> (u64, u64, u64) {
        let world = self.world();
        (world.commands, world.events, world.overflows)
    }

    /// How many event records wait to be read or written.
    pub fn events_waiting(&self) -> u32 {
        let world = self.world();
        let mask = (2_u32 << (world.regs.eventq_base & 0x1f)) - 1;
        (world.regs.eventq_prod.wrapping_sub(world.regs.eventq_cons) & mask)
            + world.late_events.len() as u32
    }

    /// Lets time pass.
    pub fn pass_time(&self, us: u64) {
        self.world().now_us += us;
    }

    /// What was broken first.
    pub fn violation(&self) -> Option<Violation> {
        self.world().violation.clone()
    }

    /// Breaks a property on behalf of a test that saw it.
    pub fn violate(&self, property: Property, what: String) {
        self.world().violate(property, what);
    }

    /// The decisions made, at the end.
    pub fn into_chooser(self) -> Chooser {
        self.0.into_inner().chooser
    }

    /// Gives frames out of the machine's memory.
    pub fn frames(&self) -> Pool<'_> {
        Pool(self)
    }

    /// Allows `count` more blocks to be given out.
    pub fn limit_frames(&self, count: usize) {
        self.world().frames_left = count;
    }

    /// How many blocks are given out.
    pub fn live_blocks(&self) -> usize {
        self.world().memory.live_blocks()
    }

    /// Where the STE of a stream is in a linear table.
    pub fn ste_address(&self, sid: u32) -> Pa {
        Pa::new((self.world().regs.strtab_base & 0x000f_ffff_ffff_ffc0) + u64::from(sid) * 64)
    }

    /// Writes a command into a slot of the queue, visibly.
    pub fn command(&self, slot: u32, words: [u64; 2]) {
        let mut world = self.world();
        let log2 = world.regs.cmdq_base & 0x1f;
        let slot = u64::from(slot) & ((1 << log2) - 1);
        let at = (world.regs.cmdq_base & 0x00ff_ffff_ffff_ffe0) + slot * 16;
        world.memory.store_dma(at, words[0]);
        world.memory.store_dma(at + 8, words[1]);
    }

    /// The event record in a slot of the queue.
    pub fn event(&self, slot: u32) -> Option<[u64; 4]> {
        let world = self.world();
        let at = (world.regs.eventq_base & 0x00ff_ffff_ffff_ffe0) + u64::from(slot) * 32;
        world
            .memory
            .is_live(at)
            .then(|| core::array::from_fn(|word| world.memory.load(at + word as u64 * 8)))
    }

    /// The VMIDs of which translations are cached, in order.
    pub fn cached_vmids(&self) -> Vec<u16> {
        let world = self.world();
        let mut vmids: Vec<u16> =
            world.caches.translations.iter().map(|entry| entry.vmid).collect();
        vmids.sort_unstable();
        vmids.dedup();
        vmids
    }

    /// Clears pages of guest memory, as the guest's CPU, visibly.
    pub fn clear_guest(&self, pa: u64, size: u64) {
        self.world().memory.clear_dma(pa, size);
    }

    /// Writes guest memory, as the guest's CPU, visibly.
    pub fn write_guest(&self, pa: u64, value: u64) {
        self.world().memory.store_dma(pa, value);
    }
}

impl smmu::ports::Registers for Machine {
    fn read32(&self, offset: u32) -> u32 {
        let mut world = self.world();
        world.step();
        world.read_register(offset) as u32
    }

    fn write32(&self, offset: u32, value: u32) {
        let mut world = self.world();
        world.step();
        world.write_register(offset, value.into(), 4);
        world.step();
    }

    fn write64(&self, offset: u32, value: u64) {
        let mut world = self.world();
        world.step();
        world.write_register(offset, value, 8);
        world.step();
    }
}

impl Memory for Machine {
    fn load(&self, at: Pa) -> u64 {
        assert!(at.is_aligned(8), "{at} is no word");
        self.world().memory.load(at.raw())
    }

    fn store(&self, at: Pa, value: u64) {
        assert!(at.is_aligned(8), "{at} is no word");
        let mut world = self.world();
        if !world.memory.is_live(at.raw()) {
            world.violate(
                Property::NoPoison,
                format!("the driver writes {at}, which it does not own"),
            );
        }
        world.check_store(at.raw());
        world.memory.store(at.raw(), value);
        world.step();
    }

    fn publish(&self) {
        let mut world = self.world();
        world.memory.barrier();
        world.step();
    }
}

impl Clock for Machine {
    fn now_us(&self) -> u64 {
        let mut world = self.world();
        world.step();
        // A wait for hardware that does not answer is not simulated to its end.
        world.now_us += if matches!(world.health, Health::Failing(0)) { 50_000 } else { 10 };
        world.now_us
    }
}

/// The machine's memory, given out block by block. No block is given out twice, so that whoever uses one
/// after its release is caught.
pub struct Pool<'m>(&'m Machine);

impl Frames for Pool<'_> {
    fn allocate(&mut self, size: u64) -> Option<Pa> {
        assert!(size.is_power_of_two() && size >= 4096, "{size:#x} is no block");
        let mut world = self.0.world();
        world.frames_left = world.frames_left.checked_sub(1)?;
        let at = world.next_frame.next_multiple_of(size);
        world.next_frame = at + size;
        world.memory.allocate(at, size);
        Some(Pa::new(at))
    }

    fn release(&mut self, at: Pa, size: u64) {
        let mut world = self.0.world();
        world.check_forgotten(None, Some((at.raw(), size)), "its tables are given back");
        if world.vms.iter().any(|vm| vm.quarantined && overlaps((at.raw(), size), (vm.root, 1))) {
            let what = "tables are given back though their VM is in quarantine".into();
            world.violate(Property::NoReuseBeforeQuiesce, what);
        }
        world.memory.release(at.raw(), size);
    }
}
