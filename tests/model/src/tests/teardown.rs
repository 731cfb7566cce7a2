//! The end of a guest from every state that it can be in: whatever the guest, its devices and the steps of the
//! teardown do in which order, nothing of it is reachable afterwards (C3), nothing was acknowledged before (C4), and
//! nothing opens again without evidence (C5).

use std::collections::BTreeSet;

use proptest::prelude::*;
use smmu::addr::{StreamId, VmIndex};
use smmu::cmd::Command as Relayed;
use smmu::streams::Streams;

use super::guest::{
    BYPASS, CMDQ_CONS, CMDQ_PROD, CR0, CR0ACK, GBPA, Guest, MAPPED, MAPS, ON, STAGE1, SYNC,
};
use super::{CAREFUL, cases};
use crate::chooser::{Chooser, explore};
use crate::decode::{self, Command};
use crate::host::{Host, Op, RAM};
use crate::machine::{Action, Machine, Outcome, Transaction};
use crate::profile::Profile;

const SID: u32 = 1;

/// What can happen to a VM with one stream, beside a VM that has another.
const STEPS: [Op; 13] = [
    Op::Open(0, 0),
    Op::Configure(0, 0, 0),
    Op::Configure(0, 0, 1),
    Op::Configure(0, 0, 2),
    Op::Configure(0, 0, 3),
    Op::Configure(0, 0, 4),
    Op::Close(0),
    Op::Watch(0),
    Op::Silence(0),
    Op::Restart(0),
    Op::Unmap(0, 3, 0),
    Op::Flood(0),
    Op::Open(0, 1),
];

/// What a close may take: two SYNCs, each waited for by looks at the clock and at CONS, with a consumption that is put off.
const MOST_STEPS: u64 = 80;

/// What of the machine makes a difference to a teardown.
fn reached(host: &Host<&Machine>, machine: &Machine) -> String {
    let stream = host.smmu.streams().find(|stream| stream.sid() == StreamId(SID));
    let known =
        stream.map(|stream| (stream.state(), stream.refuses(), stream.owner(), stream.is_muted()));
    let outcome = machine.dma(Transaction::write(SID, RAM + 0x3008));
    format!("{known:?} {:?}", outcome == Outcome::Aborted)
}

/// Every sequence of steps that leads somewhere new, up to `depth` of them.
fn every_state(depth: usize) -> Vec<Vec<Op>> {
    let mut seen = BTreeSet::new();
    let mut found = vec![Vec::new()];
    let mut frontier = vec![Vec::new()];
    for _ in 0..depth {
        let mut next = Vec::new();
        for path in frontier {
            for step in STEPS {
                let path: Vec<Op> = [&path[..], &[step]].concat();
                let machine = Machine::new(Profile::NESTED, Chooser::plain());
                let mut streams = Streams::new();
                let mut host = Host::start(&machine, &machine, &mut streams, 6).unwrap();
                for op in &path {
                    host.expect(*op);
                }
                if seen.insert(reached(&host, &machine)) {
                    found.push(path.clone());
                    next.push(path);
                }
            }
        }
        frontier = next;
    }
    found
}

/// What devices and the SMMU do meanwhile: fetch, translate, use what was mapped before, and take their time.
fn menu() -> Vec<Action> {
    vec![
        Action::Fetch(SID, 0x01),
        Action::Fetch(SID, 0xff),
        Action::Dma(Transaction::write(SID, RAM + 0x3008)),
        Action::Consume,
        Action::Leak,
        Action::Land,
    ]
}

