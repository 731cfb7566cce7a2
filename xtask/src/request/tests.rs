use clap::Parser as _;

use super::*;
use crate::cli::{Cli, Command as Subcommand};
use crate::exit::Exit;

pub(crate) fn request(arguments: &[&str]) -> Result<Request> {
    let cli = Cli::try_parse_from(["xtask", "qemu"].iter().chain(arguments))?;
    let Subcommand::Qemu(args) = cli.command else { panic!("not `qemu`") };
    Request::new(&args)
}

fn refusal(arguments: &[&str]) -> String {
    let error = request(arguments).unwrap_err();
    assert_eq!(Exit::of(&error), Exit::BadInput, "{error:#}");
    format!("{error:#}")
}

/// A flat kernel, which lives as long as the folder.
fn kernel() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    std::fs::write(&path, [0x1f, 0x20, 0x03, 0xd5]).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn without_options_the_demonstration_runs() {
    let request = request(&[]).unwrap();
    assert!(request.demonstration);
    let names: Vec<&str> = request.vms.iter().map(|vm| vm.name.value.as_str()).collect();
    assert_eq!(names, ["victim", "rogue"]);
    assert_eq!(request.vms[1].memory.value, 16 << 20);
    assert_eq!((request.cpu.as_str(), request.its, request.version), (DEFAULT_CPU, true, None));
    assert!(request.timeout.is_some());
}

#[test]
fn a_kernel_replaces_the_demonstration_by_guest0() {
    let (_folder, kernel) = kernel();
    let request = request(&[
        "--kernel", &kernel, "--append", "-x", "--smp", "3", "--memory", "64M", "--expect", "hi",
    ])
    .unwrap();
    assert_eq!(request.vms.len(), 1);
    let vm = &request.vms[0];
    assert_eq!(
        (vm.name.value.as_str(), &vm.cpus.value, vm.memory.value),
        ("guest0", &Cpus::Count(3), 64 << 20)
    );
    assert_eq!(vm.expect, ["hi"]);
    assert!(matches!(&vm.content, Content::Kernel { append, .. } if append == "-x"));
    assert_eq!(request.timeout, None);
}

