//! Debian's arm64 packages: guest kernels and the programs of their initramfs. They are data here, never run.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::apt::{Apt, Package};
use super::cache::{Cache, Entry, Lock};
use super::system::System;
use super::{Missing, Options, Wanted};

/// The architecture of the guests.
const ARCHITECTURE: &str = "arm64";
/// The suite of the guests' user space: static or self-contained, so it serves every kernel.
const USER_SPACE: &str = "bookworm";
/// The package with the guests' user space.
const BUSYBOX: &str = "busybox-static";
/// The package with `kexec`.
pub const KEXEC: &str = "kexec-tools";
/// The package with `fdtget` and `fdtput`.
pub const DEVICE_TREE: &str = "device-tree-compiler";
/// The package with `fio`.
pub const FIO: &str = "fio";
/// The packages of the programs that the tests run in a guest.
const PROGRAMS: [&str; 3] = [KEXEC, DEVICE_TREE, FIO];
/// The package with U-Boot for QEMU, and the suite whose U-Boot drives virtio devices behind an IOMMU.
pub const U_BOOT: (&str, &str) = ("u-boot-qemu", "trixie");

const MISSING: Wanted = Wanted {
    what: "Debian's arm64 packages for the Linux guest",
    how: "name a Debian mirror with --mirror URL (its packages are verified with the debian-archive-keyring \
          package's keys), or give files of your own with --kernel IMG --initrd CPIO",
};

/// A Debian arm64 kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// 6.1, the small build for virtual machines.
    Cloud6_1,
    /// 6.12, the small build for virtual machines.
    Cloud6_12,
    /// 6.1, the build for all machines: drivers for every device QEMU has.
    Standard6_1,
    /// 6.12, the build for all machines: drivers for every device QEMU has.
    Standard6_12,
}

impl Flavor {
    /// All flavors.
    pub const ALL: [Self; 4] =
        [Self::Cloud6_1, Self::Cloud6_12, Self::Standard6_1, Self::Standard6_12];

