use super::*;
use crate::guest::table::Refused;

const F_TRANSLATION: u64 = 0x10;
const PHYS: u32 = 0x110;
/// RnW, S2 and CLASS of a physical record.
const READ: u64 = 1 << 35;
const S2: u64 = 1 << 39;
const TT: u64 = 1 << 40;
const IN: u64 = 2 << 40;

fn event(code: u64, sid: u32, flags: u64, input: u64, address: u64) -> Event {
    Event::decode([code | u64::from(sid) << 32, flags, input, address])
}

/// A guest whose stream 8 has a stage 1, and 0x10 bypasses it.
fn guest() -> Guest {
    let mut guest = Guest::new();
    guest.enable();
    guest.ste(8, [STAGE1, ATTRIBUTES]);
    guest.ste(0x10, [0b1001, 0]);
    guest.issue(&[cfgi_ste(8, true), cfgi_ste(0x10, true), SYNC]);
    guest
}

fn record(guest: &Guest, index: u64) -> [u64; 4] {
    core::array::from_fn(|word| guest.ram.get(EVENTS + 32 * index + 8 * word as u64))
}

/// What the guest gets for one event.
fn told(event: &Event) -> Option<[u64; 4]> {
    let mut guest = guest();
    match guest.forward(0, event) {
        Forwarded::Recorded => Some(record(&guest, 0)),
        Forwarded::Ours => None,
        Forwarded::Lost => panic!("there is room"),
    }
}

#[test]
fn a_stage1_fault_is_the_guests() {
    // With STALL, STAG, NSIPA and an IPA that means nothing: none of it gets through.
    let noise = 1 << 31 | 0xffff | 1 << 38;
    for code in 0x10..=0x13 {
        let physical = event(code, PHYS, READ | IN | noise, 0x1234_5678, 0xdead_beef);
        assert_eq!(told(&physical), Some([code | 8 << 32, READ | IN, 0x1234_5678, 0]));
        let write = event(code, PHYS, IN, 0x1234_5678, 0);
        assert_eq!(told(&write), Some([code | 8 << 32, IN, 0x1234_5678, 0]));
    }
    // Privileged instruction fetch of a substream.
    let physical = event(F_TRANSLATION | 1 << 11 | 0xabcde << 12, PHYS, READ | IN | 3 << 33, 1, 0);
    let expected = [F_TRANSLATION | 1 << 11 | 0xabcde << 12 | 8 << 32, READ | IN | 3 << 33, 1, 0];
    assert_eq!(told(&physical), Some(expected));
}

#[test]
fn a_stage2_fault_of_the_transaction_is_not() {
    for code in 0x10..=0x13 {
        assert_eq!(told(&event(code, PHYS, S2 | IN, 0x1000, 0x2000)), None);
        assert_eq!(told(&event(code, PHYS, S2 | 3 << 40, 0x1000, 0x2000)), None);
    }
    // Nor is anything of a stream that bypasses stage 1.
    assert_eq!(told(&event(F_TRANSLATION, 0x318, S2 | IN, 0x1000, 0x1000)), None);
    assert_eq!(told(&event(0x11, 0x318, IN, 1 << 45, 0)), None);
}

#[test]
fn an_address_beyond_the_guests_is_what_its_stage1_would_have_refused() {
    const F_ADDR_SIZE: u64 = 0x11;
    // The largest address that a guest with an OAS of 40 bits has, and the next one, on an SMMU with more.
    let last = event(F_TRANSLATION, PHYS, S2 | READ | IN, 0x1000, (1 << 40) - 0x1000);
    assert_eq!(told(&last), None);
    for (ipa, flags) in [(1_u64 << 40, READ), (1 << 43, 0)] {
        let physical = event(F_TRANSLATION, PHYS, S2 | flags | IN, 0x1000, ipa);
        assert_eq!(told(&physical), Some([F_ADDR_SIZE | 8 << 32, flags | IN, 0x1000, 0]));
    }
}

