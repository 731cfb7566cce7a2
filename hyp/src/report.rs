//! Sending the report.

use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, Ordering};

use heapless::{String, Vec};
use platform::report::{
    self as format, Command, Count, Events, Fault, Hex, MAX_LINE, MemoryKind, Name, Record, Sizes,
    Step, Stopped, Stream, StreamState, VmExits, VmMemory,
};
use smmu::addr::StreamId;
use smmu::guest::Counters;
use smmu::streams::{MAX_STREAMS, State};
use spin::Mutex;

use crate::console::{CONSOLE, OPERATOR};
use crate::iommu::Iommu;
use crate::machine::{self, hypervisor};
use crate::mem::{frames, layout};
use crate::pci::MAX_VM_FUNCTIONS;
use crate::teardown::{MAX_TEARDOWNS, TeardownId};
use crate::turns;
use crate::vm::Vm;

/// More kinds of commands than there are.
const MAX_OPCODES: usize = 64;

/// Whether the run's last report was sent.
static LAST: AtomicBool = AtomicBool::new(false);

/// Whether the caller is the one that sends the run's last report.
pub fn claim_last() -> bool {
    !LAST.swap(true, Ordering::AcqRel)
}

/// Frames records one after the other.
struct Sender {
    line: String<MAX_LINE>,
    records: u32,
}

impl Sender {
    fn send(&mut self, record: &Record) {
        // What does not fit a line is missed by the count in `End`, so the reader notices.
        self.records += 1;
        if format::frame(record, &mut self.line).is_ok() {
            let port = if OPERATOR.is_present() { &OPERATOR } else { &CONSOLE };
            port.line(format_args!("{}", self.line));
        }
    }
}

/// Sends a complete report.
pub fn send() {
    // One at a time: lines of two reports would mix. And it is too large for a stack.
    static SENDER: Mutex<Sender> = Mutex::new(Sender { line: String::new(), records: 0 });
    let mut out = SENDER.lock();
    let hypervisor = hypervisor();
    hypervisor.iommus.settle();
    out.records = 0;
    out.send(&Record::Begin { version: 1 });
    for vm in machine::vms() {
        send_vm(&mut out, vm);
    }
    for iommu in &hypervisor.iommus.0 {
        send_iommu(&mut out, iommu);
    }
    let (text, image) = (layout::text(), layout::image());
    out.send(&Record::Sizes(Sizes {
        image_text: text.end.raw() - text.start.raw(),
        el2_memory: image.end.raw() - image.start.raw() + frames::TABLES.used(),
        guest_memory: frames::GUEST_RAM.used(),
    }));
    let records = out.records + 1;
    out.send(&Record::End { records });
}

fn count(name: &str, count: u64) -> Count {
    // Every name is a literal of ours that fits.
    Count { name: String::try_from(name).unwrap_or_default(), count }
}

fn send_vm(out: &mut Sender, vm: &Vm) {
    let name = vm.name().clone();
    out.send(&Record::Vm(format::Vm {
        name: name.clone(),
        state: vm.life.lock().state(),
        boots: vm.boots.load(Ordering::Relaxed),
        cpus: vm.config.cpus.iter().copied().collect(),
        exits: vm.exits.total(),
        lines_left_out: vm.lines.left_out(),
        lock_waits: vm.vcpus.iter().map(|vcpu| turns::waits(vcpu.cpu)).sum(),
    }));
    let ram = vm.ram.segments().iter().map(|s| (s.ipa, s.pa, s.size, MemoryKind::Ram));
    // A bus that is being reset is left out: nobody waits for it here.
    let bars: Vec<_, { 6 * MAX_VM_FUNCTIONS }> =
        vm.pci.try_lock().iter().flat_map(|pci| pci.mapped()).collect();
    let bars = bars.into_iter().map(|(ipa, pa, size)| (ipa, pa, size, MemoryKind::Mmio));
    for (ipa, pa, size, kind) in ram.chain(bars) {
        out.send(&Record::VmMemory(VmMemory {
            vm: name.clone(),
            ipa: Hex(ipa.raw()),
            pa: Hex(pa.raw()),
            size,
            kind,
        }));
    }
    let teardowns: Vec<_, MAX_TEARDOWNS> = vm.teardowns.lock().last().collect();
    for (&id, teardown) in teardowns.iter().zip(0..) {
        send_teardown(out, vm, id, teardown);
    }
    for (reason, times) in vm.exits.iter().filter(|(_, times)| *times > 0) {
        out.send(&Record::VmExits(VmExits {
            vm: name.clone(),
            reason: count(reason.name(), times),
        }));
    }
}

