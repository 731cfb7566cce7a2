//! From nodes to facts, one function per binding.

use heapless::{String, Vec};
use smmu::addr::Pa;

use super::refusal::{Problem, Refusal};
use super::tree::{self, Controller, Kind, Level, PAST_THE_END, Wire};
use super::{
    Conduit, Cpu, Gic, Its, Machine, Phandle, Range, Redistributors, Smmu, SmmuInterrupts, Timers,
    Uart, pcie,
};
use crate::fdt::{self, Node, Tree};
use crate::pcie::IommuMap;
use crate::sort;

/// What a machine without one is told.
const GIC: &str = "GICv3";
/// The affinity fields of `MPIDR_EL1`.
const AFFINITY: u64 = 0xff_00ff_ffff;
/// How many UARTs can have a place in the order: the console, and `serial0` and the following aliases.
const MAX_SERIAL_ALIASES: usize = 9;
/// Bytes of one redistributor: the RD and the SGI frame.
const REDISTRIBUTOR: u64 = 0x2_0000;
/// Bytes of an SMMUv3: both register pages (IHI 0070, section 6).
const SMMU_REGISTERS: u64 = 0x2_0000;

/// Learns what the machine is from the device tree at the start of `dtb`.
///
/// # Errors
///
/// A [`Refusal`] names the first node that is missing or not understood.
#[inline(never)]
pub fn discover(dtb: &[u8]) -> Result<Machine, Refusal> {
    let tree = tree::open(dtb)?;
    let root = Level::root(tree);
    let hubs = Hubs::find(&root)?;
    let order = UartOrder::new(tree);

    let mut found = Found::default();
    let mut uarts = Vec::<(usize, Uart), { super::MAX_DEVICES }>::new();
    root.descendants(&mut |node| {
        let gic = &hubs.gic;
        match node.kind {
            Some(Kind::GicV3) => found.gic = Some(self::gic(node, gic)?),
            Some(Kind::Timer) => {
                once(&mut found.timers, node, "generic timer", timers(node, gic)?)?
            }
            Some(Kind::Psci) => once(&mut found.psci, node, "PSCI node", psci(node)?)?,
            Some(Kind::OldPsci) => return Err(node.refuse(Problem::PsciTooOld)),
            Some(Kind::Pl011) => {
                let entry = (order.rank(node.node), uart(node, gic)?);
                add(&mut uarts, node, "PL011 UARTs", entry)?;
            }
            Some(Kind::SmmuV3) => add(&mut found.smmus, node, "SMMUs", smmu(node, gic)?)?,
            Some(Kind::Ecam) => {
                let host = pcie::host(node, gic)?;
                hubs.check_streams(node, &host.iommu_map)?;
                add(&mut found.pcie, node, "PCI host bridges", host)?;
            }
            Some(Kind::VirtioMmio) => {
                add(&mut found.virtio_mmio, node, "virtio-mmio transports", node.registers()?)?;
            }
            // Refused before, or read with the GIC.
            Some(Kind::GicV2 | Kind::Its) => {}
            Some(Kind::Memory) => memory(node, &mut found.memory)?,
            None => {}
        }
        Ok(())
    })?;
    // The tree's order decides between equals.
    sort::by_key(&mut uarts, |(rank, _)| *rank);
    sort::by_key(&mut found.memory, |range| range.base);

    let missing = |what| tree::at_root(Problem::NoNode(what));
    let chosen = chosen(&root)?;
    Ok(Machine {
        memory: if found.memory.is_empty() { return Err(missing("memory")) } else { found.memory },
        reserved: reserved(tree, &root)?,
        cpus: cpus(&root)?,
        psci: found.psci.ok_or_else(|| missing("PSCI node"))?,
        gic: found.gic.ok_or_else(|| missing(GIC))?,
        timers: found.timers.ok_or_else(|| missing("generic timer"))?,
        uarts: uarts.into_iter().map(|(_, uart)| uart).collect(),
        smmus: found.smmus,
        pcie: found.pcie,
        virtio_mmio: found.virtio_mmio,
        initrd: chosen.initrd,
        bootargs: chosen.bootargs,
    })
}

