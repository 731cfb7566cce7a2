//! Streams with both stages, before the driver has them: a layer between driver and machine that turns
//! each open STE of stage 2 into one that has the guest's stage 1 as well.

use std::cell::Cell;

use smmu::addr::Pa;
use smmu::ports::{Clock, Hardware, Memory, Registers};

use crate::host::CONTEXT;

/// Word 0 of an STE with stage 2 only: V=1, Config=0b110.
const STAGE2: u64 = 0b1101;
/// The same with both stages.
const NESTED: u64 = 0b1111;

/// The layer.
pub struct Nesting<H> {
    below: H,
    /// Where word 0 of a watched STE will be stored: there is no guest whose stage 1 it could use.
    watched: Cell<Option<Pa>>,
}

impl<H: Hardware> Nesting<H> {
    /// Puts the layer on a machine.
    pub fn new(below: H) -> Self {
        Self { below, watched: Cell::new(None) }
    }
}

impl<H: Hardware> Memory for Nesting<H> {
    fn load(&self, at: Pa) -> u64 {
        self.below.load(at)
    }

    fn store(&self, at: Pa, value: u64) {
        // Word 2 of an STE: S2AA64 and S2PTW, and the VMID of watched streams.
        if value >> 48 & 0x48 == 0x48 && value & 0xffff == 255 {
            self.watched.set(Some(Pa::new(at.raw() - 16)));
        }
        let nested = value == STAGE2 && self.watched.take() != Some(at);
        self.below.store(at, if nested { NESTED | CONTEXT } else { value });
    }

    fn publish(&self) {
        self.below.publish();
    }
}

impl<H: Hardware> Registers for Nesting<H> {
    fn read32(&self, offset: u32) -> u32 {
        self.below.read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.below.write32(offset, value);
    }

    fn read64(&self, offset: u32) -> u64 {
        self.below.read64(offset)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.below.write64(offset, value);
    }
}

impl<H: Hardware> Clock for Nesting<H> {
    fn now_us(&self) -> u64 {
        self.below.now_us()
    }
}
