//! A guest's SMMU on the real driver on the model of an SMMU, with someone who reads along on the wire.
//!
//! What a guest does to its virtual SMMU is watched where it becomes physical: every command in the queue and every
//! STE, bit by bit, by decoders that share nothing with the code under test (C2). Another VM's stream has to work
//! all the time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use model::chooser::Chooser;
use model::decode;
use model::host::{Host, Op, RAM};
use model::machine::{Machine, Outcome, Transaction};
use model::profile::Profile;
use smmu::addr::{Ipa, Pa, StreamId, VmIndex, Vmid};
use smmu::cmd::Command;
use smmu::device::Configuration;
use smmu::error::HostError;
use smmu::event::Event;
use smmu::guest::{
    Config, Features, Forwarded, GuestMemory, IMAGE_SIZE, Locked, OutsideRam, Physical, Ports,
    REGISTERS_SIZE, RegisterFrames, StreamMap, VirtualSmmu, Width, Work,
};
use smmu::ports::{Clock, Memory, Registers};
use smmu::streams::Streams;

/// The guest's RAM: so much from [`RAM`] on.
pub const RAM_SIZE: u64 = 4 << 20;
/// The guest's StreamIDs, and what they are on the wire.
pub const STREAMS: [(u32, u32); 2] = [(0x08, 1), (0x10, 2)];
/// The other VM's stream.
pub const OTHER: u32 = 3;
/// Whose tags the guest's commands carry, and the other VM's.
const VMID: u64 = 1;
const WATCH_VMID: u64 = 255;
/// StreamIDs have so many bits here, virtual ones some more.
const SID_BITS: u8 = 6;
pub const VIRTUAL_SID_BITS: u8 = 8;
/// Physical commands that one call may cost: its budget on the one SMMU, and an STE's worth beyond it.
const MOST_COMMANDS: usize = 272 + 2 * 8 + 16;

pub const CR0: u32 = 0x20;
pub const CMDQ_BASE: u32 = 0x90;
pub const CMDQ_PROD: u32 = 0x98;
pub const CMDQ_CONS: u32 = 0x9c;
pub const EVENTQ_PROD: u32 = 0x1_00a8;
pub const EVENTQ_CONS: u32 = 0x1_00ac;
const CR0ACK: u32 = 0x24;
const GERROR: u32 = 0x60;
const GERRORN: u32 = 0x64;

/// Where a guest has its queues and tables when it is [`Guest::enable`]d.
pub const COMMANDS: u64 = RAM + 0x10_0000;
pub const EVENTS: u64 = RAM + 0x11_0000;
pub const TABLE: u64 = RAM + 0x12_0000;
/// SMMUEN, EVENTQEN, CMDQEN.
pub const ON: u32 = 0b1101;

/// Who causes the commands that are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The hypervisor, of its own accord.
    Host,
    /// The guest.
    Guest,
}

/// The machine's ports, and who reads along.
pub struct Wire<'m> {
    machine: &'m Machine,
    cause: Cell<Cause>,
    queue: Cell<u64>,
    producer: Cell<u32>,
    /// Commands since somebody looked.
    commands: Cell<usize>,
    events: Cell<u64>,
    /// What `EVENTQ_PROD` reads as, if it is not the machine's to say.
    announced: Cell<Option<u32>>,
}

impl<'m> Wire<'m> {
    /// Who reads along at `machine`.
    pub fn new(machine: &'m Machine) -> Self {
        Self {
            machine,
            cause: Cell::new(Cause::Host),
            queue: Cell::default(),
            producer: Cell::default(),
            commands: Cell::default(),
            events: Cell::default(),
            announced: Cell::default(),
        }
    }

    /// Reads what the driver has put into the queue.
    fn listen(&self, producer: u32) {
        let queue = self.queue.get();
        let log2 = queue & 0x1f;
        let wrap = (2_u32 << log2) - 1;
        while self.producer.get() != producer & wrap {
            let slot = u64::from(self.producer.get()) & ((1 << log2) - 1);
            let at = (queue & 0x00ff_ffff_ffff_ffe0) + 16 * slot;
            let words = [self.machine.load(Pa::new(at)), self.machine.load(Pa::new(at + 8))];
            assert!(decode::command(&words, &Profile::NESTED).is_ok(), "{words:x?} is no command");
            if self.cause.get() == Cause::Guest {
                assert!(is_allowed(words), "{words:x?} is none of a guest's");
            }
            self.commands.set(self.commands.get() + 1);
            self.producer.set((self.producer.get() + 1) & wrap);
        }
    }
}

