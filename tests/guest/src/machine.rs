//! What the device tree says about the machine, as far as the runtime needs it.

use core::ops::Range;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard as _;
use dtoolkit::{Node as _, Property as _, ToCellInt as _};

use crate::arch::boot::MAX_CPUS;
use crate::arch::call::Conduit;
use crate::bootargs::Bootargs;
use crate::gic;

/// Interrupt lines of a PCI host bridge: four slots by four pins.
pub type IntxMap = [[Option<u32>; 4]; 4];

/// The PCI host bridge.
#[derive(Clone, Debug)]
pub struct Bridge {
    /// Configuration space of bus 0.
    pub ecam: u64,
    /// Where 32-bit memory BARs may go; PCI and CPU addresses are the same.
    pub mem32: Range<u64>,
    /// The same for 64-bit memory BARs, if there is such a window.
    pub mem64: Option<Range<u64>>,
    /// Where I/O BARs may go, and what to add to a port for its CPU address; without it they stay off.
    pub io: Option<(Range<u64>, u64)>,
    /// The INTID of `[device % 4][pin - 1]`.
    pub intx: IntxMap,
}

/// A run of requester IDs and the StreamIDs that they have: first requester ID, first StreamID, how many.
pub type StreamRange = (u32, u32, u32);

/// The most runs that are read.
const MAX_STREAM_RANGES: usize = 8;

/// The SMMUv3 of the host bridge.
#[derive(Clone, Debug)]
pub struct SmmuNode {
    /// Its registers.
    pub registers: Range<u64>,
    /// The INTIDs of `eventq`, `gerror` and `cmdq-sync`, as far as they are wired.
    pub interrupts: [Option<u32>; 3],
    /// The StreamIDs of the host bridge's functions.
    pub streams: [Option<StreamRange>; MAX_STREAM_RANGES],
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What to do.
    pub bootargs: Bootargs,
    /// The console's PL011.
    pub uart: u64,
    /// The INTID of the console.
    pub uart_intid: u32,
    /// RAM, the first range.
    pub ram: Range<u64>,
    /// The GIC's distributor.
    pub distributor: u64,
    /// The GIC's redistributors, one frame per CPU.
    pub redistributors: Range<u64>,
    /// How PSCI is called.
    pub conduit: Conduit,
    /// The affinities of all CPUs, as `MPIDR_EL1` gives them; the first [`Machine::cpus`] count.
    pub affinities: [u64; MAX_CPUS],
    /// How many CPUs there are.
    pub cpus: usize,
    /// The PCI host bridge, if there is one.
    pub bridge: Option<Bridge>,
    /// The SMMU between it and memory, if the guest sees one.
    pub smmu: Option<SmmuNode>,
}

