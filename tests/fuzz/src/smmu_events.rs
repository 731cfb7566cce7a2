//! Records in the physical event queue, of any content: to whom they go, and what of them.

use model::host::{CONTEXT, config};
use smmu::event::Event;
use smmu::guest::Forwarded;

use crate::Input;
use crate::vm::{OTHER, STREAMS, TABLE, with_guest};

const STAGE1: u64 = CONTEXT | 0b1011;
/// Kinds with an address that the SMMU fetched from: a physical one.
const FETCHES: [u8; 3] = [0x03, 0x09, 0x0b];
/// The kinds that a guest can cause by its own stage 1 (section 7.3).
const GUESTS: [u8; 15] =
    [0x01, 0x02, 0x03, 0x04, 0x06, 0x08, 0x09, 0x0a, 0x0b, 0x10, 0x11, 0x12, 0x13, 0x20, 0x21];
const PAGE: u64 = 0x00ff_ffff_ffff_f000;

/// Lets the SMMU say so.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    with_guest(|guest| {
        for (virt, _) in STREAMS {
            let word0 = input.one_of(&[STAGE1, 0b1001, 1, 0]);
            guest.poke(TABLE + 64 * u64::from(virt), &[word0, 0xd4, 0, 0, 0, 0, 0, 0]);
        }
        guest.enable();
        let (mut others, budget) = (0, config(16).budgets.live_events);
        for _ in 0..64 {
            if input.is_empty() {
                return;
            }
            let mut words: [u64; 4] = [input.any(), input.any(), input.any(), input.any()];
            if input.below(8) != 0 {
                let code = input.one_of(&GUESTS);
                let sid = input.one_of(&[1, 2, OTHER, 4, 0x08, 0x10]);
                words[0] = words[0] & 0xffff_ff00 | u64::from(code) | u64::from(sid) << 32;
            }
            others += u32::from(words[0] >> 32 == u64::from(OTHER));
            if words[0] >> 32 == u64::from(OTHER) && others > budget {
                // Its own device's doing, which ends in an abort, as it should (C7).
                continue;
            }
            assert_eq!(Event::decode(words).words, words);
            assert!(guest.record(words), "there is room");
            for (event, became) in guest.drain() {
                assert_eq!(event.words, words);
                if became == Forwarded::Recorded {
                    check(words, guest.newest_event());
                }
            }
            if input.below(4) == 0 {
                guest.pass_time(500_000);
            }
            guest.check();
        }
    });
}

/// What the guest reads is about its stream, in its terms, and holds no physical address.
fn check(physical: [u64; 4], told: [u64; 4]) {
    let virt = STREAMS.iter().find(|(_, phys)| u64::from(*phys) == physical[0] >> 32);
    assert_eq!(Some(told[0] >> 32), virt.map(|(virt, _)| u64::from(*virt)));
    assert!(GUESTS.contains(&(told[0] as u8)), "{told:x?}");
    // SSV and SubstreamID, as the device sent them.
    assert_eq!(told[0] & 0x700, 0, "{told:x?}");
    assert!(told[0] & 0xffff_f800 == physical[0] & 0xffff_f800 || told[0] & 0xffff_f800 == 0);
    // PnU, InD, RnW and CLASS. Stage 2, stalls and tags are none of the guest's.
    assert_eq!(told[1] & !(0b111 << 33 | 0b11 << 40), 0, "{told:x?}");
    assert!(told[2] == physical[2] || told[2] == 0, "{told:x?}");
    if FETCHES.contains(&(physical[0] as u8)) {
        // Where the SMMU fetched from is physical: what is told instead is where the guest said it was.
        assert!(told[3] == 0 || told[3] == CONTEXT || told[3] == STAGE1 & !0x3f, "{told:x?}");
    } else {
        let table = told[3] == physical[3] & PAGE && told[0] as u8 == 0x0b;
        assert!(table || told[3] == 0 || told[3] == CONTEXT, "{told:x?} of {physical:x?}");
    }
}
