//! Walking a device tree: nodes with what they inherit, and the decoding of common properties.

use heapless::Vec;
use smmu::addr::Pa;

use super::refusal::{Path, Problem, Refusal};
use super::{Interrupt, Phandle, Range, Trigger};
use crate::fdt::{self, Children, Node, Tree};

const MAX_DEPTH: usize = 16;
pub(super) const PAST_THE_END: &str = "it reaches past the end of the address space";
pub(super) const INTERRUPT_MAP: &str = "interrupt-map";
pub(super) const INTERRUPT_MAP_MASK: &str = "interrupt-map-mask";
/// Checks the device tree at the start of `bytes`.
pub(super) fn open(bytes: &[u8]) -> Result<Tree<'_>, Refusal> {
    Tree::open(bytes).map_err(|error| at_root(Problem::NotATree(error)))
}

/// What a node is (`compatible`, or `device_type` for memory).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Memory,
    GicV3,
    GicV2,
    Its,
    Timer,
    Psci,
    /// PSCI before version 0.2.
    OldPsci,
    Pl011,
    SmmuV3,
    Ecam,
    VirtioMmio,
}

impl Kind {
    /// Reads a list of what a node is compatible with, the best first.
    fn of(compatible: &[u8]) -> Option<Self> {
        compatible.split(|byte| *byte == 0).find_map(|name| match name {
            b"arm,gic-v3" => Some(Self::GicV3),
            b"arm,gic-400" | b"arm,cortex-a15-gic" | b"arm,cortex-a9-gic" => Some(Self::GicV2),
            b"arm,gic-v3-its" => Some(Self::Its),
            b"arm,armv8-timer" => Some(Self::Timer),
            b"arm,psci-1.0" | b"arm,psci-0.2" => Some(Self::Psci),
            b"arm,psci" => Some(Self::OldPsci),
            b"arm,pl011" => Some(Self::Pl011),
            b"arm,smmu-v3" => Some(Self::SmmuV3),
            b"pci-host-ecam-generic" => Some(Self::Ecam),
            b"virtio,mmio" => Some(Self::VirtioMmio),
            _ => None,
        })
    }
}

/// Blames the tree as a whole.
pub(super) fn at_root(problem: Problem) -> Refusal {
    let mut node = Path::new();
    // A single character fits.
    let _ = node.push('/');
    Refusal { node, problem }
}

/// A node and its ancestors.
#[derive(Clone, Copy)]
pub(super) struct Level<'t, 'p> {
    pub(super) node: Node<'t>,
    /// What it is, if it is something of interest.
    pub(super) kind: Option<Kind>,
    /// Whether it is usable (`status`).
    pub(super) is_okay: bool,
    children: Children<'t>,
    parent: Option<&'p Level<'t, 'p>>,
    depth: usize,
}