/// Finds the UART to print a refusal on, as far as the device tree lets it be found: its interrupt is left out.
pub fn console(dtb: &[u8]) -> Option<Uart> {
    let tree = tree::open(dtb).ok()?;
    let order = UartOrder::new(tree);
    let mut best = None;
    // An odd node elsewhere ends the walk, but not the use of what was found before.
    let _ = Level::root(tree).descendants(&mut |node| {
        if node.kind == Some(Kind::Pl011)
            && let Ok(range) = node.registers()
        {
            let rank = order.rank(node.node);
            if best.is_none_or(|(best, _)| rank < best) {
                best = Some((rank, Uart { range, interrupt: None }));
            }
        }
        Ok(())
    });
    best.map(|(_, uart)| uart)
}

/// What the walk over the tree collects.
#[derive(Default)]
struct Found {
    memory: Vec<Range, { super::MAX_MEMORY }>,
    psci: Option<Conduit>,
    gic: Option<Gic>,
    timers: Option<Timers>,
    smmus: Vec<Smmu, { super::MAX_DEVICES }>,
    pcie: Vec<super::PcieHost, { super::MAX_DEVICES }>,
    virtio_mmio: Vec<Range, { super::MAX_VIRTIO_MMIO }>,
}

fn once<T>(
    slot: &mut Option<T>,
    node: &Level<'_, '_>,
    what: &'static str,
    value: T,
) -> Result<(), Refusal> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(node.refuse(Problem::Twice(what))),
    }
}

fn add<T, const N: usize>(
    list: &mut Vec<T, N>,
    node: &Level<'_, '_>,
    what: &'static str,
    value: T,
) -> Result<(), Refusal> {
    list.push(value).map_err(|_| node.refuse(Problem::TooMany { what, limit: N }))
}

/// The nodes that others refer to, which are found before anything else is read.
struct Hubs {
    gic: Controller,
    smmus: Vec<Phandle, { super::MAX_DEVICES }>,
}

impl Hubs {
    /// Finds the one GICv3 and the SMMUs. A machine without them is refused for that, whatever else is odd
    /// about it.
    fn find(root: &Level<'_, '_>) -> Result<Self, Refusal> {
        let mut gic = None;
        let mut smmus = Vec::new();
        root.descendants(&mut |node| match node.kind {
            Some(Kind::GicV2) => Err(node.refuse(Problem::GicV2)),
            Some(Kind::GicV3) => once(&mut gic, node, GIC, controller(node)?),
            Some(Kind::SmmuV3) => add(&mut smmus, node, "SMMUs", needed_phandle(node)?),
            _ => Ok(()),
        })?;
        let gic = gic.ok_or_else(|| tree::at_root(Problem::NoNode(GIC)))?;
        if smmus.is_empty() {
            return Err(tree::at_root(Problem::NoSmmu));
        }
        Ok(Self { gic, smmus })
    }

    /// Checks that every StreamID of a host bridge is one of an SMMU that was found.
    fn check_streams(&self, node: &Level<'_, '_>, map: &IommuMap) -> Result<(), Refusal> {
        match map.0.entries.iter().all(|entry| self.smmus.contains(&entry.controller)) {
            true => Ok(()),
            false => Err(node.refuse(Problem::Dangling { property: "iommu-map", to: "an SMMUv3" })),
        }
    }
}

fn needed_phandle(node: &Level<'_, '_>) -> Result<Phandle, Refusal> {
    node.phandle()?.ok_or_else(|| node.refuse(Problem::NoProperty("phandle")))
}

