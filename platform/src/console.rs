//! How EL2 prints what guests write on their consoles: a line `[NAME] TEXT` for each piece of a guest's line, in which
//! everything that is no printable ASCII is escaped, so that nobody can write another prefix or drive a terminal.

use core::fmt;

/// A piece of more bytes is followed by the rest of the same line.
pub const PIECE: usize = 251;
/// The most bytes of a piece: the longest escape has four.
pub const LONGEST_PIECE: usize = PIECE + 4;

/// Writes to `line` what becomes of a `byte` of it.
///
/// # Errors
///
/// If there is no room.
pub fn print(byte: u8, line: &mut impl fmt::Write) -> fmt::Result {
    match byte {
        b'\r' | 0 => Ok(()),
        b'\t' | b' '..=b'~' => line.write_char(byte.into()),
        _ => write!(line, "\\x{byte:02x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_is_printed_as_it_is() {
        let mut line = String::new();
        for &byte in "a\tb ~\r\0gr\u{fc}n\u{1b}\u{7f}".as_bytes() {
            print(byte, &mut line).unwrap();
        }
        assert_eq!(line, "a\tb ~gr\\xc3\\xbcn\\x1b\\x7f");
    }
}
