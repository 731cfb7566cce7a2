//! Stage 2: the tables that say which physical memory a VM's CPUs and devices may reach.
//!
//! 4 KiB granule, VMSAv8-64. Every guest address space starts at level 1 with concatenated root tables
//! where that is possible (up to 43 bits), else at level 0 (Arm ARM D8.2).

use core::fmt;

use crate::addr::{Ipa, PAGE_SIZE, Pa};
use crate::invalidate::Invalidation;
use crate::ports::{Frames, Memory};
use crate::teardown::Closed;

mod change;
mod descriptor;
mod format;

pub use change::{Between, Change, RULES};
use descriptor::{Descriptor, Entry};
pub use format::{Format, FormatError};

/// Words in one table.
const ENTRIES: u64 = 512;
/// The level of 4 KiB pages.
const LAST_LEVEL: u8 = 3;

/// Bytes that one entry at `level` covers.
const fn span(level: u8) -> u64 {
    PAGE_SIZE << (9 * (LAST_LEVEL - level))
}

/// What kind of memory a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// Normal, write-back cacheable, inner shareable.
    Normal,
    /// Device-nGnRE.
    Device,
}

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub execute: bool,
    /// What is there.
    pub memory: MemoryType,
}

impl Attributes {
    /// A guest's RAM.
    pub const RAM: Self =
        Self { read: true, write: true, execute: true, memory: MemoryType::Normal };
    /// Registers of a device.
    pub const DEVICE: Self =
        Self { read: true, write: true, execute: false, memory: MemoryType::Device };
    /// Memory that reads as registers of a device; what is written has to be emulated.
    pub const REGISTERS: Self =
        Self { read: true, write: false, execute: false, memory: MemoryType::Device };
}

/// What may be done with memory, whatever kind it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub execute: bool,
}

/// A table that [`Stage2::merge`] or [`Stage2::detach`] took out.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the table is still walked until its range is invalidated"]
pub struct Detached {
    /// What caches may still hold of it: walks that end at it as much as what they found.
    pub stale: Invalidation,
    table: Pa,
}

impl Detached {
    /// Gives the table back. The caller has invalidated [`Detached::stale`] on every CPU and SMMU, and waited (C3).
    pub fn release(self, frames: &mut dyn Frames) {
        frames.release(self.table, PAGE_SIZE);
    }
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address.
    pub pa: Pa,
    /// How many bytes from there on belong to the same block, and so translate alike.
    pub contiguous: u64,
    /// What may be done there.
    pub attributes: Attributes,
}

/// Why a table was not changed as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2Error {
    /// An address or size is not a multiple of what the operation works in (a page; 1 GiB to share).
    Unaligned,
    /// The range is empty, or leaves the input or output address space.
    OutOfRange,
    /// Something is mapped there already.
    Overlap(Ipa),
    /// The tables there belong to another root; change them through that one.
    Borrowed(Ipa),
    /// The two roots differ in format.
    FormatMismatch,
    /// No memory for a table.
    OutOfMemory,
}

impl fmt::Display for Stage2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned => f.write_str("stage 2: address or size is not aligned"),
            Self::OutOfRange => f.write_str("stage 2: the range leaves the address space"),
            Self::Overlap(ipa) => write!(f, "stage 2: something is mapped at {ipa} already"),
            Self::Borrowed(ipa) => write!(f, "stage 2: the tables at {ipa} belong to another root"),
            Self::FormatMismatch => {
                f.write_str("stage 2: two roots of different formats cannot share tables")
            }
            Self::OutOfMemory => f.write_str("stage 2: no memory left for a table; give EL2 more"),
        }
    }
}

impl core::error::Error for Stage2Error {}

/// One stage 2: a root and the tables below it.
///
/// Dropping it leaks its tables, which is safe; only [`Stage2::release`] gives them back.
#[derive(Debug)]
pub struct Stage2 {
    format: Format,
    root: Pa,
}

impl Stage2 {
    /// Allocates an empty stage 2: every access faults.
    ///
    /// # Errors
    ///
    /// [`Stage2Error::OutOfMemory`].
    pub fn new(format: Format, frames: &mut dyn Frames) -> Result<Self, Stage2Error> {
        let root = frames.allocate(format.root_size()).ok_or(Stage2Error::OutOfMemory)?;
        Ok(Self { format, root })
    }

