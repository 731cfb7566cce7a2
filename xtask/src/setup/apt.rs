//! A private apt: the system's programs and mirrors, but a configuration, package lists and state of its own.
//!
//! apt knows of no installed package here, so a closure is complete whatever the system has, and nothing it does
//! can reach the system. Signatures are apt's: each archive names its keyring, and everything unsigned is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cache::{Cache, Lock};
use super::progress::Outcome;
use super::system::Archive;
use super::{Missing, Wanted};

/// The settings of the system's apt that say how to reach a mirror: proxies, certificates, timeouts, retries.
const ACCESS: [&str; 8] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::ftp::",
    "Acquire::tor::",
    "Acquire::Retries ",
    "Acquire::ForceIPv4 ",
    "Acquire::ForceIPv6 ",
    "Acquire::Check-Valid-Until ",
];

/// A private apt with current package lists.
#[derive(Debug)]
pub struct Apt<'a> {
    cache: &'a Cache,
    lock: &'a Lock,
    wanted: Wanted,
    config: PathBuf,
    release: String,
}

/// A package that can be downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Bytes to download.
    pub size: u64,
}

impl<'a> Apt<'a> {
    /// Prepares an apt for one archive and architecture and fetches its package lists.
    pub fn open(
        cache: &'a Cache,
        lock: &'a Lock,
        wanted: Wanted,
        archive: &Archive,
        architecture: &str,
    ) -> Result<Self, Missing> {
        let suites = archive.suites.join(" ");
        let key = format!("{}-{architecture}", archive.suites.join("+"));
        let folder = cache.root().join("apt").join(key);
        let apt = Self {
            cache,
            lock,
            wanted,
            config: folder.join("apt.conf"),
            release: archive.suites.last().cloned().unwrap_or_default(),
        };
        if !Path::new(archive.keyring).exists() {
            return Err(
                apt.missing(format!("{} is not there to verify the packages", archive.keyring))
            );
        }
        let access = Command::new("apt-config")
            .args(["dump", "Acquire"])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                apt.missing(format!(
                    "apt-config does not run ({error}): is this a system with apt?"
                ))
            })?;
        let access = String::from_utf8_lossy(&access.stdout);
        let write = || {
            for name in ["lists/partial", "archives/partial"] {
                fs::create_dir_all(folder.join(name))?;
            }
            fs::write(folder.join("status"), "")?;
            fs::write(folder.join("archive.sources"), sources(archive))?;
            fs::write(&apt.config, configuration(&folder, architecture, &access))
        };
        write().map_err(|error| cache.unusable(&error))?;
        cache.progress().step(&format!(
            "reading the package lists of {suites} ({architecture}) from {}",
            archive.uri
        ));
        let lists = folder.join("lists");
        apt.run(apt.command("apt-get").args(["--yes", "update"]), || {
            format!("{} so far", megabytes(bytes_in(&lists)))
        })?;
        Ok(apt)
    }

    /// The packages `names` alone.
    pub fn find(&self, names: &[&str]) -> Result<Vec<Package>, Missing> {
        let outcome = self.run(
            self.command("apt-get")
                .args(["--yes", "--print-uris", "-t", &self.release, "download"])
                .args(names),
            || "choosing packages".into(),
        )?;
        Ok(parse_uris(&outcome.output))
    }

    /// The packages `names` and everything they depend on.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<Package>, Missing> {
        let outcome = self.run(
            self.command("apt-get")
                .args([
                    "--yes",
                    "--print-uris",
                    "--no-install-recommends",
                    "-t",
                    &self.release,
                    "install",
                ])
                .args(names),
            || "choosing packages".into(),
        )?;
        Ok(parse_uris(&outcome.output))
    }

    /// The names `package` depends on.
    pub fn dependencies(&self, package: &Package) -> Result<Vec<String>, Missing> {
        let outcome = self.run(
            self.command("apt-cache")
                .arg("depends")
                .arg(format!("{}={}", package.name, package.version)),
            || "reading dependencies".into(),
        )?;
        Ok(parse_depends(&outcome.output))
    }

    /// Downloads packages; `title` names them for the user.
    pub fn download(
        &self,
        title: &str,
        packages: &[Package],
        folder: &Path,
    ) -> Result<(), Missing> {
        let total = packages.iter().map(|package| package.size).sum();
        let count = plural(packages.len(), "package");
        self.cache.progress().step(&format!("downloading {title} ({count}, {})", megabytes(total)));
        fs::create_dir_all(folder).map_err(|error| self.cache.unusable(&error))?;
        let names = packages.iter().map(|package| format!("{}={}", package.name, package.version));
        self.run(
            self.command("apt-get").current_dir(folder).args(["--yes", "download"]).args(names),
            || format!("{} of {}", megabytes(bytes_in(folder)), megabytes(total)),
        )?;
        Ok(())
    }

    /// Unpacks every package in `folder` over each other into `tree`, without set-user-ID bits.
    pub fn unpack(&self, folder: &Path, tree: &Path) -> Result<(), Missing> {
        let files = fs::read_dir(folder).map_err(|error| self.cache.unusable(&error))?;
        let mut files: Vec<_> = files
            .flatten()
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        files.sort();
        self.cache.progress().step(&format!("unpacking {}", plural(files.len(), "package")));
        for file in files {
            self.run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(tree), || {
                "unpacking".into()
            })?;
        }
        drop_privileges(tree).map_err(|error| self.cache.unusable(&error))
    }

    /// The error that set-up cannot get what is wanted.
    pub fn missing(&self, why: String) -> Missing {
        self.wanted.missing(why)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn run(&self, command: &mut Command, status: impl Fn() -> String) -> Result<Outcome, Missing> {
        let program = command.get_program().to_string_lossy().into_owned();
        let outcome = self
            .cache
            .progress()
            .run(command, self.lock.stdin(), status)
            .map_err(|error| self.missing(format!("{program} does not run: {error}")))?;
        if outcome.success {
            Ok(outcome)
        } else {
            Err(self.missing(format!("{program}: {}", outcome.reason())))
        }
    }
}

