//! Words as every structure of an SMMU's: what a decoder accepts, it encodes to the same words again.

use model::decode;
use model::profile::Profile;
use smmu::addr::{Ipa, Pa, Vmid};
use smmu::event::Event;
use smmu::format;
use smmu::stage2::Format;
use smmu::ste::{Stage1Config, Stage2Config, Ste};

use crate::Input;

/// Decodes them.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(6) {
        0 if input.any() => ste(drivers_ste(&mut input)),
        0 => ste(words(&mut input)),
        1 => {
            let words: [u64; 8] = words(&mut input);
            if let Ok(cd) = format::cd::Cd::decode(&words) {
                assert_eq!(cd.encode(), words);
            }
        }
        2 => command(words(&mut input)),
        3 => event(words(&mut input)),
        4 => {
            let words: [u64; 1] = words(&mut input);
            if let Ok(level1) = format::ste::Level1::decode(&words) {
                assert_eq!(level1.encode(), words);
            }
        }
        _ => {
            let [content] = words(&mut input);
            for register in format::register::ALL {
                if let Ok(again) = (register.again)(content) {
                    assert_eq!(again, content, "{}", register.name);
                }
            }
        }
    }
}

fn words<const N: usize>(input: &mut Input<'_>) -> [u64; N] {
    std::array::from_fn(|_| input.any())
}

/// An STE that the driver could write, but for a few bits: of random words hardly any is.
fn drivers_ste(input: &mut Input<'_>) -> [u64; 8] {
    let (bits, output) = (32 + input.below(17) as u8, input.one_of(&[40, 44, 48]));
    let Ok(format) = Format::new(bits.min(output), output, input.any()) else {
        return words(input);
    };
    let root = u64::from(input.any::<u16>()) * format.root_size();
    let stage2 = Stage2Config {
        vmid: Vmid(input.any()),
        root: Pa::new(root),
        format,
        record: input.any(),
        stall_disable: input.any(),
    };
    let stage1 = Stage1Config {
        context: Ipa::new(input.any()),
        inner: input.any(),
        outer: input.any(),
        shareability: input.any(),
    };
    let ste = if input.any() { Ste::Nested(stage1, stage2) } else { Ste::Stage2(stage2) };
    let mut words = ste.encode();
    for _ in 0..input.below(4) {
        let bit = input.below(512) as usize;
        words[bit / 64] ^= 1 << (bit % 64);
    }
    words
}

fn ste(words: [u64; 8]) {
    let layout = format::ste::Ste::decode(&words);
    if let Ok(ste) = layout {
        assert_eq!(ste.encode(), words);
    }
    // What the driver itself may write is much less: nothing that the architecture, or the model, does not know.
    if let Ok(ste) = Ste::decode(&words) {
        assert_eq!(ste.encode(), words);
        assert!(layout.is_ok(), "{ste:?}: {layout:?}");
        assert_eq!(
            decode::forbidden_in_ste(&words, &Profile::DANGEROUS).is_some(),
            is_open_for_stalls(&ste)
        );
        assert!(!matches!(
            decode::ste(&words, &Profile::DANGEROUS),
            decode::Ste::Bypass | decode::Ste::Stage1
        ));
    }
}

/// Whether an SMMU that stalls would be let.
fn is_open_for_stalls(ste: &Ste) -> bool {
    match ste {
        Ste::Stage2(stage2) | Ste::Nested(_, stage2) => !stage2.stall_disable,
        _ => true,
    }
}

fn command(words: [u64; 2]) {
    let layout = format::command::Command::decode(&words);
    if let Ok(command) = layout {
        assert_eq!(command.encode(), words);
    }
}

fn event(words: [u64; 4]) {
    assert_eq!(Event::decode(words).words, words);
    if let Ok(event) = format::event::Event::decode(&words) {
        assert_eq!(event.encode(), words);
    }
}
