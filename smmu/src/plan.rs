//! In which order an STE is changed so that no transaction ever meets a mixture (section 3.21.3).
//!
//! The SMMU reads the eight words of an STE one by one, at any moment, and keeps what it read until it is
//! told to forget. A [`Plan`] is the list of stores, barriers and commands that is right nevertheless.

use heapless::Vec;

use crate::ste::{Ste, Words};

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

/// The longest plan: eight stores, twice the three steps that make them count, and one to tidy up.
const MAX_STEPS: usize = 8 + 2 * 3 + 1;

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

    /// From `old` to `new` while transactions go on, if they differ in no more than one word of those that
    /// count in both: first what only `new` looks at, then that word, then what only `old` looked at.
    /// `None` otherwise, and if nothing changes at all: close and open instead, or do nothing.
    pub fn between(old: &Ste, new: &Ste) -> Option<Self> {
        let (from, to) = (old.encode(), new.encode());
        let (seen, wanted) = (old.used(), new.used());
        // What can be written before anybody looks at it.
        let ready: Words =
            core::array::from_fn(|word| from[word] & seen[word] | to[word] & !seen[word]);
        let mut critical = (0..8).filter(|&word: &u8| {
            (ready[word as usize] ^ to[word as usize]) & wanted[word as usize] != 0
        });
        let word = critical.next()?;
        if critical.next().is_some() {
            return None;
        }
        let mut plan = Self(Vec::new());
        let changes = |a: &Words, b: &Words, other: u8| {
            other != word && a[other as usize] != b[other as usize]
        };
        for other in (0..8).filter(|&other| changes(&from, &ready, other)) {
            plan.store(other, ready[other as usize]);
        }
        if !plan.0.is_empty() {
            plan.commit();
        }
        plan.store(word, to[word as usize]);
        plan.commit();
        for other in (0..8).filter(|&other| changes(&ready, &to, other)) {
            plan.store(other, to[other as usize]);
        }
        if !matches!(plan.0.last(), Some(Step::Sync)) {
            plan.push(Step::Publish);
        }
        Some(plan)
    }

    /// How many `Cfgi` come before the store that makes the new STE visible.
    pub(crate) fn cfgi_before_change(&self) -> u64 {
        let cfgi = self.0.iter().filter(|step| **step == Step::Cfgi).count() as u64;
        cfgi.saturating_sub(1)
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
    use crate::addr::{Ipa, Pa, Vmid};
    use crate::stage2::Format;
    use crate::ste::{Stage1Config, Stage2Config, SteError};

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
        let effective = match words[0] & 0xf {
            0b0001 => [1, 0, 0, 0, 0, 0, 0, 0],
            // Stage 2 only: S1ContextPtr, S1CIR, S1COR and S1CSH are ignored.
            0b1101 => {
                let [_, word1, rest @ ..] = *words;
                let mut effective = [0b1101, word1 & !0xfc, 0, 0, 0, 0, 0, 0];
                effective[2..].copy_from_slice(&rest);
                effective
            }
            _ => *words,
        };
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

    fn any_stage2() -> impl Strategy<Value = Stage2Config> {
        (0_u8..2, 0_u64..2, 38_u8..=39, any::<bool>(), any::<bool>()).prop_map(
            |(vmid, root, bits, fwb, record)| Stage2Config {
                vmid: Vmid(vmid.into()),
                root: Pa::new((root + 1) << 24),
                format: Format::new(bits, 44, fwb).unwrap(),
                record,
                stall_disable: false,
            },
        )
    }

    fn any_stage1() -> impl Strategy<Value = Stage1Config> {
        (1_u64..4, 0_u8..2, 2_u8..4).prop_map(|(context, inner, shareability)| Stage1Config {
            context: Ipa::new(context << 12),
            inner,
            outer: 1,
            shareability,
        })
    }

    fn any_ste() -> impl Strategy<Value = Ste> {
        prop_oneof![
            1 => Just(Ste::Abort),
            4 => any_stage2().prop_map(Ste::Stage2),
            4 => (any_stage1(), any_stage2()).prop_map(|(stage1, stage2)| Ste::Nested(stage1, stage2)),
        ]
    }

    proptest! {
        #![proptest_config(crate::fake::cases(256))]

        #[test]
        fn no_moment_of_any_transition_is_valid_and_wrong(old in any_ste(), new in any_ste()) {
            let abort = Ste::Abort.encode();
            let mut words = old.encode();
            if let Some(plan) = Plan::between(&old, &new) {
                prop_assert_eq!(run(&plan, &words, &[old, new]), new.encode());
            }
            words = run(&Plan::close(&abort), &words, &[old, Ste::Abort]);
            prop_assert_eq!(words, abort);
            words = run(&Plan::open(&new.encode()), &words, &[Ste::Abort, new]);
            prop_assert_eq!(words, new.encode());
        }

        /// A stage 1 put on the same stage 2, or taken away again, interrupts nothing; nor does a change of
        /// one word.
        #[test]
        fn one_guests_steps_are_hitless(stage1 in any_stage1(), other in any_stage1(), stage2 in any_stage2()) {
            let (bypass, nested) = (Ste::Stage2(stage2), Ste::Nested(stage1, stage2));
            prop_assert!(Plan::between(&bypass, &nested).is_some());
            prop_assert!(Plan::between(&nested, &bypass).is_some());
            let moved = Stage1Config { context: Ipa::new(stage1.context.raw() ^ 1 << 20), ..stage1 };
            prop_assert!(Plan::between(&nested, &Ste::Nested(moved, stage2)).is_some());
            let twice = stage1.context != other.context && stage1.inner != other.inner;
            if twice {
                prop_assert!(Plan::between(&nested, &Ste::Nested(other, stage2)).is_none());
            }
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

    /// Every store is published once, and nothing is published for nothing; a change that needs no preparation is
    /// seen before any command.
    #[test]
    fn a_plan_says_nothing_twice() {
        let format = Format::new(40, 44, false).unwrap();
        let config = |record| Stage2Config {
            vmid: Vmid(3),
            root: Pa::new(0x4000_0000),
            format,
            record,
            stall_disable: false,
        };
        let stage1 =
            Stage1Config { context: Ipa::new(0x8000), inner: 1, outer: 1, shareability: 3 };
        let (on, off) = (Ste::Stage2(config(true)), Ste::Stage2(config(false)));
        let nested = Ste::Nested(stage1, config(true));
        for (old, new, before) in [
            (&on, &off, 0),
            (&off, &on, 0),
            (&on, &nested, 1),
            (&nested, &on, 0),
            (&nested, &Ste::Abort, 0),
            (&Ste::Abort, &nested, 1),
        ] {
            let plan = Plan::between(old, new).unwrap();
            assert_eq!(plan.cfgi_before_change(), before, "{plan:?}");
            let mut unpublished = 0;
            for step in plan.steps() {
                match step {
                    Step::Store { .. } => unpublished += 1,
                    Step::Publish => assert_ne!(core::mem::take(&mut unpublished), 0, "{plan:?}"),
                    Step::Cfgi | Step::Sync => {}
                }
            }
            assert_eq!(unpublished, 0, "{plan:?}");
        }
    }

    #[test]
    fn nothing_to_change_is_no_plan() {
        assert_eq!(Plan::between(&Ste::Abort, &Ste::Abort), None);
    }
}
