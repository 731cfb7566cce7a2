//! Set-up: finds what a run needs on this system, and fetches what is missing into the user's cache.
//!
//! The system is never edited: no package is installed, no source or architecture is added, root or not. Missing
//! packages come through apt with a private state that reuses the system's own mirrors ([`Options::mirror`]
//! replaces them), are verified by apt against the distribution's keyring, and are unpacked into the cache folder:
//! `$PORTCULLIS_CACHE`, else `$XDG_CACHE_HOME/portcullis`, else `~/.cache/portcullis`. All clones share it; two
//! runs at once wait for each other; a run that is killed leaves nothing that a later run would take for complete.
//!
//! Every function that can fail returns [`Missing`], which says what is missing, why, and what to do next.

use std::fmt;
use std::path::{Path, PathBuf};

mod apt;
mod cache;
mod debian;
mod program;
mod progress;
mod qemu;
mod rust;
mod sources;
mod system;

pub use debian::{DEVICE_TREE, FIO, Flavor, KEXEC, Kernel, U_BOOT};
pub use program::Program;
pub use qemu::{OLDEST as OLDEST_QEMU, Qemu, Version};
pub use rust::Target;

use cache::Cache;

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

impl Options {
    /// Says what is wrong with the options themselves, before anything is looked for.
    pub fn validate(&self) -> Result<(), String> {
        match &self.mirror {
            Some(mirror) if !sources::valid_uri(mirror) => Err(format!(
                "--mirror {mirror:?} is not a URI such as apt's sources have, scheme://host/path"
            )),
            _ => Ok(()),
        }
    }
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

/// A prerequisite, and what the user can do when set-up cannot get it.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    what: &'static str,
    how: &'static str,
}

impl Wanted {
    fn missing(self, why: String) -> Missing {
        Missing { what: self.what.into(), why, how: self.how.into() }
    }
}

/// What a run needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// QEMU.
    pub qemu: bool,
    /// The Rust target of the bare-metal images.
    pub rust_target: bool,
    /// Guest kernels; with any, all that runs beside them.
    pub linux: &'static [Flavor],
    /// Programs of this system.
    pub programs: &'static [Program],
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

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            State::Present { place, version } => {
                write!(f, "ok       {:<40} {version}  {place}", self.what)
            }
            State::Missing { how } => write!(f, "missing  {:<40} {how}", self.what),
        }
    }
}

/// Reports which of `needs` are there; changes and fetches nothing.
pub fn check(needs: &Needs, options: &Options) -> Vec<Item> {
    let cache = Cache::open(options).ok();
    let fetch = "`cargo xtask setup` fetches it";
    let item = |what: &str, found: Option<(String, String)>| Item {
        what: what.into(),
        state: match found {
            Some((place, version)) => State::Present { place, version },
            None => State::Missing { how: fetch.into() },
        },
    };
    let mut items = Vec::new();
    items.extend(needs.programs.iter().map(|program| Item {
        what: program.what().into(),
        state: match program.find() {
            Some((place, version)) => {
                State::Present { place: place.display().to_string(), version }
            }
            None => State::Missing { how: program.how().into() },
        },
    }));
    if needs.rust_target {
        let found = rust::Toolchain::find().ok().and_then(|toolchain| {
            let how =
                if toolchain.target()?.build_std { "built from rust-src" } else { "installed" };
            Some((toolchain.place().display().to_string(), format!("{}, {how}", toolchain.version)))
        });
        items.push(item(&format!("Rust target {}", rust::TRIPLE), found));
    }
    if needs.qemu {
        let found = qemu::present(cache.as_ref());
        let found =
            found.map(|qemu| (qemu.program.display().to_string(), qemu.version.to_string()));
        items.push(item(&format!("{} >= {}", qemu::PROGRAM, qemu::WANTED), found));
    }
    for &flavor in needs.linux {
        let found = cache.as_ref().and_then(|cache| debian::present(cache, flavor));
        let found = found.map(|kernel| (kernel.image.display().to_string(), kernel.version));
        items.push(item(&format!("Debian arm64 kernel {flavor}"), found));
    }
    if !needs.linux.is_empty() {
        let packages = debian::packages(cache.as_ref()).into_iter();
        items.extend(packages.map(|(name, found)| item(&format!("Debian arm64 {name}"), found)));
    }
    items
}

