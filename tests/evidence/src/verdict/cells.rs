//! The table's cells, and what keeps their sources from agreeing on them.

use std::collections::BTreeMap;

use smmu::addr::{Iova, PAGE_SIZE};

use super::agreement::named;
use super::place::{Place, physical, place, translate};
use super::table::thousands;
use crate::machine::{Device, Machine, Vm};
use crate::memory::{self, Found, RamFile};
use crate::oracle;
use crate::report::{self, Report};
use crate::testimony::{self, Armed, Leads, Op, Testimony, Tried};
use crate::trace::{Stream, Trace};

/// What a device of a built-in guest that leaves devices behind is given lies in one block of so many bytes.
const ROOM: u64 = 16 * PAGE_SIZE;

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Address and kind of the device.
    pub device: String,
    /// Its VM.
    pub owner: String,
    /// What was aimed at.
    pub tried: String,
    /// Accesses that went through.
    pub allowed: u64,
    /// Accesses that did not.
    pub stopped: u64,
    /// What became of the target.
    pub canary: Canary,
}

/// What became of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// It is as its owner left it.
    Ok,
    /// It changed, at this physical or guest address if that is known.
    Changed(Option<u64>),
    /// Nobody can tell: it is no memory, or nobody looks at it.
    None,
}

/// All rows, and what is wrong with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cells {
    /// The rows, by device.
    pub rows: Vec<Row>,
    /// Where sources disagree, or agree on something that must not be.
    pub findings: Vec<String>,
}

/// What all rows are made from.
struct Gatherer<'a> {
    machine: &'a Machine,
    testimony: &'a Testimony,
    report: &'a Report,
    found: &'a Found,
    ram: Option<&'a RamFile>,
    cells: Cells,
}

/// The rows of one device are about this.
struct Subject<'a> {
    name: String,
    device: &'a Device,
    stream: &'a Stream,
    reported: Option<&'a report::Stream>,
    /// Its guest drives an SMMU of its own, which closes and opens the stream as well.
    translated: bool,
}

/// All accesses to one place.
struct Aimed {
    place: Place,
    first: u64,
    pages: Vec<u64>,
    accesses: u64,
    /// Starts and lengths of writes too short to be found by a search.
    short: Vec<(u64, u64)>,
}

impl Cells {
    /// Fills the table from all sources.
    pub fn gather(
        machine: &Machine,
        testimony: &Testimony,
        report: &Report,
        trace: &Trace,
        found: &Found,
        ram: Option<&RamFile>,
    ) -> Self {
        let cells = Self::default();
        let mut gatherer = Gatherer { machine, testimony, report, found, ram, cells };
        let idle = Stream::default();
        for device in &machine.devices {
            let subject = Subject {
                name: named(machine, device.sid),
                device,
                stream: trace.streams().get(&device.sid).unwrap_or(&idle),
                reported: report.stream(device.sid.0),
                translated: is_translated(testimony, device),
            };
            gatherer.device(&subject);
        }
        for (&sid, stream) in trace.streams() {
            if machine.device(sid).is_none() && !stream.is_idle() {
                gatherer.cells.rows.push(Row {
                    device: named(machine, sid),
                    owner: "-".into(),
                    tried: "unknown DMA".into(),
                    allowed: stream.successes() + stream.untranslated(),
                    stopped: stream.refusals(|_| true),
                    canary: Canary::None,
                });
            }
        }
        gatherer.cells
    }
}

impl Subject<'_> {
    /// Whether the device's owner was gone in this epoch. A stream that an owner closed by itself is open again
    /// before that owner ends.
    fn is_late(&self, epoch: u64) -> bool {
        let closed = |reported: &&report::Stream| oracle::closed_again(reported, epoch);
        self.reported
            .filter(closed)
            .is_some_and(|reported| !self.translated || !oracle::opened_after(reported, epoch))
    }

    fn row(&self, owner: &str, tried: impl Into<String>) -> Row {
        Row {
            device: self.name.clone(),
            owner: owner.into(),
            tried: tried.into(),
            allowed: 0,
            stopped: 0,
            canary: Canary::None,
        }
    }
}

