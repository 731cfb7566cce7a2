//! What the SMMU has cached. An entry that a command names is *doomed*: it may still be used, until a
//! `CMD_SYNC` completes.

use crate::decode::Range;

/// An STE as it was read, word by word, at some moments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedSte {
    pub sid: u32,
    pub words: [u64; 8],
    pub doomed: bool,
}

/// An STE of which some words were read.
#[derive(Clone, Debug)]
pub struct Fetch {
    pub sid: u32,
    pub at: u64,
    pub words: [Option<u64>; 8],
    pub doomed: bool,
}

/// A level-1 descriptor of the stream table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedLevel1 {
    pub index: u64,
    pub word: u64,
    pub doomed: bool,
}

/// A CD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedCd {
    pub sid: u32,
    pub words: [u64; 8],
    pub doomed: bool,
}

/// A table descriptor met on a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    pub vmid: u16,
    /// The address space of a stage-1 walk; `None` in stage 2.
    pub asid: Option<u16>,
    pub level: u32,
    pub base: u64,
    pub size: u64,
    pub next: u64,
    pub doomed: bool,
}

/// A translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    pub vmid: u16,
    /// The address space of a translation by both stages; `None` for stage 2 alone.
    pub asid: Option<u16>,
    pub base: u64,
    pub size: u64,
    /// The intermediate physical address of `base`.
    pub ipa: u64,
    /// The physical address of `base`.
    pub pa: u64,
    pub read: bool,
    pub write: bool,
    pub doomed: bool,
}

impl Translation {
    pub fn covers(&self, address: u64) -> bool {
        overlaps((self.base, self.size), (address, 1))
    }
}

pub fn overlaps((a, a_size): Range, (b, b_size): Range) -> bool {
    let (a, b) = (u128::from(a), u128::from(b));
    a < b + u128::from(b_size) && b < a + u128::from(a_size)
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Caches {
    pub stes: Vec<CachedSte>,
    pub fetches: Vec<Fetch>,
    pub level1: Vec<CachedLevel1>,
    pub cds: Vec<CachedCd>,
    pub walks: Vec<Walk>,
    pub translations: Vec<Translation>,
}

/// Adds an entry unless it is there.
pub fn remember<T: PartialEq>(entries: &mut Vec<T>, entry: T) {
    if !entries.contains(&entry) {
        entries.push(entry);
    }
}

impl Caches {
    /// Drops what is doomed.
    pub fn complete(&mut self) {
        self.stes.retain(|entry| !entry.doomed);
        self.fetches.retain(|entry| !entry.doomed);
        self.level1.retain(|entry| !entry.doomed);
        self.cds.retain(|entry| !entry.doomed);
        self.walks.retain(|entry| !entry.doomed);
        self.translations.retain(|entry| !entry.doomed);
    }

    pub fn doom_configuration(&mut self, first: u32, last: u32, split: u32, level1: bool) {
        let named = first..=last;
        self.doom_contexts(first, last);
        for entry in self.stes.iter_mut().filter(|entry| named.contains(&entry.sid)) {
            entry.doomed = true;
        }
        for entry in self.fetches.iter_mut().filter(|entry| named.contains(&entry.sid)) {
            entry.doomed = true;
        }
        if level1 {
            let named = u64::from(first >> split)..=u64::from(last >> split);
            for entry in self.level1.iter_mut().filter(|entry| named.contains(&entry.index)) {
                entry.doomed = true;
            }
        }
    }

    pub fn doom_contexts(&mut self, first: u32, last: u32) {
        for entry in self.cds.iter_mut().filter(|entry| (first..=last).contains(&entry.sid)) {
            entry.doomed = true;
        }
    }

    pub fn doom_translations(
        &mut self,
        walk: impl Fn(&Walk) -> bool,
        translation: impl Fn(&Translation) -> bool,
    ) {
        for entry in self.walks.iter_mut().filter(|entry| walk(entry)) {
            entry.doomed = true;
        }
        for entry in self.translations.iter_mut().filter(|entry| translation(entry)) {
            entry.doomed = true;
        }
    }

    /// Forgets one entry by chance, as a cache may at any time.
    pub fn evict(&mut self, choice: usize) {
        fn pick<T>(entries: &mut Vec<T>, choice: usize) {
            if !entries.is_empty() {
                entries.swap_remove(choice % entries.len());
            }
        }
        let which = choice / 8;
        match choice % 6 {
            0 => pick(&mut self.stes, which),
            1 => pick(&mut self.translations, which),
            2 => pick(&mut self.walks, which),
            3 => pick(&mut self.level1, which),
            4 => pick(&mut self.cds, which),
            _ => pick(&mut self.fetches, which),
        }
    }
}
