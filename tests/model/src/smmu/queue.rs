//! The command and the event queue (section 3.5).

use super::cache::{Translation, Walk, overlaps};
use super::translate::STALL;
use crate::decode::{self, Command, Range};
use crate::machine::World;
use crate::violation::Property;

const BASE: u64 = 0x00ff_ffff_ffff_ffe0;

/// Index arithmetic of one ring.
fn next(index: u32, log2: u32) -> u32 {
    (index + 1) & ((2 << log2) - 1)
}

fn slot(index: u32, log2: u32) -> u64 {
    u64::from(index & ((1 << log2) - 1))
}

impl World {
    fn command_indices(&self) -> (u32, u32, u32) {
        let log2 = (self.regs.cmdq_base & 0x1f) as u32;
        let mask = (2 << log2) - 1;
        (self.regs.cmdq_cons & mask, self.regs.cmdq_prod & mask, log2)
    }

    /// Consumes at most `most` commands.
    pub(crate) fn consume(&mut self, most: usize) {
        for _ in 0..most {
            let (consumer, producer, log2) = self.command_indices();
            let idle =
                consumer == producer || !self.regs.commands_enabled() || self.regs.command_error();
            if idle || !self.hardware_may_act() {
                return;
            }
            let at = (self.regs.cmdq_base & BASE) + slot(consumer, log2) * 16;
            let words = [self.read_own(at, "a command"), self.read_own(at + 8, "a command")];
            match decode::command(&words, &self.profile) {
                Ok(command) => self.execute(command),
                Err(reason) => {
                    let what = format!("command {:#x} {:#x}: {reason}", words[0], words[1]);
                    self.violate(Property::LegalUse, what);
                    self.regs.cmdq_cons = consumer | 1 << 24;
                    self.regs.gerror ^= 1;
                    return;
                }
            }
            self.commands += 1;
            self.regs.cmdq_cons = next(consumer, log2);
        }
    }

    fn execute(&mut self, command: Command) {
        let split = self.regs.strtab_base_cfg >> 6 & 0x1f;
        match command {
            Command::Prefetch => {}
            Command::Configuration(first, last, level1) => {
                self.caches.doom_configuration(first, last, split, level1);
            }
            Command::Context(sid) => self.caches.doom_contexts(sid, sid),
            Command::Stage1(vmid) => self.doom(
                |walk| walk.vmid == vmid && walk.asid.is_some(),
                |entry| entry.vmid == vmid && entry.asid.is_some(),
            ),
            Command::Asid(vmid, asid) => self.doom(
                |walk| walk.vmid == vmid && walk.asid == Some(asid),
                |entry| entry.vmid == vmid && entry.asid == Some(asid),
            ),
            Command::Address(vmid, asid, range, leaf) => self.doom(
                |walk| walk.vmid == vmid && !leaf && named(walk.asid, asid) && hit(walk, range),
                |entry| {
                    let here = overlaps((entry.base, entry.size), range);
                    entry.vmid == vmid && named(entry.asid, asid) && here
                },
            ),
            Command::Vmid(vmid) => self.doom(|walk| walk.vmid == vmid, |entry| entry.vmid == vmid),
            Command::Ipa(vmid, range, leaf) => self.doom(
                |walk| walk.vmid == vmid && !leaf && walk.asid.is_none() && hit(walk, range),
                |entry| {
                    let here = overlaps((entry.base, entry.size), range);
                    entry.vmid == vmid && entry.asid.is_none() && here
                },
            ),
            Command::Everything => self.doom(|_| true, |_| true),
            Command::Resume(sid, tag, retry) => self.resume(sid, tag, retry),
            Command::EndStalls(sid) => self.stalled.retain(|(_, it)| it.sid != sid),
            Command::Sync => {
                self.land_doomed();
                self.caches.complete();
                // Everything refused so far is recorded (section 4.7.3).
                self.deliver(usize::MAX);
            }
        }
    }

    fn doom(&mut self, walk: impl Fn(&Walk) -> bool, translation: impl Fn(&Translation) -> bool) {
        self.caches.doom_translations(walk, &translation);
        for access in self.in_flight.iter_mut().filter(|access| translation(&access.translation)) {
            access.translation.doomed = true;
        }
    }

    /// Checks a CPU's store against the part of the command queue that is the SMMU's.
    pub(crate) fn check_store(&mut self, at: u64) {
        let (consumer, producer, log2) = self.command_indices();
        let base = self.regs.cmdq_base & BASE;
        if !self.regs.commands_enabled() || !(base..base + (16 << log2)).contains(&at) {
            return;
        }
        let index = ((at - base) / 16) as u32;
        let ahead = index.wrapping_sub(consumer) & ((1 << log2) - 1);
        let used = producer.wrapping_sub(consumer) & ((2 << log2) - 1);
        if ahead < used {
            self.violate(
                Property::LegalUse,
                "a command was overwritten before it was consumed".into(),
            );
        }
    }

    /// Writes an event record some time later, unless it may be merged with one that is not written yet.
    pub(crate) fn record(&mut self, words: [u64; 4], merge: bool) {
        if !self.regs.events_enabled() {
            return;
        }
        if merge && self.late_events.contains(&words) && self.chooser.unusual(2) {
            return;
        }
        self.late_events.push_back(words);
    }

    /// Writes at most `most` event records that are due.
    pub(crate) fn deliver(&mut self, most: usize) {
        for _ in 0..most {
            let Some(words) = self.late_events.pop_front() else {
                return;
            };
            if !self.write_event(words) {
                self.late_events.push_front(words);
                return;
            }
        }
    }

    /// Writes an event record, or loses it if there is no room. Returns whether it is dealt with: that of a transaction
    /// that stalls is never lost, and waits (section 7.4).
    fn write_event(&mut self, words: [u64; 4]) -> bool {
        let log2 = (self.regs.eventq_base & 0x1f) as u32;
        let (producer, consumer) = (self.regs.eventq_prod, self.regs.eventq_cons);
        if producer.wrapping_sub(consumer) & ((2 << log2) - 1) == 1 << log2 {
            if words[1] & STALL != 0 {
                return false;
            }
            self.overflows += 1;
            if self.profile.overflows_like_qemu {
                if (self.regs.gerror ^ self.regs.gerrorn) & 4 == 0 {
                    self.regs.gerror ^= 4;
                }
            } else if producer >> 31 == consumer >> 31 {
                self.regs.eventq_prod ^= 1 << 31;
            }
            return true;
        }
        let at = (self.regs.eventq_base & BASE) + slot(producer, log2) * 32;
        for (index, word) in words.into_iter().enumerate() {
            self.write_own(at + index as u64 * 8, word);
        }
        self.events += 1;
        self.regs.eventq_prod = producer & 1 << 31 | next(producer & ((2 << log2) - 1), log2);
        true
    }
}

fn named(entry: Option<u16>, asid: Option<u16>) -> bool {
    entry.is_some() && (asid.is_none() || entry == asid)
}

fn hit(walk: &Walk, range: Range) -> bool {
    overlaps((walk.base, walk.size), range)
}