#[test]
fn options_for_guest0_are_for_the_one_that_boots() {
    let expects = |arguments: &[&str]| {
        let request = request(&[&["--expect", "hi", "--smp", "3"], arguments].concat()).unwrap();
        let expects = |vm: &&Vm| vm.expect == ["hi"] && vm.cpus.value == Cpus::Count(3);
        request.vms.iter().filter(expects).map(|vm| vm.name.value.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(expects(&[]), ["victim"]);
    assert_eq!(expects(&["--native"]), ["rogue"]);
}

#[test]
fn a_scenario_brings_what_it_needs() {
    let request = request(&["--scenario", "e1000-kill"]).unwrap();
    assert!(!request.demonstration && request.network && request.timeout.is_some());
    assert_eq!(request.vms.len(), 1);
    assert!(matches!(request.actions[0].when, When::Said { .. }));
    let options =
        ["--scenario", "e1000-kill", "--smp", "2", "--memory", "32M", "--expect", "@waits"];
    let vm = &self::request(&options).unwrap().vms[0];
    assert_eq!((&vm.cpus.value, vm.memory.value), (&Cpus::Count(2), 32 << 20));
    assert!(vm.expect.contains(&"@waits".to_owned()));
    assert!(refusal(&["--scenario", "nvme-kexec", "--smp", "99"]).starts_with("--smp 99: "));
    assert!(refusal(&["--scenario", "nvme"]).contains("es1370, ohci"));
    assert!(refusal(&["--scenario", "nvme-kill", "--native"]).contains("remove --native"));
}

#[test]
fn an_older_machine_is_taken_where_the_stage_is_a_choice() {
    let any = request(&["--smmu-stage", "2"]).unwrap();
    assert_eq!((any.version, any.stages), (None, Some(Stages::Two)));
    let old = request(&["--smmu-stage", "2", "--machine-version", "8.2"]).unwrap();
    assert_eq!((old.version, old.stages), (Some(MachineVersion(8, 2)), Some(Stages::Two)));
    assert_eq!(request(&["--smmu-stage", "nested"]).unwrap().version, None);
}

#[test]
fn actions_come_in_the_order_of_time() {
    let request = request(&["--at", "2.5:kill:rogue", "--at", "1:off:victim"]).unwrap();
    let actions: Vec<String> =
        request.actions.iter().map(|action| action.command.to_string()).collect();
    assert_eq!(actions, ["off victim", "kill rogue"]);
    assert_eq!(request.actions[1].when, When::After(Duration::from_millis(2500)));
}

#[test]
fn every_refusal_names_its_option() {
    let (folder, kernel) = kernel();
    let large = folder.path().join("large");
    std::fs::write(&large, vec![0; 3 << 20]).unwrap();
    let large = large.to_str().unwrap().to_owned();
    let nested = folder.path().join("nested.toml");
    let manifest = "name = \"a\"\nbuiltin = \"victim\"\n[smmu]\nstage1 = \"nested\"\n";
    std::fs::write(&nested, manifest).unwrap();
    let nested = nested.to_str().unwrap().to_owned();
    for (arguments, expected) in [
        (&["--scenario", "x"][..], "--scenario x: there is no such one"),
        (&["--kernel", "/nonexistent"], "--kernel /nonexistent: "),
        (&["--kernel", &kernel, "--initrd", "/nonexistent"], "--initrd /nonexistent: "),
        (&["--append", "x"], "--append: it needs --kernel or --linux"),
        (&["--vm", "/nonexistent.toml"], "/nonexistent.toml: "),
        (&["--smp", "0"], "--smp 0: a VM has 1 to 16 CPUs"),
        (&["--smp", "17"], "--smp 17: a VM has 1 to 16 CPUs"),
        (&["--memory", "12"], "--memory: \"12\" is not a size"),
        (&["--expect", ""], "--expect: an empty text"),
        (&["--expect", "a\nb"], "--expect: no line of a console has a line end in it"),
        (&["--timeout", "0"], "--timeout 0: "),
        (&["--kernel", &large, "--memory", "4M"], "--memory: 4M is too little for VM guest0"),
        (&["--its", "off"], "--its off: the built-in victim needs an edu"),
        (&["--machine-version", "x"], "--machine-version x: not a machine version"),
        (
            &["--smmu-stage", "2", "--machine-version", "9.2"],
            "--smmu-stage: the SMMU of machine version 9.2 always has both stages",
        ),
        (
            &["--device", "virtio-net-pci"],
            "--device virtio-net-pci: virtio-net-pci without iommu_platform=on",
        ),
        (
            &["--device", "virtio-blk-device,drive=d"],
            "--device virtio-blk-device,drive=d: virtio-blk-device sits on",
        ),
        (
            &["--device", "loader,file=x,addr=0x48000000"],
            "--device loader,file=x,addr=0x48000000: loader writes to memory before EL2",
        ),
        (&["--device", "edu,addr=0"], "--device edu,addr=0: addr=0 is not a free slot"),
        (
            &["--device", "edu,addr=5", "--device", "nvme,addr=5"],
            "--device nvme,addr=5: addr=5.0 is taken by",
        ),
        (&["--device", "edu,bus=x,addr=1"], "--device edu,bus=x,addr=1: there is no PCI bus \"x\""),
        (
            &["--device", "edu,addr=6"],
            "--device edu,addr=6: 00:02.0 of VM rogue and 00:06.0 of VM victim share",
        ),
        (&["--drive", "file=x"], "--drive file=x: without if=none"),
        (&["--qemu-arg", "-device"], "--qemu-arg -device: use --device"),
        (&["--drive", "if=pflash,file=x"], "--drive if=pflash,file=x: firmware would run"),
        (&["--qemu-arg=-bios x"], "--qemu-arg -bios: firmware would run"),
        (&["--qemu-arg=-virtfs x"], "--qemu-arg -virtfs: it adds a device whose owner"),
        (&["--qemu-arg=-action shutdown=pause"], "--qemu-arg -action: the run goes on until"),
        (&["--qemu-arg", "-daemonize"], "--qemu-arg -daemonize: the run goes on until"),
        (&["--cpu", "cortex-a15"], "--cpu cortex-a15: it has no 64-bit state"),
        (
            &["--vm", &nested, "--smmu-stage", "2"],
            &format!("{nested}:4: smmu.stage1: this machine's SMMU has one stage"),
        ),
        (&["--qemu-arg=-trace x"], "--qemu-arg -trace: the SMMU trace is one"),
        (&["--at", "1:kill"], "--at 1:kill: three parts are needed"),
        (&["--at", "x:kill:rogue"], "--at x:kill:rogue: the time is not a number"),
        (&["--at=-1:kill:rogue"], "--at -1:kill:rogue: the time is not a number"),
        (&["--at", "1:stop:rogue"], "--at 1:stop:rogue: there is no such action"),
        (&["--at", "1:kill:el2"], "--at 1:kill:el2: the name el2 belongs to the hypervisor"),
        (
            &["--at", "1:kill:nobody"],
            "--at 1:kill:nobody: there is no VM nobody: there are victim, rogue",
        ),
        (
            &["--at", "1:restart:rogue"],
            "--at 1:restart:rogue: edu 00:02.0 of VM rogue has no reset",
        ),
        (
            &["--native", "--at", "1:kill:victim"],
            "--at: without the hypervisor there is no operator",
        ),
        (&["--native", "--log-level", "debug"], "--log-level: without the hypervisor nobody logs"),
        (&["--qemu", "/nonexistent/qemu"], "--qemu /nonexistent/qemu: there is no such program"),
        (&["--mirror", "nonsense"], "--mirror \"nonsense\" is not a URI"),
    ] {
        let refusal = refusal(arguments);
        assert!(
            refusal.starts_with(expected),
            "{arguments:?}\n  gives    {refusal}\n  expected {expected}"
        );
    }
}

#[test]
fn what_passes_through_is_left_alone() {
    let request = request(&[
        "--qemu-arg",
        "-object throttle-group,id=t",
        "--qemu-arg",
        "x y",
        "--netdev",
        "user,id=n",
    ]);
    let request = request.unwrap();
    assert_eq!(request.extra, ["-object", "throttle-group,id=t", "x y"]);
    assert_eq!(request.backends, [("-netdev", "user,id=n".to_owned())]);
}

#[test]
fn clap_refuses_what_does_not_go_together() {
    for arguments in
        [&["--linux", "--kernel", "x"][..], &["--initrd", "x"], &["--its", "maybe"], &["extra"]]
    {
        assert!(
            Cli::try_parse_from(["xtask", "qemu"].iter().chain(arguments)).is_err(),
            "{arguments:?}"
        );
    }
}
