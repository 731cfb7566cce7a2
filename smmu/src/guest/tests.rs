//! A guest's driver against its virtual SMMU. Offsets, bits and encodings are spelled out here as in the
//! specification, not taken from the code under test.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::addr::Iova;
use crate::caps::Capabilities;
use crate::cmd::{Granule, Pages};
use crate::fake::{Fake, QEMU_NESTED};
use crate::ste::Stage1Config;

mod commands;
mod events;
mod hostile;
mod linux;
mod registers;
mod stream_table;

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 64 << 20;
const VMID: Vmid = Vmid(3);
/// Two functions behind one SMMU, one behind another.
const STREAMS: [StreamMap; 3] = [
    StreamMap { virt: StreamId(0x08), smmu: 0, phys: StreamId(0x110) },
    StreamMap { virt: StreamId(0x10), smmu: 0, phys: StreamId(0x318) },
    StreamMap { virt: StreamId(0x19), smmu: 2, phys: StreamId(0x110) },
];

const IDR0: u32 = 0x00;
const IDR1: u32 = 0x04;
const IDR3: u32 = 0x0c;
const IDR5: u32 = 0x14;
const AIDR: u32 = 0x1c;
const CR0: u32 = 0x20;
const CR0ACK: u32 = 0x24;
const CR1: u32 = 0x28;
const CR2: u32 = 0x2c;
const GBPA: u32 = 0x44;
const IRQ_CTRL: u32 = 0x50;
const IRQ_CTRLACK: u32 = 0x54;
const GERROR: u32 = 0x60;
const GERRORN: u32 = 0x64;
const STRTAB_BASE: u32 = 0x80;
const STRTAB_BASE_CFG: u32 = 0x88;
const CMDQ_BASE: u32 = 0x90;
const CMDQ_PROD: u32 = 0x98;
const CMDQ_CONS: u32 = 0x9c;
const EVENTQ_BASE: u32 = 0xa0;
const EVENTQ_PROD: u32 = 0x1_00a8;
const EVENTQ_CONS: u32 = 0x1_00ac;

const SMMUEN: u32 = 1 << 0;
const EVENTQEN: u32 = 1 << 2;
const CMDQEN: u32 = 1 << 3;

/// Where the tests put the guest's structures.
const COMMANDS: u64 = RAM + 0x10_0000;
const EVENTS: u64 = RAM + 0x11_0000;
const TABLE: u64 = RAM + 0x20_0000;
const LEVEL2: u64 = RAM + 0x30_0000;
const CONTEXT: u64 = RAM + 0x40_0000;

/// What became visible, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Register(u32, u32),
    Configure(u8, u32, Configuration),
    Relay(u8, Command),
    Sync(u8),
    Memory(u64),
}

type Journal = Rc<RefCell<Vec<Step>>>;

/// The VM's RAM, zero unless written.
#[derive(Default)]
struct Ram {
    words: RefCell<HashMap<u64, u64>>,
    journal: Journal,
    reads: Cell<u64>,
    /// Every read finds something else, as if another CPU wrote all the time.
    restless: Cell<bool>,
}

impl Ram {
    fn set(&self, at: u64, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.words.borrow_mut().insert(at + 8 * index as u64, *word);
        }
    }

    fn get(&self, at: u64) -> u64 {
        self.words.borrow().get(&at).copied().unwrap_or(0)
    }
}

fn is_ram(ipa: Ipa, words: usize) -> bool {
    assert!(ipa.is_aligned(8), "{ipa} is no word");
    ipa.raw() >= RAM && ipa.raw() < RAM + RAM_SIZE && RAM + RAM_SIZE - ipa.raw() >= 8 * words as u64
}

impl GuestMemory for Ram {
    fn read(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), OutsideRam> {
        if !is_ram(ipa, words.len()) {
            return Err(OutsideRam);
        }
        for (index, word) in words.iter_mut().enumerate() {
            let reads = self.reads.get() + 1;
            self.reads.set(reads);
            *word = self.get(ipa.raw() + 8 * index as u64);
            if self.restless.get() {
                *word ^= 1 << (reads.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58);
            }
        }
        Ok(())
    }

    fn write(&self, ipa: Ipa, words: &[u64]) -> Result<(), OutsideRam> {
        if !is_ram(ipa, words.len()) {
            return Err(OutsideRam);
        }
        self.journal.borrow_mut().push(Step::Memory(ipa.raw()));
        self.set(ipa.raw(), words);
        Ok(())
    }
}

#[derive(Default)]
struct Image {
    registers: RefCell<BTreeMap<u32, u32>>,
    journal: Journal,
}

