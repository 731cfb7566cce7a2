use std::collections::BTreeMap;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::addr::{Iova, Ipa, Pa};
use crate::fake::{Fake, FakeFrames, Fault, Outcome, QEMU_NESTED, QEMU_STAGE1, QEMU_STAGE2};
use crate::ports::Memory;
use crate::stage2::Attributes;
use crate::streams::{Stopped, Transition};

mod configure;

const DEVICE: StreamId = StreamId(0x10);
const OTHER: StreamId = StreamId(0x318);
const VM: VmIndex = VmIndex(0);
const RAM: u64 = 0x4000_0000;
/// Where `RAM` is for the VM with the same VMID.
const fn backing(vmid: u16) -> u64 {
    0x1_0000_0000 * vmid as u64
}

fn config() -> Config {
    let budgets = Budgets { live_events: 8, window_us: 100_000, mute_us: 400_000, watch_events: 4 };
    Config { event_queue_log2: 5, command_queue_log2: 4, budgets, ..Config::new(16, 44, false) }
}

/// An SMMU that was taken over, and what VMs need.
struct Machine<'a> {
    fake: &'a Fake,
    frames: FakeFrames,
    smmu: Smmu<'a, &'a Fake>,
}

impl<'a> Machine<'a> {
    fn new(fake: &'a Fake, streams: &'a mut Streams) -> Self {
        let mut frames = fake.frames();
        let smmu = Smmu::take_over(fake, &config(), streams, &mut frames).unwrap();
        fake.take_opcodes();
        Self { fake, frames, smmu }
    }

    /// A VM's stage 2: 4 MiB of RAM.
    fn vm(&mut self, vmid: u16) -> Stage2Binding {
        let mut tables = Stage2::new(self.smmu.format(), &mut self.frames).unwrap();
        let (ipa, pa) = (Ipa::new(RAM), Pa::new(backing(vmid)));
        tables.map(self.fake, &mut self.frames, ipa, pa, 4 << 20, Attributes::RAM).unwrap();
        Stage2Binding::new(&tables, Vmid(vmid))
    }

    fn attach(&mut self, sid: StreamId, owner: VmIndex) {
        self.smmu.attach(sid, Some(owner), &mut self.frames).unwrap();
    }

    /// A VM with one open stream.
    fn open(&mut self, sid: StreamId, owner: VmIndex, vmid: u16) -> Stage2Binding {
        let binding = self.vm(vmid);
        self.attach(sid, owner);
        self.smmu.open_stage2(sid, &binding).unwrap();
        binding
    }

    fn write(&self, sid: StreamId, address: u64) -> Outcome {
        self.fake.dma(sid.0, address, true)
    }

    /// Takes all events. Returns their kinds and owners.
    fn drain(&mut self) -> Vec<(&'static str, Option<VmIndex>)> {
        let mut seen = Vec::new();
        self.smmu
            .drain_events(1000, &mut |event, concern| {
                seen.push((event.kind.name(), concern.owner));
            })
            .unwrap();
        seen
    }

    fn stream(&self, sid: StreamId) -> &Stream {
        self.smmu.streams().find(|stream| stream.sid() == sid).unwrap()
    }

    fn history(&self, sid: StreamId) -> Vec<(State, u64)> {
        self.stream(sid).history().map(|Transition { state, cfgi }| (state, cfgi)).collect()
    }
}

fn refusal(fake: &Fake, config: &Config, frames: &mut FakeFrames) -> Refusal {
    let mut streams = Streams::new();
    Smmu::take_over(fake, config, &mut streams, frames).err().unwrap()
}

#[test]
fn a_take_over_closes_first_and_enables_last() {
    let fake = Fake::new(QEMU_NESTED);
    // Firmware left it enabled, with an error pending.
    fake.set_register(0x20, 0xd);
    fake.set_register(0x24, 0xd);
    fake.toggle_gerror(0);
    let mut streams = Streams::new();
    let mut frames = FakeFrames::new();
    let smmu = Smmu::take_over(&fake, &config(), &mut streams, &mut frames).unwrap();
    assert_eq!((smmu.class(), smmu.format().output_bits()), (Class::Nested, 44));

    let writes = fake.writes.borrow().clone();
    let offsets: Vec<u32> = writes.iter().map(|(offset, _)| *offset).collect();
    let expected = [
        0x44, 0x20, // GBPA.ABORT, CR0=0
        0x28, 0x2c, // CR1, CR2
        0x80, 0x88, // STRTAB_BASE, STRTAB_BASE_CFG
        0x90, 0x98, 0x9c, // CMDQ_BASE, PROD, CONS
        0xa0, 0x1_00a8, 0x1_00ac, // EVENTQ_BASE, PROD, CONS
        0x64, 0x20, 0x98, // GERRORN, CMDQEN, the first batch
        0x20, 0x50, 0x68, 0xb0, 0x50, // EVENTQEN, interrupts off, no MSI, interrupts on
        0x20, // SMMUEN
    ];
    assert_eq!(offsets, expected);
    // GBPA keeps SHCFG, as bits 20 and 31 are set in one write.
    assert_eq!(writes[0].1, 0x8010_1000);
    let cr0: Vec<u64> =
        writes.iter().filter(|write| write.0 == 0x20).map(|write| write.1).collect();
    assert_eq!(cr0, [0, 8, 0xc, 0xd]);
    // Write-back, inner shareable for tables and queues; PTM and RECINVSID.
    assert_eq!((fake.register(0x28), fake.register(0x2c)), (0xd75, 0b110));
    // Two levels, split 8, 16 bits; RA; the queues with their sizes.
    assert_eq!(fake.register(0x88), 1 << 16 | 8 << 6 | 16);
    assert_eq!(fake.register64(0x80) >> 62, 1);
    assert_eq!((fake.register64(0x90) & 0x1f, fake.register64(0xa0) & 0x1f), (4, 5));
    // CFGI_ALL, TLBI_NSNH_ALL, SYNC.
    assert_eq!(*fake.consumed.borrow(), [[4, 31], [0x30, 0], [0x46, 0]]);
    assert_eq!(fake.register(0x50), 0b101);
}

