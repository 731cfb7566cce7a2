//! Who owns what: which CPUs, which devices, which interrupt lines. Decided, and refused, before anything starts.

use std::collections::BTreeSet;

use anyhow::Result;
use platform::bundle::{Function, MAX_CPUS, MAX_FUNCTIONS, MAX_STREAMS, MAX_VMS, OnExit, Reset};
use platform::pcie::Bdf;

use crate::catalog::{Catalog, Plug};
use crate::device::DeviceArg;
use crate::exit::bad_input;
use crate::linux;
use crate::slots::{self, Placed, Wanted};
use crate::vm::{Content, Cpus, Said, Vm};

/// The slots that xtask's own devices prefer: the demonstration's two, then the disks of the Linux guest.
const BUILT_IN_SLOT: u8 = 1;
const DISK_SLOT: u8 = 3;

/// A machine with an owner for everything on it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The VMs, guest 0 first.
    pub vms: Vec<Owner>,
    /// Every PCI device: xtask's own, then the user's in their order.
    pub devices: Vec<Placed>,
    /// The user's devices that plug in elsewhere, each with how many of `devices` are before it.
    pub others: Vec<Other>,
    /// How many CPUs the machine has.
    pub cpus: u32,
}

/// A device that does not plug into PCI, after so many that do.
pub type Other = (usize, DeviceArg);

/// A VM and what it owns.
#[derive(Clone, Debug)]
pub struct Owner {
    /// What was asked for.
    pub vm: Vm,
    /// Its physical CPUs, vCPU 0 first.
    pub cpus: Vec<u32>,
    /// Its functions.
    pub functions: Vec<Function>,
}

/// A `--device` of the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserDevice {
    /// The argument.
    pub device: DeviceArg,
    /// The argument as it was given, for messages.
    pub origin: String,
}

/// Plans a machine for `vms`, guest 0 first, with the user's `devices` and those that the VMs' contents need.
///
/// While QEMU has not been asked what its devices are, those that may not be on PCI at all are left out; plan
/// again when it has.
///
/// # Errors
///
/// Bad input: whatever is owned twice, missing, too much or contradictory, with the place where it was said.
pub fn plan(vms: Vec<Vm>, devices: &[UserDevice], catalog: &Catalog) -> Result<Plan> {
    check_names(&vms)?;
    check_claimed_once(&vms)?;
    let cpus = share_cpus(&vms)?;
    let (wanted, others, all_known) = wanted(&vms, devices, catalog)?;
    let claimed_by = |bdf: Bdf| vms.iter().position(|vm| claim(vm, bdf).is_some()).unwrap_or(0);
    let placed =
        slots::place(&wanted, &claimed_by).map_err(|error| bad_input(error.to_string()))?;
    check_claims(&vms, &placed, all_known)?;
    check_shared(&vms, &placed)?;
    let functions = functions(&vms, &placed)?;
    check_restarts(&vms, &placed)?;
    let machine_cpus = cpus.iter().flatten().max().map_or(1, |last| last + 1);
    let owner = |((vm, cpus), functions)| Owner { vm, cpus, functions };
    Ok(Plan {
        vms: vms.into_iter().zip(cpus).zip(functions).map(owner).collect(),
        devices: placed,
        others,
        cpus: machine_cpus,
    })
}

impl Plan {
    /// The VM called `name`.
    pub fn vm(&self, name: &str) -> Option<&Owner> {
        self.vms.iter().find(|owner| owner.vm.name.value == name)
    }

    /// The functions of the VM with this index, as they are on the machine.
    pub fn devices_of(&self, vm: usize) -> impl Iterator<Item = &Placed> {
        self.devices.iter().filter(move |placed| placed.owner == Some(vm))
    }