#[test]
fn a_teardown_from_every_state_ends_closed() {
    let states = every_state(4);
    assert!(states.len() >= 10, "{states:?}");
    assert!(states.iter().filter(|path| path.contains(&Op::Flood(0))).count() >= 3, "{states:?}");
    let deviations = if cases(1) > 1 { 2 } else { 1 };
    let mut longest = 0;
    for before in &states {
        let runs = explore(deviations, |chooser| {
            let machine = Machine::new(Profile::NESTED, chooser);
            machine.set_menu(menu());
            let mut streams = Streams::new();
            let mut host = Host::start(&machine, &machine, &mut streams, 6).unwrap();
            host.set_careless(CAREFUL);
            for op in before {
                host.expect(*op);
            }
            let _ = machine.dma(Transaction::write(SID, RAM + 0x3008));
            machine.set_adversary(true);
            let start = machine.operations();
            let owner = host.smmu.streams().next().and_then(|stream| stream.owner());
            let vm = owner.map_or(0, |VmIndex(vm)| vm.into());
            let proof = host.close(vm).unwrap();
            longest = longest.max(machine.operations() - start);
            assert_eq!(proof.owner(), VmIndex(vm as u8));
            machine.set_adversary(false);
            // Closed at once, whatever is cached.
            let late = machine.dma(Transaction::write(SID, RAM + 0x3008));
            assert_eq!(late, Outcome::Aborted, "{before:?}");
            machine.set_adversary(true);
            host.expect(Op::Watch(0));
            host.expect(Op::Restart(vm));
            machine.set_adversary(false);
            machine.land();
            let late = machine.dma(Transaction::write(SID, RAM + 0x3008));
            assert_eq!(late, Outcome::Aborted, "{before:?}");
            assert_eq!(machine.violation(), None, "{before:?}");
            assert!(host.smmu.streams().all(|stream| !stream.state().is_open()));
            machine.into_chooser()
        });
        assert!(runs > 10, "{before:?}");
    }
    assert!(longest <= MOST_STEPS, "{longest}");
}

/// One thing that a virtual CPU of the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Makes its STE valid and says so: `CMD_CFGI_STE`.
    Configure,
    /// `CMD_CFGI_ALL`.
    ConfigureAll,
    /// Asks for bypass while the SMMU is disabled: `GBPA.ABORT=0`.
    Bypass,
    /// Sets `CR0.SMMUEN`.
    Enable,
    /// Lets EL2 go on with the command queue.
    Resume,
    /// Puts a `CMD_SYNC` where the queue has stopped and acknowledges the error, so that the commands behind it follow.
    Repair,
}

const ACTS: [Act; 6] =
    [Act::Configure, Act::ConfigureAll, Act::Bypass, Act::Enable, Act::Resume, Act::Repair];

/// One step of a teardown, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The guest clears `SMMUEN`, and waits.
    Disable,
    /// EL2 closes the streams.
    Close,
    /// EL2 watches them.
    Watch,
    /// EL2 acknowledges.
    Acknowledge,
}

const TEARDOWN: [Step; 4] = [Step::Disable, Step::Close, Step::Watch, Step::Acknowledge];

/// How the guest's queue and stream table are when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// The queue is empty, and both are where they should be.
    Idle,
    /// The queue has stopped at a command that is illegal, others behind it.
    Stopped,
    /// Likewise, with no room for another one: every further command overwrites one.
    Full,
    /// Likewise, with its start behind its end.
    Wrapped,
    /// The queue is outside its RAM.
    Lost,
    /// The stream table is.
    Tableless,
    /// Another virtual CPU rewrites the stream table whenever EL2 reads it.
    Rewritten,
}

impl Before {
    const ALL: [Self; 7] = [
        Self::Idle,
        Self::Stopped,
        Self::Full,
        Self::Wrapped,
        Self::Lost,
        Self::Tableless,
        Self::Rewritten,
    ];

    /// Brings the guest there, and enables its SMMU.
    fn prepare(self, guest: &mut Guest<'_>) {
        const ILLEGAL: [u64; 2] = [0xff, 0];
        const ALL: [u64; 2] = [0x04, 31];
        match self {
            Self::Lost => guest.lose_queue(),
            Self::Tableless => guest.lose_table(),
            _ => {}
        }
        guest.set(CR0, ON);
        match self {
            Self::Idle | Self::Tableless => {}
            Self::Stopped | Self::Lost => guest.try_issue(&[ILLEGAL, ALL, SYNC]),
            Self::Full => {
                let mut commands = [ALL; 256];
                (commands[0], commands[255]) = (ILLEGAL, SYNC);
                guest.try_issue(&commands);
            }
            Self::Wrapped => {
                guest.issue(&[SYNC; 254]);
                guest.try_issue(&[ILLEGAL, ALL, ALL, SYNC]);
            }
            Self::Rewritten => guest.rewrite_table(),
        }
    }
}

