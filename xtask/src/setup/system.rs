//! The running system: which distribution it is and which archives its apt uses.

use std::fs;
use std::path::Path;

use super::sources::{self, Source};

/// What `/etc/os-release` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// The distribution, such as `debian`.
    pub id: String,
    /// The name of the release, such as `bookworm`; empty where the distribution has none.
    pub codename: String,
    /// The name for humans.
    pub pretty: String,
}

impl Release {
    /// Parses the text of an os-release file.
    pub fn parse(text: &str) -> Self {
        let value = |key: &str| {
            text.lines()
                .filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))
                .next_back()
                .map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
        };
        let id = value("ID").unwrap_or_else(|| "linux".into());
        Self {
            codename: value("VERSION_CODENAME").unwrap_or_default(),
            pretty: value("PRETTY_NAME").unwrap_or_else(|| id.clone()),
            id,
        }
    }
}

/// The running system.
#[derive(Clone, Debug)]
pub struct System {
    /// Its release.
    pub release: Release,
    /// The sources of its apt.
    pub sources: Vec<Source>,
}

impl System {
    /// Reads the system whose root is `root`.
    pub fn read(root: &Path) -> Self {
        let os_release = ["etc/os-release", "usr/lib/os-release"]
            .iter()
            .find_map(|name| fs::read_to_string(root.join(name)).ok())
            .unwrap_or_default();
        Self { release: Release::parse(&os_release), sources: sources::read(&root.join("etc/apt")) }
    }
}

/// Signed packages of one architecture: where they are and which keys must have signed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// The archive, as in a `URIs` field of apt's sources.
    pub uri: String,
    /// Suites, the one to prefer last.
    pub suites: Vec<String>,
    /// Components.
    pub components: &'static str,
    /// The keyring that must have signed the suites.
    pub keyring: &'static str,
}

/// The keyring of Debian's archive.
const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The keyring of Ubuntu's archive.
const UBUNTU_KEYRING: &str = "/usr/share/keyrings/ubuntu-archive-keyring.gpg";

impl System {
    /// The archive for programs that run on this system, or why there is none.
    ///
    /// Debian 12's own QEMU is too old, so its backports come along; later releases are new enough as they are.
    pub fn host_archive(&self, mirror: Option<&str>) -> Result<Archive, String> {
        let codename = self.release.codename.as_str();
        let pretty = &self.release.pretty;
        if codename.is_empty() {
            return Err(format!("{pretty} does not say which release it is (VERSION_CODENAME)"));
        }
        let (components, keyring, suites) = match self.release.id.as_str() {
            "debian" if matches!(codename, "bullseye" | "bookworm") => {
                ("main", DEBIAN_KEYRING, vec![codename.to_owned(), format!("{codename}-backports")])
            }
            "debian" => ("main", DEBIAN_KEYRING, vec![codename.to_owned()]),
            "ubuntu" => (
                "main universe",
                UBUNTU_KEYRING,
                vec![codename.to_owned(), format!("{codename}-updates")],
            ),
            _ => return Err(format!("{pretty} is neither Debian nor Ubuntu")),
        };
        // A mirror given by the user is one of Debian's.
        let mirror = mirror.filter(|_| self.release.id == "debian");
        let uri = self.choose(mirror, codename, keyring)?;
        Ok(Archive { uri, suites, components, keyring })
    }

    /// Debian's archive with one suite, for packages that are not run on this system, or why there is none.
    pub fn debian_archive(&self, mirror: Option<&str>, suite: &str) -> Result<Archive, String> {
        let uri = self.choose(mirror, &self.release.codename, DEBIAN_KEYRING)?;
        Ok(Archive {
            uri,
            suites: vec![suite.to_owned()],
            components: "main",
            keyring: DEBIAN_KEYRING,
        })
    }

    fn choose(
        &self,
        mirror: Option<&str>,
        codename: &str,
        keyring: &str,
    ) -> Result<String, String> {
        let owner = if keyring == DEBIAN_KEYRING { "debian" } else { "ubuntu" };
        match mirror {
            Some(mirror) => {
                sources::valid_uri(mirror).then(|| mirror.to_owned()).ok_or_else(|| {
                    format!("--mirror {mirror:?} is not a URI such as apt's sources have")
                })
            }
            None if self.release.id != owner => Err(format!(
                "{} has no archive of {owner}'s in its apt sources",
                self.release.pretty
            )),
            None => sources::main_archive(&self.sources, codename, owner).ok_or_else(|| {
                format!(
                    "no entry in the apt sources of {} has {codename} main",
                    self.release.pretty
                )
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\n\
                            VERSION_CODENAME=bookworm\nID=debian\n";
    const TRIXIE: &str =
        "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_CODENAME=trixie\nID=debian\n";
    const NOBLE: &str = "PRETTY_NAME=\"Ubuntu 24.04.3 LTS\"\nID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\nUBUNTU_CODENAME=noble\n";

    fn system(release: &str, list: &str) -> System {
        System { release: Release::parse(release), sources: sources::parse_list(list) }
    }

    #[test]
    fn release_is_read_from_os_release() {
        let release = Release::parse(BOOKWORM);
        assert_eq!((release.id.as_str(), release.codename.as_str()), ("debian", "bookworm"));
        assert_eq!(release.pretty, "Debian GNU/Linux 12 (bookworm)");
        let bare = Release::parse("ID='alpine'\n");
        assert_eq!(
            (bare.id.as_str(), bare.codename.as_str(), bare.pretty.as_str()),
            ("alpine", "", "alpine")
        );
    }

    #[test]
    fn debian_12_takes_qemu_from_its_backports_and_debian_13_from_itself() {
        let old = system(BOOKWORM, "deb http://mirror.example/debian bookworm main\n");
        let archive = old.host_archive(None).unwrap();
        assert_eq!(archive.suites, ["bookworm", "bookworm-backports"]);
        assert_eq!(archive.uri, "http://mirror.example/debian");
        let new = system(TRIXIE, "deb http://mirror.example/debian trixie main\n");
        assert_eq!(new.host_archive(None).unwrap().suites, ["trixie"]);
    }

    #[test]
    fn a_mirror_replaces_debian_and_only_debian() {
        let debian = system(BOOKWORM, "");
        assert!(debian.host_archive(None).unwrap_err().contains("bookworm main"));
        assert_eq!(
            debian.host_archive(Some("https://m.example/d")).unwrap().uri,
            "https://m.example/d"
        );
        assert!(
            debian.host_archive(Some("https://m.example/d d")).unwrap_err().contains("--mirror")
        );
        let ubuntu = system(NOBLE, "deb http://archive.example/ubuntu noble main universe\n");
        let host = ubuntu.host_archive(Some("https://m.example/d")).unwrap();
        assert_eq!(
            (host.uri.as_str(), host.keyring),
            ("http://archive.example/ubuntu", UBUNTU_KEYRING)
        );
        assert_eq!(
            ubuntu.debian_archive(Some("https://m.example/d"), "bookworm").unwrap().keyring,
            DEBIAN_KEYRING
        );
        assert!(ubuntu.debian_archive(None, "bookworm").unwrap_err().contains("debian"));
    }

    #[test]
    fn other_systems_are_refused_by_name() {
        let error = system("ID=fedora\nPRETTY_NAME=\"Fedora 43\"\nVERSION_CODENAME=x\n", "")
            .host_archive(None);
        assert!(error.unwrap_err().contains("Fedora 43"));
        assert!(
            system("ID=debian\n", "").host_archive(None).unwrap_err().contains("VERSION_CODENAME")
        );
    }
}
