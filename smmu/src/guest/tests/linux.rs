//! What Linux's arm-smmu-v3 does, in its order.

use super::*;

/// Resets the device as `arm_smmu_device_reset` does, with a two-level table. Returns what reached the physical
/// side of the invalidations that come before the enable.
fn reset(guest: &mut Guest) -> Vec<Step> {
    if guest.read(CR0) & SMMUEN != 0 {
        assert_eq!(guest.read(GBPA) >> 31, 0);
        guest.set(GBPA, guest.read(GBPA) | 1 << 20 | 1 << 31);
        assert_eq!(guest.read(GBPA) >> 31, 0);
    }
    match guest.write(CR0, 0) {
        Work::Done => {}
        Work::Disable { taken_over } => {
            assert!(taken_over);
            assert_eq!(guest.disabled(), Work::Done);
        }
        Work::More => panic!(),
    }
    let enable = |guest: &mut Guest, value: u32| {
        guest.set(CR0, value);
        assert_eq!(guest.read(CR0ACK), value);
    };
    assert_eq!(guest.read(CR0ACK), 0);
    guest.set(CR1, 0xd75);
    // PTM and RECINVSID.
    guest.set(CR2, 0b110);
    guest.set64(STRTAB_BASE, TABLE | 1 << 62);
    // FMT=1, SPLIT=8, LOG2SIZE=16.
    guest.set(STRTAB_BASE_CFG, 1 << 16 | 8 << 6 | 16);
    guest.set64(CMDQ_BASE, COMMANDS | 1 << 62 | 8);
    guest.set(CMDQ_PROD, 0);
    guest.set(CMDQ_CONS, 0);
    enable(guest, CMDQEN);
    guest.take();
    for command in [CFGI_ALL, TLBI_NSNH_ALL] {
        let prod = guest.queue(&[command, SYNC]);
        guest.set(CMDQ_PROD, prod);
        assert_eq!(guest.read(CMDQ_CONS), prod);
    }
    let initial = guest.wires();
    guest.set64(EVENTQ_BASE, EVENTS | 1 << 62 | 8);
    guest.set(EVENTQ_PROD, 0);
    guest.set(EVENTQ_CONS, 0);
    enable(guest, CMDQEN | EVENTQEN);
    guest.set(IRQ_CTRL, 0);
    assert_eq!(guest.read(IRQ_CTRLACK), 0);
    // GERROR_IRQ_CFG0, EVENTQ_IRQ_CFG0.
    guest.set64(0x68, 0);
    guest.set64(0xb0, 0);
    guest.set(IRQ_CTRL, 0b101);
    assert_eq!(guest.read(IRQ_CTRLACK), 0b101);
    enable(guest, CMDQEN | EVENTQEN | SMMUEN);
    initial
}

/// Allocates the level-2 table that holds every function of bus 0, without a command.
fn probe(guest: &Guest) {
    for index in 0..256 {
        guest.ram.set(LEVEL2 + 64 * index, &[1]);
    }
    guest.ram.set(TABLE, &[LEVEL2 | 9]);
}

fn write_ste(guest: &mut Guest, sid: u64, words: [u64; 2]) -> Vec<Step> {
    guest.ram.set(LEVEL2 + 64 * sid, &words);
    guest.issue(&[cfgi_ste(sid, true), SYNC])
}

#[test]
fn it_probes() {
    let guest = Guest::new();
    let (idr0, idr1, idr5) = (guest.read(IDR0), guest.read(IDR1), guest.read(IDR5));
    // Each of these is a reason to fail with -ENXIO, or would change what the driver does.
    assert_eq!(idr0 & 0b11, 0b10);
    assert_eq!(idr0 >> 2 & 0b10, 0b10);
    assert!(matches!(idr0 >> 21 & 0b11, 0 | 2));
    assert!(idr1 >> 21 & 0x1f > 6);
    assert_eq!(idr1 >> 28 & 0b111, 0);
    assert_eq!(idr5 >> 16, 0);
    assert_ne!(idr5 & 0b1_0000, 0);
}

#[test]
fn it_resets_attaches_and_detaches() {
    let mut guest = Guest::new();
    // Nothing is enabled, so there is nothing to configure; but what is cached goes, on both SMMUs.
    let all = Command::TlbiNhAll { vmid: VMID };
    let expected = [Step::Relay(0, all), Step::Relay(2, all), Step::Sync(0), Step::Sync(2)];
    assert_eq!(reset(&mut guest), expected);
    // The rise asks for each stream's STE; there is no level-2 table yet.
    let refused = STREAMS.map(|map| Step::Configure(map.smmu, map.phys.0, Configuration::Refuse));
    let mut expected = refused.to_vec();
    expected.extend([Step::Sync(0), Step::Sync(2)]);
    assert_eq!(guest.wires(), expected);
    probe(&guest);
    // The default domain: PREFETCH_CFG after CFGI_STE.
    guest.ram.set(LEVEL2 + 64 * 8, &[STAGE1, ATTRIBUTES]);
    let steps = guest.issue(&[cfgi_ste(8, true), SYNC, [0x01 | 8 << 32, 0]]);
    assert_eq!(steps, [Step::Configure(0, 0x110, nested(CONTEXT)), Step::Sync(0)]);
    assert_eq!(guest.read(CMDQ_CONS), guest.read(CMDQ_PROD));
    // iommu.passthrough=1, with SHCFG as older kernels have it.
    let steps = write_ste(&mut guest, 0x10, [0b1001, 1 << 44]);
    assert_eq!(steps, [Step::Configure(0, 0x318, Configuration::Stage2), Step::Sync(0)]);
    // Detach: V=0, then abort.
    let steps = write_ste(&mut guest, 8, [0, 0]);
    assert_eq!(steps, [Step::Configure(0, 0x110, Configuration::Refuse), Step::Sync(0)]);
    let steps = write_ste(&mut guest, 8, [1, 0]);
    assert_eq!(steps, [Step::Configure(0, 0x110, Configuration::Abort), Step::Sync(0)]);
    assert_eq!(guest.smmu.counters().errors, 0);
    assert_eq!(guest.smmu.counters().unknown, 0);
}

