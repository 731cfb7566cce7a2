//! Physical memory after the run: the file that backs the machine's RAM, searched for an attacker's data.
//!
//! The data names its sender: word `i` of what a rogue's device writes is `nonce + i * 0x9e37_79b9`,
//! wrapping. Four such words in a row, anywhere but where they may be, are a hit.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;

use smmu::addr::PAGE_SIZE;

use crate::interval::IntervalSet;

/// What separates two neighbouring words.
pub const STEP: u32 = 0x9e37_79b9;

/// How many words in a row are no accident.
pub const RUN: u64 = 4;

/// The longest data that is searched for, in words.
pub const LONGEST: u32 = 1 << 20;

/// How many hits are kept; more do not make the verdict clearer.
pub const HITS: usize = 64;

/// `STEP`'s inverse modulo 2^32, so that a word tells its number.
const INVERSE: u32 = inverse(STEP);

const CHUNK: usize = 1 << 20;
const ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];

const fn inverse(odd: u32) -> u32 {
    // Newton's iteration doubles the number of right bits; an odd number is its own inverse modulo 8.
    let mut x = odd;
    let mut bits = 3;
    while bits < 32 {
        x = x.wrapping_mul(2_u32.wrapping_sub(odd.wrapping_mul(x)));
        bits *= 2;
    }
    x
}

/// The word number `index` that a rogue with `nonce` writes.
pub const fn word(nonce: u32, index: u32) -> u32 {
    nonce.wrapping_add(index.wrapping_mul(STEP))
}

/// Whether `word` is one that a rogue with `nonce` writes.
pub const fn is_of(nonce: u32, word: u32) -> bool {
    number(nonce, word) < LONGEST
}

/// The number of `word` in the data of a rogue with `nonce`.
const fn number(nonce: u32, word: u32) -> u32 {
    word.wrapping_sub(nonce).wrapping_mul(INVERSE)
}

/// The file that backs the machine's RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamFile {
    /// Where it is.
    pub path: PathBuf,
    /// The physical address of its first byte.
    pub base: u64,
}

/// An attacker's data in memory where it must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Whose.
    pub nonce: u32,
    /// Its physical addresses.
    pub at: Range<u64>,
    /// The number of its first word.
    pub index: u32,
}

/// What a search found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The first [`HITS`] hits in address order.
    pub hits: Vec<Hit>,
    /// How many bytes were searched.
    pub bytes: u64,
}

impl RamFile {
    /// Searches the whole file for data of `nonces`, except in the pages of `allowed` (page numbers of
    /// physical addresses), where an attacker may write to its heart's content.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn search(&self, nonces: &[u32], allowed: &IntervalSet) -> io::Result<Found> {
        search(File::open(&self.path)?, self.base, nonces, allowed)
    }

    /// Reads the words at the physical addresses `at`, each a multiple of 4; `None` for one that is not in
    /// the file.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn words(&self, at: &[u64]) -> io::Result<Vec<Option<u32>>> {
        let mut file = File::open(&self.path)?;
        let size = file.metadata()?.len();
        let mut read = |pa: u64| -> io::Result<Option<u32>> {
            let Some(offset) =
                pa.checked_sub(self.base).filter(|offset| offset.saturating_add(4) <= size)
            else {
                return Ok(None);
            };
            let mut bytes = [0; 4];
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(&mut bytes)?;
            Ok(Some(u32::from_le_bytes(bytes)))
        };
        at.iter().map(|&pa| read(pa)).collect()
    }
}

/// Searches `memory`, whose first byte is at `base`, for data of `nonces` outside of `allowed`.
fn search(
    mut memory: impl Read,
    base: u64,
    nonces: &[u32],
    allowed: &IntervalSet,
) -> io::Result<Found> {
    let mut searcher = Searcher { nonces, allowed, run: None, found: Found::default() };
    let mut chunk = vec![0; CHUNK];
    let mut pa = base;
    loop {
        let length = fill(&mut memory, &mut chunk)?;
        for page in chunk[..length].chunks(ZEROS.len()) {
            // Most of a machine's memory was never touched.
            if page == ZEROS {
                searcher.end_of_run();
            } else {
                searcher.page(pa, page);
            }
            pa += page.len() as u64;
        }
        searcher.found.bytes += length as u64;
        if length < CHUNK {
            break;
        }
    }
    searcher.end_of_run();
    Ok(searcher.found)
}

