//! A guest that tries everything. What reaches the physical side is checked by [`Wires`] at every step.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Act {
    Write(u32, u32),
    Wide(u32, u64),
    Memory(u64, u64),
    Issue([u64; 2]),
    Resume,
    Disabled,
    Event(u8, [u64; 4]),
    Restless(bool),
    Reset(bool),
}

/// Offsets that mean something, and some that do not.
fn offset() -> impl Strategy<Value = u32> {
    let known = vec![
        CR0,
        CR1,
        CR2,
        GBPA,
        IRQ_CTRL,
        GERROR,
        GERRORN,
        STRTAB_BASE,
        STRTAB_BASE + 4,
        STRTAB_BASE_CFG,
        CMDQ_BASE,
        CMDQ_BASE + 4,
        CMDQ_PROD,
        CMDQ_CONS,
        EVENTQ_BASE,
        EVENTQ_BASE + 4,
        EVENTQ_PROD,
        EVENTQ_CONS,
        0xa8,
        0xac,
    ];
    prop_oneof![8 => prop::sample::select(known), 1 => (0_u32..0x8000).prop_map(|index| index * 4)]
}

/// Addresses in, around and far from RAM, with a size in the low bits.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (prop::sample::select(vec![COMMANDS, EVENTS, TABLE, LEVEL2, CONTEXT, RAM]), 0_u64..32)
            .prop_map(|(base, low)| base | low),
        2 => (RAM - 0x1000..RAM + RAM_SIZE + 0x1000).prop_map(|at| at & !7),
        1 => any::<u64>(),
    ]
}

fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => 0_u32..32,
        2 => 0_u32..0x400,
        1 => any::<u32>(),
        2 => address().prop_map(|at| at as u32),
        1 => Just(1 << 16 | 8 << 6 | 16),
        1 => prop::sample::select(vec![1 << 31, 1 << 31 | 1 << 20]),
    ]
}

fn command() -> impl Strategy<Value = [u64; 2]> {
    let opcode = prop::sample::select(vec![
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x46, 0x46,
    ]);
    let sid = prop::sample::select(vec![0x08_u64, 0x10, 0x19, 0x110, 0x318, 0, 0xffff_ffff]);
    prop_oneof![
        6 => (opcode, sid, any::<u32>(), any::<u64>()).prop_map(|(opcode, sid, low, high)| {
            // Mostly without SSEC and CS=3, which stop the queue.
            let low = u64::from(low) & 0xffff_0000 & !(1 << 10 | 3 << 12);
            [opcode | low | sid << 32, high]
        }),
        1 => any::<[u64; 2]>(),
    ]
}

fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => Just(STAGE1),
        1 => Just(0b1001),
        1 => Just(1),
        2 => (address(), 0_u64..16).prop_map(|(at, low)| at & !0x3f | low),
        2 => any::<u64>(),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (offset(), value()).prop_map(|(offset, value)| Act::Write(offset, value)),
        2 => (offset(), address()).prop_map(|(offset, value)| Act::Wide(offset & !7, value)),
        3 => (0_u64..0x20, 0_u64..8, word())
            .prop_map(|(sid, word, value)| Act::Memory(TABLE + 64 * sid + 8 * word, value)),
        1 => (0_u64..4, address(), 0_u64..32)
            .prop_map(|(index, at, span)| Act::Memory(TABLE + 8 * index, at & !0x3f | span)),
        6 => command().prop_map(Act::Issue),
        1 => Just(Act::Resume),
        1 => Just(Act::Disabled),
        2 => (0_u8..3, any::<[u64; 4]>(), 0_u64..0x26, prop::sample::select(vec![0x110_u64, 0x318, 8]))
            .prop_map(|(smmu, words, code, sid)| {
                let [first, rest @ ..] = words;
                let first = first & 0xffff_ff00 | code | sid << 32;
                Act::Event(smmu, [first, rest[0], rest[1], rest[2]])
            }),
        1 => any::<bool>().prop_map(Act::Restless),
        1 => any::<bool>().prop_map(Act::Reset),
    ]
}

