//! The guest-visible side of PCI: one flat bus 0 with the VM's functions, and nothing else.
//!
//! A guest's configuration space is an allow-list. What is not on it reads 0 and ignores writes; what is on it
//! is either read from the function, or kept here and never reaches it, or reaches it bit by bit under policy.
//! MSI, MSI-X, ATS, PRI, PASID and SR-IOV are neither visible nor reachable (C2, C8).
//!
//! BARs are virtual. A guest may put them anywhere; one that lies inside the VM's windows appears there, in
//! stage 2 if it has whole pages, by [`Vpci::decode`] if not. Physical BARs never move and always decode, so
//! that no access of a guest ends in a bus error that its CPU did not ask for.
//!
//! Bus master has two locks: the guest's own bit, and [`Vpci::admit`], which [`Vpci::close`] takes back.
//! Whether a write that sets the guest's bit is evidence enough to admit the function again is not decided here
//! (C5): [`Effects::bus_master`] reports it.

mod capability;
/// Only where there is no hardware: for tests and fuzzing. Its parts are named after what they stand for.
#[cfg(not(target_os = "none"))]
#[allow(missing_docs)]
pub mod fake;
mod function;
mod slots;
#[cfg(test)]
mod tests;
mod window;

use core::fmt;

use heapless::Vec;
use platform::dt::Interrupt;
use platform::guest_map;
use platform::pcie::InterruptMap;
use smmu::addr::{Ipa, Pa};

use self::function::VirtualFunction;
use crate::pci::{
    Bdf, ConfigSpace, Function, MAX_VM_FUNCTIONS, Patience, Quiesced, Request, Topology,
    Unassignable, Width, reset_to_cold,
};

/// Stage 2 would not take a mapping, for lack of memory for its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFailed;

/// The CPUs' stage 2 of one VM, as far as it maps BARs.
///
/// Addresses and sizes are multiples of 4 KiB, `size` is a power of two. Nothing is mapped over a mapping.
pub trait BarMap {
    /// Lets the VM's CPUs reach the `size` bytes of device memory at `pa` through `ipa`.
    ///
    /// # Errors
    ///
    /// [`MapFailed`] if it cannot, and then nothing is mapped: the BAR stays out of sight until the guest's
    /// next change of a BAR or a command register.
    fn map(&mut self, ipa: Ipa, pa: Pa, size: u64) -> Result<(), MapFailed>;
    /// Takes back what [`BarMap::map`] mapped at `ipa`. When the call returns, no CPU of the VM reaches it any
    /// more: the TLB invalidation is complete.
    fn unmap(&mut self, ipa: Ipa, size: u64);
}

/// Why a VM cannot have these functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VpciError {
    /// There is no such function.
    Unknown {
        /// Its address.
        function: Bdf,
    },
    /// No VM can own the function.
    Unassignable {
        /// Its address.
        function: Bdf,
        /// Why.
        why: Unassignable,
    },
    /// The function is listed twice.
    Twice {
        /// Its address.
        function: Bdf,
    },
    /// There are more than [`MAX_VM_FUNCTIONS`].
    TooMany,
    /// The functions use more than the four interrupt lines that a guest has.
    TooManyLines,
    /// No choice of slots gives each physical interrupt line a virtual one of its own.
    NoSlots,
}

impl fmt::Display for VpciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { function } => write!(f, "there is no PCI function {function}: see the list above"),
            Self::Unassignable { function, why } => write!(f, "PCI function {function} cannot be assigned: {why}"),
            Self::Twice { function } => write!(f, "PCI function {function} is listed twice: remove one"),
            Self::TooMany => write!(f, "more than {MAX_VM_FUNCTIONS} PCI functions: remove some"),
            Self::TooManyLines => {
                f.write_str("the PCI functions use more than four interrupt lines: remove some, or give them to another VM")
            }
            Self::NoSlots => f.write_str(
                "no choice of slots keeps the PCI functions' interrupt lines apart: remove some, or give them to another VM",
            ),
        }
    }
}

impl core::error::Error for VpciError {}

/// The guest's bus master bit changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusMaster {
    /// The physical function.
    pub function: Bdf,
    /// What the guest sees now.
    pub on: bool,
}

/// What a write did that others want to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Effects {
    /// The guest's bus master bit of a function changed. It reached the function only if that is admitted.
    pub bus_master: Option<BusMaster>,
    /// The guest asked for a reset of a function, and this came of it.
    pub reset: Option<Quiesced>,
}

/// What is at an address in the guest's PCI windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A register of the VM's own function: make the same access there.
    Forward(Pa),
    /// A BAR that stage 2 maps: another CPU moved it here in the meantime. Let the guest try again.
    Mapped,
    /// Nothing, or nothing for an access of this size. Reads give all ones, writes have no effect.
    Absent,
}

/// A virtual interrupt line and the physical one behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntxLine {
    /// What the guest sees.
    pub guest: Interrupt,
    /// What the functions raise.
    pub physical: Interrupt,
}

