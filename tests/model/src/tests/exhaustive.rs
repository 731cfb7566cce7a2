//! Small configurations, and every schedule with a bounded number of deviations from a plain one.

use smmu::streams::Streams;

use super::{CAREFUL, cases};
use crate::chooser::{Chooser, explore};
use crate::host::{Host, Op, RAM};
use crate::machine::{Action, Machine, Outcome, Transaction};
use crate::profile::Profile;

/// A stream table, and the stream in it that things happen to.
#[derive(Clone, Copy)]
struct Table {
    sid_bits: u8,
    sid: u32,
}

/// The first stream, of a linear table with 64 STEs.
const LINEAR: Table = Table { sid_bits: 6, sid: SID };
const SID: u32 = 1;
/// The third one, of a table of two levels: nobody else is behind the same descriptor, which comes with it.
const TWO_LEVELS: Table = Table { sid_bits: 10, sid: 0x318 };

/// What the adversary may do between any two steps: read the STE at once, or word 0 and the rest at
/// different times, either first; let a store become visible; use what it has; complete an access.
fn menu(sid: u32) -> Vec<Action> {
    vec![
        Action::Fetch(sid, 0x01),
        Action::Fetch(sid, 0xfe),
        Action::Fetch(sid, 0xff),
        Action::Dma(Transaction::write(sid, RAM + 0x3008)),
        Action::Consume,
        Action::Leak,
        Action::Land,
    ]
}

/// Does `before` without an adversary and `op` against every adversary that deviates `deviations` times.
/// Returns how many schedules there were.
fn every_schedule(deviations: usize, before: &[Op], op: Op) -> u64 {
    every_schedule_in(LINEAR, deviations, before, op)
}

fn every_schedule_in(table: Table, deviations: usize, before: &[Op], op: Op) -> u64 {
    explore(deviations, |chooser| {
        let machine = Machine::new(Profile::NESTED, chooser);
        machine.set_menu(menu(table.sid));
        let mut streams = Streams::new();
        live(&machine, &mut streams, table, before, op);
        machine.into_chooser()
    })
}

fn live<'m>(machine: &'m Machine, streams: &'m mut Streams, table: Table, before: &[Op], op: Op) {
    let mut host = Host::start(machine, machine, streams, table.sid_bits).unwrap();
    host.set_careless(CAREFUL);
    for op in before {
        host.expect(*op);
    }
    // Something to be stale: the translations of two pages.
    for page in [RAM, RAM + 0x3008] {
        let _ = machine.dma(Transaction::write(table.sid, page));
    }
    machine.set_adversary(true);
    host.expect(op);
    machine.set_adversary(false);
    let closes = matches!(op, Op::Close(_) | Op::Restart(_) | Op::Watch(_) | Op::Silence(_));
    if closes || op == ABORT || op == REFUSE {
        let outcome = machine.dma(Transaction::write(table.sid, RAM + 0x3008));
        assert_eq!(outcome, Outcome::Aborted, "{op:?} leaves the stream open");
    } else if opens(op) {
        let outcome = machine.dma(Transaction::write(table.sid, RAM + 0x3008));
        assert!(matches!(outcome, Outcome::Reaches(_)), "{op:?} is not seen: {outcome:?}");
    }
    machine.land();
    assert_eq!(machine.violation(), None, "{op:?} after {before:?}");
}

/// Whether the stream reaches its owner's memory afterwards, whatever the SMMU had found in its place before.
fn opens(op: Op) -> bool {
    matches!(op, Op::Open(..) | Op::Configure(_, _, 2..))
}

/// Two deviations, three in a soak.
fn deviations() -> usize {
    if cases(1) > 1 { 3 } else { 2 }
}

const STUCK: Op = Op::Stick(0);
const OPEN: Op = Op::Open(0, 0);
const ABORT: Op = Op::Configure(0, 0, 0);
const REFUSE: Op = Op::Configure(0, 0, 1);
const STAGE2: Op = Op::Configure(0, 0, 2);
const NESTED: Op = Op::Configure(0, 0, 3);
const NESTED_ELSEWHERE: Op = Op::Configure(0, 0, 4);

#[test]
fn every_schedule_of_an_opening_is_right() {
    assert!(every_schedule(deviations(), &[], OPEN) > 1000);
    assert!(every_schedule(deviations(), &[], NESTED) > 1000);
}

/// Its level-1 descriptor may have been met before it led anywhere.
#[test]
fn every_schedule_in_a_table_of_two_levels_is_right() {
    const NESTED: Op = Op::Configure(2, 0, 3);
    for open in [Op::Open(2, 0), NESTED] {
        // A level-2 table is cleared first: many more steps than in the others.
        assert!(every_schedule_in(TWO_LEVELS, 1, &[], open) > 1000);
        assert!(every_schedule_in(TWO_LEVELS, deviations(), &[open], Op::Close(0)) > 1000);
    }
    let closed = [NESTED, Op::Close(0)];
    assert!(every_schedule_in(TWO_LEVELS, deviations(), &closed, Op::Open(2, 1)) > 1000);
}

