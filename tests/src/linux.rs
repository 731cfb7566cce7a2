//! Linux guests that do more than test their disks once.

use anyhow::{Result, ensure};
use xtask::linux::{self, Extra, GuestFile};
use xtask::request::Request;
use xtask::setup::{self, Flavor};
use xtask::size::MIB;
use xtask::vm::{Content, Cpus, Said, Vm};

use crate::run::{Run, request};

pub mod lives;
pub mod patch;
pub mod uboot;

/// Bytes in each half of these guests' disks: they test them many times, and spend most of their time on checksums.
pub const HALF: u64 = 4 * MIB;

/// What a guest does after it has tested its disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Ends in the ways that `steps=` says, one after the other: `kexec`, `unaware`,
    /// `crash`, `adopt`, `reboot`, `u-boot`.
    Lives,
    /// Takes a CPU and the disks' drivers away and gives them back `rounds=` times; removes the functions and finds them
    /// again.
    Hotplug,
    /// Writes and verifies at random for `seconds=`.
    Load,
    /// Tests its disks again and again until somebody ends it.
    Bystander,
    /// Says where the kernel's `symbols=` are.
    Symbols,
}

impl Stage {
    const fn script(self) -> &'static str {
        match self {
            Self::Lives => include_str!("linux/lives.sh"),
            Self::Hotplug => include_str!("linux/hotplug.sh"),
            Self::Load => include_str!("linux/load.sh"),
            Self::Bystander => include_str!("linux/bystander.sh"),
            Self::Symbols => include_str!("linux/symbols.sh"),
        }
    }

    /// The programs that it needs.
    fn files(self, options: &setup::Options) -> Result<Vec<GuestFile>> {
        match self {
            Self::Lives => {
                let mut files = linux::program(options, setup::KEXEC, "sbin/kexec")?;
                for (name, text) in [
                    ("adopt", include_str!("linux/adopt.sh")),
                    ("registers", include_str!("linux/registers.sh")),
                ] {
                    let path = format!("portcullis/{name}.sh");
                    files.push(GuestFile { path, mode: 0o755, data: text.into() });
                }
                for tool in ["usr/bin/fdtget", "usr/bin/fdtput"] {
                    files.extend(linux::program(options, setup::DEVICE_TREE, tool)?);
                }
                Ok(files)
            }
            Self::Load => linux::program(options, setup::FIO, "usr/bin/fio"),
            Self::Hotplug | Self::Bystander | Self::Symbols => Ok(Vec::new()),
        }
    }
}

/// The kernel of the same build and the other version.
const fn other(flavor: Flavor) -> Flavor {
    match flavor {
        Flavor::Cloud6_1 => Flavor::Cloud6_12,
        Flavor::Cloud6_12 => Flavor::Cloud6_1,
        Flavor::Standard6_1 => Flavor::Standard6_12,
        Flavor::Standard6_12 => Flavor::Standard6_1,
    }
}

/// A kernel with this stage behind the test of the disks, and what is added to its command line.
///
/// # Errors
///
/// What could not be fetched.
pub fn content(
    flavor: Flavor,
    stage: Stage,
    append: &str,
    options: &setup::Options,
) -> Result<Content> {
    let kernels = match stage {
        Stage::Lives => vec![flavor, other(flavor)],
        _ => Vec::new(),
    };
    let extra = Extra {
        files: stage.files(options)?,
        stage: Some(stage.script().into()),
        kernels,
        half: HALF,
        ..Extra::default()
    };
    Ok(Content::Linux { flavor, append: append.into(), extra: Box::new(extra) })
}

/// A run of one Linux guest with further options of `cargo xtask qemu`.
///
/// # Errors
///
/// Whatever is wrong with the options, or could not be fetched.
pub fn machine(flavor: Flavor, stage: Stage, append: &str, options: &[&str]) -> Result<Request> {
    let mut request = request(&[&["--linux"], options].concat())?;
    request.vms[0].content = content(flavor, stage, append, &request.setup)?;
    Ok(request)
}

/// Requires that Linux has both of its disks in a domain of this type.
///
/// # Errors
///
/// The types that it printed.
pub fn disks_are_in(run: &Run, domain: &str) -> Result<()> {
    let types = |line: &&String| line.starts_with("[linux] @iommu 0000:");
    let types: Vec<&String> = run.outcome.console.iter().filter(types).collect();
    for slot in ["03", "04"] {
        // In full: one type is the start of another.
        let wanted = format!("[linux] @iommu 0000:00:{slot}.0 type={domain}");
        ensure!(types.contains(&&wanted), "no {wanted:?} in {types:?}");
    }
    Ok(())
}

/// Adds another Linux guest of one CPU; the run ends when the first one does.
///
/// # Errors
///
/// What could not be fetched.
pub fn add(
    request: &mut Request,
    name: &str,
    flavor: Flavor,
    stage: Stage,
    append: &str,
) -> Result<()> {
    let content = content(flavor, stage, append, &request.setup)?;
    let name = platform::name::parse(name).expect("tests use valid names");
    let mut vm = Vm::new(Said::new(name, "the test"), content);
    vm.cpus = Said::new(Cpus::Count(1), "the test");
    request.vms.push(vm);
    Ok(())
}

/// Adds a Linux guest that tests its disks until the first one is off.
///
/// # Errors
///
/// What could not be fetched.
pub fn add_bystander(request: &mut Request, flavor: Flavor) -> Result<()> {
    // It lives as long as the other one, however many lives that has.
    add(request, "bystander", flavor, Stage::Bystander, "limit=100000")
}
