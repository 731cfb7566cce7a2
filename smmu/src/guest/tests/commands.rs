use super::*;

fn relayed(command: Command) -> Vec<Step> {
    vec![Step::Relay(0, command), Step::Relay(2, command)]
}

#[test]
fn identifiers_are_replaced() {
    let mut guest = Guest::new();
    guest.enable();
    // A forged VMID in each, ASID 0xbeef.
    let tags = 0xbeef_00ff_0000_0000_u64;
    let vmid = VMID;
    let address = Iova::new(0xffff_8000_1234_5000);
    let (asid, pages) = (0xbeef, Pages::One);
    let words = address.raw();
    assert_eq!(guest.issue(&[[tags | 0x10, 0]]), relayed(Command::TlbiNhAll { vmid }));
    assert_eq!(guest.issue(&[[tags | 0x11, 0]]), relayed(Command::TlbiNhAsid { vmid, asid }));
    let command = Command::TlbiNhVa { vmid, asid, address, pages, leaf: true };
    assert_eq!(guest.issue(&[[tags | 0x12, words | 1]]), relayed(command));
    let command = Command::TlbiNhVaa { vmid, address, pages, leaf: false };
    assert_eq!(guest.issue(&[[tags | 0x13, words]]), relayed(command));
    assert_eq!(guest.issue(&[TLBI_NSNH_ALL]), relayed(Command::TlbiNhAll { vmid }));
    // StreamIDs lead to the SMMU that the stream comes through, SubstreamIDs nowhere.
    let cd = |sid: u64, leaf: u64| [0x05 | sid << 32 | 0xabcde << 12, leaf];
    let sid = StreamId(0x318);
    let command = Command::CfgiCd { sid, ssid: 0, leaf: true };
    assert_eq!(guest.issue(&[cd(0x10, 1)]), [Step::Relay(0, command)]);
    let command = Command::CfgiCdAll { sid: StreamId(0x110) };
    assert_eq!(guest.issue(&[[0x06 | 0x19 << 32, 0]]), [Step::Relay(2, command)]);
    assert_eq!(guest.issue(&[cd(0x318, 0), cd(0x11, 1), [0x06 | 0x110 << 32, 0]]), []);
    assert_eq!(guest.smmu.counters().errors, 0);
}

#[test]
fn eight_bit_asids_stay_so() {
    let mut ids = QEMU_NESTED;
    ids[0] &= !(1 << 12);
    let decoded = GuestCommand::decode([0xbeef_0000_0000_0011, 0], &features(ids));
    assert_eq!(decoded, Ok(GuestCommand::Tlb(command::Invalidation::Asid(0xef))));
}

#[test]
fn ranges_are_decoded_and_checked() {
    let (with, mut ids) = (features(QEMU_NESTED), QEMU_NESTED);
    ids[2] &= !(1 << 10);
    let without = features(ids);
    let pages = |features: &Features, tg: u64, ttl: u64, num: u64, scale: u64| {
        let command = [0x13 | num << 12 | scale << 20, 0x1000 | tg << 10 | ttl << 8];
        match GuestCommand::decode(command, features) {
            Ok(GuestCommand::Tlb(command::Invalidation::Address { pages, .. })) => Ok(pages),
            Err(error) => Err(error),
            other => panic!("{other:?}"),
        }
    };
    let granules =
        |granule, level, multiple, scale| Ok(Pages::Granules { granule, level, multiple, scale });
    assert_eq!(pages(&with, 1, 3, 0, 0), granules(Granule::K4, 3, 1, 0));
    assert_eq!(pages(&with, 1, 0, 31, 31), granules(Granule::K4, 0, 32, 31));
    assert_eq!(pages(&with, 2, 2, 4, 5), granules(Granule::K16, 2, 5, 5));
    assert_eq!(pages(&with, 3, 1, 0, 0), granules(Granule::K64, 1, 1, 0));
    // Without a granule nothing else counts.
    assert_eq!(pages(&with, 0, 3, 31, 31), Ok(Pages::One));
    // One granule without a hint is reserved, and level 1 is no hint for 16 KiB.
    for tg in 1..4 {
        assert_eq!(pages(&with, tg, 0, 0, 0), Err(CommandError::Illegal));
    }
    assert_eq!(pages(&with, 2, 1, 0, 0), Err(CommandError::Illegal));
    assert_eq!(pages(&with, 2, 1, 1, 0), granules(Granule::K16, 0, 2, 0));
    // A granule that the guest was not offered: hardware may refuse it, and that would be our queue.
    let mut ids = QEMU_NESTED;
    ids[3] &= !(1 << 5);
    let small_and_large = features(ids);
    assert_eq!(pages(&small_and_large, 2, 2, 4, 5), Err(CommandError::Illegal));
    assert_eq!(pages(&small_and_large, 1, 0, 4, 5), granules(Granule::K4, 0, 5, 5));
    // Without RIL the fields do not exist.
    assert_eq!(pages(&without, 1, 0, 31, 31), Ok(Pages::One));
    assert_eq!(pages(&without, 3, 3, 0, 0), Ok(Pages::One));
}

