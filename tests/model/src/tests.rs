//! The evidence: what the `smmu` crate promises, and that breaking it is noticed.

mod budgets;
mod defects;
mod exhaustive;
mod failures;
mod formats;
mod guest;
mod positions;
mod properties;
mod stage2;
mod teardown;
mod translation;

use proptest::prelude::*;
use smmu::ports::Hardware;
use smmu::streams::Streams;

use crate::chooser::Chooser;
use crate::host::{Carelessness, Host, Op};
use crate::machine::Machine;
use crate::profile::Profile;
use crate::violation::{Property, Violation};

/// A hypervisor that forgets nothing.
const CAREFUL: Carelessness =
    Carelessness { no_quiesce: false, no_quarantine: false, no_invalidation: false };

/// How many cases: as many times the usual number as `MODEL_CASES` says.
fn cases(usual: u32) -> u32 {
    let factor = std::env::var("MODEL_CASES").map_or(1, |factor| {
        factor.parse().expect("MODEL_CASES is a number: how many times the usual cases")
    });
    usual * factor
}

fn profile() -> impl Strategy<Value = Profile> {
    prop::sample::select(Profile::ALL.to_vec())
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0_usize..3, 0_usize..2).prop_map(|(stream, vm)| Op::Open(stream, vm)),
        6 => (0_usize..3, 0_usize..2, 0_usize..5)
            .prop_map(|(stream, vm, to)| Op::Configure(stream, vm, to)),
        3 => (0_usize..2, 0_usize..1024).prop_map(|(vm, which)| Op::Relay(vm, which)),
        3 => (0_usize..2).prop_map(Op::Close),
        2 => (0_usize..2).prop_map(Op::Restart),
        3 => (0_usize..3).prop_map(Op::Watch),
        1 => (0_usize..3).prop_map(Op::Silence),
        3 => (0_usize..2, prop_oneof![0_u64..4, 508_u64..516, 0_u64..760], 0_u64..8)
            .prop_map(|(vm, page, count)| Op::Unmap(vm, page, count)),
        2 => (0_usize..2).prop_map(Op::Remap),
        3 => Just(Op::Drain),
        4 => (1_usize..30).prop_map(Op::Idle),
        1 => Just(Op::Time),
        1 => (0_usize..3).prop_map(Op::Stick),
    ]
}

/// Lets VMs live through `ops` against an adversary seeded with `seed`, and returns what was broken.
fn life<'h, H: Hardware + 'h>(
    machine: &'h Machine,
    streams: &'h mut Streams,
    layer: impl FnOnce(&'h Machine) -> H,
    sid_bits: u8,
    careless: Carelessness,
    ops: &[Op],
) -> Option<Violation> {
    machine.set_adversary(true);
    let mut host = match Host::start(machine, layer(machine), streams, sid_bits) {
        Ok(host) => host,
        Err(refusal) => {
            machine.violate(Property::Progress, refusal.to_string());
            return machine.violation();
        }
    };
    host.set_careless(careless);
    for op in ops {
        host.expect(*op);
        machine.run(4);
        if machine.violation().is_some() {
            break;
        }
    }
    machine.violation()
}

/// A machine with a random adversary.
fn machine(profile: Profile, seed: u64, firmware: bool) -> Machine {
    let machine = Machine::new(profile, Chooser::random(seed));
    if firmware {
        machine.boot_firmware();
    }
    machine
}
