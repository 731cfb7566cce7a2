//! The Linux guest: Debian's arm64 kernel, a small initramfs, and two disks with known content.
//!
//! The initramfs checks what it reads from each disk against digests it carries, writes to each disk's second half,
//! and reports on its console; [`Disk::check`] then judges the disk images on the host.

use std::path::{Path, PathBuf};

use crate::setup::{Flavor, Missing, Options};

/// What the kernel's command line is unless a caller wants more.
pub const APPEND: &str = "console=ttyAMA0";

/// What a disk is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// An NVMe controller.
    Nvme,
    /// A virtio block device on PCI.
    VirtioBlk,
}

/// A disk of the guest. The first half has known content, the second is zero until the guest writes to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The name in the guest's testimony.
    pub name: &'static str,
    /// What it is attached to.
    pub bus: Bus,
    /// The serial number the device must have (at most 20 bytes): the guest finds the disk by it.
    pub serial: &'static str,
    /// The raw image.
    pub image: PathBuf,
    /// Bytes in each half.
    pub half: u64,
    /// SHA-256 of the first half, and of the second after the guest has written to it.
    pub digests: [[u8; 32]; 2],
}

impl Disk {
    /// Judges the image after the run: the first half unchanged, the second as the guest should have written it.
    ///
    /// The error says which half differs.
    pub fn check(&self) -> Result<(), String> {
        Err("not written".into())
    }
}

/// What a test adds to the initramfs.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// Kernel modules to load beside those of the disks, by name; what they depend on comes along.
    pub modules: Vec<String>,
    /// Files: path in the guest without the leading `/`, permission bits, content.
    pub files: Vec<(String, u32, Vec<u8>)>,
    /// A shell script that runs as `/stage` between the disk test and `@done`; a failure fails the run.
    pub stage: Option<String>,
}

/// Everything needed to boot the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub append: String,
    /// The disks.
    pub disks: Vec<Disk>,
    /// Lines the console must show.
    pub expect: Vec<String>,
    /// The kernel's release.
    pub version: String,
}

/// Builds the guest's files in `folder`, fetching what they are made of if need be.
pub fn prepare(
    _folder: &Path,
    flavor: Flavor,
    _extra: &Extra,
    options: &Options,
) -> anyhow::Result<Guest> {
    let _: Result<_, Missing> = crate::setup::ensure_linux(options, flavor);
    anyhow::bail!("not written")
}
