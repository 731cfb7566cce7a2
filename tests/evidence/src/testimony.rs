//! What the guests say: the lines that start with `@` on their consoles.
//!
//! ```text
//! @tried device=00:01.0 op=write address=0x40400000 accesses=1024 arrived=1024
//! @armed device=00:02.0 op=write address=0x40400000 accesses=1
//! @canary page=0x40500000 ok
//! @canary page=0x40600000 changed=0x40600010 words=3
//! @disk name=nvme0n1 bytes=1048576 sha256=ok
//! @done role=victim
//! ```
//!
//! A guest that drives an SMMU of its own says with `to=` where that leads an address, or that it leads `nowhere`, or
//! that it cannot tell: `anywhere`.
//!
//! Every line is `@kind key=value ...`; a bare `FAILED` or a value `BAD` says that the guest found something
//! wrong, and `why=` takes the rest of the line. A guest speaks for itself only: EL2 puts its name before each line.

use std::collections::BTreeMap;

use platform::console;

/// How many lines one guest may testify. A guest that talks endlessly is not believed.
pub const LIMIT: usize = 1 << 16;

/// The most 4-byte accesses that one DMA may have: more than any device here does at once.
pub const LONGEST: u64 = 1 << 20;

/// The kinds of lines. A guest may print other lines with `@`; they mean nothing.
const KINDS: [&str; 8] =
    ["armed", "canary", "check", "disk", "done", "interrupts", "iommu", "tried"];

/// What all guests said.
#[derive(Clone, Debug, Default)]
pub struct Testimony {
    guests: BTreeMap<String, Guest>,
    expected: Vec<Expected>,
}

#[derive(Clone, Debug)]
struct Expected {
    vm: String,
    /// As it was given.
    text: String,
    /// As it is printed.
    printed: String,
    seen: bool,
    /// The end of what came of an unfinished line, as long as the text can begin in it.
    begun: String,
}

impl Expected {
    /// Takes a piece of a line; `ended` says whether it is the last.
    fn hear(&mut self, piece: &str, ended: bool) {
        let mut line = std::mem::take(&mut self.begun);
        line += piece;
        self.seen |= line.contains(&self.printed);
        if !ended {
            let kept = line.len().saturating_sub(self.printed.len());
            self.begun = line.split_off(line.floor_char_boundary(kept));
        }
    }
}

/// What one guest said, over all its boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guest {
    /// Console lines of any kind.
    pub lines: u64,
    /// DMA that ended, in order.
    pub tried: Vec<Tried>,
    /// DMA that was started and not waited for, in order.
    pub armed: Vec<Armed>,
    /// Pages that nothing may write to.
    pub canaries: Vec<Canary>,
    /// Disks read back.
    pub disks: Vec<Disk>,
    /// The last words, one per boot that came so far.
    pub done: Vec<Done>,
    /// Other `@` lines, by kind: `check`, `interrupts`, `iommu`.
    pub others: Vec<Other>,
    /// `@` lines that say `FAILED`, in full.
    pub failures: Vec<String>,
    /// The first `@` line that cannot be read.
    pub unread: Option<String>,
    /// Whether there were more lines than [`LIMIT`].
    pub overflowed: bool,
}

/// The direction of DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// The device reads memory.
    Read,
    /// The device writes memory.
    Write,
}

/// One DMA that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The device, `BB:DD.F` as the guest sees it.
    pub device: String,
    /// Its direction.
    pub op: Op,
    /// The address that the device was given: an IPA, for a guest without stage 1 of its own.
    pub address: u64,
    /// Where the guest's own SMMU leads it.
    pub leads: Leads,
    /// Its length in 4-byte accesses.
    pub accesses: u64,
    /// How many of them the guest saw arrive.
    pub arrived: u64,
}

/// Where a guest's own SMMU leads an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leads {
    /// The guest has none, or says nothing of it: the address is an IPA.
    Straight,
    /// To this IPA, and from there on as far as it goes within a page.
    To(u64),
    /// To nothing: it has to be stopped.
    Nowhere,
    /// To the guest's own memory or to nothing, which the guest changes meanwhile.
    Anywhere,
}

