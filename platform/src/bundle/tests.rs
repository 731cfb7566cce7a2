//! What the host writes, EL2 reads; everything else is refused for its own reason.

use std::vec::Vec;

use dtoolkit::ToPropertyValue;
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use proptest::prelude::*;

use super::*;
use crate::guest_map;
use crate::name::{self, NameError};
use crate::pcie::BdfError;
use crate::report::Name;

const KERNEL: &[u8] = &[0x11; 4096];
const INITRD: &[u8] = &[0x22; 1024];
const TREE: &[u8] = &[0x33; 512];
const OTHER_TREE: &[u8] = &[0x44; 512];

fn function(address: &str) -> Function {
    Function { address: address.parse().unwrap(), reset: Reset::Auto }
}

fn linux() -> VmConfig<'static> {
    VmConfig {
        name: name::parse("linux-0").unwrap(),
        cpus: [1, 0].into_iter().collect(),
        memory: 64 << 20,
        kernel: Image { data: KERNEL, load: guest_map::KERNEL },
        entry: guest_map::KERNEL.add(64),
        initrd: Some(Image { data: INITRD, load: Ipa::new(0x4040_0000) }),
        device_tree: Image { data: TREE, load: guest_map::DEVICE_TREE },
        on_exit: OnExit::Restart,
        stage1: Stage1::None,
        dma_at_boot: DmaAtBoot::Abort,
        on_crash_kexec: OnCrashKexec::Preserve,
        reopen: Reopen::Smmu,
        functions: [
            function("00:02.0"),
            Function { address: "00:1f.7".parse().unwrap(), reset: Reset::BusMaster },
        ]
        .into_iter()
        .collect(),
    }
}

fn victim() -> VmConfig<'static> {
    VmConfig {
        name: name::parse("victim").unwrap(),
        cpus: [3].into_iter().collect(),
        memory: 2 << 20,
        kernel: Image { data: KERNEL, load: guest_map::RAM.add(0x1_0000) },
        entry: guest_map::RAM.add(0x1_0000),
        initrd: None,
        device_tree: Image { data: OTHER_TREE, load: guest_map::DEVICE_TREE },
        on_exit: OnExit::default(),
        stage1: Stage1::default(),
        dma_at_boot: DmaAtBoot::default(),
        on_crash_kexec: OnCrashKexec::default(),
        reopen: Reopen::default(),
        functions: heapless::Vec::new(),
    }
}

fn pair() -> Vec<VmConfig<'static>> {
    vec![linux(), victim()]
}

#[test]
fn what_the_host_writes_el2_reads() {
    let mut blob = write(&pair()).unwrap();
    blob.resize(blob.len() + 4096, 0xff);
    let bundle = Bundle::parse(&blob).unwrap();
    bundle.verify().unwrap();
    assert_eq!(bundle.vms(), pair());
}

#[test]
fn the_tree_is_a_fit_image() {
    let blob = write(&pair()).unwrap();
    let tree = DeviceTree::from_fdt(&Fdt::new(&blob).unwrap());
    let has = |path: &str, properties: &[&str]| {
        let node = tree.find_node(path).unwrap_or_else(|| panic!("no node {path}"));
        for property in properties {
            let found = dtoolkit::Node::property(node, property).is_some();
            assert!(found, "{path} has no {property}");
        }
    };
    has("/", &["description", "timestamp", "#address-cells"]);
    let image = ["description", "data", "type", "arch", "compression", "load"];
    has("/images/kernel-1", &image);
    has("/images/kernel-1", &["os", "entry"]);
    has("/images/kernel-1/hash-1", &["algo", "value"]);
    has("/images/ramdisk-1", &image);
    has("/images/ramdisk-1", &["os"]);
    has("/images/fdt-1", &image);
    has("/configurations", &["default"]);
    has("/configurations/vm-1", &["description", "kernel", "ramdisk", "fdt"]);
    has("/configurations/vm-2", &["description", "kernel", "fdt"]);
}

#[test]
fn equal_images_are_stored_once() {
    let mut twin = linux();
    twin.name = name::parse("linux-1").unwrap();
    twin.cpus = [2].into_iter().collect();
    twin.functions.clear();
    let data: Vec<u8> = INITRD.to_vec();
    twin.initrd = Some(Image { data: &data, load: Ipa::new(0x4040_0000) });
    let one = write(&[linux()]).unwrap();
    let both = write(&[linux(), twin.clone()]).unwrap();
    assert!(both.len() < one.len() + 1024, "{} and {}", one.len(), both.len());
    assert_eq!(Bundle::parse(&both).unwrap().vms(), [linux(), twin.clone()]);

    // Another place is another image.
    twin.initrd = Some(Image { data: &data, load: Ipa::new(0x4060_0000) });
    let apart = write(&[linux(), twin.clone()]).unwrap();
    assert!(apart.len() > both.len() + INITRD.len());
    assert_eq!(Bundle::parse(&apart).unwrap().vms(), [linux(), twin]);
}

