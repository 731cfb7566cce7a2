//! Where the `smmu` crate's complete formats have their fields, against positions that others wrote down: Linux
//! (`drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.h`, as of 6.12) and FreeBSD (`sys/arm64/iommu/smmureg.h`) by 64-bit
//! word, QEMU's SMMU by what it was seen to do, and what these leave out by Renode's model (renode-infrastructure,
//! `ARM_SMMUv3_Registers.cs`), Marvell's register headers (`ody_smmux_*`) and IHI 0070 G.b: its text, and where that has
//! only a figure, the labels of the figure as two public conversions of it have them (github.com/jpgreninger/smmu,
//! commits 9254d9b and 3c36f9d).

use smmu::addr::{StreamId, Vmid};
use smmu::format::command::{self, Command};
use smmu::format::event::{self, Event};
use smmu::format::register::{self, Register};
use smmu::format::{Address, Field, cd, ste};

/// A field by its name: the word that others put it into, its highest and its lowest bit there.
type Position = (&'static str, usize, usize, usize);

fn check(structure: &str, fields: &[Field], positions: &[Position]) {
    for &(name, word, high, low) in positions {
        let field = fields.iter().find(|field| field.name == name);
        let found = field.map(|field| (field.low / 64, field.high % 64, field.low % 64));
        assert_eq!(found, Some((word, high, low)), "{structure}.{name}");
    }
}

#[test]
fn a_stream_table_entry_is_linuxs() {
    let linux = [
        ("V", 0, 0, 0),
        ("Config", 0, 3, 1),
        ("S1Fmt", 0, 5, 4),
        ("S1CDMax", 0, 63, 59),
        ("S1DSS", 1, 1, 0),
        ("S1CIR", 1, 3, 2),
        ("S1COR", 1, 5, 4),
        ("S1CSH", 1, 7, 6),
        ("MEV", 1, 19, 19),
        ("S2FWB", 1, 25, 25),
        ("S1STALLD", 1, 27, 27),
        ("EATS", 1, 29, 28),
        ("STRW", 1, 31, 30),
        ("SHCFG", 1, 45, 44),
        ("S2VMID", 2, 15, 0),
        ("S2T0SZ", 2, 37, 32),
        ("S2SL0", 2, 39, 38),
        ("S2IR0", 2, 41, 40),
        ("S2OR0", 2, 43, 42),
        ("S2SH0", 2, 45, 44),
        ("S2TG", 2, 47, 46),
        ("S2PS", 2, 50, 48),
        ("S2AA64", 2, 51, 51),
        ("S2ENDI", 2, 52, 52),
        ("S2PTW", 2, 54, 54),
        ("S2S", 2, 57, 57),
        ("S2R", 2, 58, 58),
    ];
    check("STE", ste::Ste::FIELDS, &linux);
    let freebsd = [
        ("S2HWU", 1, 11, 8),
        ("DRE", 1, 12, 12),
        ("CONT", 1, 16, 13),
        ("DCP", 1, 17, 17),
        ("PPAR", 1, 18, 18),
        ("MemAttr", 1, 35, 32),
        ("MTCFG", 1, 36, 36),
        ("ALLOCCFG", 1, 40, 37),
        ("PRIVCFG", 1, 49, 48),
        ("INSTCFG", 1, 51, 50),
        ("S2AFFD", 2, 53, 53),
    ];
    check("STE", ste::Ste::FIELDS, &freebsd);
    // Linux: STRTAB_STE_0_S1CTXPTR_MASK and STRTAB_STE_3_S2TTB_MASK reach bit 51; later revisions bit 55.
    let ste = ste::Ste {
        context: Address(0xf_ffff_ffff_ffc0),
        stage2_table: Address(0xf_ffff_ffff_fff0),
        ..Default::default()
    };
    let words = ste.encode();
    assert_eq!((words[0], words[3]), (0xf_ffff_ffff_ffc0, 0xf_ffff_ffff_fff0));
    // STRTAB_L1_DESC_SPAN and STRTAB_L1_DESC_L2PTR_MASK.
    let level1 = ste::Level1 { span: 9, table: Address(0x4000_0000) };
    assert_eq!(level1.encode(), [0x4000_0009]);
}

#[test]
fn a_context_descriptor_is_linuxs() {
    let linux = [
        ("T0SZ", 0, 5, 0),
        ("TG0", 0, 7, 6),
        ("IR0", 0, 9, 8),
        ("OR0", 0, 11, 10),
        ("SH0", 0, 13, 12),
        ("EPD0", 0, 14, 14),
        ("ENDI", 0, 15, 15),
        ("EPD1", 0, 30, 30),
        ("V", 0, 31, 31),
        ("IPS", 0, 34, 32),
        ("TBI0", 0, 38, 38),
        ("AA64", 0, 41, 41),
        ("HD", 0, 42, 42),
        ("HA", 0, 43, 43),
        ("S", 0, 44, 44),
        ("R", 0, 45, 45),
        ("A", 0, 46, 46),
        ("ASET", 0, 47, 47),
        ("ASID", 0, 63, 48),
        // Linux writes MAIR as word 3.
        ("MAIR", 3, 63, 0),
    ];
    check("CD", cd::Cd::FIELDS, &linux);
    let freebsd = [
        ("T1SZ", 0, 21, 16),
        ("TG1", 0, 23, 22),
        ("IR1", 0, 25, 24),
        ("OR1", 0, 27, 26),
        ("SH1", 0, 29, 28),
        ("AFFD", 0, 35, 35),
        ("WXN", 0, 36, 36),
        ("UWXN", 0, 37, 37),
        ("TBI1", 0, 39, 39),
        ("PAN", 0, 40, 40),
    ];
    check("CD", cd::Cd::FIELDS, &freebsd);
    let cd = cd::Cd { disable1: true, table0: Address(0xf_ffff_ffff_fff0), ..Default::default() };
    // CTXDESC_CD_1_TTB0_MASK.
    assert_eq!(cd.encode(), [1 << 30, 0xf_ffff_ffff_fff0, 0, 0, 0, 0, 0, 0]);
    // CTXDESC_L1_DESC_V and CTXDESC_L1_DESC_L2PTR_MASK.
    let level1 = cd::Level1 { valid: true, table: Address(0x4000_0000) };
    assert_eq!(level1.encode(), [0x4000_0001]);
}

#[test]
fn commands_are_linuxs() {
    // By Linux's CMDQ_OP_* and FreeBSD's CMD_*.
    let numbers = [
        (0x01, "CMD_PREFETCH_CONFIG"),
        (0x02, "CMD_PREFETCH_ADDR"),
        (0x03, "CMD_CFGI_STE"),
        (0x04, "CMD_CFGI_STE_RANGE"),
        (0x05, "CMD_CFGI_CD"),
        (0x06, "CMD_CFGI_CD_ALL"),
        (0x10, "CMD_TLBI_NH_ALL"),
        (0x11, "CMD_TLBI_NH_ASID"),
        (0x12, "CMD_TLBI_NH_VA"),
        (0x13, "CMD_TLBI_NH_VAA"),
        (0x20, "CMD_TLBI_EL2_ALL"),
        (0x21, "CMD_TLBI_EL2_ASID"),
        (0x22, "CMD_TLBI_EL2_VA"),
        (0x23, "CMD_TLBI_EL2_VAA"),
        (0x28, "CMD_TLBI_S12_VMALL"),
        (0x2a, "CMD_TLBI_S2_IPA"),
        (0x30, "CMD_TLBI_NSNH_ALL"),
        (0x40, "CMD_ATC_INV"),
        (0x41, "CMD_PRI_RESP"),
        (0x44, "CMD_RESUME"),
        (0x45, "CMD_STALL_TERM"),
        (0x46, "CMD_SYNC"),
    ];
    for number in numbers {
        assert!(Command::ALL.contains(&number), "{number:?}");
    }
    let prefetch = [
        ("SSV", 0, 11, 11),
        ("SubstreamID", 0, 31, 12),
        ("StreamID", 0, 63, 32),
        ("Size", 1, 4, 0),
    ];
    check("CMD_PREFETCH_ADDR", command::PrefetchAddr::FIELDS, &prefetch);
    check("CMD_CFGI_STE", command::CfgiSte::FIELDS, &[("StreamID", 0, 63, 32), ("Leaf", 1, 0, 0)]);
    check("CMD_CFGI_STE_RANGE", command::CfgiSteRange::FIELDS, &[("Range", 1, 4, 0)]);
    check("CMD_CFGI_CD", command::CfgiCd::FIELDS, &[("SubstreamID", 0, 31, 12), ("Leaf", 1, 0, 0)]);
    let tlbi = [
        ("NUM", 0, 16, 12),
        ("VMID", 0, 47, 32),
        ("ASID", 0, 63, 48),
        ("Leaf", 1, 0, 0),
        ("TTL", 1, 9, 8),
        ("TG", 1, 11, 10),
        ("Address", 1, 63, 12),
    ];
    check("CMD_TLBI_NH_VA", command::TlbiNhVa::FIELDS, &tlbi);
    let atc = [("Global", 0, 9, 9), ("SSV", 0, 11, 11), ("Size", 1, 5, 0), ("Address", 1, 63, 12)];
    check("CMD_ATC_INV", command::AtcInv::FIELDS, &atc);
    check("CMD_PRI_RESP", command::PriResp::FIELDS, &[("PRGIndex", 1, 8, 0)]);
    check("CMD_RESUME", command::Resume::FIELDS, &[("StreamID", 0, 63, 32), ("STAG", 1, 15, 0)]);
    let sync = [
        ("CS", 0, 13, 12),
        ("MSH", 0, 23, 22),
        ("MSIAttr", 0, 27, 24),
        ("MSIData", 0, 63, 32),
        // Linux's CMDQ_SYNC_1_MSIADDR_MASK reaches bit 51, later revisions bit 55.
        ("MSIAddress", 1, 55, 2),
    ];
    check("CMD_SYNC", command::Sync::FIELDS, &sync);
    // CMDQ_RESUME_0_RESP: 0 ends, 1 tries again, 2 aborts.
    let retry = Command::from(command::Resume { retry: true, ..Default::default() });
    let abort = Command::from(command::Resume { abort: true, ..Default::default() });
    assert_eq!((retry.encode(), abort.encode()), ([0x1044, 0], [0x2044, 0]));
}

/// What the driver writes is what the complete format says, and the other way round.
#[test]
fn the_drivers_commands_are_among_them() {
    use smmu::addr::{Iova, Ipa};
    use smmu::cmd::{Command as Ours, Granule, Pages};
    let (sid, vmid, leaf) = (StreamId(0x1234), Vmid(0x5a), true);
    let pages = Pages::Granules { granule: Granule::K16, level: 2, multiple: 9, scale: 17 };
    let range = (8, 17, command::TlbGranule::K16, 2);
    let (number, scale, granule, level) = range;
    let table: [(Ours, Command); 13] = [
        (Ours::CfgiSte { sid, leaf }, command::CfgiSte { stream: sid, leaf }.into()),
        (
            Ours::CfgiSteRange { sid, range: 7 },
            command::CfgiSteRange { stream: sid, range: 7 }.into(),
        ),
        (Ours::CfgiAll, command::CfgiSteRange::ALL.into()),
        (
            Ours::CfgiCd { sid, ssid: 0xabcde, leaf },
            command::CfgiCd { substream: 0xabcde, stream: sid, leaf }.into(),
        ),
        (Ours::CfgiCdAll { sid }, command::CfgiCdAll { stream: sid }.into()),
        (Ours::TlbiNhAll { vmid }, command::TlbiNhAll { vmid }.into()),
        (Ours::TlbiNhAsid { vmid, asid: 9 }, command::TlbiNhAsid { vmid, asid: 9 }.into()),
        (
            Ours::TlbiNhVa {
                vmid,
                asid: 9,
                address: Iova::new(0xffff_8000_1234_8000),
                pages,
                leaf,
            },
            command::TlbiNhVa {
                vmid,
                asid: 9,
                number,
                scale,
                leaf,
                level,
                granule,
                address: Address(0xffff_8000_1234_8000),
                ..Default::default()
            }
            .into(),
        ),
        (
            Ours::TlbiNhVaa { vmid, address: Iova::new(0x1000), pages: Pages::One, leaf },
            command::TlbiNhVaa { vmid, leaf, address: Address(0x1000), ..Default::default() }
                .into(),
        ),
        (Ours::TlbiS12Vmall { vmid }, command::TlbiS12Vmall { vmid }.into()),
        (
            Ours::TlbiS2Ipa {
                vmid,
                address: Ipa::new(0x4000_0000),
                pages: Pages::Range { multiple: 32, scale: 3 },
                leaf: false,
            },
            command::TlbiS2Ipa {
                vmid,
                number: 31,
                scale: 3,
                granule: command::TlbGranule::K4,
                address: Address(0x4000_0000),
                ..Default::default()
            }
            .into(),
        ),
        (Ours::TlbiNsnhAll, command::TlbiNsnhAll {}.into()),
        (Ours::Sync, command::Sync::default().into()),
    ];
    for (ours, complete) in table {
        assert_eq!(ours.encode(), complete.encode(), "{ours:?}");
        assert_eq!(Command::decode(&ours.encode()), Ok(complete));
    }
}

/// An STE that the driver writes says what it should by the complete format.
#[test]
fn the_drivers_entry_is_one_of_them() {
    use smmu::addr::{Ipa, Pa};
    use smmu::format::{AddressSize, Cacheability, Shareability, ShareabilityOverride};
    use smmu::stage2::Format;
    use smmu::ste::{Stage1Config, Stage2Config, Ste};
    let stage2 = Stage2Config {
        vmid: Vmid(0xa5c3),
        root: Pa::new(0xfed_cba9_8000),
        format: Format::new(40, 44, true).unwrap(),
        record: true,
        stall_disable: true,
    };
    let stage1 =
        Stage1Config { context: Ipa::new(0x4567_8ac0), inner: 1, outer: 2, shareability: 3 };
    let complete = ste::Ste {
        valid: true,
        config: ste::Config::Nested,
        context: stage1.context.into(),
        context_inner: Cacheability::WriteBack,
        context_outer: Cacheability::WriteThrough,
        context_shareability: Shareability::Inner,
        merge_events: true,
        stage2_force_write_back: true,
        stage1_stall_disable: true,
        shareability: ShareabilityOverride::Incoming,
        vmid: stage2.vmid,
        stage2_size: 24,
        stage2_start: 1,
        stage2_inner: Cacheability::WriteBack,
        stage2_outer: Cacheability::WriteBack,
        stage2_shareability: Shareability::Inner,
        stage2_output: AddressSize::Bits44,
        stage2_aarch64: true,
        stage2_protected_walk: true,
        stage2_record: true,
        stage2_table: stage2.root.into(),
        ..Default::default()
    };
    let ours = Ste::Nested(stage1, stage2);
    assert_eq!(ste::Ste::decode(&ours.encode()), Ok(complete));
    assert_eq!(Ste::decode(&complete.encode()), Ok(ours));
    let abort = ste::Ste { valid: true, ..Default::default() };
    assert_eq!(Ste::Abort.encode(), abort.encode());
}

#[test]
fn event_records_are_linuxs_and_qemus() {
    let linux = [
        ("SSV", 0, 11, 11),
        ("SubstreamID", 0, 31, 12),
        ("StreamID", 0, 63, 32),
        ("STAG", 1, 15, 0),
        ("Stall", 1, 31, 31),
        ("PnU", 1, 33, 33),
        ("InD", 1, 34, 34),
        ("RnW", 1, 35, 35),
        ("S2", 1, 39, 39),
        ("CLASS", 1, 41, 40),
        ("InputAddr", 2, 63, 0),
    ];
    check("F_TRANSLATION", event::Translation::FIELDS, &linux);
    check("F_PERMISSION", event::Permission::FIELDS, &linux);
    check("F_PERMISSION", event::Permission::FIELDS, &[("TTRnW", 1, 44, 44)]);
    for number in [(0x10, "F_TRANSLATION"), (0x11, "F_ADDR_SIZE"), (0x12, "F_ACCESS")] {
        assert!(Event::ALL.contains(&number));
    }
    // A write that stage 2 refused, as QEMU 10 records it but for the page offset that it leaves in the IPA.
    let record = [0x10_0000_0010, 0x280_0000_0000, 0x1_1238, 0x1_1000];
    let said = event::Translation {
        stream: StreamId(0x10),
        stage2: true,
        class: event::Class::Input,
        input: Address(0x1_1238),
        ipa: Address(0x1_1000),
        ..Default::default()
    };
    assert_eq!(Event::decode(&record), Ok(said.into()));
    // The driver's own decoder sees the same.
    let ours = smmu::event::Event::decode(record);
    assert_eq!(ours.kind.name(), Event::from(said).name());
    assert_eq!(ours.ipa().map(|ipa| ipa.raw()), Some(said.ipa.0));
    for (code, name) in Event::ALL {
        let kind = smmu::event::Event::decode([u64::from(*code), 0, 0, 0]).kind;
        assert_eq!(kind.name(), *name);
    }
}

/// What neither Linux nor QEMU knows, by the figures of IHI 0070 G.b.
#[test]
fn rare_operands_are_where_the_figures_have_them() {
    // Section 4.6.2: Address[55:12] in bits 119 to 76, SIZE in 75 to 72, Leaf in 64.
    let invalidation = command::DptiPa {
        leaf: true,
        size: command::PermissionSize::G512,
        address: Address(0x80_1234_5678_9000),
    };
    let words = [0x73, 0x80_1234_5678_9901];
    assert_eq!(Command::from(invalidation).encode(), words);
    assert_eq!(Command::decode(&words), Ok(invalidation.into()));
    // Section 4.4.3.1: Address[55:12] as well, but not in commands of stage 1.
    check("CMD_TLBI_S2_IPA", command::TlbiS2Ipa::FIELDS, &[("Address", 1, 55, 12)]);
    check("CMD_TLBI_EL2_VAA", command::TlbiEl2Vaa::FIELDS, &[("Address", 1, 63, 12)]);

    // Section 7.3.6: R, W, X and P in bits 95 to 92, Span in 67 to 64, InputAddr[63:12] in 191 to 140.
    let request = event::BadAtsRequest {
        has_substream: true,
        substream: 0xabcde,
        stream: StreamId(0x1234),
        span: 9,
        privileged: true,
        execute: false,
        write: true,
        read: false,
        input: Address(0xffff_8000_1234_5000),
    };
    let words = [0x1234_abcd_e805, 0x5000_0009, 0xffff_8000_1234_5000, 0];
    assert_eq!(Event::from(request).encode(), words);
    assert_eq!(Event::decode(&words), Ok(request.into()));
    check("F_BAD_ATS_TREQ", event::BadAtsRequest::FIELDS, &[("R", 1, 31, 31), ("X", 1, 29, 29)]);

    // Section 7.3.16. Bits too narrow for their labels have them beside the figure: of a group the left half from left
    // to right, then the rest from right to left, as in the figures of SMMU_IDR0, SMMU_GERROR, SMMU_IRQ_CTRL and the
    // STE, whose places are known. Here: Overlay, TTRnW (Linux's), NSIPA (102), DirtyBit, AssuredOnly of bits 109 to
    // 106 and 102.
    let flags = [
        ("Overlay", 1, 45, 45),
        ("AssuredOnly", 1, 43, 43),
        ("DirtyBit", 1, 42, 42),
        ("IMPL_DEF", 1, 63, 48),
    ];
    check("F_PERMISSION", event::Permission::FIELDS, &flags);
    check("F_ACCESS", event::Access::FIELDS, &flags[3..]);
    // Sections 7.3.17 and 7.3.18, but 7.3.2 and 7.3.4.
    check("F_TLB_CONFLICT", event::TlbConflict::FIELDS, &[("Reason", 1, 31, 0)]);
    check("F_CFG_CONFLICT", event::ConfigConflict::FIELDS, &[("Reason", 1, 31, 0)]);
    check("F_UUT", event::UnsupportedTransaction::FIELDS, &[("Reason", 1, 15, 0)]);
    let fetch = [("Reason", 1, 15, 0), ("GPCF", 1, 16, 16), ("FetchAddr", 3, 55, 3)];
    check("F_STE_FETCH", event::SteFetch::FIELDS, &fetch);
    check("F_WALK_EABT", event::WalkAbort::FIELDS, &fetch);
    // Section 7.3.19: pR, pW and pX in bits 103 to 101, uR, uW and uX in 99 to 97.
    let pages = [
        ("pR, pW, pX", 1, 39, 37),
        ("uR, uW, uX", 1, 35, 33),
        ("Span", 1, 51, 44),
        ("InputAddr", 2, 63, 12),
    ];
    check("E_PAGE_REQUEST", event::PageRequest::FIELDS, &pages);
}

#[test]
fn registers_are_linuxs() {
    // ARM_SMMU_*, and FreeBSD's offsets of page 1.
    let offsets = [
        ("IDR0", 0x0),
        ("IDR1", 0x4),
        ("IDR3", 0xc),
        ("IDR5", 0x14),
        ("IIDR", 0x18),
        ("AIDR", 0x1c),
        ("CR0", 0x20),
        ("CR0ACK", 0x24),
        ("CR1", 0x28),
        ("CR2", 0x2c),
        ("STATUSR", 0x40),
        ("GBPA", 0x44),
        ("IRQ_CTRL", 0x50),
        ("IRQ_CTRLACK", 0x54),
        ("GERROR", 0x60),
        ("GERRORN", 0x64),
        ("GERROR_IRQ_CFG0", 0x68),
        ("GERROR_IRQ_CFG1", 0x70),
        ("GERROR_IRQ_CFG2", 0x74),
        ("STRTAB_BASE", 0x80),
        ("STRTAB_BASE_CFG", 0x88),
        ("CMDQ_BASE", 0x90),
        ("CMDQ_PROD", 0x98),
        ("CMDQ_CONS", 0x9c),
        ("EVENTQ_BASE", 0xa0),
        ("EVENTQ_IRQ_CFG0", 0xb0),
        ("EVENTQ_IRQ_CFG1", 0xb8),
        ("EVENTQ_IRQ_CFG2", 0xbc),
        ("PRIQ_BASE", 0xc0),
        ("PRIQ_IRQ_CFG0", 0xd0),
        ("PRIQ_IRQ_CFG1", 0xd8),
        ("PRIQ_IRQ_CFG2", 0xdc),
        ("GATOS_CTRL", 0x100),
        ("GATOS_SID", 0x108),
        ("GATOS_ADDR", 0x110),
        ("GATOS_PAR", 0x118),
        ("EVENTQ_PROD", 0x1_00a8),
        ("EVENTQ_CONS", 0x1_00ac),
        ("PRIQ_PROD", 0x1_00c8),
        ("PRIQ_CONS", 0x1_00cc),
    ];
    for (name, offset) in offsets {
        let found = register::ALL.iter().find(|it| it.name == name);
        let found = found.map(|it| (it.base, it.offset));
        assert_eq!(found, Some((register::Base::Smmu, offset)), "{name}");
    }
    let idr0 = [
        ("S2P", 0, 0, 0),
        ("S1P", 0, 1, 1),
        ("TTF", 0, 3, 2),
        ("COHACC", 0, 4, 4),
        ("BTM", 0, 5, 5),
        ("HTTU", 0, 7, 6),
        ("DORMHINT", 0, 8, 8),
        ("Hyp", 0, 9, 9),
        ("ATS", 0, 10, 10),
        ("NS1ATS", 0, 11, 11),
        ("ASID16", 0, 12, 12),
        ("MSI", 0, 13, 13),
        ("SEV", 0, 14, 14),
        ("ATOS", 0, 15, 15),
        ("PRI", 0, 16, 16),
        ("VMW", 0, 17, 17),
        ("VMID16", 0, 18, 18),
        ("CD2L", 0, 19, 19),
        ("VATOS", 0, 20, 20),
        ("TTENDIAN", 0, 22, 21),
        ("STALL_MODEL", 0, 25, 24),
        ("TERM_MODEL", 0, 26, 26),
        ("ST_LEVEL", 0, 28, 27),
    ];
    check("IDR0", register::Idr0::FIELDS, &idr0);
    let idr1 = [
        ("SIDSIZE", 0, 5, 0),
        ("SSIDSIZE", 0, 10, 6),
        ("PRIQS", 0, 15, 11),
        ("EVENTQS", 0, 20, 16),
        ("CMDQS", 0, 25, 21),
        ("ATTR_PERMS_OVR", 0, 26, 26),
        ("ATTR_TYPES_OVR", 0, 27, 27),
        ("REL", 0, 28, 28),
        ("QUEUES_PRESET", 0, 29, 29),
        ("TABLES_PRESET", 0, 30, 30),
    ];
    check("IDR1", register::Idr1::FIELDS, &idr1);
    check("IDR3", register::Idr3::FIELDS, &[("FWB", 0, 8, 8), ("RIL", 0, 10, 10)]);
    let idr5 = [
        ("OAS", 0, 2, 0),
        ("GRAN4K", 0, 4, 4),
        ("GRAN16K", 0, 5, 5),
        ("GRAN64K", 0, 6, 6),
        ("VAX", 0, 11, 10),
        ("STALL_MAX", 0, 31, 16),
    ];
    check("IDR5", register::Idr5::FIELDS, &idr5);
    let cr0 = [("ATSCHK", 0, 4, 4), ("CMDQEN", 0, 3, 3), ("EVENTQEN", 0, 2, 2), ("VMW", 0, 8, 6)];
    check("CR0", register::Cr0::FIELDS, &cr0);
    check("CR0ACK", register::Cr0Ack::FIELDS, &cr0);
    let cr1 = [("TABLE_SH", 0, 11, 10), ("TABLE_OC", 0, 9, 8), ("QUEUE_SH", 0, 5, 4)];
    check("CR1", register::Cr1::FIELDS, &cr1);
    check("CR2", register::Cr2::FIELDS, &[("PTM", 0, 2, 2), ("RECINVSID", 0, 1, 1)]);
    check("GBPA", register::Gbpa::FIELDS, &[("Update", 0, 31, 31), ("ABORT", 0, 20, 20)]);
    let gerror = [("SFM_ERR", 0, 8, 8), ("MSI_CMDQ_ABT_ERR", 0, 4, 4), ("CMDQ_ERR", 0, 0, 0)];
    check("GERROR", register::Gerror::FIELDS, &gerror);
    let table = [("FMT", 0, 17, 16), ("SPLIT", 0, 10, 6), ("LOG2SIZE", 0, 5, 0)];
    check("STRTAB_BASE_CFG", register::StrtabBaseCfg::FIELDS, &table);
    check("CMDQ_BASE", register::CmdqBase::FIELDS, &[("RA", 0, 62, 62), ("LOG2SIZE", 0, 4, 0)]);
    check("CMDQ_CONS", register::CmdqCons::FIELDS, &[("ERR", 0, 30, 24)]);
    check("EVENTQ_PROD", register::EventqProd::FIELDS, &[("OVFLG", 0, 31, 31)]);
}

/// What Linux has no use for: by Renode's model and Marvell's headers, and by the text of IHI 0070 G.b what neither has.
#[test]
fn registers_of_rare_features_are_renodes_and_marvells() {
    use register::Base::{CommandQueue, Smmu, Vatos};
    // Section 6.2's tables agree with both.
    let offsets = [
        ("IDR2", Smmu, 0x08, 32),
        ("IDR4", Smmu, 0x10, 32),
        ("S2PII", Smmu, 0x30, 64),
        ("AGBPA", Smmu, 0x48, 32),
        ("GATOS_PAR", Smmu, 0x118, 64),
        ("MPAMIDR", Smmu, 0x130, 32),
        ("GMPAM", Smmu, 0x138, 32),
        ("GBPMPAM", Smmu, 0x13c, 32),
        ("VATOS_SEL", Smmu, 0x180, 32),
        ("IDR6", Smmu, 0x190, 32),
        ("DPT_BASE", Smmu, 0x200, 64),
        ("DPT_BASE_CFG", Smmu, 0x208, 32),
        ("DPT_CFG_FAR", Smmu, 0x210, 64),
        ("CMDQ_CONTROL_PAGE_BASE", Smmu, 0x4000, 64),
        ("CMDQ_CONTROL_PAGE_CFG", Smmu, 0x4008, 32),
        ("CMDQ_CONTROL_PAGE_STATUS", Smmu, 0x400c, 32),
        ("VATOS_CTRL", Vatos, 0xa00, 32),
        ("VATOS_SID", Vatos, 0xa08, 64),
        ("VATOS_ADDR", Vatos, 0xa10, 64),
        ("VATOS_PAR", Vatos, 0xa18, 64),
        ("ECMDQ_BASE", CommandQueue, 0x0, 64),
        ("ECMDQ_PROD", CommandQueue, 0x8, 32),
        ("ECMDQ_CONS", CommandQueue, 0xc, 32),
    ];
    for (name, base, offset, width) in offsets {
        let found = register::ALL.iter().find(|it| it.name == name);
        let found = found.map(|it| (it.base, it.offset, it.width));
        assert_eq!(found, Some((base, offset, width)), "{name}");
    }
    // Renode.
    let partition = [("GBP_PARTID", 0, 15, 0), ("GBP_PMG", 0, 23, 16), ("Update", 0, 31, 31)];
    check("GBPMPAM", register::Gbpmpam::FIELDS, &partition);
    let partition = [("SO_PARTID", 0, 15, 0), ("SO_PMG", 0, 23, 16), ("Update", 0, 31, 31)];
    check("GMPAM", register::Gmpam::FIELDS, &partition);
    let partition = [("PARTID_MAX", 0, 15, 0), ("PMG_MAX", 0, 23, 16)];
    check("MPAMIDR", register::Mpamidr::FIELDS, &partition);
    check("VATOS_SEL", register::VatosSel::FIELDS, &[("VMID", 0, 15, 0)]);
    check("GATOS_CTRL", register::GatosCtrl::FIELDS, &[("RUN", 0, 0, 0)]);
    check("VATOS_CTRL", register::VatosCtrl::FIELDS, &[("RUN", 0, 0, 0)]);
    let whose = [("STREAMID", 0, 31, 0), ("SUBSTREAMID", 0, 51, 32), ("SSID_VALID", 0, 52, 52)];
    check("GATOS_SID", register::GatosSid::FIELDS, &whose);
    check("VATOS_SID", register::VatosSid::FIELDS, &whose);
    let what = [
        ("HTTUI", 0, 6, 6),
        ("InD", 0, 7, 7),
        ("RnW", 0, 8, 8),
        ("PnU", 0, 9, 9),
        ("TYPE", 0, 11, 10),
        ("ADDR", 0, 63, 12),
    ];
    check("GATOS_ADDR", register::GatosAddr::FIELDS, &what);
    check("VATOS_ADDR", register::VatosAddr::FIELDS, &what);
    let result = [
        ("FAULT", 0, 0, 0),
        ("SH", 0, 9, 8),
        ("Size", 0, 11, 11),
        ("ADDR", 0, 55, 12),
        ("ATTR", 0, 63, 56),
    ];
    check("GATOS_PAR", register::GatosPar::FIELDS, &result);
    // IHI 0070, sections 6.3.40 and 6.3.102: VATOS_PAR's success is alike, and so are the faults.
    check("VATOS_PAR", register::VatosPar::FIELDS, &result);
    let fault = [
        ("FAULT", 0, 0, 0),
        ("REASON", 0, 2, 1),
        ("FAULTCODE", 0, 11, 4),
        ("IMPLEMENTATION DEFINED", 0, 63, 60),
    ];
    check("VATOS_PAR", register::VatosParFault::FIELDS, &fault);
    check("GATOS_PAR", register::GatosParFault::FIELDS, &fault);
    check("GATOS_PAR", register::GatosParFault::FIELDS, &[("FADDR", 0, 55, 12)]);
    // Renode.
    check("DPT_BASE", register::DptBase::FIELDS, &[("BADDR", 0, 55, 12), ("RA", 0, 62, 62)]);
    let shape = [("DPTPS", 0, 2, 0), ("DPTGS", 0, 15, 14), ("L0DPTSZ", 0, 23, 20)];
    check("DPT_BASE_CFG", register::DptBaseCfg::FIELDS, &shape);
    let fault =
        [("FAULT", 0, 0, 0), ("LEVEL", 0, 1, 1), ("DPT_FAULTCODE", 0, 7, 4), ("FADDR", 0, 55, 12)];
    check("DPT_CFG_FAR", register::DptCfgFar::FIELDS, &fault);
    // Marvell; its addresses reach bit 51, later revisions bit 55.
    let queues =
        [("CMDQ_CONTROL_PAGE_LOG2NUMQ", 0, 19, 16), ("CMDQ_CONTROL_PAGE_LOG2NUMP", 0, 27, 24)];
    check("IDR6", register::Idr6::FIELDS, &queues);
    let page = [("CMDQ_CONTROL_PAGE_PRESET", 0, 0, 0), ("CMDQGS", 0, 2, 1), ("ADDR", 0, 55, 16)];
    check("CMDQ_CONTROL_PAGE_BASE", register::CmdqControlPageBase::FIELDS, &page);
    check("CMDQ_CONTROL_PAGE_CFG", register::CmdqControlPageCfg::FIELDS, &[("EN", 0, 0, 0)]);
    let status = register::CmdqControlPageStatus::FIELDS;
    check("CMDQ_CONTROL_PAGE_STATUS", status, &[("ENACK", 0, 0, 0)]);
    let base = [("LOG2SIZE", 0, 4, 0), ("ADDR", 0, 55, 5), ("RA", 0, 62, 62)];
    check("ECMDQ_BASE", register::EcmdqBase::FIELDS, &base);
    let prod = [("WR", 0, 19, 0), ("ERRACK", 0, 23, 23), ("EN", 0, 31, 31)];
    check("ECMDQ_PROD", register::EcmdqProd::FIELDS, &prod);
    let cons =
        [("RD", 0, 19, 0), ("ERR", 0, 23, 23), ("ERR_REASON", 0, 26, 24), ("ENACK", 0, 31, 31)];
    check("ECMDQ_CONS", register::EcmdqCons::FIELDS, &cons);
    // Renode: the commands' numbers.
    for number in [(0x70, "CMD_DPTI_ALL"), (0x73, "CMD_DPTI_PA")] {
        assert!(Command::ALL.contains(&number), "{number:?}");
    }
}

/// The ID registers of QEMU 10 with stage=nested, as measured, say what QEMU does.
#[test]
fn qemus_identification_is_understood() {
    let profile = crate::profile::Profile::NESTED;
    let idr0 = register::Idr0::from_raw(profile.idr0.into()).unwrap();
    assert!(idr0.s1p && idr0.s2p && idr0.cohacc && idr0.asid16 && idr0.vmid16 && !idr0.ats);
    assert_eq!(idr0.ttf, register::TableFormats::Aarch64);
    assert_eq!(idr0.stall_model, register::StallModel::Terminate);
    assert_eq!(idr0.st_level, register::TableLevels::TwoLevel);
    assert_eq!(idr0.to_raw(), profile.idr0.into());
    let idr1 = register::Idr1::from_raw(profile.idr1.into()).unwrap();
    assert_eq!((idr1.sidsize, idr1.cmdqs, idr1.eventqs), (16, 19, 19));
    let idr3 = register::Idr3::from_raw(profile.idr3.into()).unwrap();
    assert!(idr3.ril && idr3.had && idr3.bbml == register::BreakBeforeMake::Level2);
    let idr5 = register::Idr5::from_raw(profile.idr5.into()).unwrap();
    assert!(idr5.gran4k && idr5.gran16k && idr5.gran64k);
    assert_eq!(idr5.oas, smmu::format::AddressSize::Bits44);
}
