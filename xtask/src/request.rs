//! What `cargo xtask qemu` was asked for: the command line, checked as far as that needs neither QEMU nor network.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser as _, ValueEnum as _};
use platform::bundle::{MAX_CPUS, Stage1};
use platform::operator::Command;
use platform::report::Name;

use crate::bundle::Payload;
use crate::catalog::{Catalog, MachineVersion, NESTED_SINCE, NEWEST_WITH_CHOICE};
use crate::cli::{Cli, Command as Subcommand, LogLevel, QemuArgs, SmmuStage, Switch};
use crate::device::{DeviceArg, split_options};
use crate::exit::bad_input;
use crate::kernel::Kernel;
use crate::linux::Extra;
use crate::machine::{DEFAULT_CPU, Stages};
use crate::manifest;
use crate::plan::{self, UserDevice};
use crate::scenario::{Parts, Scenario};
use crate::setup::{self, Flavor};
use crate::silence;
use crate::size::{self, MIB};
use crate::vm::{Content, Cpus, ROGUE, Said, VICTIM, Vm, check_expected};

/// The memory of each VM of the demonstration.
const DEMONSTRATION_MEMORY: u64 = 16 * MIB;
/// How long the demonstration may take before it is given up.
const DEMONSTRATION_TIMEOUT: Duration = Duration::from_secs(300);

/// A run that was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The VMs, guest 0 first.
    pub vms: Vec<Vm>,
    /// Whether this is the built-in demonstration.
    pub demonstration: bool,
    /// Whether the guest runs on the bare machine.
    pub native: bool,
    /// The QEMU to use.
    pub qemu: Option<PathBuf>,
    /// The version of QEMU's machine.
    pub version: Option<MachineVersion>,
    /// The SMMU's stages, if they were asked for.
    pub stages: Option<Stages>,
    /// The CPU model.
    pub cpu: String,
    /// Whether there is an interrupt translation service.
    pub its: bool,
    /// Whether virtual time follows the instruction count.
    pub icount: bool,
    /// Whether QEMU waits for a debugger.
    pub gdb: bool,
    /// The user's devices.
    pub devices: Vec<UserDevice>,
    /// What is behind them.
    pub backends: Vec<(&'static str, String)>,
    /// Arguments for QEMU that nobody looks at.
    pub extra: Vec<String>,
    /// Operator actions, the earliest first.
    pub actions: Vec<Action>,
    /// Whether somebody sends frames to the machine's network card.
    pub network: bool,
    /// Whether the terminal gives operator commands.
    pub interactive: bool,
    /// EL2's log level.
    pub log_level: Option<LogLevel>,
    /// How long the run may take.
    pub timeout: Option<Duration>,
    /// The files that say what boots, by their options.
    pub inputs: Vec<(&'static str, PathBuf)>,
    /// Where the SMMU trace goes.
    pub trace: Option<PathBuf>,
    /// Where the report goes.
    pub report: Option<PathBuf>,
    /// Where the guests' consoles go.
    pub serial: Option<PathBuf>,
    /// How set-up works.
    pub setup: setup::Options,
    /// Nothing but errors is shown while the run goes on.
    pub quiet: bool,
    /// QEMU's processor time in which EL2 shows itself.
    pub patience: Duration,
    /// The options that make the machine another one than usual.
    pub machine_options: Vec<String>,
}

/// An operator action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// When to do it.
    pub when: When,
    /// What to do.
    pub command: Command,
    /// Who wants it, for messages.
    pub origin: String,
}

/// When an operator acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// So long after QEMU's start.
    After(Duration),
    /// As soon as a VM has said something.
    Said {
        /// The VM.
        vm: Name,
        /// What a line of its console contains.
        text: String,
    },
}

impl Action {
    /// How long after QEMU's start, if that is what decides.
    pub const fn delay(&self) -> Option<Duration> {
        match self.when {
            When::After(delay) => Some(delay),
            When::Said { .. } => None,
        }
    }
}

