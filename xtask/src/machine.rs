//! The machine: one typed description, and the QEMU arguments that follow from it.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::catalog::MachineVersion;
use crate::device::{DeviceArg, escape};
use crate::frames::Wire;
use crate::size::MIB;

/// The physical address of RAM on QEMU's `virt` machine.
pub const RAM_BASE: u64 = 0x4000_0000;
/// Where QEMU puts an Image that has no text offset: above its own boot stub.
pub const IMAGE_BASE: u64 = 0x4020_0000;
/// The CPU model that is used unless the user names one.
pub const DEFAULT_CPU: &str = "cortex-a72";
/// What the machine has beside the VMs' memory: EL2's image and tables, the firmware's device tree, and what
/// alignment costs.
const ROOM: u64 = 192 * MIB;
/// The machine's memory is a multiple of this many bytes.
const MEMORY_STEP: u64 = 256 * MIB;

/// The SMMU's stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages {
    /// Both, nested.
    Nested,
    /// Stage 2 only.
    Two,
    /// Stage 1 only.
    One,
}

/// Where the console and EL2's own UART go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wires {
    /// The UNIX socket on which somebody already waits for EL2's UART; natively nobody listens there.
    pub report: Option<PathBuf>,
    /// The network of a card, if there is one.
    pub network: Option<Wire>,
}

/// What the machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The kernel: EL2's image, or natively the guest's.
    pub kernel: PathBuf,
    /// The initial RAM disk: the bundle, or natively the guest's.
    pub initrd: Option<PathBuf>,
    /// The command line.
    pub append: String,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The version of `virt`; QEMU's newest without one.
    pub version: Option<MachineVersion>,
    /// The SMMU, where it is a choice; newer machines always have both stages.
    pub stages: Option<Stages>,
    /// The CPU model.
    pub cpu: String,
    /// How many CPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// The file that is the memory.
    pub memory_file: PathBuf,
    /// Whether there is an interrupt translation service.
    pub its: bool,
    /// Whether virtual time follows the instruction count.
    pub icount: bool,
    /// Whether QEMU waits for a debugger.
    pub gdb: bool,
    /// Every device, each after what it plugs into.
    pub devices: Vec<DeviceArg>,
    /// `-blockdev`, `-drive`, `-netdev` with their arguments.
    pub backends: Vec<(&'static str, String)>,
    /// Arguments passed through as they are.
    pub extra: Vec<String>,
    /// What it boots.
    pub boot: Boot,
    /// Its serial lines.
    pub wires: Wires,
}

impl Machine {
    /// Bytes of memory of a machine for VMs with `guests` bytes together and a bundle of `bundle` bytes.
    pub fn memory_for(guests: u64, bundle: u64) -> u64 {
        (guests + bundle + ROOM).next_multiple_of(MEMORY_STEP)
    }

    /// QEMU's arguments, without the trace.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Arguments(Vec::new());
        arguments.flags(&["-no-user-config", "-nodefaults"]);
        arguments.option("-display", "none");
        arguments.option("-machine", self.machine());
        if let Some(stages) = self.stages {
            let stage = match stages {
                Stages::Nested => "nested",
                Stages::Two => "2",
                Stages::One => "1",
            };
            arguments.option("-global", format!("arm-smmuv3.stage={stage}"));
        }
        arguments.option("-cpu", &self.cpu);
        arguments.option("-smp", self.cpus.to_string());
        arguments.option("-m", format!("{}M", self.memory / MIB));
        let file = escape(&self.memory_file.to_string_lossy());
        arguments.option(
            "-object",
            format!("memory-backend-file,id=ram,size={},mem-path={file},share=on", self.memory),
        );
        if self.icount {
            arguments.option("-icount", "shift=7,sleep=off");
            arguments.option("-rtc", "clock=vm");
        }
        self.wires.arguments(&mut arguments);
        for (option, value) in &self.backends {
            arguments.option(option, value);
        }
        for device in &self.devices {
            arguments.option("-device", device.to_string());
        }
        arguments.option("-kernel", self.boot.kernel.as_os_str());
        if let Some(initrd) = &self.boot.initrd {
            arguments.option("-initrd", initrd.as_os_str());
        }
        if !self.boot.append.is_empty() {
            arguments.option("-append", &self.boot.append);
        }
        if self.gdb {
            arguments.flags(&["-S", "-s"]);
        }
        arguments.0.extend(self.extra.iter().map(OsString::from));
        arguments.0
    }

    fn machine(&self) -> String {
        let mut machine = match self.version {
            Some(version) => format!("virt-{version}"),
            None => "virt".into(),
        };
        machine += ",virtualization=on,gic-version=3,iommu=smmuv3,memory-backend=ram";
        if !self.its {
            machine += ",its=off";
        }
        if self.icount {
            machine += ",dtb-randomness=off";
        }
        machine
    }
}

