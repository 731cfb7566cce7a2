//! QEMU: on the search path, in the cache, or fetched.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::apt::Apt;
use super::cache::{Cache, Entry, Lock};
use super::program::on_path;
use super::progress::{self, Outcome};
use super::system::System;
use super::{Missing, Options, Wanted};

/// The program.
pub const PROGRAM: &str = "qemu-system-aarch64";
/// The oldest release whose SMMU does both stages; set-up looks for this one.
pub const WANTED: Version = Version(9, 1, 0);
/// The oldest release that a user may name; before `WANTED` its SMMU does stage 2 only.
pub const OLDEST: Version = Version(8, 1, 0);

const MISSING: Wanted = Wanted {
    what: "QEMU >= 9.1 (qemu-system-aarch64)",
    how: "give a QEMU of your own with --qemu BIN, put one on PATH, or on Debian name another mirror with --mirror URL",
};

/// How long a QEMU may think about what it is, on the slowest of machines.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is fetched: the program, and ROMs for the network cards that have one.
const PACKAGES: [&str; 2] = ["qemu-system-arm", "ipxe-qemu"];

/// A QEMU release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// Reads the release from what `--version` prints.
    pub fn parse(text: &str) -> Option<Self> {
        Self::numbers(text.split_once("QEMU emulator version ")?.1)
    }

    /// Reads the release from a Debian package version.
    fn of_package(text: &str) -> Option<Self> {
        Self::numbers(text.split_once(':').map_or(text, |(_, version)| version))
    }

    /// Reads `major.minor[.patch]` at the start of `text`.
    fn numbers(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(str::parse);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Self(major, minor, numbers.next().and_then(Result::ok).unwrap_or(0)))
    }
}

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

    /// What it says to these arguments; the error is that it does not run, or does not answer.
    pub fn answer(&self, arguments: &[&str]) -> Result<Outcome, String> {
        progress::answer(self.command().args(arguments), PATIENCE).map_err(|error| {
            format!("{} {} does not run: {error}", self.program.display(), arguments.join(" "))
        })
    }

    /// Asks `program` for its release.
    fn ask(
        program: &Path,
        environment: Vec<(String, OsString)>,
        data: Vec<PathBuf>,
    ) -> Result<Self, String> {
        let mut qemu =
            Self { program: program.into(), environment, data, version: Version(0, 0, 0) };
        let answer = qemu.answer(&["--version"])?;
        qemu.version = Version::parse(&answer.output).ok_or_else(|| {
            let mut lines = answer.errors.lines().chain(answer.output.lines());
            let first = lines.next().unwrap_or("nothing");
            format!("{} --version printed {first:?} instead of a QEMU version", program.display())
        })?;
        Ok(qemu)
    }
}

/// See [`super::ensure_qemu`].
pub fn ensure(options: &Options) -> Result<Qemu, Missing> {
    if let Some(qemu) = installed() {
        return Ok(qemu);
    }
    let cache = Cache::open(options)?;
    if let Some(qemu) = cached(&cache) {
        return Ok(qemu);
    }
    let lock = cache.lock()?;
    // Another run may have fetched it while this one waited.
    if let Some(qemu) = cached(&cache) {
        return Ok(qemu);
    }
    if let Ok(old) = Qemu::ask(Path::new(PROGRAM), Vec::new(), Vec::new()) {
        cache.progress().note(&format!(
            "{PROGRAM} on PATH is {}, older than {WANTED}: fetching one",
            old.version
        ));
    }
    let entry = fetch(&cache, &lock, options)?;
    open(&entry).map_err(|why| MISSING.missing(why))
}

/// See [`super::named_qemu`].
pub fn named(program: &Path) -> Result<Qemu, String> {
    let qemu = Qemu::ask(program, Vec::new(), Vec::new())?;
    if qemu.version < OLDEST {
        return Err(format!(
            "{} is {}, older than {OLDEST}: its SMMU has no stage 2",
            program.display(),
            qemu.version
        ));
    }
    Ok(qemu)
}

/// The QEMU that is there already, on the search path or in the cache.
pub fn present(cache: Option<&Cache>) -> Option<Qemu> {
    installed().or_else(|| cached(cache?))
}

/// The QEMU on the search path, if it is new enough.
fn installed() -> Option<Qemu> {
    let qemu = Qemu::ask(Path::new(PROGRAM), Vec::new(), Vec::new()).ok()?;
    let program = on_path(Path::new(PROGRAM)).unwrap_or_else(|| qemu.program.clone());
    (qemu.version >= WANTED).then_some(Qemu { program, ..qemu })
}