    /// Refuses to restart a VM that has a function known to have no reset, unless its manifest says that
    /// switching off bus mastering will do.
    ///
    /// # Errors
    ///
    /// Bad input, named after `origin`, which asks for the restart.
    pub fn check_restart(&self, vm: usize, origin: &str) -> Result<()> {
        check_restart(&self.vms[vm].vm, self.devices_of(vm), origin)
    }
}

fn claim(vm: &Vm, bdf: Bdf) -> Option<&Said<Function>> {
    vm.functions.iter().find(|function| function.value.address == bdf)
}

fn check_names(vms: &[Vm]) -> Result<()> {
    if let Some(vm) = vms.get(MAX_VMS) {
        return Err(bad_input(format!(
            "{}: there is room for {MAX_VMS} VMs: remove some",
            vm.name.origin
        )));
    }
    for (index, vm) in vms.iter().enumerate() {
        if let Some(other) = vms[..index].iter().find(|other| other.name.value == vm.name.value) {
            return Err(bad_input(format!(
                "{}: the name {} is taken by the VM of {}: choose another one",
                vm.name.origin, vm.name.value, other.name.origin
            )));
        }
    }
    Ok(())
}

fn check_claimed_once(vms: &[Vm]) -> Result<()> {
    for (index, vm) in vms.iter().enumerate() {
        for Said { value, origin } in &vm.functions {
            for other in &vms[..index] {
                let Some(first) = claim(other, value.address) else { continue };
                return Err(bad_input(format!(
                    "{origin}: {} belongs to VM {} already ({}): give each function to one VM",
                    value.address, other.name.value, first.origin
                )));
            }
        }
    }
    Ok(())
}

/// Gives every VM its CPUs: first those that ask for certain ones, then the others the lowest that are free.
fn share_cpus(vms: &[Vm]) -> Result<Vec<Vec<u32>>> {
    let mut shares = vec![Vec::new(); vms.len()];
    for (index, vm) in vms.iter().enumerate() {
        let Cpus::These(list) = &vm.cpus.value else { continue };
        for cpu in list {
            if let Some(other) = shares.iter().position(|share: &Vec<u32>| share.contains(cpu)) {
                return Err(bad_input(format!(
                    "{}: CPU {cpu} belongs to VM {} already ({}): give each CPU to one VM",
                    vm.cpus.origin, vms[other].name.value, vms[other].cpus.origin
                )));
            }
        }
        shares[index].clone_from(list);
    }
    let taken: BTreeSet<u32> = shares.iter().flatten().copied().collect();
    let mut free = (0..MAX_CPUS as u32).filter(|cpu| !taken.contains(cpu));
    for (index, vm) in vms.iter().enumerate() {
        let Cpus::Count(count) = vm.cpus.value else { continue };
        shares[index].extend(free.by_ref().take(count as usize));
        if shares[index].len() < count as usize {
            return Err(bad_input(format!(
                "{}: {count} CPUs are wanted and only {} of the machine's {MAX_CPUS} are left: give the VMs fewer",
                vm.cpus.origin,
                shares[index].len()
            )));
        }
    }
    Ok(shares)
}

/// Lists the devices to place; those that do not plug into PCI come second, with how many of the first are before them.
/// The last part says whether the bus of every device is known.
fn wanted(
    vms: &[Vm],
    devices: &[UserDevice],
    catalog: &Catalog,
) -> Result<(Vec<Wanted>, Vec<Other>, bool)> {
    let (mut theirs, mut others, mut all_known) = (Vec::new(), Vec::new(), true);
    for UserDevice { device, origin } in devices {
        let refuse = |error: String| bad_input(format!("{origin}: {error}"));
        device.check_confined().map_err(|error| refuse(error.to_string()))?;
        if !catalog.has_device(&device.driver) {
            let message = format!(
                "QEMU has no device {:?}: see the output of its -device help",
                device.driver
            );
            return Err(refuse(message));
        }
        let plug = catalog.plug(&device.driver);
        // Only PCI devices have an `addr`, and only PCI buses made here are named by `bus` beside it.
        let on_pci = plug == Some(Plug::Pci) || (plug.is_none() && device.get("addr").is_some());
        if on_pci {
            let mut device = device.clone();
            device.complete();
            theirs.push(Wanted { device, origin: origin.clone(), preferred: None, owner: None });
        } else {
            all_known &= plug.is_some();
            others.push((theirs.len(), device.clone()));
        }
    }
    let mut wanted = own_devices(vms, &theirs);
    for (before, _) in &mut others {
        *before += wanted.len();
    }
    wanted.append(&mut theirs);
    Ok((wanted, others, all_known))
}

