//! A guest's stream table, CDs and stage-1 tables of any content, and DMA through them.

use model::host::{CONTEXT, RAM};
use model::machine::Outcome;
use smmu::guest::Width;

use crate::Input;
use crate::vm::{STREAMS, TABLE, with_guest};

/// V=1, Config=0b101, S1ContextPtr.
const STAGE1: u64 = CONTEXT | 0b1011;
/// Where the guest has level-2 tables, and other CDs.
const LEVEL2: u64 = RAM + 0x14_0000;
const WORDS: [u64; 12] = [
    0,
    1,
    STAGE1,
    STAGE1 | 0x40,
    0b1001,
    0b1101,
    0b1111,
    LEVEL2 | 9,
    CONTEXT + 0x1000,
    RAM | 0x741,
    0x0900_0000 | 0x743,
    0x10_0000_0000 | 0x743,
];
const PLACES: [u64; 10] = [
    TABLE,
    TABLE + 0x200,
    TABLE + 0x400,
    LEVEL2 + 0x200,
    LEVEL2 + 0x400,
    CONTEXT,
    CONTEXT + 0x40,
    CONTEXT + 0x1000,
    CONTEXT + 0x2000,
    CONTEXT + 0x3000,
];
const ADDRESSES: [u64; 8] =
    [0, RAM, RAM + 0x3000, 2 << 30, (2 << 30) + 0x1000, 0x0900_0000, 1 << 39, 1 << 40];

/// Writes, invalidates, and lets devices loose.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    with_guest(|guest| {
        for (virt, _) in STREAMS {
            guest.poke(TABLE + 64 * u64::from(virt), &[STAGE1, 0xd4, 0, 0, 0, 0, 0, 0]);
        }
        let two_levels = input.any();
        if two_levels {
            // Two levels: FMT=1, SPLIT=6, eight bits.
            guest.write(0x88, Width::Word, 1 << 16 | 6 << 6 | 8);
            guest.poke(TABLE, &[LEVEL2 | input.below(16) as u64]);
        }
        guest.enable();
        for _ in 0..48 {
            if input.is_empty() {
                return;
            }
            match input.below(9) {
                8 => {
                    // An STE right where it belongs, with anything in what is cached how.
                    let (virt, phys) = input.one_of(&STREAMS);
                    let word0 = input.one_of(&[STAGE1, STAGE1 | 0x40, 0b1001, 1, 0]);
                    guest.poke(TABLE + 64 * u64::from(virt), &[word0, input.any()]);
                    guest.issue(&[[3 | u64::from(virt) << 32, 1], [0x46, 0]]);
                    // In a linear table it counts now.
                    let outcome = guest.dma(phys, RAM, true);
                    match word0 {
                        _ if two_levels => {}
                        0b1001 => assert!(matches!(outcome, Outcome::Reaches(_)), "{outcome:?}"),
                        0 | 1 => assert_eq!(outcome, Outcome::Aborted),
                        _ => {}
                    }
                }
                0..3 => {
                    let at = input.near(&PLACES);
                    let words: Vec<u64> =
                        (0..input.below(8) + 1).map(|_| input.near(&WORDS)).collect();
                    guest.poke(at, &words);
                }
                3 | 4 => {
                    let (virt, _) = input.one_of(&STREAMS);
                    let code = input.one_of(&[3, 3, 5, 6]);
                    guest
                        .issue(&[[code | u64::from(virt) << 32, input.below(2).into()], [0x46, 0]]);
                }
                5 => {
                    guest.issue(&[[4, input.below(32).into()], [0x30, 0], [0x46, 0]]);
                }
                _ => {
                    let (_, phys) = input.one_of(&STREAMS);
                    let outcome = guest.dma(phys, input.near(&ADDRESSES), input.any());
                    assert_ne!(outcome, Outcome::Bypassed);
                    guest.drain();
                }
            }
            guest.check();
        }
    });
}