/// The PCI bus of one VM.
pub struct Vpci {
    functions: Vec<VirtualFunction, MAX_VM_FUNCTIONS>,
    lines: Vec<IntxLine, 4>,
}

impl Vpci {
    /// Builds the bus of a VM that owns the functions `owned`, in cold state and with no function admitted.
    /// Order in
    /// `owned` decides who gets a slot first, and which of two overlapping BARs wins.
    ///
    /// A function keeps its device number if it is on the root bus and the number is free; devices owned as a
    /// whole keep their function numbers, any other function becomes function 0 of a slot of its own. Slots are
    /// chosen such that each physical interrupt line becomes one virtual line, and no two become the same.
    ///
    /// # Errors
    ///
    /// See [`VpciError`].
    #[inline(never)]
    pub fn new<H: ConfigSpace>(
        hardware: &H,
        topology: &Topology,
        owned: &[Request],
        interrupts: &InterruptMap,
    ) -> Result<Self, VpciError> {
        let mut physical = Vec::<&Function, MAX_VM_FUNCTIONS>::new();
        for &Request { function: at, .. } in owned {
            let function = topology.get(at).ok_or(VpciError::Unknown { function: at })?;
            function.assignable().map_err(|why| VpciError::Unassignable { function: at, why })?;
            if physical.iter().any(|known| known.at == at) {
                return Err(VpciError::Twice { function: at });
            }
            physical.push(function).map_err(|_| VpciError::TooMany)?;
        }
        let slots::Slots { addresses, lines } = slots::assign(topology, &physical, interrupts)?;
        let mut functions = Vec::new();
        for ((function, request), &at) in physical.iter().zip(owned).zip(&addresses) {
            let shared =
                addresses.iter().any(|other| *other != at && other.device() == at.device());
            let wired = topology.interrupt(function, interrupts).is_some();
            let function =
                VirtualFunction::new(hardware, function, request.policy, at, shared, wired);
            function.restore(hardware);
            // `physical`, which holds as many, had room.
            _ = functions.push(function);
        }
        Ok(Self { functions, lines })
    }

    /// Returns the physical functions and where the guest sees them.
    pub fn functions(&self) -> impl Iterator<Item = (&Function, Bdf)> {
        self.functions.iter().map(|function| (&function.physical, function.at))
    }

    /// Returns where the guest sees a physical function.
    pub fn virtual_address(&self, physical: Bdf) -> Option<Bdf> {
        self.functions
            .iter()
            .find(|function| function.physical.at == physical)
            .map(|function| function.at)
    }

    /// Returns the interrupt lines in use, at most one per virtual and per physical line.
    pub fn intx_lines(&self) -> &[IntxLine] {
        &self.lines
    }

    /// Returns the guest's own bus master bit of a physical function.
    pub fn bus_master(&self, physical: Bdf) -> bool {
        self.functions
            .iter()
            .any(|function| function.physical.at == physical && function.bus_master())
    }

    /// Answers the guest's read of `width` bytes at `offset` into its ECAM. Any offset and width will do: what
    /// is unaligned is read as the aligned words around it, and bytes where no function is, or past the end of
    /// the function in which the access starts, are all ones.
    pub fn config_read<H: ConfigSpace>(&self, hardware: &H, offset: u64, width: Width) -> u64 {
        let access = Access::new(offset, width);
        let function = self.at(access.function);
        let mut value = 0;
        for (index, register) in access.registers() {
            let word = match (function, register) {
                (Some(function), Some(register)) => {
                    self.functions[function].read(hardware, register)
                }
                _ => u32::MAX,
            };
            value |= u128::from(word) << (32 * index);
        }
        (value >> access.shift) as u64 & access.width.mask()
    }

    /// Carries out the guest's write of `width` bytes at `offset` into its ECAM. Any offset, width and value
    /// will do: bytes that [`Vpci::config_read`] reads as all ones for lack of a function are ignored.
    ///
    /// Stage 2 follows through `map` before the call returns: first everything that is no longer right is
    /// unmapped, then the new is mapped. A reset of a function that the guest asks for is done inside, at most
    /// about 1.5 seconds long, and starts when the function's BARs are out of reach.
    pub fn config_write<H: ConfigSpace + Patience, M: BarMap>(
        &mut self,
        hardware: &H,
        map: &mut M,
        offset: u64,
        width: Width,
        value: u64,
    ) -> Effects {
        let access = Access::new(offset, width);
        let Some(index) = self.at(access.function) else { return Effects::default() };
        let function = &mut self.functions[index];
        let had_bus_master = function.bus_master();
        let value = u128::from(value & access.width.mask()) << access.shift;
        let mask = u128::from(access.width.mask()) << access.shift;
        let mut asked = None;
        let mut moved = false;
        for (index, register) in access.registers() {
            let part = |wide: u128| (wide >> (32 * index)) as u32;
            if let (Some(register), 1..) = (register, part(mask)) {
                let change = function.write(hardware, register, part(value), part(mask));
                moved |= change.moved;
                asked = asked.or(change.reset);
            }
        }
        let mut effects = Effects::default();
        if let Some(method) = asked {
            function.forget();
            window::refresh(&mut self.functions, map);
            let function = &mut self.functions[index];
            let done = reset_to_cold(hardware, &function.physical, method);
            function.lost = !done.usable;
            function.apply_command(hardware);
            effects.reset = Some(done);
        } else if moved {
            window::refresh(&mut self.functions, map);
        }
        let function = &self.functions[index];
        if function.bus_master() != had_bus_master {
            let on = function.bus_master();
            effects.bus_master = Some(BusMaster { function: function.physical.at, on });
        }
        effects
    }

