//! Which PCI device sits where: slots, bus numbers and interrupt lines, known before QEMU starts.
//!
//! EL2 hands out functions by their address, so every device gets one here: as asked, or the next free slot.
//! The four interrupt lines of the root bus are part of it, since a line belongs to one VM only.

use std::fmt;

use platform::pcie::Bdf;

use crate::device::{DeviceArg, DeviceError};

/// The last slot of a bus.
const LAST_SLOT: u8 = 31;
/// The name of the root bus.
const ROOT_BUS: &str = "pcie.0";

/// A device to place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What; its `bus` and `addr` are obeyed.
    pub device: DeviceArg,
    /// Who asks, for messages: an option, or why xtask adds it.
    pub origin: String,
    /// Without `addr`: the slot of the root bus to take if it is free.
    pub preferred: Option<u8>,
    /// The VM that it is for, whatever its address.
    pub owner: Option<usize>,
}

/// A device that has its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What, with `addr` set.
    pub device: DeviceArg,
    /// Who asked.
    pub origin: String,
    /// Its address, with buses numbered as EL2 numbers them: depth first, in the order of slots.
    pub bdf: Bdf,
    /// The VM that owns it; nobody but EL2 owns bridges.
    pub owner: Option<usize>,
    /// The line of the root bus, 0 to 3, that its interrupt pin reaches, if it has one.
    pub line: Option<u8>,
    /// The conventional bridge that makes its requester ID that of others as well.
    pub alias: Option<Bdf>,
}

/// Why the devices do not fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// A device argument is wrong by itself.
    Device {
        /// Who asked for the device.
        origin: String,
        /// What is wrong.
        error: DeviceError,
    },
    /// Two devices want one address.
    Taken {
        /// Who asked for the second one.
        origin: String,
        /// The slot and function, as in `addr`.
        address: String,
        /// Who has it.
        by: String,
    },
    /// No bus of this name is there to plug into.
    NoBus {
        /// Who asked.
        origin: String,
        /// The bus.
        bus: String,
    },
    /// A bus has no slot left that would suit.
    Full {
        /// Who asked.
        origin: String,
    },
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { origin, error } => write!(f, "{origin}: {error}"),
            Self::Taken { origin, address, by } => {
                write!(f, "{origin}: addr={address} is taken by {by}: choose another one")
            }
            Self::NoBus { origin, bus } => write!(
                f,
                "{origin}: there is no PCI bus {bus:?}: use {ROOT_BUS}, or the id of a bridge given with --device"
            ),
            Self::Full { origin } => write!(
                f,
                "{origin}: no slot is left whose interrupt line is free for its owner: give it an addr, \
                 or plug it behind a pcie-root-port"
            ),
        }
    }
}

impl std::error::Error for SlotError {}

/// What a driver that makes a bus is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bridge {
    /// A PCI Express port: one device behind it, requester IDs kept.
    Port,
    /// The upstream port of a switch: any number of ports behind it.
    Switch,
    /// A bridge to conventional PCI: everything behind it may use the bridge's requester ID.
    Conventional,
}

fn bridge(driver: &str) -> Option<Bridge> {
    match driver {
        "pcie-root-port" | "ioh3420" | "xio3130-downstream" => Some(Bridge::Port),
        "x3130-upstream" => Some(Bridge::Switch),
        "pci-bridge" | "pcie-pci-bridge" | "i82801b11-bridge" => Some(Bridge::Conventional),
        _ => None,
    }
}

/// One function on one bus, before buses have numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spot {
    /// Index of the bridge whose bus it is on; `None` for the root bus.
    parent: Option<usize>,
    slot: u8,
    function: u8,
}

/// Gives every device its place: first those that name one, then those that prefer one, then the others, which
/// take the lowest slot whose interrupt line nobody else has. `owner` says which VM owns the function at an
/// address, unless the device is for a certain one.
///
/// # Errors
///
/// [`SlotError`] names the device and what to change.
pub fn place(wanted: &[Wanted], owner: &dyn Fn(Bdf) -> usize) -> Result<Vec<Placed>, SlotError> {
    let mut board = Board::new(wanted, owner)?;
    for (index, want) in wanted.iter().enumerate() {
        if let Some((slot, function)) = asked_for(want)? {
            board.put(index, slot, function)?;
        }
    }
    for (index, want) in wanted.iter().enumerate() {
        if let Some(slot) = want.preferred
            && board.spots[index].is_none()
            && board.is_free(None, slot)
        {
            board.put(index, slot, 0)?;
        }
    }
    for (index, want) in wanted.iter().enumerate() {
        if board.spots[index].is_none() {
            let slot = board.next_slot(index);
            let slot = slot.ok_or_else(|| SlotError::Full { origin: want.origin.clone() })?;
            board.put(index, slot, 0)?;
        }
    }
    Ok(board.finish())
}

