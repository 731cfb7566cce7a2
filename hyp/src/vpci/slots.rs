//! Where functions appear on the guest's bus, and which interrupt lines they get there.
//!
//! A guest's pin arrives at line `(pin - 1 + slot) % 4`, so the slot decides the line. The guest's interrupt
//! controller links one virtual interrupt to one physical one, so slots are chosen such that lines go one to
//! one.

use heapless::Vec;
use platform::dt::Interrupt;
use platform::guest_map;
use platform::pcie::InterruptMap;

use super::{IntxLine, VpciError};
use crate::pci::{Bdf, Function, MAX_VM_FUNCTIONS, Topology};

/// Interrupt lines of a bus.
const LINES: usize = 4;
/// Device numbers of a bus.
const SLOTS: u8 = 32;

/// Where everything appears.
pub(super) struct Slots {
    /// The guest's address of each function, in the functions' order.
    pub(super) addresses: Vec<Bdf, MAX_VM_FUNCTIONS>,
    /// The lines in use.
    pub(super) lines: Vec<IntxLine, LINES>,
}

/// What takes one slot: a device that is owned as a whole, or a function of one that is not.
struct Unit {
    /// The functions, by index.
    members: Vec<usize, 8>,
    whole: bool,
    /// The slot that it would like.
    home: Option<u8>,
}

/// Finds a place for every one of `owned`.
pub(super) fn assign(
    topology: &Topology,
    owned: &[&Function],
    interrupts: &InterruptMap,
) -> Result<Slots, VpciError> {
    let interrupt = |function: &Function| topology.interrupt(function, interrupts);
    let mut physical = Vec::<Interrupt, LINES>::new();
    for line in owned.iter().filter_map(|function| interrupt(function)) {
        if physical.iter().all(|known| known.intid != line.intid) {
            physical.push(line).map_err(|_| VpciError::TooManyLines)?;
        }
    }
    platform::sort::by_key(&mut physical, |line| line.intid);
    let line_of = |function: &Function| {
        let intid = interrupt(function)?.intid;
        physical.iter().position(|line| line.intid == intid)
    };
    let units = units(topology, owned);
    let most_at_home = units.iter().filter(|unit| unit.home.is_some()).count();
    let mut best: Option<Choice> = None;
    for lines in permutations() {
        let residue = |unit: &Unit| unit.residue(owned, |function| Some(lines[line_of(function)?]));
        let Some(choice) = choose(&units, residue) else { continue };
        if best.as_ref().is_none_or(|best| choice.at_home > best.at_home) {
            let is_best = choice.at_home == most_at_home;
            best = Some(choice);
            if is_best {
                break;
            }
        }
    }
    let best = best.ok_or(VpciError::NoSlots)?;
    let mut slots =
        Slots { addresses: owned.iter().map(|function| function.at).collect(), lines: Vec::new() };
    for (unit, &slot) in units.iter().zip(&best.slots) {
        for &member in &unit.members {
            let function = owned[member];
            let number = if unit.whole { function.at.function() } else { 0 };
            slots.addresses[member] = Bdf::new(0, slot, number).ok_or(VpciError::NoSlots)?;
            if let (Some(pin), Some(physical)) = (function.pin, interrupt(function)) {
                let line = IntxLine { guest: guest_map::intx(slot, pin), physical };
                if !slots.lines.contains(&line) {
                    slots.lines.push(line).map_err(|_| VpciError::NoSlots)?;
                }
            }
        }
    }
    Ok(slots)
}

fn units(topology: &Topology, owned: &[&Function]) -> Vec<Unit, MAX_VM_FUNCTIONS> {
    let device = |function: &Function| (function.at.bus(), function.at.device());
    let mut units = Vec::<Unit, MAX_VM_FUNCTIONS>::new();
    for (index, function) in owned.iter().enumerate() {
        let whole = topology
            .functions()
            .iter()
            .filter(|other| device(other) == device(function))
            .all(|other| owned.iter().any(|known| known.at == other.at));
        let same = |unit: &&mut Unit| {
            unit.whole
                && unit
                    .members
                    .first()
                    .is_some_and(|&first| device(owned[first]) == device(function))
        };
        if let Some(unit) = units.iter_mut().find(same).filter(|_| whole) {
            // A device has at most eight functions.
            _ = unit.members.push(index);
        } else {
            let home = function.is_on_root_bus().then(|| function.at.device());
            let members = core::iter::once(index).collect();
            // There are no more units than functions.
            _ = units.push(Unit { members, whole, home });
        }
    }
    units
}

impl Unit {
    /// Returns the slot modulo four that takes every pin to the line that `line` says; an inner `None` if no
    /// pin cares, an outer one if pins disagree.
    fn residue(
        &self,
        owned: &[&Function],
        line: impl Fn(&Function) -> Option<usize>,
    ) -> Option<Option<usize>> {
        let mut residue = None;
        for function in self.members.iter().map(|&member| owned[member]) {
            let (Some(pin), Some(line)) = (function.pin, line(function)) else { continue };
            let wanted = (line + LINES + 1 - pin as usize) % LINES;
            if *residue.get_or_insert(wanted) != wanted {
                return None;
            }
        }
        Some(residue)
    }
}

/// A slot for every unit.
struct Choice {
    slots: Vec<u8, MAX_VM_FUNCTIONS>,
    /// How many got the slot that they would like.
    at_home: usize,
}

/// Gives every unit a slot of its own, or returns `None` if that is impossible.
fn choose(units: &[Unit], residue: impl Fn(&Unit) -> Option<Option<usize>>) -> Option<Choice> {
    let mut taken = [false; SLOTS as usize];
    let mut choice = Choice { slots: Vec::new(), at_home: 0 };
    let mut found = Vec::<Option<u8>, MAX_VM_FUNCTIONS>::new();
    let fits = |slot: u8, residue: Option<usize>| {
        residue.is_none_or(|residue| usize::from(slot) % LINES == residue)
    };
    for unit in units {
        let residue = residue(unit)?;
        let home = unit.home.filter(|&home| fits(home, residue) && !taken[usize::from(home)]);
        if let Some(home) = home {
            taken[usize::from(home)] = true;
            choice.at_home += 1;
        }
        found.push(home).ok()?;
    }
    for (unit, home) in units.iter().zip(found) {
        let residue = residue(unit)?;
        // Slot 0 last: that is where one expects a host bridge.
        let mut slots = (1..SLOTS).chain([0]);
        let slot =
            home.or_else(|| slots.find(|&slot| fits(slot, residue) && !taken[usize::from(slot)]))?;
        taken[usize::from(slot)] = true;
        choice.slots.push(slot).ok()?;
    }
    Some(choice)
}

/// Returns every order of the four lines, the natural one first.
fn permutations() -> impl Iterator<Item = [usize; LINES]> {
    (0..LINES.pow(4))
        .map(|digits| [digits / 64, digits / 16 % 4, digits / 4 % 4, digits % 4])
        .filter(|order| (0..LINES).all(|line| order.contains(&line)))
}
