//! Events on their way from a physical SMMU to the VM whose they may be.
//!
//! They are drained under a physical SMMU's lock, and handed on under that of the VM's virtual one, which comes first.
//! So they wait here in between, at most so many; what does not fit is lost, as in a queue of the hardware, and counted.

use heapless::Deque;
use smmu::event::{Event, Words};

/// The most events that wait: one more than the largest queue of a guest's has room for, so that a burst which fills
/// that queue is told to the guest as an overflow and not lost in silence here.
const MAX_WAITING: usize = 257;

/// Events that wait, oldest first, each with the number of its SMMU.
#[derive(Debug)]
pub struct Inbox {
    waiting: Deque<(u8, Words), MAX_WAITING>,
    lost: u64,
}

impl Inbox {
    /// Nothing waits.
    pub const fn new() -> Self {
        Self { waiting: Deque::new(), lost: 0 }
    }

    /// Puts an event of SMMU number `smmu` behind the others, or loses it.
    pub fn put(&mut self, smmu: u8, event: &Event) {
        if self.waiting.push_back((smmu, event.words)).is_err() {
            self.lost += 1;
        }
    }

    /// Takes the oldest event.
    pub fn take(&mut self) -> Option<(u8, Event)> {
        self.waiting.pop_front().map(|(smmu, words)| (smmu, Event::decode(words)))
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets what waits: its VM has ended.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// How many were lost, over all.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64) -> Event {
        Event::decode([0x10 | 5 << 32, 0, number << 12, 0])
    }

    #[test]
    fn events_come_out_in_order_with_their_smmu() {
        let mut inbox = Inbox::new();
        inbox.put(1, &event(7));
        inbox.put(0, &event(8));
        assert_eq!(inbox.take(), Some((1, event(7))));
        assert_eq!(inbox.take(), Some((0, event(8))));
        assert_eq!(inbox.take(), None);
    }

    #[test]
    fn a_storm_loses_its_newest_events_and_says_how_many() {
        let mut inbox = Inbox::new();
        for number in 0..MAX_WAITING as u64 + 3 {
            inbox.put(0, &event(number));
        }
        assert_eq!(inbox.lost(), 3);
        assert_eq!(inbox.take(), Some((0, event(0))));
        inbox.clear();
        assert_eq!((inbox.take(), inbox.lost()), (None, 3));
    }
}