/// What is known of the guest while steps of both kinds are interleaved.
struct Life<'h> {
    guest: Guest<'h>,
    closed: bool,
    acknowledged: bool,
    evidence: bool,
}

impl Life<'_> {
    fn act(&mut self, act: Act) {
        let enabled = self.guest.read(CR0) & 1 != 0;
        match act {
            Act::Configure => {
                self.guest.ste(MAPS[0].0, STAGE1);
                self.guest.try_issue(&[[0x03 | u64::from(MAPS[0].0) << 32, 1], SYNC]);
            }
            Act::ConfigureAll => self.guest.try_issue(&[[0x04, 31], SYNC]),
            Act::Bypass => {
                self.guest.try_write(GBPA, 1 << 31);
                // C5 (c): after the close, while it is disabled.
                self.evidence |= self.acknowledged && !enabled;
            }
            Act::Enable => {
                self.guest.try_write(CR0, ON);
                // C5 (a): an edge later than the close.
                self.evidence |= self.acknowledged && !enabled;
            }
            Act::Resume => self.guest.resume(),
            Act::Repair => self.guest.repair(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Disable => self.guest.try_write(CR0, ON & !1),
            Step::Close => {
                // Whatever the guest's queue and tables are like.
                let start = self.guest.machine.operations();
                let _proof = self.guest.host.close(0).unwrap();
                let steps = self.guest.machine.operations() - start;
                assert!(steps <= MOST_STEPS, "{steps}");
                self.closed = true;
            }
            Step::Watch => {
                for (_, phys) in MAPS {
                    self.guest.host.smmu.watch(StreamId(phys)).unwrap();
                }
            }
            Step::Acknowledge => {
                self.guest.acknowledge();
                self.acknowledged = true;
            }
        }
    }

    fn check(&self, what: &dyn std::fmt::Debug) {
        if !self.acknowledged {
            // C4: nothing but EL2 says so, and not before the streams are closed.
            assert_eq!(self.guest.read(CR0ACK) & 1, 1, "{what:?}");
        }
        if self.closed && !self.evidence {
            for (address, (_, phys)) in [MAPPED, RAM].into_iter().zip(MAPS) {
                assert_eq!(self.guest.dma(phys, address), Outcome::Aborted, "{what:?}");
            }
            assert!(self.guest.host.smmu.streams().all(|stream| !stream.state().is_open()));
        }
        assert_eq!(self.guest.machine.violation(), None, "{what:?}");
    }
}

/// Runs the teardown with the acts at the given places: before step `place`, or after all of them.
fn interleave(before: Before, acts: &[(usize, Act)]) -> bool {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let mut streams = Streams::new();
    let mut guest = Guest::new(&machine, &mut streams);
    guest.ste(MAPS[0].0, STAGE1);
    guest.ste(MAPS[1].0, BYPASS);
    before.prepare(&mut guest);
    let reaches = matches!(guest.dma(1, MAPPED), Outcome::Reaches(_));
    assert_eq!(reaches, before != Before::Tableless);
    let pending = guest.read(CMDQ_PROD) ^ guest.read(CMDQ_CONS) & 0x1ff;
    match before {
        Before::Full => assert_eq!(pending, 0x100),
        Before::Wrapped => assert_eq!(pending & 0x100, 0x100),
        _ => {}
    }
    machine.land();
    let mut life = Life { guest, closed: false, acknowledged: false, evidence: false };
    for place in 0..=TEARDOWN.len() {
        for (_, act) in acts.iter().filter(|(at, _)| *at == place) {
            life.act(*act);
            life.check(&(before, acts, act));
        }
        if let Some(step) = TEARDOWN.get(place) {
            life.step(*step);
            life.check(&(before, acts, step));
        }
    }
    life.evidence
}

