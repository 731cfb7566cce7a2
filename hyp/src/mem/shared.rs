//! The `smmu` crate's ports on the real machine.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use smmu::addr::{Ipa, PAGE_SIZE, Pa};
use smmu::guest::{IMAGE_SIZE, REGISTERS_SIZE, RegisterFrames};
use smmu::ports::{Clock, Frames, Memory, Registers};

use crate::arch::mmio::Window;
use crate::arch::{cache, sysreg, timer};
use crate::mem::frames::{TABLES, TableFrames};

/// Words in EL2's own frames that an SMMU or a table walker reads.
#[derive(Clone, Copy, Debug)]
pub struct TableWords;

fn words<const COUNT: usize>(at: Pa) -> &'static [AtomicU64; COUNT] {
    let spans = TABLES.spans(at, 8 * COUNT as u64);
    assert!(at.is_aligned(8) && spans, "{at} is no word of a table frame");
    // SAFETY: the words are aligned and inside the pool, which is mapped as Data for ever; everybody reaches them
    // atomically.
    unsafe { &*(at.raw() as *const [AtomicU64; COUNT]) }
}

fn word(at: Pa) -> &'static AtomicU64 {
    let [word] = words(at);
    word
}

impl Memory for TableWords {
    fn load(&self, at: Pa) -> u64 {
        word(at).load(Ordering::Relaxed)
    }

    fn store(&self, at: Pa, value: u64) {
        word(at).store(value, Ordering::Relaxed);
    }

    fn store_pair(&self, at: Pa, [low, high]: [u64; 2]) {
        let [first, second] = words(at);
        first.store(low, Ordering::Relaxed);
        second.store(high, Ordering::Relaxed);
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

    fn store_pair(&self, at: Pa, values: [u64; 2]) {
        TableWords.store_pair(at, values);
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

/// The frames that a guest reads as the registers of its SMMU: one for each 64 KiB page, and one that stays empty.
///
/// Stage 2 gives them to the guest as read-only Device memory. EL2 writes them through its own, cacheable map and cleans
/// each line to the point of coherency; nobody else ever writes them, so no other cache holds anything newer.
#[derive(Debug)]
pub struct RegisterPages {
    frames: Pa,
}

/// The size of one of the two pages of an SMMU.
const REGISTER_PAGE: u64 = 0x1_0000;

impl RegisterPages {
    const FRAMES: u64 = 4;

    /// Takes the frames, empty, out of EL2's pool.
    pub fn allocate() -> Option<Self> {
        let size = Self::FRAMES * PAGE_SIZE;
        let frames = TableFrames.allocate(size)?;
        cache::clean_and_invalidate(frames, size);
        Some(Self { frames })
    }

    /// Which frame is behind each 4 KiB of the register map at `base`.
    pub fn map(&self, base: Ipa) -> impl Iterator<Item = (Ipa, Pa)> {
        (0..REGISTERS_SIZE).step_by(PAGE_SIZE as usize).map(move |offset| {
            let frame = match offset % REGISTER_PAGE < IMAGE_SIZE {
                true => offset / REGISTER_PAGE,
                false => REGISTERS_SIZE / REGISTER_PAGE,
            };
            (base.add(offset), self.frames.add(frame * PAGE_SIZE))
        })
    }
}

impl RegisterFrames for RegisterPages {
    fn write32(&self, offset: u32, value: u32) {
        let (page, within) = (u64::from(offset) / REGISTER_PAGE, u64::from(offset) % REGISTER_PAGE);
        assert!(
            u64::from(offset) < REGISTERS_SIZE && within < IMAGE_SIZE && within.is_multiple_of(4),
            "{offset:#x} is no register"
        );
        let at = self.frames.add(page * PAGE_SIZE + within);
        // SAFETY: aligned and inside frames that are ours for ever and mapped as Data; everybody reaches them atomically.
        let register = unsafe { AtomicU32::from_ptr(at.raw() as *mut u32) };
        sysreg::dsb_sy();
        register.store(value, Ordering::Relaxed);
        cache::clean_word(at);
    }
}