fn controller(node: &Level<'_, '_>) -> Result<Controller, Refusal> {
    let specifier_cells = match node.cell("#interrupt-cells")? {
        Some(cells @ 3..=4) => cells as usize,
        _ => return Err(node.malformed("#interrupt-cells", "it is neither 3 nor 4")),
    };
    // A controller without the property has no address in an interrupt-map.
    let address_cells = match node.cell("#address-cells")? {
        None => 0,
        Some(_) => node.address_cells()?,
    };
    Ok(Controller { phandle: needed_phandle(node)?, specifier_cells, address_cells })
}

fn gic(node: &Level<'_, '_>, controller: &Controller) -> Result<Gic, Refusal> {
    let distributor = node.registers()?;
    let stride = node.number("redistributor-stride")?;
    if stride.is_some_and(|stride| stride < REDISTRIBUTOR || !stride.is_multiple_of(0x1_0000)) {
        return Err(
            node.malformed("redistributor-stride", "it is no multiple of 64 KiB from 128 KiB on")
        );
    }
    let regions = node.cell("#redistributor-regions")?.unwrap_or(1);
    if regions == 0 {
        return Err(node.malformed("#redistributor-regions", "it is 0"));
    }
    let mut redistributors = Vec::new();
    for region in 1..=regions as usize {
        let range = node.reg(region)?.ok_or_else(|| {
            node.malformed("reg", "it names fewer redistributor regions than there are")
        })?;
        if range.size < REDISTRIBUTOR {
            return Err(node.refuse(Problem::RegistersTooSmall { needed: REDISTRIBUTOR }));
        }
        add(&mut redistributors, node, "redistributor regions", Redistributors { range, stride })?;
    }
    let mut its = Vec::new();
    node.children(&mut |child| {
        if child.is_okay && child.kind == Some(Kind::Its) {
            let entry = Its { range: child.registers()?, phandle: child.phandle()? };
            add(&mut its, child, "ITSs", entry)?;
        }
        Ok(())
    })?;
    let maintenance = node
        .interrupt(controller, 0, Wire::Private)?
        .ok_or_else(|| node.refuse(Problem::NoMaintenanceInterrupt))?;
    Ok(Gic { distributor, redistributors, its, maintenance })
}

fn timers(node: &Level<'_, '_>, controller: &Controller) -> Result<Timers, Refusal> {
    const NAMES: &str = "interrupt-names";
    let named = node.value(NAMES).is_some();
    let timer = |name: &str, position: usize| match named {
        // Without names, the binding fixes the order.
        false => node.interrupt(controller, position, Wire::Private),
        true => match node.position(NAMES, name) {
            Some(position) => node.interrupt(controller, position, Wire::Private),
            None => Ok(None),
        },
    };
    let needed = |interrupt: Option<_>| {
        interrupt
            .ok_or_else(|| node.malformed("interrupts", "one of the timer's interrupts is missing"))
    };
    Ok(Timers {
        secure_physical: timer("sec-phys", 0)?,
        physical: needed(timer("phys", 1)?)?,
        virtual_: needed(timer("virt", 2)?)?,
        hypervisor: needed(timer("hyp-phys", 3)?)?,
        hypervisor_virtual: timer("hyp-virt", 4)?,
    })
}

fn psci(node: &Level<'_, '_>) -> Result<Conduit, Refusal> {
    match node.text("method")? {
        Some("smc") => Ok(Conduit::Smc),
        Some("hvc") => Ok(Conduit::Hvc),
        Some(_) => Err(node.malformed("method", "it is neither smc nor hvc")),
        None => Err(node.refuse(Problem::NoProperty("method"))),
    }
}

fn uart(node: &Level<'_, '_>, controller: &Controller) -> Result<Uart, Refusal> {
    Ok(Uart { range: node.registers()?, interrupt: node.interrupt(controller, 0, Wire::Shared)? })
}

