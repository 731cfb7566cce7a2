//! Where the adversary's decisions come from: random numbers, or an enumeration of all of them.

/// Makes decisions. Number 0 is always the plain one: do nothing, or what a simple SMMU would do.
#[derive(Clone, Debug)]
pub struct Chooser {
    source: Source,
    paused: bool,
}

#[derive(Clone, Debug)]
enum Source {
    /// The state of a xorshift generator.
    Random(u64),
    /// Decisions to repeat, then plain ones; what was decided, and out of how many.
    Script { prefix: Vec<u32>, taken: Vec<(u32, u32)> },
}

impl Chooser {
    /// Decides at random, reproducibly.
    pub fn random(seed: u64) -> Self {
        // A xorshift state must not be 0.
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { source: Source::Random(state), paused: false }
    }

    /// Always decides for the plain one.
    pub fn plain() -> Self {
        Self::script(Vec::new())
    }

    fn script(prefix: Vec<u32>) -> Self {
        Self { source: Source::Script { prefix, taken: Vec::new() }, paused: false }
    }

    /// Decides for the plain one without counting it, or no longer does.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Whether it repeats a script rather than rolling dice.
    pub fn is_scripted(&self) -> bool {
        matches!(self.source, Source::Script { .. })
    }

    /// Decides for a number below `options`, of which there is at least one.
    pub fn choose(&mut self, options: usize) -> usize {
        if options <= 1 || self.paused {
            return 0;
        }
        match &mut self.source {
            Source::Random(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                (*state >> 33) as usize % options
            }
            Source::Script { prefix, taken } => {
                let choice = prefix.get(taken.len()).copied().unwrap_or(0);
                taken.push((choice, options as u32));
                choice as usize
            }
        }
    }

    /// Decides whether to do something unusual: at random once in `one_in` times.
    pub fn unusual(&mut self, one_in: usize) -> bool {
        match self.source {
            _ if self.paused => false,
            Source::Random(_) => self.choose(one_in) + 1 == one_in,
            Source::Script { .. } => self.choose(2) == 1,
        }
    }
}

/// Runs `run` with every sequence of decisions that deviates from the plain one at most `deviations` times,
/// and returns how many there were.
pub fn explore(deviations: usize, mut run: impl FnMut(Chooser) -> Chooser) -> u64 {
    let mut prefix = Vec::new();
    let mut runs = 0;
    loop {
        let Source::Script { taken, .. } = run(Chooser::script(prefix)).source else {
            unreachable!("a script stays one");
        };
        runs += 1;
        let deviates =
            |length: usize| taken[..length].iter().filter(|(choice, _)| *choice != 0).count();
        let next = (0..taken.len()).rev().find(|&at| {
            let (choice, options) = taken[at];
            choice + 1 < options && deviates(at) < deviations
        });
        let Some(at) = next else {
            return runs;
        };
        prefix = taken[..at].iter().map(|(choice, _)| *choice).collect();
        prefix.push(taken[at].0 + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_is_met_once() {
        let mut seen = Vec::new();
        let runs = explore(2, |mut chooser| {
            seen.push([chooser.choose(2), chooser.choose(3), chooser.choose(2)]);
            chooser
        });
        seen.sort_unstable();
        let count = seen.len();
        seen.dedup();
        // All 12 but the two with three deviations.
        assert_eq!((runs, seen.len(), count), (10, 10, 10));
    }

    #[test]
    fn a_plain_chooser_never_deviates() {
        let mut chooser = Chooser::plain();
        assert!((0..100).all(|_| chooser.choose(5) == 0 && !chooser.unusual(2)));
    }
}
