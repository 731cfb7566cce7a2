//! Host bridges: the generic ECAM binding with its windows and maps.

use heapless::Vec;

use super::refusal::{Problem, Refusal};
use super::tree::{Cells, Controller, INTERRUPT_MAP, INTERRUPT_MAP_MASK, Level, Wire};
use super::{MAX_WINDOWS, PcieHost, Phandle, Range, Window, WindowKind};
use crate::pcie::{IdMap, IdMapEntry, InterruptMap, IntxEntry, IommuMap, MsiMap};

/// Bytes of configuration space per bus.
const ECAM_PER_BUS: u64 = 1 << 20;
/// Requester IDs of one host bridge.
const REQUESTER_IDS: u64 = 1 << 16;

pub(super) fn host(node: &Level<'_, '_>, controller: &Controller) -> Result<PcieHost, Refusal> {
    if node.address_cells()? != 3 || node.size_cells()? != 2 {
        return Err(node.malformed("#address-cells", "a PCI bus has 3, and 2 #size-cells"));
    }
    let ecam = node.registers()?;
    let (first_bus, last_bus) = buses(node, ecam)?;
    dma_is_identity(node)?;
    Ok(PcieHost {
        ecam,
        first_bus,
        last_bus,
        windows: windows(node)?,
        iommu_map: IommuMap(id_map(node, "iommu-map", "iommu-map-mask")?),
        msi_map: MsiMap(id_map(node, "msi-map", "msi-map-mask")?),
        intx: interrupt_map(node, controller)?,
        dma_coherent: node.is_dma_coherent(),
    })
}

fn buses(node: &Level<'_, '_>, ecam: Range) -> Result<(u8, u8), Refusal> {
    const BUSES: &str = "bus-range";
    let room = ecam.size / ECAM_PER_BUS;
    let Some(mut range) = node.cells(BUSES)? else {
        // Without the property, the configuration space says how many buses there are.
        let last = u8::try_from(room.saturating_sub(1)).unwrap_or(u8::MAX);
        return match room {
            0 => Err(node.refuse(Problem::RegistersTooSmall { needed: ECAM_PER_BUS })),
            _ => Ok((0, last)),
        };
    };
    let byte = |cell: Option<u32>| cell.and_then(|cell| u8::try_from(cell).ok());
    match (byte(range.next()), byte(range.next()), range.len()) {
        (Some(first), Some(last), 0) if first <= last => {
            let needed = (u64::from(last - first) + 1) * ECAM_PER_BUS;
            if ecam.size < needed {
                return Err(node.refuse(Problem::RegistersTooSmall { needed }));
            }
            Ok((first, last))
        }
        _ => Err(node.malformed(BUSES, "it is not a first and a last bus number")),
    }
}

/// Checks that what a device puts on the bus is what the SMMU gets.
fn dma_is_identity(node: &Level<'_, '_>) -> Result<(), Refusal> {
    const DMA: &str = "dma-ranges";
    let Some(mut ranges) = node.cells(DMA)? else { return Ok(()) };
    while ranges.len() > 0 {
        match entry(node, &mut ranges, DMA)? {
            (_, pci, cpu, _) if pci == cpu => {}
            _ => return Err(node.refuse(Problem::DmaOffset)),
        }
    }
    Ok(())
}

/// Reads one entry of `ranges` or `dma-ranges`: space, bus address, parent address, size.
fn entry(
    node: &Level<'_, '_>,
    ranges: &mut Cells<'_>,
    property: &'static str,
) -> Result<(u32, u64, u64, u64), Refusal> {
    let parent = node.parent_address_cells()?;
    match (ranges.next(), ranges.number(2), ranges.number(parent), ranges.number(2)) {
        (Some(space), Some(pci), Some(cpu), Some(size)) => Ok((space, pci, cpu, size)),
        _ => Err(node.malformed(property, "it is not a list of bus address, address and size")),
    }
}

