//! Bytes in a guest's command queue.

use model::host::CONTEXT;
use smmu::guest::Width;

use crate::Input;
use crate::vm::{CMDQ_CONS, CR0, ON, STREAMS, TABLE, with_guest};

const OPCODES: [u8; 24] = [
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x10, 0x11, 0x12, 0x13, 0x18, 0x1a, 0x20, 0x21, 0x22,
    0x28, 0x2a, 0x30, 0x40, 0x41, 0x44, 0x45, 0x46,
];
/// Opcodes that this SMMU has (chapter 4): no stage 2, no EL2, no EL3, no ATS, no PRI, no stalls.
const LEGAL: [u8; 12] = [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x46];
const STAGE1: u64 = CONTEXT | 0b1011;

/// Issues them.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    with_guest(|guest| {
        for (virt, _) in STREAMS {
            let word0 = input.one_of(&[STAGE1, STAGE1 | 1 << 6, 0b1001, 1, 0]);
            guest.poke(TABLE + 64 * u64::from(virt), &[word0, input.any(), 0, 0, 0, 0, 0, 0]);
        }
        guest.enable();
        guest.set_restless(if input.below(4) == 3 { input.any() } else { 0 });
        for _ in 0..24 {
            if input.is_empty() {
                return;
            }
            let batch: Vec<[u64; 2]> =
                (0..input.below(12) + 1).map(|_| command(&mut input)).collect();
            let before = guest.read(CMDQ_CONS);
            let mut more = guest.issue(&batch);
            for _ in 0..16 {
                more = more && guest.resume();
            }
            assert!(!more, "a batch of {} commands is not over", batch.len());
            let stopped = (guest.read(0x60) ^ guest.read(0x64)) & 1 != 0;
            let consumed = (guest.read(CMDQ_CONS) & 0x1ff).wrapping_sub(before & 0x1ff) & 0x1ff;
            if stopped {
                // It stands at the command that is wrong.
                assert!((consumed as usize) < batch.len());
                assert_eq!(guest.read(CMDQ_CONS) >> 24 & 0x7f, 1);
            } else {
                assert_eq!(consumed as usize, batch.len());
            }
            if !guest.is_restless() {
                let known = |command: &&[u64; 2]| LEGAL.contains(&(command[0] as u8));
                let legal = batch.iter().take_while(known).count();
                assert!(consumed as usize <= legal, "{:x?} was accepted", batch.get(legal));
            }
            if stopped {
                // The guest starts over with an empty queue.
                guest.write(CR0, Width::Word, (ON & !0b1000).into());
                guest.write(0x64, Width::Word, guest.read(0x60).into());
                guest.write(CMDQ_CONS, Width::Word, 0);
                guest.write(0x98, Width::Word, 0);
                guest.write(CR0, Width::Word, ON.into());
            }
            guest.check();
        }
    });
}

fn command(input: &mut Input<'_>) -> [u64; 2] {
    let mut words: [u64; 2] = [input.any(), input.any()];
    match input.below(8) {
        0 => {}
        choice => {
            words[0] = words[0] & !0xff | u64::from(input.one_of(&OPCODES));
            if choice > 2 {
                // Few bits more: a stream, or one of another VM; a tag that is not the guest's to choose.
                let sid = input.one_of(&[8, 16, 1, 2, 3, 0xff, 1 << 31]);
                words = [words[0] & 0x01f1_f0ff | sid << 32, words[1] & !0xfe];
            }
        }
    }
    words
}