/// Gets everything in `needs`; stops at the first that cannot be had.
pub fn ensure(needs: &Needs, options: &Options) -> Result<(), Missing> {
    needs.programs.iter().try_for_each(|program| program.need())?;
    if needs.rust_target {
        ensure_rust_target(options)?;
    }
    if needs.qemu {
        ensure_qemu(options)?;
    }
    for &flavor in needs.linux {
        ensure_linux(options, flavor)?;
    }
    if !needs.linux.is_empty() {
        debian::ensure_packages(options)?;
    }
    Ok(())
}

/// Finds a QEMU of at least 9.1 on the search path, or one in the cache, which is fetched if need be.
pub fn ensure_qemu(options: &Options) -> Result<Qemu, Missing> {
    qemu::ensure(options)
}

/// The QEMU that `program` is, of at least 8.1; the error says why it is none.
pub fn named_qemu(program: &Path) -> Result<Qemu, String> {
    qemu::named(program)
}

/// Finds the Rust target of the bare-metal images, adding it or the compiler's sources through rustup if need be.
pub fn ensure_rust_target(options: &Options) -> Result<Target, Missing> {
    rust::ensure(options)
}

/// Finds a guest kernel in the cache, which is fetched if need be.
pub fn ensure_linux(options: &Options, flavor: Flavor) -> Result<Kernel, Missing> {
    debian::ensure_linux(options, flavor)
}

/// Finds the static arm64 busybox in the cache, which is fetched if need be; returns the program.
pub fn ensure_busybox(options: &Options) -> Result<PathBuf, Missing> {
    debian::ensure_busybox(options)
}

/// Finds the arm64 package `name` and the libraries it needs in the cache, which are fetched if need be; returns the root
/// of their tree.
pub fn ensure_program(options: &Options, name: &str) -> Result<PathBuf, Missing> {
    debian::ensure_program(options, name)
}

/// Finds one unpacked arm64 package of a Debian suite in the cache, which is fetched if need be; returns the root of
/// its tree. What it depends on does not come along.
pub fn ensure_package(options: &Options, name: &str, suite: &str) -> Result<PathBuf, Missing> {
    debian::ensure_package(options, name, suite)
}

/// Names the cache folder, for tools that are built once; creates nothing.
pub fn cache_folder(options: &Options) -> Result<PathBuf, Missing> {
    Ok(Cache::open(options)?.root().to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_reports_an_empty_cache_and_creates_nothing() {
        let root = tempfile::tempdir().unwrap();
        let options = Options { cache: Some(root.path().join("cache")), ..Options::default() };
        let needs = Needs { linux: &[Flavor::Cloud6_1], ..Needs::default() };
        let items = check(&needs, &options);
        assert_eq!(items.len(), 6);
        assert!(items.iter().any(|item| item.to_string().contains("kexec-tools")));
        assert!(items.iter().all(|item| matches!(item.state, State::Missing { .. })));
        assert!(items[0].to_string().contains("cloud-6.1"));
        assert!(!root.path().join("cache").exists());
    }

    #[test]
    fn a_mirror_is_checked_before_it_is_used() {
        let with =
            |mirror: &str| Options { mirror: Some(mirror.into()), ..Options::default() }.validate();
        assert_eq!(with("https://mirror.example/debian"), Ok(()));
        assert!(with("mirror.example").is_err());
        assert!(with("http://a b").unwrap_err().contains("http://a b"));
        assert_eq!(Options::default().validate(), Ok(()));
    }
}