/// Which UART comes first: nodes and their ranks, of which the lowest comes first.
struct UartOrder<'t>(Vec<(Node<'t>, usize), MAX_SERIAL_ALIASES>);

impl<'t> UartOrder<'t> {
    fn new(tree: Tree<'t>) -> Self {
        let (mut aliases, mut stdout) = (None, None);
        for node in tree.root().children() {
            match node.name() {
                "aliases" => aliases = Some(node),
                "chosen" => stdout = node.text("stdout-path"),
                _ => {}
            }
        }
        let mut order = Self(Vec::new());
        // Options such as the baud rate follow a colon.
        let console = stdout.and_then(|path| path.split(':').next()).and_then(|path| {
            let path = if path.starts_with('/') { path } else { aliases?.text(path)? };
            tree.find(path)
        });
        order.0.extend(console.map(|console| (console, 0)));
        for alias in aliases.into_iter().flat_map(Node::properties) {
            let number = alias.name().strip_prefix("serial");
            let number = number.and_then(|number| number.parse::<usize>().ok());
            if let Some(number) = number.filter(|number| *number < MAX_SERIAL_ALIASES - 1)
                && let Some(node) = fdt::text(alias.value).and_then(|path| tree.find(path))
            {
                // A number comes once in a tree; one that does not loses its order, not its UART.
                let _ = order.0.push((node, number + 1));
            }
        }
        order
    }

    fn rank(&self, node: Node<'t>) -> usize {
        let ranks = self.0.iter().filter(|(ranked, _)| *ranked == node).map(|(_, rank)| *rank);
        ranks.min().unwrap_or(usize::MAX)
    }
}

fn smmu(node: &Level<'_, '_>, controller: &Controller) -> Result<Smmu, Refusal> {
    let range = node.registers()?;
    if range.size < SMMU_REGISTERS {
        return Err(node.refuse(Problem::RegistersTooSmall { needed: SMMU_REGISTERS }));
    }
    if node.cell("#iommu-cells")? != Some(1) {
        return Err(node.malformed("#iommu-cells", "it is not 1"));
    }
    const NAMES: &str = "interrupt-names";
    let named = |name: &str| match node.position(NAMES, name) {
        Some(position) => node.interrupt(controller, position, Wire::Shared),
        None => Ok(None),
    };
    let needed = |interrupt: Option<_>| {
        interrupt
            .ok_or_else(|| node.malformed(NAMES, "it names neither combined nor eventq and gerror"))
    };
    let interrupts = match named("combined")? {
        Some(interrupt) => SmmuInterrupts::Combined(interrupt),
        None => SmmuInterrupts::Separate {
            eventq: needed(named("eventq")?)?,
            gerror: needed(named("gerror")?)?,
            cmdq_sync: named("cmdq-sync")?,
            priq: named("priq")?,
        },
    };
    let phandle = needed_phandle(node)?;
    Ok(Smmu { range, phandle, interrupts, dma_coherent: node.is_dma_coherent() })
}

fn memory(
    node: &Level<'_, '_>,
    memory: &mut Vec<Range, { super::MAX_MEMORY }>,
) -> Result<(), Refusal> {
    let mut index = 0;
    while let Some(range) = node.reg(index)? {
        index += 1;
        // Firmware may leave a bank empty.
        if range.size == 0 {
            continue;
        }
        if memory.iter().any(|other| other.overlaps(range)) {
            return Err(node.malformed("reg", "two memory regions overlap"));
        }
        add(memory, node, "memory regions", range)?;
    }
    match index {
        0 => Err(node.refuse(Problem::NoProperty("reg"))),
        _ => Ok(()),
    }
}

