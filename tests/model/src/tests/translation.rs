//! The model itself: what QEMU's SMMU, as measured, and the specification say that transactions do.

use smmu::addr::{Iova, Pa, StreamId, VmIndex, Vmid};
use smmu::cmd::{Command, Pages};
use smmu::error::HostError;
use smmu::event::Event;
use smmu::invalidate::Invalidation;
use smmu::ports::{Memory, Registers};
use smmu::streams::Streams;

use crate::chooser::Chooser;
use crate::decode;
use crate::host::{CONTEXT, Host, Op, RAM, ROM};
use crate::machine::{Machine, Outcome, Transaction};
use crate::profile::Profile;
use crate::violation::Property;

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
        // QEMU writes the whole address where the architecture has a page: `scenarios` lists that.
        assert_eq!(machine.dma(write(0x1_1238)), Outcome::Aborted);
        assert_eq!(last_event(machine), Some([0x1_0000_0010, 0x280 << 32, 0x1_1238, 0x1_1000]));
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

/// A CD that asks for stalls is illegal where the STE forbids them; without that it would hold up others.
#[test]
fn a_guest_cannot_make_a_transaction_stall() {
    for forbidden in [true, false] {
        let machine = Machine::new(Profile::DANGEROUS, Chooser::plain());
        let mut streams = Streams::new();
        let mut host = Host::start(&machine, &machine, &mut streams, 6).unwrap();
        host.expect(Op::Configure(0, 0, 3));
        let cd = host.backing(0) + (CONTEXT - RAM);
        // S.
        machine.write_guest(cd, machine.load(Pa::new(cd)) | 1 << 44);
        let command = Command::CfgiCd { sid: StreamId(SID), ssid: 0, leaf: true };
        if !forbidden {
            let word1 = machine.ste_address(SID).add(8);
            machine.store(word1, machine.load(word1) & !(1 << 27));
            machine.publish();
            host.expect(Op::Configure(0, 0, 3));
        }
        host.smmu.relay(VmIndex(0), Vmid(1), command).unwrap();
        host.smmu.sync().unwrap();
        // Nothing is mapped there.
        let outcome = machine.dma(write(3 << 30));
        let broken = machine.violation().map(|violation| violation.property);
        if forbidden {
            assert_eq!(outcome, Outcome::Aborted);
            assert_eq!(last_event(&machine), Some([0x1_0000_000a, 0, 0, 0]));
            assert_eq!(broken, None);
        } else {
            // The judge does not wait for the stall.
            assert_eq!(outcome, Outcome::Stalled(1));
            assert_eq!(broken, Some(Property::Stage2Always));
        }
    }
}

/// A machine whose stream 1 stalls, by a CD and an STE that nobody should write.
fn with_stalling_stream(test: impl FnOnce(&Machine, u64)) {
    with_open_stream(Profile::DANGEROUS, true, |machine, ram| {
        let cd = ram + (CONTEXT - RAM);
        machine.write_guest(cd, machine.load(Pa::new(cd)) | 1 << 44);
        let word1 = machine.ste_address(SID).add(8);
        machine.store(word1, machine.load(word1) & !(1 << 27));
        machine.publish();
        issue(machine, 0x03 | u64::from(SID) << 32, 1);
        issue(machine, 0x46, 0);
        test(machine, ram);
    });
}

/// Puts a command into the queue by hand, and has it consumed.
fn issue(machine: &Machine, low: u64, high: u64) {
    let producer = machine.read32(0x98);
    machine.command(producer, [low, high]);
    machine.write32(0x98, (producer + 1) & 0xf);
    machine.read32(0x9c);
}

