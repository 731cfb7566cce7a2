//! The model itself: what QEMU's SMMU, as measured, and the specification say that transactions do.

use smmu::addr::{StreamId, Vmid};
use smmu::event::Event;
use smmu::invalidate::Invalidation;
use smmu::ports::{Memory, Registers};
use smmu::streams::Streams;

use crate::chooser::Chooser;
use crate::host::{Host, Op, RAM, ROM};
use crate::machine::{Machine, Outcome, Transaction};
use crate::profile::Profile;

const SID: u32 = 1;

fn read(address: u64) -> Transaction {
    Transaction { write: false, ..Transaction::write(SID, address) }
}

fn write(address: u64) -> Transaction {
    Transaction::write(SID, address)
}

/// A machine whose stream 1 is open, with both stages or with stage 2 only.
fn with_open_stream(profile: Profile, nested: bool, test: impl FnOnce(&Machine, u64)) {
    let machine = Machine::new(profile, Chooser::plain());
    let mut streams = Streams::new();
    let mut host = Host::start(&machine, &machine, &mut streams, 6).unwrap();
    host.expect(if nested { Op::Configure(0, 0, 3) } else { Op::Open(0, 0) });
    test(&machine, host.backing(0));
}

/// The newest event record.
fn last_event(machine: &Machine) -> Option<[u64; 4]> {
    let producer = machine.read32(0x1_00a8) & 0xf;
    machine.event(producer.checked_sub(1)?)
}

#[test]
fn stage_2_does_what_its_tables_say() {
    with_open_stream(Profile::PLAIN, false, |machine, ram| {
        assert_eq!(machine.dma(write(RAM + 0x12_3458)), Outcome::Reaches(ram + 0x12_3458));
        assert_eq!(machine.dma(read(ROM + 8)), Outcome::Reaches(ram + (8 << 20) + 8));
        assert_eq!(last_event(machine), None);
        // The records are QEMU's.
        assert_eq!(machine.dma(write(0x1_1238)), Outcome::Aborted);
        assert_eq!(last_event(machine), Some([0x1_0000_0010, 0x280 << 32, 0x1_1238, 0x1_1238]));
        assert_eq!(machine.dma(read(0x1_1238)), Outcome::Aborted);
        assert_eq!(last_event(machine).unwrap()[1], 0x288 << 32);
        assert_eq!(machine.dma(write(ROM)), Outcome::Aborted);
        assert_eq!(last_event(machine).unwrap()[0], 0x1_0000_0013);
        assert_eq!(machine.dma(write(1 << 40)), Outcome::Aborted);
        assert_eq!(last_event(machine).unwrap()[0], 0x1_0000_0010);
        // A stream whose STE aborts says nothing; one without an STE does.
        let before = last_event(machine);
        assert_eq!(machine.dma(Transaction::write(9, RAM)), Outcome::Aborted);
        assert_eq!(last_event(machine), before);
        assert_eq!(machine.dma(Transaction::write(64, RAM)), Outcome::Aborted);
        assert_eq!(last_event(machine), Some([0x40_0000_0002, 0, 0, 0]));
        assert_eq!(machine.violation(), None);
    });
}

#[test]
fn both_stages_are_walked_and_each_fault_is_its_stages() {
    with_open_stream(Profile::NESTED, true, |machine, ram| {
        // A 1 GiB block, the same at another address, and a page behind three levels.
        assert_eq!(machine.dma(write(RAM + 0x18)), Outcome::Reaches(ram + 0x18));
        assert_eq!(machine.dma(write(0x3008)), Outcome::Reaches(ram + 0x3008));
        assert_eq!(machine.dma(write((2 << 30) + 8)), Outcome::Reaches(ram + 0x3008));
        assert_eq!(last_event(machine), None);
        // Stage 1 does not map it; stage 1 maps it to what stage 2 does not.
        assert_eq!(machine.dma(write(3 << 30)), Outcome::Aborted);
        assert_eq!(last_event(machine), Some([0x1_0000_0010, 0x200 << 32, 3 << 30, 0]));
        assert_eq!(machine.dma(write((2 << 30) + 0x1238)), Outcome::Aborted);
        let event = Event::decode(last_event(machine).unwrap());
        assert_eq!(event.stage.map(|stage| stage.stage2), Some(true));
        assert_eq!(event.ipa().map(|ipa| ipa.raw()), Some(0xad_0000_0000));
        // The upper half is switched off, and so is what lies between the halves.
        assert_eq!(machine.dma(write(!0xfff)), Outcome::Aborted);
        assert_eq!(machine.dma(write(1 << 39)), Outcome::Aborted);
        assert_eq!(machine.violation(), None);
    });
}

