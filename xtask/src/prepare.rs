//! Everything a run needs, made ready: QEMU, images, the bundle, and what the host knows before anything starts.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use smmu::addr::StreamId;

use crate::builtin;
use crate::bundle::{self, Payload};
use crate::catalog::{Catalog, MachineVersion, NESTED_SINCE, NEWEST_WITH_CHOICE};
use crate::device::DeviceArg;
use crate::exit::bad_input;
use crate::frames::Wire;
use crate::image::{self, Package};
use crate::kernel::Kernel;
use crate::linux;
use crate::machine::{Boot, IMAGE_BASE, Machine, RAM_BASE, Stages, Wires};
use crate::plan::{self, Plan};
use crate::request::Request;
use crate::scratch::{self, Scratch};
use crate::setup::{self, Qemu, Version};
use crate::size::MIB;
use crate::slots::Placed;
use crate::vm::{Content, LINEAGE, ROGUE, Vm};

/// What EL2 keeps for its tables at the top of RAM.
const HYPERVISOR_TABLES: u64 = 8 * MIB;
/// The first QEMU whose SMMU has both stages.
const NESTED_QEMU: (u32, u32) = (9, 1);
/// The first QEMU whose NVMe device does without shadow doorbells where it is told to.
const SHADOW_DOORBELLS_OPTIONAL: Version = Version(10, 0, 0);

/// A run that can start.
#[derive(Debug)]
pub struct Prepared {
    /// The program.
    pub qemu: Qemu,
    /// Its machine.
    pub machine: Machine,
    /// Who owns what on it.
    pub plan: Plan,
    /// What the verdict has to know of it.
    pub facts: evidence::Machine,
    /// The disks of the Linux guest, which are judged after the run.
    pub disks: Vec<linux::Disk>,
    /// Bytes of the `smmu` crate's code in the hypervisor.
    pub smmu_text: Option<u64>,
    /// Where everything is that the run needs or leaves, until this is dropped.
    pub folder: Scratch,
}

/// What a VM boots, and what the verdict has to know of it.
struct Loaded {
    payload: Payload,
    guest: evidence::machine::Guest,
    disks: Vec<linux::Disk>,
    expect: Vec<String>,
}

/// Prepares `request`: fetches what is missing, builds what has changed.
///
/// # Errors
///
/// A missing prerequisite, bad input that only QEMU could tell, or an image that does not build.
pub fn prepare(request: &Request) -> Result<Prepared> {
    let (qemu, catalog) = match &request.qemu {
        Some(program) => named_qemu(program)?,
        None => {
            let qemu = setup::ensure_qemu(&request.setup)?;
            let catalog = Catalog::ask(&qemu)?;
            (qemu, catalog)
        }
    };
    let (version, stages) = smmu(request.version, request.stages, qemu.version)?;
    if request.stages.is_none() && (qemu.version.0, qemu.version.1) < NESTED_QEMU {
        note!("The SMMU of QEMU {} has one stage: this run has stage 2 only.", qemu.version);
    }
    check_choices(request, &catalog)?;
    let nested = matches!(stages, None | Some(Stages::Nested));
    let plan = plan::plan(request.vms.clone(), &request.devices, &catalog)?;
    request.check_stage1(nested)?;
    let folder = Scratch::new()?;
    let target = setup::ensure_rust_target(&request.setup)?;

    let booted: Vec<usize> = request.booted().collect();
    let is_built_in =
        |&index: &usize| matches!(plan.vms[index].vm.content, Content::BuiltIn { .. });
    let guest_image = match booted.iter().any(is_built_in) {
        true => Some(image::build(Package::Guest, &target, request.setup.quiet)?),
        false => None,
    };
    let guest_image = guest_image
        .map(|image| std::fs::read(image.flat))
        .transpose()
        .context("reading the guest")?;

    let guests_memory = plan.vms.iter().map(|owner| owner.vm.memory.value).sum();
    let mut loaded = Vec::new();
    for &index in &booted {
        let one = load(request, &plan, index, guest_image.as_deref(), folder.path(), |bundle| {
            Machine::memory_for(guests_memory, bundle)
        })?;
        one.payload.check_fits(&plan.vms[index].vm)?;
        loaded.push(one);
    }

    let bundle_size = loaded.iter().map(|one| payload_size(&one.payload)).sum();
    let memory = Machine::memory_for(guests_memory, bundle_size);
    folder.check_room(memory + bundle_size)?;
    let (boot, hypervisor) = if request.native {
        (native_boot(&loaded, folder.path())?, None)
    } else {
        let hypervisor = image::build(Package::Hypervisor, &target, request.setup.quiet)?;
        let payloads: Vec<Payload> = loaded.iter().map(|one| one.payload.clone()).collect();
        let bundle = scratch::write(
            folder.path(),
            "bundle.fit",
            &bundle::write(&plan.vms, &payloads, nested)?,
        )?;
        let append =
            request.log_level.map(|level| format!("log={}", level.name())).unwrap_or_default();
        (Boot { kernel: hypervisor.flat.clone(), initrd: Some(bundle), append }, Some(hypervisor))
    };

    let facts = facts(request, &plan, &booted, &loaded, memory, hypervisor.as_ref());
    let disks: Vec<linux::Disk> = loaded.into_iter().flat_map(|one| one.disks).collect();
    let machine = Machine {
        version,
        stages,
        cpu: request.cpu.clone(),
        cpus: plan.cpus,
        memory,
        memory_file: folder.path().join("ram"),
        its: request.its,
        icount: request.icount,
        gdb: request.gdb,
        devices: devices(&plan, &disks, qemu.version),
        backends: backends(request, &disks),
        extra: request.extra.clone(),
        boot,
        wires: Wires {
            report: (!request.native).then(|| folder.path().join("report")),
            network: request.network.then(|| Wire::in_folder(folder.path())),
        },
    };
    Ok(Prepared {
        qemu,
        machine,
        plan,
        facts,
        disks,
        smmu_text: hypervisor.map(|image| image.smmu_text),
        folder,
    })
}

