//! A virtual SMMU on the driver on the model: what a guest programs is what its devices get, and nothing else.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use proptest::prelude::*;
use smmu::addr::{Ipa, Pa, StreamId, VmIndex, Vmid};
use smmu::cmd::Command;
use smmu::device::Configuration;
use smmu::error::HostError;
use smmu::event::Event;
use smmu::guest::{
    Config, Features, Forwarded, GuestMemory, Locked, OutsideRam, Physical, Ports, RegisterFrames,
    StreamMap, VirtualSmmu, Width, Work,
};
use smmu::ports::Memory as _;
use smmu::streams::Streams;

use super::cases;
use crate::chooser::Chooser;
use crate::host::{CONTEXT, Host, RAM};
use crate::machine::{Machine, Outcome, Transaction};
use crate::profile::Profile;

pub(super) const CR0: u32 = 0x20;
pub(super) const CR0ACK: u32 = 0x24;
pub(super) const GBPA: u32 = 0x44;
pub(super) const CMDQ_PROD: u32 = 0x98;
pub(super) const CMDQ_CONS: u32 = 0x9c;
const GERROR: u32 = 0x60;
const GERRORN: u32 = 0x64;
const EVENTQ_PROD: u32 = 0x1_00a8;
const EVENTQ_CONS: u32 = 0x1_00ac;
/// SMMUEN, EVENTQEN, CMDQEN.
pub(super) const ON: u32 = 0b1101;

const COMMANDS: u64 = RAM + 0x10_0000;
const EVENTS: u64 = RAM + 0x11_0000;
const TABLE: u64 = RAM + 0x12_0000;
/// The guest's StreamIDs, and what they are.
pub(super) const MAPS: [(u32, u32); 2] = [(0x08, 1), (0x10, 2)];
/// V=1, Config=0b101, S1ContextPtr; write-back, inner shareable.
pub(super) const STAGE1: [u64; 2] = [CONTEXT | 0b1011, 1 << 2 | 1 << 4 | 3 << 6];
pub(super) const BYPASS: [u64; 2] = [0b1001, 0];
/// The address at which the guest's stage 1 maps one page, and what is there.
pub(super) const MAPPED: u64 = 2 << 30;
const BEHIND: u64 = 0x3000;

/// What of the guest's memory its virtual SMMU reads and writes; stage 1 is in the machine's.
#[derive(Default)]
struct Structures {
    words: RefCell<HashMap<u64, u64>>,
    /// If another virtual CPU rewrites the stream table all the time: how often it has.
    rewritten: Cell<Option<u64>>,
}

impl Structures {
    /// What every STE is rewritten to next, if they are: its first word.
    fn rewrite(&self) -> Option<u64> {
        let rewritten = self.rewritten.get()?;
        self.rewritten.set(Some(rewritten + 1));
        let others = [0, 1, BYPASS[0], STAGE1[0], u64::MAX, STAGE1[0] | 1 << 59];
        Some(others[rewritten as usize % others.len()])
    }
}

impl GuestMemory for Structures {
    fn read(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), OutsideRam> {
        if !(RAM..RAM + (4 << 20)).contains(&ipa.raw()) {
            return Err(OutsideRam);
        }
        for (index, word) in words.iter_mut().enumerate() {
            let at = ipa.raw() + 8 * index as u64;
            *word = self.words.borrow().get(&at).copied().unwrap_or(0);
            if at >= TABLE && at.is_multiple_of(64) {
                *word = self.rewrite().unwrap_or(*word);
            }
        }
        Ok(())
    }

    fn write(&self, ipa: Ipa, words: &[u64]) -> Result<(), OutsideRam> {
        for (index, word) in words.iter().enumerate() {
            self.words.borrow_mut().insert(ipa.raw() + 8 * index as u64, *word);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Image(RefCell<HashMap<u32, u32>>);

impl RegisterFrames for Image {
    fn write32(&self, offset: u32, value: u32) {
        self.0.borrow_mut().insert(offset, value);
    }
}

/// The driver, and the judge who hears what is meant to become of a stream.
struct Judged<'a, 'h> {
    host: &'a mut Host<'h, &'h Machine>,
    machine: &'h Machine,
    relayed: &'a RefCell<Vec<Command>>,
}

impl<'h> Judged<'_, 'h> {
    fn locked(&mut self) -> Locked<'_, 'h, &'h Machine> {
        let binding = self.host.binding(0);
        Locked { smmu: &mut self.host.smmu, owner: VmIndex(0), binding }
    }
}

impl Physical for Judged<'_, '_> {
    fn configure(&mut self, smmu: u8, sid: StreamId, to: &Configuration) -> Result<(), HostError> {
        assert!(self.host.claim(sid.0, 0)?, "nobody else has it");
        self.locked().configure(smmu, sid, to)?;
        if matches!(to, Configuration::Abort | Configuration::Refuse) {
            self.host.smmu.sync()?;
            self.machine.check_closed(sid.0);
        }
        Ok(())
    }

