use platform::report::Name;

use super::*;
use crate::kernel::{Format, Kernel};
use crate::linux::Extra;
use crate::setup::Flavor;
use crate::vm::{ROGUE, VICTIM};

fn catalog() -> Catalog {
    let plugs = [
        ("edu", Plug::Pci),
        ("nvme", Plug::Pci),
        ("virtio-blk-pci", Plug::Pci),
        ("pcie-root-port", Plug::Pci),
        ("pcie-pci-bridge", Plug::Pci),
        ("usb-kbd", Plug::Elsewhere),
    ];
    Catalog::Asked {
        devices: plugs.map(|(name, plug)| (name.to_owned(), plug)).into(),
        cpus: BTreeSet::new(),
        machines: BTreeSet::new(),
    }
}

fn vm(name: &str, content: Content) -> Vm {
    Vm::new(Said::new(Name::try_from(name).unwrap(), format!("{name}.toml:1: name")), content)
}

fn kernel(name: &str) -> Vm {
    let kernel = Kernel { format: Format::Flat, offset: 0, bytes: vec![0; 4], memory: 4 };
    vm(name, Content::Kernel { kernel, initrd: None, append: String::new() })
}

fn built_in(name: &str, role: &str) -> Vm {
    vm(name, Content::BuiltIn { role: role.into(), append: String::new() })
}

fn linux() -> Vm {
    let extra = Box::new(Extra::default());
    vm("linux", Content::Linux { flavor: Flavor::Cloud6_12, append: String::new(), extra })
}

fn claiming(mut vm: Vm, addresses: &[&str]) -> Vm {
    for address in addresses {
        let function = Function { address: address.parse().unwrap(), reset: Reset::Auto };
        vm.functions.push(Said::new(function, format!("{}.toml:9: pci[0].address", vm.name.value)));
    }
    vm
}

fn on(mut vm: Vm, cpus: Cpus) -> Vm {
    vm.cpus = Said::new(cpus, format!("{}.toml:2: cpus", vm.name.value));
    vm
}

fn devices(arguments: &[&str]) -> Vec<UserDevice> {
    arguments
        .iter()
        .map(|argument| UserDevice {
            device: argument.parse().unwrap(),
            origin: format!("--device {argument}"),
        })
        .collect()
}

fn planned(vms: Vec<Vm>, arguments: &[&str]) -> Plan {
    plan(vms, &devices(arguments), &catalog()).unwrap()
}

fn refusal(vms: Vec<Vm>, arguments: &[&str]) -> String {
    let error = plan(vms, &devices(arguments), &catalog()).unwrap_err();
    assert_eq!(crate::exit::Exit::of(&error), crate::exit::Exit::BadInput);
    error.to_string()
}

fn addresses(owner: &Owner) -> Vec<String> {
    owner.functions.iter().map(|function| function.address.to_string()).collect()
}

#[test]
fn the_demonstration_gets_two_edus() {
    let plan = planned(vec![built_in("victim", VICTIM), built_in("rogue", ROGUE)], &[]);
    assert_eq!(addresses(&plan.vms[0]), ["00:01.0"]);
    assert_eq!(addresses(&plan.vms[1]), ["00:02.0"]);
    assert_eq!(
        plan.devices.iter().map(|placed| placed.device.to_string()).collect::<Vec<_>>(),
        ["edu,dma_mask=0xffffffffffffffff,addr=1.0", "edu,dma_mask=0xffffffffffffffff,addr=2.0"]
    );
    assert_eq!(
        (&plan.vms[0].cpus[..], &plan.vms[1].cpus[..], plan.cpus),
        (&[0, 1][..], &[2, 3][..], 4)
    );
}

#[test]
fn the_linux_guest_gets_its_disks_and_a_claiming_built_in_its_edu() {
    let plan =
        planned(vec![linux(), claiming(built_in("rogue", ROGUE), &["00:05.0"])], &["nvme,drive=d"]);
    assert_eq!(addresses(&plan.vms[0]), ["00:03.0", "00:04.0", "00:02.0"]);
    assert_eq!(addresses(&plan.vms[1]), ["00:05.0"]);
    assert_eq!(plan.devices[0].device.to_string(), "nvme,drive=linux0-nvme,addr=3.0");
}

#[test]
fn a_users_device_is_guest_0s_unless_claimed() {
    let vms = || vec![kernel("a"), claiming(kernel("b"), &["00:06.0"])];
    let plan = planned(vms(), &["edu,addr=5", "edu,addr=6", "usb-kbd"]);
    assert_eq!(addresses(&plan.vms[0]), ["00:05.0"]);
    assert_eq!(addresses(&plan.vms[1]), ["00:06.0"]);
    assert_eq!(plan.others.len(), 1);
    // A device for the built-in guest at its address takes the place of its edu.
    let rogue = claiming(built_in("rogue", ROGUE), &["00:06.0"]);
    let plan = planned(vec![kernel("a"), rogue], &["edu,addr=6,dma_mask=0xff"]);
    assert_eq!(plan.devices.len(), 1);
    assert_eq!(addresses(&plan.vms[1]), ["00:06.0"]);
}