impl Machine {
    /// Reads the device tree.
    ///
    /// # Errors
    ///
    /// What is missing or not understood.
    pub fn discover(tree: &Fdt<'static>) -> Result<Self, &'static str> {
        let root = tree.root();
        let find = |compatible: &str| root.children().find(|node| node.is_compatible(compatible));
        let chosen = tree.find_node("/chosen").ok_or("no /chosen")?;
        let stdout = text(chosen, "stdout-path").map(|path| path.split(':').next().unwrap_or(path));
        let uart = stdout
            .and_then(|path| tree.find_node(path))
            .filter(|node| node.is_compatible("arm,pl011"))
            .or_else(|| find("arm,pl011"))
            .ok_or("no arm,pl011")?;
        let memory = tree.find_node("/memory").ok_or("no /memory")?;
        let gic = find("arm,gic-v3").ok_or("no arm,gic-v3")?;
        let psci = find("arm,psci-1.0").or_else(|| find("arm,psci-0.2")).ok_or("no arm,psci")?;
        let (affinities, cpus) = cpus(tree)?;
        Ok(Self {
            bootargs: Bootargs(text(chosen, "bootargs").unwrap_or("")),
            uart: range(uart, 0)?.start,
            uart_intid: spi(uart).ok_or("arm,pl011: no SPI")?,
            ram: range(memory, 0)?,
            distributor: range(gic, 0)?.start,
            redistributors: range(gic, 1)?,
            conduit: match text(psci, "method") {
                Some("smc") => Conduit::Smc,
                Some("hvc") => Conduit::Hvc,
                _ => return Err("psci: method is neither smc nor hvc"),
            },
            affinities,
            cpus,
            bridge: find("pci-host-ecam-generic").map(|node| bridge(node, gic)).transpose()?,
            smmu: find("arm,smmu-v3")
                .map(|node| smmu(node, find("pci-host-ecam-generic")))
                .transpose()?,
        })
    }
}

fn text(node: FdtNode<'static>, name: &str) -> Option<&'static str> {
    node.property(name)?.value_as::<&'static str>().ok()
}

fn number(node: FdtNode<'static>, name: &str) -> Option<u32> {
    node.property(name)?.value_as::<u32>().ok()
}

/// The INTID of the node's first interrupt, if that is an SPI.
fn spi(node: FdtNode<'static>) -> Option<u32> {
    let [kind, number, _] =
        node.property("interrupts")?.as_prop_encoded_array([1, 1, 1]).ok()?.next()?;
    (kind.to_int::<u32>().ok()? == 0).then_some(gic::FIRST_SPI + number.to_int::<u32>().ok()?)
}

fn range(node: FdtNode<'static>, index: usize) -> Result<Range<u64>, &'static str> {
    let reg =
        node.reg().ok().flatten().and_then(|mut reg| reg.nth(index)).ok_or("reg is missing")?;
    let start = reg.address::<u64>().map_err(|_| "reg: address")?;
    let size = reg.size::<u64>().map_err(|_| "reg: size")?;
    Ok(start..start.checked_add(size).ok_or("reg: end")?)
}

fn cpus(tree: &Fdt<'static>) -> Result<([u64; MAX_CPUS], usize), &'static str> {
    let mut affinities = [0; MAX_CPUS];
    let mut count = 0;
    let nodes = tree.find_node("/cpus").ok_or("no /cpus")?;
    for node in nodes.children().filter(|node| text(*node, "device_type") == Some("cpu")) {
        let reg = node.reg().ok().flatten().and_then(|mut reg| reg.next()).ok_or("cpu: no reg")?;
        *affinities.get_mut(count).ok_or("too many CPUs")? =
            reg.address::<u64>().map_err(|_| "cpu: reg")?;
        count += 1;
    }
    Ok((affinities, count))
}

fn smmu(
    node: FdtNode<'static>,
    bridge: Option<FdtNode<'static>>,
) -> Result<SmmuNode, &'static str> {
    let wires = ["eventq", "gerror", "cmdq-sync"].map(|name| named_spi(node, name));
    let mut streams = [None; MAX_STREAM_RANGES];
    let entries = bridge
        .and_then(|bridge| bridge.property("iommu-map"))
        .and_then(|property| property.as_prop_encoded_array([1, 1, 1, 1]).ok())
        .ok_or("pcie: no iommu-map")?;
    for (index, cells) in entries.enumerate() {
        let cell = |at: usize| cells[at].to_int::<u32>().map_err(|_| "pcie: iommu-map");
        *streams.get_mut(index).ok_or("pcie: iommu-map is too long")? =
            Some((cell(0)?, cell(2)?, cell(3)?));
    }
    Ok(SmmuNode { registers: range(node, 0)?, interrupts: wires, streams })
}

/// The INTID of the node's interrupt of that name, if it has one and that is an SPI.
fn named_spi(node: FdtNode<'static>, name: &str) -> Option<u32> {
    let names = node.property("interrupt-names")?;
    let index = names.value().split(|byte| *byte == 0).position(|one| one == name.as_bytes())?;
    let mut cells = node.property("interrupts")?.as_prop_encoded_array([1, 1, 1]).ok()?;
    let [kind, number, _] = cells.nth(index)?;
    (kind.to_int::<u32>().ok()? == 0).then_some(gic::FIRST_SPI + number.to_int::<u32>().ok()?)
}

fn bridge(node: FdtNode<'static>, gic: FdtNode<'static>) -> Result<Bridge, &'static str> {
    const SPACE_IO: u32 = 1;
    const SPACE_MEM32: u32 = 2;
    const SPACE_MEM64: u32 = 3;

    // The first cell of a PCI address says which space it is in (IEEE 1275 PCI binding).
    let windows = node
        .property("ranges")
        .and_then(|property| property.as_prop_encoded_array([1, 2, 2, 2]).ok())
        .ok_or("pcie: no ranges")?;
    let (mut mem32, mut mem64, mut io) = (None, None, None);
    for [space, bus, cpu, size] in windows {
        let cell = |cells: dtoolkit::Cells<'_>| cells.to_int::<u64>().map_err(|_| "pcie: ranges");
        let (space, bus, cpu, size) = (cell(space)?, cell(bus)?, cell(cpu)?, cell(size)?);
        match space as u32 >> 24 & 3 {
            SPACE_MEM32 if bus == cpu => mem32 = Some(cpu..cpu + size),
            SPACE_MEM64 if bus == cpu => mem64 = Some(cpu..cpu + size),
            SPACE_IO => io = Some((bus..bus + size, cpu - bus)),
            _ => {}
        }
    }
    let mem32 = mem32.ok_or("pcie: no 32-bit memory window")?;
    Ok(Bridge { ecam: range(node, 0)?.start, mem32, mem64, io, intx: intx(node, gic)? })
}

fn intx(node: FdtNode<'static>, gic: FdtNode<'static>) -> Result<IntxMap, &'static str> {
    let parent_cells = number(gic, "#address-cells").unwrap_or(0) as usize;
    let mut lines = IntxMap::default();
    let entries = node
        .property("interrupt-map")
        .and_then(|property| {
            property.as_prop_encoded_array([1, 2, 1, 1, parent_cells, 1, 1, 1]).ok()
        })
        .ok_or("pcie: no interrupt-map")?;
    for [address, _, pin, _, _, kind, interrupt, _] in entries {
        let cell =
            |cells: dtoolkit::Cells<'_>| cells.to_int::<u32>().map_err(|_| "pcie: interrupt-map");
        let (address, pin) = (cell(address)?, cell(pin)?);
        if cell(kind)? != 0 || !(1..=4).contains(&pin) {
            return Err("pcie: interrupt-map: not an SPI");
        }
        lines[(address >> 11 & 3) as usize][pin as usize - 1] =
            Some(gic::FIRST_SPI + cell(interrupt)?);
    }
    Ok(lines)
}