/// The QEMU that the user names, and what it has.
fn named_qemu(program: &Path) -> Result<(Qemu, Catalog)> {
    let refuse = |why: String| {
        bad_input(format!(
            "--qemu {}: {why}: name a qemu-system-aarch64 of release {} or later",
            program.display(),
            setup::OLDEST_QEMU
        ))
    };
    let qemu = setup::named_qemu(program).map_err(refuse)?;
    let catalog = Catalog::ask(&qemu).map_err(|error| refuse(format!("{error:#}")))?;
    Ok((qemu, catalog))
}

/// The machine version to ask QEMU `release` for, if not its newest, and the SMMU's stages where they are a choice; `None`
/// where the machine always has both.
fn smmu(
    version: Option<MachineVersion>,
    stages: Option<Stages>,
    release: Version,
) -> Result<(Option<MachineVersion>, Option<Stages>)> {
    let newest = MachineVersion(release.0, release.1);
    let one_stage = matches!(stages, Some(Stages::One | Stages::Two));
    let version = version.or((one_stage && newest >= NESTED_SINCE).then_some(NEWEST_WITH_CHOICE));
    if version.unwrap_or(newest) >= NESTED_SINCE {
        return Ok((version, None));
    }
    let both = (release.0, release.1) >= NESTED_QEMU;
    match stages {
        Some(Stages::Nested) if !both => Err(bad_input(format!(
            "--smmu-stage nested: the SMMU of QEMU {release} has one stage: use --smmu-stage 2, or a QEMU from {}.{} on",
            NESTED_QEMU.0, NESTED_QEMU.1
        ))),
        Some(stages) => Ok((version, Some(stages))),
        None if both => Ok((version, Some(Stages::Nested))),
        None => Ok((version, Some(Stages::Two))),
    }
}

fn check_choices(request: &Request, catalog: &Catalog) -> Result<()> {
    if let Some(version) = request.version.filter(|version| !catalog.has_machine(*version)) {
        return Err(bad_input(format!(
            "--machine-version {version}: this QEMU has no virt-{version}: see the output of its -machine help"
        )));
    }
    let model = request.cpu.split(',').next().unwrap_or_default();
    if !catalog.has_cpu(model) {
        return Err(bad_input(format!(
            "--cpu {model}: this QEMU has no such model: see the output of its -cpu help"
        )));
    }
    Ok(())
}

