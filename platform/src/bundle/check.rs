//! The rules that every bundle keeps, whoever made it.

use super::{BundleError, ImageKind, MAX_CPUS, MAX_STREAMS, MAX_VMS, Problem, VmConfig};
use crate::dt::Path;
use crate::guest_map;
use crate::name;

/// Checks all VMs together.
pub(super) fn check(vms: &[VmConfig<'_>]) -> Result<(), BundleError> {
    let whole = |problem| BundleError { place: place(&["/"]), problem };
    if vms.is_empty() {
        return Err(whole(Problem::NoVm));
    }
    if vms.len() > MAX_VMS {
        return Err(whole(Problem::TooMany { what: "VMs", limit: MAX_VMS }));
    }
    if vms.iter().map(|vm| vm.functions.len()).sum::<usize>() > MAX_STREAMS {
        return Err(whole(Problem::TooMany { what: "functions", limit: MAX_STREAMS }));
    }
    for (index, vm) in vms.iter().enumerate() {
        let earlier = &vms[..index];
        check_one(vm)
            .and_then(|()| check_owned_once(vm, earlier))
            .map_err(|problem| BundleError { place: place(&[&vm.name]), problem })?;
    }
    Ok(())
}

/// Joins the parts of a path, as far as they fit.
pub(super) fn place(parts: &[&str]) -> Path {
    let mut place = Path::new();
    for character in parts.iter().flat_map(|part| part.chars()) {
        // What does not fit is the end, which is the less important part.
        let _ = place.push(character);
    }
    place
}

fn check_one(vm: &VmConfig<'_>) -> Result<(), Problem> {
    name::parse(&vm.name).map_err(Problem::Name)?;
    if vm.cpus.is_empty() {
        return Err(Problem::NoCpu);
    }
    if let Some(cpu) = vm.cpus.iter().find(|cpu| **cpu as usize >= MAX_CPUS) {
        return Err(Problem::NoSuchCpu(*cpu));
    }
    let granular = vm.memory.is_multiple_of(guest_map::RAM_GRANULE);
    if vm.memory == 0 || vm.memory > guest_map::RAM_LIMIT || !granular {
        return Err(Problem::MemorySize(vm.memory));
    }

    let images = [
        (ImageKind::DeviceTree, Some(vm.device_tree)),
        (ImageKind::Kernel, Some(vm.kernel)),
        (ImageKind::Initrd, vm.initrd),
    ];
    // Offsets into RAM: images that were checked are not empty and cannot wrap.
    let mut placed = heapless::Vec::<(ImageKind, u64, u64), 3>::new();
    for (kind, image) in images.into_iter().filter_map(|(kind, image)| Some((kind, image?))) {
        let size = image.data.len() as u64;
        if size == 0 {
            return Err(Problem::EmptyImage(kind));
        }
        let start = image.load.raw().checked_sub(guest_map::RAM.raw());
        let Some((start, end)) = start.and_then(|start| Some((start, start.checked_add(size)?)))
        else {
            return Err(Problem::OutsideMemory(kind));
        };
        if end > vm.memory {
            return Err(Problem::OutsideMemory(kind));
        }
        if let Some((other, ..)) =
            placed.iter().find(|(_, first, past)| start < *past && *first < end)
        {
            return Err(Problem::Overlap(kind, *other));
        }
        // There is room for every kind.
        let _ = placed.push((kind, start, end));
    }
    let tree = vm.device_tree;
    if tree.data.len() as u64 > guest_map::DEVICE_TREE_LIMIT || !tree.load.is_aligned(8) {
        return Err(Problem::DeviceTreePlace);
    }
    match vm.entry.raw().checked_sub(vm.kernel.load.raw()) {
        Some(offset) if offset < vm.kernel.data.len() as u64 && vm.entry.is_aligned(4) => Ok(()),
        _ => Err(Problem::Entry),
    }
}

/// Checks that nothing of `vm` belongs to `earlier` VMs, or to itself twice.
fn check_owned_once(vm: &VmConfig<'_>, earlier: &[VmConfig<'_>]) -> Result<(), Problem> {
    if earlier.iter().any(|other| other.name == vm.name) {
        return Err(Problem::NameTaken);
    }
    for (index, cpu) in vm.cpus.iter().enumerate() {
        let twice = vm.cpus[..index].contains(cpu).then_some(vm);
        if let Some(owner) = twice.or(earlier.iter().find(|other| other.cpus.contains(cpu))) {
            return Err(Problem::CpuTaken(*cpu, owner.name.clone()));
        }
    }
    for (index, function) in vm.functions.iter().enumerate() {
        let same = |other: &super::Function| other.address == function.address;
        let twice = vm.functions[..index].iter().any(same).then_some(vm);
        if let Some(owner) = twice.or(earlier.iter().find(|other| other.functions.iter().any(same)))
        {
            return Err(Problem::FunctionTaken(function.address, owner.name.clone()));
        }
    }
    Ok(())
}