#[test]
fn a_missing_cd_or_table_is_an_abort_of_its_fetch() {
    // F_CD_FETCH with the CD's own address.
    let cd = event(F_TRANSLATION, PHYS, S2 | READ, 0x1000, CONTEXT | 0xfff);
    assert_eq!(told(&cd), Some([0x09 | 8 << 32, 0, 0, CONTEXT]));
    // F_WALK_EABT with the page of the descriptor, as stage 2 reports it and as QEMU does.
    let expected = Some([0x0b | 8 << 32, READ | TT, 0x1000, 0x4567_8000]);
    assert_eq!(told(&event(F_TRANSLATION, PHYS, S2 | READ | TT, 0x1000, 0x4567_8abc)), expected);
    assert_eq!(told(&event(F_TRANSLATION, PHYS, READ | TT, 0x1000, 0x4567_8abc)), expected);
    let write = event(0x13, PHYS, S2 | TT, 0x1000, 0x4567_8abc);
    assert_eq!(told(&write), Some([0x0b | 8 << 32, TT, 0x1000, 0x4567_8000]));
}

#[test]
fn no_physical_address_gets_through() {
    const SECRET: u64 = 0x1_2345_6000;
    // F_UUT, F_STE_FETCH, ..., F_VMS_FETCH: whatever the record, with every flag.
    for code in 0..=0xff {
        for flags in [0, TT, IN, S2, S2 | TT, READ, !0] {
            if matches!(code, 0x10..=0x13) {
                // Their last word is an IPA.
                continue;
            }
            let physical = event(code, PHYS, flags, 0x1000, SECRET);
            if let Some(words) = told(&physical) {
                assert_eq!((words[0] >> 32, words[0] as u32 >> 8), (8, 0));
                assert_ne!(words[3], SECRET);
                assert_eq!(words[1] & !(7 << 33 | 3 << 40), 0);
            }
        }
    }
}

#[test]
fn each_kind_goes_where_it_belongs() {
    let of = |code: u64| told(&event(code, PHYS, READ | TT, 0x1000, 0x5000));
    let ids = |code: u64| Some([code | 8 << 32, 0, 0, 0]);
    assert_eq!(of(0x01), Some([0x01 | 8 << 32, READ, 0x1000, 0]));
    assert_eq!(of(0x0b), Some([0x0b | 8 << 32, READ | TT, 0x1000, 0]));
    assert_eq!(of(0x20), Some([0x20 | 8 << 32, READ, 0x1000, 0]));
    assert_eq!(of(0x09), Some([0x09 | 8 << 32, 0, 0, CONTEXT]));
    for code in [0x04, 0x06, 0x08, 0x0a, 0x21] {
        assert_eq!(of(code), ids(code), "{code:#x}");
    }
    // C_BAD_STREAMID, F_STE_FETCH, F_BAD_ATS_TREQ, F_TRANSL_FORBIDDEN, E_PAGE_REQUEST, F_VMS_FETCH, and what is
    // unknown: not the guest's doing, or of features that it does not have.
    for code in [0x00, 0x02, 0x03, 0x05, 0x07, 0x24, 0x25, 0x80, 0xff] {
        assert_eq!(of(code), None, "{code:#x}");
    }
    // Stage 2's own.
    assert_eq!(told(&event(0x0b, PHYS, S2 | TT, 0x1000, 0)), None);
    assert_eq!(told(&event(0x20, PHYS, S2 | IN, 0x1000, 0)), None);
}