/// Sends the VM's teardown `id`, the one number `teardown` of its report.
fn send_teardown(out: &mut Sender, vm: &Vm, id: TeardownId, teardown: u32) {
    // Copies one by one, so that nobody waits while they are printed.
    for index in 0.. {
        let record = vm.teardowns.lock().get(id).and_then(|noted| noted.record(index, teardown));
        let Some(record) = record else { return };
        out.send(&record);
    }
}

fn owner_name(stream: &smmu::streams::Stream) -> Option<Name> {
    let owner = usize::from(stream.owner()?.0);
    Some(machine::vms().nth(owner)?.name().clone())
}

/// `BB:DD.F vendor:device` of the function behind a stream, if a VM owns it.
fn device_name(iommu: &Iommu, sid: StreamId) -> String<24> {
    let mut name = String::new();
    let owned = machine::vms()
        .flat_map(|vm| &vm.functions)
        .find(|owned| owned.smmu == iommu.facts.phandle && owned.sid == sid);
    if let Some(owned) = owned
        && let Some(function) = hypervisor().pci.topology.get(owned.address)
    {
        // Seventeen characters.
        let _ = write!(name, "{} {:04x}:{:04x}", function.at, function.vendor, function.device);
    }
    name
}

fn state(state: State) -> StreamState {
    match state {
        State::Abort => StreamState::Abort,
        State::Watch => StreamState::Watch,
        State::Stage2 => StreamState::Stage2,
        State::Nested => StreamState::Nested,
    }
}

/// What the virtual SMMUs in front of `iommu` did, all VMs together. A VM behind several counts at each.
fn guests_counters(iommu: &Iommu) -> Counters {
    let behind = |vm: &&Vm| vm.functions.iter().any(|owned| owned.smmu == iommu.facts.phandle);
    machine::vms().filter(behind).filter_map(|vm| vm.smmu.as_ref()).fold(
        Counters::default(),
        |sum, smmu| {
            let one = smmu.counters();
            Counters {
                batches: sum.batches + one.batches,
                forwarded: sum.forwarded + one.forwarded,
                dropped: sum.dropped + one.dropped,
                ..sum
            }
        },
    )
}

fn send_iommu(out: &mut Sender, iommu: &Iommu) {
    for index in 0..MAX_STREAMS {
        // A copy, so that nobody waits for the SMMU while it is printed.
        let stream = iommu.lock().streams().nth(index).cloned();
        if let Some(stream) = stream {
            send_stream(out, iommu, &stream);
        }
    }
    let base = Hex(iommu.base().raw());
    // Their locks come before the driver's.
    let guests = guests_counters(iommu);
    let driver = iommu.lock();
    let (counters, class) = (driver.counters(), driver.class());
    let commands: Vec<_, MAX_OPCODES> = driver.commands().collect();
    drop(driver);
    out.send(&Record::Smmu(format::Smmu {
        base,
        class: String::try_from(class.name()).unwrap_or_default(),
        syncs: counters.syncs,
        guest_batches: guests.batches,
        events: Events {
            drained: counters.drained,
            forwarded: guests.forwarded,
            dropped: counters.dropped,
            undelivered: guests.dropped,
        },
        gerror: counters.gerror,
    }));
    for (opcode, times) in commands {
        out.send(&Record::Command(Command { base, opcode: count(opcode, times) }));
    }
}

fn send_stream(out: &mut Sender, iommu: &Iommu, stream: &smmu::streams::Stream) {
    let sid = stream.sid().0;
    let stopped = stream.stopped_after_teardown();
    out.send(&Record::Stream(Stream {
        sid,
        vm: owner_name(stream),
        device: device_name(iommu, stream.sid()),
        state: state(stream.state()),
        transitions: stream.transitions(),
        armed_at_close: stream.armed_at_close(),
        muted: stream.mutes() > 0,
        stopped_after_teardown: Stopped {
            count: stopped.count,
            first: stopped.first.map(|at| Hex(at.raw())),
            write: stopped.write,
            silenced: stopped.silenced,
        },
    }));
    for step in stream.history() {
        out.send(&Record::Step(Step { sid, state: state(step.state), cfgi: step.cfgi }));
    }
    for (event, times) in stream.faults() {
        out.send(&Record::Fault(Fault { sid, event: count(event, times) }));
    }
}
