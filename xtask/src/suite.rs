//! `cargo xtask test`: host tests and system tests, summed up.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};

use crate::cli::TestArgs;
use crate::exit::{Exit, bad_input};
use crate::setup::{self, Flavor, Needs, Program};
use crate::workspace;

/// Which tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    All,
    /// Those that need no QEMU.
    Host,
    /// System tests with bare-metal guests.
    Qemu,
    /// System tests with Linux guests.
    Linux,
}

impl Scope {
    /// The scope that the command line asks for.
    pub fn of(args: &TestArgs) -> Self {
        match (args.host, args.qemu, args.linux) {
            (true, ..) => Self::Host,
            (_, true, _) => Self::Qemu,
            (.., true) => Self::Linux,
            _ => Self::All,
        }
    }

    fn has_host(self) -> bool {
        matches!(self, Self::All | Self::Host)
    }

    fn has_system(self) -> bool {
        self != Self::Host
    }

    /// What has to be there.
    pub fn needs(self) -> Needs {
        Needs {
            qemu: self.has_system(),
            rust_target: self.has_system(),
            linux: match self {
                Self::All | Self::Linux => &Flavor::ALL,
                Self::Host | Self::Qemu => &[],
            },
            programs: &[Program::Linker, Program::Git],
        }
    }

    /// The group of system tests that is left out, by the start of its tests' names.
    fn skipped(self) -> Option<&'static str> {
        match self {
            Self::Qemu => Some("linux::"),
            Self::Linux => Some("qemu::"),
            Self::All | Self::Host => None,
        }
    }
}

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: u64,
    /// Failed; a test program that does not build or breaks off counts as one.
    pub failed: u64,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// The exit code that it means.
    pub fn exit(self) -> Exit {
        if self.failed == 0 { Exit::Pass } else { Exit::Fail }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs the tests of `scope` whose names contain `filter`.
///
/// # Errors
///
/// A missing prerequisite, or a filter that no test passes.
pub fn run(scope: Scope, filter: Option<&str>, options: &setup::Options) -> Result<Tally> {
    setup::ensure(&scope.needs(), options)?;
    let mut tally = Tally::default();
    if scope.has_host() {
        let mut cargo = workspace::cargo();
        cargo.args([
            "test",
            "--workspace",
            "--exclude",
            "guest",
            "--exclude",
            "tests",
            "--no-fail-fast",
            "--",
        ]);
        tally.add(tests(cargo.args(filter))?);
    }
    if scope.has_system() {
        let mut cargo = workspace::cargo();
        cargo.args(["test", "--package", "tests", "--"]);
        if let Some(skipped) = scope.skipped() {
            cargo.args(["--skip", skipped]);
        }
        tally.add(tests(cargo.args(filter))?);
    }
    match filter {
        Some(filter) if tally == Tally::default() => {
            Err(bad_input(format!("no test's name contains {filter:?}")))
        }
        _ => Ok(tally),
    }
}

/// Runs one cargo that runs tests, and adds up what its test programs say. What they print is passed on.
fn tests(cargo: &mut Command) -> Result<Tally> {
    let mut child =
        cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("running cargo test")?;
    let stdout =
        child.stdout.take().ok_or_else(|| anyhow!("cargo was started without its output"))?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("reading what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        // A terminal that is gone does not fail a test.
        let _ = writeln!(std::io::stdout(), "{line}");
        if let Some(result) = summary(&line) {
            tally.add(result);
        }
    }
    let status = child.wait().context("waiting for cargo test")?;
    if !status.success() && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(tally)
}

/// Reads a test program's last line: `test result: ok. 3 passed; 0 failed; ...`.
fn summary(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |word: &str| {
        let part = counts.split(';').find(|part| part.trim().ends_with(word))?;
        part.split_whitespace().next()?.parse().ok()
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let ok = "test result: ok. 70 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.08s";
        assert_eq!(summary(ok), Some(Tally { passed: 70, failed: 0 }));
        let failed =
            "test result: FAILED. 3 passed; 12 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(summary(failed), Some(Tally { passed: 3, failed: 12 }));
        assert_eq!(summary("running 3 tests"), None);
    }

    /// What a system test would say only after minutes.
    #[test]
    fn every_sabotage_patch_applies() {
        let folder = workspace::root().join("tests/sabotage");
        let mut patches = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let patch = entry.unwrap().path();
            let mut git = Command::new("git");
            git.args(["apply", "--check"]).arg(&patch).current_dir(workspace::root());
            let output = git.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{} does not apply: {said}", patch.display());
            patches += 1;
        }
        assert!(patches > 0, "no patches in {}", folder.display());
    }

    #[test]
    fn the_last_line_is_what_scripts_read() {
        let mut tally = Tally { passed: 3, failed: 0 };
        assert_eq!(tally.exit(), Exit::Pass);
        tally.add(Tally { passed: 1, failed: 2 });
        assert_eq!(tally.to_string(), "4 passed, 2 failed");
        assert_eq!(tally.exit(), Exit::Fail);
    }
}
