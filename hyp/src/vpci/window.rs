//! Which BARs are in sight, and where.

use core::ops::Range;

use heapless::Vec;
use platform::guest_map;
use smmu::addr::{Ipa, Pa};

use super::function::VirtualFunction;
use super::{BarMap, Target};
use crate::pci::{Bar, MAX_VM_FUNCTIONS, Width};

/// BAR registers of one function.
const BARS: usize = 6;

type Places = Vec<[Option<Ipa>; BARS], MAX_VM_FUNCTIONS>;

/// Brings stage 2 in line with what the functions decode.
///
/// A BAR is in sight if it lies wholly inside a window for its kind, and on no other BAR in sight of a function
/// that comes before its own, or of its own function with a lower number.
pub(super) fn refresh<M: BarMap>(functions: &mut [VirtualFunction], map: &mut M) {
    let wanted = settle(functions);
    for (function, wanted) in functions.iter_mut().zip(&wanted) {
        for (index, &wanted) in wanted.iter().enumerate() {
            let shown = function.shown[index];
            if let (Some(ipa), Some(bar)) =
                (shown.filter(|_| shown != wanted), &function.physical.bars[index])
            {
                if bar.is_mappable() {
                    map.unmap(ipa, bar.size);
                }
                function.shown[index] = None;
            }
        }
    }
    for (function, wanted) in functions.iter_mut().zip(&wanted) {
        for (index, &wanted) in wanted.iter().enumerate() {
            let (None, Some(ipa)) = (function.shown[index], wanted) else { continue };
            let Some((bar, pa)) = placed(function, index) else { continue };
            if !bar.is_mappable() || map.map(ipa, pa, bar.size).is_ok() {
                function.shown[index] = Some(ipa);
            }
        }
    }
}

/// The BARs that stage 2 maps: where the guest sees them, where they are, and how many bytes.
pub(super) fn mapped(functions: &[VirtualFunction]) -> impl Iterator<Item = (Ipa, Pa, u64)> {
    functions.iter().flat_map(|function| {
        function.shown.iter().enumerate().filter_map(|(index, shown)| {
            let (bar, pa) = placed(function, index).filter(|(bar, _)| bar.is_mappable())?;
            Some(((*shown)?, pa, bar.size))
        })
    })
}

/// Says what is at `ipa`.
pub(super) fn decode(functions: &[VirtualFunction], ipa: Ipa, width: Width) -> Target {
    if !ipa.is_aligned(width.bytes()) {
        return Target::Absent;
    }
    for function in functions {
        for (index, start) in function.shown.iter().enumerate() {
            let (Some(start), Some((bar, pa))) = (start, placed(function, index)) else { continue };
            let Some(offset) = ipa.raw().checked_sub(start.raw()) else { continue };
            // Both offset and size are multiples of the width, but a BAR may be smaller than one access.
            if offset >= bar.size || bar.size < width.bytes() {
                continue;
            }
            return if bar.is_mappable() {
                Target::Mapped
            } else {
                Target::Forward(pa.add(offset))
            };
        }
    }
    Target::Absent
}

fn placed(function: &VirtualFunction, index: usize) -> Option<(Bar, Pa)> {
    let bar = function.physical.bars[index]?;
    Some((bar, bar.place?.cpu))
}

/// Decides where every BAR is in sight, if anywhere.
fn settle(functions: &[VirtualFunction]) -> Places {
    let mut places = Places::new();
    let mut taken = Vec::<Range<u64>, { BARS * MAX_VM_FUNCTIONS }>::new();
    for function in functions {
        let mut own = [None; BARS];
        for (index, place) in own.iter_mut().enumerate() {
            let Some(range) = function.decoding(index).and_then(|(bar, bus)| in_window(bar, bus))
            else {
                continue;
            };
            if taken.iter().all(|other| range.end <= other.start || other.end <= range.start) {
                *place = Some(Ipa::new(range.start));
                // There is room for every BAR there can be.
                _ = taken.push(range);
            }
        }
        // There are no more functions than that.
        _ = places.push(own);
    }
    places
}

/// Returns where the guest's CPUs see a BAR at bus address `bus`, if that is wholly inside a window.
fn in_window(bar: &Bar, bus: u64) -> Option<Range<u64>> {
    const MEM32: Range<u64> = window(guest_map::PCI_MEM32, guest_map::PCI_MEM32_SIZE);
    const MEM64: Range<u64> = window(guest_map::PCI_MEM64, guest_map::PCI_MEM64_SIZE);
    const IO: Range<u64> = window(guest_map::PCI_IO, guest_map::PCI_IO_SIZE);
    // Memory addresses are the same on the guest's bus and in its address space; I/O port 0 is at the window's
    // start.
    let (start, windows): (u64, &[Range<u64>]) =
        if bar.is_memory() { (bus, &[MEM32, MEM64]) } else { (bus.checked_add(IO.start)?, &[IO]) };
    let end = start.checked_add(bar.size)?;
    windows.iter().any(|window| window.start <= start && end <= window.end).then_some(start..end)
}

const fn window(start: Ipa, size: u64) -> Range<u64> {
    start.raw()..start.raw() + size
}
