//! An SMMU with its queues, a stream table, a stage 2, and a guest's stage 1 in what that maps.

use smmu::addr::Pa;

use crate::Bench;
use crate::format::{
    ABORT, CFGI_ALL, Command, PAGE, QUEUES, SMMUEN, SYNC, Ste, TLBI_NSNH_ALL, UPDATE, cfgi_ste,
    context, nested, page1, page2, register, stage2, table,
};

/// The tag of translations.
pub const VMID: u16 = 7;
pub const ASID: u16 = 5;
/// Where the guest's memory begins: the first GiB of it is one stage-2 table of level 2.
const GUEST: u64 = 0x4000_0000;
/// Its pages: two with memory behind them, of which devices may only read the second, and one without.
pub const DATA: u64 = GUEST;
pub const MISSING: u64 = GUEST + PAGE;
pub const READ_ONLY: u64 = GUEST + 2 * PAGE;
/// Where its CD and its stage-1 tables are: three levels.
pub const CONTEXT: u64 = GUEST + 0x10 * PAGE;
pub const TABLES: [u64; 3] = [GUEST + 0x11 * PAGE, GUEST + 0x12 * PAGE, GUEST + 0x13 * PAGE];
/// What its stage 1 maps, page by page: to [`DATA`], nothing, to [`READ_ONLY`], to [`MISSING`], to [`DATA`] read-only.
pub const INPUT: u64 = 2 << 30;
pub const INPUT_NOTHING: u64 = INPUT + PAGE;
pub const INPUT_READ_ONLY: u64 = INPUT + 2 * PAGE;
pub const INPUT_MISSING: u64 = INPUT + 3 * PAGE;
pub const INPUT_STAGE1_READ_ONLY: u64 = INPUT + 4 * PAGE;
/// Its table of level 2 is in [`MISSING`].
pub const INPUT_NO_TABLE: u64 = 3 << 30;

/// How many commands and events fit.
const COMMANDS_LOG2: u32 = 4;
const EVENTS_LOG2: u32 = 3;
const STREAMS_LOG2: u32 = 8;
/// Looks at a register until it is given up: a machine that is emulated does what it is told at once.
const PATIENCE: u32 = 1_000_000;

/// What the scenarios play on.
pub struct Rig<'a, B> {
    pub bench: &'a mut B,
    commands: Pa,
    pub producer: u32,
    events: Pa,
    events_log2: u32,
    consumer: u32,
    streams: Pa,
    root: Pa,
    /// The stage-2 table with the guest's pages.
    pages: Pa,
    context: Pa,
    /// What is behind [`DATA`] and [`READ_ONLY`].
    pub data: Pa,
    pub read_only: Pa,
}

impl<'a, B: Bench> Rig<'a, B> {
    /// Takes the SMMU over and enables it, with all streams invalid.
    pub fn new(bench: &'a mut B) -> Self {
        let mut page = || bench.allocate(PAGE);
        let [commands, events, data, read_only] = [page(), page(), page(), page()];
        let [level2, pages, context] = [page(), page(), page()];
        let tables = TABLES.map(|ipa| (ipa, page()));
        let root = bench.allocate(2 * PAGE);
        let streams = bench.allocate(64 << STREAMS_LOG2);
        let mut rig = Self {
            bench,
            commands,
            producer: 0,
            events,
            events_log2: EVENTS_LOG2,
            consumer: 0,
            streams,
            root,
            pages,
            context,
            data,
            read_only,
        };
        rig.store(root, 1, table(level2.raw()));
        rig.store(level2, 0, table(pages.raw()));
        rig.map(DATA, Some(page2(data.raw(), true)));
        rig.map(READ_ONLY, Some(page2(read_only.raw(), false)));
        rig.map(CONTEXT, Some(page2(context.raw(), true)));
        for (ipa, table) in tables {
            rig.map(ipa, Some(page2(table.raw(), true)));
        }
        let [(_, first), (_, second), (_, third)] = tables;
        rig.store(first, INPUT >> 30, table(TABLES[1]));
        rig.store(first, INPUT_NO_TABLE >> 30, table(MISSING));
        rig.store(second, 0, table(TABLES[2]));
        for (input, output, write) in [
            (INPUT, DATA, true),
            (INPUT_READ_ONLY, READ_ONLY, true),
            (INPUT_MISSING, MISSING, true),
            (INPUT_STAGE1_READ_ONLY, DATA, false),
        ] {
            rig.store(third, (input / PAGE) & 0x1ff, page1(output, write));
        }
        rig.set_context(true, true);
        rig.start();
        rig
    }