/// What CMD_RESUME and CMD_STALL_TERM do with transactions that wait (sections 4.7.1 and 4.7.2).
#[test]
fn a_stalled_transaction_waits_for_its_command() {
    const RESUME: u64 = 0x44 | (SID as u64) << 32;
    const RETRY: u64 = 1 << 12;
    with_stalling_stream(|machine, ram| {
        // Stage 1 maps the page behind this one, and so nothing here.
        let (missing, entry) = ((2 << 30) + 0x2000, ram + (CONTEXT - RAM) + 3 * 4096 + 16);
        assert_eq!(machine.dma(write(missing)), Outcome::Stalled(1));
        // F_TRANSLATION with Stall and STAG.
        let record = [0x1_0000_0010, 0x200 << 32 | 1 << 31 | 1, missing, 0];
        assert_eq!(last_event(machine), Some(record));
        let target = Pa::new(ram + 0x6000);
        machine.write_guest(target.raw(), 0);
        machine.write_guest(entry, (RAM + 0x6000) | 1 << 10 | 3 << 8 | 1 << 6 | 0b11);
        // Another stream's, another tag, then the right one: it arrives.
        issue(machine, (RESUME | RETRY) + (1 << 32), 1);
        issue(machine, RESUME | RETRY, 2);
        machine.land();
        assert_eq!(machine.load(target), 0);
        issue(machine, RESUME | RETRY, 1);
        machine.land();
        assert_ne!(machine.load(target), 0);
        // Once only.
        machine.write_guest(target.raw(), 0);
        issue(machine, RESUME | RETRY, 1);
        machine.land();
        assert_eq!(machine.load(target), 0);
        // Ended: what is mapped later does not bring it back, nor is it there for another command.
        for end in [RESUME, 0x45 | u64::from(SID) << 32] {
            machine.write_guest(entry, 0);
            issue(machine, 0x10 | 1 << 32, 0);
            issue(machine, 0x46, 0);
            let Outcome::Stalled(tag) = machine.dma(write(missing)) else { panic!("it waits") };
            issue(machine, end, tag.into());
            machine.write_guest(entry, (RAM + 0x6000) | 1 << 10 | 3 << 8 | 1 << 6 | 0b11);
            issue(machine, RESUME | RETRY, tag.into());
            machine.land();
            assert_eq!(machine.load(target), 0);
        }
        // Where there are no stalls there are no such commands.
        assert!(decode::command(&[RESUME, 1], &Profile::DANGEROUS).is_ok());
        assert!(decode::command(&[RESUME, 1], &Profile::NESTED).is_err());
    });
}

/// The record of a transaction that stalls is not lost, however full the queue is (section 7.4).
#[test]
fn a_stalled_transaction_is_recorded_when_there_is_room() {
    with_stalling_stream(|machine, _| {
        // Beyond the stream table: C_BAD_STREAMID.
        for _ in 0..17 {
            let _ = machine.dma(Transaction::write(64, 0));
            issue(machine, 0x46, 0);
        }
        let (written, lost) = (machine.counts().1, machine.counts().2);
        assert_eq!((written, lost), (16, 1));
        assert_eq!(machine.dma(write(3 << 30)), Outcome::Stalled(1));
        issue(machine, 0x46, 0);
        assert_eq!((machine.counts().1, machine.counts().2), (written, lost));
        // Software takes one.
        let consumer = machine.read32(0x1_00ac);
        machine.write32(0x1_00ac, consumer + 1);
        issue(machine, 0x46, 0);
        assert_eq!((machine.counts().1, machine.counts().2), (written + 1, lost));
    });
}