/// The private apt's sources.
fn sources(archive: &Archive) -> String {
    format!(
        "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\nSigned-By: {}\n",
        archive.uri,
        archive.suites.join(" "),
        archive.components,
        archive.keyring
    )
}

/// The private apt's configuration. apt reads it before the system's, whose files it then makes apt skip: they may
/// hold hooks. `access` is the system's `apt-config dump Acquire`, of which only [`ACCESS`] is kept.
fn configuration(folder: &Path, architecture: &str, access: &str) -> String {
    let folder = folder.display();
    // A mirror that does not answer is given up on within two minutes, unless the system's apt says otherwise.
    let mut text =
        "Acquire::Retries \"1\";\nAcquire::http::Timeout \"20\";\nAcquire::https::Timeout \"20\";\n".to_owned();
    let access: String = access
        .lines()
        .filter(|line| ACCESS.iter().any(|name| line.starts_with(name)))
        .map(|line| format!("{line}\n"))
        .collect();
    text += &access;
    text += &format!(
        "Dir::State \"{folder}\";\n\
         Dir::State::status \"{folder}/status\";\n\
         Dir::State::lists \"{folder}/lists\";\n\
         Dir::Cache \"{folder}\";\n\
         Dir::Cache::archives \"{folder}/archives\";\n\
         Dir::Cache::pkgcache \"\";\n\
         Dir::Cache::srcpkgcache \"\";\n\
         Dir::Etc::sourcelist \"{folder}/archive.sources\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::parts \"/dev/null\";\n\
         Dir::Etc::main \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::Etc::trusted \"/dev/null\";\n\
         Dir::Etc::trustedparts \"/dev/null\";\n\
         Dir::Log \"{folder}\";\n\
         APT::Architecture \"{architecture}\";\n\
         APT::Architectures {{ \"{architecture}\"; }};\n\
         APT::Sandbox::User \"root\";\n\
         APT::Get::AllowUnauthenticated \"false\";\n\
         APT::Update::Error-Mode \"any\";\n\
         Acquire::AllowInsecureRepositories \"false\";\n\
         Acquire::AllowWeakRepositories \"false\";\n\
         Acquire::AllowDowngradeToInsecureRepositories \"false\";\n\
         Acquire::GzipIndexes \"true\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Debug::NoLocking \"true\";\n"
    );
    text
}