#[test]
fn a_stream_without_a_valid_ste_says_why() {
    let mut guest = guest();
    let fault = event(F_TRANSLATION | 1 << 11 | 7 << 12, PHYS, S2 | IN, 0x1000, 0x1000);
    guest.ste(8, [STAGE1 & !1, 0]);
    guest.issue(&[cfgi_ste(8, true), SYNC]);
    assert_eq!(guest.forward(0, &fault), Forwarded::Recorded);
    assert_eq!(record(&guest, 0), [0x04 | 1 << 11 | 7 << 12 | 8 << 32, 0, 0, 0]);
    guest.smmu.streams[0].view = View::Refused(Refused::SteFetch(Ipa::new(0x900_0200)));
    assert_eq!(guest.forward(0, &fault), Forwarded::Recorded);
    assert_eq!(record(&guest, 1), [0x03 | 1 << 11 | 7 << 12 | 8 << 32, 0, 0, 0x900_0200]);
    guest.smmu.streams[0].view = View::Refused(Refused::BadStreamId);
    assert_eq!(guest.forward(0, &fault), Forwarded::Recorded);
    assert_eq!(record(&guest, 2), [0x02 | 1 << 11 | 7 << 12 | 8 << 32, 0, 0, 0]);
    // Not recorded unless CR2.RECINVSID.
    guest.smmu.registers.write(CR2, 0);
    assert_eq!(guest.write(CR0, EVENTQEN), Work::Disable { taken_over: false });
    assert_eq!(guest.disabled(), Work::Done);
    guest.set(CR2, 0);
    guest.set(STRTAB_BASE_CFG, 2);
    guest.set(CR0, EVENTQEN | SMMUEN);
    assert_eq!(guest.forward(0, &fault), Forwarded::Ours);
    // C_BAD_STE is, though.
    guest.smmu.streams[0].view = View::Refused(Refused::BadSte);
    assert_eq!(guest.forward(0, &fault), Forwarded::Recorded);
}

#[test]
fn nobody_elses_events_arrive() {
    let mut guest = guest();
    let fault = |sid: u32| event(F_TRANSLATION, sid, IN, 0x1000, 0);
    assert_eq!(guest.forward(0, &fault(8)), Forwarded::Ours);
    assert_eq!(guest.forward(1, &fault(PHYS)), Forwarded::Ours);
    // The same StreamID at another SMMU is another stream, which aborts.
    assert_eq!(guest.forward(2, &fault(PHYS)), Forwarded::Ours);
    assert_eq!(guest.forward(0, &fault(PHYS)), Forwarded::Recorded);
    // Nothing after a disable, from its first moment on.
    assert_eq!(guest.write(CR0, EVENTQEN), Work::Disable { taken_over: false });
    assert_eq!(guest.forward(0, &fault(PHYS)), Forwarded::Ours);
    assert_eq!(guest.disabled(), Work::Done);
    assert_eq!(guest.forward(0, &fault(PHYS)), Forwarded::Ours);
    assert_eq!(guest.read(EVENTQ_PROD), 1);
}

#[test]
fn a_record_is_there_before_its_index_is() {
    let mut guest = guest();
    guest.take();
    let fault = event(F_TRANSLATION, PHYS, IN, 0x1000, 0);
    guest.forward(0, &fault);
    let expected = [Step::Memory(EVENTS), Step::Register(EVENTQ_PROD, 1), Step::Register(0xa8, 1)];
    assert_eq!(guest.take(), expected);
    // Only the first record interrupts.
    assert_eq!(guest.interrupts(), (true, false, false));
    guest.forward(0, &fault);
    assert_eq!(guest.interrupts(), (false, false, false));
    guest.set(EVENTQ_CONS, 2);
    guest.forward(0, &fault);
    assert_eq!(guest.interrupts(), (true, false, false));
    // None if it is not enabled.
    guest.set(IRQ_CTRL, 1);
    guest.set(EVENTQ_CONS, 3);
    guest.forward(0, &fault);
    assert_eq!(guest.interrupts(), (false, false, false));
}

