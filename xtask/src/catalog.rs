//! What a QEMU binary can build: devices by the bus they plug into, CPU models, machine versions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};

use crate::setup::Qemu;

/// Where a device plugs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plug {
    /// Into a PCI slot.
    Pci,
    /// Anywhere else.
    Elsewhere,
}

/// A version of the `virt` machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MachineVersion(pub u32, pub u32);

/// The first machine version whose SMMU always has both stages.
pub const NESTED_SINCE: MachineVersion = MachineVersion(9, 2);
/// The newest one whose SMMU has the stages that it is told to have.
pub const NEWEST_WITH_CHOICE: MachineVersion = MachineVersion(9, 1);

impl fmt::Display for MachineVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for MachineVersion {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| plain).ok_or(NotAVersion)
        };
        let (major, minor) = text.split_once('.').ok_or(NotAVersion)?;
        Ok(Self(number(major)?, number(minor)?))
    }
}

/// A text that is no [`MachineVersion`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAVersion;

impl fmt::Display for NotAVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a machine version: write two numbers, such as 9.1")
    }
}

impl std::error::Error for NotAVersion {}

/// What there is to build machines from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Catalog {
    /// QEMU has not been asked: only what every QEMU agrees on is known.
    Unasked,
    /// What this QEMU says.
    Asked {
        /// Where each driver plugs in, by name and alias.
        devices: BTreeMap<String, Plug>,
        /// CPU models.
        cpus: BTreeSet<String>,
        /// Versions of `virt`.
        machines: BTreeSet<MachineVersion>,
    },
}

impl Catalog {
    /// Asks a QEMU.
    ///
    /// # Errors
    ///
    /// If it cannot be run or does not answer.
    pub fn ask(qemu: &Qemu) -> Result<Self> {
        let answer = |arguments: &[&str]| -> Result<String> {
            let answer = qemu.answer(arguments).map_err(|why| anyhow!("{why}"))?;
            if !answer.success {
                bail!(
                    "{} {}: {}",
                    qemu.program.display(),
                    arguments.join(" "),
                    answer.errors.lines().next().unwrap_or("it gave no reason")
                );
            }
            Ok(answer.output)
        };
        Ok(Self::Asked {
            devices: parse_devices(&answer(&["-machine", "virt", "-device", "help"])?),
            cpus: parse_cpus(&answer(&["-machine", "virt", "-cpu", "help"])?),
            machines: parse_machines(&answer(&["-machine", "help"])?),
        })
    }

    /// Where a driver plugs in; `None` if that is not known, either because QEMU has no such driver or because
    /// it has not been asked yet.
    pub fn plug(&self, driver: &str) -> Option<Plug> {
        match self {
            Self::Unasked => None,
            Self::Asked { devices, .. } => devices.get(driver).copied(),
        }
    }

    /// Whether QEMU has a driver; assumed until it is asked.
    pub fn has_device(&self, driver: &str) -> bool {
        match self {
            Self::Unasked => true,
            Self::Asked { devices, .. } => devices.contains_key(driver),
        }
    }

    /// Whether QEMU has a CPU model; assumed until it is asked.
    pub fn has_cpu(&self, model: &str) -> bool {
        match self {
            Self::Unasked => true,
            Self::Asked { cpus, .. } => cpus.contains(model),
        }
    }

    /// Whether QEMU has a version of the machine; assumed until it is asked.
    pub fn has_machine(&self, version: MachineVersion) -> bool {
        match self {
            Self::Unasked => true,
            Self::Asked { machines, .. } => machines.contains(&version),
        }
    }
}

/// Reads the answer to `-device help`: `name "edu", bus PCI, alias "x", desc "..."`.
fn parse_devices(answer: &str) -> BTreeMap<String, Plug> {
    let quoted = |line: &str, word: &str| {
        let rest = line.split_once(&format!("{word} \""))?.1;
        rest.split_once('"').map(|(name, _)| name.to_owned())
    };
    let mut devices = BTreeMap::new();
    for line in answer.lines() {
        let Some(name) = line.starts_with("name ").then(|| quoted(line, "name")).flatten() else {
            continue;
        };
        let plug = if line.contains(", bus PCI") { Plug::Pci } else { Plug::Elsewhere };
        if let Some(alias) = quoted(line, ", alias") {
            devices.insert(alias, plug);
        }
        devices.insert(name, plug);
    }
    devices
}

/// Reads the answer to `-cpu help`: indented names after a heading.
fn parse_cpus(answer: &str) -> BTreeSet<String> {
    let indented = answer.lines().filter(|line| line.starts_with(' '));
    indented.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Reads the answer to `-machine help`: `virt-9.1   QEMU 9.1 ARM Virtual Machine`.
fn parse_machines(answer: &str) -> BTreeSet<MachineVersion> {
    let names = answer.lines().filter_map(|line| line.split_whitespace().next());
    names.filter_map(|name| name.strip_prefix("virt-")?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let devices = parse_devices(
            "Storage devices:\nname \"virtio-blk-pci\", bus PCI, alias \"virtio-blk\"\n\
             name \"nvme-ns\", bus nvme-bus, desc \"Virtual NVMe namespace\"\nname \"nvdimm\", desc \"x\"\n",
        );
        assert_eq!(devices["virtio-blk"], Plug::Pci);
        assert_eq!(devices["virtio-blk-pci"], Plug::Pci);
        assert_eq!(devices["nvme-ns"], Plug::Elsewhere);
        assert_eq!(devices["nvdimm"], Plug::Elsewhere);
        let cpus = parse_cpus("Available CPUs:\n  cortex-a72\n  pxa250 (deprecated)\n");
        assert!(cpus.contains("cortex-a72") && cpus.contains("pxa250") && cpus.len() == 2);
        let machines = parse_machines(
            "virt  QEMU (alias of virt-10.0)\nvirt-9.1  QEMU 9.1\nvirt-10.0  QEMU\n",
        );
        assert_eq!(machines, [MachineVersion(9, 1), MachineVersion(10, 0)].into());
    }

    #[test]
    fn versions_are_two_numbers() {
        assert_eq!("9.1".parse(), Ok(MachineVersion(9, 1)));
        assert!(MachineVersion(10, 0) > NESTED_SINCE);
        for text in ["9", "9.", ".1", "9.1.2", "virt-9.1", "+9.1", "9.x"] {
            assert_eq!(text.parse::<MachineVersion>(), Err(NotAVersion), "{text}");
        }
    }
}