    /// Says what is at `ipa` in the guest's PCI windows, for an access of `width` bytes that stage 2 did not
    /// map.
    pub fn decode(&self, ipa: Ipa, width: Width) -> Target {
        window::decode(&self.functions, ipa, width)
    }

    /// Returns the BARs that the guest's CPUs reach directly: where the guest sees them, where they are, and how many
    /// bytes.
    pub fn mapped(&self) -> impl Iterator<Item = (Ipa, Pa, u64)> {
        window::mapped(&self.functions)
    }

    /// Lets the guest's bus master bit of a physical function reach it, from now on.
    pub fn admit<H: ConfigSpace>(&mut self, hardware: &H, physical: Bdf) {
        for function in
            self.functions.iter_mut().filter(|function| function.physical.at == physical)
        {
            function.admitted = true;
            function.apply_command(hardware);
        }
    }

    /// Clears the guest's bus master bit of every function, and keeps it from reaching any until that is
    /// admitted again. The rest of the guest's view stays (C4).
    ///
    /// The functions themselves are told to stop, but for those that `linger` names by physical address: they
    /// keep mastering the bus so that what they still do is seen (C6), until [`crate::pci::bus_master_off`] or
    /// [`crate::pci::quiesce`] stops them.
    pub fn close<H: ConfigSpace>(&mut self, hardware: &H, linger: impl Fn(Bdf) -> bool) {
        for function in &mut self.functions {
            function.close();
            if !linger(function.physical.at) {
                function.apply_command(hardware);
            }
        }
    }

    /// Takes every function out of the guest's reach until [`Vpci::quiesced`] brings it back, so that no access
    /// meets one that is being reset.
    pub fn withdraw<M: BarMap>(&mut self, map: &mut M) {
        for function in &mut self.functions {
            function.lost = true;
        }
        window::refresh(&mut self.functions, map);
    }

    /// Takes note of what [`crate::pci::quiesce`] did: a function that was lost is out of the guest's reach,
    /// one that came back is back.
    pub fn quiesced<M: BarMap>(&mut self, map: &mut M, outcomes: &[Quiesced]) {
        for function in &mut self.functions {
            for outcome in
                outcomes.iter().filter(|outcome| outcome.function == function.physical.at)
            {
                function.lost = !outcome.usable;
            }
        }
        window::refresh(&mut self.functions, map);
    }

    /// Puts the bus into cold state: what a guest finds when it starts. No BAR is mapped and no function
    /// admitted. The functions themselves are told to stop, and have PCI Express's device control back as EL2 found
    /// it and no errors noted: resetting them is [`crate::pci::quiesce`]'s work.
    pub fn reset<H: ConfigSpace, M: BarMap>(&mut self, hardware: &H, map: &mut M) {
        for function in &mut self.functions {
            function.close();
            function.forget();
            function.restore(hardware);
            function.apply_command(hardware);
        }
        window::refresh(&mut self.functions, map);
    }

    fn at(&self, address: Option<Bdf>) -> Option<usize> {
        self.functions.iter().position(|function| Some(function.at) == address)
    }
}

/// One access to the ECAM, cut into aligned words.
struct Access {
    /// The function in whose 4 KiB it starts; `None` outside the ECAM.
    function: Option<Bdf>,
    /// The first register that it touches.
    first: u64,
    /// The bit of the first register at which it starts.
    shift: u32,
    width: Width,
}

impl Access {
    fn new(offset: u64, width: Width) -> Self {
        let inside = offset < guest_map::PCI_ECAM_SIZE;
        Self {
            function: inside.then(|| Bdf::from_requester_id((offset >> 12) as u16)),
            first: offset & 0xffc,
            shift: (offset & 3) as u32 * 8,
            width,
        }
    }

    /// Returns the registers that the access touches, each `None` past the end of the function.
    fn registers(&self) -> impl Iterator<Item = (u32, Option<u16>)> {
        let bits = u64::from(self.shift) + 8 * self.width.bytes();
        let first = self.first;
        (0..bits.div_ceil(32) as u32).map(move |index| {
            let register = first + 4 * u64::from(index);
            (index, u16::try_from(register).ok().filter(|&register| register < 0x1000))
        })
    }
}
