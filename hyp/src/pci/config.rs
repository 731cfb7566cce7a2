//! One function's configuration space.

use super::{Bdf, ConfigSpace, Width};

/// The registers of one function.
pub(crate) struct Config<'a, C> {
    space: &'a C,
    at: Bdf,
}

impl<'a, C: ConfigSpace> Config<'a, C> {
    pub(crate) fn new(space: &'a C, at: Bdf) -> Self {
        Self { space, at }
    }

    pub(crate) fn read8(&self, offset: u16) -> u8 {
        self.space.read(self.at, offset, Width::Byte) as u8
    }

    pub(crate) fn read16(&self, offset: u16) -> u16 {
        self.space.read(self.at, offset, Width::Half) as u16
    }

    pub(crate) fn read32(&self, offset: u16) -> u32 {
        self.space.read(self.at, offset, Width::Word)
    }

    pub(crate) fn write8(&self, offset: u16, value: u8) {
        self.space.write(self.at, offset, Width::Byte, value.into());
    }

    pub(crate) fn write16(&self, offset: u16, value: u16) {
        self.space.write(self.at, offset, Width::Half, value.into());
    }

    pub(crate) fn write32(&self, offset: u16, value: u32) {
        self.space.write(self.at, offset, Width::Word, value);
    }

    /// Clears `bits` of a 16-bit register, which is not written if they are clear already.
    pub(crate) fn clear16(&self, offset: u16, bits: u16) {
        let value = self.read16(offset);
        if value & bits != 0 {
            self.write16(offset, value & !bits);
        }
    }
}
