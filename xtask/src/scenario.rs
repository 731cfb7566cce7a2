//! Named demonstrations: a kernel goes and leaves devices behind that nobody has stopped.
//!
//! Each is a VM that runs the built-in `lineage`: a first kernel starts devices that do DMA by themselves and goes, a
//! second one owns all memory that was handed to it under canaries, and tells what became of them. A scenario is one
//! of five that have a name of their own, or any `SOURCE-WAY`: a device and a way to go.

use std::fmt::Write as _;

use anyhow::Result;
use platform::bundle::{Function, OnExit, Reset};
use platform::operator::Command;
use platform::pcie::Bdf;
use platform::report::Name;

use crate::device::DeviceArg;
use crate::exit::bad_input;
use crate::frames;
use crate::plan::UserDevice;
use crate::request::{Action, When};
use crate::size::MIB;
use crate::vm::{Content, Cpus, LINEAGE, Said, Vm};

/// The VM's memory, all of which one kernel hands to the next.
const MEMORY: u64 = 16 * MIB;
/// Where the `edu` is that keeps the generation's number, and that is a source itself.
const FIRST_SLOT: u8 = 1;
/// How slow the disks are, in requests a second: a read is in flight for that long.
const REQUESTS_A_SECOND: u32 = 2;

/// A device that does DMA by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `edu`: one DMA, 100 ms after the command.
    Edu,
    /// A sound card that records for ever.
    Es1370,
    /// A USB controller that counts frames in memory.
    Ohci,
    /// A network card that receives.
    E1000,
    /// A disk with reads in flight.
    VirtioBlk,
    /// Another one.
    Nvme,
}

/// How a kernel goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It switches bus mastering and its SMMU off, and starts the next kernel.
    Orderly,
    /// It switches its SMMU off, as Linux does, and starts the next kernel.
    Shutdown,
    /// It has its SMMU abort everything, and starts the next kernel.
    Abort,
    /// It starts the next kernel while its SMMU translates, and has told nobody.
    Crash,
    /// It has no driver of the SMMU, starts the next kernel, and has told nobody.
    Kexec,
    /// `SYSTEM_OFF`; its VM is one that starts again.
    Off,
    /// `SYSTEM_RESET`.
    Reset,
    /// The operator ends it and starts it again.
    Kill,
}

/// What a scenario is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// What `--scenario` calls it.
    pub name: String,
    /// The devices.
    pub sources: Vec<Source>,
    /// How the first kernel goes.
    pub way: Way,
}