fn asked_for(want: &Wanted) -> Result<Option<(u8, u8)>, SlotError> {
    let refuse = |error| SlotError::Device { origin: want.origin.clone(), error };
    let address = want.device.address().map_err(refuse)?;
    match (address, want.device.get("addr")) {
        // Slot 0 of the root bus is the host bridge.
        (Some((0, _)), Some(text)) if is_on_root(&want.device) => {
            Err(refuse(DeviceError::Address(text.to_owned())))
        }
        (address, _) => Ok(address),
    }
}

fn is_on_root(device: &DeviceArg) -> bool {
    device.get("bus").is_none_or(|bus| bus == ROOT_BUS)
}

/// The buses, half filled.
struct Board<'a> {
    wanted: &'a [Wanted],
    owner: &'a dyn Fn(Bdf) -> usize,
    parents: Vec<Option<usize>>,
    spots: Vec<Option<Spot>>,
}

impl<'a> Board<'a> {
    fn new(wanted: &'a [Wanted], owner: &'a dyn Fn(Bdf) -> usize) -> Result<Self, SlotError> {
        let parent = |want: &Wanted| {
            if is_on_root(&want.device) {
                return Ok(None);
            }
            let bus = want.device.get("bus").unwrap_or_default();
            let makes_it = |other: &Wanted| {
                bridge(&other.device.driver).is_some()
                    && other.device.get("id") == Some(bus)
                    && other != want
            };
            let error = || SlotError::NoBus { origin: want.origin.clone(), bus: bus.to_owned() };
            wanted.iter().position(makes_it).map(Some).ok_or_else(error)
        };
        let parents = wanted.iter().map(parent).collect::<Result<Vec<_>, _>>()?;
        for (index, want) in wanted.iter().enumerate() {
            // A chain of bridges longer than there are devices is a ring that nothing connects to the root.
            let mut above = Some(index);
            for _ in 0..=wanted.len() {
                above = above.and_then(|index: usize| parents[index]);
            }
            if above.is_some() {
                let bus = want.device.get("bus").unwrap_or_default().to_owned();
                return Err(SlotError::NoBus { origin: want.origin.clone(), bus });
            }
        }
        Ok(Self { wanted, owner, parents, spots: vec![None; wanted.len()] })
    }

    fn is_free(&self, parent: Option<usize>, slot: u8) -> bool {
        self.spots.iter().flatten().all(|spot| spot.parent != parent || spot.slot != slot)
    }

    fn put(&mut self, index: usize, slot: u8, function: u8) -> Result<(), SlotError> {
        let spot = Spot { parent: self.parents[index], slot, function };
        if let Some(other) = self.spots.iter().position(|other| *other == Some(spot)) {
            return Err(SlotError::Taken {
                origin: self.wanted[index].origin.clone(),
                address: format!("{slot:x}.{function:x}"),
                by: self.wanted[other].origin.clone(),
            });
        }
        self.spots[index] = Some(spot);
        Ok(())
    }

    fn next_slot(&self, index: usize) -> Option<u8> {
        let parent = self.parents[index];
        let slots = match parent.map(|above| bridge(&self.wanted[above].device.driver)) {
            Some(Some(Bridge::Port)) => 0..=0,
            Some(Some(Bridge::Switch)) => 0..=LAST_SLOT,
            // Slot 0 of a conventional bridge belongs to its hot-plug controller, that of the root to the host.
            Some(_) | None => 1..=LAST_SLOT,
        };
        let mut free = slots.into_iter().filter(|&slot| self.is_free(parent, slot));
        free.find(|&slot| parent.is_some() || self.line_suits(index, slot))
    }