/// Whether a guest's doing may put exactly these bits on the wire: its VMID, its streams, and fields that say what
/// to forget.
fn is_allowed(words: [u64; 2]) -> bool {
    let [low, high] = words;
    let own = STREAMS.iter().any(|(_, phys)| u64::from(*phys) == low >> 32);
    let tag = low >> 32 & 0xffff == VMID;
    // NUM and SCALE; TTL and TG; ASID.
    let (range, granule, asid) = (low & 0x01f1_f000, high >> 8 & 0xf, low >> 48);
    match low & 0xff {
        0x03 | 0x05 => own && low & 0xffff_ff00 == 0 && high <= 1,
        0x06 => own && low & 0xffff_ff00 == 0 && high == 0,
        0x10 => tag && low & 0xffff_ff00 == 0 && asid == 0 && high == 0,
        0x11 => tag && low & 0xffff_ff00 == 0 && high == 0,
        code @ (0x12 | 0x13) => {
            tag && low & 0xffff_ff00 == range
                && (code == 0x12 || asid == 0)
                && high & 0b1111_1110 == 0
                && (granule >> 2 != 0 || range == 0 && granule == 0)
        }
        0x46 => [low, high] == [0x46, 0],
        _ => false,
    }
}

impl Registers for Wire<'_> {
    fn read32(&self, offset: u32) -> u32 {
        match self.announced.get() {
            Some(producer) if offset == EVENTQ_PROD => producer,
            _ => self.machine.read32(offset),
        }
    }

    fn write32(&self, offset: u32, value: u32) {
        if offset == CMDQ_PROD {
            self.listen(value);
        }
        self.machine.write32(offset, value);
    }

    fn write64(&self, offset: u32, value: u64) {
        match offset {
            CMDQ_BASE => self.queue.set(value),
            0xa0 => self.events.set(value),
            _ => {}
        }
        self.machine.write64(offset, value);
    }
}

impl Memory for Wire<'_> {
    fn load(&self, at: Pa) -> u64 {
        self.machine.load(at)
    }

    fn store(&self, at: Pa, value: u64) {
        self.machine.store(at, value);
    }

    fn publish(&self) {
        self.machine.publish();
    }
}

impl Clock for Wire<'_> {
    fn now_us(&self) -> u64 {
        self.machine.now_us()
    }
}

/// The guest's RAM, which devices see as well.
struct Ram<'m> {
    machine: &'m Machine,
    backing: u64,
    /// Reads find something else each time, as if another CPU wrote all the time.
    restless: Cell<u64>,
}

impl Ram<'_> {
    fn at(&self, ipa: Ipa, words: usize) -> Result<u64, OutsideRam> {
        assert!(ipa.is_aligned(8), "{ipa} is no word");
        let offset = ipa.raw().checked_sub(RAM).ok_or(OutsideRam)?;
        let end = offset.checked_add(8 * words as u64).ok_or(OutsideRam)?;
        if end <= RAM_SIZE { Ok(self.backing + offset) } else { Err(OutsideRam) }
    }
}

impl GuestMemory for Ram<'_> {
    fn read(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), OutsideRam> {
        let at = self.at(ipa, words.len())?;
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.machine.load(Pa::new(at + 8 * index as u64));
            if self.restless.get() != 0 {
                // A bit somewhere flips, a different one each time.
                self.restless.set(self.restless.get().wrapping_mul(0x5851_f42d_4c95_7f2d) | 1);
                *word ^= 1 << (self.restless.get() >> 58);
            }
        }
        Ok(())
    }

    fn write(&self, ipa: Ipa, words: &[u64]) -> Result<(), OutsideRam> {
        let at = self.at(ipa, words.len())?;
        for (index, word) in words.iter().enumerate() {
            self.machine.write_guest(at + 8 * index as u64, *word);
        }
        Ok(())
    }
}

/// What the guest's reads of its registers find.
#[derive(Default)]
struct Image(RefCell<BTreeMap<u32, u32>>);

impl RegisterFrames for Image {
    fn write32(&self, offset: u32, value: u32) {
        assert!(u64::from(offset) < REGISTERS_SIZE && u64::from(offset & 0xffff) < IMAGE_SIZE);
        assert_eq!(offset % 4, 0);
        self.0.borrow_mut().insert(offset, value);
    }
}