#[test]
fn every_opcode_is_either_known_or_illegal() {
    let legal = [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x46];
    for opcode in 0..=0xff_u64 {
        let mut guest = Guest::new();
        guest.enable();
        let steps = guest.issue(&[[opcode, 0]]);
        if legal.contains(&opcode) {
            assert_eq!((guest.read(CMDQ_CONS), guest.read(GERROR)), (1, 0), "{opcode:#x}");
        } else {
            assert_eq!(steps, [], "{opcode:#x}");
            assert_eq!((guest.read(CMDQ_CONS), guest.read(GERROR)), (1 << 24, 1), "{opcode:#x}");
        }
        // No Non-secure command names a Secure stream.
        let secure = GuestCommand::decode([opcode | 1 << 10, 0], &features(QEMU_NESTED));
        assert_eq!(secure.is_err(), !legal.contains(&opcode) || opcode <= 0x06, "{opcode:#x}");
    }
}

#[test]
fn a_sync_signals_as_it_is_asked() {
    let mut guest = Guest::new();
    guest.enable();
    // SIG_NONE, SIG_SEV; SIG_IRQ with an address, which is only for MSIs.
    guest.issue(&[[0x46, 0], [0x46 | 2 << 12, 0]]);
    assert_eq!(guest.interrupts(), (false, false, false));
    guest.issue(&[[0x46 | 1 << 12 | 0xffff_ffff << 32, 0x0802_0040]]);
    assert_eq!(guest.interrupts(), (false, false, true));
    assert_eq!((guest.interrupts(), guest.read(GERROR)), ((false, false, false), 0));
    guest.issue(&[[0x46 | 3 << 12, 0]]);
    assert_eq!((guest.read(CMDQ_CONS), guest.interrupts()), (1 << 24 | 3, (false, true, false)));
    assert_eq!(guest.smmu.counters().batches, 3);
}

#[test]
fn what_a_sync_waits_for_is_done_before_the_guest_knows() {
    let mut guest = Guest::new();
    guest.enable();
    let prod = guest.queue(&[TLBI_NSNH_ALL, SYNC]);
    guest.set(CMDQ_PROD, prod);
    let all = Command::TlbiNhAll { vmid: VMID };
    let expected = [
        Step::Register(CMDQ_PROD, 2),
        Step::Relay(0, all),
        Step::Relay(2, all),
        Step::Sync(0),
        Step::Sync(2),
        Step::Register(CMDQ_CONS, 2),
    ];
    assert_eq!(guest.take(), expected);
    // Commands without a sync wait for none, and a sync without commands neither.
    assert_eq!(guest.issue(&[TLBI_NSNH_ALL]), relayed(all));
    assert_eq!(guest.issue(&[SYNC]), [Step::Sync(0), Step::Sync(2)]);
    assert_eq!(guest.issue(&[SYNC, SYNC]), []);
}

#[test]
fn a_sync_in_the_middle_keeps_its_place() {
    let mut guest = Guest::with(&STREAMS[..2]);
    guest.enable();
    let all = Step::Relay(0, Command::TlbiNhAll { vmid: VMID });
    let between = Step::Relay(0, Command::Sync);
    // One wait, at the end.
    let steps = guest.issue(&[TLBI_NSNH_ALL, SYNC, SYNC, TLBI_NSNH_ALL, SYNC]);
    assert_eq!(steps, [all, between, all, Step::Sync(0)]);
    // Also for one whose successors nobody waits for.
    let steps = guest.issue(&[TLBI_NSNH_ALL, SYNC, TLBI_NSNH_ALL]);
    assert_eq!(steps, [all, between, all, Step::Sync(0)]);
    assert_eq!(guest.issue(&[SYNC]), []);
    // And between a translation and a configuration.
    let steps = guest.issue(&[TLBI_NSNH_ALL, SYNC, cfgi_ste(8, true), SYNC]);
    let abort = Step::Configure(0, 0x110, Configuration::Abort);
    assert_eq!(steps, [all, between, abort, Step::Sync(0)]);
}