/// Fills `chunk` as far as there is something to read.
fn fill(memory: &mut impl Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < chunk.len() {
        match memory.read(&mut chunk[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

struct Searcher<'a> {
    nonces: &'a [u32],
    allowed: &'a IntervalSet,
    /// Neighbouring words, each a [`STEP`] above the one before.
    run: Option<Run>,
    found: Found,
}

struct Run {
    start: u64,
    end: u64,
    first: u32,
    last: u32,
}

impl Searcher<'_> {
    fn page(&mut self, pa: u64, page: &[u8]) {
        for (bytes, pa) in page.chunks_exact(4).zip((pa..).step_by(4)) {
            self.take(pa, u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        }
    }

    fn take(&mut self, pa: u64, word: u32) {
        match &mut self.run {
            Some(run) if word == run.last.wrapping_add(STEP) => {
                (run.end, run.last) = (pa + 4, word)
            }
            _ => {
                self.end_of_run();
                self.run = Some(Run { start: pa, end: pa + 4, first: word, last: word });
            }
        }
    }

    fn end_of_run(&mut self) {
        let Some(run) = self.run.take().filter(|run| run.end - run.start >= 4 * RUN) else {
            return;
        };
        let theirs = |nonce: &u32| is_of(*nonce, run.first);
        let Some(nonce) = self.nonces.iter().copied().find(theirs) else { return };
        let page = |pa: u64| pa / PAGE_SIZE;
        let pages: IntervalSet = std::iter::once(page(run.start)..page(run.end - 1) + 1).collect();
        for outside in pages.difference(self.allowed).iter() {
            let at = run.start.max(outside.start * PAGE_SIZE)..run.end.min(outside.end * PAGE_SIZE);
            if self.found.hits.len() < HITS {
                let skipped = u32::try_from((at.start - run.start) / 4).unwrap_or(u32::MAX);
                let index = number(nonce, run.first).wrapping_add(skipped);
                self.found.hits.push(Hit { nonce, at, index });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const BASE: u64 = 0x4000_0000;
    const NONCE: u32 = 0x1234_abcd;

    fn ram(pages: usize) -> Vec<u8> {
        vec![0; pages * PAGE_SIZE as usize]
    }

    fn put(ram: &mut [u8], pa: u64, words: std::ops::Range<u32>) {
        for (slot, index) in words.enumerate() {
            let at = (pa - BASE) as usize + 4 * slot;
            ram[at..at + 4].copy_from_slice(&word(NONCE, index).to_le_bytes());
        }
    }

    fn found(ram: &[u8], allowed: &IntervalSet) -> Vec<Hit> {
        search(ram, BASE, &[0x5555, NONCE], allowed).unwrap().hits
    }

    #[test]
    fn the_inverse_is_one() {
        assert_eq!(STEP.wrapping_mul(INVERSE), 1);
    }

    #[test]
    fn data_is_found_with_its_place_and_number() {
        let mut ram = ram(4);
        put(&mut ram, BASE + 0x1ffc, 7..12);
        let hits = found(&ram, &IntervalSet::new());
        assert_eq!(hits, [Hit { nonce: NONCE, at: BASE + 0x1ffc..BASE + 0x2010, index: 7 }]);
    }

    #[test]
    fn three_words_are_an_accident_four_are_not() {
        let mut ram = ram(1);
        put(&mut ram, BASE + 0x10, 0..3);
        assert_eq!(found(&ram, &IntervalSet::new()), []);
        put(&mut ram, BASE + 0x10, 0..4);
        assert_eq!(found(&ram, &IntervalSet::new()).len(), 1);
    }

    #[test]
    fn data_at_the_end_of_memory_and_across_chunks_is_found() {
        let mut ram = ram(2 * CHUNK / PAGE_SIZE as usize);
        let chunk = BASE + CHUNK as u64;
        put(&mut ram, chunk - 8, 0..4);
        let end = BASE + ram.len() as u64;
        put(&mut ram, end - 16, 0..4);
        let hits = found(&ram, &IntervalSet::new());
        assert_eq!(
            hits.iter().map(|hit| hit.at.clone()).collect::<Vec<_>>(),
            [chunk - 8..chunk + 8, end - 16..end]
        );
    }

    #[test]
    fn only_what_lies_outside_the_allowed_pages_counts() {
        let mut ram = ram(4);
        put(&mut ram, BASE + 0xf00, 0..70);
        let page = BASE / PAGE_SIZE;
        let allowed: IntervalSet = std::iter::once(page..page + 1).collect();
        let hits = found(&ram, &allowed);
        assert_eq!(hits, [Hit { nonce: NONCE, at: BASE + 0x1000..BASE + 0x1018, index: 64 }]);
        let allowed: IntervalSet = std::iter::once(page..page + 2).collect();
        assert_eq!(found(&ram, &allowed), []);
    }

    #[test]
    fn the_same_steps_from_another_start_are_somebody_elses() {
        let mut ram = ram(1);
        for i in 0..64 {
            let at = 4 * i as usize;
            ram[at..at + 4].copy_from_slice(&word(0xdead_beef, i).to_le_bytes());
        }
        assert_eq!(found(&ram, &IntervalSet::new()), []);
    }

    #[test]
    fn words_are_read_where_they_are_and_nowhere_else() {
        let mut ram = ram(1);
        put(&mut ram, BASE + 8, 0..1);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&ram).unwrap();
        let file = RamFile { path: file.path().into(), base: BASE };
        let words = file.words(&[BASE + 8, BASE - 4, BASE + 0xffc, BASE + 0x1000]).unwrap();
        assert_eq!(words, [Some(NONCE), None, Some(0), None]);
        assert_eq!(file.search(&[NONCE], &IntervalSet::new()).unwrap().bytes, 4096);
    }
}
