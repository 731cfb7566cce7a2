//! The built-in guests: what their command lines say, and where the rogue aims.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use platform::guest_map;

use crate::machine::RAM_BASE;
use crate::size::MIB;
use crate::vm::{ROGUE, VICTIM};

/// How often a victim lets its device read and write, 200 ms each time: longer than a rogue takes to aim at
/// everything, to die, and to have its late DMA stopped.
const VICTIM_ROUNDS: u32 = 60;
/// The bytes of one DMA of the rogue.
const DMA_SIZE: u64 = 256;
/// How many pieces of RAM the rogue tries, spread evenly.
const RAM_TARGETS: u64 = 12;
/// Where the firmware's device tree is when nothing else is loaded behind the kernel: natively the rogue reads it.
const FIRMWARE_TREE: std::ops::Range<u64> = 0x4800_0000..0x4840_0000;
/// EL2's tables lie at the top of RAM; this is well inside of them.
const BELOW_TOP: u64 = 4 * MIB;

/// Addresses outside of RAM that the rogue tries: EL2's UART, the GIC, the ITS's doorbell, nothing at all, the place
/// where it puts its own device's registers, which its CPUs reach and its device may not, and at last the SMMU itself.
const REGISTER_TARGETS: [u64; 6] =
    [0x0904_0000, 0x0800_0000, 0x0809_0040, 0x30_0000_0000, 0x1000_1000, 0x0905_0000];

/// The word number `index` of the data that the rogue's device writes.
const fn word(nonce: u32, index: u32) -> u32 {
    nonce.wrapping_add(index.wrapping_mul(0x9e37_79b9))
}

/// Chooses what the data of a rogue's device starts with: at random, so that nothing else has it, or always the same
/// where a run has to be repeatable.
pub fn nonce(repeatable: bool) -> u32 {
    let mut nonce =
        if repeatable { 0x1234_abcd } else { RandomState::new().build_hasher().finish() as u32 };
    while !is_harmless_to_a_bare_smmu(nonce) {
        // A full-period generator: it does not linger near a bad number.
        nonce = nonce.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    }
    nonce
}

/// Natively the rogue's data arrives in the SMMU's registers. It must not switch anything on there, or the rest of
/// the baseline is about something else: `CR0` (word 8) enables nothing, and `GBPA` (word 17) is not updated.
fn is_harmless_to_a_bare_smmu(nonce: u32) -> bool {
    word(nonce, 8) & 0x1f == 0 && word(nonce, 17) >> 31 == 0
}

/// Where a rogue with `own` bytes of memory aims, on a machine with `ram` bytes: at other pieces of physical memory,
/// which for it are addresses behind its own memory, and at registers.
pub fn targets(own: u64, ram: u64) -> Vec<u64> {
    let first = guest_map::RAM.raw() + own;
    let end = RAM_BASE + ram;
    let step =
        end.saturating_sub(first) / RAM_TARGETS / guest_map::RAM_GRANULE * guest_map::RAM_GRANULE;
    let pieces = (0..RAM_TARGETS).map(|index| first + index * step + MIB).filter(|_| step > 0);
    let outside =
        |&target: &u64| !FIRMWARE_TREE.contains(&target) && target + DMA_SIZE <= end - BELOW_TOP;
    let top = end - BELOW_TOP;
    let top = (top >= first).then_some(top);
    pieces.filter(outside).chain(top).chain(REGISTER_TARGETS).collect()
}

/// The command line of a built-in guest: the role's own words, each replaced by one of `append` with the same key.
pub fn bootargs(role: &str, append: &str, nonce: Option<u32>, targets: &[u64]) -> String {
    let mut words = vec![format!("role={role}")];
    if role == VICTIM {
        words.push(format!("rounds={VICTIM_ROUNDS}"));
    }
    if let Some(nonce) = nonce {
        words.push(format!("nonce={nonce:#x}"));
    }
    if role == ROGUE {
        let targets: Vec<String> = targets.iter().map(|target| format!("{target:#x}")).collect();
        words.push(format!("targets={}", targets.join(",")));
    }
    let key = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    for added in append.split_ascii_whitespace() {
        words.retain(|word| key(word) != key(added));
        words.push(added.to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_outside_of_the_rogues_own_memory_and_all_over_the_rest() {
        let targets = targets(16 * MIB, 256 * MIB);
        let ram: Vec<u64> = targets.iter().copied().filter(|target| *target >= RAM_BASE).collect();
        assert!(ram.iter().filter(|target| **target < 0x5000_0000).count() >= 11, "{ram:x?}");
        assert!(ram.iter().all(|target| *target >= 0x4100_0000), "{ram:x?}");
        assert!(targets.contains(&0x4fc0_0000) && targets.contains(&0x0809_0040));
        assert!(!ram.iter().any(|target| FIRMWARE_TREE.contains(target)), "{ram:x?}");
        // A machine that is smaller than the rogue's memory leaves only registers.
        assert_eq!(super::targets(512 * MIB, 256 * MIB), REGISTER_TARGETS);
    }

    #[test]
    fn a_nonce_leaves_a_bare_smmu_alone() {
        for _ in 0..64 {
            assert!(is_harmless_to_a_bare_smmu(nonce(false)));
        }
        assert_eq!(nonce(true), nonce(true));
    }

    #[test]
    fn what_is_added_replaces_what_has_the_same_key() {
        assert_eq!(bootargs(VICTIM, "", None, &[]), "role=victim rounds=60");
        assert_eq!(bootargs(VICTIM, "rounds=2 x", None, &[]), "role=victim rounds=2 x");
        assert_eq!(
            bootargs(ROGUE, "", Some(0x18), &[1, 2]),
            "role=rogue nonce=0x18 targets=0x1,0x2"
        );
        assert_eq!(bootargs("spin", "", None, &[]), "role=spin");
    }
}
