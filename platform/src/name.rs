//! The name of a VM: what the console prefixes, the report and the operator call it by.

use core::fmt;

use crate::report::{NAME_LEN, Name};

/// The name by which the hypervisor speaks on the console, so that no VM may have it.
pub const HYPERVISOR: &str = "el2";

/// Why a text cannot be a VM's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// It is empty.
    Empty,
    /// It is longer than [`NAME_LEN`].
    TooLong,
    /// It has a character other than a-z, 0-9 and the hyphen.
    Character(char),
    /// It is [`HYPERVISOR`].
    Reserved,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the name is empty"),
            Self::TooLong => write!(f, "the name is longer than {NAME_LEN} characters"),
            Self::Character(character) => {
                f.write_str("a name cannot contain ")?;
                // What is not plain text must not drive a terminal.
                if character.is_ascii_graphic() {
                    write!(f, "'{character}'")?;
                } else {
                    write!(f, "U+{:04X}", u32::from(*character))?;
                }
                f.write_str(": use a-z, 0-9 and -")
            }
            Self::Reserved => write!(f, "the name {HYPERVISOR} belongs to the hypervisor"),
        }
    }
}

impl core::error::Error for NameError {}

/// Checks that `text` may name a VM.
///
/// # Errors
///
/// [`NameError`] says what is wrong with it.
pub fn parse(text: &str) -> Result<Name, NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(character) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(NameError::Character(character));
    }
    if text == HYPERVISOR {
        return Err(NameError::Reserved);
    }
    Name::try_from(text).map_err(|_| NameError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        assert_eq!(parse("linux-0").unwrap(), "linux-0");
        assert!(parse("a123456789012345678901234567890b").is_ok());
        assert_eq!(parse(""), Err(NameError::Empty));
        assert_eq!(parse("a1234567890123456789012345678901x"), Err(NameError::TooLong));
        assert_eq!(parse("Linux"), Err(NameError::Character('L')));
        assert_eq!(parse("a]b"), Err(NameError::Character(']')));
        assert_eq!(parse("el2"), Err(NameError::Reserved));
    }
}
