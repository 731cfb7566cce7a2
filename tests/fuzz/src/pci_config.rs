//! A guest's accesses to its configuration space and its PCI windows, above functions of every kind.

use hyp::vpci::fake::{Step, play};
use hyp::width::Width;
use platform::guest_map::{PCI_IO, PCI_MEM32, PCI_MEM64};
use smmu::addr::Ipa;

use crate::Input;

const WIDTHS: [Width; 4] = [Width::Word, Width::Byte, Width::Half, Width::Double];
const REGISTERS: [u64; 24] = [
    0x04, 0x06, 0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x34, 0x3c, 0x3e, 0x42, 0x48, 0x50,
    0x64, 0x68, 0x88, 0xa4, 0xc8, 0x100, 0x166, 0x198,
];

/// Makes the accesses.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let admitted = input.any();
    let mut steps = Vec::new();
    while !input.is_empty() && steps.len() < 128 {
        steps.push(step(&mut input));
    }
    play(admitted, &steps);
}

fn step(input: &mut Input<'_>) -> Step {
    let width = input.one_of(&WIDTHS);
    match input.below(32) {
        0..20 => Step::Write { offset: offset(input), width, value: value(input) },
        20..26 => Step::Read { offset: offset(input), width },
        26..30 => Step::Probe { ipa: Ipa::new(value(input)), width },
        30 => Step::Close,
        _ => Step::Reset,
    }
}

fn offset(input: &mut Input<'_>) -> u64 {
    if input.below(16) == 15 {
        return input.any();
    }
    let slot = u64::from(input.below(10));
    let function = input.one_of(&[0, 0, 0, 1, 2, 7_u64]);
    let register = if input.any() { input.one_of(&REGISTERS) } else { input.below(0x1000).into() };
    slot << 15 | function << 12 | register
}

fn value(input: &mut Input<'_>) -> u64 {
    match input.below(8) {
        0 => input.any(),
        1 => u64::MAX,
        2 => input.below(8).into(),
        3 => 1 << input.below(64),
        4 => PCI_IO.raw() + u64::from(input.below(0x1_0000)),
        5 => PCI_MEM64.raw() + (u64::from(input.below(16)) << 13),
        // Often the same places.
        choice => {
            let shift = if choice == 6 { 20 } else { 12 };
            PCI_MEM32.raw() + (u64::from(input.below(16)) << shift) + u64::from(input.below(16))
        }
    }
}
