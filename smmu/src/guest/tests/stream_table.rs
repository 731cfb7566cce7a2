use super::*;

/// Enables a table that is already in memory, and returns what became of stream 8.
fn enabled(guest: &mut Guest, base: u64, config: u32) -> Configuration {
    guest.enable_queues();
    guest.set64(STRTAB_BASE, base);
    guest.set(STRTAB_BASE_CFG, config);
    guest.set(CR0, SMMUEN | EVENTQEN | CMDQEN);
    configured(&guest.wires(), 0x110)
}

fn configured(steps: &[Step], phys: u32) -> Configuration {
    let of = |step: &Step| match step {
        Step::Configure(0, sid, to) if *sid == phys => Some(*to),
        _ => None,
    };
    steps.iter().find_map(of).expect("it was configured")
}

#[test]
fn linear_tables_have_any_size() {
    for log2 in [4, 8, 9, 16] {
        let mut guest = Guest::new();
        // Aligned to its size.
        let base = TABLE / (64 << log2) * (64 << log2);
        guest.ram.set(base + 64 * 8, &[STAGE1, ATTRIBUTES]);
        assert_eq!(enabled(&mut guest, TABLE, log2), nested(CONTEXT), "{log2}");
    }
    // Too small, and larger than any StreamID: the base is aligned to what was asked for, 16 MiB.
    let mut guest = Guest::new();
    guest.ste(8, [STAGE1, ATTRIBUTES]);
    assert_eq!(enabled(&mut guest, TABLE, 3), Configuration::Refuse);
    let mut guest = Guest::new();
    guest.ram.set(RAM + 64 * 8, &[STAGE1, ATTRIBUTES]);
    assert_eq!(enabled(&mut guest, RAM + (8 << 20), 18), nested(CONTEXT));
    let mut guest = Guest::new();
    assert_eq!(enabled(&mut guest, TABLE, 63), Configuration::Refuse);
}

#[test]
fn a_size_of_more_than_all_streamids_is_no_more_than_that() {
    let mut guest = Guest::new();
    // Addresses are those of the real size, but nothing beyond SIDSIZE is ever asked for.
    guest.ram.set(RAM, &[0x4200_0000 | 9]);
    guest.ram.set(0x4200_0000 + 64 * 8, &[0b1001]);
    assert_eq!(enabled(&mut guest, RAM, 1 << 16 | 8 << 6 | 31), Configuration::Stage2);
}

#[test]
fn two_level_tables_have_every_split() {
    for (split, effective) in [(6, 6), (8, 8), (10, 10), (0, 6), (7, 6), (31, 6)] {
        for log2 in [4_u32, 6, 8, 11, 16] {
            let mut guest = Guest::new();
            guest.ram.set(TABLE, &[LEVEL2 | (effective + 1)]);
            guest.ram.set(LEVEL2 + 64 * 8, &[STAGE1, ATTRIBUTES]);
            let to = enabled(&mut guest, TABLE, 1 << 16 | split << 6 | log2);
            assert_eq!(to, nested(CONTEXT), "split {split}, {log2} bits");
        }
    }
    // Reserved formats are linear.
    for format in [2, 3] {
        let mut guest = Guest::new();
        guest.ste(8, [STAGE1, ATTRIBUTES]);
        assert_eq!(enabled(&mut guest, TABLE, format << 16 | 8 << 6 | 8), nested(CONTEXT));
    }
}

#[test]
fn a_level1_descriptor_says_how_far_it_reaches() {
    let with = |descriptor: u64| {
        let mut guest = Guest::new();
        guest.ram.set(TABLE, &[descriptor]);
        guest.ram.set(LEVEL2 + 64 * 8, &[STAGE1, ATTRIBUTES]);
        enabled(&mut guest, TABLE, 1 << 16 | 8 << 6 | 16);
        guest.smmu.streams[0].view
    };
    let bad = View::Refused(table::Refused::BadStreamId);
    let good = View::Stage1(Ipa::new(CONTEXT));
    // Span 5 is 16 STEs, 4 only 8; 0, too many for the split, and the reserved ones are none.
    assert_eq!([0, 1, 4, 10, 11, 12, 31].map(|span| with(LEVEL2 | span)), [bad; 7]);
    assert_eq!([5, 6, 9].map(|span| with(LEVEL2 | span)), [good; 3]);
    // The pointer is aligned to the table, and has no bits above 55.
    assert_eq!(with(LEVEL2 | 0x3fc0 | 9 | 0xff << 56 | 1 << 5), good);
    let outside = View::Refused(table::Refused::SteFetch(Ipa::new(0x1000_0000 + 64 * 8)));
    assert_eq!(with(0x1000_0000 | 9), outside);
}

#[test]
fn a_table_outside_ram_is_a_fetch_error() {
    let view = |base: u64, config: u32| {
        let mut guest = Guest::new();
        assert_eq!(enabled(&mut guest, base, config), Configuration::Refuse);
        guest.smmu.streams[0].view
    };
    let fetch = |at: u64| View::Refused(table::Refused::SteFetch(Ipa::new(at)));
    assert_eq!(view(0x0900_0000, 8), fetch(0x0900_0000 + 64 * 8));
    assert_eq!(view(0x0900_0000, 1 << 16 | 8 << 6 | 16), fetch(0x0900_0000));
    // The last STE that is in RAM, and the first that is not.
    assert_eq!(view(RAM + RAM_SIZE, 8), fetch(RAM + RAM_SIZE + 64 * 8));
    assert_eq!(view(u64::MAX, 4), fetch(0x00ff_ffff_ffff_fc00 + 64 * 8));
}