#[test]
fn ats_is_checked_where_it_exists() {
    let mut ids = QEMU_NESTED;
    ids[0] |= 1 << 10;
    let fake = Fake::new(ids);
    let mut streams = Streams::new();
    let _ = Machine::new(&fake, &mut streams);
    assert_eq!(fake.register(0x20), 0x1d);
}

#[test]
fn whatever_is_refused_is_closed() {
    // Firmware left stage-1-only hardware enabled.
    let fake = Fake::new(QEMU_STAGE1);
    fake.set_register(0x20, 1);
    let mut frames = FakeFrames::new();
    assert_eq!(refusal(&fake, &config(), &mut frames), Refusal::NoStage2);
    assert_eq!(fake.dma(0x10, RAM, true), Outcome::Aborts);
    assert_eq!(fake.register(0x20), 0);

    let fake = Fake::new(QEMU_NESTED);
    let small = Config { pa_bits: 36, ..config() };
    assert_eq!(refusal(&fake, &small, &mut frames), Refusal::OutputSize { has: 36, needs: 40 });
    for left in 0..4 {
        frames.left = left;
        assert_eq!(refusal(&fake, &config(), &mut frames), Refusal::OutOfMemory);
        assert_eq!(fake.dma(0x10, RAM, true), Outcome::Aborts);
    }
}

#[test]
fn hardware_that_does_not_answer_is_an_error_and_stays_closed() {
    for (fault, wait) in [
        (Fault::GbpaStuck, Wait::GbpaUpdate),
        (Fault::Cr0Stuck, Wait::Cr0Ack),
        (Fault::QueueStuck, Wait::Sync),
    ] {
        let fake = Fake::new(QEMU_NESTED);
        // Something to acknowledge: CR0ACK differs from 0.
        fake.set_register(0x24, 0xd);
        fake.fault.set(Some(fault));
        let error = refusal(&fake, &config(), &mut FakeFrames::new());
        assert_eq!(error, Refusal::Host(HostError::Timeout(wait)));
        assert_eq!(fake.dma(0x10, RAM, true), Outcome::Aborts);
    }
}

#[test]
fn a_panic_stops_everything_whatever_the_hardware_says() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    stop(&fake).unwrap();
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Aborts);
    assert_eq!((fake.register(0x20), fake.register(0x44)), (0, 0x10_1000));
    // Even if GBPA does not answer, CR0 is written: GBPA was set long ago.
    fake.set_register(0x20, 0xd);
    fake.fault.set(Some(Fault::GbpaStuck));
    assert_eq!(stop(&fake), Err(HostError::Timeout(Wait::GbpaUpdate)));
    assert_eq!(fake.register(0x20), 0);
}

#[test]
fn a_stream_reaches_its_vms_memory_and_no_other() {
    for ids in [QEMU_NESTED, QEMU_STAGE2] {
        let fake = Fake::new(ids);
        let mut streams = Streams::new();
        let mut machine = Machine::new(&fake, &mut streams);
        assert_eq!(machine.write(DEVICE, RAM), Outcome::Aborts);
        machine.open(DEVICE, VM, 1);
        machine.open(OTHER, VmIndex(1), 2);
        assert_eq!(machine.write(DEVICE, RAM + 0x1238), Outcome::Reaches(backing(1) + 0x1238));
        assert_eq!(machine.write(OTHER, RAM + 0x1238), Outcome::Reaches(backing(2) + 0x1238));
        for outside in [0, RAM - 1, RAM + (4 << 20), backing(2), 1 << 40, u64::MAX] {
            assert_eq!(machine.write(DEVICE, outside), Outcome::Aborts);
        }
        // Neighbours in the same level-2 table, and streams without one.
        for sid in [0, 0x11, 0xff, 0x100, 0xffff, 0x1_0000] {
            assert_eq!(machine.write(StreamId(sid), RAM), Outcome::Aborts);
        }
    }
}

#[test]
fn the_first_stream_of_a_table_is_found_though_its_absence_was_cached() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Aborts);
    assert_eq!(machine.drain(), [("C_BAD_STREAMID", None)]);
    machine.attach(DEVICE, VM);
    // Leaf=0, then SYNC.
    assert_eq!(*fake.consumed.borrow(), [[0x10_0000_0003, 0], [0x46, 0]]);
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Aborts);
    assert_eq!(machine.drain(), []);
    fake.take_opcodes();
    machine.attach(StreamId(0x11), VM);
    assert_eq!(fake.take_opcodes(), []);
}