impl<'t> Level<'t, '_> {
    /// Starts at the root.
    pub(super) fn root(tree: Tree<'t>) -> Level<'t, 't> {
        Level::new(tree.root(), None, 0)
    }

    fn new<'p>(node: Node<'t>, parent: Option<&'p Level<'t, 'p>>, depth: usize) -> Level<'t, 'p> {
        let (mut kind, mut is_okay) = (None, true);
        let mut properties = node.properties();
        for property in properties.by_ref() {
            if property.is("compatible") {
                kind = Kind::of(property.value).or(kind);
            } else if property.is("device_type") && property.value == b"memory\0" {
                kind = kind.or(Some(Kind::Memory));
            } else if property.is("status") {
                is_okay = matches!(property.value, b"okay\0" | b"ok\0");
            }
        }
        Level { node, kind, is_okay, children: properties.children(), parent, depth }
    }

    /// Blames this node.
    pub(super) fn refuse(&self, problem: Problem) -> Refusal {
        let mut names = Vec::<&str, MAX_DEPTH>::new();
        let mut level = Some(self);
        while let Some(at) = level.filter(|at| at.parent.is_some()) {
            // No level is deeper than there is room for.
            let _ = names.push(at.node.name());
            level = at.parent;
        }
        if names.is_empty() {
            return at_root(problem);
        }
        let length: usize = names.iter().map(|name| name.chars().count() + 1).sum();
        let mut node = Path::new();
        let path = names.iter().rev().flat_map(|name| ['/'].into_iter().chain(name.chars()));
        // What does not fit is the start, which is the less important part.
        for character in path.skip(length.saturating_sub(node.capacity())) {
            let _ = node.push(character);
        }
        Refusal { node, problem }
    }

    pub(super) fn malformed(&self, property: &'static str, why: &'static str) -> Refusal {
        self.refuse(Problem::Malformed { property, why })
    }

    /// Visits every child.
    pub(super) fn children(
        &self,
        visit: &mut dyn FnMut(&Level<'t, '_>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut children = self.children;
        while let Some(node) = children.peek() {
            let child = Level::new(node, Some(self), self.depth + 1);
            if child.depth > MAX_DEPTH {
                return Err(self.refuse(Problem::TooDeep));
            }
            visit(&child)?;
            children.skip_to_end_of(child.children);
        }
        Ok(())
    }

    /// Visits every usable node below this one, in the tree's order.
    pub(super) fn descendants(
        &self,
        visit: &mut dyn FnMut(&Level<'t, '_>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        self.children(&mut |child| {
            if !child.is_okay {
                return Ok(());
            }
            visit(child)?;
            child.descendants(visit)
        })
    }

    /// Returns a property's value.
    pub(super) fn value(&self, property: &str) -> Option<&'t [u8]> {
        self.node.value(property)
    }

    /// Returns a property's value as cells.
    pub(super) fn cells(&self, property: &'static str) -> Result<Option<Cells<'t>>, Refusal> {
        match self.value(property) {
            None => Ok(None),
            Some(value) if value.len().is_multiple_of(4) => Ok(Some(Cells(value))),
            Some(_) => Err(self.malformed(property, "its length is not a multiple of 4")),
        }
    }

    /// Returns a property that is one cell.
    pub(super) fn cell(&self, property: &'static str) -> Result<Option<u32>, Refusal> {
        match self.value(property).map(<[u8; 4]>::try_from) {
            None => Ok(None),
            Some(Ok(bytes)) => Ok(Some(u32::from_be_bytes(bytes))),
            Some(Err(_)) => Err(self.malformed(property, "it is not one cell")),
        }
    }

    /// Returns a property that is one number of one or two cells.
    pub(super) fn number(&self, property: &'static str) -> Result<Option<u64>, Refusal> {
        match self.cells(property)? {
            None => Ok(None),
            Some(mut cells) if (1..=2).contains(&cells.len()) => Ok(cells.number(cells.len())),
            Some(_) => Err(self.malformed(property, "it is neither one cell nor two")),
        }
    }

    /// Returns a property that is a string.
    pub(super) fn text(&self, property: &'static str) -> Result<Option<&'t str>, Refusal> {
        match self.value(property).map(fdt::text) {
            None => Ok(None),
            Some(None) => Err(self.malformed(property, "it is not a string")),
            Some(text) => Ok(text),
        }
    }

    /// Returns the position of `name` in a list of strings.
    pub(super) fn position(&self, list: &str, name: &str) -> Option<usize> {
        self.value(list)?.split(|byte| *byte == 0).position(|entry| entry == name.as_bytes())
    }

    /// Returns how other nodes refer to this one.
    pub(super) fn phandle(&self) -> Result<Option<Phandle>, Refusal> {
        Ok(self.cell("phandle")?.map(Phandle))
    }

    fn cells_of(
        &self,
        property: &'static str,
        default: u32,
        allowed: u32,
    ) -> Result<usize, Refusal> {
        match self.cell(property)?.unwrap_or(default) {
            cells if cells <= allowed => Ok(cells as usize),
            _ => Err(self.malformed(property, "no address or size here can have that many cells")),
        }
    }

    /// Returns how many cells an address of a child has: at most 3, of which all but PCI addresses use 2.
    pub(super) fn address_cells(&self) -> Result<usize, Refusal> {
        self.cells_of("#address-cells", 2, 3)
    }

    /// Returns how many cells a size of a child has.
    pub(super) fn size_cells(&self) -> Result<usize, Refusal> {
        self.cells_of("#size-cells", 1, 2)
    }

    /// Returns how many cells an address has on the bus that this node is on.
    pub(super) fn parent_address_cells(&self) -> Result<usize, Refusal> {
        self.parent.map_or(Ok(2), Level::address_cells)
    }

    /// Returns the physical range of entry `index` of `reg`, or `None` after the last entry.
    pub(super) fn reg(&self, index: usize) -> Result<Option<Range>, Refusal> {
        let (Some(mut reg), Some(bus)) = (self.cells("reg")?, self.parent) else { return Ok(None) };
        let (address_cells, size_cells) = (bus.address_cells()?, bus.size_cells()?);
        let entry = address_cells + size_cells;
        if entry == 0 || !reg.len().is_multiple_of(entry) {
            return Err(self.malformed("reg", "it is not a list of address and size"));
        }
        if reg.skip(index.saturating_mul(entry)).is_none() || reg.len() == 0 {
            return Ok(None);
        }
        let (address, size) = match (reg.number(address_cells), reg.number(size_cells)) {
            (Some(address), Some(size)) => (address, size),
            _ => return Err(self.malformed("reg", "an address or size has more than 64 bits")),
        };
        self.physical("reg", address, size).map(Some)
    }

    /// Returns the physical range of the first entry of `reg`, which must be there and not be empty.
    pub(super) fn registers(&self) -> Result<Range, Refusal> {
        match self.reg(0)? {
            None => Err(self.refuse(Problem::NoProperty("reg"))),
            Some(range) if range.size == 0 => Err(self.malformed("reg", "its size is 0")),
            Some(range) => Ok(range),
        }
    }

    /// Translates a range of the bus that this node is on to a physical one.
    pub(super) fn physical(
        &self,
        property: &'static str,
        address: u64,
        size: u64,
    ) -> Result<Range, Refusal> {
        let mut address = address;
        let mut bus = self.parent;
        while let Some((at, parent)) = bus.and_then(|bus| Some((bus, bus.parent?))) {
            address = at
                .translate(parent, address, size)?
                .ok_or_else(|| self.refuse(Problem::Untranslatable))?;
            bus = at.parent;
        }
        Range::new(Pa::new(address), size).ok_or_else(|| self.malformed(property, PAST_THE_END))
    }

    /// Translates an address on this bus to the parent's bus (`ranges`).
    fn translate(
        &self,
        parent: &Level<'t, '_>,
        address: u64,
        size: u64,
    ) -> Result<Option<u64>, Refusal> {
        let Some(mut ranges) = self.cells("ranges")? else { return Ok(None) };
        if ranges.len() == 0 {
            return Ok(Some(address));
        }
        let (child, upper) = (self.address_cells()?, parent.address_cells()?);
        let length = self.size_cells()?;
        while ranges.len() > 0 {
            let (Some(child), Some(upper), Some(length)) =
                (ranges.number(child), ranges.number(upper), ranges.number(length))
            else {
                return Err(self.malformed("ranges", "it is not a list of address, address, size"));
            };
            let Some(offset) = address.checked_sub(child) else { continue };
            if offset.checked_add(size).is_some_and(|end| end <= length) {
                return Ok(upper.checked_add(offset));
            }
        }
        Ok(None)
    }

    /// Whether DMA by this node is coherent, which is inherited.
    pub(super) fn is_dma_coherent(&self) -> bool {
        let mut level = Some(self);
        while let Some(at) = level {
            for property in at.node.properties() {
                if property.is("dma-coherent") {
                    return true;
                }
                if property.is("dma-noncoherent") {
                    return false;
                }
            }
            level = at.parent;
        }
        false
    }

    /// Returns interrupt `index` of this node, of this kind, or `None` after the last one.
    pub(super) fn interrupt(
        &self,
        gic: &Controller,
        index: usize,
        kind: Wire,
    ) -> Result<Option<Interrupt>, Refusal> {
        if let Some(mut cells) = self.cells("interrupts-extended")? {
            let property = "interrupts-extended";
            for at in 0..=index {
                let Some(parent) = cells.next() else { return Ok(None) };
                if Phandle(parent) != gic.phandle {
                    return Err(self.refuse(Problem::ForeignInterrupt));
                }
                let specifier = gic.specifier(&mut cells, kind);
                let interrupt = specifier.map_err(|why| self.malformed(property, why))?;
                if at == index {
                    return Ok(Some(interrupt));
                }
            }
        }
        let Some(mut cells) = self.cells("interrupts")? else { return Ok(None) };
        let parent = self.interrupt_parent(gic)?;
        let specifier = match parent {
            None => gic.specifier_cells,
            Some(nexus) => nexus.cell("#interrupt-cells")?.unwrap_or(0) as usize,
        };
        if cells.skip(index.saturating_mul(specifier)).is_none() || cells.len() == 0 {
            return Ok(None);
        }
        match parent {
            None => gic
                .specifier(&mut cells, kind)
                .map(Some)
                .map_err(|why| self.malformed("interrupts", why)),
            Some(nexus) => {
                let specifier = cells
                    .take(specifier)
                    .ok_or_else(|| self.malformed("interrupts", "an interrupt is cut short"))?;
                match nexus.through_nexus(gic, specifier, kind)? {
                    None => {
                        Err(self.malformed("interrupts", "the bus above has no such interrupt"))
                    }
                    interrupt => Ok(interrupt),
                }
            }
        }
    }

    /// Finds where this node's interrupts go: the GIC (`None`), or a bus that passes them on.
    fn interrupt_parent(&self, gic: &Controller) -> Result<Option<&Level<'t, '_>>, Refusal> {
        let mut at = self;
        loop {
            match at.cell("interrupt-parent")?.map(Phandle) {
                Some(phandle) if phandle == gic.phandle => return Ok(None),
                Some(_) => return Err(self.refuse(Problem::ForeignInterrupt)),
                None => {}
            }
            at = at.parent.ok_or_else(|| self.refuse(Problem::ForeignInterrupt))?;
            if at.value("#interrupt-cells").is_some() {
                return match at.value(INTERRUPT_MAP) {
                    Some(_) => Ok(Some(at)),
                    None => Err(self.refuse(Problem::ForeignInterrupt)),
                };
            }
        }
    }

    /// Translates an interrupt of a node on this bus (`interrupt-map`). Only maps in which the position of the
    /// node on the bus does not count are understood.
    fn through_nexus(
        &self,
        gic: &Controller,
        specifier: Cells<'_>,
        kind: Wire,
    ) -> Result<Option<Interrupt>, Refusal> {
        let unit_cells = self.address_cells()?;
        let mask = self
            .cells(INTERRUPT_MAP_MASK)?
            .filter(|mask| mask.len() == unit_cells + specifier.len());
        let mut mask =
            mask.ok_or_else(|| self.malformed(INTERRUPT_MAP_MASK, "it has the wrong length"))?;
        for _ in 0..unit_cells {
            if mask.next() != Some(0) {
                return Err(
                    self.malformed(INTERRUPT_MAP_MASK, "it selects by the place on the bus")
                );
            }
        }
        let Some(mut map) = self.cells(INTERRUPT_MAP)? else { return Ok(None) };
        while map.len() > 0 {
            let entry = map.skip(unit_cells).and_then(|()| map.take(specifier.len()));
            let entry =
                entry.ok_or_else(|| self.malformed(INTERRUPT_MAP, "an entry is cut short"))?;
            let interrupt = self.mapped_interrupt(gic, &mut map, kind)?;
            if entry
                .iter()
                .zip(specifier.iter())
                .zip(mask.iter())
                .all(|((a, b), mask)| a & mask == b & mask)
            {
                return Ok(Some(interrupt));
            }
        }
        Ok(None)
    }

    /// Reads the half of an `interrupt-map` entry that says where the interrupt goes.
    pub(super) fn mapped_interrupt(
        &self,
        gic: &Controller,
        map: &mut Cells<'_>,
        kind: Wire,
    ) -> Result<Interrupt, Refusal> {
        let short = || self.malformed(INTERRUPT_MAP, "an entry is cut short");
        if Phandle(map.next().ok_or_else(short)?) != gic.phandle {
            return Err(self.refuse(Problem::ForeignInterrupt));
        }
        map.skip(gic.address_cells).ok_or_else(short)?;
        gic.specifier(map, kind).map_err(|why| self.malformed(INTERRUPT_MAP, why))
    }
}

/// Who has an interrupt of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// Every CPU one of its own: a PPI.
    Private,
    /// All CPUs together: an SPI.
    Shared,
}

/// How a node's interrupts are to be read: the binding of the one interrupt controller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Controller {
    pub(super) phandle: Phandle,
    /// Cells of an interrupt specifier, 3 or 4.
    pub(super) specifier_cells: usize,
    /// Cells of the address that precedes a specifier in an `interrupt-map`.
    pub(super) address_cells: usize,
}