#[test]
fn what_is_cached_stays_until_the_right_command_and_sync() {
    with_open_stream(Profile::NESTED, false, |machine, ram| {
        assert_eq!(machine.dma(write(RAM)), Outcome::Reaches(ram));
        machine.land();
        // The STE aborts, and nobody says so: nothing changes.
        let ste = machine.ste_address(SID);
        machine.store(ste, 1);
        machine.publish();
        assert_eq!(machine.dma(write(RAM)), Outcome::Reaches(ram));
        let mut producer = machine.read32(0x98);
        let mut issue = |low: u64, high: u64| {
            machine.command(producer, [low, high]);
            producer = (producer + 1) & 0xf;
            machine.write32(0x98, producer);
            machine.read32(0x9c);
        };
        // Another stream's, then the right one without a SYNC.
        issue(0x2_0000_0003, 1);
        issue(0x46, 0);
        assert_eq!(machine.dma(write(RAM)), Outcome::Reaches(ram));
        issue(0x1_0000_0003, 1);
        assert_eq!(machine.dma(write(RAM)), Outcome::Reaches(ram));
        issue(0x46, 0);
        assert_eq!(machine.dma(write(RAM)), Outcome::Aborted);
        assert_eq!(machine.violation(), None);
        // An illegal one stops the queue.
        issue(0xff, 0);
        assert_eq!((machine.read32(0x60) & 1, machine.read32(0x9c) >> 24), (1, 1));
    });
}

#[test]
fn translated_requests_abort_only_where_they_are_checked() {
    for profile in [Profile::DANGEROUS, Profile::NESTED] {
        with_open_stream(profile, false, |machine, _| {
            let translated = Transaction { translated: true, ..write(RAM) };
            assert_eq!(machine.dma(translated), Outcome::Aborted);
            assert!(last_event(machine).is_some_and(|words| words[0] as u8 == 7));
            assert_eq!(machine.violation(), None);
        });
    }
}

#[test]
fn a_disabled_smmu_does_what_gbpa_says() {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    assert_eq!(machine.dma(write(RAM)), Outcome::Bypassed);
    smmu::device::close_first(&machine).unwrap();
    assert_eq!(machine.dma(write(RAM)), Outcome::Aborted);
    // A write without UPDATE changes nothing, and is not how it is done.
    machine.write32(0x44, 0);
    assert_eq!(machine.dma(write(RAM)), Outcome::Aborted);
    assert!(machine.violation().is_some());
}

#[test]
fn one_vms_invalidation_leaves_another_vm_alone() {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let mut streams = Streams::new();
    let mut host = Host::start(&machine, &machine, &mut streams, 6).unwrap();
    host.expect(Op::Open(0, 0));
    host.expect(Op::Open(1, 1));
    for sid in [1, 2] {
        assert!(matches!(machine.dma(Transaction::write(sid, RAM)), Outcome::Reaches(_)));
    }
    assert_eq!(machine.cached_vmids(), [1, 2]);
    machine.land();
    host.smmu.invalidate(Vmid(1), &Invalidation::All).unwrap();
    assert_eq!(machine.cached_vmids(), [2]);
    assert!(host.smmu.streams().any(|stream| stream.sid() == StreamId(1)));
}