#[test]
fn a_closed_stream_is_shut_at_once_and_forgotten() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.open(DEVICE, VM, 1);
    machine.attach(OTHER, VM);
    machine.smmu.open_stage2(OTHER, &binding).unwrap();
    machine.open(StreamId(0x20), VmIndex(1), 2);
    // Configuration and translations are cached.
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Reaches(backing(1)));
    assert_eq!(machine.write(OTHER, RAM), Outcome::Reaches(backing(1)));
    fake.take_opcodes();

    let proof = machine.smmu.close(VM, Vmid(1)).unwrap();
    assert_eq!((proof.owner(), proof.vmid()), (VM, Vmid(1)));
    // One SYNC for all STEs; only then does the TLB get nothing new.
    assert_eq!(fake.take_opcodes(), [0x03, 0x03, 0x46, 0x28, 0x46]);
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Aborts);
    assert_eq!(machine.write(OTHER, RAM), Outcome::Aborts);
    assert_eq!(machine.drain(), []);
    // Another VM notices nothing.
    assert_eq!(machine.write(StreamId(0x20), RAM), Outcome::Reaches(backing(2)));
    // A VMID that is used again finds nothing of the old.
    let mut tables = Stage2::new(machine.smmu.format(), &mut machine.frames).unwrap();
    let (ipa, pa) = (Ipa::new(RAM), Pa::new(0x7000_0000));
    tables.map(&fake, &mut machine.frames, ipa, pa, 4096, Attributes::RAM).unwrap();
    machine.smmu.open_stage2(DEVICE, &Stage2Binding::new(&tables, Vmid(1))).unwrap();
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Reaches(0x7000_0000));
}

#[test]
fn a_vm_without_streams_is_closed_too() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    assert_eq!(machine.smmu.close(VM, Vmid(1)).unwrap().vmid(), Vmid(1));
    assert_eq!(fake.take_opcodes(), [0x28, 0x46]);
}

#[test]
fn without_a_completed_sync_there_is_no_proof() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    fake.fault.set(Some(Fault::QueueStuck));
    assert_eq!(machine.smmu.close(VM, Vmid(1)).err(), Some(HostError::Timeout(Wait::Sync)));
    // It still counts as open, so that a later close does not skip it.
    assert_eq!(machine.stream(DEVICE).state(), State::Stage2);
    fake.fault.set(None);
    assert!(machine.smmu.close(VM, Vmid(1)).is_ok());
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Aborts);
}

#[test]
fn a_stream_that_failed_to_open_counts_as_open() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.vm(1);
    machine.attach(DEVICE, VM);
    fake.fault.set(Some(Fault::QueueStuck));
    assert_eq!(machine.smmu.open_stage2(DEVICE, &binding), Err(HostError::Timeout(Wait::Sync)));
    fake.fault.set(None);
    fake.take_opcodes();
    assert!(machine.smmu.close(VM, Vmid(1)).is_ok());
    assert!(fake.take_opcodes().contains(&0x03));
}

#[test]
fn a_refused_command_is_our_own_fault() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    fake.fault.set(Some(Fault::Illegal(0x28)));
    let error = machine.smmu.invalidate(Vmid(5), &Invalidation::All).unwrap_err();
    assert_eq!(error, HostError::Command { error: 1, index: 3, words: [0x5_0000_0028, 0] });
    assert_eq!(machine.smmu.service_gerror(), Err(error));
    assert_eq!(machine.smmu.counters().gerror, 1);
}

#[test]
fn a_queue_that_wraps_loses_no_command() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    // 16 entries.
    let mut many = Invalidation::range(Ipa::new(0), 4096 * 31);
    for start in [1_u64 << 30, 2 << 30, 3 << 30] {
        many.merge(&Invalidation::range(Ipa::new(start), 4096 * 0x1f_ffff));
    }
    let before = machine.smmu.counters().syncs;
    for _ in 0..10 {
        machine.smmu.invalidate(Vmid(1), &many).unwrap();
    }
    assert_eq!(machine.smmu.counters().syncs, before + 20);
    let opcodes = fake.take_opcodes();
    let by_name: BTreeMap<&str, u64> = machine.smmu.commands().collect();
    let consumed = |code: u8| opcodes.iter().filter(|opcode| **opcode == code).count() as u64;
    assert_eq!(by_name["CMD_TLBI_S2_IPA"], consumed(0x2a));
    assert_eq!((by_name["CMD_TLBI_NH_ALL"], consumed(0x10)), (10, 10));
    // More than five times round.
    assert!(opcodes.len() > 16 * 5, "{}", opcodes.len());
}

#[test]
fn old_hardware_gets_a_sync_in_time() {
    let mut ids = QEMU_NESTED;
    // MMU-700 r1p0, without range invalidation.
    ids[2] &= !(1 << 10);
    ids[4] = 0x487 << 20 | 1 << 16 | 0x43b;
    let fake = Fake::new(ids);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.smmu.invalidate(Vmid(1), &Invalidation::range(Ipa::new(0), 64 * 4096)).unwrap();
    let opcodes = fake.take_opcodes();
    assert!(opcodes.split(|opcode| *opcode == 0x46).all(|batch| batch.len() <= 62));
    assert_eq!(opcodes.iter().filter(|opcode| **opcode == 0x2a).count(), 64);
}