fn windows(node: &Level<'_, '_>) -> Result<Vec<Window, MAX_WINDOWS>, Refusal> {
    const RANGES: &str = "ranges";
    let mut windows = Vec::new();
    let mut ranges = node.cells(RANGES)?.ok_or_else(|| node.refuse(Problem::NoProperty(RANGES)))?;
    while ranges.len() > 0 {
        let (space, pci, cpu, size) = entry(node, &mut ranges, RANGES)?;
        let kind = match space >> 24 & 3 {
            1 => WindowKind::Io,
            2 => WindowKind::Mem32,
            3 => WindowKind::Mem64,
            _ => return Err(node.malformed(RANGES, "a window is for configuration space")),
        };
        let limit = if kind == WindowKind::Mem64 { u64::MAX } else { u64::from(u32::MAX) };
        if size == 0 || pci.checked_add(size - 1).is_none_or(|last| last > limit) {
            return Err(
                node.malformed(RANGES, "a window is empty or reaches past its bus addresses")
            );
        }
        let prefetchable = space >> 30 & 1 == 1;
        let cpu = node.physical(RANGES, cpu, size)?;
        windows.push(Window { kind, prefetchable, pci, cpu }).map_err(|_| {
            node.refuse(Problem::TooMany { what: "PCI windows", limit: MAX_WINDOWS })
        })?;
    }
    Ok(windows)
}

fn id_map(
    node: &Level<'_, '_>,
    map_property: &'static str,
    mask_property: &'static str,
) -> Result<IdMap, Refusal> {
    let mut map = IdMap::default();
    if let Some(mask) = node.cell(mask_property)? {
        map.mask = mask;
    }
    let Some(mut cells) = node.cells(map_property)? else { return Ok(map) };
    while cells.len() > 0 {
        let (Some(rid_base), Some(controller), Some(base), Some(length)) =
            (cells.next(), cells.next(), cells.next(), cells.next())
        else {
            return Err(node.malformed(map_property, "an entry is cut short"));
        };
        let end = u64::from(rid_base) + u64::from(length);
        if length == 0 || end > REQUESTER_IDS || base.checked_add(length - 1).is_none() {
            return Err(node
                .malformed(map_property, "an entry is empty or reaches past the last identifier"));
        }
        if rid_base & !map.mask != 0 {
            return Err(node.malformed(
                map_property,
                "an entry starts at a requester ID that the mask excludes",
            ));
        }
        let overlaps = |other: &IdMapEntry| {
            u64::from(other.rid_base) < end
                && u64::from(rid_base) < u64::from(other.rid_base) + u64::from(other.length)
        };
        if map.entries.iter().any(overlaps) {
            return Err(node.malformed(map_property, "two entries overlap"));
        }
        let entry = IdMapEntry { rid_base, controller: Phandle(controller), base, length };
        let limit = map.entries.capacity();
        map.entries.push(entry).map_err(|_| {
            node.refuse(Problem::TooMany { what: "requester-ID map entries", limit })
        })?;
    }
    Ok(map)
}

fn interrupt_map(node: &Level<'_, '_>, controller: &Controller) -> Result<InterruptMap, Refusal> {
    let mut map =
        InterruptMap { unit_mask: u32::MAX, pin_mask: u32::MAX, ..InterruptMap::default() };
    let Some(mut cells) = node.cells(INTERRUPT_MAP)? else { return Ok(map) };
    if node.cell("#interrupt-cells")? != Some(1) {
        return Err(node.malformed("#interrupt-cells", "a PCI bus has 1"));
    }
    if let Some(mut mask) = node.cells(INTERRUPT_MAP_MASK)? {
        match (mask.next(), mask.skip(2), mask.next(), mask.len()) {
            (Some(unit), Some(()), Some(pin), 0) => (map.unit_mask, map.pin_mask) = (unit, pin),
            _ => return Err(node.malformed(INTERRUPT_MAP_MASK, "it is not 4 cells")),
        }
    }
    while cells.len() > 0 {
        let (Some(unit), Some(()), Some(pin)) = (cells.next(), cells.skip(2), cells.next()) else {
            return Err(node.malformed(INTERRUPT_MAP, "an entry is cut short"));
        };
        let interrupt = node.mapped_interrupt(controller, &mut cells, Wire::Shared)?;
        let entry = IntxEntry { unit: unit & map.unit_mask, pin: pin & map.pin_mask, interrupt };
        let limit = map.entries.capacity();
        map.entries
            .push(entry)
            .map_err(|_| node.refuse(Problem::TooMany { what: "interrupt-map entries", limit }))?;
    }
    Ok(map)
}