#[test]
fn only_smmus_that_have_something_to_do_are_waited_for() {
    let mut guest = Guest::new();
    guest.enable();
    let steps = guest.issue(&[[0x06 | 0x19 << 32, 0], SYNC]);
    assert_eq!(steps[1..], [Step::Sync(2)]);
}

#[test]
fn queues_of_every_size_wrap() {
    for log2 in 0..=8_u32 {
        let mut guest = Guest::new();
        guest.set64(CMDQ_BASE, COMMANDS | u64::from(log2));
        guest.set(CR0, CMDQEN);
        for round in 0..(4_u32 << log2) {
            let count = (round % (1 << log2).min(7)) as usize + 1;
            let commands = vec![SYNC; count];
            guest.issue(&commands);
            assert_eq!(guest.read(CMDQ_CONS), guest.read(CMDQ_PROD), "{log2} {round}");
        }
        assert_eq!(guest.smmu.counters().errors, 0);
    }
}

#[test]
fn a_larger_queue_than_advertised_is_the_largest() {
    for log2 in [9, 19, 31] {
        let mut guest = Guest::new();
        guest.set64(CMDQ_BASE, COMMANDS | log2);
        // Read back as written, used as 8; the base is aligned to 4 KiB.
        assert_eq!(guest.read64(CMDQ_BASE), COMMANDS | log2);
        guest.set(CMDQ_CONS, 0x1ff);
        guest.set(CMDQ_PROD, 0x1ff);
        guest.set(CR0, CMDQEN);
        guest.ram.set(COMMANDS + 16 * 0xff, &SYNC);
        guest.set(CMDQ_PROD, 0);
        assert_eq!((guest.read(CMDQ_CONS), guest.read(GERROR)), (0, 0));
    }
    let mut guest = Guest::new();
    guest.set64(CMDQ_BASE, COMMANDS | 0xfe0 | 8);
    guest.set(CR0, CMDQEN);
    guest.issue(&[SYNC]);
    assert_eq!(guest.read(CMDQ_CONS), 1);
}

#[test]
fn a_queue_can_move_while_the_smmu_is_enabled() {
    let mut guest = Guest::new();
    guest.enable();
    guest.issue(&[SYNC; 5]);
    guest.set(CR0, SMMUEN | EVENTQEN);
    // Not consumed while disabled, nor from the old place.
    guest.set(CMDQ_PROD, 7);
    assert_eq!((guest.read(CMDQ_PROD), guest.read(CMDQ_CONS)), (7, 5));
    let elsewhere = RAM + 0x50_0000;
    guest.ram.set(elsewhere, &TLBI_NSNH_ALL);
    guest.ram.set(elsewhere + 16, &SYNC);
    guest.set64(CMDQ_BASE, elsewhere | 4);
    guest.set(CMDQ_PROD, 0);
    guest.set(CMDQ_CONS, 0);
    guest.set(CR0, SMMUEN | EVENTQEN | CMDQEN);
    guest.take();
    guest.set(CMDQ_PROD, 2);
    let all = Command::TlbiNhAll { vmid: VMID };
    assert_eq!(guest.wires()[..2], relayed(all));
    assert_eq!((guest.read(CMDQ_CONS), guest.smmu.counters().errors), (2, 0));
}

#[test]
fn commands_that_wait_start_with_the_queue() {
    let mut guest = Guest::new();
    guest.set64(CMDQ_BASE, COMMANDS | 8);
    let prod = guest.queue(&[TLBI_NSNH_ALL, SYNC]);
    guest.set(CMDQ_PROD, prod);
    assert_eq!(guest.wires(), []);
    guest.set(CR0, CMDQEN);
    assert_eq!((guest.read(CMDQ_CONS), guest.read(CR0ACK)), (2, CMDQEN));
}

#[test]
fn a_queue_outside_ram_aborts() {
    let mut guest = Guest::new();
    // The last page of RAM, with room for 256 commands, and nothing behind.
    let last = RAM + RAM_SIZE - 0x1000;
    guest.set64(CMDQ_BASE, last | 8);
    guest.set(IRQ_CTRL, 1);
    for slot in 0..256 {
        guest.ram.set(last + 16 * slot, &SYNC);
    }
    guest.set(CR0, CMDQEN);
    guest.set(CMDQ_PROD, 0x100);
    assert_eq!((guest.read(CMDQ_CONS), guest.interrupts()), (0x100, (false, false, false)));
    guest.set(CR0, 0);
    guest.set64(CMDQ_BASE, (RAM + RAM_SIZE) | 8);
    guest.set(CR0, CMDQEN);
    guest.set(CMDQ_PROD, 0x101);
    assert_eq!((guest.read(CMDQ_CONS), guest.read(GERROR)), (2 << 24 | 0x100, 1));
    assert_eq!(guest.interrupts(), (false, true, false));
    // Acknowledged without a repair, it stops again at the same place, and says so again.
    guest.set(GERRORN, 1);
    assert_eq!((guest.read(CMDQ_CONS), guest.read(GERROR)), (2 << 24 | 0x100, 0));
    assert_eq!(guest.interrupts(), (false, true, false));
}