#[test]
fn an_unmapped_page_is_gone_after_its_invalidation() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let mut tables = Stage2::new(machine.smmu.format(), &mut machine.frames).unwrap();
    let frames = &mut machine.frames;
    tables.map(&fake, frames, Ipa::new(RAM), Pa::new(RAM), 4 << 20, Attributes::RAM).unwrap();
    machine.smmu.attach(DEVICE, Some(VM), frames).unwrap();
    machine.smmu.open_stage2(DEVICE, &Stage2Binding::new(&tables, Vmid(1))).unwrap();
    assert_eq!(fake.dma(DEVICE.0, RAM + 0x5000, true), Outcome::Reaches(RAM + 0x5000));
    let stale = tables.unmap(&fake, frames, Ipa::new(RAM + 0x3000), 0x7000).unwrap();
    machine.smmu.invalidate(Vmid(1), &stale).unwrap();
    assert_eq!(machine.write(DEVICE, RAM + 0x5000), Outcome::Aborts);
    assert_eq!(machine.write(DEVICE, RAM + 0xa000), Outcome::Reaches(RAM + 0xa000));
}

#[test]
fn history_counts_the_commands_for_the_stream() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    let _ = machine.smmu.close(VM, Vmid(1)).unwrap();
    machine.smmu.watch(DEVICE).unwrap();
    machine.smmu.silence(DEVICE).unwrap();
    // The first CFGI makes the level-2 table known. Opening takes two, of which the last comes after the
    // store that opens; closing takes one.
    assert_eq!(
        machine.history(DEVICE),
        [(State::Stage2, 2), (State::Abort, 4), (State::Watch, 5), (State::Abort, 7)]
    );
    let issued = fake.take_opcodes().iter().filter(|opcode| **opcode == 0x03).count();
    assert_eq!(
        (machine.stream(DEVICE).cfgi() as usize, machine.stream(DEVICE).transitions()),
        (issued, 4)
    );
}

#[test]
fn a_watch_names_the_culprit_within_its_budget() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    // Refused while the VM was alive, and still in the queue when it dies: not late DMA.
    machine.write(DEVICE, 0x1000);
    let _ = machine.smmu.close(VM, Vmid(1)).unwrap();
    machine.smmu.watch(DEVICE).unwrap();
    machine.smmu.stream_mut(DEVICE).unwrap().set_armed_at_close();
    assert_eq!(machine.write(DEVICE, RAM + 0x40), Outcome::Aborts);
    fake.dma(DEVICE.0, RAM + 0x80, false);
    assert_eq!(machine.drain(), [("F_TRANSLATION", Some(VM)); 3]);
    let stopped = Stopped {
        count: 2,
        first: Some(Iova::new(RAM + 0x40)),
        write: Some(true),
        silenced: false,
    };
    assert_eq!(machine.stream(DEVICE).stopped_after_teardown(), stopped);
    assert!(machine.stream(DEVICE).armed_at_close());

    // Two more spend the budget of four; then it is silent.
    for _ in 0..5 {
        machine.write(DEVICE, RAM);
    }
    machine.drain();
    assert_eq!(machine.stream(DEVICE).state(), State::Abort);
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Aborts);
    assert_eq!(machine.drain(), []);
    let stopped = machine.stream(DEVICE).stopped_after_teardown();
    assert_eq!((stopped.count, stopped.silenced), (4, true));
    let faults: Vec<_> = machine.stream(DEVICE).faults().collect();
    assert_eq!(faults, [("F_TRANSLATION", 8)]);
}

#[test]
fn a_stream_above_its_budget_is_muted_for_a_while_and_goes_on_working() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    let flood = |machine: &mut Machine| {
        for _ in 0..10 {
            assert_eq!(machine.write(DEVICE, 0), Outcome::Aborts);
        }
        machine.drain().len()
    };
    assert_eq!(flood(&mut machine), 10);
    assert!(machine.stream(DEVICE).is_muted());
    assert_eq!(flood(&mut machine), 0);
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Reaches(backing(1)));
    // Time passes.
    fake.now_us.set(fake.now_us.get() + 400_000);
    assert_eq!(machine.drain(), []);
    assert!(!machine.stream(DEVICE).is_muted());
    assert_eq!(flood(&mut machine), 10);
    assert_eq!(machine.stream(DEVICE).mutes(), 2);
    // A slow culprit is heard for ever.
    fake.now_us.set(fake.now_us.get() + 400_000);
    machine.drain();
    for _ in 0..20 {
        fake.now_us.set(fake.now_us.get() + 50_000);
        machine.write(DEVICE, 0);
        assert_eq!(machine.drain().len(), 1);
    }
    assert_eq!(machine.stream(DEVICE).mutes(), 2);
}

/// C7, on hardware with ATS: what `STE.S2R` does not govern takes *abort*, until the stream may be heard again.
#[test]
fn a_stream_that_muting_does_not_silence_aborts_for_a_while() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    let flood = |machine: &mut Machine| {
        (0..10).for_each(|_| fake.translated_dma(DEVICE.0, RAM));
        machine.drain().len()
    };
    // Muted after these, although that does not help.
    assert_eq!(flood(&mut machine), 10);
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Reaches(backing(1)));
    // So this is too much.
    assert_eq!(flood(&mut machine), 10);
    assert_eq!(flood(&mut machine), 0);
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Aborts);
    // After the time it works, and the next flood ends at once.
    for round in 2..5 {
        fake.now_us.set(fake.now_us.get() + 400_000);
        assert_eq!(machine.drain(), []);
        assert_eq!(machine.write(DEVICE, RAM), Outcome::Reaches(backing(1)));
        assert_eq!(flood(&mut machine), 10);
        assert_eq!(flood(&mut machine), 0);
        assert_eq!(machine.write(DEVICE, RAM), Outcome::Aborts);
        assert_eq!(machine.stream(DEVICE).mutes(), round);
    }
}

