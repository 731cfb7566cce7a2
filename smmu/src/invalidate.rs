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
    /// it wherever there is a stage 1: where there is none, that command is illegal.
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
        if caps.stage1() { issue(Command::TlbiNhAll { vmid }) } else { Ok(()) }
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
