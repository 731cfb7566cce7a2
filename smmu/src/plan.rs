//! In which order an STE is changed so that no transaction ever meets a mixture (section 3.21.3).
//!
//! The SMMU reads the eight words of an STE one by one, at any moment, and keeps what it read until it is
//! told to forget. A [`Plan`] is the list of stores, barriers and commands that is right nevertheless.

use heapless::Vec;

use crate::ste::Words;

/// One step of a plan, done in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write one word of the STE.
    Store {
        /// Which of the eight.
        word: u8,
        /// To what.
        value: u64,
    },
    /// Make the stores visible to the SMMU.
    Publish,
    /// Issue `CMD_CFGI_STE` for the stream.
    Cfgi,
    /// Issue `CMD_SYNC` and wait for it.
    Sync,
}

/// The longest plan: eight stores and twice the three steps that make them count.
const MAX_STEPS: usize = 8 + 2 * 3;

/// How one STE becomes another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan(Vec<Step, MAX_STEPS>);

impl Plan {
    /// From an STE that aborts, or is invalid, to `new`: words 1 to 7 while nobody looks at them, then
    /// word 0, which makes them count.
    pub fn open(new: &Words) -> Self {
        let mut plan = Self(Vec::new());
        plan.store_rest(new);
        plan.commit();
        plan.store(0, new[0]);
        plan.commit();
        plan
    }

    /// From any STE to `abort`, one that says so in word 0 and ignores the others.
    ///
    /// The transactions of the old STE are over when the `Sync` is; the words after it are only tidied.
    pub fn close(abort: &Words) -> Self {
        let mut plan = Self(Vec::new());
        plan.store(0, abort[0]);
        plan.commit();
        plan.store_rest(abort);
        plan.push(Step::Publish);
        plan
    }

    /// From `old` to `new` while transactions go on, if both differ in one word only: each of them meets
    /// one or the other. `None` otherwise: close and open instead.
    pub fn amend(old: &Words, new: &Words) -> Option<Self> {
        let mut changed = (0..8).filter(|&word| old[word as usize] != new[word as usize]);
        let word = changed.next()?;
        if changed.next().is_some() {
            return None;
        }
        let mut plan = Self(Vec::new());
        plan.store(word, new[word as usize]);
        plan.commit();
        Some(plan)
    }

    /// The steps.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// The steps before the first `Sync` and those after it, so that several plans can share one.
    pub fn around_sync(&self) -> (&[Step], &[Step]) {
        let sync = self.0.iter().position(|step| *step == Step::Sync).unwrap_or(self.0.len());
        let (before, after) = self.0.split_at(sync);
        (before, after.split_first().map_or(&[], |(_, after)| after))
    }

    fn store_rest(&mut self, new: &Words) {
        for word in 1..8 {
            self.store(word, new[word as usize]);
        }
    }

    fn store(&mut self, word: u8, value: u64) {
        self.push(Step::Store { word, value });
    }

    fn commit(&mut self) {
        self.push(Step::Publish);
        self.push(Step::Cfgi);
        self.push(Step::Sync);
    }

    fn push(&mut self, step: Step) {
        self.0.push(step).expect("no plan has more than MAX_STEPS steps");
    }
}
