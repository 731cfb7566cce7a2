//! From a device tree to running guests: close the SMMU, learn the machine, take the bundle apart, build the VMs.
//!
//! Each step keeps a frame of its own (`inline(never)`): together they would have one of 150 KiB, in which every access
//! takes two instructions.

use core::fmt;
use core::ops::Range;

use heapless::Vec;
use platform::bundle::Bundle;
use platform::dt::{self, Machine};
use platform::guest_map::IPA_BITS;
use smmu::addr::{PAGE_SIZE, Pa};
use smmu::device::Config;
use spin::{Mutex, MutexGuard, Once};

use crate::arch::cpu::{self, MAX_CPUS};
use crate::arch::gic::{self, Gic};
use crate::arch::{boot, fatal, firmware, sysreg, uart};
use crate::console::{self, CONSOLE, OPERATOR};
use crate::interrupts::Own;
use crate::iommu::{Iommu, Iommus};
use crate::machine::{self, Hypervisor, PciBus};
use crate::mem::paging::{Map, Use};
use crate::mem::shared::SmmuHardware;
use crate::mem::{self, frames, layout};
use crate::pci::{self, Topology};
use crate::vm::Vm;
use crate::{interrupts, ownership, run};

/// Pieces that RAM may be cut into by what is in it already.
const MAX_PIECES: usize = 16;
/// What EL2 keeps for its tables and queues, at the top of RAM.
const TABLE_POOL: u64 = 8 << 20;

/// A range of physical addresses.
type PaRange = Range<Pa>;

/// The machine, the bundle or the device tree is not what it should be: nothing is started. The SMMU, if it was
/// found, is closed.
fn refuse(reason: impl fmt::Display) -> ! {
    log::error!("{reason}");
    firmware::system_off()
}

fn pa_range(range: dt::Range) -> PaRange {
    range.base..range.base.add(range.size)
}

fn pages(range: PaRange) -> PaRange {
    range.start.align_down(PAGE_SIZE)..Pa::new(range.end.raw().next_multiple_of(PAGE_SIZE))
}

/// The pieces of `ranges` that are in none of `holes`.
fn without(ranges: &[PaRange], holes: &[PaRange]) -> Vec<PaRange, MAX_PIECES> {
    let mut left: Vec<PaRange, MAX_PIECES> = ranges.iter().cloned().collect();
    for hole in holes {
        let mut next: Vec<PaRange, MAX_PIECES> = Vec::new();
        for range in &left {
            for piece in
                [range.start..range.end.min(hole.start), range.start.max(hole.end)..range.end]
            {
                if piece.start < piece.end && next.push(piece).is_err() {
                    refuse("memory is cut into too many pieces by what the boot loader put there");
                }
            }
        }
        left = next;
    }
    left
}

