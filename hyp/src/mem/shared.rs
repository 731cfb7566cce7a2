//! The `smmu` crate's ports on the real machine.

use core::sync::atomic::{AtomicU64, Ordering};

use smmu::addr::Pa;
use smmu::ports::{Clock, Memory, Registers};

use crate::arch::mmio::Window;
use crate::arch::{sysreg, timer};
use crate::mem::frames::TABLES;

/// Words in EL2's own frames that an SMMU or a table walker reads.
#[derive(Clone, Copy, Debug)]
pub struct TableWords;

fn word(at: Pa) -> &'static AtomicU64 {
    assert!(at.is_aligned(8) && TABLES.spans(at, 8), "{at} is no word of a table frame");
    // SAFETY: the word is aligned and inside the pool, which is mapped as Data for ever; everybody reaches it atomically.
    unsafe { AtomicU64::from_ptr(at.raw() as *mut u64) }
}

impl Memory for TableWords {
    fn load(&self, at: Pa) -> u64 {
        word(at).load(Ordering::Relaxed)
    }

    fn store(&self, at: Pa, value: u64) {
        word(at).store(value, Ordering::Relaxed);
    }

    fn publish(&self) {
        // Inner shareable would do for the CPUs' walkers; an SMMU may sit in the outer domain only.
        sysreg::dsb_sy();
    }
}

/// One physical SMMU.
#[derive(Clone, Copy, Debug)]
pub struct SmmuHardware {
    registers: Window,
}

impl SmmuHardware {
    /// Names the SMMU whose register pages are `registers`.
    pub fn new(registers: Window) -> Self {
        Self { registers }
    }

    /// The physical address of its registers.
    pub fn base(&self) -> Pa {
        self.registers.base()
    }
}

impl Registers for SmmuHardware {
    fn read32(&self, offset: u32) -> u32 {
        let value = self.registers.read32(offset.into());
        // What the SMMU wrote to memory before it changed the register is read after it.
        sysreg::dsb_sy();
        value
    }

    fn write32(&self, offset: u32, value: u32) {
        sysreg::dsb_sy();
        self.registers.write32(offset.into(), value);
    }

    fn read64(&self, offset: u32) -> u64 {
        let value = self.registers.read64(offset.into());
        sysreg::dsb_sy();
        value
    }

    fn write64(&self, offset: u32, value: u64) {
        sysreg::dsb_sy();
        self.registers.write64(offset.into(), value);
    }
}

impl Memory for SmmuHardware {
    fn load(&self, at: Pa) -> u64 {
        TableWords.load(at)
    }

    fn store(&self, at: Pa, value: u64) {
        TableWords.store(at, value);
    }

    fn publish(&self) {
        TableWords.publish();
    }
}

impl Clock for SmmuHardware {
    fn now_us(&self) -> u64 {
        timer::now_us()
    }
}