/// One DMA that was started and not waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Armed {
    /// The device, `BB:DD.F` as the guest sees it.
    pub device: String,
    /// Its direction.
    pub op: Op,
    /// The address that the device was given.
    pub address: u64,
    /// Its length in 4-byte accesses.
    pub accesses: u64,
}

/// One page that nothing may write to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// The page as the guest sees it.
    pub page: u64,
    /// The first changed address, if any.
    pub changed: Option<u64>,
    /// How many words changed, as far as the guest counted them.
    pub words: u64,
}

/// What a guest found out about one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What the guest calls it.
    pub name: String,
    /// Whether this is about what the guest wrote before, rather than what was on the disk.
    pub written: bool,
    /// Whether the content was right.
    pub ok: bool,
}

/// A guest's last words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What it was.
    pub role: String,
    /// Whether it found everything in order.
    pub ok: bool,
}

/// A line of a kind that needs no further reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its kind.
    pub kind: String,
    /// Its fields.
    pub fields: BTreeMap<String, String>,
    /// Its other words.
    pub words: Vec<String>,
}

impl Testimony {
    /// Nothing said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to watch `vm`'s console for `text`, which the guest may have written in any of its lines.
    pub fn expect(&mut self, vm: &str, text: &str) {
        self.expected.push(Expected {
            vm: vm.into(),
            text: text.into(),
            printed: printed(text.as_bytes()),
            seen: false,
            begun: String::new(),
        });
    }

    /// Takes one line of the shared console, `[name] text`. Returns the guest and its text, or `None` for
    /// a line that no guest said.
    pub fn line<'a>(&mut self, line: &'a str) -> Option<(&'a str, &'a str)> {
        let line = line.trim_end_matches(['\r', '\n']);
        let (name, text) = line.strip_prefix('[')?.split_once(']')?;
        if name == "el2" || name.is_empty() {
            return None;
        }
        let text = text.strip_prefix(' ').unwrap_or(text);
        self.said(name, text, text.len() <= console::PIECE);
        Some((name, text))
    }

    /// Takes one piece of a line that guest `vm` said, as EL2 prints it; `ended` says whether it is the last.
    pub fn said(&mut self, vm: &str, text: &str, ended: bool) {
        for expected in self.expected.iter_mut().filter(|expected| expected.vm == vm) {
            expected.hear(text, ended);
        }
        let text = text.trim_end();
        if !self.guests.contains_key(vm) {
            self.guests.insert(vm.to_owned(), Guest::default());
        }
        if let Some(guest) = self.guests.get_mut(vm) {
            guest.said(text);
        }
    }

    /// What `vm` said.
    pub fn guest(&self, vm: &str) -> Option<&Guest> {
        self.guests.get(vm)
    }

    /// Everybody who said something.
    pub fn guests(&self) -> impl Iterator<Item = (&str, &Guest)> {
        self.guests.iter().map(|(name, guest)| (name.as_str(), guest))
    }

    /// Expected texts that were not seen, as guest and text.
    pub fn missing(&self) -> impl Iterator<Item = (&str, &str)> {
        self.expected.iter().filter(|e| !e.seen).map(|e| (e.vm.as_str(), e.text.as_str()))
    }

    /// How many lines there were.
    pub fn lines(&self) -> u64 {
        self.guests.values().map(|guest| guest.lines).sum()
    }
}

/// What EL2 would print of a line of `bytes`.
pub fn printed(bytes: &[u8]) -> String {
    let mut line = String::new();
    for &byte in bytes {
        // A string has room.
        let _ = console::print(byte, &mut line);
    }
    line
}

impl Guest {
    fn said(&mut self, text: &str) {
        self.lines += 1;
        let Some(line) = text.strip_prefix('@') else { return };
        if !KINDS.contains(&line.split(' ').next().unwrap_or_default()) {
            return;
        }
        if self.testified() >= LIMIT {
            self.overflowed = true;
        } else if self.testify(line).is_none() {
            self.unread.get_or_insert_with(|| text.chars().take(200).collect());
        }
    }

