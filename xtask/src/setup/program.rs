//! Programs of this system that building and testing take, and that set-up cannot fetch, because it installs nothing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Missing;
use super::progress::answer;

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(60);

/// Such a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// What links programs for this machine, such as this one.
    Linker,
    /// What builds libFuzzer.
    Cpp,
    /// What applies patches to a copy of the sources, and names the commit that results are of.
    Git,
}

impl Program {
    /// What it is, and what for.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Linker => "a C compiler, to link with",
            Self::Cpp => "a C++ compiler, for libFuzzer",
            Self::Git => "git, for tests and soaks",
        }
    }

    /// The names that it may have, and how to get it.
    fn sought(self) -> (Vec<OsString>, &'static str) {
        match self {
            Self::Linker => {
                (["cc", "gcc", "clang"].map(Into::into).into(), "install one (Debian: gcc)")
            }
            Self::Cpp => {
                let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
                (vec![compiler], "install one (Debian: g++), or name it in CXX")
            }
            Self::Git => (vec!["git".into()], "install it (Debian: git)"),
        }
    }

    /// Where it is, and its version, if it runs.
    pub fn find(self) -> Option<(PathBuf, String)> {
        self.sought().0.into_iter().find_map(|name| {
            let outcome = answer(Command::new(&name).arg("--version"), PATIENCE).ok()?;
            let version = outcome.output.lines().next().unwrap_or_default().to_owned();
            let path = on_path(Path::new(&name)).unwrap_or_else(|| name.into());
            outcome.success.then_some((path, version))
        })
    }

    /// How to get it.
    pub fn how(self) -> &'static str {
        self.sought().1
    }

    /// Requires it.
    ///
    /// # Errors
    ///
    /// If it is not there or does not run.
    pub fn need(self) -> Result<(), Missing> {
        if self.find().is_some() {
            return Ok(());
        }
        let (names, how) = self.sought();
        let names: Vec<String> = names.iter().map(|name| format!("`{}`", name.display())).collect();
        let why = format!("no {} that runs", names.join(", "));
        Err(Missing { what: self.what().into(), why, how: how.into() })
    }
}

/// Where a program is on the search path.
pub fn on_path(name: &Path) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}
