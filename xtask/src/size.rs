//! Sizes as people write them: `512M`, `1G`.

use std::fmt;

use platform::guest_map::{RAM_GRANULE, RAM_LIMIT};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// The least memory of a VM: its device tree and a kernel, one granule each.
pub const MIN_VM_MEMORY: u64 = 2 * RAM_GRANULE;

/// Why a text is not the memory size of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SizeError {
    /// It does not have the form of one.
    Form(String),
    /// It is not a multiple of what stage 2 maps.
    Granule(String),
    /// It is too small to boot anything.
    TooSmall(String),
    /// It does not fit the guest's address map.
    TooLarge(String),
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form(text) => {
                write!(
                    f,
                    "{text:?} is not a size: write a number and K, M, G or T, such as \"512M\""
                )
            }
            Self::Granule(text) => {
                write!(f, "{text:?} is not a multiple of {}", Size(RAM_GRANULE))
            }
            Self::TooSmall(text) => {
                write!(f, "{text:?} is too little: a VM needs at least {}", Size(MIN_VM_MEMORY))
            }
            Self::TooLarge(text) => {
                write!(
                    f,
                    "{text:?} is too much: a VM's address map has room for {}",
                    Size(RAM_LIMIT)
                )
            }
        }
    }
}

impl std::error::Error for SizeError {}

/// Reads a number of bytes; the suffixes are powers of 1024.
fn parse(text: &str) -> Option<u64> {
    let shift = match text.chars().last()? {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => return None,
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Reads the memory size of a VM, in bytes.
///
/// # Errors
///
/// [`SizeError`] says what is wrong and what would be right.
pub fn parse_vm_memory(text: &str) -> Result<u64, SizeError> {
    let size = parse(text).ok_or_else(|| SizeError::Form(text.into()))?;
    if size < MIN_VM_MEMORY {
        Err(SizeError::TooSmall(text.into()))
    } else if size > RAM_LIMIT {
        Err(SizeError::TooLarge(text.into()))
    } else if !size.is_multiple_of(RAM_GRANULE) {
        Err(SizeError::Granule(text.into()))
    } else {
        Ok(size)
    }
}

/// A number of bytes, written with the largest suffix that divides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, suffix) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{suffix}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_vm_memory("512M"), Ok(512 << 20));
        assert_eq!(parse_vm_memory("1G"), Ok(1 << 30));
        assert_eq!(parse_vm_memory("4096K"), Ok(4 << 20));
        assert_eq!(Size(512 << 20).to_string(), "512M");
        assert_eq!(Size(1 << 30).to_string(), "1G");
    }

    #[test]
    fn what_cannot_be_a_vms_memory_is_refused_for_its_own_reason() {
        for text in
            ["", "M", "512", "512MiB", "-1M", "+1M", "0x10M", "1.5G", "512m", "99999999999T"]
        {
            assert_eq!(parse_vm_memory(text), Err(SizeError::Form(text.into())), "{text}");
        }
        assert_eq!(parse_vm_memory("0M"), Err(SizeError::TooSmall("0M".into())));
        assert_eq!(parse_vm_memory("2M"), Err(SizeError::TooSmall("2M".into())));
        assert_eq!(parse_vm_memory("5M"), Err(SizeError::Granule("5M".into())));
        assert_eq!(parse_vm_memory("1T"), Err(SizeError::TooLarge("1T".into())));
    }
}
