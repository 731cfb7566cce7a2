//! The Linux guest: Debian's arm64 kernel, a small initramfs, and two disks with known content.
//!
//! The initramfs loads the drivers, checks the first half of each disk against a digest it carries, writes each
//! disk's second half, reads it back, and says so on its console; [`Disk::check`] then judges the images on the host:
//!
//! ```text
//! @disk name=nvme0n1 bytes=16777216 sha256=ok        first half as expected (else sha256=BAD)
//! @disk name=nvme0n1 write=ok bytes=16777216         second half written and read back (else write=BAD)
//! @iommu 0000:00:03.0 type=DMA                       one line per device in a group, or `@iommu none`
//! @interrupts irq=47 count=2190 GICv3 36 Level nvme0q0, nvme0q1
//! @kernel [    1.2] text                             errors in the kernel's log
//! @done role=linux                                   or `@done role=linux FAILED why=...`, then it powers off
//! ```
//!
//! A disk is found by its serial number; where the kernel calls it otherwise than by its usual name, ` device=...`
//! follows.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::scratch;
use crate::setup::{self, Flavor, Kernel, Missing, Options};

mod disk;
mod initramfs;
mod modules;
mod program;

pub use disk::{Bus, Disk, LastWrite};
pub use initramfs::GuestFile;

use initramfs::Initramfs;
use modules::{Module, Modules};

/// What the kernel's command line is unless a caller wants more.
pub const APPEND: &str = "console=ttyAMA0";

/// The drivers of the two disks.
const DRIVERS: [&str; 3] = ["virtio_pci", "virtio_blk", "nvme"];
/// The guest's first process.
const INIT: &str = include_str!("linux/init.sh");
/// What it and stages share.
const DISKS: &str = include_str!("linux/disks.sh");

/// What a test adds to the guest.
#[derive(Clone, Debug)]
pub struct Extra {
    /// Kernel modules to load beside those of the disks, by name; what they depend on comes along.
    pub modules: Vec<String>,
    /// Files.
    pub files: Vec<GuestFile>,
    /// A script with its `#!` line (busybox's shell is `/bin/sh`) that runs as `/stage` after the disk test and before
    /// `@done`; a failure fails the run.
    pub stage: Option<String>,
    /// Kernels that lie in the initramfs as `/boot/FLAVOR`, with their modules, so that the guest can start them.
    pub kernels: Vec<Flavor>,
    /// What the data of the first `edu` starts with, if the stage attacks with it; it has to tell of each DMA then.
    pub nonce: Option<u32>,
    /// Bytes in each half of the disks: whole MiB.
    pub half: u64,
    /// The most requests that both disks together get done each second of the host's time.
    pub most_requests: Option<u32>,
}