fn reserved(
    tree: Tree<'_>,
    root: &Level<'_, '_>,
) -> Result<Vec<Range, { super::MAX_RESERVED }>, Refusal> {
    const WHAT: &str = "reserved memory regions";
    let mut reserved = Vec::new();
    for (base, size) in tree.reservations() {
        let range = Range::new(Pa::new(base), size)
            .ok_or_else(|| root.malformed("/memreserve/", PAST_THE_END))?;
        add(&mut reserved, root, WHAT, range)?;
    }
    root.children(&mut |node| {
        if node.node.name() != "reserved-memory" || !node.is_okay {
            return Ok(());
        }
        node.children(&mut |region| {
            let mut index = 0;
            // A region without an address is for an operating system to place.
            while let Some(range) = region.reg(index)?.filter(|_| region.is_okay) {
                index += 1;
                add(&mut reserved, region, WHAT, range)?;
            }
            Ok(())
        })
    })?;
    Ok(reserved)
}

fn cpus(root: &Level<'_, '_>) -> Result<Vec<Cpu, { super::MAX_CPUS }>, Refusal> {
    let mut cpus = Vec::<Cpu, { super::MAX_CPUS }>::new();
    let mut without_psci = None;
    root.children(&mut |parent| {
        if parent.node.name() != "cpus" {
            return Ok(());
        }
        let cells = parent.address_cells()?;
        parent.children(&mut |cpu| {
            // A CPU that is "disabled" merely does not run yet; one that failed is no CPU.
            let failed = cpu.value("status").is_some_and(|status| status.starts_with(b"fail"));
            if cpu.value("device_type") != Some(b"cpu\0") || failed {
                return Ok(());
            }
            let mpidr = match cpu.cells("reg")? {
                None => return Err(cpu.refuse(Problem::NoProperty("reg"))),
                Some(mut reg) if reg.len() == cells => reg.number(cells),
                Some(_) => None,
            };
            let mpidr = mpidr
                .filter(|mpidr| mpidr & !AFFINITY == 0)
                .ok_or_else(|| cpu.malformed("reg", "it is not the affinity of a CPU"))?;
            if cpus.iter().any(|other| other.mpidr == mpidr) {
                return Err(cpu.refuse(Problem::Twice("CPU with this affinity")));
            }
            if without_psci.is_none() && cpu.position("enable-method", "psci").is_none() {
                without_psci = Some(cpu.refuse(Problem::NotPsci));
            }
            add(&mut cpus, cpu, "CPUs", Cpu { mpidr })
        })
    })?;
    match (cpus.len(), without_psci) {
        (0, _) => Err(tree::at_root(Problem::NoNode("CPU"))),
        // The one CPU that runs need not be started.
        (1, _) | (_, None) => Ok(cpus),
        (_, Some(refusal)) => Err(refusal),
    }
}

#[derive(Default)]
struct Chosen {
    initrd: Option<Range>,
    bootargs: String<{ super::MAX_BOOTARGS }>,
}

fn chosen(root: &Level<'_, '_>) -> Result<Chosen, Refusal> {
    let mut chosen = Chosen::default();
    root.children(&mut |node| {
        if node.node.name() != "chosen" {
            return Ok(());
        }
        if let Some(text) = node.text("bootargs")? {
            chosen.bootargs = String::try_from(text)
                .map_err(|_| node.malformed("bootargs", "it is longer than 512 bytes"))?;
        }
        const END: &str = "linux,initrd-end";
        chosen.initrd = match (node.number("linux,initrd-start")?, node.number(END)?) {
            (None, None) => None,
            (Some(_), None) => return Err(node.refuse(Problem::NoProperty(END))),
            (None, Some(_)) => return Err(node.refuse(Problem::NoProperty("linux,initrd-start"))),
            (Some(start), Some(end)) => match end.checked_sub(start) {
                None | Some(0) => {
                    return Err(node.malformed(END, "it is not above linux,initrd-start"));
                }
                Some(size) => Some(
                    Range::new(Pa::new(start), size)
                        .ok_or_else(|| node.malformed(END, PAST_THE_END))?,
                ),
            },
        };
        Ok(())
    })?;
    Ok(chosen)
}