#[test]
fn cpus_asked_for_by_number_come_first() {
    let plan = planned(vec![kernel("a"), on(kernel("b"), Cpus::These(vec![3, 1]))], &[]);
    assert_eq!(
        (&plan.vms[0].cpus[..], &plan.vms[1].cpus[..], plan.cpus),
        (&[0, 2][..], &[3, 1][..], 4)
    );
    let plan = planned(vec![on(kernel("a"), Cpus::These(vec![9]))], &[]);
    assert_eq!(plan.cpus, 10);
}

#[test]
fn what_is_owned_twice_is_refused_with_both_places() {
    assert_eq!(
        refusal(vec![kernel("a"), kernel("a")], &[]),
        "a.toml:1: name: the name a is taken by the VM of a.toml:1: name: choose another one"
    );
    let cpu = vec![on(kernel("a"), Cpus::These(vec![1])), on(kernel("b"), Cpus::These(vec![0, 1]))];
    assert_eq!(
        refusal(cpu, &[]),
        "b.toml:2: cpus: CPU 1 belongs to VM a already (a.toml:2: cpus): give each CPU to one VM"
    );
    let function = vec![claiming(kernel("a"), &["00:05.0"]), claiming(kernel("b"), &["00:05.0"])];
    assert_eq!(
        refusal(function, &["edu,addr=5"]),
        "b.toml:9: pci[0].address: 00:05.0 belongs to VM a already (a.toml:9: pci[0].address): give each function \
         to one VM"
    );
    let line = vec![kernel("a"), claiming(kernel("b"), &["00:05.0"])];
    assert!(refusal(line, &["edu,addr=1", "edu,addr=5"]).starts_with(
        "b.toml:9: pci[0].address: 00:01.0 of VM a and 00:05.0 of VM b share an interrupt line"
    ),);
}

#[test]
fn functions_that_are_not_apart_stay_together() {
    let split = || vec![kernel("a"), claiming(kernel("b"), &["00:05.1"])];
    let two = ["nvme,addr=5,multifunction=on", "iommu-testdev,addr=5.1"];
    let error = plan(split(), &devices(&two), &Catalog::Unasked).unwrap_err().to_string();
    assert!(
        error.contains("00:05.0 of VM a and 00:05.1 of VM b are functions of one device"),
        "{error}"
    );
    let behind = ["pcie-pci-bridge,id=p,addr=6", "edu,bus=p,addr=1", "edu,bus=p,addr=2"];
    let error = refusal(vec![kernel("a"), claiming(kernel("b"), &["01:02.0"])], &behind);
    assert!(error.contains("are behind one conventional bridge"), "{error}");
}

#[test]
fn claims_need_a_device() {
    let error = refusal(vec![claiming(kernel("a"), &["00:07.0"])], &[]);
    assert!(
        error.starts_with("a.toml:9: pci[0].address: 00:07.0 has no device on this machine"),
        "{error}"
    );
    let error = refusal(vec![claiming(kernel("a"), &["00:06.0"])], &["pcie-root-port,id=p,addr=6"]);
    assert!(error.contains("00:06.0 is a bridge"), "{error}");
    let error = refusal(vec![linux(), claiming(kernel("a"), &["00:03.0"])], &[]);
    assert!(error.contains("00:03.0 is the nvme of the Linux guest"), "{error}");
    // Before QEMU says what its devices are, a device without an address may be anything.
    assert!(
        plan(vec![claiming(kernel("a"), &["00:01.0"])], &devices(&["x"]), &Catalog::Unasked)
            .is_ok()
    );
}

#[test]
fn too_much_is_refused() {
    let error = refusal((0..9).map(|index| kernel(&format!("v{index}"))).collect(), &[]);
    assert!(error.starts_with("v8.toml:1: name: there is room for 8 VMs"), "{error}");
    let many = vec![on(kernel("a"), Cpus::Count(16)), on(kernel("b"), Cpus::Count(1))];
    let error = refusal(many, &[]);
    assert!(error.starts_with("b.toml:2: cpus: 1 CPUs are wanted and only 0"), "{error}");
    let many = (0..=MAX_FUNCTIONS).map(|i| format!("edu,addr={:x}.{}", 1 + i / 8, i % 8));
    let many: Vec<String> = many.collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let error = refusal(vec![kernel("a")], &many);
    assert!(
        error.starts_with("--device edu,addr=9.0: there is room for 64 functions per VM"),
        "{error}"
    );
}

#[test]
fn devices_that_nothing_confines_or_nobody_knows_are_refused() {
    let error = refusal(vec![kernel("a")], &["virtio-blk-pci,drive=d"]);
    assert!(error.contains("add iommu_platform=on"), "{error}");
    let error = refusal(vec![kernel("a")], &["no-such-device"]);
    assert!(error.starts_with("--device no-such-device: QEMU has no device"), "{error}");
}

#[test]
fn a_restart_needs_a_reset() {
    let restarting = |reset| {
        let mut vm = claiming(kernel("a"), &["00:05.0"]);
        vm.functions[0].value.reset = reset;
        vm.on_exit = Said::new(OnExit::Restart, "a.toml:5: on-exit");
        vec![vm]
    };
    let error = refusal(restarting(Reset::Auto), &["edu,addr=5"]);
    assert!(error.starts_with("a.toml:5: on-exit: edu 00:05.0 of VM a has no reset"), "{error}");
    planned(restarting(Reset::BusMaster), &["edu,addr=5"]);
    planned(restarting(Reset::Auto), &["nvme,addr=5"]);
}
