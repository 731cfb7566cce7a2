//! One boot of the machine, and what a test may ask of it.

use std::fmt::Write as _;

use anyhow::{Result, anyhow, bail, ensure};
use xtask::exit::Exit;
use xtask::request::Request;
use xtask::run::{self, Outcome};

/// How many console lines a failure shows.
const SHOWN: usize = 60;
/// Seconds until a run that hangs is given up; far more than any takes on a loaded machine.
const TIMEOUT: &str = "600";

/// A run that is over.
#[derive(Debug)]
pub struct Run {
    /// What became of it.
    pub outcome: Outcome,
}

/// Reads the command line of `cargo xtask qemu`, with a time limit unless it has one.
///
/// # Errors
///
/// Whatever is wrong with it.
pub fn request(arguments: &[&str]) -> Result<Request> {
    let limit: &[&str] =
        if arguments.contains(&"--timeout") { &[] } else { &["--timeout", TIMEOUT] };
    Request::quiet(&[arguments, limit].concat())
}

/// Boots as `cargo xtask qemu` does with these arguments.
///
/// # Errors
///
/// What kept it from starting.
pub fn qemu(arguments: &[&str]) -> Result<Run> {
    boot(&request(arguments)?)
}

/// Boots what was asked for.
///
/// # Errors
///
/// What kept it from starting.
pub fn boot(request: &Request) -> Result<Run> {
    Ok(Run { outcome: run::run(request)? })
}

impl Run {
    /// Requires that the run passed.
    ///
    /// # Errors
    ///
    /// The table, and the end of the console.
    pub fn passed(self) -> Result<Self> {
        self.ended_with(Exit::Pass)
    }

    /// Requires an exit code.
    ///
    /// # Errors
    ///
    /// The table, and the end of the console.
    pub fn ended_with(self, exit: Exit) -> Result<Self> {
        if self.outcome.exit == exit {
            Ok(self)
        } else {
            Err(self.failure(&format!("expected {exit:?}")))
        }
    }

    /// Requires that the verdict found something that contains `text`.
    ///
    /// # Errors
    ///
    /// The table, and the end of the console.
    pub fn found(self, text: &str) -> Result<Self> {
        let found = self.outcome.verdict.findings.iter().any(|finding| finding.contains(text));
        if found { Ok(self) } else { Err(self.failure(&format!("nobody found {text:?}"))) }
    }

    /// Requires that the console printed a line that contains `text`.
    ///
    /// # Errors
    ///
    /// The table, and the end of the console.
    pub fn printed(self, text: &str) -> Result<Self> {
        let printed = self.outcome.console.iter().any(|line| line.contains(text));
        if printed { Ok(self) } else { Err(self.failure(&format!("nobody printed {text:?}"))) }
    }

    /// Requires anything else.
    ///
    /// # Errors
    ///
    /// What was required, the table, and the end of the console.
    pub fn holds(self, what: &str, condition: impl FnOnce(&Outcome) -> bool) -> Result<Self> {
        if condition(&self.outcome) {
            Ok(self)
        } else {
            Err(self.failure(&format!("not so: {what}")))
        }
    }

    /// Requires that the table has this line, whatever the spaces between its words.
    ///
    /// # Errors
    ///
    /// The table, and the end of the console.
    pub fn has_row(self, row: &str) -> Result<Self> {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let there =
            self.outcome.verdict.table().lines().any(|line| words(line).starts_with(&words(row)));
        if there { Ok(self) } else { Err(self.failure(&format!("the table has no row {row:?}"))) }
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        let Outcome { exit, verdict, console, duration, .. } = &self.outcome;
        let mut text = format!("{what}; it ended with {exit:?} after {} s\n", duration.as_secs());
        for line in console.iter().skip(console.len().saturating_sub(SHOWN)) {
            let _ = writeln!(text, "  | {line}");
        }
        let _ = write!(text, "{verdict}");
        anyhow!(text)
    }
}

/// Requires that the same arguments give the same console twice.
///
/// # Errors
///
/// The first line that differs.
pub fn repeats(arguments: &[&str]) -> Result<()> {
    let (first, second) = (qemu(arguments)?.outcome.console, qemu(arguments)?.outcome.console);
    let difference = first.iter().zip(&second).position(|(one, other)| one != other);
    if let Some(line) = difference {
        bail!("line {line} differs: {:?}, then {:?}", first[line], second[line]);
    }
    ensure!(first.len() == second.len(), "{} lines, then {}", first.len(), second.len());
    Ok(())
}
