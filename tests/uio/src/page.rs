//! Pages of the program whose address a device can be given.

use crate::arch::map::Mapping;
use crate::arch::system::File;

/// Bytes in a page.
pub const PAGE: usize = 4096;
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// One page of memory, kept by a file of its own: it stays where it is while nothing maps it.
///
/// Linux may move pages where memory is short or badly cut up, which the few programs of this guest do not bring
/// about; [`Page::check`] tells.
pub struct Page {
    file: File,
    mapping: Option<Mapping>,
    /// Where the VM has it: its IPA.
    pub address: u64,
}

impl Page {
    /// Takes a page.
    ///
    /// # Errors
    ///
    /// A reason if there is none, or if its address is kept secret.
    pub fn new() -> Result<Self, &'static str> {
        let file = File::in_memory(c"page", PAGE).map_err(|_| "no memory file")?;
        let mapping = Mapping::new(&file, PAGE).map_err(|_| "a memory file cannot be mapped")?;
        let address = physical(&mapping)?;
        Ok(Self { file, mapping: Some(mapping), address })
    }

    /// Lets go of the page: its address is stale now, as far as this program is concerned.
    pub fn unmap(&mut self) {
        self.mapping = None;
    }

    /// Gets the page back.
    ///
    /// # Errors
    ///
    /// A reason if it cannot be had, or is another one now.
    pub fn map_again(&mut self) -> Result<(), &'static str> {
        let mapping =
            Mapping::new(&self.file, PAGE).map_err(|_| "a memory file cannot be mapped")?;
        self.mapping = Some(mapping);
        self.check()
    }

    /// Whether the page is where it was: what was told of it holds only then.
    ///
    /// # Errors
    ///
    /// A reason if it is not.
    pub fn check(&self) -> Result<(), &'static str> {
        if physical(self.mapped()?)? == self.address { Ok(()) } else { Err("Linux moved a page") }
    }

    /// Fills its first `words` words.
    ///
    /// # Errors
    ///
    /// A reason if it is not mapped.
    pub fn fill(&self, words: u32, pattern: impl Fn(u32) -> u32) -> Result<(), &'static str> {
        let mapping = self.mapped()?;
        (0..words).for_each(|index| mapping.write32(4 * index as usize, pattern(index)));
        Ok(())
    }

    /// How many of its first `words` words follow the pattern.
    ///
    /// # Errors
    ///
    /// A reason if it is not mapped.
    pub fn matching(&self, words: u32, pattern: impl Fn(u32) -> u32) -> Result<u32, &'static str> {
        let mapping = self.mapped()?;
        let matches = |&index: &u32| mapping.read32(4 * index as usize) == pattern(index);
        Ok((0..words).filter(matches).count() as u32)
    }

    fn mapped(&self) -> Result<&Mapping, &'static str> {
        self.mapping.as_ref().ok_or("a page is not mapped")
    }
}

/// Where a mapped page is, as `/proc/self/pagemap` says to root.
fn physical(mapping: &Mapping) -> Result<u64, &'static str> {
    let pagemap = File::open_to_read(c"/proc/self/pagemap").map_err(|_| "no /proc/self/pagemap")?;
    let mut entry = [0; 8];
    let at = (mapping.address() / PAGE * entry.len()) as u64;
    pagemap.read(&mut entry, at).map_err(|_| "/proc/self/pagemap cannot be read")?;
    match u64::from_le_bytes(entry) {
        entry if entry & PRESENT != 0 && entry & FRAME != 0 => Ok((entry & FRAME) * PAGE as u64),
        _ => Err("/proc/self/pagemap does not say where a page is"),
    }
}