    /// The format it was built for.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Where its root table is: `VTTBR_EL2.BADDR` and `STE.S2TTB`.
    pub fn root(&self) -> Pa {
        self.root
    }

    /// Maps `size` bytes at `ipa` to `pa`, with the largest blocks that alignment allows, and publishes.
    ///
    /// Nothing needs to be invalidated: only valid translations are ever cached.
    ///
    /// # Errors
    ///
    /// Any of [`Stage2Error`] but `FormatMismatch`. After `OutOfMemory` a first part of the range may be
    /// mapped; after any other error nothing has changed.
    pub fn map<M: Memory>(
        &mut self,
        memory: &M,
        frames: &mut dyn Frames,
        ipa: Ipa,
        pa: Pa,
        size: u64,
        attributes: Attributes,
    ) -> Result<(), Stage2Error> {
        let end = self.checked_end(ipa, size)?;
        if !pa.is_aligned(PAGE_SIZE) {
            return Err(Stage2Error::Unaligned);
        }
        let pa_end = pa.raw().checked_add(size).ok_or(Stage2Error::OutOfRange)?;
        if pa_end > 1 << self.format.output_bits() {
            return Err(Stage2Error::OutOfRange);
        }
        self.expect_unmapped(memory, ipa, end)?;
        let offset = pa.raw().wrapping_sub(ipa.raw());
        let mut at = ipa.raw();
        while at < end {
            let target = at.wrapping_add(offset);
            let mut slot = self.root_slot(at);
            // Descend until a block fits; at the last level a page always does.
            while !fits(slot.level, at, target, end) || slot.leads_to_table(memory) {
                slot = slot.descend(memory, frames, at)?;
            }
            memory.store(
                slot.at,
                Descriptor::leaf(self.format, slot.level, Pa::new(target), attributes).0,
            );
            at += span(slot.level);
        }
        memory.publish();
        Ok(())
    }

    /// Unmaps `size` bytes at `ipa`, mapped or not, publishes, and returns what the caches of CPUs and
    /// SMMUs may still hold. The memory stays reachable until the caller has invalidated all of it.
    ///
    /// A block that is only partly in the range is split into smaller ones first. Where CPU or SMMU has
    /// no break-before-make level 2 ([`Change::Split`]), the caller stops what uses such a block before.
    ///
    /// # Errors
    ///
    /// `Unaligned`, `OutOfRange`, `Borrowed` (nothing has changed), or `OutOfMemory` for a split (a first
    /// part of the range may be unmapped: invalidate the whole range).
    pub fn unmap<M: Memory>(
        &mut self,
        memory: &M,
        frames: &mut dyn Frames,
        ipa: Ipa,
        size: u64,
    ) -> Result<Invalidation, Stage2Error> {
        self.replace(memory, frames, (ipa, size), |_, _, _| Descriptor::INVALID)
    }

    /// Changes what may be done with `size` bytes at `ipa` wherever something is mapped, publishes, and returns what
    /// the caches of CPUs and SMMUs may still hold: what was allowed before may be done until the caller has
    /// invalidated all of it.
    ///
    /// Blocks are split as by [`Stage2::unmap`], under the same condition.
    ///
    /// # Errors
    ///
    /// As [`Stage2::unmap`].
    pub fn protect<M: Memory>(
        &mut self,
        memory: &M,
        frames: &mut dyn Frames,
        ipa: Ipa,
        size: u64,
        permissions: Permissions,
    ) -> Result<Invalidation, Stage2Error> {
        let format = self.format;
        let Permissions { read, write, execute } = permissions;
        self.replace(memory, frames, (ipa, size), |level, pa, attributes| {
            Descriptor::leaf(format, level, pa, Attributes { read, write, execute, ..attributes })
        })
    }