    fn relay(&mut self, smmu: u8, command: Command) -> Result<(), HostError> {
        self.relayed.borrow_mut().push(command);
        self.locked().relay(smmu, command)
    }

    fn sync(&mut self, smmu: u8) -> Result<(), HostError> {
        self.locked().sync(smmu)
    }
}

/// A guest's driver.
pub(super) struct Guest<'h> {
    pub(super) host: Host<'h, &'h Machine>,
    pub(super) machine: &'h Machine,
    smmu: VirtualSmmu,
    memory: Structures,
    image: Image,
    /// What its virtual SMMU handed down.
    pub(super) relayed: RefCell<Vec<Command>>,
}

impl<'h> Guest<'h> {
    pub(super) fn new(machine: &'h Machine, streams: &'h mut Streams) -> Self {
        let mut host = Host::start(machine, machine, streams, 6).unwrap();
        for (_, phys) in MAPS {
            assert!(host.claim(phys, 0).unwrap());
        }
        let maps = MAPS.map(|(virt, phys)| StreamMap {
            virt: StreamId(virt),
            smmu: 0,
            phys: StreamId(phys),
        });
        let config = Config {
            vmid: Vmid(1),
            ipa_bits: 40,
            sid_bits: 8,
            features: Features::of(host.smmu.capabilities()),
            streams: &maps,
        };
        let smmu = VirtualSmmu::new(&config);
        let (memory, image) = (Structures::default(), Image::default());
        let relayed = RefCell::default();
        let mut guest = Self { host, machine, smmu, memory, image, relayed };
        guest.smmu.reset(true, &guest.image);
        for (offset, value) in
            [(0x2c, 0b10), (0x80, TABLE), (0x90, COMMANDS | 8), (0xa0, EVENTS | 8)]
        {
            assert_eq!(guest.write(offset, Width::Double, value), Work::Done);
        }
        guest.set(0x88, 8);
        guest.set(0x50, 0b101);
        guest
    }

    fn write(&mut self, offset: u32, width: Width, value: u64) -> Work {
        self.with_ports(|smmu, ports| smmu.write(ports, offset, width, value))
    }

    pub(super) fn set(&mut self, offset: u32, value: u32) {
        assert_eq!(self.write(offset, Width::Word, value.into()), Work::Done);
    }

    pub(super) fn read(&self, offset: u32) -> u32 {
        self.image.0.borrow().get(&offset).copied().unwrap_or(0)
    }

    pub(super) fn ste(&self, virt: u32, [word0, word1]: [u64; 2]) {
        self.memory.write(Ipa::new(TABLE + 64 * u64::from(virt)), &[word0, word1]).unwrap();
    }

    pub(super) fn issue(&mut self, commands: &[[u64; 2]]) {
        self.try_issue(commands);
        assert_eq!(self.read(CMDQ_CONS), self.read(CMDQ_PROD));
    }

    /// Issues commands that may stay in the queue.
    pub(super) fn try_issue(&mut self, commands: &[[u64; 2]]) {
        let mut prod = self.read(CMDQ_PROD);
        for command in commands {
            self.memory.write(Ipa::new(COMMANDS + 16 * u64::from(prod & 0xff)), command).unwrap();
            prod = (prod + 1) & 0x1ff;
        }
        self.try_write(CMDQ_PROD, prod);
    }

    /// Writes a register, whatever is left to do then.
    pub(super) fn try_write(&mut self, offset: u32, value: u32) {
        let _ = self.write(offset, Width::Word, value.into());
    }