#[test]
fn memory_that_firmware_uses_stays_reachable() {
    let mut guest = Guest::new();
    // RMR: a bypass STE from before the enable, which no command ever names.
    probe(&guest);
    guest.ram.set(LEVEL2 + 64 * 0x19, &[0b1001]);
    reset(&mut guest);
    assert!(guest.wires().contains(&Step::Configure(2, 0x110, Configuration::Stage2)));
}

#[test]
fn a_strict_unmap_is_one_write_and_one_sync() {
    let mut guest = Guest::with(&STREAMS[..1]);
    probe(&guest);
    guest.ram.set(LEVEL2 + 64 * 8, &[STAGE1, ATTRIBUTES]);
    reset(&mut guest);
    // One page with RIL: NUM=0, SCALE=0, TTL=3, TG=1, leaf.
    let unmap = [0x12 | 5 << 48, 0xffff_8000_1234_5000 | 1 << 10 | 3 << 8 | 1];
    let before = guest.smmu.counters().batches;
    let steps = guest.issue(&[unmap, SYNC]);
    let pages = Pages::Granules { granule: Granule::K4, level: 3, multiple: 1, scale: 0 };
    let command = Command::TlbiNhVa {
        vmid: VMID,
        asid: 5,
        address: Iova::new(0xffff_8000_1234_5000),
        pages,
        leaf: true,
    };
    assert_eq!(steps, [Step::Relay(0, command), Step::Sync(0)]);
    assert_eq!(guest.smmu.counters().batches, before + 1);
    assert_eq!(guest.read(CMDQ_CONS), guest.read(CMDQ_PROD));
}

#[test]
fn the_event_queue_may_go_as_the_smmu_comes() {
    // A kdump kernel clears EVENTQEN in the write that sets SMMUEN.
    let mut guest = Guest::new();
    guest.enable_queues();
    guest.set(CR0, CMDQEN | SMMUEN);
    assert_eq!(guest.read(CR0ACK), CMDQEN | SMMUEN);
}

#[test]
fn shutdown_is_a_disable_with_the_queues_still_enabled() {
    let mut guest = Guest::new();
    reset(&mut guest);
    assert_eq!(guest.write(CR0, 0), Work::Disable { taken_over: false });
    assert_eq!(guest.disabled(), Work::Done);
    assert_eq!(guest.read(CR0ACK), 0);
    // What another kernel would read to adopt it.
    assert_eq!(guest.read64(STRTAB_BASE), TABLE | 1 << 62);
    assert_eq!(guest.read(STRTAB_BASE_CFG), 1 << 16 | 8 << 6 | 16);
    reset(&mut guest);
}

#[test]
fn a_crash_kernel_takes_over() {
    let mut guest = Guest::new();
    probe(&guest);
    guest.ram.set(LEVEL2 + 64 * 8, &[STAGE1, ATTRIBUTES]);
    reset(&mut guest);
    guest.take();
    reset(&mut guest);
    assert!(guest.wires().contains(&Step::Configure(0, 0x110, nested(CONTEXT))));
}

#[test]
fn an_illegal_command_is_skipped_as_linux_does() {
    let mut guest = Guest::new();
    reset(&mut guest);
    let prod = guest.queue(&[TLBI_NSNH_ALL, [0xff, 0], TLBI_NSNH_ALL, SYNC]);
    let first = guest.read(CMDQ_CONS);
    guest.take();
    guest.set(CMDQ_PROD, prod);
    // The error code is visible before the error is (section 7.1).
    let steps: Vec<Step> = guest.take();
    let cons = Step::Register(CMDQ_CONS, 1 << 24 | (first + 1));
    assert_eq!(steps[steps.len() - 2..], [cons, Step::Register(GERROR, 1)]);
    assert_eq!(guest.interrupts(), (false, true, false));
    // arm_smmu_gerror_handler, __arm_smmu_cmdq_skip_err: overwrite the entry with a CMD_SYNC, acknowledge.
    let active = guest.read(GERROR) ^ guest.read(GERRORN);
    assert_eq!(active & 0x1fd, 1);
    let index = guest.read(CMDQ_CONS) & 0x1ff;
    assert_eq!(guest.read(CMDQ_CONS) >> 24, 1);
    guest.ram.set(COMMANDS + 16 * u64::from(index & 0xff), &SYNC);
    guest.set(GERRORN, guest.read(GERROR));
    assert_eq!(guest.read(CMDQ_CONS) & 0x1ff, prod);
    let all = Command::TlbiNhAll { vmid: VMID };
    let steps = guest.wires();
    assert_eq!(steps.iter().filter(|step| **step == Step::Relay(0, all)).count(), 1);
    // The next error toggles the other way.
    let prod = guest.queue(&[[0x00, 0]]);
    guest.set(CMDQ_PROD, prod);
    assert_eq!((guest.read(GERROR), guest.interrupts()), (0, (false, true, false)));
}