/// What the queue holds when a stream is muted does not count against it again.
#[test]
fn a_muted_stream_is_not_blamed_for_what_came_before() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    for _ in 0..30 {
        machine.write(DEVICE, 0);
    }
    assert_eq!(machine.drain().len(), 30);
    assert!(machine.stream(DEVICE).is_muted());
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Reaches(backing(1)));
}

#[test]
fn an_overflow_is_noticed_and_survived() {
    for like_qemu in [false, true] {
        let fake = Fake::new(QEMU_NESTED);
        fake.overflows_like_qemu.set(like_qemu);
        let mut streams = Streams::new();
        let mut machine = Machine::new(&fake, &mut streams);
        machine.attach(DEVICE, VM);
        for round in 1..=3 {
            // 32 entries.
            for sid in 0..40 {
                fake.dma(0xf000 + sid, RAM, true);
            }
            let drained = machine.smmu.drain_events(5, &mut |_, _| ()).unwrap();
            assert_eq!(drained, Drained { records: 5, more: true });
            assert_eq!(machine.drain().len(), 27);
            machine.smmu.service_gerror().unwrap();
            assert_eq!(machine.smmu.counters().dropped, round);
            assert_eq!(machine.smmu.counters().drained, 32 * round);
            assert_eq!(active_errors(&fake).get(), 0);
        }
        assert_eq!(machine.smmu.counters().gerror, if like_qemu { 4 } else { 0 });
    }
}

#[test]
fn events_after_a_change_of_owner_are_the_new_owners() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    machine.write(DEVICE, 0);
    let _ = machine.smmu.close(VM, Vmid(1)).unwrap();
    machine.open(DEVICE, VmIndex(1), 2);
    machine.write(DEVICE, 0);
    assert_eq!(machine.drain(), [("F_TRANSLATION", None), ("F_TRANSLATION", Some(VmIndex(1)))]);
}

#[test]
fn service_failure_is_fatal() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    fake.toggle_gerror(8);
    assert_eq!(machine.smmu.service_gerror(), Err(HostError::ServiceFailure));
}

#[test]
fn mistakes_of_the_caller_change_nothing() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let one = machine.open(DEVICE, VM, 1);
    let two = machine.vm(2);
    let impostor = machine.vm(1);
    fake.take_opcodes();
    let smmu = &mut machine.smmu;
    assert_eq!(smmu.open_stage2(OTHER, &one), Err(HostError::UnknownStream(OTHER)));
    smmu.attach(StreamId(0x11), None, &mut machine.frames).unwrap();
    assert_eq!(smmu.open_stage2(StreamId(0x11), &two), Err(HostError::Unowned(StreamId(0x11))));
    smmu.attach(StreamId(0x11), Some(VmIndex(1)), &mut machine.frames).unwrap();
    // Another VM's VMID; a second VMID; a second table under the same.
    assert_eq!(smmu.open_stage2(StreamId(0x11), &one), Err(HostError::BadVmid(Vmid(1))));
    smmu.attach(StreamId(0x11), Some(VM), &mut machine.frames).unwrap();
    assert_eq!(smmu.open_stage2(StreamId(0x11), &two), Err(HostError::BadVmid(Vmid(2))));
    assert_eq!(smmu.open_stage2(StreamId(0x11), &impostor), Err(HostError::BadVmid(Vmid(1))));
    assert_eq!(smmu.open_stage2(DEVICE, &one), Err(HostError::StreamOpen(DEVICE)));
    assert_eq!(smmu.attach(DEVICE, None, &mut machine.frames), Err(HostError::StreamOpen(DEVICE)));
    assert_eq!(smmu.watch(DEVICE), Err(HostError::StreamOpen(DEVICE)));
    assert_eq!(smmu.silence(DEVICE), Err(HostError::StreamOpen(DEVICE)));
    assert_eq!(smmu.close(VM, Vmid(2)).err(), Some(HostError::BadVmid(Vmid(2))));
    assert_eq!(smmu.close(VmIndex(1), Vmid(1)).err(), Some(HostError::BadVmid(Vmid(1))));
    let far = StreamId(1 << 16);
    assert_eq!(smmu.attach(far, None, &mut machine.frames), Err(HostError::StreamOutOfRange(far)));
    machine.frames.left = 0;
    assert_eq!(smmu.attach(OTHER, None, &mut machine.frames), Err(HostError::OutOfMemory));
    assert_eq!(fake.take_opcodes(), []);
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Reaches(backing(1)));
    machine.frames.left = usize::MAX;
    for sid in 0x80..0x80 + MAX_STREAMS as u32 - 2 {
        machine.attach(StreamId(sid), VM);
    }
    let full = machine.smmu.attach(StreamId(0x70), None, &mut machine.frames);
    assert_eq!(full, Err(HostError::TooManyStreams));
}