impl RegisterFrames for Image {
    fn write32(&self, offset: u32, value: u32) {
        assert!(u64::from(offset) < REGISTERS_SIZE && u64::from(offset & 0xffff) < IMAGE_SIZE);
        assert_eq!(offset % 4, 0);
        self.registers.borrow_mut().insert(offset, value);
        self.journal.borrow_mut().push(Step::Register(offset, value));
    }
}

/// The physical side: checks that everything is the VM's own, and remembers it.
#[derive(Default)]
struct Wires {
    journal: Journal,
    pending: Vec<(u8, Event)>,
    fails: bool,
}

impl Wires {
    fn own(smmu: u8, sid: StreamId) {
        assert!(
            STREAMS.iter().any(|map| (map.smmu, map.phys) == (smmu, sid)),
            "stream {sid} of SMMU {smmu} is not the VM's"
        );
    }

    fn done(&self) -> Result<(), HostError> {
        if self.fails { Err(HostError::ServiceFailure) } else { Ok(()) }
    }
}

impl Physical for Wires {
    fn configure(&mut self, smmu: u8, sid: StreamId, to: &Configuration) -> Result<(), HostError> {
        Self::own(smmu, sid);
        if let Configuration::Nested(stage1) = to {
            assert!(stage1.inner < 4 && stage1.outer < 4 && stage1.shareability < 4);
            assert_ne!(stage1.shareability, 1, "reserved");
            assert_eq!(stage1.context.raw() & !0x00ff_ffff_ffff_ffc0, 0);
        }
        self.journal.borrow_mut().push(Step::Configure(smmu, sid.0, *to));
        self.done()
    }

    fn relay(&mut self, smmu: u8, command: Command) -> Result<(), HostError> {
        let legal = |pages: Pages| match pages {
            Pages::One => true,
            Pages::Range { .. } => false,
            Pages::Granules { granule, level, multiple, scale } => {
                (1..=32).contains(&multiple)
                    && scale < 32
                    && level < 4
                    && (granule, level) != (Granule::K16, 1)
                    && (level, multiple, scale) != (0, 1, 0)
            }
        };
        match command {
            Command::CfgiCd { sid, ssid, .. } => {
                Self::own(smmu, sid);
                assert_eq!(ssid, 0);
            }
            Command::CfgiCdAll { sid } => Self::own(smmu, sid),
            Command::TlbiNhAll { vmid } | Command::TlbiNhAsid { vmid, .. } => {
                assert_eq!(vmid, VMID)
            }
            Command::TlbiNhVa { vmid, pages, .. } | Command::TlbiNhVaa { vmid, pages, .. } => {
                assert!(vmid == VMID && legal(pages), "{command:?}");
            }
            Command::Sync => {}
            _ => panic!("{command:?} is none of a guest's"),
        }
        assert!(STREAMS.iter().any(|map| map.smmu == smmu));
        self.journal.borrow_mut().push(Step::Relay(smmu, command));
        self.done()
    }

    fn sync(&mut self, smmu: u8) -> Result<(), HostError> {
        self.journal.borrow_mut().push(Step::Sync(smmu));
        self.done()
    }

    fn next_event(&mut self) -> Option<(u8, Event)> {
        self.pending.pop()
    }
}

/// A VM with its virtual SMMU, after reset.
struct Guest {
    smmu: VirtualSmmu,
    ram: Ram,
    image: Image,
    wires: Wires,
    journal: Journal,
}

fn features(ids: [u32; 5]) -> Features {
    Features::of(&Capabilities::read(&Fake::new(ids)))
}

impl Guest {
    fn new() -> Self {
        Self::with(&STREAMS)
    }

    fn with(streams: &[StreamMap]) -> Self {
        let config = Config {
            vmid: VMID,
            ipa_bits: 40,
            sid_bits: 16,
            features: features(QEMU_NESTED),
            streams,
        };
        let journal = Journal::default();
        let mut guest = Self {
            smmu: VirtualSmmu::new(&config),
            ram: Ram { journal: journal.clone(), ..Ram::default() },
            image: Image { journal: journal.clone(), ..Image::default() },
            wires: Wires { journal: journal.clone(), ..Wires::default() },
            journal,
        };
        guest.smmu.reset(false, &guest.image);
        guest.take();
        guest
    }

