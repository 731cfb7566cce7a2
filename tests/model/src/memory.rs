//! Physical memory as two parties see it: the CPU at once, the SMMU when a barrier forces it or chance
//! lets it.

use std::collections::{BTreeMap, HashMap};

use crate::chooser::Chooser;

const PAGE: u64 = 4096;
const WORDS: usize = 512;

/// What unwritten and returned memory contains. As an STE it is valid and has stage 1 only, as a descriptor
/// it leads to [`FORBIDDEN`]: whoever believes it is caught.
pub const POISON: u64 = FORBIDDEN | 1 << 10 | 3 << 6 | 0b1011;
/// Memory that belongs to nobody.
pub const FORBIDDEN: u64 = 0xbad_0000_0000;

/// A store that the SMMU may not see yet.
#[derive(Clone, Debug)]
enum Pending {
    Word { at: u64, value: u64 },
    Zeros { at: u64, size: u64 },
}

impl Pending {
    fn at_word(&self, word: u64) -> Option<u64> {
        match *self {
            Self::Word { at, value } => (at == word).then_some(value),
            Self::Zeros { at, size } => (at..at + size).contains(&word).then_some(0),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct View(HashMap<u64, Box<[u64; WORDS]>>);

impl View {
    fn load(&self, at: u64) -> u64 {
        self.0.get(&(at / PAGE)).map_or(POISON, |page| page[(at % PAGE / 8) as usize])
    }

    fn store(&mut self, at: u64, value: u64) {
        let page = self.0.entry(at / PAGE).or_insert_with(|| Box::new([POISON; WORDS]));
        page[(at % PAGE / 8) as usize] = value;
    }

    fn fill(&mut self, at: u64, size: u64, value: u64) {
        for page in at / PAGE..(at + size) / PAGE {
            self.0.insert(page, Box::new([value; WORDS]));
        }
    }

    fn apply(&mut self, pending: &Pending) {
        match *pending {
            Pending::Word { at, value } => self.store(at, value),
            Pending::Zeros { at, size } => self.fill(at, size, 0),
        }
    }
}

/// Physical memory.
#[derive(Clone, Debug, Default)]
pub struct PhysicalMemory {
    cpu: View,
    smmu: View,
    /// Stores in program order, each with the number of barriers before it.
    pending: Vec<(u32, Pending)>,
    barriers: u32,
    /// Blocks that are given out: size by address.
    live: BTreeMap<u64, u64>,
}

impl PhysicalMemory {
    /// The word as the CPU sees it.
    pub fn load(&self, at: u64) -> u64 {
        self.cpu.load(at)
    }

    /// Stores as the CPU.
    pub fn store(&mut self, at: u64, value: u64) {
        self.cpu.store(at, value);
        self.pending.push((self.barriers, Pending::Word { at, value }));
    }

    /// Stores made so far become visible before any later one.
    pub fn barrier(&mut self) {
        self.barriers += 1;
    }

    /// All stores become visible.
    pub fn flush(&mut self) {
        for (_, pending) in self.pending.drain(..) {
            self.smmu.apply(&pending);
        }
    }

    /// Some store becomes visible, and with it whatever has to be visible before.
    pub fn leak(&mut self, chooser: &mut Chooser) {
        if !self.pending.is_empty() {
            let index = chooser.choose(self.pending.len());
            self.show(index);
        }
    }

    /// The word as the SMMU sees it, which may see any of the stores that are still on their way. Whoever
    /// has seen one sees nothing older later on.
    pub fn observe(&mut self, at: u64, chooser: &mut Chooser) -> u64 {
        let stores: Vec<usize> = (0..self.pending.len())
            .filter(|&index| self.pending[index].1.at_word(at).is_some())
            .collect();
        let choice = chooser.choose(stores.len() + 1);
        if let Some(index) = choice.checked_sub(1) {
            self.show(stores[index]);
        }
        self.smmu.load(at)
    }

    /// Stores as the SMMU or a device.
    pub fn store_dma(&mut self, at: u64, value: u64) {
        self.cpu.store(at, value);
        self.smmu.store(at, value);
    }

    /// Clears whole pages for everybody.
    pub fn clear_dma(&mut self, at: u64, size: u64) {
        self.cpu.fill(at, size, 0);
        self.smmu.fill(at, size, 0);
    }

    fn show(&mut self, index: usize) {
        let (barriers, shown) = self.pending[index].clone();
        let mut position = 0;
        let Self { smmu, pending, .. } = self;
        pending.retain(|(before, store)| {
            let first = *before < barriers;
            let same = position <= index
                && match &shown {
                    Pending::Word { at, .. } => store.at_word(*at).is_some(),
                    Pending::Zeros { .. } => position == index,
                };
            position += 1;
            if first || same {
                smmu.apply(store);
            }
            !(first || same)
        });
    }

    /// Gives out a zeroed block: its zeros are stores like any other.
    pub fn allocate(&mut self, at: u64, size: u64) {
        self.live.insert(at, size);
        self.cpu.fill(at, size, 0);
        self.pending.push((self.barriers, Pending::Zeros { at, size }));
    }

    /// Takes a block back and poisons it.
    pub fn release(&mut self, at: u64, size: u64) {
        assert_eq!(self.live.remove(&at), Some(size), "{at:#x} was not given out");
        self.flush();
        self.cpu.fill(at, size, POISON);
        self.smmu.fill(at, size, POISON);
    }

    /// Whether the address lies in a block that is given out.
    pub fn is_live(&self, at: u64) -> bool {
        self.live.range(..=at).next_back().is_some_and(|(start, size)| at - start < *size)
    }

    /// How many blocks are given out.
    pub fn live_blocks(&self) -> usize {
        self.live.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything the SMMU can see of two words, when it looks at the second first.
    fn sightings(barrier: bool) -> Vec<(u64, u64)> {
        let mut seen = Vec::new();
        crate::chooser::explore(4, |mut chooser| {
            let mut memory = PhysicalMemory::default();
            memory.allocate(0, PAGE);
            memory.flush();
            memory.store(0, 1);
            if barrier {
                memory.barrier();
            }
            memory.store(8, 2);
            let second = memory.observe(8, &mut chooser);
            seen.push((memory.observe(0, &mut chooser), second));
            chooser
        });
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn only_a_barrier_orders_stores() {
        assert_eq!(sightings(false), [(0, 0), (0, 2), (1, 0), (1, 2)]);
        assert_eq!(sightings(true), [(0, 0), (1, 0), (1, 2)]);
    }

    #[test]
    fn fresh_memory_may_look_poisoned_until_it_is_published() {
        let mut memory = PhysicalMemory::default();
        memory.allocate(PAGE, PAGE);
        let mut plain = Chooser::plain();
        assert_eq!((memory.load(PAGE), memory.observe(PAGE, &mut plain)), (0, POISON));
        memory.flush();
        assert_eq!(memory.observe(PAGE, &mut plain), 0);
        assert!(memory.is_live(2 * PAGE - 8) && !memory.is_live(2 * PAGE));
        memory.release(PAGE, PAGE);
        assert_eq!((memory.load(PAGE), memory.is_live(PAGE)), (POISON, false));
    }
}
