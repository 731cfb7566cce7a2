//! A small SMMU for this crate's tests: it remembers what it is told, consumes commands, and translates
//! as QEMU's does, with caches that only the right command empties. Its decoders share nothing with the
//! code under test.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::vec::Vec;

use proptest::prelude::ProptestConfig;

use crate::addr::Pa;
use crate::ports::{Clock, Frames, Memory, Registers};

/// How often a property is tried: no more often than `PROPTEST_CASES` says, and under Miri, which is slow and
/// has no files, only a few times.
pub fn cases(usual: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    if cfg!(miri) {
        return ProptestConfig { cases: 2, failure_persistence: None, ..default };
    }
    let most = std::env::var_os("PROPTEST_CASES").map_or(u32::MAX, |_| default.cases);
    ProptestConfig { cases: usual.min(most), ..default }
}

/// What the hardware refuses to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `GBPA.UPDATE` stays set.
    GbpaStuck,
    /// `CR0ACK` stays as it is.
    Cr0Stuck,
    /// No command is consumed.
    QueueStuck,
    /// This opcode is illegal.
    Illegal(u8),
}

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It reaches this physical address.
    Reaches(u64),
    /// It aborts.
    Aborts,
}

/// ID registers of QEMU's nested SMMU, as measured, in the order IDR0, IDR1, IDR3, IDR5, IIDR.
pub const QEMU_NESTED: [u32; 5] = [0x0d44_101b, 0x0273_0010, 0x1414, 0x74, 0];
/// The same with stage=2.
pub const QEMU_STAGE2: [u32; 5] = [0x0d44_1019, 0x0273_0010, 0x1414, 0x74, 0];
/// The same with stage=1, as on machines before virt-9.2.
pub const QEMU_STAGE1: [u32; 5] = [0x0d44_101a, 0x0273_0010, 0x1404, 0x74, 0];

const GBPA: u32 = 0x44;
const CR0: u32 = 0x20;
const GERROR: u32 = 0x60;
const CMDQ_PROD: u32 = 0x98;
const CMDQ_CONS: u32 = 0x9c;
const EVENTQ_PROD: u32 = 0x1_00a8;
const EVENTQ_CONS: u32 = 0x1_00ac;

#[derive(Default)]
pub struct Fake {
    registers: RefCell<BTreeMap<u32, u64>>,
    memory: RefCell<HashMap<u64, u64>>,
    unpublished: Unpublished,
    /// Register writes in order.
    pub writes: RefCell<Vec<(u32, u64)>>,
    /// Commands consumed, in order.
    pub consumed: RefCell<Vec<[u64; 2]>>,
    pub fault: Cell<Option<Fault>>,
    /// A full event queue toggles `GERROR.EVENTQ_ABT_ERR`, as QEMU does, instead of `OVFLG`.
    pub overflows_like_qemu: Cell<bool>,
    pub now_us: Cell<u64>,
    level1: RefCell<HashMap<u64, u64>>,
    stes: RefCell<HashMap<u32, [u64; 8]>>,
    tlb: RefCell<HashMap<(u64, u64), (u64, u64)>>,
}

impl Fake {
    /// An SMMU with these ID registers, in the state after reset.
    pub fn new(ids: [u32; 5]) -> Self {
        let fake = Self::default();
        for (offset, value) in [0x00, 0x04, 0x0c, 0x14, 0x18].into_iter().zip(ids) {
            fake.registers.borrow_mut().insert(offset, value.into());
        }
        // GBPA resets to SHCFG=1, ABORT=0.
        fake.registers.borrow_mut().insert(GBPA, 0x1000);
        fake
    }

    /// Frames whose fresh zeros this SMMU may not see until they are published.
    pub fn frames(&self) -> FakeFrames {
        FakeFrames { unpublished: self.unpublished.clone(), ..FakeFrames::new() }
    }

    pub fn register(&self, offset: u32) -> u32 {
        self.registers.borrow().get(&offset).copied().unwrap_or(0) as u32
    }

    pub fn register64(&self, offset: u32) -> u64 {
        self.registers.borrow().get(&offset).copied().unwrap_or(0)
    }

    pub fn set_register(&self, offset: u32, value: u32) {
        self.registers.borrow_mut().insert(offset, value.into());
    }