/// The first CPU, under the boot map.
pub fn primary(device_tree: Pa) -> ! {
    let Some(blob) = mem::device_tree(device_tree) else {
        // Nobody can be told: the device tree is what names the console.
        fatal::park()
    };
    let blob_range = pages(device_tree..device_tree.add(blob.len() as u64));
    let mut map = Map::of_image();
    map.add(blob_range.clone(), Use::Constants);
    let console = dt::console(blob);
    if let Some(uart) = console {
        map.add(pages(pa_range(uart.range)), Use::Device);
    }
    map.activate();
    if let Some(uart) = console {
        uart::install_console(uart.range.base);
    }
    console::start_log(log::LevelFilter::Info);

    let facts =
        machine::install_facts(|| dt::discover(blob)).unwrap_or_else(|refusal| refuse(refusal));
    // Nothing comes before this (C1).
    let smmus = close_smmus(facts, &mut map);
    set_log_level(facts);
    if facts.cpus.first().map(|cpu| cpu.mpidr) != Some(gic::affinity(sysreg::mpidr_el1())) {
        refuse("device tree, /cpus: the first CPU is not the one that the boot loader started");
    }
    log::info!("Portcullis {} on {} CPUs", env!("CARGO_PKG_VERSION"), facts.cpus.len());

    let bundle_range = facts.initrd.map(|range| pages(pa_range(range)));
    let pieces = map_memory(facts, &mut map, blob_range, bundle_range.clone());
    fill_pools(&pieces);
    map_devices(facts, &mut map);
    let pci = start_pci(facts, &mut map);
    let root = map.root();
    map.seal();

    start_interrupts(facts);
    static IOMMUS: Once<Iommus> = Once::new();
    let iommus = IOMMUS.call_once(|| take_over(facts, &smmus));
    build_vms(facts, iommus, pci, bundle_range);
    Hypervisor { iommus, pci }.install();

    for vm in machine::vms() {
        vm.boot().unwrap_or_else(|error| refuse(format_args!("{}: {error}", vm.name())));
    }
    // Last, so that they have little to wait for.
    for (number, cpu) in facts.cpus.iter().enumerate().skip(1) {
        if let Err(error) = boot::start_secondary(number, cpu.mpidr, root) {
            refuse(format_args!("CPU {number} does not start: {error}"));
        }
    }
    start_interface();
    listen(facts);
    STARTED.call_once(|| ());
    cpu::send_event();
    for (number, _) in facts.cpus.iter().enumerate().skip(1) {
        machine::gic().kick(number);
    }
    run::run()
}

/// Whether every VM is ready to run.
static STARTED: Once<()> = Once::new();

/// Every other CPU, under the final map.
pub fn secondary() -> ! {
    start_interface();
    while !STARTED.is_completed() {
        cpu::wait_for_event();
    }
    run::run()
}

/// Lets this CPU take EL2's own private interrupts. Those of its guest are the guest's virtual GIC's to enable, which it
/// may do from the moment the VMs start.
fn start_interface() {
    let facts = machine::facts();
    let private = [facts.gic.maintenance.intid, facts.timers.hypervisor.intid];
    if let Err(error) = machine::gic().start_cpu(&private) {
        panic!("CPU {}: the interrupt controller does not start: {error:?}", cpu::number());
    }
}

/// Lets EL2's own shared interrupts in, on a CPU that no VM owns where there is one: a guest that keeps its CPU busy in
/// EL2 then delays nobody else's events.
fn listen(facts: &Machine) {
    let owned = |cpu: &usize| machine::vms().any(|vm| vm.vcpus.iter().any(|vcpu| vcpu.cpu == *cpu));
    let cpu = (0..facts.cpus.len()).find(|cpu| !owned(cpu)).unwrap_or(0);
    for smmu in &facts.smmus {
        for interrupt in [smmu.interrupts.eventq(), smmu.interrupts.gerror()] {
            let edge = interrupt.trigger == dt::Trigger::Edge;
            machine::enable_own(interrupt.intid, edge, cpu);
        }
    }
    for interrupt in facts.uarts.iter().take(2).filter_map(|uart| uart.interrupt) {
        machine::enable_own(interrupt.intid, interrupt.trigger == dt::Trigger::Edge, cpu);
    }
}

/// Makes every SMMU abort everything, before anything else is looked at.
#[inline(never)]
fn close_smmus(facts: &Machine, map: &mut Map) -> Vec<SmmuHardware, { dt::MAX_DEVICES }> {
    facts
        .smmus
        .iter()
        .map(|node| {
            map.add(pa_range(node.range), Use::Device);
            let hardware = SmmuHardware::new(mem::device_window(node.range));
            if let Err(error) = smmu::device::stop(&hardware) {
                refuse(format_args!("SMMU at {}: {error}", node.range.base));
            }
            fatal::close_on_panic(&hardware);
            hardware
        })
        .collect()
}

/// `log=LEVEL` on the hypervisor's command line.
#[inline(never)]
fn set_log_level(facts: &Machine) {
    for argument in facts.bootargs.split_ascii_whitespace() {
        match argument.split_once('=') {
            Some(("log", level)) => match level.parse() {
                Ok(level) => log::set_max_level(level),
                Err(_) => refuse(format_args!(
                    "command line: log={level}: use off, error, warn, info, debug or trace"
                )),
            },
            _ => refuse(format_args!(
                "command line: \"{argument}\" is no option; there is log=LEVEL"
            )),
        }
    }
}

