//! Sets of pages, stored as the ranges they form.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of page numbers.
///
/// DMA touches neighbouring pages, so a set of ranges stays small where a set of pages would grow with
/// the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntervalSet {
    /// Start and end (exclusive) of disjoint ranges that do not touch each other.
    ranges: BTreeMap<u64, u64>,
}

impl IntervalSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { ranges: BTreeMap::new() }
    }

    /// Adds every number of `range`; an empty range adds nothing.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        if let Some((&before, &before_end)) = self.ranges.range(..=start).next_back()
            && before_end >= start
        {
            if before_end >= end {
                return;
            }
            start = before;
        }
        while let Some((&next, &next_end)) = self.ranges.range(start..=end).next() {
            end = end.max(next_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
    }

    /// Whether `number` is in the set.
    pub fn contains(&self, number: u64) -> bool {
        self.ranges.range(..=number).next_back().is_some_and(|(_, &end)| number < end)
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// What is in this set and not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        let mut left = Self::new();
        for Range { mut start, end } in self.iter() {
            let overlapping = other.ranges.range(..end).rev().take_while(|&(_, &e)| e > start);
            let mut cuts: Vec<_> = overlapping.map(|(&s, &e)| s..e).collect();
            cuts.reverse();
            for cut in cuts {
                left.insert(start..cut.start.max(start));
                start = start.max(cut.end);
            }
            left.insert(start..end);
        }
        left
    }

    /// How many ranges the set needs: its cost in memory.
    pub fn fragments(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

impl FromIterator<Range<u64>> for IntervalSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::new();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::vec((0..64_u64, 0..12_u64).prop_map(|(s, n)| s..s + n), 0..24)
    }

    fn numbers(ranges: &[Range<u64>]) -> BTreeSet<u64> {
        ranges.iter().cloned().flatten().collect()
    }

    proptest! {
        #[test]
        fn holds_exactly_what_was_put_in(put in ranges()) {
            let set: IntervalSet = put.iter().cloned().collect();
            let expected = numbers(&put);
            prop_assert_eq!(set.iter().flatten().collect::<BTreeSet<_>>(), expected.clone());
            for number in 0..80 {
                prop_assert_eq!(set.contains(number), expected.contains(&number));
            }
            prop_assert_eq!(set.is_empty(), expected.is_empty());
        }

        #[test]
        fn ranges_never_touch(put in ranges()) {
            let set: IntervalSet = put.into_iter().collect();
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(ranges.len(), set.fragments());
        }

        #[test]
        fn difference_is_what_a_set_of_numbers_says(a in ranges(), b in ranges()) {
            let left: IntervalSet = a.iter().cloned().collect();
            let right: IntervalSet = b.iter().cloned().collect();
            let expected: BTreeSet<_> = numbers(&a).difference(&numbers(&b)).copied().collect();
            prop_assert_eq!(left.difference(&right).iter().flatten().collect::<BTreeSet<_>>(), expected);
        }
    }

    #[test]
    fn the_last_page_of_the_address_space_fits() {
        let mut set = IntervalSet::new();
        set.insert(u64::MAX - 1..u64::MAX);
        assert!(set.contains(u64::MAX - 1));
    }
}
