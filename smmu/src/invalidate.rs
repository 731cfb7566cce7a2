//! Which cached translations have to go, and the commands for it.

use heapless::Vec;

use crate::addr::{Ipa, PAGE_SIZE, Vmid};
use crate::caps::Capabilities;
use crate::cmd::{Command, Pages};

/// How many ranges are kept apart before everything is invalidated.
const MAX_RANGES: usize = 4;
/// How many address-based commands are cheaper than starting over with an empty TLB.
const MAX_COMMANDS: u64 = 64;

/// Pages of a guest's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpaRange {
    /// The first byte, on a page boundary.
    pub start: Ipa,
    /// Bytes, whole pages.
    pub size: u64,
}

/// What caches of CPUs and SMMUs may still hold after a stage 2 was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "until it is done, the old translations may still be used"]
pub enum Invalidation {
    /// These ranges.
    Ranges(Vec<IpaRange, MAX_RANGES>),
    /// Anything.
    All,
}

impl Invalidation {
    /// One range.
    pub fn range(start: Ipa, size: u64) -> Self {
        let mut ranges = Vec::new();
        match ranges.push(IpaRange { start, size }) {
            Ok(()) => Self::Ranges(ranges),
            Err(_) => Self::All,
        }
    }

    /// Adds what `other` names.
    pub fn merge(&mut self, other: &Self) {
        let (Self::Ranges(ours), Self::Ranges(theirs)) = (&mut *self, other) else {
            *self = Self::All;
            return;
        };
        for theirs in theirs {
            if ours
                .last()
                .is_some_and(|last| last.start.checked_add(last.size) == Some(theirs.start))
            {
                if let Some(last) = ours.last_mut() {
                    last.size += theirs.size;
                }
            } else if ours.push(*theirs).is_err() {
                *self = Self::All;
                return;
            }
        }
    }

    /// Calls `issue` with the commands that drop it for one VM; the caller completes them with a
    /// `CMD_SYNC`.
    ///
    /// `TLBI_S2_IPA` leaves what stages 1 and 2 made together (section 4.4.3.1), so `TLBI_NH_ALL` follows
    /// it wherever there is a stage 1: where there is none, that command is illegal. Between the two is a
    /// `CMD_SYNC`, before which a walk could still use the old stage 2 to make such a translation anew.
    ///
    /// # Errors
    ///
    /// The first error of `issue`.
    pub(crate) fn commands<E>(
        &self,
        vmid: Vmid,
        caps: &Capabilities,
        mut issue: impl FnMut(Command) -> Result<(), E>,
    ) -> Result<(), E> {
        let ril = caps.range_invalidation();
        let Self::Ranges(ranges) = self else {
            return issue(Command::TlbiS12Vmall { vmid });
        };
        let commands: u64 = ranges
            .iter()
            .map(|range| steps(*range, ril).take(MAX_COMMANDS as usize + 1).count() as u64)
            .sum();
        if commands > MAX_COMMANDS {
            return issue(Command::TlbiS12Vmall { vmid });
        }
        for (address, pages) in ranges.iter().flat_map(|range| steps(*range, ril)) {
            issue(Command::TlbiS2Ipa { vmid, address, pages, leaf: false })?;
        }
        if !caps.stage1() {
            return Ok(());
        }
        issue(Command::Sync)?;
        issue(Command::TlbiNhAll { vmid })
    }
}

/// Cuts a range into what single commands can name.
fn steps(range: IpaRange, ril: bool) -> impl Iterator<Item = (Ipa, Pages)> {
    let mut at = range.start;
    let mut left = range.size / PAGE_SIZE;
    core::iter::from_fn(move || {
        let (pages, count) = match left {
            0 => return None,
            _ if !ril => (Pages::One, 1),
            left => largest(left),
        };
        let step = (at, pages);
        left -= count;
        at = at.checked_add(count * PAGE_SIZE)?;
        Some(step)
    })
}