impl Controller {
    /// Reads one interrupt specifier as the GICv3 binding defines it. EL2 drives no interrupt of the extended ranges.
    pub(super) fn specifier(
        &self,
        cells: &mut Cells<'_>,
        wanted: Wire,
    ) -> Result<Interrupt, &'static str> {
        const SHORT: &str = "an interrupt is cut short";
        let kind = cells.next().ok_or(SHORT)?;
        let number = cells.next().ok_or(SHORT)?;
        let flags = cells.next().ok_or(SHORT)?;
        for _ in 3..self.specifier_cells {
            if cells.next().ok_or(SHORT)? != 0 {
                return Err("an interrupt is limited to some CPUs");
            }
        }
        let (code, base, limit, otherwise) = match wanted {
            Wire::Shared => (0, 32, 988, "an interrupt is no SPI"),
            Wire::Private => (1, 16, 16, "an interrupt is no PPI"),
        };
        if kind != code {
            return Err(otherwise);
        }
        if number >= limit {
            return Err("an interrupt's number is too large");
        }
        // The GIC senses rising edges and high levels of SPIs only; PPIs are what they are.
        let trigger = match (flags & 0xf, wanted) {
            (1, _) | (2, Wire::Private) => Trigger::Edge,
            (4, _) | (8, Wire::Private) => Trigger::Level,
            _ => return Err("an interrupt's trigger is none that the GIC has"),
        };
        Ok(Interrupt { intid: base + number, trigger })
    }
}