#[test]
fn equal_inputs_give_equal_bundles() {
    assert_eq!(write(&pair()).unwrap(), write(&pair()).unwrap());
}

#[test]
fn a_changed_byte_of_any_image_is_noticed() {
    let pristine = write(&pair()).unwrap();
    for (image, byte) in [("kernel-1", 0x11), ("ramdisk-1", 0x22), ("fdt-1", 0x33), ("fdt-2", 0x44)]
    {
        let mut blob = pristine.clone();
        let at = blob.windows(64).position(|bytes| bytes == [byte; 64]).unwrap();
        blob[at + 60] ^= 1;
        let error = Bundle::parse(&blob).unwrap().verify().unwrap_err();
        assert_eq!(error.place, format!("/images/{image}").as_str());
        assert_eq!(error.problem, Problem::WrongHash);
    }
}

#[test]
fn every_rule_has_its_own_error() {
    fn load(image: &mut Image<'_>, at: u64) {
        image.load = Ipa::new(at);
    }
    type Change = fn(&mut Vec<VmConfig<'static>>);
    let owner = || Name::try_from("linux-0").unwrap();
    let outside = |kind| Problem::OutsideMemory(kind);
    let cases: &[(Change, Problem)] = &[
        (|vms| vms.clear(), Problem::NoVm),
        (|vms| vms[1].name = Name::try_from("el2").unwrap(), Problem::Name(NameError::Reserved)),
        (|vms| vms[1].name = vms[0].name.clone(), Problem::NameTaken),
        (|vms| vms[1].cpus.clear(), Problem::NoCpu),
        (|vms| vms[1].cpus[0] = 16, Problem::NoSuchCpu(16)),
        (|vms| vms[1].cpus[0] = 0, Problem::CpuTaken(0, owner())),
        (|vms| vms[0].cpus[1] = 1, Problem::CpuTaken(1, owner())),
        (|vms| vms[1].memory = 0, Problem::MemorySize(0)),
        (|vms| vms[1].memory = (2 << 20) + 4096, Problem::MemorySize((2 << 20) + 4096)),
        (|vms| vms[1].memory = 1 << 40, Problem::MemorySize(1 << 40)),
        (|vms| vms[1].kernel.data = &[], Problem::EmptyImage(ImageKind::Kernel)),
        (|vms| load(&mut vms[1].kernel, 0x3fff_f000), outside(ImageKind::Kernel)),
        (|vms| load(&mut vms[1].kernel, 0x401f_f001), outside(ImageKind::Kernel)),
        (|vms| load(&mut vms[1].device_tree, u64::MAX - 100), outside(ImageKind::DeviceTree)),
        (
            |vms| load(vms[0].initrd.as_mut().unwrap(), 0x4020_0fff),
            Problem::Overlap(ImageKind::Initrd, ImageKind::Kernel),
        ),
        (
            |vms| load(&mut vms[1].kernel, 0x4000_0000),
            Problem::Overlap(ImageKind::Kernel, ImageKind::DeviceTree),
        ),
        (|vms| load(&mut vms[1].device_tree, 0x4000_0004), Problem::DeviceTreePlace),
        (|vms| vms[0].entry = Ipa::new(0x4020_1000), Problem::Entry),
        (|vms| vms[0].entry = Ipa::new(0x4020_0002), Problem::Entry),
        (|vms| vms[0].entry = Ipa::new(0x401f_fffc), Problem::Entry),
        (
            |vms| vms[1].functions.push(function("00:02.0")).unwrap(),
            Problem::FunctionTaken("00:02.0".parse().unwrap(), owner()),
        ),
        (
            |vms| vms[0].functions.push(function("00:02.0")).unwrap(),
            Problem::FunctionTaken("00:02.0".parse().unwrap(), owner()),
        ),
    ];
    for (change, problem) in cases {
        let mut vms = pair();
        change(&mut vms);
        assert_eq!(write(&vms).unwrap_err().problem, *problem);
    }
}

#[test]
fn the_limits_are_exact() {
    let many = |count: u8| -> Vec<VmConfig<'static>> {
        (0..count)
            .map(|index| VmConfig {
                name: Name::try_from(format!("vm{index}").as_str()).unwrap(),
                cpus: [u32::from(index)].into_iter().collect(),
                functions: (0..MAX_STREAMS / MAX_VMS)
                    .map(|device| Function {
                        address: Bdf::new(index, device as u8, 0).unwrap(),
                        reset: Reset::Auto,
                    })
                    .collect(),
                ..victim()
            })
            .collect()
    };
    let blob = write(&many(8)).unwrap();
    assert_eq!(Bundle::parse(&blob).unwrap().vms(), many(8));
    let error = write(&many(9)).unwrap_err().problem;
    assert_eq!(error, Problem::TooMany { what: "VMs", limit: MAX_VMS });
    let mut vms = many(8);
    vms[0].functions.push(function("20:00.0")).unwrap();
    let error = write(&vms).unwrap_err().problem;
    assert_eq!(error, Problem::TooMany { what: "functions", limit: MAX_STREAMS });
}

