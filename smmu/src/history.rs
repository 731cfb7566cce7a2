//! What states a stream was in, in as few bytes as that takes: a judge who compares with what arrived when needs all of
//! them, and a guest's driver that comes and goes makes hundreds.

use heapless::Deque;

use crate::streams::{State, Transition};

/// Bytes that a stream's history may take: as many transitions if few `CMD_CFGI_STE` are between each two.
pub(crate) const HISTORY_BYTES: usize = 512;

/// The last changes of one stream.
///
/// A change is one byte, the state and how many more commands than at the change before it; where those are too many,
/// [`FAR`] in their place and eight bytes with their number.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    codes: Deque<u8, HISTORY_BYTES>,
    /// The commands before the first change, and at the last one.
    first: u64,
    last: u64,
}

/// Stands for a number that does not fit beside the state.
const FAR: u8 = 0x3f;
/// Bytes of a change with such a number.
const FAR_BYTES: usize = 9;

impl History {
    pub(crate) const fn new() -> Self {
        Self { codes: Deque::new(), first: 0, last: 0 }
    }

    /// Adds a change; the oldest ones make room for it. There are never fewer commands than at the last one.
    pub(crate) fn add(&mut self, Transition { state, cfgi }: Transition) {
        let more = cfgi.saturating_sub(self.last);
        self.last += more;
        // Every stream that is closed comes here, almost always with a number that is near, and with room.
        let near = if more < FAR.into() { more as u8 } else { FAR };
        let length = if near < FAR { 1 } else { FAR_BYTES };
        while self.codes.len() + length > HISTORY_BYTES {
            let mut codes = self.codes.iter().copied();
            let Some((oldest, length)) = decode(&mut codes) else { break };
            self.first += oldest.cfgi;
            for _ in 0..length {
                let _ = self.codes.pop_front();
            }
        }
        // There is room now.
        let _ = self.codes.push_back(code(state) << 6 | near);
        if near == FAR {
            for byte in more.to_le_bytes() {
                let _ = self.codes.push_back(byte);
            }
        }
    }

    /// The changes, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Transition> + '_ {
        let mut codes = self.codes.iter().copied();
        let mut cfgi = self.first;
        core::iter::from_fn(move || {
            let (Transition { state, cfgi: more }, _) = decode(&mut codes)?;
            cfgi += more;
            Some(Transition { state, cfgi })
        })
    }
}

/// The next change, with the number of commands since the one before it, and how many bytes it takes.
fn decode(codes: &mut impl Iterator<Item = u8>) -> Option<(Transition, usize)> {
    let code = codes.next()?;
    let state = STATES[usize::from(code >> 6)];
    if code & FAR < FAR {
        return Some((Transition { state, cfgi: (code & FAR).into() }, 1));
    }
    let cfgi =
        (0..8).try_fold(0, |sum, byte| Some(sum | u64::from(codes.next()?) << (8 * byte)))?;
    Some((Transition { state, cfgi }, FAR_BYTES))
}

/// The states in the order of their codes.
const STATES: [State; 4] = [State::Abort, State::Watch, State::Stage2, State::Nested];

const fn code(state: State) -> u8 {
    match state {
        State::Abort => 0,
        State::Watch => 1,
        State::Stage2 => 2,
        State::Nested => 3,
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn change(state: State, cfgi: u64) -> Transition {
        Transition { state, cfgi }
    }

    fn remembered(history: &History) -> Vec<Transition> {
        history.iter().collect()
    }

    #[test]
    fn a_driver_that_comes_and_goes_two_hundred_times_is_remembered() {
        let mut history = History::new();
        let rounds: Vec<_> = (0..200)
            .flat_map(|round| {
                [change(State::Nested, 4 * round), change(State::Watch, 4 * round + 2)]
            })
            .collect();
        rounds.iter().for_each(|&round| history.add(round));
        assert_eq!(remembered(&history), rounds);
    }

    #[test]
    fn every_state_has_a_code() {
        for (at, state) in STATES.into_iter().enumerate() {
            assert_eq!(usize::from(code(state)), at);
        }
    }

    #[test]
    fn the_oldest_make_room() {
        let mut history = History::new();
        for cfgi in 0..2_000 {
            history.add(change(if cfgi % 2 == 0 { State::Stage2 } else { State::Abort }, cfgi));
        }
        let known = remembered(&history);
        assert_eq!(known.len(), HISTORY_BYTES);
        assert_eq!(known.first(), Some(&change(State::Stage2, 2_000 - HISTORY_BYTES as u64)));
        assert_eq!(known.last(), Some(&change(State::Abort, 1_999)));
    }

    proptest! {
        /// What is remembered is the end of what was added, whatever lies between two changes.
        #[test]
        fn nothing_but_the_oldest_is_lost(
            steps in prop::collection::vec((0..4_usize, prop_oneof![0..70_u64, 0..1_000_000_u64, 0..1_u64 << 40]), 0..1_000),
        ) {
            let mut history = History::new();
            let mut cfgi = 0;
            let all: Vec<_> = steps
                .into_iter()
                .map(|(state, more)| {
                    cfgi += more;
                    change(STATES[state], cfgi)
                })
                .collect();
            all.iter().for_each(|&step| history.add(step));
            let known = remembered(&history);
            prop_assert!(all.ends_with(&known));
            prop_assert!(known.len() >= all.len().min(HISTORY_BYTES / FAR_BYTES));
        }
    }
}
