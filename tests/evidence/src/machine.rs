//! What the host knows of a run before it starts: nothing here was said by EL2 or by a guest.

use smmu::addr::StreamId;

/// The machine, its VMs and who owns which device, as the manifests say.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Whether the guest ran on the bare machine, without the hypervisor.
    pub native: bool,
    /// Physical address of RAM and its size in bytes.
    pub ram: (u64, u64),
    /// Named pieces of the physical address space, for the table; the first match names an address.
    pub regions: Vec<Region>,
    /// The VMs; natively, the one guest.
    pub vms: Vec<Vm>,
    /// Every bus master that the run is about.
    pub devices: Vec<Device>,
}

/// A named piece of the physical address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// What the table calls it, such as `hypervisor`.
    pub name: String,
    /// Its first physical address.
    pub base: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// One VM as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its name; natively, what the table shall call the guest.
    pub name: String,
    /// What runs in it.
    pub guest: Guest,
    /// Texts that its console must print.
    pub expect: Vec<String>,
    /// Whether the run may end without its last words: an operator kills it, or another VM's end does.
    pub may_be_cut_off: bool,
}

/// What runs in a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// A built-in guest. It ends with `@done`; a victim and a rogue tell of every DMA.
    BuiltIn {
        /// `victim`, `rogue` or the name of a suite.
        role: String,
        /// What its device's data starts with, if it attacks.
        nonce: Option<u32>,
    },
    /// Linux with the built initramfs: tells of its disks and ends with `@done`. Of each DMA it tells only where its
    /// userspace drives a device to attack.
    Linux {
        /// What that device's data starts with, if it attacks.
        nonce: Option<u32>,
    },
    /// Anything else: tells nothing.
    Other,
}

/// One bus master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its StreamID.
    pub sid: StreamId,
    /// Its physical address, `BB:DD.F`.
    pub address: String,
    /// Where its owner sees it, `BB:DD.F`.
    pub guest_address: String,
    /// What the table calls it, such as `edu`.
    pub label: String,
    /// Who owns it.
    pub vm: Option<String>,
    /// What its owner calls the disk behind it, if it must tell of one.
    pub disk: Option<String>,
    /// Whether an owner that tells of every DMA drives it; otherwise it lies idle.
    pub driven: bool,
}

impl Machine {
    /// The fixed pieces of QEMU's `virt` machine that DMA may be aimed at. The caller adds where the
    /// hypervisor's memory is.
    pub fn virt_regions() -> Vec<Region> {
        let fixed = [
            ("gic", 0x0800_0000, 0x2_0000),
            ("its", 0x0808_0000, 0x2_0000),
            ("gic", 0x080a_0000, 0xf6_0000),
            ("uart", 0x0900_0000, 0x1000),
            ("uart", 0x0904_0000, 0x1000),
            ("smmu", 0x0905_0000, 0x2_0000),
            ("pci", 0x1000_0000, 0x3000_0000),
            ("pci", 0x40_1000_0000, 0x1000_0000),
            ("pci", 0x80_0000_0000, 0x80_0000_0000),
        ];
        fixed.map(|(name, base, size)| Region { name: name.into(), base, size }).to_vec()
    }

    /// The VM called `name`.
    pub fn vm(&self, name: &str) -> Option<&Vm> {
        self.vms.iter().find(|vm| vm.name == name)
    }

    /// What the data of the first attacker's devices starts with.
    pub fn nonce(&self) -> Option<u32> {
        self.vms.iter().find_map(|vm| vm.guest.nonce())
    }

    /// The device with StreamID `sid`.
    pub fn device(&self, sid: StreamId) -> Option<&Device> {
        self.devices.iter().find(|device| device.sid == sid)
    }

    /// The device that `vm` sees at `guest_address`.
    pub fn device_of(&self, vm: &str, guest_address: &str) -> Option<&Device> {
        self.devices.iter().find(|device| {
            device.vm.as_deref() == Some(vm) && device.guest_address == guest_address
        })
    }

    /// What the table calls the physical address `pa`, if it lies in a named piece.
    pub fn region(&self, pa: u64) -> Option<&Region> {
        self.regions
            .iter()
            .find(|region| pa.checked_sub(region.base).is_some_and(|o| o < region.size))
    }
}

/// The roles of the built-in guest that do.
const TESTIFYING: [&str; 5] = ["victim", "rogue", "smmu", "stage1", "forger"];

impl Guest {
    /// Whether it tells of every DMA that its devices do.
    pub fn testifies(&self) -> bool {
        match self {
            Self::BuiltIn { role, .. } => TESTIFYING.contains(&role.as_str()),
            Self::Linux { nonce } => nonce.is_some(),
            Self::Other => false,
        }
    }

    /// Whether it changes its streams so often that EL2 forgets their first states: those that lies are told of.
    pub fn outruns_history(&self) -> bool {
        matches!(self, Self::BuiltIn { role, .. } if role == "forger")
    }

    /// Whether it ends with `@done`.
    pub const fn says_done(&self) -> bool {
        !matches!(self, Self::Other)
    }
}