impl Request {
    /// Checks what a command line of `cargo xtask qemu` asks for, for a caller that tells of the run itself.
    ///
    /// # Errors
    ///
    /// As [`Request::new`]; or no such command line.
    pub fn quiet(arguments: &[&str]) -> Result<Self> {
        let line = ["xtask", "qemu"].iter().chain(arguments);
        let Subcommand::Qemu(args) = Cli::try_parse_from(line)?.command else { bail!("not a run") };
        let mut request = Self::new(&args)?;
        request.quiet = true;
        request.setup.quiet = true;
        Ok(request)
    }

    /// Checks what the command line asks for, and everything it names, as far as that needs no QEMU.
    ///
    /// # Errors
    ///
    /// Bad input, naming the option, or the manifest's line and key.
    pub fn new(args: &QemuArgs) -> Result<Self> {
        let scenario = args.scenario.as_deref().map(Scenario::find).transpose()?;
        if let Some(scenario) = scenario.as_ref().filter(|s| args.native && !s.way.is_native()) {
            return Err(bad_input(format!(
                "--scenario {}: without the hypervisor nothing follows that end: remove --native",
                scenario.name
            )));
        }
        let demonstration =
            !args.linux && args.kernel.is_none() && args.vms.is_empty() && args.scenario.is_none();
        let setup =
            setup::Options { mirror: args.source.mirror.clone(), ..setup::Options::default() };
        setup.validate().map_err(bad_input)?;
        let mut request = Self {
            vms: vms(args, demonstration)?,
            demonstration,
            native: args.native,
            qemu: args.qemu.clone(),
            version: machine_version(args)?,
            stages: args.smmu_stage.map(|stage| match stage {
                SmmuStage::Nested => Stages::Nested,
                SmmuStage::Two => Stages::Two,
                SmmuStage::One => Stages::One,
            }),
            cpu: args.cpu.clone().unwrap_or_else(|| DEFAULT_CPU.into()),
            its: args.its == Switch::On,
            icount: args.icount,
            gdb: args.gdb,
            devices: devices(&args.devices)?,
            backends: backends(args)?,
            extra: extra(&args.qemu_args)?,
            actions: actions(args)?,
            network: false,
            interactive: args.interactive,
            log_level: log_level(args)?,
            timeout: match args.timeout {
                Some(0) => {
                    return Err(bad_input(
                        "--timeout 0: nothing can run in no time: give at least 1",
                    ));
                }
                Some(seconds) => Some(Duration::from_secs(seconds)),
                None => ((demonstration || scenario.is_some()) && !args.gdb && !args.interactive)
                    .then_some(DEMONSTRATION_TIMEOUT),
            },
            inputs: inputs(args),
            trace: args.trace.clone(),
            report: args.report.clone(),
            serial: args.serial.clone(),
            setup,
            quiet: false,
            patience: silence::PATIENCE,
            machine_options: machine_options(args),
        };
        if let Some(scenario) = &scenario {
            request.add(scenario.parts());
        }
        // There is always one: something to boot, a manifest, or what a scenario adds.
        let first = request.booted().start;
        if let Some(first) = request.vms.get_mut(first) {
            override_first(first, args)?;
        }
        request.check_its()?;
        request.check_cpu()?;
        request.check_stage1(!matches!(request.stages, Some(Stages::One | Stages::Two)))?;
        request.check_kernels()?;
        request.check_qemu()?;
        request.check_plan()?;
        Ok(request)
    }

    /// The options by which the user asked for another machine than the usual one, if there are any.
    pub fn machine(&self) -> Option<String> {
        (!self.machine_options.is_empty()).then(|| self.machine_options.join(", "))
    }

    /// Which of the VMs boot. Natively one has the machine to itself: guest 0, or of the demonstration the one that attacks.
    pub fn booted(&self) -> Range<usize> {
        let all = 0..self.vms.len();
        match (self.native, self.demonstration) {
            (false, _) => all,
            (true, true) => all.end.saturating_sub(1)..all.end,
            (true, false) => 0..all.end.min(1),
        }
    }

