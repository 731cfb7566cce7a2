//! The bootargs: `key=value` words that pick a role and what it works on.

/// The bootargs of the device tree.
#[derive(Clone, Copy, Debug)]
pub struct Bootargs(pub &'static str);

impl Bootargs {
    /// The value of `key`, if it is there.
    pub fn get(self, key: &str) -> Option<&'static str> {
        self.0.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The number that `key` gives, or `default` if it is not there.
    ///
    /// # Errors
    ///
    /// A reason if the value is no number.
    pub fn number(self, key: &str, default: u64) -> Result<u64, &'static str> {
        self.get(key).map_or(Ok(default), parse)
    }

    /// The numbers that `key` gives, separated by commas; none if it is not there.
    pub fn numbers(self, key: &str) -> impl Iterator<Item = Result<u64, &'static str>> {
        self.get(key).unwrap_or("").split(',').filter(|text| !text.is_empty()).map(parse)
    }
}

fn parse(text: &str) -> Result<u64, &'static str> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "bootargs: not a number")
}