    /// Puts one block of 2 MiB in place of the table of pages that maps `ipa`, if all of them lead on to each other and
    /// are alike, and publishes. `None` if not, if there is no such table, if it belongs to another root, or where the
    /// old entry has to be broken first ([`Change::Merge`] at `bbm_level`). Tables of larger spans stay: another root
    /// may share them.
    pub fn merge<M: Memory>(&mut self, memory: &M, ipa: Ipa, bbm_level: u8) -> Option<Detached> {
        if ipa.raw() >> self.format.ipa_bits() != 0
            || Change::Merge.between(bbm_level) == Between::BreakFirst
        {
            return None;
        }
        // A table of another root's is no leaf.
        let (way, Slot { level, .. }) = self.lowest(memory, ipa.raw());
        let (parent, table) = way?;
        let first = Slot { at: table, level };
        let Entry::Leaf { pa, attributes } = first.read(memory) else { return None };
        let alike = (0..ENTRIES).all(|index| {
            let wanted = Entry::Leaf { pa: pa.add(index * span(level)), attributes };
            Slot { at: table.add(index * 8), level }.read(memory) == wanted
        });
        if !alike || level != LAST_LEVEL || !pa.is_aligned(span(parent.level)) {
            return None;
        }
        let block = Descriptor::leaf(self.format, parent.level, pa, attributes);
        memory.store(parent.at, block.0);
        memory.publish();
        let start = ipa.align_down(span(parent.level));
        Some(Detached { stale: Invalidation::range(start, span(parent.level)), table })
    }

    /// Takes out a table on the way to the `size` bytes at `ipa` that maps nothing, if there is one, and publishes.
    /// Called until it answers `None` it leaves no such table. No other root may share tables of the range.
    pub fn detach<M: Memory>(&mut self, memory: &M, ipa: Ipa, size: u64) -> Option<Detached> {
        let end = self.checked_end(ipa, size).ok()?;
        let mut at = ipa.raw();
        while at < end {
            let (way, Slot { level, .. }) = self.lowest(memory, at);
            if let Some((parent, table)) = way
                && (0..ENTRIES).all(|index| memory.load(table.add(index * 8)) == 0)
            {
                memory.store(parent.at, Descriptor::INVALID.0);
                memory.publish();
                let start = Ipa::new(at).align_down(span(parent.level));
                let stale = Invalidation::range(start, span(parent.level));
                return Some(Detached { stale, table });
            }
            // A table of pages has been asked.
            at = next(at, level.min(LAST_LEVEL - 1));
        }
        None
    }

    /// Stores what `new` makes of each leaf in the range, from its level, address and attributes.
    fn replace<M: Memory>(
        &self,
        memory: &M,
        frames: &mut dyn Frames,
        (ipa, size): (Ipa, u64),
        new: impl Fn(u8, Pa, Attributes) -> Descriptor,
    ) -> Result<Invalidation, Stage2Error> {
        let end = self.checked_end(ipa, size)?;
        self.walk(memory, ipa.raw(), end, |at, slot| match slot.read(memory) {
            Entry::Table { .. } => Err(Stage2Error::Borrowed(Ipa::new(at))),
            _ => Ok(()),
        })?;
        let format = self.format;
        let mut at = ipa.raw();
        while at < end {
            let mut slot = self.root_slot(at);
            loop {
                match slot.read(memory) {
                    Entry::Invalid => break,
                    Entry::Leaf { pa, attributes }
                        if at.is_multiple_of(span(slot.level)) && end - at >= span(slot.level) =>
                    {
                        memory.store(slot.at, new(slot.level, pa, attributes).0);
                        break;
                    }
                    Entry::Leaf { pa, attributes } => {
                        slot.split(memory, frames, format, pa, attributes)?
                    }
                    Entry::Table { .. } => {}
                }
                slot = slot.descend(memory, frames, at)?;
            }
            at = next(at, slot.level);
        }
        memory.publish();
        Ok(Invalidation::range(ipa, size))
    }

