//! What becomes of a transaction: configuration, then translation, each from any copy that may exist.

use super::cache::{CachedCd, CachedLevel1, CachedSte, Fetch, Translation, Walk, remember};
use crate::decode::{self, Cd, Descriptor, Stage2, Ste};
use crate::machine::{Access, Outcome, Transaction, World};
use crate::violation::Property;

/// Event codes (section 7.3).
const BAD_STREAMID: u64 = 0x02;
const BAD_STE: u64 = 0x04;
const TRANSLATION_FORBIDDEN: u64 = 0x07;
const BAD_CD: u64 = 0x0a;
const TRANSLATION: u64 = 0x10;
const ADDRESS_SIZE: u64 = 0x11;
const ACCESS: u64 = 0x12;
const PERMISSION: u64 = 0x13;

/// What was being translated when it failed: `CLASS`.
const CLASS_CD: u64 = 0;
const CLASS_TABLE: u64 = 1;
const CLASS_INPUT: u64 = 2;

/// The bits of an address that a record has beside the transaction's own.
const PAGE: u64 = 0x00ff_ffff_ffff_f000;

/// `Stall` in the second word of a record, beside `STAG`.
pub(super) const STALL: u64 = 1 << 31;

/// Why there is no translation.
struct Fault {
    code: u64,
    stage2: bool,
    class: u64,
    ipa: u64,
    record: bool,
    /// The transaction waits for a command (`CD.S`, `STE.S2S`).
    stall: bool,
}

/// The CD is illegal.
const BAD_CONTEXT: Fault =
    Fault { code: BAD_CD, stage2: false, class: CLASS_CD, ipa: 0, record: true, stall: false };

impl World {
    /// A device's transaction, up to and with its translation.
    pub(crate) fn translate(&mut self, transaction: Transaction) -> Result<Access, Outcome> {
        let Transaction { sid, address, write, translated } = transaction;
        if !self.translates() {
            if !self.aborts_when_disabled() {
                self.pass(sid, "the SMMU is disabled without GBPA.ABORT");
                return Err(Outcome::Bypassed);
            }
            return Err(Outcome::Aborted);
        }
        if translated && self.profile.ats() && !self.regs.checks_ats() {
            self.pass(sid, "a translated transaction goes unchecked: ATSCHK is 0");
            return Err(Outcome::Bypassed);
        }
        let Some(words) = self.configuration(sid) else {
            if !translated {
                self.record([BAD_STREAMID | u64::from(sid) << 32, 0, 0, 0], false);
            }
            return Err(Outcome::Aborted);
        };
        let ste = decode::ste(&words, &self.profile);
        if translated {
            // An STE that is invalid, or aborts, ends it without a record (sections 5.2 and 7.3.8).
            if !matches!(ste, Ste::Abort | Ste::Bad(_)) {
                let first = TRANSLATION_FORBIDDEN | u64::from(sid) << 32;
                self.record([first, u64::from(!write) << 35, address, 0], false);
            }
            return Err(Outcome::Aborted);
        }
        let found = match ste {
            Ste::Abort => return Err(Outcome::Aborted),
            Ste::Bad(_) => {
                self.record([BAD_STE | u64::from(sid) << 32, 0, 0, 0], false);
                return Err(Outcome::Aborted);
            }
            Ste::Bypass | Ste::Stage1 => {
                self.pass(sid, "an STE without stage 2");
                return Err(Outcome::Bypassed);
            }
            Ste::Stage2(stage2) => self.stage2(&stage2, address, write, CLASS_INPUT),
            Ste::Nested(context, stage2) => {
                let may_stall = decode::bits(&words, 91, 91) == 0;
                self.nested(sid, (context, may_stall), &stage2, address, write)
            }
        };
        let merge = matches!(
            ste,
            Ste::Stage2(Stage2 { merge: true, .. }) | Ste::Nested(_, Stage2 { merge: true, .. })
        );
        match found {
            Ok(translation) => Ok(self.accept(transaction, translation)),
            Err(fault) => {
                let stall = fault.stall.then(|| self.stall(transaction));
                if fault.record || fault.stall {
                    let flags =
                        fault.class << 8 | u64::from(fault.stage2) << 7 | u64::from(!write) << 3;
                    let first = fault.code | u64::from(sid) << 32;
                    // Configuration errors name no transaction; of what was fetched or translated, its page.
                    let words = match fault.code {
                        BAD_CD => [first, 0, 0, 0],
                        _ => {
                            let tag = stall.map_or(0, |tag| STALL | u64::from(tag));
                            [first, flags << 32 | tag, address, fault.ipa & PAGE]
                        }
                    };
                    self.record(words, merge && !fault.stall);
                }
                Err(stall.map_or(Outcome::Aborted, Outcome::Stalled))
            }
        }
    }