fn cached(cache: &Cache) -> Option<Qemu> {
    open(&cache.get("qemu")?).ok().filter(|qemu| qemu.version >= WANTED)
}

/// Fetches QEMU with every library it needs but the C library, which has to be the one of the running loader.
fn fetch(cache: &Cache, lock: &Lock, options: &Options) -> Result<Entry, Missing> {
    let system = System::read(Path::new("/"));
    let archive =
        system.host_archive(options.mirror.as_deref()).map_err(|why| MISSING.missing(why))?;
    let architecture =
        Command::new("dpkg").arg("--print-architecture").stdin(Stdio::null()).output().map_err(
            |error| {
                MISSING.missing(format!("dpkg does not run ({error}): is this a system with apt?"))
            },
        )?;
    let architecture = String::from_utf8_lossy(&architecture.stdout).trim().to_owned();
    let apt = Apt::open(cache, lock, MISSING, &archive, &architecture)?;
    let mut packages = apt.closure(&PACKAGES)?;
    packages.retain(|package| {
        !matches!(package.name.as_str(), "libc6" | "debconf" | "passwd" | "adduser")
    });
    let version = packages
        .iter()
        .find(|package| package.name == PACKAGES[0])
        .and_then(|package| Version::of_package(&package.version))
        .ok_or_else(|| {
            apt.missing(format!("{} has no {}", archive.suites.join(" and "), PACKAGES[0]))
        })?;
    if version < WANTED {
        return Err(apt.missing(format!(
            "{} has QEMU {version}, older than {WANTED}",
            system.release.pretty
        )));
    }
    cache.build(lock, "qemu", |folder| {
        let downloads = folder.join("download");
        let tree = folder.join("unpacked");
        apt.download(&format!("QEMU {version}"), &packages, &downloads)?;
        apt.unpack(&downloads, &tree)?;
        let program = PathBuf::from("usr/bin").join(PROGRAM);
        let tidy = || {
            for name in ["lib", "usr/lib", "usr/share/qemu"] {
                let (from, to) = (tree.join(name), folder.join(name));
                if from.is_dir() {
                    fs::create_dir_all(to.parent().unwrap_or(folder))?;
                    fs::rename(from, to)?;
                }
            }
            fs::create_dir_all(folder.join("usr/bin"))?;
            fs::rename(tree.join(&program), folder.join(&program))?;
            fs::remove_dir_all(&tree)?;
            fs::remove_dir_all(&downloads)
        };
        tidy().map_err(|error| cache.unusable(&error))?;
        let unmet = unmet(folder, &program).map_err(|why| apt.missing(why))?;
        if !unmet.is_empty() {
            return Err(
                apt.missing(format!("the fetched QEMU does not start here: {}", unmet.join(", ")))
            );
        }
        Ok((version.to_string(), vec![program]))
    })
}

/// What the loader does not find for a program below `root`.
fn unmet(root: &Path, program: &Path) -> Result<Vec<String>, String> {
    let output = Command::new("ldd")
        .arg(root.join(program))
        .env("LD_LIBRARY_PATH", library_path(root))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("ldd does not run: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(parse_ldd(&text(&output.stdout), &text(&output.stderr)))
}

/// What `ldd` says is missing: libraries, and symbol versions that an older library lacks.
fn parse_ldd(output: &str, errors: &str) -> Vec<String> {
    let library =
        |line: &str| Some(format!("{} is not found", line.trim().strip_suffix(" => not found")?));
    let version = |line: &str| {
        let (before, after) = line.split_once(": version `")?;
        let (version, _) = after.split_once("' not found")?;
        let file = before.rsplit(": ").next().unwrap_or(before);
        Some(format!("this system's {file} is too old: it has no {version}"))
    };
    let mut unmet: Vec<String> = output.lines().filter_map(library).collect();
    unmet.extend(errors.lines().chain(output.lines()).filter_map(version));
    unmet.sort();
    unmet.dedup();
    unmet
}

/// The folders with libraries below `root`.
fn library_folders(root: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for base in ["usr/lib", "lib"] {
        let Ok(entries) = fs::read_dir(root.join(base)) else { continue };
        folders.extend(entries.flatten().map(|entry| entry.path()).filter(|path| {
            path.is_dir()
                && path
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().contains("-linux-gnu"))
        }));
    }
    folders
}

fn library_path(root: &Path) -> OsString {
    std::env::join_paths(library_folders(root)).unwrap_or_default()
}