    fn testified(&self) -> usize {
        let dma = self.tried.len() + self.armed.len() + self.canaries.len() + self.disks.len();
        dma + self.done.len() + self.others.len() + self.failures.len()
    }

    fn testify(&mut self, line: &str) -> Option<()> {
        let words = Words::read(line)?;
        let strict = ["armed", "canary", "disk", "done", "tried"].contains(&words.kind);
        (!strict || words.bare.is_empty()).then_some(())?;
        if words.failed {
            self.failures.push(format!("@{line}"));
        }
        match words.kind {
            "tried" => {
                let tried = Tried {
                    device: words.get("device")?.into(),
                    op: words.op()?,
                    address: words.number("address")?,
                    leads: match words.get("to") {
                        None => Leads::Straight,
                        Some("nowhere") => Leads::Nowhere,
                        Some("anywhere") => Leads::Anywhere,
                        Some(_) => Leads::To(words.number("to")?),
                    },
                    accesses: words.accesses()?,
                    arrived: words.number("arrived")?,
                };
                (tried.arrived <= tried.accesses).then_some(())?;
                self.tried.push(tried);
            }
            "armed" => self.armed.push(Armed {
                device: words.get("device")?.into(),
                op: words.op()?,
                address: words.number("address")?,
                accesses: words.accesses()?,
            }),
            "canary" => {
                let changed = match words.get("changed") {
                    Some(_) => Some(words.number("changed")?),
                    None => (words.ok || words.failed).then_some(None)?,
                };
                let count = match words.get("words") {
                    Some(_) => words.number("words")?,
                    None => changed.is_some().into(),
                };
                let page = words.number("page")?;
                self.canaries.push(Canary { page, changed, words: count });
            }
            "disk" => {
                let (read, written) = (words.get("sha256"), words.get("write"));
                let ok = read.xor(written)? == "ok";
                let name = words.get("name")?.into();
                self.disks.push(Disk { name, written: written.is_some(), ok });
            }
            "done" => {
                self.done.push(Done { role: words.get("role")?.into(), ok: !words.failed });
            }
            kind => self.others.push(Other {
                kind: kind.into(),
                fields: words.owned(),
                words: words.bare.iter().map(|word| (*word).to_owned()).collect(),
            }),
        }
        Some(())
    }
}

/// A line's words.
struct Words<'a> {
    kind: &'a str,
    fields: BTreeMap<&'a str, &'a str>,
    bare: Vec<&'a str>,
    ok: bool,
    failed: bool,
}

impl<'a> Words<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (kind, mut rest) = line.split_once(' ').unwrap_or((line, ""));
        let (fields, bare) = (BTreeMap::new(), Vec::new());
        let mut words = Self { kind, fields, bare, ok: false, failed: false };
        while !rest.is_empty() {
            if let Some(why) = rest.strip_prefix("why=") {
                words.fields.insert("why", why);
                break;
            }
            let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
            rest = after.trim_start();
            match word.split_once('=') {
                Some((key, value)) => {
                    words.fields.insert(key, value).is_none().then_some(())?;
                    words.failed |= value == "BAD";
                }
                None => match word {
                    "ok" => words.ok = true,
                    "FAILED" => words.failed = true,
                    "" => {}
                    bare => words.bare.push(bare),
                },
            }
        }
        Some(words)
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.fields.get(key).copied()
    }

    /// Hexadecimal with `0x`, else decimal.
    fn number(&self, key: &str) -> Option<u64> {
        let text = self.get(key)?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    }

    /// The number of accesses, if they fit the address space behind `address`.
    fn accesses(&self) -> Option<u64> {
        let accesses = self.number("accesses").filter(|n| (1..=LONGEST).contains(n))?;
        self.number("address")?.checked_add(4 * accesses).and(Some(accesses))
    }

    fn op(&self) -> Option<Op> {
        match self.get("op")? {
            "read" => Some(Op::Read),
            "write" => Some(Op::Write),
            _ => None,
        }
    }

    fn owned(&self) -> BTreeMap<String, String> {
        self.fields.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }
}

#[cfg(test)]
mod tests;