    /// A transaction waits: that is what it should never do. Returns the tag to name it by.
    fn stall(&mut self, transaction: Transaction) -> u16 {
        let Transaction { sid, .. } = transaction;
        self.violate(Property::NoStall, format!("a transaction of stream {sid:#x} stalls"));
        self.last_tag += 1;
        self.stalled.push((self.last_tag, transaction));
        self.last_tag
    }

    /// Lets a transaction that waits try again as if it had just come, or ends it (section 4.7.1).
    pub(crate) fn resume(&mut self, sid: u32, tag: u16, retry: bool) {
        let known = |(other, it): &(u16, Transaction)| (*other, it.sid) == (tag, sid);
        let Some(place) = self.stalled.iter().position(known) else { return };
        let (_, transaction) = self.stalled.swap_remove(place);
        if retry {
            let _ = self.dma(transaction);
        }
    }

    fn pass(&mut self, sid: u32, why: &str) {
        if self.is_ours() {
            let property = if why.contains("STE") || why.contains("ATSCHK") {
                Property::Stage2Always
            } else {
                Property::ClosedFromTheStart
            };
            self.violate(property, format!("stream {sid:#x} passes: {why}"));
        }
    }

    /// The STE of a stream: an old copy, or a new one. `None`: there is none.
    fn configuration(&mut self, sid: u32) -> Option<[u64; 8]> {
        let copies: Vec<[u64; 8]> = self
            .caches
            .stes
            .iter()
            .filter(|entry| entry.sid == sid)
            .map(|entry| entry.words)
            .collect();
        let choice = self.chooser.choose(copies.len() + 1);
        if let Some(words) = copies.get(choice) {
            return Some(*words);
        }
        let at = self.ste_address(sid)?;
        let words = core::array::from_fn(|word| self.read_own(at + word as u64 * 8, "an STE"));
        self.judge(sid, &words);
        remember(&mut self.caches.stes, CachedSte { sid, words, doomed: false });
        Some(words)
    }

    fn ste_address(&mut self, sid: u32) -> Option<u64> {
        let config = self.regs.strtab_base_cfg;
        let log2 = (config & 0x3f).min(self.profile.idr1 & 0x3f);
        let base = self.regs.strtab_base & 0x000f_ffff_ffff_ffc0;
        let index = u64::from(sid);
        if index >> log2 != 0 {
            return None;
        }
        if config >> 16 & 3 == 0 {
            return Some(base + index * 64);
        }
        let split = config >> 6 & 0x1f;
        let first = index >> split;
        let copies: Vec<u64> = self
            .caches
            .level1
            .iter()
            .filter(|entry| entry.index == first)
            .map(|entry| entry.word)
            .collect();
        let choice = self.chooser.choose(copies.len() + 1);
        let word = match copies.get(choice) {
            Some(word) => *word,
            None => {
                let word = self.read_own(base + first * 8, "a level-1 stream table descriptor");
                let entry = CachedLevel1 { index: first, word, doomed: false };
                remember(&mut self.caches.level1, entry);
                word
            }
        };
        let (table, entries) = decode::level1(word, split)?;
        let second = index & ((1 << split) - 1);
        (second < entries).then_some(table + second * 64)
    }

    /// Reads some words of an STE, or those missing since an earlier time.
    pub(crate) fn fetch(&mut self, sid: u32, mask: u8) {
        if self.regs.cr0ack & 1 == 0 {
            return;
        }
        let under_way = self.caches.fetches.iter().position(|fetch| fetch.sid == sid);
        let (mut fetch, mask) = match under_way {
            Some(index) => (self.caches.fetches.swap_remove(index), 0xff),
            None => match self.ste_address(sid) {
                Some(at) => (Fetch { sid, at, words: [None; 8], doomed: false }, mask),
                None => return,
            },
        };
        for word in 0..8 {
            if mask >> word & 1 != 0 && fetch.words[word].is_none() {
                fetch.words[word] = Some(self.read_own(fetch.at + word as u64 * 8, "an STE"));
            }
        }
        if fetch.words.iter().all(Option::is_some) {
            let words = fetch.words.map(Option::unwrap_or_default);
            self.judge(sid, &words);
            let entry = CachedSte { sid, words, doomed: fetch.doomed };
            remember(&mut self.caches.stes, entry);
        } else {
            self.caches.fetches.push(fetch);
        }
    }