#[test]
fn reserved_and_too_wide_vmids_are_no_vms() {
    let mut ids = QEMU_NESTED;
    for (vmid16, refused) in [(true, vec![0, 255]), (false, vec![0, 255, 256])] {
        ids[0] = ids[0] & !(1 << 18) | u32::from(vmid16) << 18;
        let fake = Fake::new(ids);
        let mut streams = Streams::new();
        let mut machine = Machine::new(&fake, &mut streams);
        machine.attach(DEVICE, VM);
        let binding = machine.vm(1);
        for vmid in refused {
            let bad = Stage2Binding { vmid: Vmid(vmid), ..binding };
            let error = HostError::BadVmid(Vmid(vmid));
            assert_eq!(machine.smmu.open_stage2(DEVICE, &bad), Err(error));
        }
        if vmid16 {
            let wide = Stage2Binding { vmid: Vmid(256), ..binding };
            assert_eq!(machine.smmu.open_stage2(DEVICE, &wide), Ok(()));
        } else {
            let widest = Stage2Binding { vmid: Vmid(254), ..binding };
            assert_eq!(machine.smmu.open_stage2(DEVICE, &widest), Ok(()));
        }
    }
}

#[test]
fn a_watched_stream_can_be_opened_again() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.open(DEVICE, VM, 1);
    let _ = machine.smmu.close(VM, Vmid(1)).unwrap();
    machine.smmu.watch(DEVICE).unwrap();
    machine.smmu.watch(DEVICE).unwrap();
    machine.smmu.open_stage2(DEVICE, &binding).unwrap();
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Reaches(backing(1)));
    let states: Vec<State> = machine.history(DEVICE).into_iter().map(|(state, _)| state).collect();
    assert_eq!(
        states,
        vec![State::Stage2, State::Abort, State::Watch, State::Abort, State::Stage2]
    );
}

#[test]
fn garbage_in_the_event_queue_harms_nobody() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    for word in [0, u64::MAX, 0x10_0000_00ff, 0x10_0000_0010] {
        fake.record([word, u64::MAX, u64::MAX, u64::MAX]);
    }
    // An index far outside the ring, as a broken SMMU could show.
    assert_eq!(machine.drain().len(), 4);
    fake.set_register(0x1_00a8, 0xf_ffff);
    assert!(machine.drain().len() <= 32);
    let names: Vec<String> = machine.stream(DEVICE).faults().map(|(name, _)| name.into()).collect();
    assert!(names.contains(&"UNKNOWN".into()) && names.contains(&"F_TRANSLATION".into()));
}

#[test]
fn a_close_is_followed_by_a_watch_of_all_that_its_owner_has() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.open(DEVICE, VM, 1);
    // Never opened: its function may have been armed by whoever was here before.
    machine.attach(OTHER, VM);
    let (refused, foreign) = (StreamId(0x12), StreamId(0x20));
    machine.attach(refused, VM);
    machine.smmu.configure(refused, &binding, &Configuration::Refuse).unwrap();
    machine.open(foreign, VmIndex(1), 2);

    assert_eq!(machine.smmu.close(VM, Vmid(1)).unwrap().streams(), 1);
    machine.smmu.watch_closed(VM).unwrap();
    for sid in [DEVICE, OTHER, refused] {
        assert_eq!(machine.stream(sid).state(), State::Watch, "{sid:?}");
        assert_eq!(machine.write(sid, RAM), Outcome::Aborts);
        assert!(!machine.stream(sid).refuses());
    }
    assert_eq!(machine.drain().len(), 3);
    assert_eq!(machine.stream(foreign).state(), State::Stage2);

    // Each is told once, and again only if there is more to tell.
    let stream = machine.smmu.stream_mut(OTHER).unwrap();
    assert!(stream.has_untold());
    assert_eq!(stream.tell_stopped().map(|stopped| stopped.count), Some(1));
    assert_eq!(stream.tell_stopped(), None);
    machine.write(OTHER, RAM);
    machine.drain();
    let stream = machine.smmu.stream_mut(OTHER).unwrap();
    assert_eq!(stream.tell_stopped().map(|stopped| stopped.count), Some(2));

    // Another close starts no watch anew: neither one under way nor one that is over.
    for _ in 0..5 {
        machine.write(OTHER, RAM);
        machine.drain();
    }
    assert!(machine.stream(OTHER).stopped_in_watch().silenced);
    let _ = machine.smmu.close(VM, Vmid(1)).unwrap();
    machine.smmu.watch_closed(VM).unwrap();
    assert_eq!(machine.stream(OTHER).state(), State::Abort);
    assert_eq!(machine.stream(DEVICE).stopped_in_watch().count, 1);

    // One that was open since is watched from the beginning.
    machine.smmu.open_stage2(OTHER, &binding).unwrap();
    let _ = machine.smmu.close(VM, Vmid(1)).unwrap();
    machine.smmu.watch_closed(VM).unwrap();
    assert_eq!(machine.stream(OTHER).state(), State::Watch);
    assert_eq!(machine.stream(OTHER).stopped_in_watch().count, 0);
}

/// A close writes word 0 only; whatever configures the stream next must not take the others for zeros.
#[test]
fn nothing_of_an_old_stage_1_is_left_after_a_close() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.open(DEVICE, VM, 1);
    let words = |machine: &mut Machine<'_>| {
        let entry = machine.smmu.streams.get(DEVICE).unwrap().entry;
        [0, 1, 2, 3, 4, 5, 6, 7].map(|word| fake.load(entry.add(8 * word)))
    };
    let bypass = words(&mut machine);
    let stage1 =
        Stage1Config { context: Ipa::new(0x4000_1000), inner: 1, outer: 1, shareability: 3 };
    machine.smmu.configure(DEVICE, &binding, &Configuration::Nested(stage1)).unwrap();
    assert_ne!(words(&mut machine), bypass);
    let _ = machine.smmu.close(VM, Vmid(1)).unwrap();
    machine.smmu.configure(DEVICE, &binding, &Configuration::Stage2).unwrap();
    assert_eq!(words(&mut machine), bypass);
}

