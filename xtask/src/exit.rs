//! How a command ends: the exit codes that scripts rely on, and errors that carry one.

use std::fmt;
use std::process::ExitCode;

/// The ways in which a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything held.
    Pass,
    /// Something that had to hold did not.
    Fail,
    /// The command line, a manifest or a file named there is wrong; nothing was started.
    BadInput,
    /// Something that must be on this machine is not, and could not be fetched.
    Missing,
    /// The time limit passed first.
    TimedOut,
}

impl Exit {
    /// The process exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::BadInput => 2,
            Self::Missing => 3,
            Self::TimedOut => 124,
        }
    }

    /// The exit that `error` asks for: that of the first [`Refusal`] in its chain, else [`Exit::Fail`].
    pub fn of(error: &anyhow::Error) -> Self {
        error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Refusal>())
            .map_or(Self::Fail, |refusal| refusal.exit)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error that decides the exit code. Its text says what is wrong, where, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    exit: Exit,
    text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {}

/// Refuses input: exit code 2.
pub fn bad_input(text: impl Into<String>) -> anyhow::Error {
    Refusal { exit: Exit::BadInput, text: text.into() }.into()
}

/// Reports a missing prerequisite: exit code 3.
pub fn missing(text: impl Into<String>) -> anyhow::Error {
    Refusal { exit: Exit::Missing, text: text.into() }.into()
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn context_keeps_the_exit_code() {
        let error = Err::<(), _>(missing("no QEMU")).context("setting up").unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Missing);
        assert_eq!(Exit::of(&anyhow::anyhow!("anything else")), Exit::Fail);
    }
}
