//! What a running VM's own stream table and commands do to its streams.

use super::*;
use crate::cmd::Pages;
use crate::guest::{Locked, Physical};
use crate::ports::Memory;
use crate::ste::Ste;

const STAGE1: Stage1Config =
    Stage1Config { context: Ipa::new(RAM + 0x1_0040), inner: 1, outer: 1, shareability: 3 };
const ELSEWHERE: Stage1Config =
    Stage1Config { context: Ipa::new(RAM + 0x2_0000), inner: 2, outer: 1, shareability: 2 };

impl Machine<'_> {
    /// A VM with one stream, closed.
    fn closed(&mut self) -> Stage2Binding {
        let binding = self.vm(1);
        self.attach(DEVICE, VM);
        self.fake.take_opcodes();
        binding
    }

    fn configure(&mut self, binding: &Stage2Binding, to: Configuration) {
        self.smmu.configure(DEVICE, binding, &to).unwrap();
        self.smmu.sync().unwrap();
    }

    /// The STE in memory.
    fn ste(&self) -> Ste {
        let entry = self.stream(DEVICE).entry;
        Ste::decode(&core::array::from_fn(|word| self.fake.load(entry.add(8 * word as u64))))
            .unwrap()
    }

    fn stage2(binding: &Stage2Binding, record: bool) -> Stage2Config {
        let Stage2Binding { root, format, vmid } = *binding;
        Stage2Config { vmid, root, format, record, stall_disable: false }
    }
}

#[test]
fn each_configuration_is_what_the_smmu_finds() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.closed();
    let below = Machine::stage2(&binding, true);
    let watch = Machine::stage2(&machine.smmu.watch_binding(), true);
    let all = [
        (Configuration::Abort, Ste::Abort, State::Abort),
        (Configuration::Refuse, Ste::Stage2(watch), State::Watch),
        (Configuration::Stage2, Ste::Stage2(below), State::Stage2),
        (Configuration::Nested(STAGE1), Ste::Nested(STAGE1, below), State::Nested),
        (Configuration::Nested(ELSEWHERE), Ste::Nested(ELSEWHERE, below), State::Nested),
    ];
    for (from, ..) in all {
        for (to, ste, state) in all {
            machine.configure(&binding, from);
            machine.fake.take_opcodes();
            machine.configure(&binding, to);
            assert_eq!((machine.ste(), machine.stream(DEVICE).state()), (ste, state), "{from:?}");
            assert_eq!(machine.stream(DEVICE).refuses(), to == Configuration::Refuse);
            // Forgotten in any case, and complete.
            let opcodes = machine.fake.take_opcodes();
            assert!(opcodes.contains(&0x03) && opcodes.last() == Some(&0x46), "{opcodes:x?}");
            if from == to {
                assert_eq!(opcodes, [0x03, 0x46]);
            }
            let counted = machine.stream(DEVICE).cfgi() as usize;
            assert!(counted >= opcodes.iter().filter(|opcode| **opcode == 0x03).count());
        }
    }
    let nested = machine.stream(DEVICE);
    assert_eq!((nested.binding, nested.stage1), (Some(binding), Some(ELSEWHERE)));
}

#[test]
fn history_counts_the_commands_before_a_guests_change() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.closed();
    let before = machine.stream(DEVICE).cfgi();
    machine.configure(&binding, Configuration::Stage2);
    machine.configure(&binding, Configuration::Nested(STAGE1));
    machine.configure(&binding, Configuration::Abort);
    // Visible after the first of two; hitless again after the first of two; certain after the last.
    let history = machine.history(DEVICE);
    let expected =
        [(State::Stage2, before + 1), (State::Nested, before + 3), (State::Abort, before + 5)];
    assert_eq!(history, expected);
}

#[test]
fn a_watch_after_a_close_is_not_the_guests_to_end() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.closed();
    machine.configure(&binding, Configuration::Stage2);
    let _proof = machine.smmu.close(VM, Vmid(1)).unwrap();
    machine.smmu.watch(DEVICE).unwrap();
    fake.take_opcodes();
    for to in [Configuration::Abort, Configuration::Refuse] {
        machine.smmu.configure(DEVICE, &binding, &to).unwrap();
        assert_eq!(machine.stream(DEVICE).state(), State::Watch);
        assert!(!machine.stream(DEVICE).refuses());
    }
    assert_eq!(fake.take_opcodes(), [0_u8; 0]);
    machine.configure(&binding, Configuration::Nested(STAGE1));
    assert_eq!(machine.stream(DEVICE).state(), State::Nested);
}

#[test]
fn a_refused_stream_can_be_watched_for_its_end() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.closed();
    machine.configure(&binding, Configuration::Refuse);
    assert_eq!(machine.write(DEVICE, RAM), Outcome::Aborts);
    machine.drain();
    // The owner's own, so far.
    assert_eq!(machine.stream(DEVICE).stopped_after_teardown().count, 0);
    machine.smmu.watch(DEVICE).unwrap();
    assert!(!machine.stream(DEVICE).refuses());
    assert_eq!(machine.write(DEVICE, RAM + 8), Outcome::Aborts);
    machine.drain();
    let stopped = machine.stream(DEVICE).stopped_after_teardown();
    assert_eq!((stopped.count, stopped.first), (1, Some(Iova::new(RAM + 8))));
}