#[test]
fn every_schedule_of_a_close_is_right() {
    assert!(every_schedule(deviations(), &[OPEN], Op::Close(0)) > 1000);
    assert!(every_schedule(deviations(), &[NESTED], Op::Close(0)) > 1000);
}

#[test]
fn every_schedule_of_a_change_of_owner_is_right() {
    assert!(every_schedule(deviations(), &[OPEN, Op::Close(0)], Op::Open(0, 1)) > 1000);
}

#[test]
fn every_schedule_of_a_watch_is_right() {
    let closed = [OPEN, Op::Close(0)];
    assert!(every_schedule(deviations(), &closed, Op::Watch(0)) > 1000);
    let watched = [OPEN, Op::Close(0), Op::Watch(0)];
    assert!(every_schedule(deviations(), &watched, Op::Silence(0)) > 500);
    // Closes and opens: as many steps as both.
    assert!(every_schedule(deviations() - 1, &watched, Op::Open(0, 1)) > 100);
}

#[test]
fn every_schedule_of_a_guests_change_is_right() {
    let configurations = [ABORT, REFUSE, STAGE2, NESTED, NESTED_ELSEWHERE];
    for from in configurations {
        for to in configurations {
            assert!(every_schedule(deviations() - 1, &[from], to) > 10, "{from:?} {to:?}");
        }
    }
    for (from, to) in [(STAGE2, NESTED), (NESTED, STAGE2), (NESTED, NESTED_ELSEWHERE)] {
        assert!(every_schedule(deviations(), &[from], to) > 500, "{from:?} {to:?}");
    }
}

#[test]
fn every_schedule_of_an_unmapping_is_right() {
    // The page that the adversary uses, in a block that has to be split, and in one that is split already.
    // There are many more steps than in the others.
    for open in [OPEN, NESTED] {
        for before in [&[open][..], &[open, Op::Unmap(0, 2, 0)]] {
            assert!(every_schedule(deviations() - 1, before, Op::Unmap(0, 3, 0)) > 80);
        }
    }
}

/// Restarts VM 0 against every adversary that deviates `deviations` times, while the device of its stream keeps a
/// buffer that it has mapped, and looks at what became of it. Returns how many schedules there were.
fn every_restart(
    deviations: usize,
    before: &[Op],
    check: fn(&Machine, &mut Host<&Machine>),
) -> u64 {
    explore(deviations, |chooser| {
        let machine = Machine::new(Profile::NESTED, chooser);
        machine.set_menu(menu(SID));
        let mut streams = Streams::new();
        let mut host = Host::start(&machine, &machine, &mut streams, 6).unwrap();
        for op in before {
            host.expect(*op);
            machine.map_buffer(Transaction::write(SID, RAM + 0x3008));
        }
        machine.set_adversary(true);
        host.expect(Op::Restart(0));
        machine.set_adversary(false);
        let outcome = machine.dma(Transaction::write(SID, RAM + 0x3008));
        assert_eq!(outcome, Outcome::Aborted, "{before:?}");
        check(&machine, &mut host);
        machine.land();
        assert_eq!(machine.violation(), None, "{before:?}");
        drop(host);
        machine.into_chooser()
    })
}

#[test]
fn every_schedule_of_a_restart_gives_memory_back_after_its_proof() {
    for open in [OPEN, NESTED] {
        let runs = every_restart(deviations() - 1, &[open], |_, host| {
            assert!(!host.is_quarantined(0));
            // It begins anew, with other memory.
            host.expect(OPEN);
            host.expect(Op::Close(0));
        });
        assert!(runs > 100, "{runs}");
    }
}

#[test]
fn every_schedule_of_a_failed_quiesce_quarantines() {
    // While it is open, and when it was closed before.
    for before in [&[OPEN, STUCK][..], &[NESTED, STUCK], &[OPEN, Op::Close(0), STUCK]] {
        let runs = every_restart(deviations(), before, |machine, host| {
            assert!(host.is_quarantined(0));
            let blocks = machine.live_blocks();
            // Neither it nor its stream comes back, under whatever owner; others go on.
            for op in [OPEN, NESTED, Op::Open(0, 1), Op::Restart(0), Op::Open(1, 0)] {
                host.expect(op);
                assert!(host.smmu.streams().all(|stream| !stream.state().is_open()), "{op:?}");
            }
            assert_eq!(machine.live_blocks(), blocks);
            host.expect(Op::Open(1, 1));
            host.expect(Op::Restart(1));
            assert!(host.is_quarantined(0) && !host.is_quarantined(1));
        });
        assert!(runs > 500, "{runs}");
    }
}

#[test]
fn a_plain_schedule_is_one() {
    assert_eq!(every_schedule(0, &[OPEN], Op::Close(0)), 1);
    assert!(!Chooser::random(1).is_scripted());
}