/// Maps RAM, and returns the pieces of it that nothing is in.
#[inline(never)]
fn map_memory(
    facts: &Machine,
    map: &mut Map,
    device_tree: PaRange,
    bundle: Option<PaRange>,
) -> Vec<PaRange, MAX_PIECES> {
    let ram: Vec<PaRange, { dt::MAX_MEMORY }> =
        facts.memory.iter().map(|&range| pa_range(range)).collect();
    let mut taken: Vec<PaRange, 4> = Vec::new();
    // Room for all of them, and for one more.
    let _ = taken.push(layout::image());
    let _ = taken.push(device_tree);
    if let Some(bundle) = bundle {
        map.add(bundle.clone(), Use::Constants);
        let _ = taken.push(bundle);
    }
    let reserved: Vec<PaRange, { dt::MAX_RESERVED }> =
        facts.reserved.iter().map(|&range| pages(pa_range(range))).collect();
    let pieces = without(&without(&ram, &taken), &reserved);
    for piece in &pieces {
        map.add(piece.clone(), Use::Data);
    }
    pieces
}

/// Gives the top of RAM to EL2's tables and the rest to guests.
#[inline(never)]
fn fill_pools(pieces: &[PaRange]) {
    // One piece, so that whatever lies between its ends is EL2's.
    let fits = |piece: &&PaRange| piece.end.raw() - piece.start.raw() >= TABLE_POOL;
    let Some(own) = pieces.iter().rev().find(fits) else {
        refuse("there is too little memory for EL2's own tables: give the machine more");
    };
    let cut = Pa::new(own.end.raw() - TABLE_POOL);
    frames::fill(&frames::TABLES, cut..own.end);
    for piece in without(pieces, &[cut..own.end]) {
        frames::fill(&frames::GUEST_RAM, piece);
    }
}

fn map_devices(facts: &Machine, map: &mut Map) {
    map.add(pa_range(facts.gic.distributor), Use::Device);
    for region in &facts.gic.redistributors {
        map.add(pa_range(region.range), Use::Device);
    }
    for its in &facts.gic.its {
        map.add(pa_range(its.range), Use::Device);
    }
    for uart in facts.uarts.iter().skip(1) {
        map.add(pages(pa_range(uart.range)), Use::Device);
    }
}