    /// Lets the `size` bytes at `ipa`, whole GiB, lead to the tables of `other`, for good: what `other`
    /// maps and unmaps there from now on is seen here too, and cannot be changed from here.
    ///
    /// 1 GiB blocks of `other` are split first, under the condition that [`Stage2::unmap`] names.
    ///
    /// # Errors
    ///
    /// Any of [`Stage2Error`]; `Overlap` if anything, if only a table, is here already. After
    /// `OutOfMemory` a first part may be shared.
    pub fn share<M: Memory>(
        &mut self,
        memory: &M,
        frames: &mut dyn Frames,
        other: &mut Self,
        ipa: Ipa,
        size: u64,
    ) -> Result<(), Stage2Error> {
        const LEVEL: u8 = 1;
        if self.format != other.format {
            return Err(Stage2Error::FormatMismatch);
        }
        let end = self.checked_end(ipa, size)?;
        if !ipa.is_aligned(span(LEVEL)) || !size.is_multiple_of(span(LEVEL)) {
            return Err(Stage2Error::Unaligned);
        }
        self.expect_unmapped(memory, ipa, end)?;
        for at in (ipa.raw()..end).step_by(span(LEVEL) as usize) {
            let mut theirs = other.root_slot(at);
            let mut ours = self.root_slot(at);
            while theirs.level < LEVEL {
                theirs = theirs.descend(memory, frames, at)?;
                ours = ours.descend(memory, frames, at)?;
            }
            if ours.leads_to_table(memory) {
                return Err(Stage2Error::Overlap(Ipa::new(at)));
            }
            if let Entry::Leaf { pa, attributes } = theirs.read(memory) {
                theirs.split(memory, frames, other.format, pa, attributes)?;
            }
            let shared = theirs.descend(memory, frames, at)?;
            memory.store(ours.at, Descriptor::borrowed_table(shared.table()).0);
        }
        memory.publish();
        Ok(())
    }

    /// Returns where `ipa` leads, or `None` if nothing is mapped there.
    pub fn translate<M: Memory>(&self, memory: &M, ipa: Ipa) -> Option<Translation> {
        if ipa.raw() >> self.format.ipa_bits() != 0 {
            return None;
        }
        let mut slot = self.root_slot(ipa.raw());
        loop {
            match slot.read(memory) {
                Entry::Invalid => return None,
                Entry::Leaf { pa, attributes } => {
                    let offset = ipa.raw() & (span(slot.level) - 1);
                    return Some(Translation {
                        pa: pa.add(offset),
                        contiguous: span(slot.level) - offset,
                        attributes,
                    });
                }
                Entry::Table { at, .. } => slot = Slot::in_table(at, slot.level + 1, ipa.raw()),
            }
        }
    }

    /// Gives its tables back, except those borrowed from another root.
    ///
    /// The proof says that no SMMU can reach them any more; that no CPU can is the caller's part: its
    /// vCPUs are stopped and its VMID is invalidated on every CPU that ran them.
    pub fn release<M: Memory>(self, memory: &M, frames: &mut dyn Frames, _proof: &Closed) {
        let size = self.format.root_size();
        release_below(memory, frames, self.root, size / 8, self.format.start_level());
        frames.release(self.root, size);
    }

    /// Calls `visit(address, slot)` for each leaf and borrowed table in the range.
    fn walk<M: Memory>(
        &self,
        memory: &M,
        start: u64,
        end: u64,
        mut visit: impl FnMut(u64, Slot) -> Result<(), Stage2Error>,
    ) -> Result<(), Stage2Error> {
        let mut at = start;
        while at < end {
            let (_, slot) = self.lowest(memory, at);
            if slot.read(memory) != Entry::Invalid {
                visit(at, slot)?;
            }
            at = next(at, slot.level);
        }
        Ok(())
    }

    fn expect_unmapped<M: Memory>(
        &self,
        memory: &M,
        ipa: Ipa,
        end: u64,
    ) -> Result<(), Stage2Error> {
        self.walk(memory, ipa.raw(), end, |at, slot| {
            Err(match slot.read(memory) {
                Entry::Table { .. } => Stage2Error::Borrowed(Ipa::new(at)),
                _ => Stage2Error::Overlap(Ipa::new(at)),
            })
        })
    }

    /// Checks that a range consists of pages of the input address space, and returns its end.
    fn checked_end(&self, ipa: Ipa, size: u64) -> Result<u64, Stage2Error> {
        if !ipa.is_aligned(PAGE_SIZE) || !size.is_multiple_of(PAGE_SIZE) {
            return Err(Stage2Error::Unaligned);
        }
        match ipa.raw().checked_add(size) {
            Some(end) if size > 0 && end <= 1 << self.format.ipa_bits() => Ok(end),
            _ => Err(Stage2Error::OutOfRange),
        }
    }