/// Does one thing, and returns what it left to do.
fn perform(guest: &mut Guest, act: &Act, disabling: bool) -> Work {
    match *act {
        Act::Write(offset, value) => guest.write(offset, value),
        Act::Wide(offset, value) => guest.write64(offset, value),
        Act::Memory(at, value) => {
            guest.ram.set(at & !7, &[value]);
            Work::Done
        }
        Act::Issue(words) => {
            let prod = guest.read(CMDQ_PROD);
            let ring = Ring::of(guest.read64(CMDQ_BASE));
            guest.ram.set(ring.entry(prod), &words);
            guest.write(CMDQ_PROD, prod.wrapping_add(1) & 0x1ff)
        }
        Act::Resume => guest.resume(),
        Act::Disabled if disabling => guest.disabled(),
        Act::Disabled => Work::Done,
        Act::Event(smmu, words) => {
            let _ = guest.forward(smmu, &Event::decode(words));
            Work::Done
        }
        Act::Restless(on) => {
            guest.ram.restless.set(on);
            Work::Done
        }
        Act::Reset(abort) => {
            guest.smmu.reset(abort, &guest.image);
            Work::Done
        }
    }
}

/// Where a command belongs, worked out from the register alone.
struct Ring {
    base: u64,
    log2: u64,
}

impl Ring {
    fn of(register: u64) -> Self {
        let log2 = (register & 0x1f).min(8);
        let size = (16_u64 << log2).max(32);
        Self { base: (register & 0x00ff_ffff_ffff_ffe0) / size * size, log2 }
    }

    fn entry(&self, index: u32) -> u64 {
        self.base + 16 * (u64::from(index) % (1 << self.log2))
    }
}

/// What must hold for what one act made visible.
fn check(guest: &Guest, steps: &[Step], enabled_before: bool) {
    let (mut opened, mut configured) = (false, 0);
    for step in steps {
        match step {
            Step::Configure(_, _, to) => {
                configured += 1;
                opened |= matches!(to, Configuration::Nested(_));
            }
            // Whatever the guest says, records are written where its queue is, in its RAM.
            Step::Memory(at) => assert!(is_ram(Ipa::new(*at), 4)),
            Step::Register(..) | Step::Relay(..) | Step::Sync(_) => {}
        }
    }
    // Bounded, whatever is in the queue.
    assert!(configured <= 2 * (BUDGET / STE_COST) as usize + 4 * STREAMS.len(), "{configured}");
    assert!(steps.len() <= 8 * BUDGET as usize, "{}", steps.len());
    // A stage 1 is only ever used while the guest's SMMU is enabled.
    assert!(!opened || enabled_before || guest.smmu.is_enabled());
    // ... and the guest never sees an acknowledgement that is not one.
    let ack = guest.read(CR0ACK);
    assert_eq!(ack & !(SMMUEN | EVENTQEN | CMDQEN), 0);
}