    pub fn toggle_gerror(&self, bit: u32) {
        self.set_register(GERROR, self.register(GERROR) ^ 1 << bit);
    }

    /// Opcodes consumed since the last call.
    pub fn take_opcodes(&self) -> Vec<u8> {
        self.consumed.borrow_mut().drain(..).map(|[low, _]| low as u8).collect()
    }

    fn word(&self, at: u64) -> u64 {
        self.memory.borrow().get(&at).copied().unwrap_or(0)
    }

    fn set_word(&self, at: u64, value: u64) {
        self.memory.borrow_mut().insert(at, value);
    }

    /// A transaction of a device.
    pub fn dma(&self, sid: u32, address: u64, write: bool) -> Outcome {
        if self.register(CR0) & 1 == 0 {
            let aborts = self.register(GBPA) >> 20 & 1 != 0;
            return if aborts { Outcome::Aborts } else { Outcome::Reaches(address) };
        }
        let Some(ste) = self.ste(sid) else {
            self.record([0x02 | u64::from(sid) << 32, 0, 0, 0]);
            return Outcome::Aborts;
        };
        match ste[0] & 0xf {
            0b0001 => Outcome::Aborts,
            0b1101 => self.translate(sid, &ste, address, write),
            word if word & 1 == 0 => {
                self.record([0x04 | u64::from(sid) << 32, 0, 0, 0]);
                Outcome::Aborts
            }
            word => panic!("V and Config are {word:#x}: stage 2 is skipped"),
        }
    }

    /// A transaction that claims to be translated, where ATS is off: `F_TRANSL_FORBIDDEN` whatever `STE.S2R` says
    /// (section 7.3.8), unless the STE aborts.
    pub fn translated_dma(&self, sid: u32, address: u64) {
        if self.ste(sid).is_some_and(|ste| ste[0] & 0xf == 0b1101) {
            self.record([0x07 | u64::from(sid) << 32, 0, address, 0]);
        }
    }

    fn ste(&self, sid: u32) -> Option<[u64; 8]> {
        if let Some(cached) = self.stes.borrow().get(&sid) {
            return Some(*cached);
        }
        let config = self.register(0x88);
        assert_eq!(config >> 16, 1, "two levels");
        assert_eq!(config >> 6 & 0x1f, 8, "split");
        if u64::from(sid) >> (config & 0x3f) != 0 {
            return None;
        }
        let base = self.register64(0x80) & 0x00ff_ffff_ffff_ffc0;
        let index = u64::from(sid >> 8);
        let level1 = *self.level1.borrow_mut().entry(index).or_insert(self.word(base + index * 8));
        if level1 & 0x1f == 0 {
            return None;
        }
        assert_eq!(level1 & 0x1f, 9, "span");
        let table = level1 & 0x00ff_ffff_ffff_c000;
        let ste = core::array::from_fn(|word| {
            self.word(table + u64::from(sid & 0xff) * 64 + word as u64 * 8)
        });
        self.stes.borrow_mut().insert(sid, ste);
        Some(ste)
    }

    fn translate(&self, sid: u32, ste: &[u64; 8], address: u64, write: bool) -> Outcome {
        let vmid = ste[2] & 0xffff;
        let bits = 64 - (ste[2] >> 32 & 0x3f);
        let found = if address >> bits != 0 {
            None
        } else {
            let cached = self.tlb.borrow().get(&(vmid, address >> 12)).copied();
            cached.or_else(|| self.walk(ste, address))
        };
        let kind = match found {
            Some((page, permissions)) if permissions >> u64::from(write) & 1 != 0 => {
                self.tlb.borrow_mut().insert((vmid, address >> 12), (page, permissions));
                return Outcome::Reaches(page | address & 0xfff);
            }
            Some(_) => 0x13,
            None => 0x10,
        };
        if ste[2] >> 58 & 1 != 0 {
            let flags = 0x280 | if write { 0 } else { 8 };
            self.record([kind | u64::from(sid) << 32, flags << 32, address, address]);
        }
        Outcome::Aborts
    }