#[test]
fn an_ste_means_what_its_features_allow() {
    let mut guest = Guest::new();
    guest.enable();
    let mut with = |words: [u64; 8]| {
        guest.ram.set(TABLE + 64 * 8, &words);
        let steps = guest.issue(&[cfgi_ste(8, true), SYNC]);
        configured(&steps, 0x110)
    };
    let mut pair = |word0: u64, word1: u64| with([word0, word1, 0, 0, 0, 0, 0, 0]);
    // V=0; Config 0b0xx, 0b100, 0b101, and stage 2, which is not there.
    assert_eq!(pair(STAGE1 & !1, ATTRIBUTES), Configuration::Refuse);
    for config in 0..4 {
        assert_eq!(pair(1 | config << 1, 0), Configuration::Abort);
    }
    assert_eq!(pair(0b1001, 0), Configuration::Stage2);
    assert_eq!(pair(STAGE1, ATTRIBUTES), nested(CONTEXT));
    assert_eq!(pair(CONTEXT | 0b1101, ATTRIBUTES), Configuration::Refuse);
    assert_eq!(pair(CONTEXT | 0b1111, ATTRIBUTES), Configuration::Refuse);
    // S1STALLD is illegal where nothing stalls, unless stage 1 is not used.
    assert_eq!(pair(STAGE1, ATTRIBUTES | 1 << 27), Configuration::Refuse);
    assert_eq!(pair(0b1001, ATTRIBUTES | 1 << 27), Configuration::Stage2);
    // The reserved shareability is non-shareable.
    let Configuration::Nested(config) = pair(STAGE1, 2 << 2 | 3 << 4 | 1 << 6) else { panic!() };
    assert_eq!((config.inner, config.outer, config.shareability), (2, 3, 0));
}

#[test]
fn what_the_guest_has_no_feature_for_reaches_nothing() {
    let mut guest = Guest::new();
    guest.enable();
    // Every bit but those that are looked at: V, Config, S1ContextPtr; S1CIR, S1COR, S1CSH, S1STALLD.
    let mut ignored = Vec::new();
    for bit in 0..512_usize {
        if !matches!(bit, 0..=3 | 6..=55 | 66..=71 | 91) {
            ignored.push(bit);
        }
    }
    for bit in ignored {
        let mut words = [STAGE1, ATTRIBUTES, 0, 0, 0, 0, 0, 0];
        words[bit / 64] ^= 1 << (bit % 64);
        guest.ram.set(TABLE + 64 * 8, &words);
        let steps = guest.issue(&[cfgi_ste(8, true), SYNC]);
        assert_eq!(configured(&steps, 0x110), nested(CONTEXT), "bit {bit}");
    }
}

#[test]
fn entries_are_read_again_when_the_guest_says_so() {
    let mut guest = Guest::new();
    guest.enable();
    let configure = |phys: u32, smmu: u8| Step::Configure(smmu, phys, Configuration::Stage2);
    let (a, b, c) = (configure(0x110, 0), configure(0x318, 0), configure(0x110, 2));
    for sid in [0x08, 0x10, 0x19] {
        guest.ste(sid, [0b1001, 0]);
    }
    let range = |sid: u64, range: u64| [0x04 | sid << 32, range];
    // Leaf or not, the way there is read again.
    assert_eq!(guest.issue(&[cfgi_ste(0x10, true)]), [b]);
    assert_eq!(guest.issue(&[cfgi_ste(0x10, false)]), [b]);
    // 2^(range+1) streams, aligned: 8 and 9; 0 to 15; 16 to 31; 0 to 31.
    assert_eq!(guest.issue(&[range(0x09, 0)]), [a]);
    assert_eq!(guest.issue(&[range(0x0a, 0)]), []);
    assert_eq!(guest.issue(&[range(0x03, 3)]), [a]);
    assert_eq!(guest.issue(&[range(0x1f, 3)]), [b, c]);
    assert_eq!(guest.issue(&[range(0x1f, 4)]), [a, b, c]);
    assert_eq!(guest.issue(&[range(0xffff_ffff, 30)]), []);
    assert_eq!(guest.issue(&[range(0xffff_ffff, 31)]), [a, b, c]);
    assert_eq!(guest.issue(&[CFGI_ALL]), [a, b, c]);
    // Streams that are not the VM's.
    assert_eq!(
        guest.issue(&[cfgi_ste(0x110, true), cfgi_ste(0x318, true), cfgi_ste(0xffff_ffff, true)]),
        []
    );
    assert_eq!(guest.smmu.counters().errors, 0);
}

#[test]
fn an_entry_is_copied_once() {
    let mut guest = Guest::new();
    guest.ram.set(TABLE, &[LEVEL2 | 9]);
    enabled(&mut guest, TABLE, 1 << 16 | 8 << 6 | 16);
    let before = guest.ram.reads.get();
    guest.issue(&[cfgi_ste(8, true)]);
    // The command, the level-1 descriptor, the STE.
    assert_eq!(guest.ram.reads.get() - before, 2 + 1 + 8);
}

#[test]
fn each_level1_descriptor_has_its_own_streamids() {
    // StreamID 0x308 is entry 8 of the fourth table of 256.
    let streams = [StreamMap { virt: StreamId(0x308), smmu: 0, phys: StreamId(0x110) }];
    let mut guest = Guest::with(&streams);
    guest.ram.set(TABLE + 8 * 3, &[LEVEL2 | 9]);
    guest.ram.set(LEVEL2 + 64 * 8, &[STAGE1, ATTRIBUTES]);
    assert_eq!(enabled(&mut guest, TABLE, 1 << 16 | 8 << 6 | 16), nested(CONTEXT));
}
