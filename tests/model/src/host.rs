//! A hypervisor in miniature: it drives the `smmu` crate through the life of a few VMs, and tells the judge
//! what each step promises.

use std::collections::BTreeSet;

use smmu::addr::{Iova, Ipa, PAGE_SIZE, Pa, StreamId, VmIndex, Vmid};
use smmu::caps::{Class, Refusal};
use smmu::cmd::{Command, Pages};
use smmu::device::{Budgets, Config, Configuration, Smmu};
use smmu::error::HostError;
use smmu::format::cd::Cd;
use smmu::format::{Address, AddressSize};
use smmu::ports::Hardware;
use smmu::stage2::{Attributes, Stage2};
use smmu::ste::Stage1Config;
use smmu::streams::{Stage2Binding, State, Streams};
use smmu::teardown::Closed;

use crate::machine::{Machine, Outcome, Transaction, VmId};
use crate::memory::FORBIDDEN;
use crate::violation::Property;

/// Where a VM's RAM begins in its address space: 4 MiB of it.
pub const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 4 << 20;
/// A page that devices may only read.
pub const ROM: u64 = 0x5000_0000;
/// Where a guest keeps its CD and stage-1 tables.
pub const CONTEXT: u64 = RAM + 0x30_0000;
/// A page that is never taken away.
const ALWAYS: u64 = CONTEXT + 4 * PAGE_SIZE;
/// How many VMs there are.
pub const VMS: usize = 2;

/// What the hypervisor does next. Numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Gives a closed stream to a VM and opens it.
    Open(usize, usize),
    /// Does with a stream what its owner's own stream table says: 0 to 2 are abort, refuse and stage 2 only,
    /// others are stage 1 with one of two CDs.
    Configure(usize, usize, usize),
    /// Relays one of the VM's own invalidations, and waits for it.
    Relay(usize, usize),
    /// Closes a VM's streams.
    Close(usize),
    /// Closes a VM's streams, quiesces its devices, gives everything back and starts it anew under the same
    /// VMID with other memory; or, if one of them does not stop, never uses anything of it again.
    Restart(usize),
    /// Watches a closed stream.
    Watch(usize),
    /// Ends a watch.
    Silence(usize),
    /// Takes a VM some pages away.
    Unmap(usize, u64, u64),
    /// Gives a VM the pages back that it lacks.
    Remap(usize),
    /// Takes events and services errors.
    Drain,
    /// A stream's device does more that is refused than its budget has events for.
    Flood(usize),
    /// Lets devices and SMMU act.
    Idle(usize),
    /// Lets a mute end.
    Time,
    /// A device takes no notice of resets any more.
    Stick(usize),
}

impl Op {
    /// The VM that does it, or that it is done to.
    fn vm(self) -> Option<usize> {
        match self {
            Self::Open(_, vm)
            | Self::Configure(_, vm, _)
            | Self::Relay(vm, _)
            | Self::Close(vm)
            | Self::Restart(vm)
            | Self::Unmap(vm, _, _)
            | Self::Remap(vm) => Some(vm % VMS),
            Self::Watch(_)
            | Self::Silence(_)
            | Self::Drain
            | Self::Flood(_)
            | Self::Idle(_)
            | Self::Time
            | Self::Stick(_) => None,
        }
    }
}

/// A VM.
struct Guest {
    id: VmId,
    index: VmIndex,
    vmid: Vmid,
    generation: u64,
    tables: Stage2,
    binding: Stage2Binding,
    /// Pages of RAM that it lacks: first and count.
    missing: Vec<(u64, u64)>,
    /// Streams that it has.
    has: BTreeSet<u32>,
    /// Streams that it has had since it was created.
    had: BTreeSet<u32>,
    /// A device of its did not stop: it never runs again, and nothing of it is reused.
    quarantined: bool,
}

/// Which precaution the hypervisor forgets, for tests of the tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carelessness {
    /// Memory is reused without a reset of the devices.
    pub no_quiesce: bool,
    /// Memory is reused though a device did not stop.
    pub no_quarantine: bool,
    /// Unmapped pages are reused without an invalidation.
    pub no_invalidation: bool,
}