impl<'a> Gatherer<'a> {
    fn fault(&mut self, finding: String) {
        self.cells.findings.push(finding);
    }

    fn said(&self, vm: &Vm) -> Option<&'a testimony::Guest> {
        self.testimony.guest(&vm.name)
    }

    fn device(&mut self, subject: &Subject<'_>) {
        let machine = self.machine;
        let owner = subject.device.vm.as_deref().and_then(|name| machine.vm(name));
        match owner {
            Some(vm) if vm.guest.testifies() && subject.device.driven => {
                self.testified(subject, vm);
            }
            Some(vm) => self.observed(subject, vm),
            None => {
                let mut row = subject.row("-", "any DMA");
                row.allowed = subject.stream.successes() + subject.stream.untranslated();
                row.stopped = subject.stream.refusals(|_| true);
                if row.allowed + row.stopped > 0 {
                    self.cells.rows.push(row);
                }
            }
        }
        if let Some(vm) = owner {
            self.late(subject, vm);
        }
    }

    /// The rows of a device whose guest tells of every DMA.
    fn testified(&mut self, subject: &Subject<'_>, vm: &Vm) {
        let address = &subject.device.guest_address;
        let all = self.said(vm).map(|said| said.tried.as_slice()).unwrap_or_default();
        let tried: Vec<_> = all.iter().filter(|tried| tried.device == *address).collect();
        let armed = self.said(vm).is_some_and(|said| !said.armed.is_empty());
        if tried.is_empty() && !armed && !vm.may_be_cut_off {
            self.fault(format!("{} told of no DMA by {}", vm.name, subject.name));
        }
        let page = |tried: &Tried| tried.address / PAGE_SIZE;
        let translated: Vec<_> = tried
            .iter()
            .filter(|tried| tried.leads != Leads::Straight)
            .map(|tried| page(tried))
            .collect();
        let (led, tried): (Vec<_>, Vec<_>) =
            tried.into_iter().partition(|tried| translated.contains(&page(tried)));
        let mut told = self.led(subject, vm, &led);
        self.arrived(subject, vm, &tried);
        for aimed in self.aims(vm, &tried) {
            told += self.aimed(subject, vm, &aimed);
        }
        let stopped = subject.stream.refusals(|epoch| !subject.is_late(epoch));
        if stopped > told && !vm.may_be_cut_off {
            let more = thousands(stopped - told);
            let name = &subject.name;
            self.fault(format!(
                "QEMU stopped {more} accesses of {name} that {} tells nothing of",
                vm.name
            ));
        }
    }

    /// Compares what the guest saw arrive with what had to arrive, and QEMU's trace with both. Speaks of the
    /// first difference only.
    fn arrived(&mut self, subject: &Subject<'_>, vm: &Vm, tried: &[&Tried]) {
        let name = &subject.name;
        let mut wrong = None;
        for tried in tried {
            let at = tried.address;
            let segments = segments(tried);
            let legal = |address| place(self.machine, self.report, &vm.name, address).is_legal();
            let due: u64 = segments
                .iter()
                .filter(|(address, _)| legal(*address))
                .map(|(_, accesses)| accesses)
                .sum();
            let (arrived, of) = (thousands(tried.arrived), thousands(due));
            wrong = if tried.arrived < due {
                Some(format!("DMA of {name} to {at:#x}: {arrived} of {of} accesses arrived"))
            } else if tried.arrived > due && !self.machine.native {
                Some(format!(
                    "DMA of {name} to {at:#x}: {arrived} accesses arrived, {of} were allowed"
                ))
            } else if legal(at) && !subject.stream.entered(Iova::new(at)) {
                Some(format!(
                    "QEMU's trace has no DMA of {name} to {at:#x}, {} saw it arrive",
                    vm.name
                ))
            } else if !legal(at) && !self.machine.native && subject.stream.entered(Iova::new(at)) {
                Some(format!("QEMU let DMA of {name} to {at:#x} through"))
            } else {
                continue;
            };
            break;
        }
        self.cells.findings.extend(wrong);
    }

    /// The row of what went through the guest's own SMMU, which may lead one address here and there in turn. Returns
    /// how many accesses QEMU stopped.
    fn led(&mut self, subject: &Subject<'_>, vm: &Vm, tried: &[&Tried]) -> u64 {
        if tried.is_empty() {
            return 0;
        }
        let (name, owner) = (&subject.name, &vm.name);
        let during_life = |epoch| !subject.is_late(epoch);
        let legal = |tried: &Tried| match tried.leads {
            Leads::Nowhere | Leads::Anywhere => false,
            Leads::Straight => place(self.machine, self.report, owner, tried.address).is_legal(),
            Leads::To(ipa) => place(self.machine, self.report, owner, ipa).is_legal(),
        };
        let mut wrong = Vec::new();
        // How many accesses have to be stopped at each page, and how many more may be.
        let mut due = BTreeMap::<u64, (u64, u64)>::new();
        for tried in tried {
            let stopped = due.entry(tried.address / PAGE_SIZE * PAGE_SIZE).or_default();
            if tried.leads == Leads::Anywhere {
                stopped.1 += tried.accesses;
                continue;
            }
            let legal = legal(tried);
            let expected = if legal { tried.accesses } else { 0 };
            if tried.arrived != expected {
                wrong.push(format!(
                    "DMA of {name} to {:#x}, which leads to {:x?}: {} accesses arrived instead of {}",
                    tried.address,
                    tried.leads,
                    thousands(tried.arrived),
                    thousands(expected)
                ));
            }
            if legal && !subject.stream.entered(Iova::new(tried.address)) {
                let at = tried.address;
                wrong.push(format!(
                    "QEMU's trace has no DMA of {name} to {at:#x}, {owner} saw it arrive"
                ));
            }
            stopped.0 += tried.accesses - expected;
        }
        let mut stopped = 0;
        for (page, (due, maybe)) in due {
            let seen = subject.stream.refused_at(Iova::new(page), during_life);
            stopped += seen;
            if !(due..=due + maybe).contains(&seen) && !vm.may_be_cut_off {
                wrong.push(format!(
                    "QEMU stopped {} accesses of {name} to {page:#x}, {owner} expects {}",
                    thousands(seen),
                    thousands(due)
                ));
            }
        }
        let accesses: u64 = tried.iter().map(|tried| tried.accesses).sum();
        let canary = self.canaries_of(owner);
        let row = subject.row(owner, "through its own SMMU");
        self.cells.rows.push(Row {
            allowed: accesses.saturating_sub(stopped),
            stopped,
            canary,
            ..row
        });
        self.cells.findings.extend(wrong.into_iter().next());
        stopped
    }

    /// Sorts accesses by where they were aimed, in the order in which the guest tried.
    fn aims(&self, vm: &Vm, tried: &[&Tried]) -> Vec<Aimed> {
        let mut aims = Vec::<Aimed>::new();
        for tried in tried {
            for (address, accesses) in segments(tried) {
                let place = place(self.machine, self.report, &vm.name, address);
                let at = aims.iter().position(|aimed| aimed.place == place).unwrap_or_else(|| {
                    let (pages, short) = (Vec::new(), Vec::new());
                    aims.push(Aimed { place, first: address, pages, accesses: 0, short });
                    aims.len() - 1
                });
                let aimed = &mut aims[at];
                aimed.accesses += accesses;
                let page = address / PAGE_SIZE * PAGE_SIZE;
                if !aimed.pages.contains(&page) {
                    aimed.pages.push(page);
                }
                if tried.op == Op::Write && accesses < memory::RUN && !aimed.place.is_legal() {
                    aimed.short.push((address, accesses));
                }
            }
        }
        aims
    }

    /// Adds the row of one place. Returns how many accesses to it QEMU stopped.
    fn aimed(&mut self, subject: &Subject<'_>, vm: &Vm, aimed: &Aimed) -> u64 {
        let during_life = |epoch| !subject.is_late(epoch);
        let refused = |page: &u64| subject.stream.refused_at(Iova::new(*page), during_life);
        let stopped: u64 = aimed.pages.iter().map(refused).sum();
        let allowed = aimed.accesses.saturating_sub(stopped);
        let (name, owner) = (&subject.name, &vm.name);
        let what = match &aimed.place {
            Place::Own => "own RAM".to_owned(),
            Place::Doorbell => "doorbell".to_owned(),
            Place::Foreign { name, .. } => format!("{name} {:#x}", aimed.first),
        };
        if stopped > aimed.accesses && !vm.may_be_cut_off {
            self.fault(format!(
                "QEMU stopped {} accesses of {name} to {what}, {owner} tried {}",
                thousands(stopped),
                thousands(aimed.accesses)
            ));
        } else if aimed.place.is_legal() && stopped > 0 {
            self.fault(format!("{} legal accesses of {name} were stopped", thousands(stopped)));
        } else if !aimed.place.is_legal() && allowed > 0 {
            self.fault(format!(
                "{} accesses of {name} to {what} were not stopped",
                thousands(allowed)
            ));
        }
        let canary = self.canary(vm, aimed);
        self.cells.rows.push(Row { allowed, stopped, canary, ..subject.row(owner, what) });
        stopped
    }

    fn canary(&mut self, vm: &Vm, aimed: &Aimed) -> Canary {
        let Place::Foreign { name, page } = &aimed.place else {
            return match aimed.place {
                Place::Own => self.canaries_of(&vm.name),
                _ => Canary::None,
            };
        };
        let (base, size) = self.machine.ram;
        if page.checked_sub(base).is_none_or(|offset| offset >= size) {
            return Canary::None;
        }
        let hit = |page: &u64| {
            let mut hits = self.found.hits.iter();
            hits.find(|hit| hit.at.start < page.saturating_add(PAGE_SIZE) && *page < hit.at.end)
        };
        if let Some(hit) = aimed.pages.iter().find_map(hit) {
            return Canary::Changed(Some(hit.at.start));
        }
        for &(address, accesses) in &aimed.short {
            if let Some(landed) =
                self.landed(vm, address, accesses).and_then(|l| l.first().copied())
            {
                self.fault(format!("{} wrote {landed:#x} of {name}", vm.name));
                return Canary::Changed(Some(landed));
            }
        }
        match self.canaries_of(name) {
            changed @ Canary::Changed(_) => changed,
            _ if self.found.bytes > 0 => Canary::Ok,
            canary => canary,
        }
    }

    fn canaries_of(&self, vm: &str) -> Canary {
        let Some(said) = self.testimony.guest(vm) else { return Canary::None };
        match said.canaries.iter().find_map(|canary| canary.changed) {
            Some(changed) => Canary::Changed(Some(changed)),
            None if said.canaries.is_empty() => Canary::None,
            None => Canary::Ok,
        }
    }

    /// How many words of the canaries of `vm` a device changed, and where: those about the address that the device was
    /// given, or all, if no other device was armed. Of others nobody knows who wrote them.
    fn changed_canary(&self, vm: &Vm, armed: &[&Armed], all: Canary) -> (u64, Canary) {
        let Some(said) = self.said(vm) else { return (0, all) };
        let room = |address: u64| address / ROOM;
        let changed = || said.canaries.iter().filter(|canary| canary.changed.is_some());
        let near: Vec<_> = changed()
            .filter(|canary| armed.iter().any(|armed| room(armed.address) == room(canary.page)))
            .collect();
        match near.first() {
            Some(first) => {
                (near.iter().map(|canary| canary.words).sum(), Canary::Changed(first.changed))
            }
            None if said.armed.len() == 1 => (changed().map(|canary| canary.words).sum(), all),
            None => (0, Canary::None),
        }
    }

    /// Which of the words at the physical address `pa` are data of `vm`'s devices; `None` if nobody can
    /// tell.
    fn landed(&self, vm: &Vm, pa: u64, accesses: u64) -> Option<Vec<u64>> {
        let nonce = vm.guest.nonce()?;
        let at: Vec<u64> = (0..accesses).map(|index| pa.saturating_add(4 * index)).collect();
        match self.ram?.words(&at) {
            Ok(words) => {
                let theirs =
                    |word: Option<u32>| word.is_some_and(|word| memory::is_of(nonce, word));
                words.first().copied().flatten()?;
                Some(
                    at.iter()
                        .zip(words)
                        .filter(|(_, word)| theirs(*word))
                        .map(|(pa, _)| *pa)
                        .collect(),
                )
            }
            // The search of the whole file has failed as well, and says why.
            Err(_) => None,
        }
    }

    /// The row of a device whose guest does not tell of its DMA.
    fn observed(&mut self, subject: &Subject<'_>, vm: &Vm) {
        let mut row = subject.row(&vm.name, "its driver's DMA");
        row.allowed = subject.stream.successes() + subject.stream.untranslated();
        row.stopped = subject.stream.refusals(|epoch| !subject.is_late(epoch));
        if let (Some(name), Some(said)) = (&subject.device.disk, self.said(vm)) {
            let disks: Vec<_> = said.disks.iter().filter(|disk| disk.name == *name).collect();
            if !disks.is_empty() {
                let ok = disks.iter().all(|disk| disk.ok);
                row.canary = if ok { Canary::Ok } else { Canary::Changed(None) };
                if row.allowed == 0 {
                    let name = &subject.name;
                    self.fault(format!(
                        "QEMU's trace has no DMA of {name}, {} read its disk",
                        vm.name
                    ));
                }
            }
        }
        // A device that its owner leaves alone is of no interest unless it does something.
        if !vm.guest.testifies() || row.allowed + row.stopped > 0 {
            self.cells.rows.push(row);
        }
    }

    /// The row of what a device did after its owner was gone, if there is anything to say.
    fn late(&mut self, subject: &Subject<'_>, vm: &Vm) {
        let address = &subject.device.guest_address;
        let all = self.said(vm).map(|said| said.armed.as_slice()).unwrap_or_default();
        let armed: Vec<_> = all.iter().filter(|armed| armed.device == *address).collect();
        let late = || subject.stream.epochs.iter().filter(|(epoch, _)| subject.is_late(**epoch));
        let stopped: u64 = late().map(|(_, epoch)| epoch.refusals()).sum();
        let went_through: u64 = late().map(|(_, epoch)| epoch.successes).sum();
        let told =
            subject.reported.map(|reported| reported.stopped_after_teardown).unwrap_or_default();
        if armed.is_empty() && stopped == 0 && went_through == 0 && told.count == 0 {
            return;
        }
        let first = late().find_map(|(_, epoch)| epoch.first);
        // A successor whose canaries cover all that was handed to it sees more than a look at the target can.
        let (landed, canary) = match self.canaries_of(&vm.name) {
            Canary::None => self.late_canary(vm, &armed),
            Canary::Ok => (0, Canary::Ok),
            changed => self.changed_canary(vm, &armed, changed),
        };
        let tried = match armed.first() {
            Some(Armed { op: Op::Read, address, .. }) => format!("late read {address:#x}"),
            Some(Armed { op: Op::Write, address, .. }) => format!("late write {address:#x}"),
            None => {
                let op = if told.write == Some(false) { "read" } else { "write" };
                let at = told.first.map(|first| first.0).or(first.map(Iova::raw));
                at.map_or_else(|| "late DMA".into(), |at| format!("late {op} {at:#x}"))
            }
        };
        let allowed = went_through.max(landed);
        self.cells.rows.push(Row { allowed, stopped, canary, ..subject.row("(dead)", tried) });
        if !self.machine.native {
            let recorded = late().map(|(_, epoch)| epoch.recorded()).sum();
            self.late_agreement(subject, vm, &armed, &Late { stopped, recorded, first });
        }
    }

    /// How many words of late DMA are in memory, and what to say of the target.
    fn late_canary(&mut self, vm: &Vm, armed: &[&Armed]) -> (u64, Canary) {
        let mut landed = Vec::new();
        let mut looked = false;
        for armed in armed.iter().filter(|armed| armed.op == Op::Write) {
            // Where the guest's own DMA was allowed to write before, memory cannot tell.
            let before = |tried: &Tried| {
                let end = tried.address + 4 * tried.accesses;
                tried.op == Op::Write && tried.address <= armed.address && armed.address < end
            };
            if self.said(vm).is_some_and(|said| said.tried.iter().any(before)) {
                continue;
            }
            let native = self.machine.native.then_some(armed.address);
            let Some(pa) = native.or_else(|| translate(self.report, &vm.name, armed.address))
            else {
                continue;
            };
            if let Some(words) = self.landed(vm, pa, armed.accesses) {
                looked = true;
                landed.extend(words);
            }
        }
        match landed.first() {
            Some(&first) => {
                let whose = physical(self.machine, self.report, first);
                self.fault(format!("late DMA of {} wrote {first:#x} of {whose}", vm.name));
                (landed.len() as u64, Canary::Changed(Some(first)))
            }
            None if looked => (0, Canary::Ok),
            None => (0, Canary::None),
        }
    }

    fn late_agreement(&mut self, subject: &Subject<'_>, vm: &Vm, armed: &[&Armed], qemu: &Late) {
        let Some(reported) = subject.reported else { return };
        let name = &subject.name;
        let el2 = reported.stopped_after_teardown;
        let agree =
            if el2.silenced { el2.count <= qemu.recorded } else { el2.count == qemu.recorded };
        if !agree {
            self.fault(format!(
                "EL2 counts {} late accesses of {name}, QEMU {}",
                thousands(el2.count),
                thousands(qemu.recorded)
            ));
        }
        if let (Some(el2), Some(qemu)) = (el2.first, qemu.first)
            && el2.0 != qemu.raw()
        {
            let (el2, qemu) = (el2.0, qemu.raw());
            self.fault(format!("late DMA of {name} began at {el2:#x} says EL2, at {qemu:#x} QEMU"));
        }
        if qemu.stopped > 0 && !reported.armed_at_close {
            self.fault(format!("EL2 did not name {name} as armed, it did DMA afterwards"));
        }
        let expected: u64 = armed.iter().map(|armed| armed.accesses).sum();
        let cancelled = qemu.stopped == 0 && self.was_reset(vm, &subject.device.address);
        if vm.guest.testifies() && !vm.may_be_cut_off && expected != qemu.stopped && !cancelled {
            self.fault(format!(
                "{} armed {name} for {} late accesses, QEMU stopped {}",
                vm.name,
                thousands(expected),
                thousands(qemu.stopped)
            ));
        }
        if let (Some(armed), Some(first), Some(write)) = (armed.first(), el2.first, el2.write)
            && armed.address == first.0
            && (armed.op == Op::Write) != write
        {
            self.fault(format!(
                "EL2 and {} disagree on whether {name} read or wrote late",
                vm.name
            ));
        }
    }

    /// Whether the function was reset when `vm` went, so that its DMA was cancelled.
    fn was_reset(&self, vm: &Vm, address: &str) -> bool {
        let resets = ["flr", "virtio", "pm", "bus-reset"];
        let teardowns =
            self.report.vm(&vm.name).map(|vm| vm.teardowns.as_slice()).unwrap_or_default();
        let mut quiesced = teardowns.iter().flat_map(|teardown| &teardown.quiesced);
        quiesced.any(|q| q.address == address && q.clean && resets.contains(&q.how.as_str()))
    }
}

/// What QEMU saw of late DMA.
struct Late {
    stopped: u64,
    recorded: u64,
    first: Option<Iova>,
}

/// Whether the owner of `device` says that its own SMMU leads the addresses that it gives the device.
fn is_translated(testimony: &Testimony, device: &Device) -> bool {
    let said = device.vm.as_deref().and_then(|vm| testimony.guest(vm));
    let mut tried = said.iter().flat_map(|said| &said.tried);
    tried.any(|tried| tried.device == device.guest_address && tried.leads != Leads::Straight)
}

/// A DMA in pieces that do not cross pages: address and number of accesses of each.
fn segments(tried: &Tried) -> Vec<(u64, u64)> {
    let mut pieces = Vec::new();
    let (mut address, mut left) = (tried.address, tried.accesses);
    while left > 0 {
        let fits = (PAGE_SIZE - address % PAGE_SIZE).div_ceil(4).min(left);
        pieces.push((address, fits));
        address += 4 * fits;
        left -= fits;
    }
    pieces
}
