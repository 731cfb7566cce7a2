//! Writing a bundle.

use std::collections::BTreeMap;

use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use sha2::{Digest, Sha256};
use smmu::addr::Ipa;

use super::check;
use super::{BundleError, Image, ImageKind, VmConfig, key};

/// Writes the bundle of `vms`. Images with the same bytes, place and kind are written once.
///
/// # Errors
///
/// A [`BundleError`] names the first VM that [`Bundle::parse`](super::Bundle::parse) would refuse, for the same
/// reason.
pub fn write(vms: &[VmConfig<'_>]) -> Result<Vec<u8>, BundleError> {
    check::check(vms)?;
    let mut images = Images { node: node("images"), names: BTreeMap::new(), hashes: Vec::new() };
    let mut configurations = node("configurations");
    set(&mut configurations, "default", "vm-1");
    for (index, vm) in vms.iter().enumerate() {
        configurations.add_child(configuration(format!("vm-{}", index + 1), vm, &mut images));
    }

    let mut tree = DeviceTree::new();
    set(&mut tree.root, "description", "Portcullis bundle");
    // Fixed, so that equal inputs give equal bundles.
    set(&mut tree.root, "timestamp", 0_u32);
    set(&mut tree.root, "#address-cells", 2_u32);
    tree.root.add_child(images.node);
    tree.root.add_child(configurations);
    Ok(tree.to_dtb())
}

fn configuration<'a>(name: String, vm: &VmConfig<'a>, images: &mut Images<'a>) -> DeviceTreeNode {
    let mut configuration = node(name);
    let mut refer = |kind: ImageKind, image: Image<'a>, entry: Option<Ipa>| {
        set(&mut configuration, kind.property(), images.name(kind, image, entry).as_str());
    };
    refer(ImageKind::Kernel, vm.kernel, Some(vm.entry));
    if let Some(initrd) = vm.initrd {
        refer(ImageKind::Initrd, initrd, None);
    }
    refer(ImageKind::DeviceTree, vm.device_tree, None);

    let cpus: Vec<u8> = vm.cpus.iter().flat_map(|cpu| cpu.to_be_bytes()).collect();
    set(&mut configuration, "description", vm.name.as_str());
    set(&mut configuration, key::NAME, vm.name.as_str());
    set(&mut configuration, key::CPUS, cpus);
    set(&mut configuration, key::MEMORY, vm.memory);
    set(&mut configuration, key::ON_EXIT, vm.on_exit.as_str());
    set(&mut configuration, key::STAGE1, vm.stage1.as_str());
    set(&mut configuration, key::DMA_AT_BOOT, vm.dma_at_boot.as_str());
    set(&mut configuration, key::ON_CRASH_KEXEC, vm.on_crash_kexec.as_str());
    set(&mut configuration, key::REOPEN, vm.reopen.as_str());
    for (index, function) in vm.functions.iter().enumerate() {
        let mut child = node(format!("function-{}", index + 1));
        set(&mut child, key::ADDRESS, function.address.to_string().as_str());
        set(&mut child, key::RESET, function.reset.as_str());
        configuration.add_child(child);
    }
    configuration
}

type Sha = [u8; 32];

/// What makes two images the same one: kind, place, entry and hash.
type Identity = (&'static str, u64, Option<u64>, Sha);

/// The images so far.
struct Images<'a> {
    node: DeviceTreeNode,
    names: BTreeMap<Identity, String>,
    /// What was hashed: VMs with the same kernel usually pass the same bytes, and those are many.
    hashes: Vec<(&'a [u8], Sha)>,
}

impl<'a> Images<'a> {
    fn hash(&mut self, data: &'a [u8]) -> Sha {
        if let Some((_, hash)) = self.hashes.iter().find(|(known, _)| std::ptr::eq(*known, data)) {
            return *hash;
        }
        let hash = Sha256::digest(data).into();
        self.hashes.push((data, hash));
        hash
    }

    /// Returns the name of an image, which is added if it is not there yet.
    fn name(&mut self, kind: ImageKind, image: Image<'a>, entry: Option<Ipa>) -> String {
        let hash = self.hash(image.data);
        let identity = (kind.property(), image.load.raw(), entry.map(Ipa::raw), hash);
        if let Some(name) = self.names.get(&identity) {
            return name.clone();
        }
        let ordinal = self.names.keys().filter(|(other, ..)| *other == kind.property()).count() + 1;
        let name = format!("{}-{ordinal}", kind.property());

        let mut child = node(name.clone());
        set(&mut child, "description", kind.property());
        set(&mut child, "type", kind.type_());
        set(&mut child, "arch", "arm64");
        set(&mut child, "compression", "none");
        if kind != ImageKind::DeviceTree {
            set(&mut child, "os", "linux");
        }
        set(&mut child, "load", image.load.raw());
        if let Some(entry) = entry {
            set(&mut child, "entry", entry.raw());
        }
        set(&mut child, "data", image.data);
        let mut digest = node("hash-1");
        set(&mut digest, "algo", "sha256");
        set(&mut digest, "value", hash);
        child.add_child(digest);
        self.node.add_child(child);
        self.names.insert(identity, name.clone());
        name
    }
}

fn node(name: impl Into<String>) -> DeviceTreeNode {
    DeviceTreeNode::new(name).expect("every name here is a valid node name")
}

fn set(node: &mut DeviceTreeNode, property: &str, value: impl ToPropertyValue) {
    let property = DeviceTreeProperty::new(property, value);
    node.add_property(property.expect("every name here is a valid property name"));
}