/// Both have to say alike whether stage 2 alone decides about write-back (`HCR_EL2.FWB`, `STE.S2FWB`).
#[test]
fn write_back_is_forced_where_both_can() {
    for (smmu, cpu) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut ids = QEMU_NESTED;
        ids[2] |= u32::from(smmu) << 8;
        let fake = Fake::new(ids);
        let (mut streams, mut frames) = (Streams::new(), fake.frames());
        let config = Config { cpu_fwb: cpu, ..config() };
        let taken = Smmu::take_over(&fake, &config, &mut streams, &mut frames).unwrap();
        assert_eq!(taken.format().fwb(), smmu && cpu);
    }
}

#[test]
fn a_stage_1_is_offered_where_the_hardware_nests() {
    for (ids, nests) in [(QEMU_NESTED, true), (QEMU_STAGE2, false)] {
        let fake = Fake::new(ids);
        let mut streams = Streams::new();
        let machine = Machine::new(&fake, &mut streams);
        assert_eq!(machine.smmu.nesting().is_some(), nests);
    }
}

/// Everything is as large as it is configured, and no larger.
#[test]
fn tables_and_queues_have_their_sizes() {
    let sizes = |two_level: bool, sid_bits: u8| {
        let mut ids = QEMU_NESTED;
        ids[0] = ids[0] & !(3 << 27) | u32::from(two_level) << 27;
        ids[1] = ids[1] & !0x3f | 24;
        let fake = Fake::new(ids);
        let (mut streams, mut frames) = (Streams::new(), fake.frames());
        let config = Config {
            command_queue_log2: 9,
            event_queue_log2: 13,
            ..Config::new(sid_bits, 44, false)
        };
        Smmu::take_over(&fake, &config, &mut streams, &mut frames).unwrap();
        let [table, commands, events, _watch] =
            frames.live.values().copied().collect::<Vec<u64>>()[..]
        else {
            panic!("four blocks")
        };
        assert_eq!((commands, events), (16 << 9, 32 << 13));
        (table, fake.register(0x88))
    };
    // 2 to the 12 level-1 descriptors of 8 bytes each.
    assert_eq!(sizes(true, 20), (8 << 12, 1 << 16 | 8 << 6 | 20));
    // With nothing left for level 1, and without two levels: STEs of 64 bytes.
    assert_eq!(sizes(true, 8), (64 << 8, 8));
    assert_eq!(sizes(false, 14), (64 << 14, 14));
}

#[test]
fn a_full_list_takes_no_memory() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    for sid in 0..MAX_STREAMS as u32 {
        machine.attach(StreamId(sid), VM);
    }
    let before = machine.frames.live.len();
    // One whose level-2 table there is not yet.
    let refused = machine.smmu.attach(StreamId(0x8000), Some(VM), &mut machine.frames);
    assert_eq!((refused, machine.frames.live.len()), (Err(HostError::TooManyStreams), before));
}

#[test]
fn an_empty_event_queue_is_left_alone() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    let writes = fake.writes.borrow().len();
    let drain =
        |machine: &mut Machine, budget| machine.smmu.drain_events(budget, &mut |_, _| ()).unwrap();
    assert!(!machine.smmu.has_events());
    assert_eq!(drain(&mut machine, 8), Drained { records: 0, more: false });
    assert_eq!(fake.writes.borrow().len(), writes);
    machine.write(DEVICE, 0);
    machine.write(DEVICE, 0);
    assert!(machine.smmu.has_events());
    assert_eq!(drain(&mut machine, 1), Drained { records: 1, more: true });
    assert_eq!(drain(&mut machine, 1), Drained { records: 1, more: false });
    assert!(!machine.smmu.has_events());
}

/// C7: the budget is what is allowed, and the next record is too much; muted, it starts anew.
#[test]
fn a_budget_is_spent_to_the_last_record() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    let flood = |machine: &mut Machine, count: u32| {
        (0..count).for_each(|_| fake.translated_dma(DEVICE.0, RAM));
        assert_eq!(machine.drain().len(), count as usize);
    };
    flood(&mut machine, 8);
    assert!(!machine.stream(DEVICE).is_muted());
    // It is recorded whatever `STE.S2R` says.
    flood(&mut machine, 1);
    assert!(machine.stream(DEVICE).is_muted());
    flood(&mut machine, 8);
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Reaches(backing(1)));
    flood(&mut machine, 1);
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Aborts);
}

/// A window is over after its length, not before. The clock goes on a little from look to look.
#[test]
fn a_window_has_its_length() {
    for (passed, muted) in [(99_000, true), (100_000, false)] {
        let fake = Fake::new(QEMU_NESTED);
        let mut streams = Streams::new();
        let mut machine = Machine::new(&fake, &mut streams);
        machine.open(DEVICE, VM, 1);
        let begin = fake.now_us.get() + 1_000_000;
        for (now, count) in [(begin, 1), (begin + passed, 8)] {
            fake.now_us.set(now);
            (0..count).for_each(|_| {
                machine.write(DEVICE, 0);
            });
            machine.drain();
        }
        assert_eq!(machine.stream(DEVICE).is_muted(), muted, "after {passed} us");
    }
}

