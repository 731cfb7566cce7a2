//! What an operator may ask for: one command per line on the UART that EL2 alone owns.

use core::fmt;
use core::str::FromStr;

use crate::name::{self, NameError};
use crate::report::Name;

/// The longest command line, without its line end.
pub const MAX_LINE: usize = 64;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send a complete report now.
    Report,
    /// Tear the VM down as if it had faulted.
    Kill(Name),
    /// Tear the VM down and start it again.
    Restart(Name),
    /// Tear the VM down for good, as if it had switched itself off.
    Off(Name),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Report => f.write_str("report"),
            Self::Kill(vm) => write!(f, "kill {vm}"),
            Self::Restart(vm) => write!(f, "restart {vm}"),
            Self::Off(vm) => write!(f, "off {vm}"),
        }
    }
}

/// Why a line is not a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// It has no word in it.
    Empty,
    /// It starts with a word that is no command.
    Unknown,
    /// The command needs a VM's name.
    NameMissing,
    /// The name cannot be a VM's.
    Name(NameError),
    /// Words follow the end of the command.
    TooManyWords,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => {
                f.write_str("no command: say report, kill NAME, restart NAME or off NAME")
            }
            Self::Unknown => {
                f.write_str("unknown command: say report, kill NAME, restart NAME or off NAME")
            }
            Self::NameMissing => f.write_str("the command needs the name of a VM"),
            Self::Name(error) => write!(f, "not the name of a VM: {error}"),
            Self::TooManyWords => f.write_str("words follow the end of the command"),
        }
    }
}

impl core::error::Error for CommandError {}

impl FromStr for Command {
    type Err = CommandError;

    fn from_str(line: &str) -> Result<Self, CommandError> {
        let mut words = line.split_ascii_whitespace();
        let command = words.next().ok_or(CommandError::Empty)?;
        let mut vm = || {
            let name = words.next().ok_or(CommandError::NameMissing)?;
            name::parse(name).map_err(CommandError::Name)
        };
        let command = match command {
            "report" => Self::Report,
            "kill" => Self::Kill(vm()?),
            "restart" => Self::Restart(vm()?),
            "off" => Self::Off(vm()?),
            _ => return Err(CommandError::Unknown),
        };
        match words.next() {
            None => Ok(command),
            Some(_) => Err(CommandError::TooManyWords),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_writes_el2_reads() {
        let vm = || name::parse("linux0").unwrap();
        for command in
            [Command::Report, Command::Kill(vm()), Command::Restart(vm()), Command::Off(vm())]
        {
            let line = command.to_string();
            assert!(line.len() <= MAX_LINE);
            assert_eq!(line.parse(), Ok(command));
        }
        assert_eq!("  off \t linux0\r".parse(), Ok(Command::Off(vm())));
    }

    #[test]
    fn every_other_line_is_refused_for_its_own_reason() {
        let refused = |line: &str| line.parse::<Command>().unwrap_err();
        assert_eq!(refused(" "), CommandError::Empty);
        assert_eq!(refused("reports"), CommandError::Unknown);
        assert_eq!(refused("kill"), CommandError::NameMissing);
        assert_eq!(refused("kill el2"), CommandError::Name(NameError::Reserved));
        assert_eq!(refused("report now"), CommandError::TooManyWords);
        assert_eq!(refused("off a b"), CommandError::TooManyWords);
    }

    #[test]
    fn the_longest_command_fits_a_line() {
        let name = name::parse(&"x".repeat(crate::report::NAME_LEN)).unwrap();
        assert!(Command::Restart(name).to_string().len() <= MAX_LINE);
    }
}