    /// Who owns a function of the root bus.
    fn owner_of(&self, index: usize, slot: u8, function: u8) -> Option<usize> {
        self.wanted[index].owner.or_else(|| Bdf::new(0, slot, function).map(self.owner))
    }

    /// Whether the line of a slot of the root bus is still nobody's, or the same owner's. What is behind a bridge
    /// counts as if it sat in the bridge's slot.
    fn line_suits(&self, index: usize, slot: u8) -> bool {
        let mine = self.owner_of(index, slot, 0);
        let line =
            |index: usize, slot| self.wanted[index].device.pin().map(|pin| pin.swizzle(slot));
        line(index, slot).is_none()
            || self.spots.iter().enumerate().all(|(other, spot)| {
                spot.is_none_or(|spot| {
                    spot.parent.is_some()
                        || line(other, spot.slot) != line(index, slot)
                        || self.owner_of(other, spot.slot, spot.function) == mine
                })
            })
    }

    /// Numbers the buses and names every function.
    fn finish(&self) -> Vec<Placed> {
        let mut bdfs = vec![None; self.wanted.len()];
        let mut next_bus = 1;
        self.number(None, 0, &mut next_bus, &mut bdfs);
        let placed = |(index, want): (usize, &Wanted)| {
            let (spot, bdf) = (self.spots[index]?, bdfs[index]?);
            let bridge = bridge(&want.device.driver).is_some();
            let (mut pin, mut at, mut alias) = (want.device.pin(), spot, None);
            while let Some(above) = at.parent {
                if self::bridge(&self.wanted[above].device.driver) == Some(Bridge::Conventional) {
                    alias = bdfs[above];
                }
                pin = pin.map(|pin| pin.swizzle(at.slot));
                at = self.spots[above]?;
            }
            let owner = (!bridge).then(|| want.owner.unwrap_or_else(|| (self.owner)(bdf)));
            let line = pin.filter(|_| !bridge).map(|pin| pin.swizzle(at.slot) as u8 - 1);
            let mut device = want.device.clone();
            device.set("addr", &format!("{:x}.{:x}", spot.slot, spot.function));
            let beside = |other: &Spot| (other.parent, other.slot) == (spot.parent, spot.slot);
            let several = self.spots.iter().flatten().filter(|other| beside(other)).count() > 1;
            if several && spot.function == 0 && device.get("multifunction").is_none() {
                // Without it nobody looks for the others, and QEMU refuses them.
                device.set("multifunction", "on");
            }
            Some(Placed { device, origin: want.origin.clone(), bdf, owner, line, alias })
        };
        // Every device has its spot by now, so none is left out.
        self.wanted.iter().enumerate().filter_map(placed).collect()
    }