#[test]
fn a_close_says_how_many_streams_it_closed() {
    for count in [0, 1, 3] {
        let fake = Fake::new(QEMU_NESTED);
        let mut streams = Streams::new();
        let mut machine = Machine::new(&fake, &mut streams);
        let binding = machine.vm(1);
        for sid in 0..3 {
            machine.attach(StreamId(sid), VM);
        }
        for sid in 0..count {
            machine.smmu.open_stage2(StreamId(sid), &binding).unwrap();
        }
        let closed = machine.smmu.close(VM, Vmid(1)).unwrap();
        assert_eq!((closed.streams(), closed.owner(), closed.vmid()), (count, VM, Vmid(1)));
    }
}

/// C6: what is known of a function that went on after its owner.
#[test]
fn a_watch_says_since_when_and_whether_it_was_armed() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    machine.open(DEVICE, VM, 1);
    assert!(!machine.stream(DEVICE).armed_at_close());
    machine.smmu.stream_mut(DEVICE).unwrap().set_armed_at_close();
    assert!(machine.stream(DEVICE).armed_at_close());
    let _ = machine.smmu.close(VM, Vmid(1)).unwrap();
    machine.smmu.watch(DEVICE).unwrap();
    assert_eq!(machine.stream(DEVICE).stopped_at_us(), None);
    for now in [5_000_000, 6_000_000] {
        fake.now_us.set(now);
        machine.write(DEVICE, RAM);
        machine.drain();
        // The first one counts.
        let at = machine.stream(DEVICE).stopped_at_us().unwrap();
        assert!((5_000_000..6_000_000).contains(&at), "{at}");
    }
}

/// Whose business an event is depends on the state of its stream, and on which stage refused.
#[test]
fn an_event_concerns_its_owner_if_its_own_stage_1_refused() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.vm(1);
    machine.attach(DEVICE, VM);
    let stage1 = Configuration::Nested(crate::ste::Stage1Config {
        context: Ipa::new(RAM),
        inner: 1,
        outer: 1,
        shareability: 3,
    });
    // F_TRANSLATION of an input address, of stage 1 and of stage 2 (section 7.3.13).
    let record =
        |stage2: u64| [0x10 | u64::from(DEVICE.0) << 32, stage2 << 39 | 0b10 << 40, 0x1000, 0];
    // Of stage 2 also beyond the guest's addresses, where its own stage 1 must have sent the transaction.
    let beyond = |ipa: u64| [record(1)[0], record(1)[1], 0x1000, ipa];
    let records = [record(0), record(1), beyond((1 << 40) - 0x1000), beyond(1 << 40)];
    for (to, expected) in [
        (Configuration::Stage2, [false; 4]),
        (stage1, [true, false, false, true]),
        (Configuration::Refuse, [true; 4]),
        (Configuration::Abort, [false; 4]),
    ] {
        machine.smmu.configure(DEVICE, &binding, &to).unwrap();
        for (words, expected) in records.into_iter().zip(expected) {
            fake.record(words);
            let mut concerns = Vec::new();
            let sink = &mut |_: &Event, concern: Concern| concerns.push(concern);
            machine.smmu.drain_events(8, sink).unwrap();
            let concern = Concern { owner: Some(VM), is_owners: expected };
            assert_eq!(concerns, [concern], "{to:?}, {words:x?}");
        }
    }
}

/// C6: a function whose watch was spent once, and whose driver then let its stream abort, is watched after the next end too.
#[test]
fn a_stream_that_was_silenced_is_watched_after_its_next_close() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.open(DEVICE, VM, 1);
    let _ = machine.smmu.close(VM, Vmid(1)).unwrap();
    machine.smmu.watch_closed(VM).unwrap();
    (0..6).for_each(|_| {
        machine.write(DEVICE, RAM);
    });
    machine.drain();
    assert!(machine.stream(DEVICE).stopped_in_watch().silenced);
    // Its next owner opens it, and then does not want it.
    machine.smmu.configure(DEVICE, &binding, &Configuration::Stage2).unwrap();
    machine.smmu.configure(DEVICE, &binding, &Configuration::Abort).unwrap();
    let _ = machine.smmu.close(VM, Vmid(1)).unwrap();
    machine.smmu.watch_closed(VM).unwrap();
    machine.write(DEVICE, RAM);
    machine.drain();
    assert_eq!(machine.stream(DEVICE).stopped_in_watch().count, 1);
    assert!(machine.stream(DEVICE).stopped_after_teardown().silenced, "that is not forgotten");
}

/// C7: a guest may have its stream table read for as long as it likes.
#[test]
fn commands_for_a_stream_are_counted_beyond_32_bits() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.open(DEVICE, VM, 1);
    machine.smmu.stream_mut(DEVICE).unwrap().pretend_commands(u64::from(u32::MAX) - 1);
    for to in [Configuration::Stage2, Configuration::Abort, Configuration::Stage2] {
        machine.smmu.configure(DEVICE, &binding, &to).unwrap();
    }
    let _ = machine.smmu.close(VM, Vmid(1)).unwrap();
    let last = machine.history(DEVICE).pop();
    let counted = machine.stream(DEVICE).cfgi();
    assert!(counted > u64::from(u32::MAX));
    assert_eq!(last, Some((State::Abort, counted)));
}