/// A value that is a list of 32-bit cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cells<'t>(&'t [u8]);

impl<'t> Cells<'t> {
    /// How many cells are left.
    pub(super) fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Takes one cell.
    pub(super) fn next(&mut self) -> Option<u32> {
        let (cell, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*cell))
    }

    /// Takes `cells` cells as one number, unless it needs more than 64 bits.
    pub(super) fn number(&mut self, cells: usize) -> Option<u64> {
        let mut number = 0_u64;
        for _ in 0..cells {
            if number >> 32 != 0 {
                return None;
            }
            number = number << 32 | u64::from(self.next()?);
        }
        Some(number)
    }

    /// Takes `cells` cells as they are.
    pub(super) fn take(&mut self, cells: usize) -> Option<Self> {
        let (taken, rest) = self.0.split_at_checked(cells.checked_mul(4)?)?;
        self.0 = rest;
        Some(Self(taken))
    }

    /// Returns the cells one by one.
    fn iter(self) -> impl Iterator<Item = u32> + use<'t> {
        let mut cells = self;
        core::iter::from_fn(move || cells.next())
    }

    /// Drops `cells` cells, or returns `None` if there are fewer.
    pub(super) fn skip(&mut self, cells: usize) -> Option<()> {
        self.0 = self.0.get(cells.checked_mul(4)?..)?;
        Some(())
    }
}