impl Default for Extra {
    /// Nothing, and disks of the usual size.
    fn default() -> Self {
        Self {
            modules: Vec::new(),
            files: Vec::new(),
            stage: None,
            kernels: Vec::new(),
            nonce: None,
            half: disk::HALF,
            most_requests: None,
        }
    }
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

/// Builds the files of the VM with index `vm` in `folder`, fetching what they are made of if need be.
///
/// Disk images already there are written anew. The error holds a [`setup::Missing`] if something could not be fetched.
pub fn prepare(
    folder: &Path,
    vm: usize,
    flavor: Flavor,
    extra: &Extra,
    options: &Options,
) -> anyhow::Result<Guest> {
    let kernel = setup::ensure_linux(options, flavor)?;
    let busybox = setup::ensure_busybox(options)?;
    let busybox = fs::read(&busybox).with_context(|| busybox.display().to_string())?;
    let mut kernels = vec![modules(&kernel, extra)?];
    let mut images = Vec::new();
    for &flavor in &extra.kernels {
        let other = setup::ensure_linux(options, flavor)?;
        let data = fs::read(&other.image).with_context(|| other.image.display().to_string())?;
        images.push(GuestFile { path: format!("boot/{flavor}"), mode: 0o644, data });
        if other.version != kernel.version {
            kernels.push(modules(&other, extra)?);
        }
    }
    let disks = disks(folder, vm, extra.half)?;
    let archive = initramfs(busybox, kernels, images, &disks, extra).archive()?;
    let initrd = scratch::write(folder, "initrd.cpio", &archive)?;
    Ok(Guest {
        kernel: kernel.image,
        initrd,
        append: APPEND.into(),
        expect: expect(&disks),
        disks: disks.into(),
        version: kernel.version,
    })
}

fn disks(folder: &Path, vm: usize, half: u64) -> Result<[Disk; 2], Missing> {
    fs::create_dir_all(folder)
        .and_then(|()| Disk::create(folder, vm, half))
        .map_err(|error| scratch::missing(folder, &format!("writing the disks: {error}")))
}

/// A program of a Debian package, at the same path in the guest, and its libraries: to be added to [`Extra::files`].
pub fn program(options: &Options, package: &str, path: &str) -> anyhow::Result<Vec<GuestFile>> {
    program::with_libraries(&setup::ensure_program(options, package)?, path)
}

/// A kernel's release, and its modules in load order.
type Release = (String, Vec<Module>);

fn modules(kernel: &Kernel, extra: &Extra) -> anyhow::Result<Release> {
    let wanted = extra.modules.iter().map(String::as_str);
    let modules = Modules::read(&kernel.modules)?
        .load_order(&DRIVERS.into_iter().chain(wanted).collect::<Vec<_>>())?;
    Ok((kernel.version.clone(), modules))
}

fn initramfs(
    busybox: Vec<u8>,
    kernels: Vec<Release>,
    images: Vec<GuestFile>,
    disks: &[Disk],
    extra: &Extra,
) -> Initramfs {
    let mut initramfs = Initramfs::default();
    let mut file = |path: &str, mode, data: Vec<u8>| {
        initramfs.file(GuestFile { path: path.into(), mode, data })
    };
    file("bin/busybox", 0o755, busybox);
    file("init", 0o755, INIT.into());
    file("portcullis/disks.sh", 0o644, DISKS.into());
    file("portcullis/disks", 0o644, disk_table(disks).into());
    for (release, modules) in kernels {
        let mut list = String::new();
        for (at, module) in (0_u32..).zip(modules) {
            let path = format!("modules/{release}/{at:02}-{}.ko", module.name);
            list += &format!("/{path}\n");
            file(&path, 0o644, module.data);
        }
        file(&format!("portcullis/modules/{release}"), 0o644, list.into());
    }
    if let Some(stage) = &extra.stage {
        file("stage", 0o755, stage.clone().into());
    }
    for name in ["dev", "proc", "sys", "tmp"] {
        initramfs.folder(name);
    }
    for file in images.iter().chain(&extra.files) {
        initramfs.file(file.clone());
    }
    initramfs
}

/// What `init.sh` reads: each disk's second half is to get the first half of the next one.
fn disk_table(disks: &[Disk]) -> String {
    let next = disks.iter().cycle().skip(1);
    disks
        .iter()
        .zip(next)
        .map(|(disk, next)| {
            let [first, second] = disk.digests.map(|digest| disk::hex(&digest));
            format!(
                "{} {} {} {first} {second} {}\n",
                disk.name, disk.serial, disk.half, next.serial
            )
        })
        .collect()
}

fn expect(disks: &[Disk]) -> Vec<String> {
    let mut lines = Vec::new();
    for Disk { name, half, .. } in disks {
        lines.push(format!("@disk name={name} bytes={half} sha256=ok"));
        lines.push(format!("@disk name={name} write=ok bytes={half}"));
    }
    lines.push("@done role=linux".into());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &'static str, digest: u8, other: u8) -> Disk {
        Disk {
            name,
            bus: Bus::Nvme,
            vm: 0,
            serial: name,
            image: "/image".into(),
            half: 1 << 20,
            digests: [[digest; 32], [other; 32]],
        }
    }

    #[test]
    fn the_guest_is_told_to_copy_what_the_host_expects() {
        let table = disk_table(&[disk("a", 1, 2), disk("b", 2, 1)]);
        let rows: Vec<Vec<_>> = table.lines().map(|line| line.split(' ').collect()).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0][0], rows[0][5]), ("a", "b"));
        assert_eq!((rows[1][0], rows[1][5]), ("b", "a"));
        // What is copied to a disk is what its source's first half has.
        assert_eq!(rows[0][4], rows[1][3]);
        assert_eq!(rows[1][4], rows[0][3]);
    }

    #[test]
    fn modules_are_listed_in_load_order_where_they_are() {
        let modules = ["z", "a"].map(|name| Module { name: name.into(), data: name.into() }).into();
        let extra = Extra {
            stage: Some("#!/bin/sh\n".into()),
            files: vec![GuestFile { path: "init".into(), mode: 0o755, data: b"own".into() }],
            ..Extra::default()
        };
        let kernels = vec![("6.1".into(), modules), ("6.12".into(), Vec::new())];
        let archive =
            initramfs(b"busybox".into(), kernels, Vec::new(), &[], &extra).archive().unwrap();
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("/modules/6.1/00-z.ko\n/modules/6.1/01-a.ko\n"));
        assert!(text.contains("portcullis/modules/6.12"));
        // A test's file replaces the one that is there without it.
        assert!(text.contains("own") && !text.contains("Process 1"));
    }

    #[test]
    fn every_disk_and_the_end_are_expected() {
        let lines = expect(&[disk("a", 1, 2)]);
        let expected = [
            "@disk name=a bytes=1048576 sha256=ok",
            "@disk name=a write=ok bytes=1048576",
            "@done role=linux",
        ];
        assert_eq!(lines, expected);
    }
}
