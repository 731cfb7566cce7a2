//! What has to happen around a change of a live entry, as data (Arm ARM D8.16.1; section 3.21.1).

/// How an entry changes while CPUs and SMMUs may walk it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// From invalid to anything.
    Make,
    /// To invalid.
    Remove,
    /// Only in what may be done with the memory.
    Protect,
    /// In what kind of memory it is.
    Retype,
    /// In where it leads.
    Move,
    /// From a block to a table that maps the same.
    Split,
    /// From a table to a block that maps the same.
    Merge,
}

/// What has to come between the old entry and the new one, or after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// Nothing: what is invalid is never cached.
    Nothing,
    /// The new entry replaces the old one; the old one is in use until it is invalidated.
    InvalidateAfter,
    /// An invalid entry and its invalidation come first: with both cached, a walk could fail, or use a mixture.
    BreakFirst,
}

/// The rules, by the level of support for changes of block size: `IDR3.BBML`, and the CPUs' `ID_AA64MMFR2_EL1.BBM`,
/// whichever is smaller. Level 1 needs a bit in the descriptor that this crate does not use, so it is as good as 0.
pub const RULES: [(Change, [Between; 3]); 7] = {
    use Between::*;
    [
        (Change::Make, [Nothing; 3]),
        (Change::Remove, [InvalidateAfter; 3]),
        (Change::Protect, [InvalidateAfter; 3]),
        (Change::Retype, [BreakFirst; 3]),
        (Change::Move, [BreakFirst; 3]),
        (Change::Split, [BreakFirst, BreakFirst, InvalidateAfter]),
        (Change::Merge, [BreakFirst, BreakFirst, InvalidateAfter]),
    ]
};

impl Change {
    /// What the rules say of it where sizes may change as freely as `bbm_level` says. More than 2 counts as 2.
    pub fn between(self, bbm_level: u8) -> Between {
        let level = usize::from(bbm_level.min(2));
        RULES
            .iter()
            .find(|(change, _)| *change == self)
            .map_or(Between::BreakFirst, |(_, by_level)| by_level[level])
    }
}