// ---- a bundle that somebody else made ----

fn changed(change: impl FnOnce(&mut DeviceTree)) -> Vec<u8> {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(&write(&pair()).unwrap()).unwrap());
    change(&mut tree);
    tree.to_dtb()
}

fn with(path: &str, property: &str, value: impl ToPropertyValue) -> Vec<u8> {
    changed(|tree| {
        let property = DeviceTreeProperty::new(property, value).unwrap();
        tree.find_node_mut(path).unwrap().add_property(property);
    })
}

fn without(path: &str, property: &str) -> Vec<u8> {
    changed(|tree| {
        tree.find_node_mut(path).unwrap().remove_property(property).unwrap();
    })
}

const VM: &str = "/configurations/vm-1";
const KERNEL_NODE: &str = "/images/kernel-1";

#[test]
fn an_odd_node_is_named_with_its_property() {
    let malformed = |property, expected| Problem::Malformed { property, expected };
    let function_node = "/configurations/vm-1/function-1";
    let cases: &[(Vec<u8>, &str, Problem)] = &[
        (changed(|tree| drop(tree.root.remove_child("images"))), "/", Problem::NoNode("/images")),
        (
            changed(|tree| drop(tree.root.remove_child("configurations"))),
            "/",
            Problem::NoNode("/configurations"),
        ),
        (without(VM, "portcullis,name"), VM, Problem::NoProperty("portcullis,name")),
        (with(VM, "portcullis,name", "A"), VM, Problem::Name(NameError::Character('A'))),
        (without(VM, "portcullis,cpus"), VM, Problem::NoProperty("portcullis,cpus")),
        (
            with(VM, "portcullis,cpus", [0_u8; 7]),
            VM,
            malformed("portcullis,cpus", "a list of CPU indices"),
        ),
        (
            with(VM, "portcullis,cpus", [0_u8; 68]),
            VM,
            Problem::TooMany { what: "CPUs", limit: MAX_CPUS },
        ),
        (
            with(VM, "portcullis,memory", [0_u8; 12]),
            VM,
            malformed("portcullis,memory", "one or two cells"),
        ),
        (
            with(VM, "portcullis,reopen", "never"),
            VM,
            malformed("portcullis,reopen", "\"device\" or \"smmu\""),
        ),
        (with(VM, "portcullis,on-exit", [1_u8]), VM, malformed("portcullis,on-exit", "a string")),
        (
            with(VM, "portcullis,encrypt", "yes"),
            VM,
            Problem::UnknownProperty("portcullis,encrypt".try_into().unwrap()),
        ),
        (without(VM, "kernel"), VM, Problem::NoProperty("kernel")),
        (without(VM, "fdt"), VM, Problem::NoProperty("fdt")),
        (with(VM, "ramdisk", "ramdisk-9"), VM, Problem::NoImage(ImageKind::Initrd)),
        (with(VM, "kernel", "fdt-1"), "/images/fdt-1", malformed("type", "kernel")),
        (with(KERNEL_NODE, "arch", "arm"), KERNEL_NODE, malformed("arch", "\"arm64\"")),
        (
            with(KERNEL_NODE, "compression", "gzip"),
            KERNEL_NODE,
            malformed("compression", "\"none\""),
        ),
        (without(KERNEL_NODE, "data"), KERNEL_NODE, Problem::NoProperty("data")),
        (without(KERNEL_NODE, "load"), KERNEL_NODE, Problem::NoProperty("load")),
        (without(KERNEL_NODE, "entry"), KERNEL_NODE, Problem::NoProperty("entry")),
        (
            with("/images/kernel-1/hash-1", "algo", "crc32"),
            KERNEL_NODE,
            Problem::NoNode("hash-1 with algo \"sha256\""),
        ),
        (
            with("/images/kernel-1/hash-1", "value", [0_u8; 20]),
            KERNEL_NODE,
            malformed("value", "32 bytes of SHA-256"),
        ),
        (
            with(function_node, "portcullis,address", "0:2.0"),
            function_node,
            Problem::Address(BdfError::Form),
        ),
        (
            with(function_node, "portcullis,reset", "maybe"),
            function_node,
            malformed("portcullis,reset", "\"auto\" or \"bus-master\""),
        ),
        (
            with(function_node, "portcullis,msi", "no"),
            function_node,
            Problem::UnknownProperty("portcullis,msi".try_into().unwrap()),
        ),
        (with("/configurations/vm-2", "portcullis,name", "linux-0"), "linux-0", Problem::NameTaken),
    ];
    for (blob, place, problem) in cases {
        let error = Bundle::parse(blob).expect_err(place);
        assert_eq!((error.place.as_str(), &error.problem), (*place, problem));
    }
}