/// The driver, and who looks at what it is asked to do.
struct Judged<'a, 'h> {
    host: &'a mut Host<'h, &'h Wire<'h>>,
    machine: &'h Machine,
}

impl<'h> Judged<'_, 'h> {
    fn locked(&mut self) -> Locked<'_, 'h, &'h Wire<'h>> {
        let binding = self.host.binding(0);
        Locked { smmu: &mut self.host.smmu, owner: VmIndex(0), binding }
    }
}

impl Physical for Judged<'_, '_> {
    fn configure(&mut self, smmu: u8, sid: StreamId, to: &Configuration) -> Result<(), HostError> {
        assert!(STREAMS.iter().any(|(_, phys)| *phys == sid.0), "stream {sid} is not the VM's");
        if let Configuration::Nested(stage1) = to {
            // Stage 2 translates its fetch, wherever that is.
            self.machine.add_context(stage1.context.raw());
        }
        assert!(self.host.claim(sid.0, 0)?, "nobody else has it");
        self.locked().configure(smmu, sid, to)
    }

    fn relay(&mut self, smmu: u8, command: Command) -> Result<(), HostError> {
        self.locked().relay(smmu, command)
    }

    fn sync(&mut self, smmu: u8) -> Result<(), HostError> {
        self.locked().sync(smmu)
    }
}

/// A guest with its virtual SMMU, after reset.
pub struct Guest<'h> {
    host: Host<'h, &'h Wire<'h>>,
    wire: &'h Wire<'h>,
    smmu: VirtualSmmu,
    ram: Ram<'h>,
    image: Image,
    /// ID registers, which never change.
    identity: Vec<(u32, u32)>,
    /// What the stage-2-only STE of its streams is.
    own: [u64; 8],
}