/// Reads or makes what one VM boots. `memory_for` says how large the machine is for a bundle of so many bytes.
fn load(
    request: &Request,
    plan: &Plan,
    index: usize,
    guest_image: Option<&[u8]>,
    folder: &Path,
    memory_for: impl Fn(u64) -> u64,
) -> Result<Loaded> {
    let vm = &plan.vms[index].vm;
    let mut expect = vm.expect.clone();
    match &vm.content {
        Content::BuiltIn { role, append } => {
            let image = guest_image.ok_or_else(|| anyhow!("the guest image was not built"))?;
            let kernel =
                Kernel::parse(image).map_err(|error| anyhow!("the guest image: {error}"))?;
            let nonce = (role == ROGUE || role == LINEAGE).then(|| builtin::nonce(request.icount));
            let targets = builtin::targets(vm.memory.value, memory_for(0));
            let append = builtin::bootargs(role, append, nonce, &targets);
            Ok(Loaded {
                payload: Payload { kernel, initrd: None, append },
                guest: evidence::machine::Guest::BuiltIn { role: role.clone(), nonce },
                disks: Vec::new(),
                expect,
            })
        }
        Content::Kernel { kernel, initrd, append } => Ok(Loaded {
            payload: Payload {
                kernel: kernel.clone(),
                initrd: initrd.clone(),
                append: append.clone(),
            },
            guest: evidence::machine::Guest::Other,
            disks: Vec::new(),
            expect,
        }),
        Content::Linux { flavor, append, extra } => {
            let folder = folder.join(vm.name.value.as_str());
            let guest = linux::prepare(&folder, index, *flavor, extra, &request.setup)?;
            let image =
                std::fs::read(&guest.kernel).with_context(|| guest.kernel.display().to_string())?;
            let kernel = Kernel::parse(&image)
                .map_err(|error| anyhow!("{}: {error}", guest.kernel.display()))?;
            let initrd =
                std::fs::read(&guest.initrd).with_context(|| guest.initrd.display().to_string())?;
            let append = format!("{} {append}", guest.append).trim_end().to_owned();
            // Nobody knows how far a guest gets that is cut off.
            if !may_be_cut_off(request, vm.name.value.as_str(), index) {
                expect.extend(guest.expect);
            }
            Ok(Loaded {
                payload: Payload { kernel, initrd: Some(initrd), append },
                guest: evidence::machine::Guest::Linux { nonce: extra.nonce },
                disks: guest.disks,
                expect,
            })
        }
    }
}

fn payload_size(payload: &Payload) -> u64 {
    (payload.kernel.bytes.len() + payload.initrd.as_ref().map_or(0, Vec::len)) as u64
}

/// Natively QEMU is the boot loader.
fn native_boot(loaded: &[Loaded], folder: &Path) -> Result<Boot> {
    let payload = &loaded.first().ok_or_else(|| anyhow!("there is no guest to boot"))?.payload;
    let initrd = payload
        .initrd
        .as_ref()
        .map(|initrd| scratch::write(folder, "initrd", initrd))
        .transpose()?;
    Ok(Boot {
        kernel: scratch::write(folder, "kernel", &payload.kernel.bytes)?,
        initrd,
        append: payload.append.clone(),
    })
}

/// The devices in the order of QEMU's command line.
fn devices(plan: &Plan, disks: &[linux::Disk], qemu: Version) -> Vec<DeviceArg> {
    let mut others = plan.others.iter().peekable();
    let mut devices = Vec::new();
    for (index, placed) in plan.devices.iter().enumerate() {
        while let Some((_, other)) = others.next_if(|(before, _)| *before <= index) {
            devices.push(other.clone());
        }
        let mut device = placed.device.clone();
        let disk = disks.iter().find(|disk| device.get("drive") == Some(&disk.bus.node(disk.vm)));
        if let Some(disk) = disk {
            finish_disk(&mut device, disk, qemu);
        }
        devices.push(device);
    }
    devices.extend(others.map(|(_, other)| other.clone()));
    devices
}

/// Gives a disk's device the serial number that its guest knows it by, and an NVMe no shadow doorbells.
///
/// With them QEMU's `nvme_post_cqes` tells the guest's driver an event index that is one update old. If the driver moves
/// the head between that and its next look, neither rings, and an INTx line stays up with an empty queue until the next
/// command: at times for 100,000 interrupts, when Linux gives the line up ("nobody cared").
fn finish_disk(device: &mut DeviceArg, disk: &linux::Disk, qemu: Version) {
    device.set("serial", disk.serial);
    if disk.bus == linux::Bus::Nvme && qemu >= SHADOW_DOORBELLS_OPTIONAL {
        device.set("dbcs", "off");
    }
}

