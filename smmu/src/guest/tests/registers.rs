use super::*;
use crate::fake::QEMU_STAGE2;

#[test]
fn only_what_was_decided_is_advertised() {
    let guest = Guest::new();
    // S1P, TTF=2, COHACC, ASID16, TTENDIAN=2, STALL_MODEL=1, TERM_MODEL, ST_LEVEL=1: QEMU has no CD2L.
    let expected = 1 << 1 | 2 << 2 | 1 << 4 | 1 << 12 | 2 << 21 | 1 << 24 | 1 << 26 | 1 << 27;
    assert_eq!(guest.read(IDR0), expected);
    // SIDSIZE=16, EVENTQS=CMDQS=8; no SSIDSIZE, no PRIQS.
    assert_eq!(guest.read(IDR1), 16 | 8 << 16 | 8 << 21);
    // HAD, RIL, BBML=2.
    assert_eq!(guest.read(IDR3), 1 << 2 | 1 << 10 | 2 << 11);
    // OAS = 40 bits, all granules.
    assert_eq!(guest.read(IDR5), 2 | 0b111 << 4);
    assert_eq!((guest.read(0x08), guest.read(0x10), guest.read(0x18)), (0, 0, 0));
}

#[test]
fn hardware_features_pass_through_one_by_one() {
    let idrs = |ids: [u32; 5]| {
        let identity = features(ids).identify(16, 40);
        [identity.idr0, identity.idr1, identity.idr3, identity.idr5]
    };
    let base = idrs(QEMU_NESTED);
    for register in 0..4 {
        for bit in 0..32 {
            let mut ids = QEMU_NESTED;
            ids[register] ^= 1 << bit;
            let passes = match (register, bit) {
                // ASID16, CD2L, TERM_MODEL.
                (0, 12 | 19 | 26) => true,
                // HAD, RIL, BBML; 3 counts as 2, which it is already.
                (2, 2 | 10 | 12) => true,
                // 16 and 64 KiB, VAX=1.
                (3, 4..=6 | 10) => true,
                _ => false,
            };
            let mut expected = base;
            if passes {
                expected[register] ^= 1 << bit;
            }
            // VAX=2 is reserved and counts as 1.
            if (register, bit) == (3, 11) {
                expected[3] |= 1 << 10;
            }
            assert_eq!(idrs(ids), expected, "IDR{} bit {bit}", [0, 1, 3, 5][register]);
        }
    }
    // What no guest gets: S2P, HTTU, BTM, HYP, ATS, NS1ATS, MSI, SEV, ATOS, PRI, VMW, VMID16, VATOS.
    assert_eq!(idrs([u32::MAX; 5])[0] & 0x4017_efe1, 0);
}

#[test]
fn several_smmus_offer_what_all_of_them_have() {
    let mut less = QEMU_NESTED;
    less[0] &= !(1 << 12 | 1 << 26);
    less[2] &= !(1 << 10 | 3 << 11);
    less[3] &= !(1 << 6);
    let [both, other] = [
        features(QEMU_NESTED).common(features(less)),
        features(less).common(features(QEMU_NESTED)),
    ];
    assert_eq!(both, other);
    let identity = both.identify(16, 40);
    // CD.A is needed as soon as one of them needs it.
    assert_eq!((identity.idr0 >> 12 & 1, identity.idr0 >> 26 & 1), (0, 1));
    assert_eq!((identity.idr3, identity.idr5 >> 4), (1 << 2, 0b11));
    assert_eq!(features(QEMU_STAGE2).common(features(QEMU_NESTED)), features(QEMU_NESTED));
}

#[test]
fn the_revision_is_one_whose_requirements_are_met() {
    let revision = |aidr: u32, ids: [u32; 5]| {
        let fake = Fake::new(ids);
        fake.set_register(AIDR, aidr);
        Features::of(&Capabilities::read(&fake)).identify(16, 40).aidr
    };
    let without = |mask: u32| {
        let mut ids = QEMU_NESTED;
        ids[2] &= !mask;
        ids
    };
    assert_eq!([0, 1, 2, 3, 4, 0x10].map(|aidr| revision(aidr, QEMU_NESTED)), [0, 1, 2, 2, 2, 2]);
    assert_eq!(revision(3, without(1 << 10)), 1);
    assert_eq!(revision(3, without(3 << 11)), 1);
    assert_eq!(revision(3, without(1 << 2)), 0);
}