    /// Puts its command queue outside its RAM. The queue is disabled.
    pub(super) fn lose_queue(&mut self) {
        assert_eq!(self.write(0x90, Width::Double, 0x0900_0008), Work::Done);
    }

    /// Puts its stream table outside its RAM. It is disabled.
    pub(super) fn lose_table(&mut self) {
        assert_eq!(self.write(0x80, Width::Double, 0x0900_0000), Work::Done);
    }

    /// Has its stream table rewritten whenever it is read.
    pub(super) fn rewrite_table(&self) {
        self.memory.rewritten.set(Some(0));
    }

    /// Replaces the command at which its queue has stopped, if it has, and acknowledges the error.
    pub(super) fn repair(&mut self) {
        let cons = self.read(CMDQ_CONS);
        self.memory.write(Ipa::new(COMMANDS + 16 * u64::from(cons & 0xff)), &SYNC).unwrap();
        self.try_write(GERRORN, self.read(GERROR));
    }

    /// EL2 goes on with its command queue.
    pub(super) fn resume(&mut self) {
        let _ = self.with_ports(VirtualSmmu::resume);
    }

    /// EL2 acknowledges that it is disabled.
    pub(super) fn acknowledge(&mut self) {
        let _ = self.with_ports(VirtualSmmu::disabled);
    }