    /// Adds what a scenario consists of.
    fn add(&mut self, parts: Parts) {
        let Parts { vms, devices, backends, extra, actions, network } = parts;
        self.vms.splice(0..0, vms);
        self.devices.extend(devices);
        self.backends.extend(backends);
        self.extra.extend(extra);
        self.actions.extend(actions);
        self.network |= network;
    }

    /// Plans with what is known of every QEMU, so that most mistakes show before one is fetched.
    fn check_plan(&self) -> Result<()> {
        let plan = plan::plan(self.vms.clone(), &self.devices, &Catalog::Unasked)?;
        for action in &self.actions {
            let (Command::Kill(name) | Command::Restart(name) | Command::Off(name)) =
                &action.command
            else {
                continue;
            };
            let origin = &action.origin;
            let Some(index) = self.vms.iter().position(|vm| vm.name.value == *name) else {
                let known: Vec<&str> = self.vms.iter().map(|vm| vm.name.value.as_str()).collect();
                return Err(bad_input(format!(
                    "{origin}: there is no VM {name}: there are {}",
                    known.join(", ")
                )));
            };
            if matches!(action.command, Command::Restart(_)) {
                plan.check_restart(index, origin)?;
            }
        }
        Ok(())
    }

    /// Refuses a VM that insists on a stage 1 if the SMMU cannot nest.
    ///
    /// # Errors
    ///
    /// Bad input, with the manifest's line.
    pub fn check_stage1(&self, nested: bool) -> Result<()> {
        let insists = |vm: &&Vm| vm.smmu.stage1.value == Stage1::Nested;
        match self.vms.iter().find(insists).filter(|_| !nested && !self.native) {
            None => Ok(()),
            Some(vm) => Err(bad_input(format!(
                "{}: this machine's SMMU has one stage: leave it out, or use an SMMU with both",
                vm.smmu.stage1.origin
            ))),
        }
    }

    /// EL2, and all that it starts, is 64-bit code.
    fn check_cpu(&self) -> Result<()> {
        const OF_32_BIT: [&str; 2] = ["cortex-a15", "cortex-a7"];
        let model = self.cpu.split(',').next().unwrap_or_default();
        if OF_32_BIT.contains(&model) {
            return Err(bad_input(format!(
                "--cpu {model}: it has no 64-bit state: use {DEFAULT_CPU} or any other that has"
            )));
        }
        Ok(())
    }