#[test]
fn address_sizes_have_their_encoding() {
    let oas = |bits: u8| features(QEMU_NESTED).identify(16, bits).idr5 & 7;
    assert_eq!([32, 36, 40, 42, 44, 48].map(oas), [0, 1, 2, 3, 4, 5]);
    assert_eq!([35, 39, 41, 43, 47].map(oas), [0, 1, 2, 3, 4]);
}

#[test]
fn what_is_written_is_read_back_as_far_as_it_exists() {
    let mut guest = Guest::new();
    // An index has the bits of its queue.
    guest.set(CMDQ_BASE, 8);
    guest.set(EVENTQ_BASE, 8);
    for (offset, bits) in [
        // No PTM without BTM, no E2H without Hyp.
        (CR1, 0xfff),
        (CR2, 0b10),
        (IRQ_CTRL, 0b101),
        (STRTAB_BASE, 0xffff_ffc0),
        (STRTAB_BASE + 4, 0x40ff_ffff),
        (STRTAB_BASE_CFG, 0x3_07ff),
        (CMDQ_PROD, 0x1ff),
        (CMDQ_CONS, 0x7f00_01ff),
        (EVENTQ_PROD, 0x8000_01ff),
        (EVENTQ_CONS, 0x8000_01ff),
        (GERRORN, 0b1_0000_0101),
        (CMDQ_BASE, 0xffff_ffff),
        (CMDQ_BASE + 4, 0x40ff_ffff),
        (EVENTQ_BASE, 0xffff_ffff),
        (EVENTQ_BASE + 4, 0x40ff_ffff),
    ] {
        for value in [u32::MAX, 0x5555_5555, 0] {
            guest.set(offset, value);
            assert_eq!(guest.read(offset), value & bits, "{offset:#x}");
        }
    }
    // In one piece as well.
    guest.set64(STRTAB_BASE, u64::MAX);
    assert_eq!(guest.read64(STRTAB_BASE), 0x40ff_ffff_ffff_ffc0);
    assert_eq!(guest.smmu.counters().unknown, 0);
}

#[test]
fn acknowledgements_and_aliases_follow() {
    let mut guest = Guest::new();
    guest.set(IRQ_CTRL, 0b101);
    assert_eq!(guest.read(IRQ_CTRLACK), 0b101);
    // Page 0 has the event queue's indices too, for reading and for writing.
    guest.set(EVENTQ_BASE, 8);
    guest.set(0xac, 5);
    assert_eq!((guest.read(0xac), guest.read(EVENTQ_CONS)), (5, 5));
    guest.set(EVENTQ_PROD, 6);
    assert_eq!((guest.read(0xa8), guest.read(EVENTQ_PROD)), (6, 6));
}

#[test]
fn an_index_has_the_bits_of_its_queue() {
    let mut guest = Guest::new();
    guest.set(CMDQ_BASE, 8);
    guest.set(CMDQ_CONS, 0x1ff);
    guest.set(EVENTQ_BASE, 8);
    guest.set(EVENTQ_PROD, 0x8000_01ff);
    // A smaller queue: the bits above its wrap bit read as 0.
    guest.set(CMDQ_BASE, 3);
    guest.set(EVENTQ_BASE, 0);
    assert_eq!(guest.read(CMDQ_CONS), 0xf);
    assert_eq!((guest.read(EVENTQ_PROD), guest.read(0xa8)), (0x8000_0001, 0x8000_0001));
}