    /// The name on command lines and in the cache.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cloud6_1 => "cloud-6.1",
            Self::Cloud6_12 => "cloud-6.12",
            Self::Standard6_1 => "standard-6.1",
            Self::Standard6_12 => "standard-6.12",
        }
    }

    /// The package that depends on the newest kernel of this flavor.
    const fn package(self) -> &'static str {
        match self {
            Self::Cloud6_1 | Self::Cloud6_12 => "linux-image-cloud-arm64",
            Self::Standard6_1 | Self::Standard6_12 => "linux-image-arm64",
        }
    }

    /// The suites that have it, the one to try first first.
    const fn suites(self) -> &'static [&'static str] {
        match self {
            Self::Cloud6_1 | Self::Standard6_1 => &["bookworm"],
            // An older system's keyring may not know trixie yet.
            Self::Cloud6_12 | Self::Standard6_12 => &["trixie", "bookworm-backports"],
        }
    }

    fn key(self) -> String {
        format!("linux/{}", self.name())
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Flavor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|flavor| flavor.name() == text).ok_or_else(|| {
            format!("{text:?} is no kernel flavor: {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// A kernel package, unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The image as Debian ships it: an arm64 Image, gzip or EFI zboot.
    pub image: PathBuf,
    /// The folder with its modules, `.../lib/modules/<version>`.
    pub modules: PathBuf,
    /// Its build configuration.
    pub config: PathBuf,
    /// Its release as `uname -r` prints it.
    pub version: String,
}

impl Kernel {
    /// Finds the one kernel in an unpacked tree.
    fn find(tree: &Path) -> Option<Self> {
        let boot = fs::read_dir(tree.join("boot")).ok()?;
        let version = boot.flatten().find_map(|file| {
            file.file_name().to_str()?.strip_prefix("vmlinuz-").map(String::from)
        })?;
        let modules = ["usr/lib/modules", "lib/modules"]
            .map(|name| tree.join(name).join(&version))
            .into_iter()
            .find(|folder| folder.is_dir())?;
        Some(Self {
            image: tree.join("boot").join(format!("vmlinuz-{version}")),
            config: tree.join("boot").join(format!("config-{version}")),
            modules,
            version,
        })
    }
}

/// The kernel that is in the cache already.
pub fn present(cache: &Cache, flavor: Flavor) -> Option<Kernel> {
    Kernel::find(&cache.get(&flavor.key())?.path)
}

/// See [`super::ensure_linux`].
pub fn ensure_linux(options: &Options, flavor: Flavor) -> Result<Kernel, Missing> {
    let cache = Cache::open(options)?;
    if let Some(kernel) = present(&cache, flavor) {
        return Ok(kernel);
    }
    let lock = cache.lock()?;
    if let Some(kernel) = present(&cache, flavor) {
        return Ok(kernel);
    }
    let system = System::read(Path::new("/"));
    let mut failure = None;
    for suite in flavor.suites() {
        match fetch_kernel(&cache, &lock, options, &system, flavor, suite) {
            Ok(kernel) => return Ok(kernel),
            // The first suite is the one that should have worked.
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| MISSING.missing(format!("no suite has {flavor}"))))
}

fn fetch_kernel(
    cache: &Cache,
    lock: &Lock,
    options: &Options,
    system: &System,
    flavor: Flavor,
    suite: &str,
) -> Result<Kernel, Missing> {
    let apt = open(cache, lock, options, system, suite)?;
    let mut packages = Vec::new();
    for meta in apt.find(&[flavor.package()])? {
        packages.extend(real_kernel(&apt, &meta)?);
    }
    let title = format!("Linux {flavor}");
    let entry = cache.build(lock, &flavor.key(), |folder| {
        fill(cache, &apt, &title, &packages, folder)?;
        let kernel = Kernel::find(folder).ok_or_else(|| {
            apt.missing(format!("the packages of {} hold no kernel", flavor.package()))
        })?;
        let inside = |path: &Path| path.strip_prefix(folder).unwrap_or(path).to_path_buf();
        let files = vec![
            inside(&kernel.image),
            inside(&kernel.config),
            inside(&kernel.modules.join("modules.builtin")),
        ];
        Ok((kernel.version, files))
    })?;
    Kernel::find(&entry.path)
        .ok_or_else(|| MISSING.missing(format!("{} holds no kernel", entry.path.display())))
}

/// The packages with the image and modules behind a meta package: one, or since 6.13 several.
fn real_kernel(apt: &Apt<'_>, meta: &Package) -> Result<Vec<Package>, Missing> {
    let mut names: Vec<String> = kernel_parts(&apt.dependencies(meta)?);
    let mut packages = Vec::new();
    // A meta package leads to an image package, and that to its parts; nothing is nested deeper.
    for _ in 0..2 {
        let found = apt.find(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        names.clear();
        for package in &found {
            names.extend(kernel_parts(&apt.dependencies(package)?));
        }
        packages.extend(found);
        if names.is_empty() {
            break;
        }
    }
    Ok(packages)
}

/// Which of a kernel package's dependencies are parts of that kernel.
fn kernel_parts(names: &[String]) -> Vec<String> {
    let part = |name: &&String| {
        ["linux-image-", "linux-binary-", "linux-modules-"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    names.iter().filter(part).cloned().collect()
}

/// Every package beside the kernels, and where it is in the cache with its version.
pub fn packages(cache: Option<&Cache>) -> Vec<(&'static str, Option<(String, String)>)> {
    let (u_boot, suite) = U_BOOT;
    let single =
        [(BUSYBOX, package_key(BUSYBOX, USER_SPACE)), (u_boot, package_key(u_boot, suite))];
    let all = single.into_iter().chain(PROGRAMS.map(|name| (name, program_key(name))));
    let found = |key: &str| {
        let entry = cache?.get(key)?;
        Some((entry.path.display().to_string(), entry.version))
    };
    all.map(|(name, key)| (name, found(&key))).collect()
}

/// Gets every package of [`packages`].
pub fn ensure_packages(options: &Options) -> Result<(), Missing> {
    ensure_busybox(options)?;
    ensure_package(options, U_BOOT.0, U_BOOT.1)?;
    PROGRAMS.iter().try_for_each(|name| ensure_program(options, name).map(drop))
}

fn program_key(name: &str) -> String {
    package_key(&format!("{name}+libraries"), USER_SPACE)
}

fn package_key(name: &str, suite: &str) -> String {
    format!("packages/{suite}-{ARCHITECTURE}/{name}")
}

/// See [`super::ensure_package`].
pub fn ensure_package(options: &Options, name: &str, suite: &str) -> Result<PathBuf, Missing> {
    ensure(options, &package_key(name, suite), name, suite, |apt| apt.find(&[name]))
}

/// See [`super::ensure_busybox`].
pub fn ensure_busybox(options: &Options) -> Result<PathBuf, Missing> {
    Ok(ensure_package(options, BUSYBOX, USER_SPACE)?.join("bin/busybox"))
}

/// See [`super::ensure_program`].
pub fn ensure_program(options: &Options, name: &str) -> Result<PathBuf, Missing> {
    let key = program_key(name);
    ensure(options, &key, name, USER_SPACE, |apt| {
        let mut packages = apt.closure(&[name])?;
        packages.retain(|package| {
            package.name == name || package.name.starts_with("lib") || package.name == "zlib1g"
        });
        Ok(packages)
    })
}

fn ensure(
    options: &Options,
    key: &str,
    title: &str,
    suite: &str,
    choose: impl Fn(&Apt<'_>) -> Result<Vec<Package>, Missing>,
) -> Result<PathBuf, Missing> {
    let cache = Cache::open(options)?;
    if let Some(Entry { path, .. }) = cache.get(key) {
        return Ok(path);
    }
    let lock = cache.lock()?;
    if let Some(Entry { path, .. }) = cache.get(key) {
        return Ok(path);
    }
    let apt = open(&cache, &lock, options, &System::read(Path::new("/")), suite)?;
    let packages = choose(&apt)?;
    let entry = cache.build(&lock, key, |folder| {
        fill(&cache, &apt, title, &packages, folder)?;
        let version = packages
            .iter()
            .find(|package| package.name == title)
            .map(|package| package.version.clone());
        Ok((version.unwrap_or_default(), Vec::new()))
    })?;
    Ok(entry.path)
}

fn open<'a>(
    cache: &'a Cache,
    lock: &'a Lock,
    options: &Options,
    system: &System,
    suite: &str,
) -> Result<Apt<'a>, Missing> {
    let archive = system
        .debian_archive(options.mirror.as_deref(), suite)
        .map_err(|why| MISSING.missing(why))?;
    Apt::open(cache, lock, MISSING, &archive, ARCHITECTURE)
}

fn fill(
    cache: &Cache,
    apt: &Apt<'_>,
    title: &str,
    packages: &[Package],
    folder: &Path,
) -> Result<(), Missing> {
    let downloads = folder.join(".download");
    apt.download(title, packages, &downloads)?;
    apt.unpack(&downloads, folder)?;
    fs::remove_dir_all(&downloads).map_err(|error| cache.unusable(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavors_are_named_as_they_are_parsed() {
        for flavor in Flavor::ALL {
            assert_eq!(flavor.to_string().parse(), Ok(flavor));
        }
        assert!("cloud".parse::<Flavor>().unwrap_err().contains("standard-6.12"));
    }

    #[test]
    fn only_parts_of_the_kernel_come_along() {
        let names =
            ["dracut", "linux-modules-7.3", "linux-base", "linux-binary-7.3"].map(String::from);
        assert_eq!(kernel_parts(&names), ["linux-modules-7.3", "linux-binary-7.3"]);
    }

    #[test]
    fn a_kernel_is_found_where_either_release_puts_its_modules() {
        for modules in ["lib/modules", "usr/lib/modules"] {
            let tree = tempfile::tempdir().unwrap();
            fs::create_dir_all(tree.path().join(modules).join("6.1.0-1")).unwrap();
            fs::create_dir_all(tree.path().join("boot")).unwrap();
            assert_eq!(Kernel::find(tree.path()), None);
            fs::write(tree.path().join("boot/System.map-6.1.0-1"), "").unwrap();
            fs::write(tree.path().join("boot/vmlinuz-6.1.0-1"), "").unwrap();
            let kernel = Kernel::find(tree.path()).unwrap();
            assert_eq!(kernel.version, "6.1.0-1");
            assert_eq!(kernel.modules, tree.path().join(modules).join("6.1.0-1"));
        }
    }
}