/// Parses `--print-uris`: `'URI' name_version_architecture.deb size hash` per package.
fn parse_uris(text: &str) -> Vec<Package> {
    text.lines()
        .filter_map(|line| {
            let (_, rest) = line.strip_prefix('\'')?.split_once("' ")?;
            let mut words = rest.split(' ');
            let mut parts = words.next()?.strip_suffix(".deb")?.split('_');
            Some(Package {
                name: parts.next()?.to_owned(),
                version: parts.next()?.replace("%3a", ":"),
                size: words.next()?.parse().ok()?,
            })
        })
        .collect()
}

/// Parses `apt-cache depends`.
fn parse_depends(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "))
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Bytes in the files of a folder.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(files) = fs::read_dir(folder) else { return 0 };
    files
        .flatten()
        .map(|file| match file.metadata() {
            Ok(about) if about.is_dir() => bytes_in(&file.path()),
            Ok(about) => about.len(),
            Err(_) => 0,
        })
        .sum()
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Removes the set-user-ID and set-group-ID bits below `tree`: packages are data here, and root may be unpacking.
fn drop_privileges(tree: &Path) -> std::io::Result<()> {
    for file in fs::read_dir(tree)? {
        let path = file?.path();
        let about = fs::symlink_metadata(&path)?;
        if about.is_symlink() {
            continue;
        }
        let mode = about.permissions().mode();
        if mode & 0o6000 != 0 {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o1777))?;
        }
        if about.is_dir() {
            drop_privileges(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_from_print_uris() {
        let text = "Reading package lists...\n\
            'http://m.example/debian/pool/main/d/libfdt1_1.6.1-4%2bb1_amd64.deb' libfdt1_1.6.1-4+b1_amd64.deb 19036 SHA256:00\n\
            'http://m.example/debian/pool/main/q/qemu.deb' qemu-system-arm_1%3a10.0.2+ds-2~bpo12+1_amd64.deb 9788540 \n";
        let packages = parse_uris(text);
        assert_eq!(packages.len(), 2);
        assert_eq!(
            packages[0],
            Package { name: "libfdt1".into(), version: "1.6.1-4+b1".into(), size: 19_036 }
        );
        assert_eq!(packages[1].version, "1:10.0.2+ds-2~bpo12+1");
    }

    #[test]
    fn dependencies_are_read_from_apt_cache() {
        let text = "linux-image-7.3\n  PreDepends: linux-base\n |Depends: dracut\n  Depends: <linux-initramfs-tool>\n    \
                    dracut\n  Depends: linux-modules-7.3\n  Breaks: x\n";
        assert_eq!(parse_depends(text), ["dracut", "<linux-initramfs-tool>", "linux-modules-7.3"]);
    }

    #[test]
    fn the_configuration_keeps_the_proxy_and_drops_hooks_and_laxness() {
        let access = "Acquire \"\";\nAcquire::AllowInsecureRepositories \"true\";\n\
                      Acquire::http::Proxy \"http://proxy.example:3128\";\nAcquire::gpgv::Options \"x\";\n";
        let text = configuration(Path::new("/c"), "arm64", access);
        assert!(text.contains("Acquire::http::Proxy \"http://proxy.example:3128\";\n"));
        assert!(
            text.find("Timeout \"20\"").unwrap() < text.find("Proxy").unwrap(),
            "the system's settings win"
        );
        assert!(!text.contains("\"x\""));
        assert!(!text.contains("AllowInsecureRepositories \"true\""));
        assert!(text.contains("Dir::Etc::parts \"/dev/null\";"));
    }

    #[test]
    fn unpacked_programs_lose_their_privileges_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let tool = root.path().join("bin/tool");
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::write(&tool, "").unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o6755)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("link")).unwrap();
        drop_privileges(root.path()).unwrap();
        assert_eq!(fs::metadata(&tool).unwrap().permissions().mode() & 0o7777, 0o755);
    }
}
