//! Bounded work and bounded records: C6 and C7.

use proptest::prelude::*;
use smmu::addr::StreamId;
use smmu::streams::{State, Stream, Streams};

use super::{cases, machine, profile};
use crate::host::{Host, Op, RAM, config};
use crate::machine::{Machine, Outcome, Transaction};
use crate::profile::Profile;

fn stream<'h>(host: &'h Host<'_, &Machine>, sid: u32) -> &'h Stream {
    host.smmu.streams().find(|stream| stream.sid() == StreamId(sid)).unwrap()
}

/// Takes events until there are no more.
fn drain(machine: &Machine, host: &mut Host<&Machine>) {
    for _ in 0..100 {
        host.expect(Op::Drain);
        if machine.events_waiting() == 0 {
            return;
        }
    }
    panic!("the events do not end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(100)))]

    /// C6: the first late access is named, later ones are counted up to the budget, then the stream is
    /// silent; what was refused before the close is not late.
    #[test]
    fn late_dma_is_named_and_bounded(
        profile in profile(),
        seed: u64,
        early in 0_u64..4,
        late in prop::collection::vec((0_u64..8, any::<bool>()), 0..20),
    ) {
        let machine = machine(profile, seed, false);
        let mut streams = Streams::new();
        let mut host = Host::start(&machine, &machine, &mut streams, 10).unwrap();
        let sid = host.sids()[0];
        host.expect(Op::Open(0, 0));
        machine.set_adversary(true);
        // Only what the test itself makes a device do counts.
        machine.unplug_all();
        for page in 0..early {
            prop_assert_eq!(machine.dma(Transaction::write(sid, page << 12)), Outcome::Aborted);
        }
        host.expect(Op::Close(0));
        host.expect(Op::Watch(0));
        for (page, write) in &late {
            let address = RAM + page * 4096 + 8;
            let transaction = Transaction { write: *write, ..Transaction::write(sid, address) };
            prop_assert_eq!(machine.dma(transaction), Outcome::Aborted);
        }
        drain(&machine, &mut host);
        let budget = u64::from(config(10).budgets.watch_events);
        let stopped = stream(&host, sid).stopped_after_teardown();
        prop_assert_eq!(stopped.count == 0, late.is_empty(), "{:?}", stopped);
        prop_assert!(stopped.count <= budget && stopped.count <= late.len() as u64);
        let first = late.first().map(|(page, write)| (RAM + page * 4096 + 8, *write));
        prop_assert_eq!(stopped.first.map(|address| address.raw()).zip(stopped.write), first);
        prop_assert_eq!(stopped.silenced, stopped.count == budget);
        let state = if stopped.silenced { State::Abort } else { State::Watch };
        prop_assert_eq!(stream(&host, sid).state(), state);
        if stopped.silenced {
            // From now on it costs nothing.
            let before = machine.counts();
            for _ in 0..20 {
                machine.dma(Transaction::write(sid, RAM));
            }
            drain(&machine, &mut host);
            prop_assert_eq!(machine.counts().1, before.1);
        }
        prop_assert_eq!(machine.violation(), None);
    }

    /// C7: a flood mutes the stream it comes from, which goes on working; another stream's fault is heard.
    #[test]
    fn a_flood_silences_its_own_stream_only(profile in profile(), seed: u64, rounds in 1_usize..20) {
        let machine = machine(profile, seed, false);
        let mut streams = Streams::new();
        let mut host = Host::start(&machine, &machine, &mut streams, 10).unwrap();
        let [loud, _, quiet] = host.sids();
        host.expect(Op::Open(0, 0));
        host.expect(Op::Open(2, 1));
        machine.set_adversary(true);
        machine.unplug_all();
        for number in 0..12 {
            machine.dma(Transaction::write(loud, number << 12));
        }
        drain(&machine, &mut host);
        prop_assert!(stream(&host, loud).is_muted());
        let before = machine.counts();
        for _ in 0..rounds {
            for _ in 0..40 {
                machine.dma(Transaction::write(loud, 0));
            }
            prop_assert_eq!(machine.dma(Transaction::write(loud, RAM)), Outcome::Reaches(host.backing(0)));
        }
        machine.dma(Transaction::write(quiet, 0x1238));
        drain(&machine, &mut host);
        let after = machine.counts();
        prop_assert_eq!((after.1 - before.1, after.2), (1, before.2));
        let heard: u64 = stream(&host, quiet).faults().map(|(_, count)| count).sum();
        prop_assert_eq!(heard, 1);
        // After a while it is heard again.
        machine.pass_time(500_000);
        drain(&machine, &mut host);
        prop_assert!(!stream(&host, loud).is_muted());
        machine.dma(Transaction::write(loud, 0));
        drain(&machine, &mut host);
        prop_assert_eq!(machine.counts().1, after.1 + 1);
        prop_assert_eq!(machine.violation(), None);
    }
}

#[test]
fn a_close_takes_bounded_steps() {
    let mut costs = Vec::new();
    for open in 0..=3 {
        let machine = machine(Profile::NESTED, 1, false);
        let mut streams = Streams::new();
        let mut host = Host::start(&machine, &machine, &mut streams, 10).unwrap();
        for stream in 0..open {
            host.expect(Op::Open(stream, 0));
        }
        let before = machine.operations();
        host.close(0).map(|_| ()).unwrap();
        costs.push(machine.operations() - before);
    }
    // Stores, barriers, register accesses and looks at the clock; the same for each stream.
    assert!(costs[0] <= 16, "{costs:?}");
    assert!(costs[1] - costs[0] <= 30 && costs[2] - costs[1] <= 15, "{costs:?}");
    assert_eq!(costs[3] - costs[2], costs[2] - costs[1], "{costs:?}");
}

#[test]
fn a_drain_takes_no_more_than_its_budget() {
    let machine = machine(Profile::STAGE2, 1, false);
    let mut streams = Streams::new();
    let mut host = Host::start(&machine, &machine, &mut streams, 10).unwrap();
    for number in 0..40 {
        // StreamIDs that nobody has.
        machine.dma(Transaction::write(0x3f0, number << 12));
    }
    machine.land();
    for _ in 0..4 {
        let before = machine.operations();
        let mut seen = 0;
        let drained = host.smmu.drain_events(4, &mut |_, _| seen += 1).unwrap();
        assert_eq!((drained.records, seen), (4, 4));
        assert!(machine.operations() - before <= 4 * 6 + 8);
    }
    host.expect(Op::Drain);
    assert!(host.smmu.counters().dropped > 0);
    assert_eq!(machine.violation(), None);
}