/// The hypervisor.
pub struct Host<'a, H: Hardware> {
    machine: &'a Machine,
    /// The driver under test.
    pub smmu: Smmu<'a, H>,
    guests: Vec<Guest>,
    sids: [u32; 3],
    careless: Carelessness,
}

/// A small configuration: short queues wrap soon, small budgets are spent soon.
pub fn config(sid_bits: u8) -> Config {
    Config {
        command_queue_log2: 3,
        event_queue_log2: 4,
        budgets: Budgets { live_events: 6, window_us: 100_000, mute_us: 400_000, watch_events: 5 },
        ..Config::new(sid_bits, 44, false)
    }
}

impl<'a, H: Hardware> Host<'a, H> {
    /// Takes the SMMU over and creates the VMs, with all streams closed.
    ///
    /// # Errors
    ///
    /// The driver's refusal.
    pub fn start(
        machine: &'a Machine,
        hardware: H,
        streams: &'a mut Streams,
        sid_bits: u8,
    ) -> Result<Self, Refusal> {
        let sids = if sid_bits > 8 { [0x10, 0x11, 0x318] } else { [1, 2, 3] };
        for sid in sids {
            machine.add_device(sid);
        }
        for address in
            [RAM, RAM + 0x3008, RAM + 0x1f_f000, RAM + 0x20_0000, ROM, ROM + 0x1000, 1 << 41]
        {
            machine.tempt(address);
        }
        let smmu = Smmu::take_over(hardware, &config(sid_bits), streams, &mut machine.frames())?;
        machine.taken_over();
        let mut host =
            Self { machine, smmu, guests: Vec::new(), sids, careless: Carelessness::default() };
        for vm in 0..VMS {
            let guest = host.guest(vm, 0);
            host.guests.push(guest);
        }
        Ok(host)
    }

    /// Makes the hypervisor forget a precaution.
    pub fn set_careless(&mut self, careless: Carelessness) {
        self.careless = careless;
    }

    /// The StreamIDs in use.
    pub fn sids(&self) -> [u32; 3] {
        self.sids
    }

    /// Where the RAM of the VM is.
    pub fn backing(&self, vm: usize) -> u64 {
        backing(vm, self.guests[vm].generation)
    }

    fn guest(&self, vm: usize, generation: u64) -> Guest {
        let machine = self.machine;
        let mut frames = machine.frames();
        let mut tables = Stage2::new(self.smmu.format(), &mut frames).expect("there is memory");
        let vmid = Vmid(vm as u16 + 1);
        let id = machine.add_vm(vmid.0, tables.root().raw());
        let pa = backing(vm, generation);
        let rom = pa + 2 * RAM_SIZE;
        machine.give(id, RAM, pa, RAM_SIZE, true);
        machine.give(id, ROM, rom, PAGE_SIZE, false);
        let memory = self.smmu.hardware();
        let read_only = Attributes { write: false, ..Attributes::RAM };
        for (ipa, pa, size, attributes) in
            [(RAM, pa, RAM_SIZE, Attributes::RAM), (ROM, rom, PAGE_SIZE, read_only)]
        {
            tables
                .map(memory, &mut frames, Ipa::new(ipa), Pa::new(pa), size, attributes)
                .expect("nothing is mapped there");
        }
        write_stage1(machine, pa);
        machine.tempt(pa);
        machine.tempt(tables.root().raw());
        let binding = Stage2Binding::new(&tables, vmid);
        let index = VmIndex(vm as u8);
        Guest {
            id,
            index,
            vmid,
            generation,
            tables,
            binding,
            missing: Vec::new(),
            has: BTreeSet::new(),
            had: BTreeSet::new(),
            quarantined: false,
        }
    }

    fn state(&self, sid: u32) -> Option<State> {
        self.smmu.streams().find(|stream| stream.sid().0 == sid).map(|stream| stream.state())
    }

    fn is_open(&self, sid: u32) -> bool {
        self.state(sid).is_some_and(State::is_open)
    }