/// What a request needs for a scenario.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The VMs.
    pub vms: Vec<Vm>,
    /// The devices.
    pub devices: Vec<UserDevice>,
    /// What is behind them.
    pub backends: Vec<(&'static str, String)>,
    /// Further arguments of QEMU's.
    pub extra: Vec<String>,
    /// What the operator does.
    pub actions: Vec<Action>,
    /// Whether there is a network.
    pub network: bool,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Edu, Self::Es1370, Self::Ohci, Self::E1000, Self::VirtioBlk, Self::Nvme];

    /// Its name, in scenarios and in the guest's bootargs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edu => "edu",
            Self::Es1370 => "es1370",
            Self::Ohci => "ohci",
            Self::E1000 => "e1000",
            Self::VirtioBlk => "virtio-blk",
            Self::Nvme => "nvme",
        }
    }

    /// The device, without its slot; the `edu` is on the machine anyway.
    fn device(self) -> Option<DeviceArg> {
        let device = match self {
            Self::Edu => return None,
            Self::Es1370 => DeviceArg::new("ES1370", &[("audiodev", "silence")]),
            Self::Ohci => DeviceArg::new("pci-ohci", &[]),
            Self::E1000 => DeviceArg::new("e1000", &[("netdev", frames::NETWORK), ("romfile", "")]),
            Self::VirtioBlk => DeviceArg::new(
                "virtio-blk-pci",
                &[("drive", "slow-virtio-blk"), ("iommu_platform", "on"), ("disable-legacy", "on")],
            ),
            Self::Nvme => {
                DeviceArg::new("nvme", &[("drive", "slow-nvme"), ("serial", "portcullis")])
            }
        };
        Some(device)
    }

    /// Whether QEMU's device has a reset that EL2 can ask for.
    const fn has_reset(self) -> bool {
        matches!(self, Self::VirtioBlk | Self::Nvme)
    }
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Orderly,
        Self::Shutdown,
        Self::Abort,
        Self::Crash,
        Self::Kexec,
        Self::Off,
        Self::Reset,
        Self::Kill,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Orderly => "orderly",
            Self::Shutdown => "shutdown",
            Self::Abort => "abort",
            Self::Crash => "crash",
            Self::Kexec => "kexec",
            Self::Off => "off",
            Self::Reset => "reset",
            Self::Kill => "kill",
        }
    }

    /// What the guest calls what it has to do itself.
    const fn bootarg(self) -> &'static str {
        match self {
            Self::Orderly => "orderly",
            Self::Shutdown => "shutdown",
            Self::Abort => "abort",
            Self::Crash | Self::Kexec => "jump",
            Self::Off => "off",
            Self::Reset => "reset",
            Self::Kill => "wait",
        }
    }

    /// Whether the bare machine has it, and a successor after it.
    pub const fn is_native(self) -> bool {
        !matches!(self, Self::Off | Self::Kill)
    }

    /// Whether the first kernel drives the SMMU. Its successor never does: it may be one that knows of none.
    const fn drives_smmu(self) -> bool {
        !matches!(self, Self::Kexec | Self::Off | Self::Kill)
    }
}

impl Scenario {
    /// Those with a name of their own: the points that were open when Linux's SMMU drivers were to lose their shutdown.
    pub const NAMED: [(&str, &str); 5] = [
        (
            "shutdown-bypass",
            "shutdown leaves the SMMU in bypass, and late DMA arrives wherever its address is untranslated",
        ),
        ("no-hook", "drivers without a shutdown hook leave six devices running"),
        ("unaware-successor", "the next system knows no SMMU, and wants its disk all the same"),
        ("reused-tables", "the SMMU's tables are memory that somebody else has begun to use"),
        ("named-culprits", "aborting hides which devices were not stopped"),
    ];

    fn named(name: &str) -> Option<Self> {
        let (sources, way): (&[Source], Way) = match name {
            "shutdown-bypass" => (&[Source::Es1370, Source::E1000], Way::Shutdown),
            "no-hook" => (&Source::ALL, Way::Kexec),
            "unaware-successor" => (&[Source::Nvme], Way::Crash),
            "reused-tables" => (&[Source::Es1370, Source::Ohci], Way::Crash),
            "named-culprits" => (&[Source::Es1370, Source::Ohci, Source::E1000], Way::Abort),
            _ => return None,
        };
        Some(Self { name: name.into(), sources: sources.to_vec(), way })
    }

    /// The scenario called `name`.
    ///
    /// # Errors
    ///
    /// Bad input, with the list of those that there are.
    pub fn find(name: &str) -> Result<Self> {
        let known =
            Self::named(name).or_else(|| Self::matrix().find(|scenario| scenario.name == name));
        known.ok_or_else(|| {
            bad_input(format!("--scenario {name}: there is no such one: {}", list()))
        })
    }

    /// Every source with every way.
    pub fn matrix() -> impl Iterator<Item = Self> {
        let one = |source: Source, way: Way| Self {
            name: format!("{}-{}", source.name(), way.name()),
            sources: vec![source],
            way,
        };
        Source::ALL
            .into_iter()
            .flat_map(move |source| Way::ALL.into_iter().map(move |way| one(source, way)))
    }

