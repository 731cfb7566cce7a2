//! Text of bounded length, and lines on the console.

use core::ffi::CStr;
use core::fmt::{self, Write};

use crate::arch::system;

/// The longest text, in bytes.
const LONGEST: usize = 256;

/// Prints one line, never mixed with another process's.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => { $crate::text::print_line(format_args!($($argument)*)) };
}

/// Text; what does not fit is cut off.
pub struct Text {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Text {
    /// Formats a text.
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        let mut new = Self { bytes: [0; LONGEST], length: 0 };
        let _ = new.write_fmt(text);
        new
    }

    /// The text as the kernel takes it: without a last character if it fills its place.
    pub fn as_c(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.length..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Prints one line with a single call, so that the terminal keeps it in one piece.
pub fn print_line(text: fmt::Arguments<'_>) {
    let line = Text::new(format_args!("{text}\n"));
    system::print(&line.bytes[..line.length]);
}