    /// Does one thing, and takes its failure for the driver's: the hardware is well.
    pub fn expect(&mut self, op: Op) {
        if let Err(error) = self.apply(op) {
            self.machine.violate(Property::Progress, format!("{op:?}: {error}"));
        }
    }

    /// Does one thing.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn apply(&mut self, op: Op) -> Result<(), HostError> {
        if op.vm().is_some_and(|vm| self.is_quarantined(vm)) {
            return Ok(());
        }
        match op {
            Op::Open(stream, vm) => self.open(self.sids[stream % 3], vm % VMS),
            Op::Configure(stream, vm, to) => {
                self.configure(self.sids[stream % 3], vm % VMS, to % 5)
            }
            Op::Relay(vm, which) => self.relay(vm % VMS, which),
            Op::Close(vm) => self.close(vm % VMS).map(|_| ()),
            Op::Restart(vm) => self.restart(vm % VMS),
            Op::Watch(stream) => {
                let sid = self.sids[stream % 3];
                if self.state(sid).is_none_or(State::is_open) {
                    return Ok(());
                }
                self.smmu.watch(StreamId(sid))
            }
            Op::Silence(stream) => {
                let sid = self.sids[stream % 3];
                if self.state(sid).is_none_or(State::is_open) {
                    return Ok(());
                }
                self.smmu.silence(StreamId(sid))
            }
            Op::Unmap(vm, page, count) => self.unmap(vm % VMS, page % 1000, count % 8 + 1),
            Op::Remap(vm) => {
                self.remap(vm % VMS);
                Ok(())
            }
            Op::Drain => {
                self.smmu.drain_events(20, &mut |_, _| ())?;
                self.smmu.service_gerror()
            }
            Op::Flood(stream) => {
                let sid = self.sids[stream % 3];
                for _ in 0..4 * config(0).budgets.live_events {
                    let _ = self.machine.dma(Transaction::write(sid, 1 << 41));
                    self.machine.run(4);
                    self.smmu.drain_events(20, &mut |_, _| ())?;
                }
                Ok(())
            }
            Op::Idle(steps) => {
                self.machine.run(steps);
                Ok(())
            }
            Op::Time => {
                self.machine.pass_time(500_000);
                Ok(())
            }
            Op::Stick(stream) => {
                self.machine.stick(self.sids[stream % 3]);
                Ok(())
            }
        }
    }

    fn open(&mut self, sid: u32, vm: usize) -> Result<(), HostError> {
        if self.is_open(sid) || !self.claim(sid, vm)? {
            return Ok(());
        }
        let binding = self.guests[vm].binding;
        self.smmu.open_stage2(StreamId(sid), &binding)?;
        self.check_alive();
        Ok(())
    }

    /// What the VM's streams are bound to.
    pub fn binding(&self, vm: usize) -> Stage2Binding {
        self.guests[vm].binding
    }

    /// Whether a device of the VM's did not stop when it was to.
    pub fn is_quarantined(&self, vm: usize) -> bool {
        self.guests[vm].quarantined
    }

    /// Gives a stream to a VM, unless another VM has it, or had it and is in quarantine.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn claim(&mut self, sid: u32, vm: usize) -> Result<bool, HostError> {
        if self.guests.iter().enumerate().any(|(other, guest)| {
            let kept = if guest.quarantined { &guest.had } else { &guest.has };
            other != vm && kept.contains(&sid)
        }) {
            return Ok(false);
        }
        let Guest { index, id, .. } = self.guests[vm];
        if self.guests[vm].has.insert(sid) {
            self.guests[vm].had.insert(sid);
            self.smmu.attach(StreamId(sid), Some(index), &mut self.machine.frames())?;
        }
        self.machine.permit(sid, id);
        Ok(true)
    }

    fn configure(&mut self, sid: u32, vm: usize, to: usize) -> Result<(), HostError> {
        if to > 2 && self.smmu.class() != Class::Nested || !self.claim(sid, vm)? {
            return Ok(());
        }
        let configuration = match to {
            0 => Configuration::Abort,
            1 => Configuration::Refuse,
            2 => Configuration::Stage2,
            number => Configuration::Nested(Stage1Config {
                context: Ipa::new(context(number as u64 - 3)),
                inner: 1,
                outer: 1,
                shareability: 3,
            }),
        };
        let binding = self.guests[vm].binding;
        self.smmu.configure(StreamId(sid), &binding, &configuration)?;
        self.smmu.sync()?;
        if to < 2 {
            self.machine.check_closed(sid);
        }
        self.check_alive();
        Ok(())
    }

    fn relay(&mut self, vm: usize, which: usize) -> Result<(), HostError> {
        let Guest { index, vmid, .. } = self.guests[vm];
        let sid = StreamId(self.sids[which / 8 % 3]);
        // Now and then somebody else's.
        let vmid_named = if (which / 64).is_multiple_of(8) { Vmid(vmid.0 ^ 3) } else { vmid };
        let (address, pages) = (Iova::new(RAM + 0x3000), Pages::One);
        let asid = 5;
        let command = match which % 8 {
            0 => Command::TlbiNhAll { vmid: vmid_named },
            1 => Command::TlbiNhAsid { vmid: vmid_named, asid },
            2 => Command::TlbiNhVa {
                vmid: vmid_named,
                asid,
                address,
                pages,
                leaf: (which / 24).is_multiple_of(2),
            },
            3 => Command::TlbiNhVaa {
                vmid: vmid_named,
                address,
                pages,
                leaf: (which / 24).is_multiple_of(2),
            },
            4 => Command::CfgiCd { sid, ssid: 0, leaf: true },
            5 => Command::CfgiCdAll { sid },
            6 => Command::TlbiS12Vmall { vmid },
            _ => Command::CfgiAll,
        };
        let owned =
            self.smmu.streams().any(|stream| stream.sid() == sid && stream.owner() == Some(index));
        let allowed = match which % 8 {
            0..=3 => self.smmu.class() == Class::Nested && vmid_named == vmid,
            4 | 5 => owned,
            _ => false,
        };
        if which % 8 < 4 && self.smmu.class() != Class::Nested {
            return Ok(());
        }
        match self.smmu.relay(index, vmid, command) {
            Err(HostError::Foreign(_)) if !allowed => Ok(()),
            Ok(()) if allowed => self.smmu.sync(),
            Err(error) if allowed => Err(error),
            other => {
                let what = format!("{command:?} for VM {vm}: {other:?}");
                self.machine.violate(Property::LegalUse, what);
                Ok(())
            }
        }
    }

    /// What the open streams' owners were given is there for them, whatever happens to others.
    fn check_alive(&self) {
        if self.machine.has_failed() {
            // A stream that failed to open half-way counts as open.
            return;
        }
        for stream in self.smmu.streams().filter(|stream| stream.state().is_open()) {
            // Where nothing else silences it, a muted stream aborts.
            if stream.is_muted() {
                continue;
            }
            let sid = stream.sid().0;
            let outcome = self.machine.dma(Transaction::write(sid, ALWAYS));
            if !matches!(outcome, Outcome::Reaches(_)) {
                let what = format!("DMA of the open stream {sid:#x} is {outcome:?}");
                self.machine.violate(Property::Progress, what);
            }
        }
    }

    /// Closes a VM's streams, and tells the judge that they are.
    ///
    /// # Errors
    ///
    /// The driver's; then the streams still count as open.
    pub fn close(&mut self, vm: usize) -> Result<Closed, HostError> {
        let Guest { index, vmid, .. } = self.guests[vm];
        let proof = self.smmu.close(index, vmid)?;
        for sid in std::mem::take(&mut self.guests[vm].has) {
            self.machine.forbid(sid);
        }
        self.machine.forgotten(proof.vmid().0);
        self.check_alive();
        Ok(proof)
    }

    fn restart(&mut self, vm: usize) -> Result<(), HostError> {
        let proof = self.close(vm)?;
        let mut quiet = true;
        if !self.careless.no_quiesce {
            for &sid in &self.guests[vm].had {
                quiet &= self.machine.reset_device(sid);
            }
        }
        if !quiet && !self.careless.no_quarantine {
            // That the SMMU has forgotten it is not enough.
            self.machine.quarantine(self.guests[vm].id);
            self.guests[vm].quarantined = true;
            return Ok(());
        }
        self.machine.retire(self.guests[vm].id);
        let next = self.guest(vm, self.guests[vm].generation + 1);
        let old = std::mem::replace(&mut self.guests[vm], next);
        old.tables.release(self.smmu.hardware(), &mut self.machine.frames(), &proof);
        Ok(())
    }

    fn unmap(&mut self, vm: usize, page: u64, count: u64) -> Result<(), HostError> {
        // The guest's own tables stay: without them nothing is translated any more.
        let count = count.min((CONTEXT - RAM) / PAGE_SIZE - page.min(767)).min(8);
        let page = page.min(760);
        let Guest { id, vmid, tables, missing, .. } = &mut self.guests[vm];
        let (ipa, size) = (Ipa::new(RAM + page * PAGE_SIZE), count * PAGE_SIZE);
        missing.push((page, count));
        let stale = tables
            .unmap(self.smmu.hardware(), &mut self.machine.frames(), ipa, size)
            .expect("there is memory for a split");
        if !self.careless.no_invalidation {
            self.smmu.invalidate(*vmid, &stale)?;
        }
        self.machine.take(*id, ipa.raw(), size);
        Ok(())
    }

    fn remap(&mut self, vm: usize) {
        let backing = self.backing(vm);
        let Guest { id, tables, missing, .. } = &mut self.guests[vm];
        let memory = self.smmu.hardware();
        for (first, count) in std::mem::take(missing) {
            for page in first..first + count {
                let (ipa, pa) = (Ipa::new(RAM + page * PAGE_SIZE), backing + page * PAGE_SIZE);
                if tables.translate(memory, ipa).is_some() {
                    continue;
                }
                self.machine.give(*id, ipa.raw(), pa, PAGE_SIZE, true);
                let mut frames = self.machine.frames();
                tables
                    .map(memory, &mut frames, ipa, Pa::new(pa), PAGE_SIZE, Attributes::RAM)
                    .expect("nothing is mapped there");
            }
        }
    }
}

