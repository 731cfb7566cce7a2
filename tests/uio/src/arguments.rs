//! What the program is told on its command line.

use core::ffi::CStr;

/// Its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a>(&'a [&'a CStr]);

impl<'a> Arguments<'a> {
    /// Takes what the program was started with.
    pub fn new(arguments: &'a [&'a CStr]) -> Self {
        Self(arguments)
    }

    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// A reason if there is none, or if it is not text.
    pub fn get(self, key: &str) -> Result<&'a str, &'static str> {
        let words = self.0.iter().filter_map(|word| word.to_str().ok());
        let mut values = words.filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        values
            .next()
            .ok_or("usage: uio device=DDDD:BB:DD.F uio=/dev/uioN nonce=0x... targets=0x...,0x...")
    }

    /// The numbers of `key`, hexadecimal with `0x`.
    ///
    /// # Errors
    ///
    /// A reason if there is no such key.
    pub fn numbers(
        self,
        key: &str,
    ) -> Result<impl Iterator<Item = Result<u64, &'static str>> + use<'a>, &'static str> {
        let number = |text: &str| {
            let digits =
                text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
            digits.ok_or("a number is not hexadecimal")
        };
        Ok(self.get(key)?.split(',').map(number))
    }
}