impl Wires {
    fn arguments(&self, arguments: &mut Arguments) {
        // No signal=on: an interrupt character belongs to the guest.
        arguments.option("-chardev", "stdio,id=console,signal=off");
        arguments.option("-serial", "chardev:console");
        let report = match &self.report {
            Some(socket) => {
                let path = escape(&socket.to_string_lossy());
                format!("socket,id=report,path={path},server=off")
            }
            None => "null,id=report".into(),
        };
        arguments.option("-chardev", report);
        arguments.option("-serial", "chardev:report");
        if let Some(network) = &self.network {
            arguments.option("-netdev", network.argument());
        }
    }
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            version: None,
            stages: None,
            cpu: DEFAULT_CPU.into(),
            cpus: 2,
            memory: 256 * MIB,
            memory_file: "/t/ram".into(),
            its: true,
            icount: false,
            gdb: false,
            devices: vec!["edu,addr=1".parse().unwrap()],
            backends: Vec::new(),
            extra: Vec::new(),
            boot: Boot {
                kernel: "/t/k".into(),
                initrd: Some("/t/b".into()),
                append: String::new(),
            },
            wires: Wires { report: Some("/t/report".into()), network: None },
        }
    }

    fn line(machine: &Machine) -> String {
        let arguments = machine.arguments();
        arguments.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_arguments_follow_from_the_description() {
        assert_eq!(
            line(&machine()),
            "-no-user-config -nodefaults -display none \
             -machine virt,virtualization=on,gic-version=3,iommu=smmuv3,memory-backend=ram \
             -cpu cortex-a72 -smp 2 -m 256M \
             -object memory-backend-file,id=ram,size=268435456,mem-path=/t/ram,share=on \
             -chardev stdio,id=console,signal=off -serial chardev:console \
             -chardev socket,id=report,path=/t/report,server=off -serial chardev:report \
             -device edu,addr=1 -kernel /t/k -initrd /t/b"
        );
    }

    #[test]
    fn choices_show() {
        let mut chosen = Machine {
            version: Some(MachineVersion(9, 1)),
            stages: Some(Stages::Two),
            its: false,
            icount: true,
            gdb: true,
            backends: vec![("-blockdev", "driver=null-co,node-name=n".into())],
            extra: vec!["-d".into(), "int".into()],
            ..machine()
        };
        chosen.boot = Boot { initrd: None, append: "log=debug".into(), ..chosen.boot };
        chosen.wires.report = None;
        assert_eq!(
            line(&chosen),
            "-no-user-config -nodefaults -display none \
             -machine virt-9.1,virtualization=on,gic-version=3,iommu=smmuv3,memory-backend=ram,its=off,dtb-randomness=off \
             -global arm-smmuv3.stage=2 -cpu cortex-a72 -smp 2 -m 256M \
             -object memory-backend-file,id=ram,size=268435456,mem-path=/t/ram,share=on \
             -icount shift=7,sleep=off -rtc clock=vm \
             -chardev stdio,id=console,signal=off -serial chardev:console \
             -chardev null,id=report -serial chardev:report \
             -blockdev driver=null-co,node-name=n -device edu,addr=1 -kernel /t/k -append log=debug -S -s -d int"
        );
    }

    #[test]
    fn memory_grows_with_what_is_in_it() {
        assert_eq!(Machine::memory_for(32 * MIB, MIB), 256 * MIB);
        assert_eq!(Machine::memory_for(512 * MIB, 40 * MIB), 768 * MIB);
        assert_eq!(Machine::memory_for(2048 * MIB, MIB), 2304 * MIB);
    }
}