#[test]
fn an_error_stops_the_queue_until_it_is_acknowledged() {
    let mut guest = Guest::new();
    guest.enable();
    guest.issue(&[SYNC, [0x20, 0], TLBI_NSNH_ALL]);
    assert_eq!((guest.read(CMDQ_CONS), guest.read(GERROR)), (1 << 24 | 1, 1));
    // Neither more commands nor a restart of the queue get past it.
    guest.issue(&[SYNC]);
    guest.set(CR0, SMMUEN | EVENTQEN);
    guest.set(CR0, SMMUEN | EVENTQEN | CMDQEN);
    assert_eq!((guest.read(CMDQ_CONS), guest.read(GERROR)), (1 << 24 | 1, 1));
    // PROD may go back to CONS meanwhile: then nothing is left.
    guest.set(CMDQ_PROD, 1);
    guest.take();
    guest.set(GERRORN, 1);
    assert_eq!((guest.read(CMDQ_CONS) & 0x1ff, guest.wires()), (1, vec![]));
    assert_eq!(guest.smmu.counters().errors, 1);
}

#[test]
fn what_is_left_of_too_much_waits() {
    let mut guest = Guest::new();
    guest.enable();
    // A full queue of commands is done at once.
    let prod = guest.queue(&[TLBI_NSNH_ALL; 256]);
    assert_eq!((guest.write(CMDQ_PROD, prod), guest.read(CMDQ_CONS)), (Work::Done, 0x100));
    // STEs weigh more: 256 times three of them.
    let prod = guest.queue(&[CFGI_ALL; 256]);
    assert_eq!(guest.write(CMDQ_PROD, prod), Work::More);
    guest.take();
    let mut calls = 1;
    while guest.resume() == Work::More {
        let configured = guest.wires().len();
        assert!(configured <= (BUDGET / STE_COST) as usize + STREAMS.len(), "{configured}");
        calls += 1;
    }
    assert_eq!(guest.read(CMDQ_CONS), prod);
    assert!(calls > 10);
    guest.take();
    assert_eq!((guest.resume(), guest.wires()), (Work::Done, vec![]));
}

#[test]
fn a_sync_that_waits_for_its_turn_is_not_forgotten() {
    let mut guest = Guest::with(&STREAMS[..1]);
    guest.enable();
    // The first call ends right behind the invalidations.
    let mut commands = vec![TLBI_NSNH_ALL; 2];
    commands.extend(vec![cfgi_ste(8, true); 30]);
    commands.push(SYNC);
    let prod = guest.queue(&commands);
    assert_eq!(guest.write(CMDQ_PROD, prod), Work::More);
    assert!(!guest.wires().contains(&Step::Sync(0)));
    assert_eq!(guest.resume(), Work::Done);
    assert_eq!(guest.take().last(), Some(&Step::Register(CMDQ_CONS, prod)));
}

#[test]
fn a_producer_that_lies_costs_itself_two_rounds() {
    let mut guest = Guest::new();
    guest.set64(CMDQ_BASE, COMMANDS | 2);
    for slot in 0..4 {
        guest.ram.set(COMMANDS + 16 * slot, &SYNC);
    }
    guest.set(CR0, CMDQEN);
    // Six commands in a queue of four.
    guest.set(CMDQ_PROD, 6);
    assert_eq!((guest.read(CMDQ_CONS), guest.smmu.counters().commands), (6, 6));
}

/// An SMMU whose only command is waited for by a `CMD_SYNC` that is not the last command.
#[test]
fn every_smmu_is_waited_for_by_its_number() {
    let mut guest = Guest::new();
    guest.enable();
    let cd = |sid: u64| [0x06 | sid << 32, 0];
    let steps = guest.issue(&[cd(0x19), SYNC, cd(0x08)]);
    assert_eq!(steps[1], Step::Relay(2, Command::Sync));
    assert_eq!(steps.last(), Some(&Step::Sync(2)));
    assert_eq!(guest.issue(&[SYNC]), [Step::Sync(0)]);
    let steps = guest.issue(&[cfgi_ste(0x19, true), SYNC]);
    assert_eq!(steps[1..], [Step::Sync(2)]);
}