#[test]
fn only_an_owner_with_its_own_tag_configures() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.closed();
    let mut configure =
        |sid, binding: &Stage2Binding| machine.smmu.configure(sid, binding, &Configuration::Stage2);
    assert_eq!(configure(OTHER, &binding), Err(HostError::UnknownStream(OTHER)));
    for vmid in [Vmid(0), Vmid::WATCH] {
        let bad = Stage2Binding { vmid, ..binding };
        assert_eq!(configure(DEVICE, &bad), Err(HostError::BadVmid(vmid)));
    }
    configure(DEVICE, &binding).unwrap();
    // Another root under the same tag, and another tag of the same owner.
    let other = machine.vm(1);
    let moved = machine.smmu.configure(DEVICE, &other, &Configuration::Stage2);
    assert_eq!(moved, Err(HostError::BadVmid(Vmid(1))));
    let other = machine.vm(2);
    let moved = machine.smmu.configure(DEVICE, &other, &Configuration::Stage2);
    assert_eq!(moved, Err(HostError::BadVmid(Vmid(2))));
    machine.smmu.attach(OTHER, None, &mut machine.frames).unwrap();
    let unowned = machine.smmu.configure(OTHER, &binding, &Configuration::Stage2);
    assert_eq!(unowned, Err(HostError::Unowned(OTHER)));
}

#[test]
fn a_guest_relays_what_is_its_own() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.closed();
    machine.attach(OTHER, VmIndex(1));
    machine.fake.take_opcodes();
    let mut locked = Locked { smmu: &mut machine.smmu, owner: VM, binding };
    locked.configure(0, DEVICE, &Configuration::Nested(STAGE1)).unwrap();
    fake.take_opcodes();
    let (address, pages, leaf, asid) = (Iova::new(0x1000), Pages::One, true, 3);
    let commands = |vmid, sid| {
        [
            Command::CfgiCd { sid, ssid: 0, leaf },
            Command::CfgiCdAll { sid },
            Command::TlbiNhAll { vmid },
            Command::TlbiNhAsid { vmid, asid },
            Command::TlbiNhVa { vmid, asid, address, pages, leaf },
            Command::TlbiNhVaa { vmid, address, pages, leaf },
        ]
    };
    for command in commands(Vmid(1), DEVICE) {
        assert_eq!(locked.relay(0, command), Ok(()));
    }
    assert_eq!(locked.relay(0, Command::Sync), Ok(()));
    locked.sync(0).unwrap();
    assert_eq!(fake.take_opcodes(), [0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x46, 0x46]);
    // Nothing of another's, nothing of the hypervisor's.
    let others = commands(Vmid(2), OTHER).into_iter().chain(commands(Vmid::WATCH, StreamId(9)));
    let never = [
        Command::CfgiSte { sid: DEVICE, leaf },
        Command::CfgiSteRange { sid: DEVICE, range: 0 },
        Command::CfgiAll,
        Command::TlbiS12Vmall { vmid: Vmid(1) },
        Command::TlbiS2Ipa { vmid: Vmid(1), address: Ipa::new(RAM), pages, leaf },
        Command::TlbiNsnhAll,
    ];
    for command in others.chain(never) {
        assert_eq!(locked.relay(0, command), Err(HostError::Foreign(command.opcode())));
    }
    // Not even if the tag of the streams that are watched were a VM's.
    let tagged = Command::TlbiNhAll { vmid: Vmid::WATCH };
    let refused = machine.smmu.relay(VM, Vmid::WATCH, tagged);
    assert_eq!(refused, Err(HostError::Foreign(tagged.opcode())));
    machine.smmu.sync().unwrap();
    assert_eq!(fake.take_opcodes(), [0x46]);
}

#[test]
fn a_nested_stream_above_its_budget_aborts_until_its_time_is_over() {
    let fake = Fake::new(QEMU_NESTED);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.closed();
    machine.configure(&binding, Configuration::Nested(STAGE1));
    let nested = Ste::Nested(STAGE1, Machine::stage2(&binding, true));
    assert_eq!(machine.ste(), nested);
    for _ in 0..=config().budgets.live_events {
        fake.record([0x10 | u64::from(DEVICE.0) << 32, 0x200 << 32, 0, 0]);
    }
    machine.drain();
    assert!(machine.stream(DEVICE).is_muted());
    assert_eq!((machine.ste(), machine.stream(DEVICE).state()), (Ste::Abort, State::Nested));
    assert_eq!(machine.stream(DEVICE).mutes(), 1);
    // Neither another stage 1 nor none buys a budget.
    machine.configure(&binding, Configuration::Nested(ELSEWHERE));
    assert_eq!(machine.ste(), Ste::Abort);
    machine.configure(&binding, Configuration::Stage2);
    assert_eq!(machine.ste(), Ste::Stage2(Machine::stage2(&binding, false)));
    machine.configure(&binding, Configuration::Nested(STAGE1));
    assert!(machine.stream(DEVICE).is_muted());
    fake.now_us.set(fake.now_us.get() + config().budgets.mute_us);
    machine.drain();
    assert_eq!((machine.ste(), machine.stream(DEVICE).is_muted()), (nested, false));
    assert_eq!(machine.stream(DEVICE).mutes(), 1);
}

#[test]
fn a_stall_is_forbidden_where_there_could_be_one() {
    let mut ids = QEMU_NESTED;
    ids[0] &= !(3 << 24);
    let fake = Fake::new(ids);
    let mut streams = Streams::new();
    let mut machine = Machine::new(&fake, &mut streams);
    let binding = machine.closed();
    machine.configure(&binding, Configuration::Stage2);
    let expected = Stage2Config { stall_disable: true, ..Machine::stage2(&binding, true) };
    assert_eq!(machine.ste(), Ste::Stage2(expected));
}
