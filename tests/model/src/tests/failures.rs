//! Hardware that stops answering, at every single moment: an error, nothing reused, and a close that still
//! works once it answers again.

use smmu::caps::Refusal;
use smmu::device::stop;
use smmu::error::HostError;
use smmu::streams::Streams;

use super::machine;
use crate::host::{Host, Op, VMS};
use crate::machine::{Machine, Outcome, Transaction};
use crate::profile::Profile;

/// A life through all states.
const LIFE: [Op; 19] = [
    Op::Configure(0, 0, 2),
    Op::Configure(0, 0, 3),
    Op::Relay(0, 72),
    Op::Configure(0, 0, 1),
    Op::Configure(0, 0, 0),
    Op::Open(0, 0),
    Op::Open(1, 0),
    Op::Open(2, 1),
    Op::Unmap(0, 0, 4),
    Op::Idle(8),
    Op::Drain,
    Op::Close(0),
    Op::Watch(0),
    Op::Watch(1),
    Op::Silence(1),
    Op::Open(0, 1),
    Op::Restart(0),
    Op::Restart(1),
    Op::Open(0, 0),
];

/// Ends everything after the hardware has healed: every stream closed, all memory back.
fn end(machine: &Machine, host: &mut Host<&Machine>) {
    machine.heal();
    for vm in 0..VMS {
        host.expect(Op::Restart(vm));
    }
    for sid in host.sids() {
        host.expect(Op::Silence(sid as usize));
        machine.set_adversary(false);
        assert_ne!(machine.dma(Transaction::write(sid, 0x4000_0000)), Outcome::Bypassed);
        machine.set_adversary(true);
    }
    assert!(host.smmu.streams().all(|stream| !stream.state().is_open()));
}

/// Lives until the hardware fails after `left` things; returns whether it did, or `None` if it did before
/// the take-over was complete.
fn fail(profile: Profile, left: u64, seed: u64) -> Option<bool> {
    let machine = machine(profile, seed, true);
    machine.set_adversary(true);
    machine.fail_after(left);
    let mut streams = Streams::new();
    let mut host = match Host::start(&machine, &machine, &mut streams, 10) {
        Ok(host) => host,
        Err(refusal) => {
            assert!(matches!(refusal, Refusal::Host(HostError::Timeout(_))), "{refusal}");
            // Once it answers, it can be taken over after all.
            machine.heal();
            let mut streams = Streams::new();
            let mut host = Host::start(&machine, &machine, &mut streams, 10).unwrap();
            host.expect(Op::Open(0, 0));
            end(&machine, &mut host);
            assert_eq!(machine.violation(), None, "{left} {seed}");
            return None;
        }
    };
    let failed = LIFE.iter().find_map(|op| host.apply(*op).err().map(|error| (op, error)));
    if let Some((op, error)) = failed {
        assert!(matches!(error, HostError::Timeout(_)), "{op:?}: {error}");
        // Devices go on, and so do attempts to close.
        machine.run(50);
        assert!(host.close(0).is_err() && host.close(1).is_err());
        machine.run(50);
    }
    end(&machine, &mut host);
    assert_eq!(machine.violation(), None, "{left} {seed}");
    Some(failed.is_some())
}

#[test]
fn whenever_hardware_fails_nothing_is_reused_and_a_later_close_works() {
    for profile in [Profile::NESTED, Profile::STAGE2] {
        let (mut before, mut during) = (0, 0);
        for left in 0.. {
            match fail(profile, left, left) {
                None => before += 1,
                Some(true) => during += 1,
                Some(false) => break,
            }
        }
        // It failed at the acknowledgements and commands of the take-over, and at each command of the life.
        assert!(before >= 8 && during >= 30, "{before} {during}");
    }
}

#[test]
fn a_stop_closes_everything_whether_it_is_answered_or_not() {
    for seed in 0..50 {
        let machine = machine(Profile::NESTED, seed, false);
        let mut streams = Streams::new();
        let mut host = Host::start(&machine, &machine, &mut streams, 10).unwrap();
        machine.set_adversary(true);
        host.expect(Op::Open(0, 0));
        machine.run(20);
        if seed % 5 == 0 {
            // Nothing is promised, but CR0 was written.
            machine.fail_after(0);
            assert!(stop(&machine).is_err());
            machine.heal();
            machine.run(200);
        } else {
            assert_eq!(stop(&machine), Ok(()));
        }
        machine.set_adversary(false);
        for sid in host.sids() {
            assert_eq!(
                machine.dma(Transaction::write(sid, 0x4000_0000)),
                Outcome::Aborted,
                "{seed}"
            );
        }
        assert_eq!(machine.violation(), None);
    }
}