#[test]
fn more_than_there_is_room_for_is_refused() {
    let functions = changed(|tree| {
        let vm = tree.find_node_mut(VM).unwrap();
        // One or two are there.
        for index in 0..MAX_FUNCTIONS {
            let mut child = DeviceTreeNode::new(format!("function-{}", 3 + index)).unwrap();
            let address = format!("00:{:02x}.{}", 3 + index / 8, index % 8);
            child.add_property(
                DeviceTreeProperty::new("portcullis,address", address.as_str()).unwrap(),
            );
            vm.add_child(child);
        }
    });
    assert_eq!(
        Bundle::parse(&functions).unwrap_err().problem,
        Problem::TooMany { what: "functions of one VM", limit: MAX_FUNCTIONS }
    );
}

#[test]
fn what_is_left_out_has_its_default() {
    let blob = changed(|tree| {
        let vm = tree.find_node_mut(VM).unwrap();
        for property in ["on-exit", "stage1", "dma-at-boot", "on-crash-kexec", "reopen"] {
            vm.remove_property(&format!("portcullis,{property}")).unwrap();
        }
        let function = tree.find_node_mut("/configurations/vm-1/function-2").unwrap();
        function.remove_property("portcullis,reset").unwrap();
    });
    let bundle = Bundle::parse(&blob).unwrap();
    let vm = &bundle.vms()[0];
    assert_eq!(vm.on_exit, OnExit::AsAsked);
    assert_eq!(vm.stage1, Stage1::Default);
    assert_eq!(vm.dma_at_boot, DmaAtBoot::Stage2);
    assert_eq!(vm.on_crash_kexec, OnCrashKexec::Quiesce);
    assert_eq!(vm.reopen, Reopen::Device);
    assert_eq!(vm.functions[1].reset, Reset::Auto);
}

#[test]
fn a_signed_configuration_is_read() {
    let blob = changed(|tree| {
        let signature = DeviceTreeNode::new("signature-1").unwrap();
        tree.find_node_mut(VM).unwrap().add_child(signature);
    });
    assert_eq!(Bundle::parse(&blob).unwrap().vms(), pair());
}

#[test]
fn addresses_may_have_one_cell() {
    let blob = with(KERNEL_NODE, "load", 0x4020_0000_u32);
    assert_eq!(Bundle::parse(&blob).unwrap().vms(), pair());
}

#[test]
fn words_are_read_as_they_are_written() {
    for word in [OnExit::AsAsked, OnExit::Restart, OnExit::Off] {
        assert_eq!(word.to_string().parse(), Ok(word));
        let json = format!("\"{word}\"");
        assert_eq!(serde_json::from_str::<OnExit>(&json).unwrap(), word);
    }
    let error = serde_json::from_str::<Reset>("\"flr\"").unwrap_err().to_string();
    assert!(error.starts_with("expected \"auto\" or \"bus-master\""), "{error}");
}

fn survive(blob: &[u8]) {
    match Bundle::parse(blob) {
        Ok(bundle) => {
            check::check(bundle.vms()).unwrap();
            let _ = bundle.verify();
        }
        Err(error) => assert!(error.to_string().starts_with("bundle, ")),
    }
}

proptest! {
    #![proptest_config(crate::cases(300))]

    #[test]
    fn damaged_blobs_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cells in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![0..10_u32, Just(u32::MAX), any::<u32>()]),
            0..3,
        ),
        length in prop::option::of(any::<prop::sample::Index>()),
    ) {
        // Small images: what is interesting is the structure.
        let vms = [VmConfig {
            kernel: Image { data: &KERNEL[..8], load: guest_map::KERNEL },
            entry: guest_map::KERNEL,
            initrd: None,
            device_tree: Image { data: &TREE[..8], load: guest_map::DEVICE_TREE },
            ..linux()
        }];
        let mut blob = write(&vms).unwrap();
        for (at, byte) in damage {
            let at = at.index(blob.len());
            blob[at] = byte;
        }
        for (at, cell) in cells {
            let at = at.index(blob.len() / 4) * 4;
            blob[at..][..4].copy_from_slice(&cell.to_be_bytes());
        }
        if let Some(length) = length {
            blob.truncate(length.index(blob.len()));
        }
        survive(&blob);
    }
}
