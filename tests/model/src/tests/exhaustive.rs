//! Small configurations, and every schedule with a bounded number of deviations from a plain one.

use smmu::streams::Streams;

use super::{CAREFUL, cases};
use crate::chooser::{Chooser, explore};
use crate::host::{Host, Op, RAM};
use crate::machine::{Action, Machine, Outcome, Transaction};
use crate::nesting::Nesting;
use crate::profile::Profile;

/// Stream 1, of a linear table with 64 STEs.
const SID: u32 = 1;

/// What the adversary may do between any two steps: read the STE at once, or word 0 and the rest at
/// different times, either first; let a store become visible; use what it has; complete an access.
fn menu() -> Vec<Action> {
    vec![
        Action::Fetch(SID, 0x01),
        Action::Fetch(SID, 0xfe),
        Action::Fetch(SID, 0xff),
        Action::Dma(Transaction::write(SID, RAM + 0x3008)),
        Action::Consume,
        Action::Leak,
        Action::Land,
    ]
}

/// Does `before` without an adversary and `op` against every adversary that deviates `deviations` times.
/// Returns how many schedules there were.
fn every_schedule(nested: bool, deviations: usize, before: &[Op], op: Op) -> u64 {
    explore(deviations, |chooser| {
        let machine = Machine::new(Profile::NESTED, chooser);
        machine.set_menu(menu());
        let mut streams = Streams::new();
        if nested {
            live(&machine, Nesting::new(&machine), &mut streams, before, op);
        } else {
            live(&machine, &machine, &mut streams, before, op);
        }
        machine.into_chooser()
    })
}

fn live<'m, H: smmu::ports::Hardware>(
    machine: &'m Machine,
    hardware: H,
    streams: &'m mut Streams,
    before: &[Op],
    op: Op,
) {
    let mut host = Host::start(machine, hardware, streams, 6).unwrap();
    host.set_careless(CAREFUL);
    for op in before {
        host.expect(*op);
    }
    // Something to be stale: the translations of two pages.
    for page in [RAM, RAM + 0x3008] {
        let _ = machine.dma(Transaction::write(SID, page));
    }
    machine.set_adversary(true);
    host.expect(op);
    machine.set_adversary(false);
    if matches!(op, Op::Close(_) | Op::Restart(_) | Op::Watch(_) | Op::Silence(_)) {
        let outcome = machine.dma(Transaction::write(SID, RAM + 0x3008));
        assert_eq!(outcome, Outcome::Aborted, "{op:?} leaves the stream open");
    }
    machine.land();
    assert_eq!(machine.violation(), None, "{op:?} after {before:?}");
}

/// Two deviations, three in a soak.
fn deviations() -> usize {
    if cases(1) > 1 { 3 } else { 2 }
}

const OPEN: Op = Op::Open(0, 0);

#[test]
fn every_schedule_of_an_opening_is_right() {
    assert!(every_schedule(false, deviations(), &[], OPEN) > 1000);
    assert!(every_schedule(true, deviations(), &[], OPEN) > 1000);
}

#[test]
fn every_schedule_of_a_close_is_right() {
    assert!(every_schedule(false, deviations(), &[OPEN], Op::Close(0)) > 1000);
    assert!(every_schedule(true, deviations(), &[OPEN], Op::Close(0)) > 1000);
}

#[test]
fn every_schedule_of_a_change_of_owner_is_right() {
    let life = [OPEN, Op::Close(0)];
    assert!(every_schedule(false, deviations(), &life, Op::Open(0, 1)) > 1000);
}

#[test]
fn every_schedule_of_a_watch_is_right() {
    let closed = [OPEN, Op::Close(0)];
    assert!(every_schedule(false, deviations(), &closed, Op::Watch(0)) > 1000);
    let watched = [OPEN, Op::Close(0), Op::Watch(0)];
    assert!(every_schedule(false, deviations(), &watched, Op::Silence(0)) > 500);
    // Closes and opens: as many steps as both.
    assert!(every_schedule(false, deviations() - 1, &watched, Op::Open(0, 1)) > 100);
}

#[test]
fn every_schedule_of_an_unmapping_is_right() {
    // The page that the adversary uses, in a block that has to be split, and in one that is split already.
    // There are many more steps than in the others.
    let split = [OPEN, Op::Unmap(0, 2, 0)];
    for before in [&[OPEN][..], &split] {
        for nested in [false, true] {
            assert!(every_schedule(nested, deviations() - 1, before, Op::Unmap(0, 3, 0)) > 100);
        }
    }
}

#[test]
fn a_plain_schedule_is_one() {
    assert_eq!(every_schedule(false, 0, &[OPEN], Op::Close(0)), 1);
    assert!(!Chooser::random(1).is_scripted());
}