    fn number(&self, parent: Option<usize>, bus: u8, next_bus: &mut u8, bdfs: &mut [Option<Bdf>]) {
        let mut here: Vec<(Spot, usize)> = self
            .spots
            .iter()
            .enumerate()
            .filter_map(|(index, spot)| Some(((*spot)?, index)))
            .filter(|(spot, _)| spot.parent == parent)
            .collect();
        here.sort_by_key(|(spot, _)| (spot.slot, spot.function));
        for (spot, index) in here {
            bdfs[index] = Bdf::new(bus, spot.slot, spot.function);
            if bridge(&self.wanted[index].device.driver).is_some() {
                let secondary = *next_bus;
                // A machine of 255 bridges does not fit its root bus in the first place.
                *next_bus = next_bus.saturating_add(1);
                self.number(Some(index), secondary, next_bus, bdfs);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(device: &str) -> Wanted {
        Wanted {
            device: device.parse().unwrap(),
            origin: device.to_owned(),
            preferred: None,
            owner: None,
        }
    }

    fn own(device: &str, slot: u8) -> Wanted {
        Wanted { preferred: Some(slot), ..want(device) }
    }

    fn addresses(wanted: Vec<Wanted>) -> Vec<String> {
        place(&wanted, &|_| 0).unwrap().iter().map(|placed| placed.bdf.to_string()).collect()
    }

    #[test]
    fn who_names_a_slot_gets_it_and_the_others_go_around() {
        let wanted = vec![
            want("nvme"),
            own("edu", 1),
            own("edu", 2),
            want("edu,addr=1"),
            want("edu,addr=3.1"),
        ];
        assert_eq!(addresses(wanted), ["00:04.0", "00:05.0", "00:02.0", "00:01.0", "00:03.1"]);
    }

    #[test]
    fn a_function_with_others_beside_it_says_so() {
        let wanted = ["edu,addr=2", "edu,addr=2.1", "edu,addr=3", "edu,addr=4,multifunction=off"];
        let wanted = wanted.into_iter().chain(["edu,addr=4.1"]).map(want).collect::<Vec<_>>();
        let placed = place(&wanted, &|_| 0).unwrap();
        let said = placed.iter().map(|placed| placed.device.get("multifunction"));
        assert_eq!(said.collect::<Vec<_>>(), [Some("on"), None, None, Some("off"), None]);
    }

    #[test]
    fn a_slot_whose_line_somebody_else_has_is_passed_over() {
        // Slots 1 and 5 share a line, and so do 2 and 6.
        let wanted = vec![
            own("edu", 1),
            own("edu", 2),
            want("nvme,addr=3"),
            want("nvme,addr=4"),
            want("nvme"),
        ];
        let owner = |bdf: Bdf| usize::from(bdf.device() == 1);
        let placed = place(&wanted, &owner).unwrap();
        assert_eq!(placed[4].bdf.to_string(), "00:06.0");
        assert_eq!(placed[4].line, Some(2));
        let without_pin = [wanted, vec![want("iommu-testdev")]].concat();
        assert_eq!(place(&without_pin, &owner).unwrap()[5].bdf.to_string(), "00:05.0");
    }

    #[test]
    fn buses_are_numbered_depth_first() {
        let wanted = vec![
            want("nvme,bus=b"),
            want("pcie-root-port,id=b,addr=9"),
            want("pcie-root-port,id=a,addr=8"),
            want("pcie-pci-bridge,id=c,bus=a"),
            want("edu,bus=c"),
            want("edu,bus=c,addr=3"),
        ];
        assert_eq!(
            addresses(wanted.clone()),
            ["03:00.0", "00:09.0", "00:08.0", "01:00.0", "02:01.0", "02:03.0"]
        );
        let placed = place(&wanted, &|_| 0).unwrap();
        assert_eq!(placed[0].line, Some(1));
        // Pin A of slot 1 is pin B of the bridge in slot 0 of the port in slot 8.
        assert_eq!(placed[4].line, Some(1));
        assert_eq!(placed[5].line, Some(3));
        assert_eq!(placed[4].alias.unwrap().to_string(), "01:00.0");
        assert_eq!((placed[0].alias, placed[0].owner), (None, Some(0)));
        assert_eq!((placed[1].owner, placed[1].line), (None, None));
    }

    #[test]
    fn a_line_follows_from_slot_and_pin() {
        let wanted = ["edu,addr=4", "usb-ehci,addr=5", "ich9-usb-uhci2,addr=3", "rocker,addr=4.1"];
        let placed = place(&wanted.map(want), &|_| 0).unwrap();
        let lines: Vec<_> = placed.iter().map(|placed| placed.line).collect();
        assert_eq!(lines, [Some(0), Some(0), Some(0), None]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |wanted: &[&str]| {
            place(&wanted.iter().map(|device| want(device)).collect::<Vec<_>>(), &|_| 0)
                .unwrap_err()
                .to_string()
        };
        assert!(
            refused(&["edu,addr=2", "nvme,addr=2"])
                .starts_with("nvme,addr=2: addr=2.0 is taken by edu")
        );
        assert!(refused(&["edu,bus=x"]).contains("no PCI bus \"x\""));
        assert!(refused(&["pci-bridge,id=x,bus=x"]).contains("no PCI bus \"x\""));
        assert!(
            refused(&["pci-bridge,id=x,bus=y", "pci-bridge,id=y,bus=x"]).contains("no PCI bus")
        );
        assert!(refused(&["edu,addr=0"]).contains("addr=0 is not a free slot"));
        assert!(refused(&["edu,addr=2", "edu,addr=40"]).contains("addr=40"));
        let port = ["pcie-root-port,id=p,addr=1", "edu,bus=p", "edu,bus=p"];
        assert!(refused(&port).contains("no slot is left"));
    }
}