/// The largest part of `left` pages that one command can name while the rest stays a multiple of a
/// higher power of two, so that the parts are few: `multiple << scale` with the scale that `left` has.
fn largest(left: u64) -> (Pages, u64) {
    let scale = left.trailing_zeros().min(31);
    let multiple = (left >> scale) % 32;
    // The scale is exact, so the multiple is odd, unless the scale was capped.
    let multiple = if multiple == 0 { 32 } else { multiple };
    match (multiple, scale) {
        (1, 0) => (Pages::One, 1),
        _ => (Pages::Range { multiple: multiple as u8, scale: scale as u8 }, multiple << scale),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::fake::{Fake, QEMU_NESTED, QEMU_STAGE2};

    const VMID: Vmid = Vmid(3);

    fn commands(invalidation: &Invalidation, ids: [u32; 5]) -> Vec<Command> {
        let mut commands = Vec::new();
        let caps = Capabilities::read(&Fake::new(ids));
        let issued: Result<(), ()> = invalidation.commands(VMID, &caps, |command| {
            commands.push(command);
            Ok(())
        });
        issued.unwrap();
        commands
    }

    /// QEMU's SMMU without `IDR3.RIL`.
    fn without_ranges() -> [u32; 5] {
        let mut ids = QEMU_NESTED;
        ids[2] &= !(1 << 10);
        ids
    }

    fn pages_of(commands: &[Command]) -> BTreeSet<u64> {
        commands
            .iter()
            .filter_map(|command| match command {
                Command::TlbiS2Ipa { address, pages, .. } => {
                    Some((address.raw() / PAGE_SIZE, *pages))
                }
                _ => None,
            })
            .flat_map(|(first, pages)| match pages {
                Pages::One => first..first + 1,
                Pages::Range { multiple, scale } => first..first + (u64::from(multiple) << scale),
                Pages::Granules { .. } => panic!("not of stage 2"),
            })
            .collect()
    }

    #[test]
    fn combined_translations_go_where_there_can_be_any() {
        let page = Invalidation::range(Ipa::new(0x4000_0000), PAGE_SIZE);
        let ipa = Command::TlbiS2Ipa {
            vmid: VMID,
            address: Ipa::new(0x4000_0000),
            pages: Pages::One,
            leaf: false,
        };
        let combined = Command::TlbiNhAll { vmid: VMID };
        assert_eq!(commands(&page, QEMU_NESTED), [ipa, Command::Sync, combined]);
        // Without a stage 1 that command is illegal.
        assert_eq!(commands(&page, QEMU_STAGE2), [ipa]);
        assert_eq!(
            commands(&Invalidation::All, QEMU_NESTED),
            [Command::TlbiS12Vmall { vmid: VMID }]
        );
    }

    #[test]
    fn a_large_range_costs_few_commands() {
        let gigabyte = Invalidation::range(Ipa::new(0x4000_0000), 1 << 30);
        let pages = Pages::Range { multiple: 1, scale: 18 };
        let range =
            Command::TlbiS2Ipa { vmid: VMID, address: Ipa::new(0x4000_0000), pages, leaf: false };
        let combined = Command::TlbiNhAll { vmid: VMID };
        assert_eq!(commands(&gigabyte, QEMU_NESTED), [range, Command::Sync, combined]);
        assert_eq!(commands(&gigabyte, without_ranges()), [Command::TlbiS12Vmall { vmid: VMID }]);
    }

    #[test]
    fn neighbours_merge_and_too_many_become_everything() {
        let page = |number: u64| Invalidation::range(Ipa::new(number * PAGE_SIZE), PAGE_SIZE);
        let mut merged = page(1);
        merged.merge(&page(2));
        assert_eq!(merged, Invalidation::range(Ipa::new(PAGE_SIZE), 2 * PAGE_SIZE));
        for number in [10, 20, 30] {
            merged.merge(&page(number));
        }
        assert_eq!(pages_of(&commands(&merged, QEMU_NESTED)), BTreeSet::from([1, 2, 10, 20, 30]));
        merged.merge(&page(40));
        assert_eq!(merged, Invalidation::All);
    }

    proptest! {
        #![proptest_config(crate::fake::cases(256))]

        /// No page too few, none too many, and never the reserved form.
        #[test]
        fn exactly_the_range_is_named(first in 0_u64..1 << 28, count in 1_u64..5000, ril: bool) {
            let invalidation = Invalidation::range(Ipa::new(first * PAGE_SIZE), count * PAGE_SIZE);
            let commands = commands(&invalidation, if ril { QEMU_NESTED } else { without_ranges() });
            if ril || count <= MAX_COMMANDS {
                prop_assert_eq!(pages_of(&commands), (first..first + count).collect());
                let named = commands.iter().filter(|command| matches!(command, Command::TlbiS2Ipa { .. })).count();
                let most = if ril { 13 } else { count };
                prop_assert!(named as u64 <= most);
            } else {
                prop_assert_eq!(commands, vec![Command::TlbiS12Vmall { vmid: VMID }]);
            }
        }
    }

    proptest! {
        #![proptest_config(crate::fake::cases(256))]

        #[test]
        fn parts_have_legal_operands(left in 1_u64..=1 << 36) {
            let (pages, count) = largest(left);
            prop_assert!(count <= left);
            match pages {
                Pages::One => prop_assert_eq!(count, 1),
                Pages::Range { multiple, scale } => {
                    prop_assert!((1..=32).contains(&multiple) && scale <= 31 && (multiple, scale) != (1, 0));
                    prop_assert_eq!(u64::from(multiple) << scale, count);
                }
                Pages::Granules { .. } => panic!("not of stage 2"),
            }
        }
    }
}