#[test]
fn translated_requests_abort_only_where_they_are_checked() {
    for profile in [Profile::DANGEROUS, Profile::NESTED] {
        with_open_stream(profile, false, |machine, _| {
            // Where streams abort anyway, or are none, nothing is recorded (section 7.3.8).
            for sid in [9, 64] {
                let translated = Transaction { translated: true, ..Transaction::write(sid, RAM) };
                assert_eq!(machine.dma(translated), Outcome::Aborted);
            }
            assert_eq!(last_event(machine), None);
            for (translated, flags) in [(write(RAM), 0), (read(RAM), 8 << 32)] {
                let translated = Transaction { translated: true, ..translated };
                assert_eq!(machine.dma(translated), Outcome::Aborted);
                assert_eq!(last_event(machine), Some([0x1_0000_0007, flags, RAM, 0]));
            }
            assert_eq!(machine.violation(), None);
        });
    }
    // ATSCHK=0: nobody checks them, they pass, and whoever left it so is to blame.
    with_open_stream(Profile::DANGEROUS, false, |machine, ram| {
        machine.write32(0x20, machine.read32(0x20) & !(1 << 4));
        assert_eq!(machine.read32(0x24) >> 4 & 1, 0);
        let translated = Transaction { translated: true, ..write(ram) };
        assert_eq!(machine.dma(translated), Outcome::Bypassed);
        let broken = machine.violation().map(|violation| violation.property);
        assert_eq!(broken, Some(Property::Stage2Always));
    });
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

/// The last-level entry of the guest's page at 2 GiB, and what it maps there: RAM plus this.
fn remap(machine: &Machine, ram: u64, offset: u64) {
    let entry = (RAM + offset) | 1 << 10 | 3 << 8 | 1 << 6 | 0b11;
    machine.write_guest(ram + (CONTEXT - RAM) + 3 * 4096, entry);
}

#[test]
fn a_guests_invalidation_reaches_all_that_it_names_and_nobody_else() {
    const PAGE: u64 = 2 << 30;
    let vmid = Vmid(1);
    let (asid, pages, leaf) = (5, Pages::One, true);
    let address = Iova::new(PAGE);
    for command in [
        Command::TlbiNhAll { vmid },
        Command::TlbiNhAsid { vmid, asid },
        Command::TlbiNhVa { vmid, asid, address, pages, leaf },
        Command::TlbiNhVaa { vmid, address, pages, leaf },
    ] {
        let machine = Machine::new(Profile::NESTED, Chooser::plain());
        let mut streams = Streams::new();
        let mut host = Host::start(&machine, &machine, &mut streams, 6).unwrap();
        let [one, two, _] = host.sids();
        host.expect(Op::Configure(0, 0, 3));
        host.expect(Op::Configure(1, 1, 3));
        let rams = [host.backing(0), host.backing(1)];
        for (sid, ram) in [one, two].into_iter().zip(rams) {
            let outcome = machine.dma(Transaction::write(sid, PAGE));
            assert_eq!(outcome, Outcome::Reaches(ram + 0x3000));
            // A plain SMMU uses what it has for as long as it may.
            remap(&machine, ram, 0x5000);
            let outcome = machine.dma(Transaction::write(sid, PAGE));
            assert_eq!(outcome, Outcome::Reaches(ram + 0x3000));
        }
        host.smmu.relay(VmIndex(0), vmid, command).unwrap();
        host.smmu.sync().unwrap();
        let outcome = [one, two].map(|sid| machine.dma(Transaction::write(sid, PAGE)));
        let expected = [rams[0] + 0x5000, rams[1] + 0x3000].map(Outcome::Reaches);
        assert_eq!(outcome, expected, "{command:?}");
        // Neither VM can name the other.
        let foreign = host.smmu.relay(VmIndex(1), Vmid(2), command);
        assert_eq!(foreign, Err(HostError::Foreign(command.opcode())));
        assert_eq!(machine.violation(), None);
    }
}

#[test]
fn a_guests_new_cd_counts_from_its_invalidation_on() {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let mut streams = Streams::new();
    let mut host = Host::start(&machine, &machine, &mut streams, 6).unwrap();
    let sid = StreamId(host.sids()[0]);
    host.expect(Op::Configure(0, 0, 3));
    let ram = host.backing(0);
    let dma = || machine.dma(Transaction::write(sid.0, RAM));
    assert_eq!(dma(), Outcome::Reaches(ram));
    // V=0.
    machine.write_guest(ram + (CONTEXT - RAM), 0);
    assert_eq!(dma(), Outcome::Reaches(ram));
    let foreign = Command::CfgiCdAll { sid: StreamId(host.sids()[1]) };
    let refused = host.smmu.relay(VmIndex(0), Vmid(1), foreign);
    assert_eq!(refused, Err(HostError::Foreign(foreign.opcode())));
    host.smmu.relay(VmIndex(0), Vmid(1), Command::CfgiCd { sid, ssid: 0, leaf: true }).unwrap();
    host.smmu.sync().unwrap();
    assert_eq!(dma(), Outcome::Aborted);
    assert_eq!(last_event(&machine).map(|words| words[0]), Some(0x1_0000_000a));
    assert_eq!(machine.violation(), None);
}