#[test]
fn what_is_in_use_cannot_be_changed() {
    let mut guest = Guest::new();
    guest.set(CR1, 0xd75);
    guest.enable();
    for offset in [
        CR2,
        STRTAB_BASE,
        STRTAB_BASE + 4,
        STRTAB_BASE_CFG,
        CMDQ_BASE,
        CMDQ_CONS,
        EVENTQ_BASE,
        EVENTQ_PROD,
        CR1,
    ] {
        let before = guest.read(offset);
        guest.set(offset, !before);
        assert_eq!(guest.read(offset), before, "{offset:#x}");
    }
    assert_eq!(guest.wires(), []);
    // Each as soon as what guards it is disabled.
    guest.set(CR0, SMMUEN | CMDQEN);
    guest.set64(EVENTQ_BASE, EVENTS | 4);
    assert_eq!(guest.read64(EVENTQ_BASE), EVENTS | 4);
    guest.set(CR1, 0);
    assert_eq!(guest.read(CR1), 0xd75);
    guest.set(CR0, SMMUEN);
    guest.set64(CMDQ_BASE, COMMANDS | 4);
    assert_eq!(guest.read64(CMDQ_BASE), COMMANDS | 4);
    guest.set(CR1, 0);
    assert_eq!(guest.read(CR1), 0xd40);
    assert_eq!(guest.write(CR0, 0), Work::Disable { taken_over: false });
    guest.set(STRTAB_BASE_CFG, 0);
    assert_eq!(guest.read(STRTAB_BASE_CFG), 8);
    assert_eq!(guest.disabled(), Work::Done);
    guest.set(STRTAB_BASE_CFG, 0);
    guest.set(CR1, 0);
    assert_eq!((guest.read(STRTAB_BASE_CFG), guest.read(CR1)), (0, 0));
}

#[test]
fn what_is_read_only_or_not_there_ignores_writes() {
    let mut guest = Guest::new();
    let image = guest.image.registers.borrow().clone();
    // IDR0 to AIDR, CR0ACK, STATUSR, IRQ_CTRLACK, GERROR, what MSIs would need, and component identification.
    for offset in (0..0x20).step_by(4).chain([CR0ACK, 0x40, IRQ_CTRLACK, GERROR]) {
        guest.set(offset, u32::MAX);
    }
    for offset in [0x68, 0x6c, 0x70, 0x74, 0xb0, 0xb4, 0xb8, 0xbc, 0xfd0, 0xffc] {
        guest.set(offset, u32::MAX);
    }
    assert_eq!(guest.smmu.counters().unknown, 0);
    // AGBPA, PRI queue, ATOS, the Secure registers, and the rest of both pages.
    let unknown = [
        0x48, 0xc0, 0xc8, 0xd8, 0x100, 0x8000, 0xfffc, 0x1_0000, 0x1_0020, 0x1_0098, 0x1_00c8,
        0x1_fffc,
    ];
    for offset in unknown {
        guest.set(offset, u32::MAX);
    }
    assert_eq!(guest.smmu.counters().unknown, unknown.len() as u64);
    guest.smmu.ignore_write();
    assert_eq!(guest.smmu.counters().unknown, unknown.len() as u64 + 1);
    assert_eq!(*guest.image.registers.borrow(), image);
    assert_eq!(guest.take(), []);
}

#[test]
fn a_write_of_both_halves_acts_like_two() {
    let mut guest = Guest::new();
    // CR1 and CR2; CR0 and CR0ACK.
    guest.set64(CR1, 0xd75 | 0b10 << 32);
    assert_eq!((guest.read(CR1), guest.read(CR2)), (0xd75, 0b10));
    guest.set64(CR0, u64::from(CMDQEN) | 0xffff_ffff << 32);
    assert_eq!((guest.read(CR0), guest.read(CR0ACK)), (CMDQEN, CMDQEN));
    // STATUSR and GBPA.
    guest.set64(0x40, (1_u64 << 31 | 1 << 20) << 32);
    assert_eq!(guest.read(GBPA), 1 << 20);
}

#[test]
fn only_enables_that_exist_are_acknowledged() {
    let mut guest = Guest::new();
    guest.enable_queues();
    guest.set(CR0, !SMMUEN);
    assert_eq!((guest.read(CR0), guest.read(CR0ACK)), (EVENTQEN | CMDQEN, EVENTQEN | CMDQEN));
}