    /// QEMU builds no `edu` into a machine that has nothing to send messages to.
    fn check_its(&self) -> Result<()> {
        let built_in = self.vms.iter().find(|vm| matches!(vm.content, Content::BuiltIn { .. }));
        match built_in {
            Some(vm) if !self.its => Err(bad_input(format!(
                "--its off: the built-in {} needs an edu, which QEMU builds only where there is an ITS: use \
                 --linux or --kernel",
                vm.name.value
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that the kernels that are already here fit into their VMs.
    fn check_kernels(&self) -> Result<()> {
        for vm in &self.vms {
            if let Content::Kernel { kernel, initrd, append } = &vm.content {
                let payload = Payload {
                    kernel: kernel.clone(),
                    initrd: initrd.clone(),
                    append: append.clone(),
                };
                payload.check_fits(vm)?;
            }
        }
        Ok(())
    }

    /// Checks that a QEMU that was named is there.
    fn check_qemu(&self) -> Result<()> {
        if let Some(qemu) = &self.qemu
            && qemu.components().count() > 1
            && !qemu.is_file()
        {
            return Err(bad_input(format!("--qemu {}: there is no such program", qemu.display())));
        }
        Ok(())
    }
}

fn inputs(args: &QemuArgs) -> Vec<(&'static str, PathBuf)> {
    let vms = args.vms.iter().map(|path| ("--vm", path));
    let single = [("--kernel", &args.kernel), ("--initrd", &args.initrd)];
    let single = single.into_iter().filter_map(|(option, path)| Some((option, path.as_ref()?)));
    single.chain(vms).map(|(option, path)| (option, path.clone())).collect()
}

/// The options that make the machine another one than usual, as they were given.
fn machine_options(args: &QemuArgs) -> Vec<String> {
    let stage = args.smmu_stage.and_then(|stage| stage.to_possible_value());
    let its = (args.its == Switch::Off).then_some("off");
    let single = [
        ("--qemu", args.qemu.as_ref().map(|qemu| qemu.display().to_string())),
        ("--machine-version", args.machine_version.clone()),
        ("--smmu-stage", stage.map(|stage| stage.get_name().to_owned())),
        ("--cpu", args.cpu.clone()),
        ("--its", its.map(str::to_owned)),
    ];
    let single = single.into_iter().filter_map(|(option, value)| Some((option, value?)));
    let repeated = [("--device", &args.devices), ("--qemu-arg", &args.qemu_args)];
    let repeated = repeated
        .into_iter()
        .flat_map(|(option, values)| values.iter().map(move |value| (option, value.clone())));
    single.chain(repeated).map(|(option, value)| format!("{option} {value}")).collect()
}

fn vms(args: &QemuArgs, demonstration: bool) -> Result<Vec<Vm>> {
    let mut vms = Vec::new();
    if args.append.is_some() && !args.linux && args.kernel.is_none() {
        return Err(bad_input(
            "--append: it needs --kernel or --linux; a manifest has its own `append`",
        ));
    }
    let append = args.append.clone().unwrap_or_default();
    if args.linux {
        let content =
            Content::Linux { flavor: Flavor::Cloud6_1, append, extra: Box::new(Extra::default()) };
        vms.push(vm("linux", "--linux", content)?);
    } else if let Some(path) = &args.kernel {
        let kernel = read("--kernel", path)?;
        let kernel = Kernel::parse(&kernel)
            .map_err(|error| bad_input(format!("--kernel {}: {error}", path.display())))?;
        let initrd = args.initrd.as_ref().map(|path| read("--initrd", path)).transpose()?;
        vms.push(vm("guest0", "--kernel", Content::Kernel { kernel, initrd, append })?);
    } else if demonstration {
        for role in [VICTIM, ROGUE] {
            let name = platform::name::parse(role).map_err(|error| bad_input(error.to_string()))?;
            let memory = DEMONSTRATION_MEMORY;
            vms.push(Vm::built_in(name, role, "", memory, "the demonstration"));
        }
    }
    for path in &args.vms {
        vms.push(manifest::read(path)?);
    }
    Ok(vms)
}

/// What is said of guest 0 beside its manifest.
fn override_first(first: &mut Vm, args: &QemuArgs) -> Result<()> {
    if let Some(cpus) = args.smp {
        if cpus == 0 || cpus as usize > MAX_CPUS {
            return Err(bad_input(format!("--smp {cpus}: a VM has 1 to {MAX_CPUS} CPUs")));
        }
        first.cpus = Said::new(Cpus::Count(cpus), "--smp");
    }
    if let Some(text) = &args.memory {
        let bytes =
            size::parse_vm_memory(text).map_err(|error| bad_input(format!("--memory: {error}")))?;
        first.memory = Said::new(bytes, "--memory");
    }
    if let Some(text) = &args.expect {
        check_expected(text).map_err(|why| bad_input(format!("--expect: {why}")))?;
        first.expect.push(text.clone());
    }
    Ok(())
}

fn vm(name: &str, origin: &str, content: Content) -> Result<Vm> {
    let name =
        platform::name::parse(name).map_err(|error| bad_input(format!("{origin}: {error}")))?;
    Ok(Vm::new(Said::new(name, origin), content))
}

fn read(option: &str, path: &Path) -> Result<Vec<u8>> {
    let named = format!("{option} {}", path.display());
    let bytes = std::fs::read(path)
        .map_err(|error| bad_input(format!("{named}: {error}: name a readable file")))?;
    if bytes.is_empty() { Err(bad_input(format!("{named}: the file is empty"))) } else { Ok(bytes) }
}

fn machine_version(args: &QemuArgs) -> Result<Option<MachineVersion>> {
    let version: Option<MachineVersion> = match &args.machine_version {
        Some(text) => Some(
            text.parse()
                .map_err(|error| bad_input(format!("--machine-version {text}: {error}")))?,
        ),
        None => None,
    };
    match args.smmu_stage {
        Some(SmmuStage::One | SmmuStage::Two) => match version {
            Some(version) if version >= NESTED_SINCE => Err(bad_input(format!(
                "--smmu-stage: the SMMU of machine version {version} always has both stages: use \
                 --machine-version {NEWEST_WITH_CHOICE} or older"
            ))),
            // Without one, it depends on QEMU's release which is the newest with a choice.
            _ => Ok(version),
        },
        _ => Ok(version),
    }
}

fn devices(arguments: &[String]) -> Result<Vec<UserDevice>> {
    let device = |argument: &String| {
        let origin = format!("--device {argument}");
        let refuse = |error: String| bad_input(format!("{origin}: {error}"));
        let device: DeviceArg = argument
            .parse()
            .map_err(|error: crate::device::DeviceError| refuse(error.to_string()))?;
        device.check_confined().map_err(|error| refuse(error.to_string()))?;
        device.address().map_err(|error| refuse(error.to_string()))?;
        Ok(UserDevice { device, origin: origin.clone() })
    };
    arguments.iter().map(device).collect()
}

/// Why there is nothing in front of the kernel.
const NO_FIRMWARE: &str = "firmware would run in place of the kernel: use --kernel";

fn backends(args: &QemuArgs) -> Result<Vec<(&'static str, String)>> {
    for drive in &args.drives {
        let options = split_options(drive);
        let interface = options.iter().rev().find_map(|option| option.strip_prefix("if="));
        if interface == Some("pflash") {
            return Err(bad_input(format!("--drive {drive}: {NO_FIRMWARE}")));
        }
        if interface != Some("none") {
            return Err(bad_input(format!(
                "--drive {drive}: without if=none QEMU adds a device of its own, whose DMA passes no SMMU: say if=none \
                 and add the device with --device"
            )));
        }
    }
    let all =
        [("-blockdev", &args.blockdevs), ("-drive", &args.drives), ("-netdev", &args.netdevs)];
    let each = |(option, values): (&'static str, &Vec<String>)| {
        values.iter().map(|value| (option, value.clone())).collect::<Vec<_>>()
    };
    Ok(all.into_iter().flat_map(each).collect())
}

/// Checks the arguments that are passed through: what this program has to know of goes through options of its own.
fn extra(arguments: &[String]) -> Result<Vec<String>> {
    const OTHERS: &str = "it adds a device whose owner is not known: use --device";
    const STAYS: &str = "the run goes on until QEMU ends, and with it";
    const OURS: [(&str, &str); 42] = [
        ("action", STAYS),
        ("audio", "it may add a device whose owner is not known: use -audiodev and --device"),
        ("bios", NO_FIRMWARE),
        ("daemonize", STAYS),
        ("dtb", "EL2 reads the machine's own device tree: change the machine instead"),
        ("hdb", "it adds a device whose DMA passes no SMMU: use --drive and --device"),
        ("hdc", "it adds a device whose DMA passes no SMMU: use --drive and --device"),
        ("hdd", "it adds a device whose DMA passes no SMMU: use --drive and --device"),
        ("no-shutdown", STAYS),
        ("pflash", NO_FIRMWARE),
        ("readconfig", "what is in the file is not checked: give its options"),
        ("usbdevice", OTHERS),
        ("vga", OTHERS),
        ("virtfs", "it adds a device whose owner is not known: use -fsdev and --device"),
        ("append", "use --append"),
        ("blockdev", "use --blockdev"),
        ("cpu", "use --cpu"),
        ("device", "use --device"),
        ("drive", "use --drive"),
        ("gdb", "use --gdb"),
        ("initrd", "use --initrd"),
        ("kernel", "use --kernel"),
        ("m", "use --memory"),
        ("netdev", "use --netdev"),
        ("smp", "use --smp"),
        ("s", "use --gdb"),
        ("S", "use --gdb"),
        ("M", "use --machine-version, --smmu-stage or --its"),
        ("machine", "use --machine-version, --smmu-stage or --its"),
        ("cdrom", "it adds a device whose DMA passes no SMMU: use --drive and --device"),
        ("hda", "it adds a device whose DMA passes no SMMU: use --drive and --device"),
        ("net", "it adds a device whose owner is not known: use --netdev and --device"),
        ("nic", "it adds a device whose owner is not known: use --netdev and --device"),
        ("sd", "it adds a device whose DMA passes no SMMU: use --drive and --device"),
        ("usb", OTHERS),
        ("d", "its messages are part of the SMMU trace, one of the run's witnesses: use --trace"),
        ("D", "it takes the SMMU trace away: use --trace"),
        ("trace", "the SMMU trace is one of the run's witnesses: use --trace"),
        ("semihosting", "a guest could use it to reach this machine's files"),
        ("semihosting-config", "a guest could use it to reach this machine's files"),
        ("serial", "the serial lines are the consoles: use --serial"),
        ("nographic", "the serial lines are the consoles: use --serial"),
    ];
    let mut passed = Vec::new();
    for argument in arguments {
        // One option with its value is often given as one argument.
        let words = match argument.split_once(' ') {
            Some((option, value)) if option.starts_with('-') => vec![option, value.trim_start()],
            _ => vec![argument.as_str()],
        };
        for word in words {
            let name = word.strip_prefix('-').map(|name| name.strip_prefix('-').unwrap_or(name));
            if let Some((_, instead)) = OURS.iter().find(|(ours, _)| Some(*ours) == name) {
                return Err(bad_input(format!("--qemu-arg {word}: {instead}")));
            }
            passed.push(word.to_owned());
        }
    }
    Ok(passed)
}

fn log_level(args: &QemuArgs) -> Result<Option<LogLevel>> {
    if args.native && args.log_level.is_some() {
        return Err(bad_input(
            "--log-level: without the hypervisor nobody logs: remove --log-level or --native",
        ));
    }
    Ok(args.log_level)
}

fn actions(args: &QemuArgs) -> Result<Vec<Action>> {
    if args.native && !args.at.is_empty() {
        return Err(bad_input(
            "--at: without the hypervisor there is no operator: remove --at or --native",
        ));
    }
    let action = |text: &String| {
        let refuse =
            |what: &str| bad_input(format!("--at {text}: {what}: write SECS:kill|restart|off:VM"));
        let mut parts = text.splitn(3, ':');
        let (Some(seconds), Some(verb), Some(vm)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(refuse("three parts are needed"));
        };
        let plain = !seconds.is_empty()
            && seconds.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let after = seconds.parse().ok().filter(|_| plain);
        let after = after.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let name = platform::name::parse(vm).map_err(|error| refuse(&error.to_string()))?;
        let command = match verb {
            "kill" => Command::Kill(name),
            "restart" => Command::Restart(name),
            "off" => Command::Off(name),
            _ => return Err(refuse("there is no such action")),
        };
        let after = after.ok_or_else(|| refuse("the time is not a number of seconds"))?;
        Ok((after, command, format!("--at {text}")))
    };
    let mut actions = args.at.iter().map(action).collect::<Result<Vec<_>>>()?;
    actions.sort_by_key(|(after, ..)| *after);
    let action = |(after, command, origin)| Action { when: When::After(after), command, origin };
    Ok(actions.into_iter().map(action).collect())
}

#[cfg(test)]
pub(crate) mod tests;