    fn call<T>(&mut self, work: impl FnOnce(&mut VirtualSmmu, &mut Ports<'_>) -> T) -> T {
        let mut ports = Ports { memory: &self.ram, frames: &self.image, physical: &mut self.wires };
        work(&mut self.smmu, &mut ports)
    }

    fn write(&mut self, offset: u32, value: u32) -> Work {
        self.call(|smmu, ports| smmu.write(ports, offset, Width::Word, value.into()).unwrap())
    }

    fn write64(&mut self, offset: u32, value: u64) -> Work {
        self.call(|smmu, ports| smmu.write(ports, offset, Width::Double, value).unwrap())
    }

    /// A write that leaves nothing to do.
    fn set(&mut self, offset: u32, value: u32) {
        assert_eq!(self.write(offset, value), Work::Done);
    }

    fn set64(&mut self, offset: u32, value: u64) {
        assert_eq!(self.write64(offset, value), Work::Done);
    }

    fn resume(&mut self) -> Work {
        self.call(|smmu, ports| smmu.resume(ports).unwrap())
    }

    fn disabled(&mut self) -> Work {
        self.call(|smmu, ports| smmu.disabled(ports).unwrap())
    }

    fn read(&self, offset: u32) -> u32 {
        self.image.registers.borrow().get(&offset).copied().unwrap_or(0)
    }

    fn read64(&self, offset: u32) -> u64 {
        u64::from(self.read(offset)) | u64::from(self.read(offset + 4)) << 32
    }

    /// Takes what became visible since the last time.
    fn take(&self) -> Vec<Step> {
        core::mem::take(&mut self.journal.borrow_mut())
    }

    /// Takes what reached the physical side.
    fn wires(&self) -> Vec<Step> {
        let wire = |step: &Step| !matches!(step, Step::Register(..) | Step::Memory(_));
        self.take().into_iter().filter(wire).collect()
    }

    /// Enables queues and a linear table of 256 STEs, all of which abort.
    fn enable(&mut self) {
        self.enable_queues();
        for index in 0..256 {
            self.ram.set(TABLE + 64 * index, &[1]);
        }
        self.set64(STRTAB_BASE, TABLE);
        self.set(STRTAB_BASE_CFG, 8);
        self.set(CR0, SMMUEN | EVENTQEN | CMDQEN);
        self.take();
    }

    fn enable_queues(&mut self) {
        self.set64(CMDQ_BASE, COMMANDS | 8);
        self.set64(EVENTQ_BASE, EVENTS | 8);
        self.set(CR2, 0b10);
        self.set(IRQ_CTRL, 0b101);
        self.set(CR0, EVENTQEN | CMDQEN);
        self.take();
    }

    /// Puts commands into the queue without telling the SMMU. Returns the new index.
    fn queue(&self, commands: &[[u64; 2]]) -> u32 {
        let log2 = self.read(CMDQ_BASE) & 0x1f;
        let mut prod = self.read(CMDQ_PROD);
        for command in commands {
            let slot = u64::from(prod) & ((1 << log2) - 1);
            self.ram.set(COMMANDS + 16 * slot, command);
            prod = (prod + 1) & ((2 << log2) - 1);
        }
        prod
    }

    /// Issues commands, and returns what reached the physical side.
    fn issue(&mut self, commands: &[[u64; 2]]) -> Vec<Step> {
        self.take();
        let prod = self.queue(commands);
        self.set(CMDQ_PROD, prod);
        self.wires()
    }

    fn interrupts(&mut self) -> (bool, bool, bool) {
        let Interrupts { eventq, gerror, cmdq_sync } = self.smmu.take_interrupts();
        (eventq, gerror, cmdq_sync)
    }

    /// Writes an STE into the linear table.
    fn ste(&self, sid: u64, words: [u64; 2]) {
        self.ram.set(TABLE + 64 * sid, &[words[0], words[1], 0, 0, 0, 0, 0, 0]);
    }

    fn forward(&mut self, smmu: u8, event: &Event) -> Forwarded {
        self.smmu.forward(&self.ram, &self.image, smmu, event)
    }
}

/// V=1, Config=0b101, S1ContextPtr.
const STAGE1: u64 = CONTEXT | 0b1011;
/// S1CIR = S1COR = write-back, S1CSH = inner shareable.
const ATTRIBUTES: u64 = 1 << 2 | 1 << 4 | 3 << 6;

fn nested(context: u64) -> Configuration {
    Configuration::Nested(Stage1Config {
        context: Ipa::new(context),
        inner: 1,
        outer: 1,
        shareability: 3,
    })
}

fn cfgi_ste(sid: u64, leaf: bool) -> [u64; 2] {
    [0x03 | sid << 32, leaf.into()]
}

const CFGI_ALL: [u64; 2] = [0x04, 31];
const SYNC: [u64; 2] = [0x46 | 2 << 12, 0];
const TLBI_NSNH_ALL: [u64; 2] = [0x30, 0];
