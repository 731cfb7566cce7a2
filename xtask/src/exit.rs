//! How a command ends: the exit codes that scripts rely on, and errors that carry one.

use std::fmt;
use std::process::ExitCode;

use crate::setup::Missing;

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

    /// The exit that `error` asks for by what it is or was caused by; [`Exit::Fail`] for all that ask for nothing.
    pub fn of(error: &anyhow::Error) -> Self {
        let asks = |cause: &(dyn std::error::Error + 'static)| {
            let bad_input = cause.is::<BadInput>().then_some(Self::BadInput);
            bad_input.or(cause.is::<Missing>().then_some(Self::Missing))
        };
        error.chain().find_map(asks).unwrap_or(Self::Fail)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Input that is refused. The text says what is wrong, where, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadInput(String);

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// Refuses input.
pub fn bad_input(text: impl Into<String>) -> anyhow::Error {
    BadInput(text.into()).into()
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn context_keeps_the_exit_code() {
        let error = Err::<(), _>(bad_input("no such key")).context("reading").unwrap_err();
        assert_eq!(Exit::of(&error), Exit::BadInput);
        let missing = Missing { what: "QEMU".into(), why: "no".into(), how: "buy one".into() };
        assert_eq!(Exit::of(&anyhow::Error::new(missing).context("setting up")), Exit::Missing);
        assert_eq!(Exit::of(&anyhow::anyhow!("anything else")), Exit::Fail);
    }
}
