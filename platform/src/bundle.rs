//! The bundle: every VM's configuration and images in one FIT image (U-Boot's flattened image tree), so that
//! boot loaders can load and list what the hypervisor reads.
//!
//! Each configuration is one VM. It refers to its images as FIT defines it, and says the rest in properties
//! and nodes of its own:
//!
//! ```text
//! / {
//!     description = "Portcullis bundle";
//!     timestamp = <0>;
//!     #address-cells = <2>;
//!     images {
//!         kernel-1 {
//!             description = "kernel"; type = "kernel"; arch = "arm64"; os = "linux"; compression = "none";
//!             data = [...]; load = <0 0x40200000>; entry = <0 0x40200000>;
//!             hash-1 { algo = "sha256"; value = [...]; };
//!         };
//!     };
//!     configurations {
//!         default = "vm-1";
//!         vm-1 {
//!             description = "linux0"; kernel = "kernel-1"; ramdisk = "ramdisk-1"; fdt = "fdt-1";
//!             portcullis,name = "linux0";
//!             portcullis,cpus = <2 3>;                      // indices into the physical device tree's CPUs
//!             portcullis,memory = <0 0x20000000>;           // bytes
//!             portcullis,on-exit = "as-asked";              // this and the next four: the default may be left out
//!             portcullis,stage1 = "default";
//!             portcullis,dma-at-boot = "stage2";
//!             portcullis,on-crash-kexec = "quiesce";
//!             portcullis,reopen = "device";
//!             function-1 { portcullis,address = "00:02.0"; portcullis,reset = "auto"; };
//!         };
//!     };
//! };
//! ```
//!
//! Images may be shared between VMs.

mod check;
mod error;
mod key;
mod read;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "host"))]
mod write;

use heapless::Vec;
use smmu::addr::Ipa;

pub use self::error::{BundleError, ImageKind, Problem};
pub use self::read::Bundle;
#[cfg(any(test, feature = "host"))]
pub use self::write::write;
use crate::pcie::Bdf;
use crate::report::Name;
use crate::text::words;

/// The most VMs.
pub const MAX_VMS: usize = 8;
/// The most CPUs of one VM, and of the machine.
pub const MAX_CPUS: usize = 16;
/// The most functions of one VM.
pub const MAX_FUNCTIONS: usize = 64;
/// The most functions of all VMs together: each is a stream.
pub const MAX_STREAMS: usize = 128;

words! {
    /// What happens when a VM switches itself off or resets itself.
    pub enum OnExit ("\"as-asked\", \"restart\" or \"off\"") {
        /// `SYSTEM_OFF` means off, `SYSTEM_RESET` means restart.
        #[default]
        AsAsked = "as-asked",
        /// It restarts.
        Restart = "restart",
        /// It stays off.
        Off = "off",
    }
}

words! {
    /// Whether a VM sees an SMMU of its own.
    pub enum Stage1 ("\"default\", \"nested\" or \"none\"") {
        /// It does where the hardware can nest.
        #[default]
        Default = "default",
        /// It does.
        Nested = "nested",
        /// It does not.
        None = "none",
    }
}

words! {
    /// What a VM's streams may do before its driver claims them.
    pub enum DmaAtBoot ("\"stage2\" or \"abort\"") {
        /// Reach the VM's memory.
        #[default]
        Stage2 = "stage2",
        /// Nothing.
        Abort = "abort",
    }
}

words! {
    /// What happens when a new kernel starts without any shutdown of the old one.
    pub enum OnCrashKexec ("\"quiesce\", \"abort\" or \"preserve\"") {
        /// Devices are stopped, then streams closed.
        #[default]
        Quiesce = "quiesce",
        /// Streams are closed.
        Abort = "abort",
        /// Stage 1 stays as it is for the crash kernel to adopt; stage 2 confines.
        Preserve = "preserve",
    }
}

words! {
    /// What opens a closed stream again.
    pub enum Reopen ("\"device\" or \"smmu\"") {
        /// The SMMU driver's or the device driver's evidence.
        #[default]
        Device = "device",
        /// The SMMU driver's evidence only.
        Smmu = "smmu",
    }
}

words! {
    /// How a function may be reset.
    pub enum Reset ("\"auto\" or \"bus-master\"") {
        /// By the best method that it has.
        #[default]
        Auto = "auto",
        /// Not at all; switching bus mastering off has to do.
        BusMaster = "bus-master",
    }
}

/// A PCI function that a VM owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its physical address.
    pub address: Bdf,
    /// How it may be reset.
    pub reset: Reset,
}

/// Bytes and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// The bytes.
    pub data: &'a [u8],
    /// Where the first one goes.
    pub load: Ipa,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig<'a> {
    /// Its unique name.
    pub name: Name,
    /// The physical CPUs it owns, as indices into the machine's CPUs; vCPU 0 first.
    pub cpus: Vec<u32, MAX_CPUS>,
    /// Bytes of RAM from [`crate::guest_map::RAM`] on.
    pub memory: u64,
    /// The kernel.
    pub kernel: Image<'a>,
    /// Where vCPU 0 starts.
    pub entry: Ipa,
    /// The initial file system.
    pub initrd: Option<Image<'a>>,
    /// The device tree.
    pub device_tree: Image<'a>,
    /// What happens when it ends.
    pub on_exit: OnExit,
    /// Whether it sees an SMMU.
    pub stage1: Stage1,
    /// What its streams may do at the first boot.
    pub dma_at_boot: DmaAtBoot,
    /// What happens when it crashes into a new kernel.
    pub on_crash_kexec: OnCrashKexec,
    /// What opens its streams again.
    pub reopen: Reopen,
    /// The functions it owns.
    pub functions: Vec<Function, MAX_FUNCTIONS>,
}