    fn with_ports(
        &mut self,
        call: impl FnOnce(&mut VirtualSmmu, &mut Ports<'_>) -> Result<Work, HostError>,
    ) -> Work {
        let mut judged =
            Judged { host: &mut self.host, machine: self.machine, relayed: &self.relayed };
        let mut ports = Ports { memory: &self.memory, frames: &self.image, physical: &mut judged };
        call(&mut self.smmu, &mut ports).unwrap()
    }

    /// Changes an STE as a driver does.
    fn install(&mut self, virt: u32, words: [u64; 2]) {
        self.ste(virt, words);
        self.issue(&[[0x03 | u64::from(virt) << 32, 1], SYNC]);
    }

    fn disable(&mut self, cr0: u32) {
        assert!(matches!(self.write(CR0, Width::Word, cr0.into()), Work::Disable { .. }));
        assert_eq!(self.read(CR0ACK) & 1, 1);
        let _proof = self.host.close(0).unwrap();
        for (_, phys) in MAPS {
            self.host.smmu.watch(StreamId(phys)).unwrap();
        }
        assert_eq!(self.with_ports(VirtualSmmu::disabled), Work::Done);
    }

    pub(super) fn dma(&self, phys: u32, address: u64) -> Outcome {
        self.machine.dma(Transaction::write(phys, address))
    }

    /// Takes what the SMMU recorded, and gives the guest what is its own.
    fn drain(&mut self) -> Vec<Forwarded> {
        let mut events: Vec<(Event, bool)> = Vec::new();
        self.machine.run(20);
        self.host
            .smmu
            .drain_events(64, &mut |event, concern| {
                if concern.owner == Some(VmIndex(0)) {
                    events.push((*event, concern.is_owners));
                }
            })
            .unwrap();
        let forward = |(event, is_owners): &(Event, bool)| {
            let forwarded = self.smmu.forward(&self.memory, &self.image, 0, event);
            // What is not even offered to the guest would not have been taken either, unless a watch goes on that
            // began with a teardown: that has what happens, though the guest's new STE is no better.
            let stream = self.host.smmu.streams().find(|stream| stream.sid() == event.sid);
            // Its budget may be spent by now.
            let watched =
                stream.is_some_and(|stream| !stream.state().is_open() && !stream.refuses());
            assert!(*is_owners || watched || forwarded == Forwarded::Ours, "{event:?}");
            forwarded
        };
        events.iter().map(forward).collect()
    }

    /// The records in the guest's queue; it takes them.
    fn events(&mut self) -> Vec<[u64; 4]> {
        let (prod, cons) = (self.read(EVENTQ_PROD) & 0x1ff, self.read(EVENTQ_CONS) & 0x1ff);
        let records = (0..prod.wrapping_sub(cons) & 0x1ff).map(|index| {
            let mut words = [0; 4];
            let at = EVENTS + 32 * u64::from((cons + index) & 0xff);
            self.memory.read(Ipa::new(at), &mut words).unwrap();
            words
        });
        let records = records.collect();
        self.set(EVENTQ_CONS, prod);
        records
    }
}

pub(super) const SYNC: [u64; 2] = [0x46, 0];

#[test]
fn what_a_guest_programs_is_what_its_devices_get() {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let mut streams = Streams::new();
    let mut guest = Guest::new(&machine, &mut streams);
    let ram = guest.host.backing(0);
    guest.ste(0x08, STAGE1);
    guest.ste(0x10, BYPASS);
    assert_eq!([1, 2].map(|phys| guest.dma(phys, RAM)), [Outcome::Aborted; 2]);
    guest.set(CR0, ON);
    assert_eq!(guest.read(CR0ACK), ON);
    // Stage 1 on stage 2, and stage 2 only.
    assert_eq!(guest.dma(1, MAPPED), Outcome::Reaches(ram + BEHIND));
    assert_eq!(guest.dma(2, RAM + 0x8), Outcome::Reaches(ram + 0x8));
    assert_eq!(guest.dma(2, MAPPED), Outcome::Aborted);
    // Another CD, and back to abort.
    guest.install(0x08, [STAGE1[0] | 64, STAGE1[1]]);
    assert_eq!(guest.dma(1, MAPPED), Outcome::Reaches(ram + BEHIND));
    guest.install(0x08, [1, 0]);
    assert_eq!(guest.dma(1, MAPPED), Outcome::Aborted);
    guest.install(0x08, STAGE1);
    assert_eq!(guest.dma(1, MAPPED), Outcome::Reaches(ram + BEHIND));
    assert_eq!(machine.violation(), None);
}

#[test]
fn an_unmap_is_over_when_the_guest_sees_its_sync() {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let mut streams = Streams::new();
    let mut guest = Guest::new(&machine, &mut streams);
    guest.ste(0x08, STAGE1);
    guest.set(CR0, ON);
    let ram = guest.host.backing(0);
    assert_eq!(guest.dma(1, MAPPED), Outcome::Reaches(ram + BEHIND));
    // The last-level entry goes; a plain SMMU keeps what it has until it is told.
    machine.write_guest(ram + (CONTEXT - RAM) + 3 * 4096, 0);
    assert_eq!(guest.dma(1, MAPPED), Outcome::Reaches(ram + BEHIND));
    let syncs = guest.host.smmu.counters().syncs;
    guest.issue(&[[0x12 | 5 << 48 | 0xff << 32, MAPPED | 1], SYNC]);
    assert_eq!(guest.dma(1, MAPPED), Outcome::Aborted);
    assert_eq!(guest.host.smmu.counters().syncs, syncs + 1);
    // What its device did after that is an event of the guest's: F_TRANSLATION, a write, CLASS=IN.
    assert_eq!(guest.drain(), [Forwarded::Recorded]);
    assert_eq!(guest.events(), [[0x10 | 0x08 << 32, 2 << 40, MAPPED, 0]]);
    assert_eq!(machine.violation(), None);
}

#[test]
fn faults_are_told_to_whom_they_concern() {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let mut streams = Streams::new();
    let mut guest = Guest::new(&machine, &mut streams);
    guest.set(CR0, ON);
    // V=0: C_BAD_STE, whatever the address.
    assert_eq!(guest.dma(1, 0x1234_5678), Outcome::Aborted);
    assert_eq!(guest.drain(), [Forwarded::Recorded]);
    assert_eq!(guest.events(), [[0x04 | 0x08 << 32, 0, 0, 0]]);
    // A CD that stage 2 does not map: F_CD_FETCH.
    let elsewhere = 0x0900_0000;
    machine.add_context(elsewhere);
    guest.install(0x08, [elsewhere | 0b1011, 0]);
    assert_eq!(guest.dma(1, 0), Outcome::Aborted);
    assert_eq!(guest.drain(), [Forwarded::Recorded]);
    assert_eq!(guest.events(), [[0x09 | 0x08 << 32, 0, 0, elsewhere]]);
    // An output that stage 2 does not map is the hypervisor's to know.
    guest.install(0x08, STAGE1);
    assert_eq!(guest.dma(1, MAPPED + 0x1000), Outcome::Aborted);
    assert_eq!(guest.drain(), [Forwarded::Ours]);
    assert_eq!(guest.events(), [[0; 4]; 0]);
    assert_eq!(machine.violation(), None);
}

#[test]
fn a_disabled_smmu_stays_closed_until_there_is_a_reason() {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let mut streams = Streams::new();
    let mut guest = Guest::new(&machine, &mut streams);
    let ram = guest.host.backing(0);
    guest.ste(0x08, STAGE1);
    guest.set(CR0, ON);
    assert_eq!(guest.dma(1, MAPPED), Outcome::Reaches(ram + BEHIND));
    machine.land();
    guest.disable(ON & !1);
    assert_eq!((guest.read(CR0ACK), guest.read(GBPA)), (ON & !1, 1 << 20));
    assert_eq!(guest.dma(1, MAPPED), Outcome::Aborted);
    // That is late, and not the guest's any more.
    assert_eq!(guest.drain(), [Forwarded::Ours]);
    let stopped = guest.host.smmu.stream_mut(StreamId(1)).unwrap().stopped_after_teardown();
    assert_eq!((stopped.count, stopped.first.map(|first| first.raw())), (1, Some(MAPPED)));
    // A rise with a valid STE.
    guest.set(CR0, ON);
    assert_eq!(guest.dma(1, MAPPED), Outcome::Reaches(ram + BEHIND));
    machine.land();
    guest.disable(ON & !1);
    // GBPA.ABORT=0.
    guest.set(GBPA, 1 << 31);
    assert_eq!(guest.dma(2, RAM), Outcome::Reaches(ram));
    assert_eq!(machine.violation(), None);
}

#[test]
fn a_storm_silences_the_stream_and_not_the_guest() {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let mut streams = Streams::new();
    let mut guest = Guest::new(&machine, &mut streams);
    let ram = guest.host.backing(0);
    guest.ste(0x08, STAGE1);
    guest.ste(0x10, STAGE1);
    guest.set(CR0, ON);
    let mut told = 0;
    for round in 0..40_u64 {
        assert_eq!(guest.dma(1, MAPPED + 0x10_0000 + round * 0x1000), Outcome::Aborted);
        told += guest.drain().len();
        // Toggling its STE does not buy it a new budget.
        guest.install(0x08, if round % 2 == 0 { [1, 0] } else { STAGE1 });
        guest.install(0x08, STAGE1);
    }
    assert!(told < 10, "{told}");
    assert_eq!(guest.events().len(), told);
    assert_eq!(guest.dma(2, MAPPED), Outcome::Reaches(ram + BEHIND));
    // It is heard again later, and translated.
    machine.pass_time(500_000);
    guest.drain();
    assert_eq!(guest.dma(1, MAPPED), Outcome::Reaches(ram + BEHIND));
    assert_eq!(machine.violation(), None);
}

#[test]
fn an_illegal_entry_does_not_end_the_watch_of_a_teardown() {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let mut streams = Streams::new();
    let mut guest = Guest::new(&machine, &mut streams);
    guest.set(CR0, ON);
    guest.disable(ON & !1);
    guest.set(CR0, ON);
    assert_eq!(guest.dma(1, MAPPED), Outcome::Aborted);
    guest.drain();
    let stopped = guest.host.smmu.stream_mut(StreamId(1)).unwrap().stopped_after_teardown();
    assert_eq!(stopped.count, 1);
    assert_eq!(machine.violation(), None);
}

#[derive(Clone, Debug)]
enum Act {
    Ste(usize, [u64; 2]),
    Issue(Vec<[u64; 2]>),
    Enable,
    Disable,
    Bypass(bool),
    /// Changes these bits of a CD, and says so or not.
    Cd(u64, u64, bool),
    Dma(usize, u64),
    /// The device claims that the address is physical.
    Translated(usize, u64),
    Drain,
    Idle(usize),
    Time,
}

fn act() -> impl Strategy<Value = Act> {
    let ste = prop_oneof![
        4 => Just(STAGE1),
        2 => Just([STAGE1[0] | 64, STAGE1[1]]),
        2 => Just([STAGE1[0] | 64, STAGE1[1] ^ 1 << 2]),
        2 => Just(BYPASS),
        1 => Just([1, 0]),
        1 => Just([0, 0]),
        // Stage 2, EATS, STRW, S1STALLD, attributes.
        1 => any::<u64>().prop_map(|word1| [STAGE1[0] | 1 << 2, word1]),
        2 => any::<u64>().prop_map(|word1| [STAGE1[0], word1]),
    ];
    let command = prop_oneof![
        4 => (0_usize..2, 0_u64..2).prop_map(|(index, leaf)| [0x03 | u64::from(MAPS[index].0) << 32, leaf]),
        1 => (0_u64..32).prop_map(|range| [0x04, range]),
        1 => (0_usize..2).prop_map(|index| [0x06 | u64::from(MAPS[index].0) << 32, 0]),
        2 => prop::sample::select(vec![0x10_u64, 0x11, 0x30]).prop_map(|code| [code | 0xff_u64 << 32, 0]),
        2 => (0x12_u64..0x14, 0_u64..4, 0_u64..4).prop_map(|(code, granule, level)| {
            [code | 5 << 48 | 1 << 12, MAPPED | granule << 10 | level << 8]
        }),
        3 => Just(SYNC),
    ];
    // T0SZ, EPD1, V, IPS, AA64, R, A, and mostly S.
    let bit = prop::sample::select(vec![0, 30, 31, 32, 41, 45, 46, 44, 44, 44, 44, 44]);
    let address =
        prop::sample::select(vec![MAPPED, MAPPED + 0x1000, RAM, RAM + 0x2000, 0x3008, 1 << 41]);
    prop_oneof![
        5 => (0_usize..2, ste).prop_map(|(index, words)| Act::Ste(index, words)),
        6 => prop::collection::vec(command, 1..8).prop_map(Act::Issue),
        4 => Just(Act::Enable),
        2 => Just(Act::Disable),
        1 => any::<bool>().prop_map(Act::Bypass),
        4 => (0_u64..2, bit, any::<bool>())
            .prop_map(|(which, bit, says)| Act::Cd(which, 1 << bit, says)),
        6 => (0_usize..2, address.clone()).prop_map(|(index, address)| Act::Dma(index, address)),
        1 => (0_usize..2, address).prop_map(|(index, address)| Act::Translated(index, address)),
        3 => Just(Act::Drain),
        4 => (1_usize..20).prop_map(Act::Idle),
        1 => Just(Act::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(288)))]