/// Runs `play` with a guest on a machine of its own.
pub fn with_guest(play: impl FnOnce(&mut Guest<'_>)) {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let wire = Wire::new(&machine);
    let mut streams = Streams::new();
    let mut guest = Guest::new(&wire, &mut streams);
    play(&mut guest);
    guest.check();
    guest.close();
    guest.check();
}

impl<'h> Guest<'h> {
    fn new(wire: &'h Wire<'h>, streams: &'h mut Streams) -> Self {
        let machine = wire.machine;
        let mut host = Host::start(machine, wire, streams, SID_BITS).expect("QEMU's is accepted");
        host.expect(Op::Open(2, 1));
        // A look at what stage 2 alone looks like.
        host.expect(Op::Open(0, 0));
        let own = ste(machine, STREAMS[0].1);
        for (_, phys) in STREAMS {
            assert_eq!(host.claim(phys, 0), Ok(true));
        }
        let maps = STREAMS.map(|(virt, phys)| StreamMap {
            virt: StreamId(virt),
            smmu: 0,
            phys: StreamId(phys),
        });
        let config = Config {
            vmid: Vmid(VMID as u16),
            ipa_bits: 40,
            sid_bits: VIRTUAL_SID_BITS,
            features: Features::of(host.smmu.capabilities()),
            streams: &maps,
        };
        let ram = Ram { machine, backing: host.backing(0), restless: Cell::new(0) };
        let image = Image::default();
        let mut smmu = VirtualSmmu::new(&config);
        smmu.reset(true, &image);
        let identity =
            (0..0x20).step_by(4).map(|at| (at, image.0.borrow().get(&at).copied().unwrap_or(0)));
        let identity = identity.collect();
        let mut guest = Self { host, wire, smmu, ram, image, identity, own };
        guest.close();
        guest
    }

    /// Enables queues of 256 entries and a linear table of as many STEs, which are all 0.
    pub fn enable(&mut self) {
        for (offset, value) in
            [(0x2c, 0b10), (0x80, TABLE), (CMDQ_BASE, COMMANDS | 8), (0xa0, EVENTS | 8)]
        {
            self.write(offset, Width::Double, value);
        }
        self.write(0x88, Width::Word, 8);
        self.write(0x50, Width::Word, 0b101);
        self.write(CR0, Width::Word, ON.into());
    }

    /// Makes the RAM change under every read from now on, or not.
    pub fn set_restless(&self, seed: u64) {
        self.ram.restless.set(seed);
    }

    /// Whether it does.
    pub fn is_restless(&self) -> bool {
        self.ram.restless.get() != 0
    }

    /// What a read of the register finds.
    pub fn read(&self, offset: u32) -> u32 {
        self.image.0.borrow().get(&offset).copied().unwrap_or(0)
    }

    /// Writes guest memory where there is any.
    pub fn poke(&self, ipa: u64, words: &[u64]) {
        // What is elsewhere is not the guest's to write.
        _ = self.ram.write(Ipa::new(ipa & !7), words);
    }

    fn call(
        &mut self,
        work: impl FnOnce(&mut VirtualSmmu, &mut Ports<'_>) -> Result<Work, HostError>,
    ) -> Work {
        self.wire.cause.set(Cause::Guest);
        self.wire.commands.set(0);
        let mut judged = Judged { host: &mut self.host, machine: self.wire.machine };
        let mut ports = Ports { memory: &self.ram, frames: &self.image, physical: &mut judged };
        let work = work(&mut self.smmu, &mut ports).expect("the hardware is well");
        let commands = self.wire.commands.get();
        assert!(commands <= MOST_COMMANDS, "{commands} commands in one call");
        self.wire.cause.set(Cause::Host);
        work
    }

    /// Writes a register, and does what that leaves to do but [`Work::More`]. Returns whether that is left.
    pub fn write(&mut self, offset: u32, width: Width, value: u64) -> bool {
        let mask = if width == Width::Double { 7 } else { 3 };
        let offset = offset & (REGISTERS_SIZE as u32 - 1) & !mask;
        let work = self.call(|smmu, ports| smmu.write(ports, offset, width, value));
        self.follow(work)
    }

    /// Goes on with commands that are left.
    pub fn resume(&mut self) -> bool {
        let work = self.call(|smmu, ports| smmu.resume(ports));
        self.follow(work)
    }

    fn follow(&mut self, mut work: Work) -> bool {
        if let Work::Disable { .. } = work {
            assert_eq!(self.read(CR0ACK) & 1, 1, "acknowledged before the close (C4)");
            self.close();
            work = self.call(|smmu, ports| smmu.disabled(ports));
            assert_eq!(self.read(CR0ACK) & 1, 0);
        }
        self.check_registers();
        work == Work::More
    }

    fn close(&mut self) {
        let _proof = self.host.close(0).expect("the hardware is well");
        for (_, phys) in STREAMS {
            self.wire.machine.check_closed(phys);
            self.host.smmu.watch(StreamId(phys)).expect("the hardware is well");
        }
    }

    /// Puts commands behind what the queue at [`COMMANDS`] holds, and tells the SMMU. Returns whether some are left.
    pub fn issue(&mut self, commands: &[[u64; 2]]) -> bool {
        let mut producer = self.read(CMDQ_PROD);
        for command in commands {
            self.poke(COMMANDS + 16 * u64::from(producer & 0xff), command);
            producer = (producer + 1) & 0x1ff;
        }
        self.write(CMDQ_PROD, Width::Word, producer.into())
    }

    /// A device of the guest's, or anyone's, accesses an address.
    pub fn dma(&self, sid: u32, address: u64, write: bool) -> Outcome {
        let transaction = Transaction { write, ..Transaction::write(sid, address) };
        self.wire.machine.dma(transaction)
    }

    /// The hypervisor takes the events there are; the guest gets its own. Returns what became of them.
    pub fn drain(&mut self) -> Vec<(Event, Forwarded)> {
        let mut seen = Vec::new();
        let mut count = 0;
        let drained = self.host.smmu.drain_events(64, &mut |event, concern| {
            let owner = concern.owner;
            let expected = match event.sid.0 {
                1 | 2 => Some(VmIndex(0)),
                OTHER => Some(VmIndex(1)),
                _ => None,
            };
            // Nobody's, as long as nobody claimed it.
            assert!(owner == expected || owner.is_none(), "{event:?} is {owner:?}'s");
            count += 1;
            if owner == Some(VmIndex(0)) {
                seen.push(*event);
            }
        });
        let drained = drained.expect("the hardware is well");
        assert!(drained.records <= 64 && count <= drained.records);
        let forward = |event: Event| (event, self.smmu.forward(&self.ram, &self.image, 0, &event));
        let forwarded = seen.into_iter().map(forward).collect();
        self.check_registers();
        forwarded
    }

    /// Puts a record into the physical event queue, whatever it says. Returns whether there was room.
    pub fn record(&self, words: [u64; 4]) -> bool {
        let base = self.wire.events.get();
        let log2 = base & 0x1f;
        let producer = self.wire.read32(EVENTQ_PROD);
        let consumer = self.wire.read32(EVENTQ_CONS);
        if (producer ^ consumer) & ((2 << log2) - 1) == 1 << log2 {
            return false;
        }
        let slot = u64::from(producer) & ((1 << log2) - 1);
        for (index, word) in words.into_iter().enumerate() {
            let at = (base & 0x00ff_ffff_ffff_ffe0) + 32 * slot + 8 * index as u64;
            self.wire.machine.write_guest(at, word);
        }
        self.wire.announced.set(Some((producer + 1) & ((2 << log2) - 1)));
        true
    }

    /// The newest record in the guest's own queue at [`EVENTS`].
    pub fn newest_event(&self) -> [u64; 4] {
        let mut words = [0; 4];
        let slot = u64::from(self.read(EVENTQ_PROD).wrapping_sub(1) & 0xff);
        self.ram.read(Ipa::new(EVENTS + 32 * slot), &mut words).expect("it is in RAM");
        words
    }

    /// Lets time pass, in microseconds: mutes end.
    pub fn pass_time(&mut self, us: u64) {
        self.wire.machine.pass_time(us);
        self.host.smmu.drain_events(0, &mut |_, _| ()).expect("the hardware is well");
    }

    /// What a guest reads is consistent, whatever it wrote.
    fn check_registers(&self) {
        for (offset, value) in &self.identity {
            assert_eq!(self.read(*offset), *value, "ID register {offset:#x}");
        }
        // Every change but SMMUEN's to 0 is acknowledged at once, and that after the close.
        assert_eq!(self.read(CR0), self.read(CR0ACK));
        assert_eq!(self.read(CR0) & !ON, 0);
        // CMDQ_ERR, EVENTQ_ABT_ERR and SFM_ERR are what there is; a guest acknowledges what it likes.
        assert_eq!((self.read(GERROR) ^ self.read(GERRORN)) & !0x105, 0);
        assert_eq!(self.read(0xa8), self.read(EVENTQ_PROD));
        assert_eq!(self.read(0xac), self.read(EVENTQ_CONS));
    }

    /// Nothing is wrong on the wire, in memory, or for the other VM.
    pub fn check(&self) {
        let machine = self.wire.machine;
        for (_, phys) in STREAMS {
            self.check_ste(phys);
        }
        let reached = machine.dma(Transaction::write(OTHER, RAM));
        assert_eq!(reached, Outcome::Reaches(self.host.backing(1)), "the other VM's DMA");
        machine.land();
        assert_eq!(machine.violation(), None);
    }

    /// The STE has no bit of the guest's but where its CD is and how that is cached.
    fn check_ste(&self, phys: u32) {
        let words = ste(self.wire.machine, phys);
        if words[0] & 0b1001 != 0b1001 {
            // V=0 or an abort.
            assert!(words[0] & 0b1001 != 0b1000, "{words:x?}");
            return;
        }
        assert_eq!(decode::forbidden_in_ste(&words, &Profile::NESTED), None, "{words:x?}");
        let nested = words[0] >> 1 & 0b111 == 0b111;
        assert_eq!(words[0] & !0x00ff_ffff_ffff_ffc0, if nested { 0b1111 } else { 0b1101 });
        assert!(nested || words[0] == 0b1101, "{words:x?}");
        // S1CIR, S1COR, S1CSH.
        let attributes = if nested { 0xfc } else { 0 };
        assert_eq!(words[1] & !attributes, self.own[1], "{words:x?}");
        if words[2] & 0xffff != WATCH_VMID {
            // S2R may be off: a stream that is muted.
            let record = 1 << 58;
            assert_eq!(words[2] | record, self.own[2] | record, "{words:x?}");
            assert_eq!(words[3..], self.own[3..], "{words:x?}");
        } else {
            assert!(!nested, "{words:x?}");
            assert_ne!(words[3], self.own[3], "{words:x?}");
        }
    }
}

/// The STE of a stream, as memory has it.
fn ste(machine: &Machine, sid: u32) -> [u64; 8] {
    let at = machine.ste_address(sid).raw();
    std::array::from_fn(|word| machine.load(Pa::new(at + 8 * word as u64)))
}