    /// The page and its S2AP.
    fn walk(&self, ste: &[u64; 8], address: u64) -> Option<(u64, u64)> {
        let mut level = match ste[2] >> 38 & 3 {
            1 => 1,
            2 => 0,
            other => panic!("SL0 is {other}"),
        };
        let mut table = ste[3] & 0x000f_ffff_ffff_fff0;
        let mut mask = u64::MAX;
        loop {
            let shift = 39 - 9 * level;
            let entry = self.word(table + (address >> shift & mask) * 8);
            match (entry & 3, level) {
                (3, 0..3) => table = entry & 0x0000_ffff_ffff_f000,
                (1, 1..3) | (3, 3) => {
                    let base = entry & 0x0000_ffff_ffff_f000;
                    let offset = address & ((1 << shift) - 1) & !0xfff;
                    return Some((base | offset, entry >> 6 & 3));
                }
                _ => return None,
            }
            level += 1;
            mask = 0x1ff;
        }
    }

    /// Writes an event record.
    pub fn record(&self, words: [u64; 4]) {
        if self.register(CR0) & 4 == 0 {
            return;
        }
        let base = self.register64(0xa0);
        let log2 = base & 0x1f;
        let (prod, cons) = (self.register(EVENTQ_PROD), self.register(EVENTQ_CONS));
        let wrap = (2 << log2) - 1;
        if prod.wrapping_sub(cons) & wrap == 1 << log2 {
            if self.overflows_like_qemu.get() {
                if (self.register(GERROR) ^ self.register(0x64)) & 4 == 0 {
                    self.toggle_gerror(2);
                }
            } else if prod >> 31 == cons >> 31 {
                self.set_register(EVENTQ_PROD, prod ^ 1 << 31);
            }
            return;
        }
        let slot = u64::from(prod) & ((1 << log2) - 1);
        for (index, word) in words.into_iter().enumerate() {
            self.set_word((base & 0x00ff_ffff_ffff_ffe0) + slot * 32 + index as u64 * 8, word);
        }
        self.set_register(EVENTQ_PROD, prod & 1 << 31 | (prod + 1) & wrap);
    }

    fn consume(&self) {
        if self.register(CR0) & 8 == 0 || self.fault.get() == Some(Fault::QueueStuck) {
            return;
        }
        let base = self.register64(0x90);
        let log2 = base & 0x1f;
        let wrap = (2_u32 << log2) - 1;
        let mut cons = self.register(CMDQ_CONS) & wrap;
        while cons != self.register(CMDQ_PROD) & wrap {
            let at = (base & 0x00ff_ffff_ffff_ffe0) + (u64::from(cons) & ((1 << log2) - 1)) * 16;
            let command = [self.word(at), self.word(at + 8)];
            if self.fault.get() == Some(Fault::Illegal(command[0] as u8)) {
                self.set_register(CMDQ_CONS, cons | 1 << 24);
                self.toggle_gerror(0);
                return;
            }
            self.execute(command);
            self.consumed.borrow_mut().push(command);
            cons = (cons + 1) & wrap;
            self.set_register(CMDQ_CONS, cons);
        }
    }

    fn execute(&self, [low, high]: [u64; 2]) {
        let vmid = low >> 32 & 0xffff;
        match low as u8 {
            0x03 => {
                let sid = (low >> 32) as u32;
                self.stes.borrow_mut().remove(&sid);
                if high & 1 == 0 {
                    self.level1.borrow_mut().remove(&u64::from(sid >> 8));
                }
            }
            0x04 => {
                assert_eq!(high & 0x1f, 31, "the driver only uses CFGI_ALL");
                self.stes.borrow_mut().clear();
                self.level1.borrow_mut().clear();
            }
            // CDs are not read here.
            0x05 | 0x06 => {}
            0x10..=0x13 => assert_eq!(self.register(0) >> 1 & 1, 1, "it needs a stage 1"),
            0x28 => self.tlb.borrow_mut().retain(|(tag, _), _| *tag != vmid),
            0x2a => {
                let pages = match high >> 10 & 3 {
                    0 => 1,
                    1 => {
                        assert_ne!(
                            (low >> 12 & 0x1f, low >> 20 & 0x1f, high >> 8 & 3),
                            (0, 0, 0),
                            "reserved"
                        );
                        ((low >> 12 & 0x1f) + 1) << (low >> 20 & 0x1f)
                    }
                    granule => panic!("granule {granule}"),
                };
                let first = high >> 12;
                self.tlb.borrow_mut().retain(|(tag, page), _| {
                    *tag != vmid || !(first..first + pages).contains(page)
                });
            }
            0x30 => self.tlb.borrow_mut().clear(),
            0x46 => assert_eq!((low >> 8, high), (0, 0), "the driver polls"),
            opcode => panic!("opcode {opcode:#x}"),
        }
    }