#[test]
fn bypass_attributes_change_with_update_only() {
    let mut guest = Guest::new();
    guest.set(GBPA, 1 << 20);
    assert_eq!((guest.read(GBPA), guest.wires()), (0, vec![]));
    // UPDATE reads as 0 at once, and nothing but ABORT is there.
    guest.set(GBPA, u32::MAX);
    assert_eq!(guest.read(GBPA), 1 << 20);
    let each = |to| STREAMS.map(|map| Step::Configure(map.smmu, map.phys.0, to));
    let mut expected = each(Configuration::Abort).to_vec();
    expected.extend([Step::Sync(0), Step::Sync(2)]);
    assert_eq!(guest.wires(), expected);
    guest.set(GBPA, 1 << 31);
    let steps = guest.take();
    let mut expected = each(Configuration::Stage2).to_vec();
    expected.extend([Step::Sync(0), Step::Sync(2), Step::Register(GBPA, 0)]);
    assert_eq!(steps, expected);
    // While enabled it waits for its time.
    guest.enable();
    guest.set(GBPA, 1 << 31 | 1 << 20);
    assert_eq!((guest.read(GBPA), guest.wires()), (1 << 20, vec![]));
}

#[test]
fn a_disable_is_acknowledged_after_the_close() {
    let mut guest = Guest::new();
    guest.ste(0x08, [STAGE1, ATTRIBUTES]);
    guest.enable();
    guest.set(GBPA, 1 << 31);
    assert!(guest.smmu.is_enabled());
    guest.take();
    assert_eq!(guest.write(CR0, CMDQEN), Work::Disable { taken_over: false });
    // Nothing of it is the virtual SMMU's doing, and the guest cannot see that it is over.
    assert_eq!(guest.take(), [Step::Register(CR0, CMDQEN)]);
    assert_eq!(guest.read(CR0ACK), SMMUEN | EVENTQEN | CMDQEN);
    assert!(!guest.smmu.is_enabled());
    // Meanwhile nothing opens: not by GBPA, nor by enabling again, nor by a command.
    guest.set(GBPA, 1 << 31);
    guest.set(CR0, SMMUEN | CMDQEN);
    assert_eq!(guest.wires(), []);
    assert_eq!(guest.issue(&[CFGI_ALL, cfgi_ste(8, true), SYNC]), []);
    assert_eq!((guest.read(CR0), guest.read(CR0ACK)), (CMDQEN, SMMUEN | EVENTQEN | CMDQEN));
    // Then GBPA.ABORT is 1, whatever it was, before the acknowledgement.
    assert_eq!(guest.disabled(), Work::Done);
    assert_eq!(guest.take(), [Step::Register(GBPA, 1 << 20), Step::Register(CR0ACK, CMDQEN)]);
    // From then on a new reason opens.
    guest.set(GBPA, 1 << 31);
    assert!(guest.wires().contains(&Step::Configure(0, 0x110, Configuration::Stage2)));
    guest.ste(0x08, [STAGE1, ATTRIBUTES]);
    guest.set(CR0, SMMUEN | CMDQEN);
    assert!(guest.wires().contains(&Step::Configure(0, 0x110, nested(CONTEXT))));
}

#[test]
fn a_kernel_that_finds_the_smmu_enabled_shows() {
    let mut guest = Guest::new();
    guest.enable();
    // As Linux after a crash: ABORT first, then CR0=0.
    guest.set(GBPA, 1 << 31 | 1 << 20);
    assert_eq!(guest.write(CR0, 0), Work::Disable { taken_over: true });
    assert_eq!(guest.disabled(), Work::Done);
    guest.enable();
    assert_eq!(guest.write(CR0, 0), Work::Disable { taken_over: false });
}