    /// Translates by stage 2, from the TLB or by a walk.
    fn stage2(
        &mut self,
        stage2: &Stage2,
        ipa: u64,
        write: bool,
        class: u64,
    ) -> Result<Translation, Fault> {
        let Stage2 { record, stall, .. } = *stage2;
        let fault = |code| Fault { code, stage2: true, class, ipa, record, stall };
        if ipa >> stage2.bits != 0 {
            return Err(fault(TRANSLATION));
        }
        let found = match self.cached(stage2.vmid, None, ipa) {
            Some(entry) => entry,
            None => {
                let entry = self.walk_stage2(stage2, ipa).map_err(fault)?;
                remember(&mut self.caches.translations, entry.clone());
                entry
            }
        };
        if if write { found.write } else { found.read } {
            Ok(found)
        } else {
            Err(fault(PERMISSION))
        }
    }

    /// A cached translation, if there is one and chance uses it.
    fn cached(&mut self, vmid: u16, asid: Option<u16>, address: u64) -> Option<Translation> {
        let copies: Vec<Translation> = self
            .caches
            .translations
            .iter()
            .filter(|entry| entry.vmid == vmid && entry.asid == asid && entry.covers(address))
            .cloned()
            .collect();
        let choice = self.chooser.choose(copies.len() + 1);
        copies.into_iter().nth(choice)
    }

    fn walk_stage2(&mut self, stage2: &Stage2, ipa: u64) -> Result<Translation, u64> {
        let mut level = stage2.level;
        let mut table = stage2.table;
        let mut mask = u64::MAX;
        loop {
            let size = 1_u64 << (39 - 9 * level);
            let base = ipa & !(size - 1);
            let index = (ipa / size) & mask;
            match self.descend(
                stage2.vmid,
                None,
                level,
                (base, size),
                table + index * 8,
                |world, at| Ok::<u64, u64>(world.read_own(at, "a stage-2 descriptor")),
            )? {
                Descriptor::Invalid => return Err(TRANSLATION),
                Descriptor::Table(next) if next >> stage2.output_bits != 0 => {
                    return Err(ADDRESS_SIZE);
                }
                Descriptor::Table(next) => table = next,
                Descriptor::Leaf { used: false, .. } => return Err(ACCESS),
                Descriptor::Leaf { at, .. } if at >> stage2.output_bits != 0 => {
                    return Err(ADDRESS_SIZE);
                }
                Descriptor::Leaf { at, access, .. } => {
                    return Ok(Translation {
                        vmid: stage2.vmid,
                        asid: None,
                        base,
                        size,
                        ipa: base,
                        pa: at,
                        read: access & 1 != 0,
                        write: access & 2 != 0,
                        doomed: false,
                    });
                }
            }
            level += 1;
            mask = 0x1ff;
        }
    }

    /// One step of a walk: a table that was met before, or what memory says now.
    fn descend<E>(
        &mut self,
        vmid: u16,
        asid: Option<u16>,
        level: u32,
        (base, size): decode::Range,
        at: u64,
        read: impl FnOnce(&mut Self, u64) -> Result<u64, E>,
    ) -> Result<Descriptor, E> {
        let here = |walk: &&Walk| {
            (walk.vmid, walk.asid, walk.level, walk.base) == (vmid, asid, level, base)
        };
        let copies: Vec<u64> =
            self.caches.walks.iter().filter(here).map(|walk| walk.next).collect();
        let choice = self.chooser.choose(copies.len() + 1);
        if let Some(next) = copies.get(choice) {
            return Ok(Descriptor::Table(*next));
        }
        let word = read(self, at)?;
        let found = decode::descriptor(word, level);
        if let Descriptor::Table(next) = found {
            let walk = Walk { vmid, asid, level, base, size, next, doomed: false };
            remember(&mut self.caches.walks, walk);
        }
        Ok(found)
    }

    /// Translates by both stages, from the TLB or by walks.
    fn nested(
        &mut self,
        sid: u32,
        (context, may_stall): (u64, bool),
        stage2: &Stage2,
        address: u64,
        write: bool,
    ) -> Result<Translation, Fault> {
        let cd = self.context(sid, context, stage2)?;
        if cd.stall && !may_stall {
            // CD.S under STE.S1STALLD (section 5.5).
            return Err(BAD_CONTEXT);
        }
        self.stage1(&cd, stage2, address, write)
    }