    fn write(&self, offset: u32, value: u64) {
        self.writes.borrow_mut().push((offset, value));
        let fault = self.fault.get();
        match offset {
            GBPA if fault == Some(Fault::GbpaStuck) => self.set_register(GBPA, value as u32),
            GBPA if value >> 31 & 1 == 0 => {}
            GBPA => self.set_register(GBPA, value as u32 & !(1 << 31)),
            _ => {
                self.registers.borrow_mut().insert(offset, value);
            }
        }
        match offset {
            CR0 if fault != Some(Fault::Cr0Stuck) => self.set_register(0x24, value as u32),
            0x50 => self.set_register(0x54, value as u32),
            _ => {}
        }
        // As the port promises: every earlier store is visible now.
        self.unpublished.borrow_mut().clear();
        if matches!(offset, CMDQ_PROD | CR0) {
            self.consume();
        }
    }
}

impl Registers for Fake {
    fn read32(&self, offset: u32) -> u32 {
        self.register(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.write(offset, value.into());
    }

    fn write64(&self, offset: u32, value: u64) {
        assert!(matches!(offset, 0x68 | 0x80 | 0x90 | 0xa0 | 0xb0), "{offset:#x} has 32 bits");
        self.write(offset, value);
    }
}

impl Memory for Fake {
    fn load(&self, at: Pa) -> u64 {
        assert!(at.is_aligned(8));
        self.word(at.raw())
    }

    fn store(&self, at: Pa, value: u64) {
        assert!(at.is_aligned(8));
        note_store(&self.unpublished, at.raw(), value);
        self.set_word(at.raw(), value);
    }

    fn publish(&self) {
        self.unpublished.borrow_mut().clear();
    }
}

impl Clock for Fake {
    /// Time passes whenever somebody looks.
    fn now_us(&self) -> u64 {
        self.now_us.set(self.now_us.get() + 10);
        self.now_us.get()
    }
}

/// Pages with stores, or fresh zeros, that the SMMU may not see yet.
pub type Unpublished = Rc<RefCell<BTreeSet<u64>>>;

/// Notes that `page` was written, after a check that the word written leads to nothing half-written.
pub fn note_store(unpublished: &Unpublished, at: u64, value: u64) {
    let mut pages = unpublished.borrow_mut();
    // A table descriptor of stage 2, or a level-1 stream table descriptor.
    if value & 3 == 3 || value & 0x1f == 9 {
        let target = value & 0x0000_ffff_ffff_f000;
        assert!(!pages.contains(&target), "{at:#x} leads to {target:#x} before that is published");
    }
    pages.insert(at & !0xfff);
}

/// Frames far above everything that tests map, each given out once.
pub struct FakeFrames {
    next: u64,
    pub unpublished: Unpublished,
    /// Size by address of what was given out and not taken back.
    pub live: BTreeMap<u64, u64>,
    /// How many more blocks there are.
    pub left: usize,
}

impl FakeFrames {
    pub fn new() -> Self {
        Self {
            next: 1 << 40,
            unpublished: Unpublished::default(),
            live: BTreeMap::new(),
            left: usize::MAX,
        }
    }
}

impl Frames for FakeFrames {
    fn allocate(&mut self, size: u64) -> Option<Pa> {
        assert!(size.is_power_of_two() && size >= 4096);
        self.left = self.left.checked_sub(1)?;
        let at = self.next.next_multiple_of(size);
        self.next = at + size;
        self.live.insert(at, size);
        self.unpublished.borrow_mut().extend((at..self.next).step_by(4096));
        Some(Pa::new(at))
    }

    fn release(&mut self, at: Pa, size: u64) {
        assert_eq!(self.live.remove(&at.raw()), Some(size), "{at} was not given out");
    }
}