/// Two acts of other virtual CPUs anywhere in a teardown, from every state of the queue and the table: a late `CMD_CFGI_STE`, a
/// `GBPA` write or an enable from before the acknowledgement opens nothing.
#[test]
fn no_late_act_of_a_guest_opens_what_is_closed() {
    let places = TEARDOWN.len() + 1;
    let (mut runs, mut with_evidence) = (0, 0);
    for before in Before::ALL {
        for first in ACTS {
            for at in 0..places {
                for second in ACTS {
                    for then in at..places {
                        runs += 1;
                        with_evidence +=
                            u32::from(interleave(before, &[(at, first), (then, second)]));
                    }
                }
            }
        }
    }
    assert_eq!(runs, 7 * 36 * 15);
    assert!(with_evidence > 0 && with_evidence < runs);
}

#[test]
fn evidence_does_open_again() {
    let machine = Machine::new(Profile::NESTED, Chooser::plain());
    let mut streams = Streams::new();
    let mut guest = Guest::new(&machine, &mut streams);
    guest.ste(MAPS[0].0, STAGE1);
    guest.set(CR0, ON);
    let mut life = Life { guest, closed: false, acknowledged: false, evidence: false };
    TEARDOWN.into_iter().for_each(|step| life.step(step));
    life.act(Act::Enable);
    assert!(life.evidence && matches!(life.guest.dma(1, MAPPED), Outcome::Reaches(_)));
    assert_eq!(machine.violation(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(200)))]

    /// Whatever TLB invalidation a guest issues: the SMMU gets exactly that, with the guest's tag and no other.
    #[test]
    fn an_invalidation_is_relayed_in_full_and_to_nobody_else(
        opcode in prop::sample::select(vec![0x10_u64, 0x11, 0x12, 0x13, 0x30]),
        vmid: u16,
        asid: u16,
        number in 0_u64..32,
        scale in 0_u64..32,
        granule in 0_u64..4,
        level in 0_u64..4,
        page in 0_u64..1 << 52,
        leaf: bool,
    ) {
        let by_address = matches!(opcode, 0x12 | 0x13);
        let range = if by_address && granule != 0 { number << 12 | scale << 20 } else { 0 };
        let words = [
            opcode | range | u64::from(vmid) << 32 | u64::from(asid) << 48,
            if by_address { page << 12 | granule << 10 | level << 8 | u64::from(leaf) } else { 0 },
        ];
        // Where the specification leaves a choice, both are right: see `decode::command`.
        prop_assume!(!(by_address && (granule == 2 && level == 1 || granule == 0 && level != 0)));
        let Ok(asked) = decode::command(&words, &Profile::NESTED) else { return Ok(()) };
        let machine = Machine::new(Profile::NESTED, Chooser::plain());
        let mut streams = Streams::new();
        let mut guest = Guest::new(&machine, &mut streams);
        guest.ste(MAPS[0].0, STAGE1);
        guest.set(CR0, ON);
        guest.relayed.borrow_mut().clear();
        guest.issue(&[words, SYNC]);
        let relayed: Vec<Relayed> = guest.relayed.borrow().clone();
        let [ours] = relayed[..] else {
            return Err(TestCaseError::fail(format!("{relayed:?}")));
        };
        let expected = match asked {
            Command::Stage1(_) | Command::Everything => Command::Stage1(1),
            Command::Asid(_, asid) => Command::Asid(1, asid),
            Command::Address(_, asid, range, leaf) => Command::Address(1, asid, range, leaf),
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert_eq!(decode::command(&ours.encode(), &Profile::NESTED), Ok(expected));
        prop_assert_eq!(machine.violation(), None);
    }
}