    fn start(&mut self) {
        self.set_cr0(0);
        self.set_gbpa(true);
        let bench = &mut *self.bench;
        // Queues and tables: write-back, inner shareable. C_BAD_STREAMID is recorded.
        bench.write32(register::CR1, 0xd75);
        bench.write32(register::CR2, 0b10);
        bench.write64(register::STRTAB_BASE, self.streams.raw());
        bench.write32(register::STRTAB_BASE_CFG, STREAMS_LOG2);
        bench.write64(register::CMDQ_BASE, self.commands.raw() | u64::from(COMMANDS_LOG2));
        bench.write32(register::CMDQ_PROD, 0);
        bench.write32(register::CMDQ_CONS, 0);
        bench.write64(register::EVENTQ_BASE, self.events.raw() | u64::from(self.events_log2));
        bench.write32(register::EVENTQ_PROD, 0);
        bench.write32(register::EVENTQ_CONS, 0);
        self.set_cr0(QUEUES);
        self.issue(&[CFGI_ALL, TLBI_NSNH_ALL, SYNC]);
        self.set_cr0(QUEUES | SMMUEN);
    }

    /// Looks at a register until it is as it should be, or for ever on a machine that is broken.
    pub fn poll(&self, offset: u32, done: impl Fn(u32) -> bool) -> u32 {
        let mut seen = self.bench.read32(offset);
        for _ in 0..PATIENCE {
            if done(seen) {
                break;
            }
            seen = self.bench.read32(offset);
        }
        seen
    }

    pub fn set_cr0(&self, value: u32) {
        self.bench.write32(register::CR0, value);
        self.poll(register::CR0ACK, |seen| seen == value);
    }

    /// What becomes of transactions while the SMMU is disabled.
    pub fn set_gbpa(&self, abort: bool) {
        let attributes = self.poll(register::GBPA, |seen| seen & UPDATE == 0) & !ABORT;
        let value = attributes | UPDATE | if abort { ABORT } else { 0 };
        self.bench.write32(register::GBPA, value);
        self.poll(register::GBPA, |seen| seen & UPDATE == 0);
    }

    fn store(&self, at: Pa, word: u64, value: u64) {
        self.bench.store(Pa::new(at.raw() + 8 * word), value);
    }

    /// Puts commands into the queue, and waits until they are consumed or one stops it. Returns `CMDQ_CONS`.
    pub fn issue(&mut self, commands: &[Command]) -> u32 {
        for command in commands {
            let slot = u64::from(self.producer & ((1 << COMMANDS_LOG2) - 1));
            self.put(slot as u32, *command);
            self.producer = (self.producer + 1) & ((2 << COMMANDS_LOG2) - 1);
        }
        self.ring()
    }

    /// Puts a command into a slot of the queue.
    pub fn put(&self, slot: u32, command: Command) {
        let at = Pa::new(self.commands.raw() + 16 * u64::from(slot));
        self.store(at, 0, command[0]);
        self.store(at, 1, command[1]);
    }

    /// Tells the SMMU of what is in the queue, and waits. Returns `CMDQ_CONS`.
    pub fn ring(&self) -> u32 {
        self.bench.write32(register::CMDQ_PROD, self.producer);
        self.consumed()
    }

    /// Waits until the queue is empty or stopped. Returns `CMDQ_CONS`.
    pub fn consumed(&self) -> u32 {
        let producer = self.producer;
        let index = (2 << COMMANDS_LOG2) - 1;
        for _ in 0..PATIENCE {
            let seen = self.bench.read32(register::CMDQ_CONS);
            if seen & index == producer || self.errors() & 1 != 0 {
                return seen;
            }
        }
        self.bench.read32(register::CMDQ_CONS)
    }

    /// The global errors that are active.
    pub fn errors(&self) -> u32 {
        self.bench.read32(register::GERROR) ^ self.bench.read32(register::GERRORN)
    }

    /// Acknowledges them.
    pub fn acknowledge_errors(&self) {
        let errors = self.bench.read32(register::GERROR);
        self.bench.write32(register::GERRORN, errors);
    }

    /// Writes the device's STE, and tells nobody.
    pub fn write_ste(&self, words: Ste) {
        let at = Pa::new(self.streams.raw() + 64 * u64::from(self.bench.sid().0));
        for (index, word) in words.into_iter().enumerate() {
            self.store(at, index as u64, word);
        }
        self.bench.publish();
    }