/// The devices that xtask adds: for a built-in guest an `edu` at every address that it claims and nobody else has
/// filled, or one if it claims none; for the Linux guest its disks.
fn own_devices(vms: &[Vm], theirs: &[Wanted]) -> Vec<Wanted> {
    let filled = |bdf: Bdf| {
        let at = |want: &Wanted| {
            want.device.get("bus").is_none()
                && want.device.address() == Ok(Some((bdf.device(), bdf.function())))
        };
        bdf.bus() != 0 || theirs.iter().any(at)
    };
    let edu = |place: &[(&str, &str)]| {
        DeviceArg::new("edu", &[&[("dma_mask", "0xffffffffffffffff")], place].concat())
    };
    let mut own = Vec::new();
    for (index, vm) in vms.iter().enumerate() {
        match &vm.content {
            Content::BuiltIn { role, .. } => {
                let origin = format!("the edu of the built-in {role} {}", vm.name.value);
                for claim in vm.functions.iter().filter(|claim| !filled(claim.value.address)) {
                    let bdf = claim.value.address;
                    let device =
                        edu(&[("addr", &format!("{:x}.{:x}", bdf.device(), bdf.function()))]);
                    own.push(Wanted {
                        device,
                        origin: origin.clone(),
                        preferred: None,
                        owner: Some(index),
                    });
                }
                if vm.functions.is_empty() {
                    let preferred =
                        u8::try_from(index).ok().and_then(|index| BUILT_IN_SLOT.checked_add(index));
                    own.push(Wanted { device: edu(&[]), origin, preferred, owner: Some(index) });
                }
            }
            Content::Linux { .. } => {
                for (bus, slot) in DISKS.into_iter().zip(DISK_SLOT..) {
                    let device = disk_device(bus, index);
                    let origin = format!("the {} of the Linux guest", device.driver);
                    own.push(Wanted { device, origin, preferred: Some(slot), owner: Some(index) });
                }
            }
            Content::Kernel { .. } => {}
        }
    }
    own
}

/// The buses of the Linux guest's disks, in the order of their slots.
const DISKS: [linux::Bus; 2] = [linux::Bus::Nvme, linux::Bus::VirtioBlk];

/// The device that a disk of the VM with index `vm` is.
fn disk_device(bus: linux::Bus, vm: usize) -> DeviceArg {
    let node = bus.node(vm);
    match bus {
        linux::Bus::Nvme => DeviceArg::new("nvme", &[("drive", &node)]),
        linux::Bus::VirtioBlk => {
            let modern = [("drive", &*node), ("iommu_platform", "on"), ("disable-legacy", "on")];
            DeviceArg::new("virtio-blk-pci", &modern)
        }
    }
}

