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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::addr::{Pa, Vmid};
    use crate::stage2::Format;
    use crate::ste::{Stage2Config, Ste, SteError};

    /// All that the SMMU may hold of each word while it follows the rules: any value that was there since
    /// the last completed `CMD_CFGI_STE`, stored or still on its way.
    struct Observer {
        seen: [Vec<u64>; 8],
        memory: Words,
        published: bool,
        forgotten: Option<Words>,
    }

    impl Observer {
        fn new(words: &Words) -> Self {
            Self {
                seen: words.map(|word| vec![word]),
                memory: *words,
                published: true,
                forgotten: None,
            }
        }

        fn step(&mut self, step: Step) {
            match step {
                Step::Store { word, value } => {
                    self.memory[word as usize] = value;
                    self.seen[word as usize].push(value);
                    self.published = false;
                    // A fetch after the CFGI may see it as well.
                    self.forgotten = None;
                }
                Step::Publish => self.published = true,
                // What is not published may reach memory any time later: the CFGI comes too early for it.
                Step::Cfgi => self.forgotten = self.published.then_some(self.memory),
                Step::Sync => {
                    if let Some(memory) = self.forgotten.take() {
                        self.seen = memory.map(|word| vec![word]);
                    }
                }
            }
        }

        /// Every STE that the SMMU may act on now.
        fn mixtures(&mut self) -> Vec<Words> {
            let mut mixtures = vec![self.memory];
            for word in 0..8 {
                self.seen[word].sort_unstable();
                self.seen[word].dedup();
                mixtures = mixtures
                    .iter()
                    .flat_map(|words| {
                        self.seen[word].iter().map(move |value| {
                            let mut mixed = *words;
                            mixed[word] = *value;
                            mixed
                        })
                    })
                    .collect();
            }
            mixtures
        }
    }

    /// What an STE does to transactions. Words that its first word makes irrelevant do not count.
    fn meaning(words: &Words) -> Result<Ste, SteError> {
        let effective = if words[0] & 0xf == 1 { [words[0], 0, 0, 0, 0, 0, 0, 0] } else { *words };
        Ste::decode(&effective)
    }

    /// Runs a plan and checks that each moment shows only `allowed`. Returns what is left in the end.
    fn run(plan: &Plan, old: &Words, allowed: &[Ste]) -> Words {
        let mut observer = Observer::new(old);
        for step in plan.steps() {
            observer.step(*step);
            for words in observer.mixtures() {
                let ste = meaning(&words).expect("a mixture is no STE at all");
                assert!(allowed.contains(&ste), "{step:?} of {plan:?} lets the SMMU see {ste:?}");
            }
        }
        let last = observer.mixtures();
        let done = meaning(&last[0]);
        assert!(
            last.iter().all(|words| meaning(words) == done),
            "the plan ends before its effect is certain"
        );
        observer.memory
    }

    fn any_ste() -> impl Strategy<Value = Ste> {
        let stage2 =
            (any::<u8>(), 0_u64..4, 38_u8..=44, any::<bool>(), any::<bool>(), any::<bool>())
                .prop_map(|(vmid, root, bits, fwb, record, stall_disable)| {
                    let format = Format::new(bits, 44, fwb).unwrap();
                    let root = Pa::new((root + 1) << 24);
                    Ste::Stage2(Stage2Config {
                        vmid: Vmid(vmid.into()),
                        root,
                        format,
                        record,
                        stall_disable,
                    })
                });
        prop_oneof![1 => Just(Ste::Abort), 4 => stage2]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_moment_of_any_transition_is_valid_and_wrong(old in any_ste(), new in any_ste()) {
            let abort = Ste::Abort.encode();
            let mut words = old.encode();
            if let Some(plan) = Plan::amend(&words, &new.encode()) {
                prop_assert_eq!(run(&plan, &words, &[old, new]), new.encode());
            }
            words = run(&Plan::close(&abort), &words, &[old, Ste::Abort]);
            prop_assert_eq!(words, abort);
            words = run(&Plan::open(&new.encode()), &words, &[Ste::Abort, new]);
            prop_assert_eq!(words, new.encode());
        }
    }

    #[test]
    fn a_close_counts_from_its_first_sync_on() {
        let plan = Plan::close(&Ste::Abort.encode());
        let (before, after) = plan.around_sync();
        assert_eq!(before, [Step::Store { word: 0, value: 1 }, Step::Publish, Step::Cfgi]);
        assert_eq!(after.len(), 8);
        assert!(
            after
                .iter()
                .all(|step| matches!(step, Step::Store { value: 0, word: 1..8 } | Step::Publish))
        );
    }

    #[test]
    fn only_one_word_can_change_under_way() {
        assert_eq!(Plan::amend(&[0; 8], &[0; 8]), None);
        assert!(Plan::amend(&[0; 8], &[0, 0, 5, 0, 0, 0, 0, 0]).is_some());
        assert_eq!(Plan::amend(&[0; 8], &[0, 0, 5, 5, 0, 0, 0, 0]), None);
    }
}
