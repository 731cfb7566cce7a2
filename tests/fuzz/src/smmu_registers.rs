//! Writes to a virtual SMMU's registers, of any value at any place, above memory that says anything.

use model::host::{CONTEXT, RAM};
use smmu::guest::Width;

use crate::Input;
use crate::vm::{COMMANDS, EVENTS, RAM_SIZE, STREAMS, TABLE, with_guest};

/// Registers of both pages, and places beside them.
const REGISTERS: [u64; 32] = [
    0x00, 0x1c, 0x20, 0x24, 0x28, 0x2c, 0x40, 0x44, 0x50, 0x54, 0x60, 0x64, 0x68, 0x70, 0x80, 0x84,
    0x88, 0x90, 0x94, 0x98, 0x9c, 0xa0, 0xa4, 0xa8, 0xac, 0xb0, 0xb8, 0xc0, 0xfd0, 0x8000,
    0x1_00a8, 0x1_00ac,
];
/// Addresses, with sizes of queues in the low bits, and bits of control registers.
const VALUES: [u64; 20] = [
    0,
    1,
    0b1101,
    0b1100,
    0b1000,
    0b100,
    8,
    0x1_0208,
    0x80,
    0x100,
    0x1ff,
    1 << 31,
    1 << 31 | 1 << 20,
    COMMANDS | 8,
    EVENTS | 4,
    TABLE,
    RAM,
    RAM + RAM_SIZE - 64,
    CONTEXT,
    0x0900_0000,
];

/// Makes the writes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    with_guest(|guest| {
        if input.any() {
            guest.enable();
        }
        guest.set_restless(if input.any() { input.any() } else { 0 });
        for _ in 0..96 {
            if input.is_empty() {
                return;
            }
            match input.below(16) {
                0..9 => {
                    let offset = input.near(&REGISTERS) as u32;
                    let width = if input.any() { Width::Word } else { Width::Double };
                    let value = input.near(&VALUES);
                    let mut more = guest.write(offset, width, value);
                    // Each call goes on, so it ends.
                    for _ in 0..4 {
                        more = more && guest.resume();
                    }
                }
                9..13 => {
                    let at = input.near(&[
                        COMMANDS,
                        EVENTS,
                        TABLE,
                        TABLE + 0x200,
                        TABLE + 0x400,
                        CONTEXT,
                    ]);
                    let words = [input.near(&VALUES), input.any()];
                    guest.poke(at, &words);
                }
                13 => {
                    let (_, phys) = input.one_of(&STREAMS);
                    guest.dma(phys, input.near(&[RAM, 0, 2 << 30]), input.any());
                }
                14 => _ = guest.drain(),
                _ => guest.pass_time(input.any::<u32>().into()),
            }
            guest.check();
        }
    });
}