/// Checks that there is a device at every claimed address.
fn check_claims(vms: &[Vm], placed: &[Placed], all_known: bool) -> Result<()> {
    for (index, vm) in vms.iter().enumerate() {
        for function in &vm.functions {
            let bdf = function.value.address;
            let refuse = |what: String| bad_input(format!("{}: {bdf} {what}", function.origin));
            match placed.iter().find(|placed| placed.bdf == bdf) {
                Some(Placed { owner: None, .. }) => {
                    return Err(refuse(
                        "is a bridge, which EL2 keeps: claim what is behind it".into(),
                    ));
                }
                Some(Placed { owner: Some(owner), origin, .. }) if *owner != index => {
                    return Err(refuse(format!("is {origin}: claim another address")));
                }
                None if all_known => {
                    return Err(refuse(format!(
                        "has no device on this machine: add one with --device DRIVER,addr={:x}.{:x}",
                        bdf.device(),
                        bdf.function()
                    )));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Checks that what functions share by their place is shared within one VM only: an interrupt line, a requester ID
/// behind a conventional bridge, and a multi-function device without access control between its functions.
fn check_shared(vms: &[Vm], placed: &[Placed]) -> Result<()> {
    for (index, one) in placed.iter().enumerate() {
        for other in &placed[..index] {
            let (Some(owner), Some(others)) = (one.owner, other.owner) else { continue };
            if owner == others {
                continue;
            }
            let shared = if one.line.is_some() && one.line == other.line {
                "share an interrupt line, which belongs to one VM: put one of them into a slot of another \
                 remainder modulo 4"
            } else if one.alias.is_some() && one.alias == other.alias {
                "are behind one conventional bridge, where requests cannot be told apart: give both to one VM"
            } else if (one.bdf.bus(), one.bdf.device()) == (other.bdf.bus(), other.bdf.device()) {
                "are functions of one device, which can reach each other past the SMMU: give both to one VM"
            } else {
                continue;
            };
            // The place that a user can change comes first: a manifest's line, if one of them has it.
            let said = [(one, owner), (other, others)]
                .into_iter()
                .find_map(|(placed, owner)| Some(&claim(&vms[owner], placed.bdf)?.origin));
            return Err(bad_input(format!(
                "{}: {} of VM {} and {} of VM {} {shared}",
                said.unwrap_or(&one.origin),
                other.bdf,
                vms[others].name.value,
                one.bdf,
                vms[owner].name.value,
            )));
        }
    }
    Ok(())
}

fn functions(vms: &[Vm], placed: &[Placed]) -> Result<Vec<Vec<Function>>> {
    let mut functions = vec![Vec::new(); vms.len()];
    let owned = placed.iter().filter_map(|placed| Some((placed, placed.owner?)));
    for (count, (placed, owner)) in owned.enumerate() {
        if functions[owner].len() == MAX_FUNCTIONS || count == MAX_STREAMS {
            return Err(bad_input(format!(
                "{}: there is room for {MAX_FUNCTIONS} functions per VM and {MAX_STREAMS} in all: remove some",
                placed.origin
            )));
        }
        let reset = claim(&vms[owner], placed.bdf).map_or(Reset::Auto, |claim| claim.value.reset);
        functions[owner].push(Function { address: placed.bdf, reset });
    }
    Ok(functions)
}

fn check_restarts(vms: &[Vm], placed: &[Placed]) -> Result<()> {
    for (index, vm) in vms.iter().enumerate().filter(|(_, vm)| vm.on_exit.value == OnExit::Restart)
    {
        let mine = placed.iter().filter(|placed| placed.owner == Some(index));
        check_restart(vm, mine, &vm.on_exit.origin)?;
    }
    Ok(())
}

fn check_restart<'a>(
    vm: &Vm,
    functions: impl Iterator<Item = &'a Placed>,
    origin: &str,
) -> Result<()> {
    for placed in functions {
        let reset = claim(vm, placed.bdf).map_or(Reset::Auto, |claim| claim.value.reset);
        // A bus of its own behind a port can be reset as a whole.
        let on_root = placed.bdf.bus() == 0;
        if on_root && reset == Reset::Auto && placed.device.has_no_reset() {
            return Err(bad_input(format!(
                "{origin}: {} {} of VM {} has no reset, so that nothing proves it quiet for a restart: remove it, plug \
                 it behind a pcie-root-port, or say reset = \"bus-master\" in its [[pci]]",
                placed.device.driver, placed.bdf, vm.name.value
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