/// The QEMU in a cache entry.
fn open(entry: &Entry) -> Result<Qemu, String> {
    let root = &entry.path;
    let modules = library_folders(root)
        .into_iter()
        .map(|folder| folder.join("qemu"))
        .find(|folder| folder.is_dir());
    let mut environment = vec![("LD_LIBRARY_PATH".to_owned(), library_path(root))];
    environment
        .extend(modules.map(|folder| ("QEMU_MODULE_DIR".to_owned(), folder.into_os_string())));
    let data = ["usr/share/qemu", "usr/lib/ipxe/qemu"].map(|name| root.join(name));
    let data = data.into_iter().filter(|folder| folder.is_dir()).collect();
    Qemu::ask(&root.join("usr/bin").join(PROGRAM), environment, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_from_what_qemu_prints() {
        let parse = |text| Version::parse(text).unwrap();
        assert_eq!(
            parse("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"),
            Version(10, 0, 2)
        );
        assert_eq!(parse("QEMU emulator version 9.1\n"), Version(9, 1, 0));
        assert_eq!(parse("QEMU emulator version 10.2.0-rc1 (v10.2.0-rc1)"), Version(10, 2, 0));
        assert_eq!(parse("warning: x\nQEMU emulator version 8.2.2"), Version(8, 2, 2));
        assert_eq!(Version::parse("qemu-img version 10.0.2"), None);
        assert_eq!(Version::parse("QEMU emulator version x"), None);
        assert!(Version(9, 0, 9) < WANTED && Version(10, 0, 0) > WANTED);
    }

    #[test]
    fn releases_are_read_from_package_versions() {
        assert_eq!(Version::of_package("1:10.0.2+ds-2+deb13u1~bpo12+1"), Some(Version(10, 0, 2)));
        assert_eq!(Version::of_package("1:8.2.2+ds-0ubuntu1.10"), Some(Version(8, 2, 2)));
        assert_eq!(Version::of_package("unknown"), None);
    }

    #[test]
    fn ldd_names_what_is_missing() {
        let output = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibfdt.so.1 => not found\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let errors = "/c/qemu: /lib/libc.so.6: version `GLIBC_2.38' not found (required by /c/qemu)\n\
                      /c/qemu: /lib/libc.so.6: version `GLIBC_2.38' not found (required by /c/libfdt.so.1)\n";
        let unmet = parse_ldd(output, errors);
        assert_eq!(
            unmet,
            [
                "libfdt.so.1 is not found",
                "this system's /lib/libc.so.6 is too old: it has no GLIBC_2.38"
            ]
        );
        assert!(parse_ldd("\tstatically linked\n", "").is_empty());
    }

    fn program(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("qemu");
        // A shell writes it: were it open for writing here, another test's fork could keep it busy for `exec`.
        let script =
            format!("printf \"#!/bin/sh\\necho '{text}'\\n\" > \"$0\" && chmod 755 \"$0\"");
        assert!(Command::new("sh").arg("-c").arg(script).arg(&path).status().unwrap().success());
        path
    }

    #[test]
    fn a_named_qemu_is_asked_for_its_release() {
        let folder = tempfile::tempdir().unwrap();
        let good = program(folder.path(), "QEMU emulator version 8.1.0");
        assert_eq!(named(&good).unwrap().version, Version(8, 1, 0));
        let old = program(folder.path(), "QEMU emulator version 8.0.5");
        assert!(named(&old).unwrap_err().contains("8.0.5"));
        let other = program(folder.path(), "GNU bash");
        assert!(named(&other).unwrap_err().contains("GNU bash"));
        assert!(named(Path::new("/nonexistent/qemu")).unwrap_err().contains("/nonexistent/qemu"));
    }

    #[test]
    fn a_cached_qemu_knows_its_libraries_modules_and_roms() {
        let root = tempfile::tempdir().unwrap();
        for name in
            ["usr/bin", "usr/lib/x86_64-linux-gnu/qemu", "lib/x86_64-linux-gnu", "usr/share/qemu"]
        {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        let made = program(root.path(), "QEMU emulator version 10.0.2");
        fs::rename(made, root.path().join("usr/bin").join(PROGRAM)).unwrap();
        let qemu = open(&Entry { path: root.path().into(), version: "10.0.2".into() }).unwrap();
        assert_eq!(qemu.version, Version(10, 0, 2));
        assert_eq!(qemu.data, [root.path().join("usr/share/qemu")]);
        let libraries = qemu.environment[0].1.to_string_lossy().into_owned();
        assert!(
            libraries.contains("usr/lib/x86_64-linux-gnu:")
                && libraries.ends_with("/lib/x86_64-linux-gnu")
        );
        assert_eq!(qemu.environment[1].0, "QEMU_MODULE_DIR");
    }
}