/// Where a guest has its CDs.
const fn context(number: u64) -> u64 {
    CONTEXT + number * 64
}

/// Where the RAM of a VM's generation is: never twice the same.
const fn backing(vm: usize, generation: u64) -> u64 {
    0x10_0000_0000 * (vm as u64 + 1) + 0x100_0000 * generation
}

/// Writes a CD and stage-1 tables into the guest's memory: its RAM at the same address, at 0, and one page
/// of it, by three levels of tables, at 2 GiB.
fn write_stage1(machine: &Machine, pa: u64) {
    const LEAF: u64 = 1 << 10 | 3 << 8 | 1 << 6;
    let at = |ipa: u64| pa + (ipa - RAM);
    let table = |number: u64| CONTEXT + number * PAGE_SIZE;
    machine.clear_guest(at(CONTEXT), 4 * PAGE_SIZE);
    // Two of them, the same but for the ASID.
    for number in 0..2 {
        let cd = Cd {
            size0: 25,
            disable1: true,
            valid: true,
            output: AddressSize::Bits40,
            aarch64: true,
            record: true,
            abort: true,
            asid: 5 + number as u16,
            table0: Address(table(1)),
            ..Cd::default()
        };
        for (word, value) in cd.encode().into_iter().enumerate() {
            machine.write_guest(at(context(number)) + 8 * word as u64, value);
        }
        machine.add_context(context(number));
    }
    machine.write_guest(at(table(1)), RAM | LEAF | 0b01);
    machine.write_guest(at(table(1)) + 8, RAM | LEAF | 0b01);
    machine.write_guest(at(table(1)) + 16, table(2) | 0b11);
    machine.write_guest(at(table(2)), table(3) | 0b11);
    machine.write_guest(at(table(3)), (RAM + 0x3000) | LEAF | 0b11);
    machine.tempt(0x3008);
    machine.tempt(2 << 30);
    // What a guest would like to reach.
    machine.write_guest(at(table(3)) + 8, FORBIDDEN & 0xff_ffff_f000 | LEAF | 0b11);
    machine.tempt((2 << 30) + PAGE_SIZE);
}