fn backends(request: &Request, disks: &[linux::Disk]) -> Vec<(&'static str, String)> {
    let most_requests = |vm: &Vm| match &vm.content {
        Content::Linux { extra, .. } => extra.most_requests,
        _ => None,
    };
    let slow = |index: usize| request.vms.get(index).and_then(most_requests);
    let groups = (0..request.vms.len()).filter_map(|index| {
        let most = slow(index)?;
        Some(("-object", format!("throttle-group,id=linux{index},x-iops-total={most}")))
    });
    let disk = |disk: &linux::Disk| {
        let file = crate::device::escape(&disk.image.to_string_lossy());
        let node = disk.bus.node(disk.vm);
        let raw = |at| format!("{at}driver=raw,{at}file.driver=file,{at}file.filename={file}");
        let argument = match slow(disk.vm) {
            None => format!("node-name={node},{}", raw("")),
            Some(_) => {
                let group = disk.vm;
                format!(
                    "driver=throttle,throttle-group=linux{group},node-name={node},{}",
                    raw("file.")
                )
            }
        };
        ("-blockdev", argument)
    };
    groups.chain(disks.iter().map(disk)).chain(request.backends.iter().cloned()).collect()
}

/// What is known of the run before it starts, for the verdict.
fn facts(
    request: &Request,
    plan: &Plan,
    booted: &[usize],
    loaded: &[Loaded],
    memory: u64,
    hypervisor: Option<&image::Image>,
) -> evidence::Machine {
    let mut regions = evidence::Machine::virt_regions();
    let mut hypervisors = |base, size| {
        regions.push(evidence::machine::Region { name: "hypervisor".into(), base, size });
    };
    if let Some(image) = hypervisor {
        hypervisors(IMAGE_BASE, image.memory.next_multiple_of(4096));
    }
    hypervisors(RAM_BASE + memory - HYPERVISOR_TABLES, HYPERVISOR_TABLES);

    let name = |index: usize| plan.vms[index].vm.name.value.to_string();
    let vms = booted.iter().zip(loaded).map(|(&index, one)| evidence::machine::Vm {
        name: name(index),
        guest: one.guest.clone(),
        expect: one.expect.clone(),
        may_be_cut_off: may_be_cut_off(request, &name(index), index),
    });
    // Natively everything is the one guest's.
    let owner =
        |placed: &Placed| if request.native { booted.first().copied() } else { placed.owner };
    // A built-in guest drives the first edu that it finds.
    let driven = |vm: usize| {
        let edus = plan
            .devices
            .iter()
            .filter(|placed| owner(placed) == Some(vm) && placed.device.driver == "edu");
        edus.map(|placed| placed.bdf).min()
    };
    let devices = plan.devices.iter().filter_map(|placed| {
        let owner = owner(placed)?;
        let disks = loaded.iter().flat_map(|one| &one.disks);
        let disk = disks
            .into_iter()
            .find(|disk| placed.device.get("drive") == Some(&disk.bus.node(disk.vm)));
        Some(evidence::machine::Device {
            sid: StreamId(placed.bdf.requester_id().into()),
            address: placed.bdf.to_string(),
            // On the root bus a function is where the guest sees it.
            guest_address: placed.bdf.to_string(),
            label: placed.device.driver.trim_end_matches("-pci").into(),
            vm: Some(name(owner)),
            disk: disk.map(|disk| disk.name.into()),
            driven: driven(owner) == Some(placed.bdf),
        })
    });
    evidence::Machine {
        native: request.native,
        ram: (RAM_BASE, memory),
        regions,
        vms: vms.collect(),
        devices: devices.collect(),
    }
}