proptest! {
    #![proptest_config(crate::fake::cases(400))]

    #[test]
    fn nothing_but_the_guest_itself_notices(
        acts in prop::collection::vec(act(), 1..120), ready in any::<bool>(),
    ) {
        let mut guest = Guest::new();
        if ready {
            guest.enable();
        }
        let mut disabling = false;
        for act in &acts {
            let enabled = guest.smmu.is_enabled();
            let work = perform(&mut guest, act, disabling);
            match (work, act) {
                (_, Act::Reset(_) | Act::Disabled) => disabling = false,
                (Work::Disable { .. }, _) => {
                    prop_assert!(enabled && !disabling);
                    disabling = true;
                }
                _ => {}
            }
            // Not before the close (C4).
            if disabling {
                prop_assert_eq!(guest.read(CR0ACK) & SMMUEN, SMMUEN);
                prop_assert!(!guest.smmu.is_enabled());
            }
            let steps = guest.take();
            check(&guest, &steps, enabled);
        }
    }

    /// Whatever words an STE has: the physical one is what was decided for it, and nothing of the guest's is in
    /// any other field.
    #[test]
    fn no_ste_reaches_beyond_its_fields(words: [u64; 8], valid: bool, config in 0_u64..8) {
        let mut words = words;
        if valid {
            words[0] = words[0] & !0xf | 1 | config << 1;
        }
        let guest_ste = ste::GuestSte::decode(&words);
        let format = crate::stage2::Format::new(40, 44, false).unwrap();
        let stage2 = crate::ste::Stage2Config {
            vmid: VMID,
            root: crate::addr::Pa::new(0x4567_8000),
            format,
            record: true,
            stall_disable: false,
        };
        if let Ok(ste::GuestSte::Stage1(stage1)) = guest_ste {
            let physical = crate::ste::Ste::Nested(stage1, stage2).encode();
            let own = crate::ste::Ste::Stage2(stage2).encode();
            prop_assert_eq!(physical[0], words[0] & 0x00ff_ffff_ffff_ffc0 | 0b1111);
            prop_assert_eq!(physical[1] & !0xfc, own[1]);
            prop_assert_eq!(&physical[2..], &own[2..]);
        } else if words[0] & 0b1001 == 0b1001 && words[0] & 0b110 == 0b010 {
            prop_assert_ne!(words[1] >> 27 & 1, 0);
        }
    }

    /// A legal command is encoded anew: no bit of the guest's is where a VMID or StreamID belongs.
    #[test]
    fn no_command_is_forwarded_as_it_is(low: u64, high: u64, opcode in 0_u64..0x60) {
        let low = low & !0xff | opcode;
        if let Ok(GuestCommand::Tlb(invalidation)) =
            GuestCommand::decode([low, high], &features(QEMU_NESTED))
        {
            let [word, _] = invalidation.tagged(VMID).encode();
            prop_assert_eq!(word >> 32 & 0xffff, u64::from(VMID.0));
            // NUM, SCALE, and nothing else beside the opcode.
            prop_assert_eq!(word & 0xffff_ff00 & !0x01f1_f000, 0);
            let expected = if opcode == 0x30 { 0x10 } else { opcode };
            prop_assert_eq!(word & 0xff, expected);
        }
    }
}

#[test]
fn endless_batches_are_cut() {
    let mut guest = Guest::new();
    guest.enable();
    for slot in 0..256 {
        guest.ram.set(COMMANDS + 16 * slot, &CFGI_ALL);
    }
    // Another CPU moves the producer on and on; each call is bounded all the same.
    let mut prod = 0;
    for _ in 0..1000 {
        prod = (prod + 0x100) & 0x1ff;
        let _ = guest.write(CMDQ_PROD, prod);
        let steps = guest.wires();
        assert!(steps.len() <= (BUDGET / STE_COST) as usize + STREAMS.len() + 4, "{}", steps.len());
    }
}

#[test]
fn a_level1_pointer_or_context_elsewhere_is_only_stage_2s_to_refuse() {
    let mut guest = Guest::new();
    guest.enable();
    // A CD in the hypervisor's memory, in a device, and beyond all addresses: stage 2 translates its fetch.
    for context in [0x4a00_0000, 0x0900_0000, 0x00ff_ffff_ffff_ffc0_u64] {
        guest.ste(8, [context & !0x3f | 0b1011, ATTRIBUTES]);
        let steps = guest.issue(&[cfgi_ste(8, true), SYNC]);
        assert_eq!(steps[0], Step::Configure(0, 0x110, nested(context & !0x3f)));
    }
    // None of them was ever read.
    assert_eq!(guest.smmu.counters().errors, 0);
}