#[test]
fn an_overflow_is_told_once() {
    let mut guest = guest();
    let fault = event(F_TRANSLATION, PHYS, IN, 0x1000, 0);
    for _ in 0..256 {
        assert_eq!(guest.forward(0, &fault), Forwarded::Recorded);
    }
    assert_eq!(guest.read(EVENTQ_PROD), 0x100);
    for _ in 0..3 {
        assert_eq!(guest.forward(0, &fault), Forwarded::Lost);
        assert_eq!((guest.read(EVENTQ_PROD), guest.read(0xa8)), (0x8000_0100, 0x8000_0100));
    }
    // Unacknowledged, it keeps nothing out once there is room.
    guest.set(EVENTQ_CONS, 1);
    assert_eq!(guest.forward(0, &fault), Forwarded::Recorded);
    assert_eq!(guest.forward(0, &fault), Forwarded::Lost);
    assert_eq!(guest.read(EVENTQ_PROD), 0x8000_0101);
    // Acknowledged, the next one is news.
    guest.set(EVENTQ_CONS, 0x8000_0001);
    assert_eq!(guest.forward(0, &fault), Forwarded::Lost);
    assert_eq!(guest.read(EVENTQ_PROD), 0x101);
    let counters = guest.smmu.counters();
    assert_eq!((counters.forwarded, counters.dropped), (257, 5));
}

#[test]
fn event_queues_of_every_size_wrap() {
    let fault = event(F_TRANSLATION, PHYS, IN, 0x1000, 0);
    for log2 in 0..=9_u64 {
        let mut guest = guest();
        guest.set(CR0, SMMUEN);
        guest.set64(EVENTQ_BASE, EVENTS | log2);
        guest.set(CR0, SMMUEN | EVENTQEN);
        let size = 1_u32 << log2.min(8);
        for round in 0..3 * size {
            assert_eq!(guest.forward(0, &fault), Forwarded::Recorded);
            let prod = guest.read(EVENTQ_PROD);
            assert_eq!(prod, (round + 1) % (2 * size));
            guest.set(EVENTQ_CONS, prod);
        }
    }
}

#[test]
fn a_queue_outside_ram_is_a_global_error() {
    let mut guest = guest();
    guest.set(CR0, SMMUEN | CMDQEN);
    guest.set64(EVENTQ_BASE, 0x0800_0000 | 8);
    guest.set(CR0, SMMUEN | CMDQEN | EVENTQEN);
    let fault = event(F_TRANSLATION, PHYS, IN, 0x1000, 0);
    assert_eq!(guest.forward(0, &fault), Forwarded::Lost);
    assert_eq!((guest.read(EVENTQ_PROD), guest.read(GERROR)), (0, 1 << 2));
    assert_eq!(guest.interrupts(), (false, true, false));
    // Delivery stops until it is acknowledged; commands go on.
    assert_eq!(guest.forward(0, &fault), Forwarded::Lost);
    assert_eq!(guest.interrupts(), (false, false, false));
    guest.issue(&[SYNC]);
    assert_eq!(guest.read(CMDQ_CONS), guest.read(CMDQ_PROD));
    guest.set(CR0, SMMUEN | CMDQEN);
    guest.set64(EVENTQ_BASE, EVENTS | 8);
    guest.set(CR0, SMMUEN | CMDQEN | EVENTQEN);
    assert_eq!(guest.forward(0, &fault), Forwarded::Lost);
    guest.set(GERRORN, 1 << 2);
    assert_eq!(guest.forward(0, &fault), Forwarded::Recorded);
}

#[test]
fn a_disabled_queue_loses_events_without_an_overflow() {
    let mut guest = guest();
    guest.set(CR0, SMMUEN | CMDQEN);
    let fault = event(F_TRANSLATION, PHYS, IN, 0x1000, 0);
    assert_eq!(guest.forward(0, &fault), Forwarded::Lost);
    assert_eq!((guest.read(EVENTQ_PROD), guest.read(GERROR)), (0, 0));
}

#[test]
fn a_sync_brings_what_was_refused_before_it() {
    let mut guest = guest();
    guest.wires.pending.push((0, event(F_TRANSLATION, PHYS, IN, 0x1000, 0)));
    let prod = guest.queue(&[TLBI_NSNH_ALL, SYNC]);
    guest.take();
    guest.set(CMDQ_PROD, prod);
    let steps = guest.take();
    let at = |step: Step| steps.iter().position(|other| *other == step).unwrap();
    assert!(at(Step::Sync(0)) < at(Step::Register(EVENTQ_PROD, 1)));
    assert!(at(Step::Register(EVENTQ_PROD, 1)) < at(Step::Register(CMDQ_CONS, prod)));
}