    /// An SMMU that does its worst, and may be one with ATS and stalls, under a guest that does whatever it likes: the
    /// judge finds nothing.
    #[test]
    fn a_guest_reaches_no_further_than_stage_2(
        profile in prop::sample::select(vec![Profile::NESTED, Profile::DANGEROUS, Profile::PLAIN]),
        acts in prop::collection::vec(act(), 1..60),
        seed: u64,
    ) {
        let machine = Machine::new(profile, Chooser::random(seed));
        let mut streams = Streams::new();
        let mut guest = Guest::new(&machine, &mut streams);
        for act in acts {
            match act {
                Act::Ste(index, words) => guest.ste(MAPS[index].0, words),
                Act::Issue(commands) if guest.read(CR0) & 8 != 0 => guest.issue(&commands),
                Act::Issue(_) => {}
                Act::Enable => guest.set(CR0, ON),
                Act::Disable if guest.read(CR0) & 1 != 0 => guest.disable(ON & !1),
                Act::Disable => {}
                Act::Bypass(abort) => guest.set(GBPA, 1 << 31 | u32::from(abort) << 20),
                Act::Cd(which, bits, says) => {
                    let at = guest.host.backing(0) + (CONTEXT - RAM) + which * 64;
                    machine.write_guest(at, machine.load(Pa::new(at)) ^ bits);
                    if says && guest.read(CR0) & 8 != 0 {
                        guest.issue(&[0, 1].map(|index: usize| [0x05 | u64::from(MAPS[index].0) << 32, 1]));
                        guest.issue(&[SYNC]);
                    }
                }
                Act::Translated(index, address) => {
                    let transaction = Transaction::write(MAPS[index].1, address);
                    machine.dma(Transaction { translated: true, ..transaction });
                }
                Act::Dma(index, address) => {
                    guest.dma(MAPS[index].1, address);
                }
                Act::Drain => {
                    guest.drain();
                    guest.events();
                }
                Act::Idle(steps) => machine.run(steps),
                Act::Time => machine.pass_time(500_000),
            }
            prop_assert_eq!(machine.violation(), None);
        }
        let _proof = guest.host.close(0).unwrap();
        machine.run(20);
        prop_assert_eq!(machine.violation(), None);
    }
}