/// Whether a VM may end without its last words: the operator ends it, or the end of guest 0 does. Only the
/// demonstration is made such that everybody comes to an end.
fn may_be_cut_off(request: &Request, name: &str, index: usize) -> bool {
    use platform::operator::Command::{Kill, Off, Report, Restart};
    let ended_by_operator = request.actions.iter().any(|action| match &action.command {
        Kill(vm) | Off(vm) | Restart(vm) => vm.as_str() == name,
        Report => false,
    });
    ended_by_operator || request.interactive || (index > 0 && !request.demonstration)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::catalog::Plug;
    use crate::vm::Said;

    const OLD: Version = Version(8, 2, 2);

    #[test]
    fn an_old_qemu_runs_stage_2_only() {
        assert_eq!(smmu(None, None, OLD).unwrap(), (None, Some(Stages::Two)));
        assert_eq!(smmu(None, Some(Stages::Two), OLD).unwrap(), (None, Some(Stages::Two)));
        let refused = smmu(None, Some(Stages::Nested), OLD).unwrap_err().to_string();
        assert!(refused.contains("QEMU 8.2.2 has one stage: use --smmu-stage 2"), "{refused}");
    }

    #[test]
    fn the_users_devices_stay_in_their_order() {
        let arguments = ["edu", "nvme-subsys,id=s", "nvme,subsys=s,id=n", "nvme-ns,bus=n"];
        let given = arguments
            .map(|text| plan::UserDevice { device: text.parse().unwrap(), origin: text.into() });
        let plugs = [("edu", Plug::Pci), ("nvme", Plug::Pci)];
        let elsewhere = ["nvme-subsys", "nvme-ns"].map(|name| (name, Plug::Elsewhere));
        let names = plugs.into_iter().chain(elsewhere).map(|(name, plug)| (name.into(), plug));
        let catalog =
            Catalog::Asked { devices: names.collect(), cpus: [].into(), machines: [].into() };
        let name = Said::new(platform::name::parse("a").unwrap(), "a");
        let content = Content::BuiltIn { role: ROGUE.into(), append: String::new() };
        let plan = plan::plan(vec![Vm::new(name, content)], &given, &catalog).unwrap();
        let devices = devices(&plan, &[], Version(10, 0, 2));
        let drivers: Vec<&str> = devices.iter().map(|device| &*device.driver).collect();
        assert_eq!(drivers, ["edu", "edu", "nvme-subsys", "nvme", "nvme-ns"]);
    }

    #[test]
    fn slow_disks_share_what_they_get_done() {
        let mut request = crate::request::tests::request(&["--linux"]).unwrap();
        let disk = |bus| linux::Disk {
            name: "disk",
            bus,
            vm: 0,
            serial: "number",
            image: "/a,b".into(),
            half: 0,
            digests: [[0; 32]; 2],
        };
        let disks = [disk(linux::Bus::Nvme), disk(linux::Bus::VirtioBlk)];
        let usual = "node-name=linux0-nvme,driver=raw,file.driver=file,file.filename=/a,,b";
        assert_eq!(backends(&request, &disks)[0], ("-blockdev", usual.to_owned()));
        let Content::Linux { extra, .. } = &mut request.vms[0].content else { panic!("no Linux") };
        extra.most_requests = Some(200);
        let slow = backends(&request, &disks);
        let group = "throttle-group,id=linux0,x-iops-total=200";
        assert_eq!((slow.len(), &slow[0]), (3, &("-object", group.to_owned())));
        let second = "driver=throttle,throttle-group=linux0,node-name=linux0-virtio,file.driver=raw,\
                      file.file.driver=file,file.file.filename=/a,,b";
        assert_eq!(slow[2].1, second);
    }

    #[test]
    fn an_nvme_has_no_shadow_doorbells_where_qemu_can_do_without() {
        let disk = |bus| linux::Disk {
            name: "disk",
            bus,
            vm: 0,
            serial: "number",
            image: PathBuf::new(),
            half: 0,
            digests: [[0; 32]; 2],
        };
        let finished = |bus, qemu| {
            let mut device = DeviceArg::new("driver", &[]);
            finish_disk(&mut device, &disk(bus), qemu);
            assert_eq!(device.get("serial"), Some("number"));
            device.get("dbcs").map(str::to_owned)
        };
        assert_eq!(finished(linux::Bus::Nvme, Version(10, 0, 2)).as_deref(), Some("off"));
        assert_eq!(finished(linux::Bus::Nvme, Version(9, 2, 0)), None);
        assert_eq!(finished(linux::Bus::VirtioBlk, Version(10, 0, 2)), None);
    }

    #[test]
    fn a_new_qemu_nests_unless_an_older_machine_is_told_not_to() {
        let newest = Version(10, 0, 2);
        assert_eq!(smmu(None, None, newest).unwrap(), (None, None));
        assert_eq!(
            smmu(None, Some(Stages::Two), newest).unwrap(),
            (Some(NEWEST_WITH_CHOICE), Some(Stages::Two))
        );
        let asked = Some(MachineVersion(9, 1));
        assert_eq!(smmu(asked, None, newest).unwrap(), (asked, Some(Stages::Nested)));
        // The release that can nest, but whose newest machine does so only if told.
        assert_eq!(smmu(None, None, Version(9, 1, 0)).unwrap(), (None, Some(Stages::Nested)));
    }
}