    /// Writes the device's STE; the SMMU forgets the old one, and all translations.
    pub fn set_ste(&mut self, words: Ste) {
        self.write_ste(words);
        let sid = self.bench.sid().0;
        self.issue(&[cfgi_ste(sid), TLBI_NSNH_ALL, SYNC]);
    }

    /// Stage 2 only.
    pub fn stage2(&self) -> Ste {
        stage2(VMID, self.root.raw(), true)
    }

    /// The same, with faults not recorded.
    pub fn stage2_silent(&self) -> Ste {
        stage2(VMID, self.root.raw(), false)
    }

    /// Both stages.
    pub fn nested(&self) -> Ste {
        nested(VMID, self.root.raw(), CONTEXT)
    }

    /// Both stages, with the CD where stage 2 maps nothing.
    pub fn nested_without_context(&self) -> Ste {
        nested(VMID, self.root.raw(), MISSING)
    }

    /// Writes the guest's CD, and tells nobody.
    pub fn set_context(&self, valid: bool, record: bool) {
        let words = context(ASID, TABLES[0], record);
        for (index, word) in words.into_iter().enumerate() {
            let word = if valid { word } else { 0 };
            self.store(self.context, index as u64, word);
        }
        self.bench.publish();
    }

    /// Changes what stage 2 has for a page of the guest's, and tells nobody.
    pub fn map(&self, ipa: u64, page: Option<u64>) {
        self.store(self.pages, (ipa / PAGE) & 0x1ff, page.unwrap_or(0));
        self.bench.publish();
    }

    /// What stage 2 has for a page of the guest's.
    pub fn mapping(&self, ipa: u64) -> Option<u64> {
        let at = self.pages.raw() + 8 * ((ipa / PAGE) & 0x1ff);
        Some(self.bench.load(Pa::new(at)))
    }

    /// Takes the next record.
    pub fn event(&mut self) -> Option<[u64; 4]> {
        let index = (2 << self.events_log2) - 1;
        let producer = self.bench.read32(register::EVENTQ_PROD);
        if producer & index == self.consumer {
            return None;
        }
        let slot = u64::from(self.consumer & ((1 << self.events_log2) - 1));
        let at = self.events.raw() + 32 * slot;
        let words = core::array::from_fn(|word| self.bench.load(Pa::new(at + 8 * word as u64)));
        self.consumer = (self.consumer + 1) & index;
        // OVACKFLG follows OVFLG.
        let value = self.consumer | producer & 1 << 31;
        self.bench.write32(register::EVENTQ_CONS, value);
        Some(words)
    }

    /// Starts over with a stream table: its base and what goes with that.
    pub fn restart_with(&mut self, base: Pa, config: u32) {
        self.set_cr0(QUEUES);
        self.bench.write64(register::STRTAB_BASE, base.raw());
        self.bench.write32(register::STRTAB_BASE_CFG, config);
        self.issue(&[CFGI_ALL, TLBI_NSNH_ALL, SYNC]);
        self.set_cr0(QUEUES | SMMUEN);
    }

    /// The linear stream table, of `1 << log2` STEs.
    pub fn restart_linear(&mut self, log2: u32) {
        self.restart_with(self.streams, log2);
    }

    /// Starts over with an event queue of `1 << log2` records.
    pub fn restart_events(&mut self, log2: u32) {
        self.set_cr0(0);
        self.events_log2 = log2;
        self.consumer = 0;
        self.bench.write64(register::EVENTQ_BASE, self.events.raw() | u64::from(log2));
        self.bench.write32(register::EVENTQ_PROD, 0);
        self.bench.write32(register::EVENTQ_CONS, 0);
        self.acknowledge_errors();
        self.set_cr0(QUEUES | SMMUEN);
    }

    /// A level-1 table with one descriptor for the device: its level-2 table has `1 << (span - 1)` STEs, and the
    /// device's is `words`, if that is among them.
    pub fn restart_two_level(&mut self, span: u64, words: Ste) {
        const SPLIT: u32 = 6;
        let [level1, level2] = [PAGE, PAGE].map(|size| self.bench.allocate(size));
        let sid = u64::from(self.bench.sid().0);
        self.store(level1, sid >> SPLIT, level2.raw() | span);
        let at = Pa::new(level2.raw() + 64 * (sid & ((1 << SPLIT) - 1)));
        for (index, word) in words.into_iter().enumerate() {
            self.store(at, index as u64, word);
        }
        self.bench.publish();
        self.restart_with(level1, 1 << 16 | SPLIT << 6 | STREAMS_LOG2);
    }
}