    /// What it consists of.
    pub fn parts(&self) -> Parts {
        let origin = format!("--scenario {}", self.name);
        let name = Name::try_from(LINEAGE).expect("a built-in name fits");
        let sources: Vec<&str> = self.sources.iter().map(|source| source.name()).collect();
        let mut append = format!("source={} way={}", sources.join(","), self.way.bootarg());
        if self.way.drives_smmu() {
            append += " smmu=first";
        }
        let content = Content::BuiltIn { role: LINEAGE.into(), append };
        let mut vm = Vm::new(Said::new(name.clone(), origin.clone()), content);
        vm.cpus = Said::new(Cpus::Count(1), origin.clone());
        vm.memory = Said::new(MEMORY, origin.clone());
        vm.expect = vec!["@generation number=1".into(), format!("@done role={LINEAGE}")];
        if self.way == Way::Off {
            vm.on_exit = Said::new(OnExit::Restart, origin.clone());
        }
        let claim = |slot: u8, reset| {
            let address = Bdf::new(0, slot, 0).expect("slots are below 32");
            Said::new(Function { address, reset }, origin.clone())
        };
        vm.functions.push(claim(FIRST_SLOT, Reset::BusMaster));

        let mut parts = Parts {
            vms: Vec::new(),
            devices: Vec::new(),
            backends: Vec::new(),
            extra: Vec::new(),
            actions: self.actions(&name),
            network: self.sources.contains(&Source::E1000),
        };
        for (slot, source) in (FIRST_SLOT + 1..).zip(&self.sources) {
            let Some(mut device) = source.device() else { continue };
            device.set("addr", &format!("{slot:x}"));
            parts.devices.push(UserDevice { device, origin: origin.clone() });
            let reset = if source.has_reset() { Reset::Auto } else { Reset::BusMaster };
            vm.functions.push(claim(slot, reset));
            match source {
                Source::Es1370 => {
                    parts.extra.extend(["-audiodev", "none,id=silence"].map(String::from))
                }
                Source::VirtioBlk | Source::Nvme => parts.add_slow_disk(source.name()),
                _ => {}
            }
        }
        parts.vms.push(vm);
        parts
    }

    fn actions(&self, vm: &Name) -> Vec<Action> {
        let origin = format!("--scenario {}", self.name);
        let when = |text: &str| When::Said { vm: vm.clone(), text: text.into() };
        match self.way {
            Way::Off => {
                let when = when(&format!("@done role={LINEAGE}"));
                vec![Action { when, command: Command::Off(vm.clone()), origin }]
            }
            Way::Kill => {
                let command = Command::Restart(vm.clone());
                vec![Action { when: when("@waits"), command, origin }]
            }
            _ => Vec::new(),
        }
    }
}

impl Parts {
    /// A disk of zeros that takes its time, for the device that has it as its drive.
    fn add_slow_disk(&mut self, device: &str) {
        self.extra.extend([
            "-object".into(),
            format!("throttle-group,id=group-{device},x-iops-total={REQUESTS_A_SECOND}"),
        ]);
        let null = format!("driver=null-co,node-name=null-{device},read-zeroes=on,size=1073741824");
        let slow = format!(
            "driver=throttle,node-name=slow-{device},throttle-group=group-{device},file=null-{device}"
        );
        self.backends.extend([("-blockdev", null), ("-blockdev", slow)]);
    }
}

/// The scenarios that there are, for messages.
fn list() -> String {
    let mut text = "there are:\n".to_owned();
    for (name, about) in Scenario::NAMED {
        let _ = writeln!(text, "  {name}: {about}");
    }
    let names = |names: &[&str]| names.join(", ");
    let sources = Source::ALL.map(Source::name);
    let ways = Way::ALL.map(Way::name);
    let _ = write!(
        text,
        "  SOURCE-WAY: SOURCE one of {}; WAY one of {}",
        names(&sources),
        names(&ways)
    );
    text
}