    /// The lowest entry for an address in a table of this root's own; and if that table is not the root, which entry leads
    /// to it and where it is.
    fn lowest<M: Memory>(&self, memory: &M, at: u64) -> (Option<(Slot, Pa)>, Slot) {
        let (mut way, mut slot) = (None, self.root_slot(at));
        while let Entry::Table { at: table, borrowed: false } = slot.read(memory) {
            way = Some((slot, table));
            slot = Slot::in_table(table, slot.level + 1, at);
        }
        (way, slot)
    }

    /// The root's entry for an address. Concatenated tables are one long table.
    fn root_slot(&self, at: u64) -> Slot {
        let level = self.format.start_level();
        Slot { at: self.root.add(at / span(level) * 8), level }
    }
}

/// Whether one entry at `level` can map `at` to `target` without reaching past `end`.
fn fits(level: u8, at: u64, target: u64, end: u64) -> bool {
    // The 4 KiB granule has no level-0 blocks.
    level > 0 && (at | target).is_multiple_of(span(level)) && end - at >= span(level)
}

/// The first address past what the entry for `at` at `level` covers.
fn next(at: u64, level: u8) -> u64 {
    (at & !(span(level) - 1)) + span(level)
}

/// One entry of one table.
#[derive(Clone, Copy)]
struct Slot {
    at: Pa,
    level: u8,
}

impl Slot {
    fn in_table(table: Pa, level: u8, address: u64) -> Self {
        Self { at: table.add(address / span(level) % ENTRIES * 8), level }
    }

    /// The table it is in.
    fn table(self) -> Pa {
        self.at.align_down(PAGE_SIZE)
    }

    fn read<M: Memory>(self, memory: &M) -> Entry {
        Descriptor(memory.load(self.at)).entry(self.level)
    }

    fn leads_to_table<M: Memory>(self, memory: &M) -> bool {
        matches!(self.read(memory), Entry::Table { .. })
    }

    /// Returns the entry for `address` one level down, in a new empty table if there was none.
    fn descend<M: Memory>(
        self,
        memory: &M,
        frames: &mut dyn Frames,
        address: u64,
    ) -> Result<Self, Stage2Error> {
        let table = match self.read(memory) {
            Entry::Table { at, .. } => at,
            Entry::Leaf { .. } => return Err(Stage2Error::Overlap(Ipa::new(address))),
            Entry::Invalid => {
                let table = frames.allocate(PAGE_SIZE).ok_or(Stage2Error::OutOfMemory)?;
                // Its zeros must be visible before a walker can reach them.
                memory.publish();
                memory.store(self.at, Descriptor::table(table).0);
                table
            }
        };
        Ok(Self::in_table(table, self.level + 1, address))
    }

    /// Replaces a block that leads to `pa` by a table that maps the same.
    fn split<M: Memory>(
        self,
        memory: &M,
        frames: &mut dyn Frames,
        format: Format,
        pa: Pa,
        attributes: Attributes,
    ) -> Result<(), Stage2Error> {
        let table = frames.allocate(PAGE_SIZE).ok_or(Stage2Error::OutOfMemory)?;
        let level = self.level + 1;
        for index in 0..ENTRIES {
            let part = Descriptor::leaf(format, level, pa.add(index * span(level)), attributes);
            memory.store(table.add(index * 8), part.0);
        }
        memory.publish();
        memory.store(self.at, Descriptor::table(table).0);
        Ok(())
    }
}

/// Gives back every table below one of `entries` entries at `level`. At most three levels deep.
fn release_below<M: Memory>(
    memory: &M,
    frames: &mut dyn Frames,
    table: Pa,
    entries: u64,
    level: u8,
) {
    for index in 0..entries {
        let slot = Slot { at: table.add(index * 8), level };
        if let Entry::Table { at, borrowed: false } = slot.read(memory) {
            release_below(memory, frames, at, ENTRIES, level + 1);
            frames.release(at, PAGE_SIZE);
        }
    }
}

#[cfg(test)]
mod tests;