/// Enumerates the PCI bus; every function is silent afterwards.
#[inline(never)]
fn start_pci(facts: &'static Machine, map: &mut Map) -> &'static PciBus {
    static TOPOLOGY: Mutex<Topology> = Mutex::new(Topology::new());
    static BUS: Once<PciBus> = Once::new();
    let Some(host) = facts.pcie.first() else {
        refuse("device tree: no PCI host bridge with ECAM; use a machine that has one")
    };
    if facts.pcie.len() > 1 {
        // Its streams stay closed, so it does not matter what is behind it.
        log::warn!("only the first of {} PCI host bridges is used", facts.pcie.len());
    }
    map.add(pa_range(host.ecam), Use::Configuration);
    let hardware = mem::host_bridge(host, interrupts::meanwhile);
    let topology = MutexGuard::leak(TOPOLOGY.lock());
    let buses = host.first_bus..=host.last_bus;
    if let Err(error) = pci::enumerate(&hardware, buses, &host.windows, topology) {
        refuse(error);
    }
    for function in topology.functions() {
        let state = if function.armed_at_boot { ", armed by whoever was here before" } else { "" };
        log::info!("{} {:04x}:{:04x}{state}", function.at, function.vendor, function.device);
        for place in function.bars.iter().flatten().filter_map(|bar| Some((bar.place?, bar.size))) {
            let (place, size) = place;
            map.add(pages(place.cpu..place.cpu.add(size)), Use::Device);
        }
    }
    BUS.call_once(|| PciBus { hardware, topology, interrupts: &host.intx })
}

#[inline(never)]
fn start_interrupts(facts: &Machine) {
    gic::enable_system_registers();
    let mpidrs: Vec<u64, MAX_CPUS> = facts.cpus.iter().map(|cpu| cpu.mpidr).collect();
    let regions = facts
        .gic
        .redistributors
        .iter()
        .map(|region| (mem::device_window(region.range), region.stride));
    let found = Gic::find(mem::device_window(facts.gic.distributor), regions, &mpidrs);
    let found = found.unwrap_or_else(|error| refuse(format_args!("GIC: {error:?}")));
    let gic = machine::install_gic(found);
    for its in &facts.gic.its {
        if let Err(error) = gic::stop_its(&mem::device_window(its.range)) {
            refuse(format_args!(
                "ITS at {}: {error:?}: it would write to guests' memory",
                its.range.base
            ));
        }
    }
    if let Err(error) = gic.start() {
        refuse(format_args!("GIC: {error:?}"));
    }
    let mut operator = None;
    if let Some(uart) = facts.uarts.get(1) {
        OPERATOR.install(uart::take(uart.range.base));
        OPERATOR.listen(true);
        operator = uart.interrupt.map(|interrupt| interrupt.intid);
    }
    interrupts::set_own(Own {
        maintenance: facts.gic.maintenance.intid,
        timer: facts.timers.hypervisor.intid,
        console: facts
            .uarts
            .first()
            .and_then(|uart| uart.interrupt)
            .map(|interrupt| interrupt.intid),
        operator,
    });
    CONSOLE.listen(true);
}

#[inline(never)]
fn take_over(facts: &Machine, smmus: &[SmmuHardware]) -> Iommus {
    const PA_BITS: [u8; 7] = [32, 36, 40, 42, 44, 48, 52];
    let parange = (sysreg::id_aa64mmfr0_el1() & 0xf) as usize;
    let pa_bits = PA_BITS.get(parange).copied().unwrap_or(48).min(48);
    if u32::from(pa_bits) < IPA_BITS {
        refuse(format_args!(
            "this CPU has {pa_bits} bits of physical address, guests need {IPA_BITS}: use another CPU model"
        ));
    }
    // Requester IDs have sixteen bits; what the tree maps them to must fit.
    let config = Config::new(16, pa_bits, false);
    let iommus = facts
        .smmus
        .iter()
        .zip(smmus)
        .enumerate()
        .map(|(number, (&node, &hardware))| {
            let iommu = Iommu::take_over(number, node, hardware, &config).unwrap_or_else(|error| {
                refuse(format_args!("SMMU at {}: {error}", node.range.base))
            });
            log::info!("SMMU at {}: {}", iommu.base(), iommu.lock().class().name());
            iommu
        })
        .collect();
    Iommus(iommus)
}

#[inline(never)]
fn build_vms(
    facts: &'static Machine,
    iommus: &'static Iommus,
    bus: &PciBus,
    bundle: Option<PaRange>,
) {
    let Some(range) = bundle else {
        refuse("the boot loader passed no bundle: load it as the initial RAM disk");
    };
    let bundle = Bundle::parse(mem::bundle(range)).unwrap_or_else(|error| refuse(error));
    bundle.verify().unwrap_or_else(|error| refuse(error));
    let confined = |function: &pci::Function| pci::dma_check(&bus.hardware, function);
    let owned = ownership::check(bundle.vms(), facts, bus.topology, confined)
        .unwrap_or_else(|refusal| refuse(refusal));
    let Some(format) = iommus.0.first().map(|iommu| iommu.lock().format()) else {
        refuse("there is no SMMU");
    };
    for (index, (config, owned)) in bundle.vms().iter().zip(owned).enumerate() {
        let made = machine::install_vm(index, || {
            Vm::new(index, config.clone(), format, owned, iommus, bus)
        });
        if let Err(error) = made {
            refuse(format_args!("{}: {error}", config.name));
        }
    }
}