#[test]
fn a_reset_forgets_everything() {
    let fresh = {
        let mut guest = Guest::new();
        guest.smmu.reset(true, &guest.image);
        guest.image.registers.borrow().clone()
    };
    assert_eq!(fresh[&GBPA], 1 << 20);
    let mut guest = Guest::new();
    guest.ste(0x08, [STAGE1, ATTRIBUTES]);
    guest.enable();
    // An invalidation that nobody waits for any more, and an error.
    guest.issue(&[TLBI_NSNH_ALL, [0xff, 0]]);
    assert_eq!(guest.write(CR0, 0), Work::Disable { taken_over: false });
    guest.smmu.reset(true, &guest.image);
    assert_eq!(*guest.image.registers.borrow(), fresh);
    assert_eq!(guest.interrupts(), (false, false, false));
    // It is as good as new.
    guest.enable();
    assert_eq!(guest.issue(&[SYNC]), []);
    assert_eq!(guest.read(CMDQ_CONS), 1);
}

#[test]
fn a_failing_host_is_reported() {
    let mut guest = Guest::new();
    guest.enable();
    guest.wires.fails = true;
    let prod = guest.queue(&[TLBI_NSNH_ALL, SYNC]);
    let outcome = guest.call(|smmu, ports| smmu.write(ports, CMDQ_PROD, Width::Word, prod.into()));
    assert_eq!(outcome, Err(HostError::ServiceFailure));
    // The guest learns nothing.
    assert_eq!(guest.read(CMDQ_CONS), 0);
}

#[test]
fn a_reset_leaves_bypass_as_it_is_told_and_clears_aliases() {
    let mut guest = Guest::new();
    // Page 0 has the event queue's indices as well.
    guest.set(EVENTQ_BASE, 8);
    guest.set(EVENTQ_PROD, 5);
    guest.set(EVENTQ_CONS, 6);
    for abort in [false, true] {
        guest.smmu.reset(abort, &guest.image);
        assert_eq!(guest.read(GBPA), u32::from(abort) << 20);
        assert_eq!((guest.read(0xa8), guest.read(0xac)), (0, 0));
    }
}

#[test]
fn the_revision_can_be_read() {
    let fake = Fake::new(QEMU_NESTED);
    fake.set_register(AIDR, 2);
    let features = Features::of(&Capabilities::read(&fake));
    let config = Config { vmid: VMID, ipa_bits: 40, sid_bits: 16, features, streams: &[] };
    let image = Image::default();
    VirtualSmmu::new(&config).reset(true, &image);
    assert_eq!(image.registers.borrow()[&AIDR], 2);
}

#[test]
fn errors_interrupt_if_they_may() {
    for (enabled, interrupts) in [(0b101, true), (0b001, true), (0b100, false), (0, false)] {
        let mut guest = Guest::new();
        guest.enable();
        guest.set(IRQ_CTRL, enabled);
        guest.issue(&[[0xff, 0]]);
        assert_eq!(guest.read(GERROR), 1);
        assert_eq!(guest.interrupts(), (false, interrupts, false), "IRQ_CTRL={enabled:#b}");
    }
}

#[test]
fn a_disable_in_a_wide_write_is_one_too() {
    let mut guest = Guest::new();
    guest.enable();
    assert!(!guest.smmu.is_disabling());
    assert_eq!(guest.write64(CR0, 0), Work::Disable { taken_over: false });
    assert!(guest.smmu.is_disabling() && !guest.smmu.is_enabled());
    assert_eq!(guest.disabled(), Work::Done);
    assert!(!guest.smmu.is_disabling());
}

#[test]
fn each_feature_takes_every_smmu() {
    // ASID16, CD2L; HAD, RIL.
    for (register, bit) in [(0, 12), (0, 19), (2, 2), (2, 10)] {
        let with = |has: bool| {
            let mut ids = QEMU_NESTED;
            ids[register] = ids[register] & !(1 << bit) | u32::from(has) << bit;
            features(ids)
        };
        for (one, other) in [(false, false), (false, true), (true, false), (true, true)] {
            let identity = with(one).common(with(other)).identify(16, 40);
            let offered = [identity.idr0, 0, identity.idr3][register] >> bit & 1 != 0;
            assert_eq!(offered, one && other, "IDR{register} bit {bit}");
        }
    }
}