    /// Translates by both stages, once the CD is known.
    fn stage1(
        &mut self,
        cd: &Cd,
        stage2: &Stage2,
        address: u64,
        write: bool,
    ) -> Result<Translation, Fault> {
        let Cd { record, stall, .. } = *cd;
        let fault = |code| Fault { code, stage2: false, class: CLASS_INPUT, ipa: 0, record, stall };
        let found = match self.cached(stage2.vmid, Some(cd.asid), address) {
            Some(entry) => entry,
            None => {
                let entry = self.walk_both(cd, stage2, address, fault)?;
                remember(&mut self.caches.translations, entry.clone());
                entry
            }
        };
        if if write { found.write } else { found.read } {
            return Ok(found);
        }
        // What both forbid counts as stage 2's: the TLB does not tell them apart.
        let ipa = found.ipa + (address - found.base);
        if write && !self.stage2(stage2, ipa, false, CLASS_INPUT)?.write {
            return self.stage2(stage2, ipa, true, CLASS_INPUT);
        }
        Err(fault(PERMISSION))
    }

    fn context(&mut self, sid: u32, context: u64, stage2: &Stage2) -> Result<Cd, Fault> {
        let copies: Vec<[u64; 8]> = self
            .caches
            .cds
            .iter()
            .filter(|entry| entry.sid == sid)
            .map(|entry| entry.words)
            .collect();
        let choice = self.chooser.choose(copies.len() + 1);
        let words = match copies.get(choice) {
            Some(words) => *words,
            None => {
                let mut words = [0; 8];
                for (index, word) in words.iter_mut().enumerate() {
                    let ipa = context + index as u64 * 8;
                    *word = self.read_guest(stage2, ipa, CLASS_CD)?;
                }
                remember(&mut self.caches.cds, CachedCd { sid, words, doomed: false });
                words
            }
        };
        decode::cd(&words, &self.profile).map_err(|_| BAD_CONTEXT)
    }

    /// Reads a word of the guest's through stage 2.
    fn read_guest(&mut self, stage2: &Stage2, ipa: u64, class: u64) -> Result<u64, Fault> {
        let found = self.stage2(stage2, ipa, false, class)?;
        let access = Access {
            sid: None,
            vm: self.vm_of(found.vmid),
            ipa,
            pa: found.pa + (ipa - found.base),
            write: false,
            translation: found,
        };
        self.check_landing(&access);
        Ok(self.memory.observe(access.pa, &mut self.chooser))
    }

    fn walk_both(
        &mut self,
        cd: &Cd,
        stage2: &Stage2,
        address: u64,
        fault: impl Fn(u64) -> Fault,
    ) -> Result<Translation, Fault> {
        let high = address >> 63 != 0;
        let Some((size, mut table)) = cd.tables[usize::from(high)] else {
            return Err(fault(TRANSLATION));
        };
        let bits = 64 - size;
        if (if high { !address } else { address }) >> bits != 0 {
            return Err(fault(TRANSLATION));
        }
        // The level whose entries are the first to resolve fewer bits than there are.
        let mut level = 3 - (bits - 13) / 9;
        let mut mask = (1_u64 << (bits - (39 - 9 * level))) - 1;
        loop {
            let size = 1_u64 << (39 - 9 * level);
            let base = address & !(size - 1);
            let at = table + ((address / size) & mask) * 8;
            match self.descend(
                stage2.vmid,
                Some(cd.asid),
                level,
                (base, size),
                at,
                |world, at| world.read_guest(stage2, at, CLASS_TABLE),
            )? {
                Descriptor::Invalid => return Err(fault(TRANSLATION)),
                Descriptor::Table(next) => table = next,
                Descriptor::Leaf { used: false, .. } => return Err(fault(ACCESS)),
                Descriptor::Leaf { at, .. } if at >> cd.output_bits != 0 => {
                    return Err(fault(ADDRESS_SIZE));
                }
                Descriptor::Leaf { at, access, .. } => {
                    let page = address & !0xfff;
                    let ipa = at + (page - base);
                    // Reads are always allowed; AP[2] forbids writes.
                    let second = self.stage2(stage2, ipa, false, CLASS_INPUT)?;
                    return Ok(Translation {
                        vmid: stage2.vmid,
                        asid: Some(cd.asid),
                        base: page,
                        size: 4096,
                        ipa,
                        pa: second.pa + (ipa - second.base),
                        read: second.read,
                        write: second.write && access & 2 == 0,
                        doomed: false,
                    });
                }
            }
            level += 1;
            mask = 0x1ff;
        }
    }
}
