//! Deliberate defects: each breaks a named property, so that a test that passes means something.
//!
//! None is in the product. A [`Saboteur`] between driver and machine changes what the driver does, or the
//! hypervisor in miniature forgets something.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use smmu::addr::Pa;
use smmu::ports::{Clock, Hardware, Memory, Registers};
use smmu::streams::Streams;

use super::{life, machine};
use crate::chooser::Chooser;
use crate::host::{Carelessness, Op};
use crate::profile::Profile;
use crate::violation::Property::{self, *};
use crate::violation::Violation;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    /// No defect at all.
    None,
    /// `CMD_CFGI_STE` is not issued.
    MissingCfgi,
    /// `CMD_CFGI_STE` names the next stream.
    CfgiOfAnother,
    /// The store that closes comes after the `CMD_SYNC` that should make it certain.
    SyncBeforeLastStore,
    /// STEs keep the VMID of the first VM.
    VmidNotReplaced,
    /// Word 0 is stored before the words that it makes count.
    Word0FirstOnEnable,
    /// Word 0 is stored after the words that it makes count.
    Word0LastOnDisable,
    /// `CMD_TLBI_S2_IPA` is not followed by `CMD_TLBI_NH_ALL`.
    IpaWithoutNhAll,
    /// There is no `CMD_SYNC` between the two.
    NhAllTooEarly,
    /// There is no `CMD_SYNC` between `CMD_CFGI_STE` and `CMD_TLBI_S12_VMALL`.
    TlbiTooEarly,
    /// `CMDQ_PROD` loses its wrap bit.
    WrapLost,
    /// `CMDQ_PROD` is one too large.
    OneTooFar,
    /// There are no barriers.
    MissingBarrier,
    /// Nobody waits for a `CMD_SYNC`.
    SyncNotAwaited,
    /// `CMD_TLBI_S12_VMALL` is not issued.
    MissingTlbi,
    /// `CMD_TLBI_S12_VMALL` names another VMID.
    TlbiOfAnother,
    /// A guest's `EATS` reaches the STE.
    GuestFieldLeaks,
    /// `S1STALLD` is not set.
    StallsAllowed,
    /// `GBPA.ABORT` is not set.
    GbpaOpen,
    /// `CR0.ATSCHK` is not set.
    AtsUnchecked,
    /// Firmware's configuration is not invalidated.
    OldConfiguration,
    /// Firmware's translations are not invalidated.
    OldTranslations,
    /// A level-1 descriptor is not invalidated when it begins to lead somewhere.
    OldLevel1,
    /// Blocks lead 2 MiB too far.
    WrongBlock,
    /// Stage 2 ignores that a page is read-only.
    WritableRom,
    /// The memory of a dead VM is reused while its devices still have buffers.
    NoQuiesce,
    /// It is reused though one of them did not stop.
    NoQuarantine,
    /// Unmapped memory is reused without an invalidation.
    NoInvalidation,
}

/// A layer that does something wrong.
struct Saboteur<H> {
    below: H,
    defect: Defect,
    /// First byte and size of the command queue and of a linear stream table.
    queue: Cell<(u64, u64)>,
    table: Cell<(u64, u64)>,
    last_opcode: Cell<u8>,
    held: RefCell<Vec<(Pa, u64)>>,
    seen_producer: Cell<u32>,
    /// An STE was made to abort, and no `CMD_SYNC` was issued since.
    closing: Cell<bool>,
}

/// `CMD_PREFETCH_CONFIG`: does nothing.
const NOTHING: u64 = 0x01;

impl<H: Hardware> Saboteur<H> {
    fn new(below: H, defect: Defect) -> Self {
        Self {
            below,
            defect,
            queue: Cell::default(),
            table: Cell::default(),
            last_opcode: Cell::default(),
            held: RefCell::default(),
            seen_producer: Cell::default(),
            closing: Cell::default(),
        }
    }

    fn command(&self, low: u64) -> u64 {
        let before = self.last_opcode.replace(low as u8);
        match (self.defect, low as u8) {
            (Defect::MissingCfgi, 0x03)
            | (Defect::IpaWithoutNhAll, 0x10)
            | (Defect::MissingTlbi, 0x28)
            | (Defect::OldConfiguration, 0x04)
            | (Defect::OldTranslations, 0x30) => NOTHING,
            (Defect::NhAllTooEarly, 0x46) if before == 0x2a => NOTHING,
            (Defect::TlbiTooEarly, 0x46) if self.closing.take() => NOTHING,
            (Defect::CfgiOfAnother, 0x03) => low + (1 << 32),
            (Defect::TlbiOfAnother, 0x28) => low ^ 3 << 32,
            _ => low,
        }
    }

    /// Word `word` of an STE is stored.
    fn ste(&self, at: Pa, word: u64, value: u64) {
        let mut held = self.held.borrow_mut();
        self.closing.set(self.closing.get() || (word, value) == (0, 1));
        match (self.defect, word) {
            (Defect::SyncBeforeLastStore, 0) if value == 1 => held.push((at, value)),
            (Defect::VmidNotReplaced, 2) if value & 0xffff == 2 => {
                self.below.store(at, value & !0xffff | 1);
            }
            (Defect::Word0FirstOnEnable, 1..) => held.push((at, value)),
            (Defect::Word0FirstOnEnable, 0) => {
                self.below.store(at, value);
                self.below.publish();
                for (at, value) in held.drain(..) {
                    self.below.store(at, value);
                }
            }
            (Defect::Word0LastOnDisable, 0) if value == 1 => {
                for word in 1..8 {
                    self.below.store(at.add(word * 8), 0);
                }
                self.below.publish();
                self.below.store(at, value);
            }
            (Defect::GuestFieldLeaks, 1) if value != 0 => self.below.store(at, value | 1 << 28),
            (Defect::StallsAllowed, 1) => self.below.store(at, value & !(1 << 27)),
            _ => self.below.store(at, value),
        }
    }
}

fn within((start, size): (u64, u64), at: Pa) -> bool {
    at.raw().checked_sub(start).is_some_and(|offset| offset < size)
}

impl<H: Hardware> Memory for Saboteur<H> {
    fn load(&self, at: Pa) -> u64 {
        self.below.load(at)
    }

    fn store(&self, at: Pa, value: u64) {
        if within(self.queue.get(), at) {
            let second = !at.is_aligned(16);
            let old_level1 = self.defect == Defect::OldLevel1 && self.last_opcode.get() == 0x03;
            let value = match second {
                false => self.command(value),
                true if old_level1 => value | 1,
                true => value,
            };
            return self.below.store(at, value);
        }
        if within(self.table.get(), at) {
            return self.ste(at, at.raw() / 8 % 8, value);
        }
        // A leaf of stage 2 has the access flag.
        let leaf = value >> 10 & 1 != 0 && value & 1 != 0;
        let value = match self.defect {
            Defect::WrongBlock if leaf && value & 2 == 0 => value + (2 << 20),
            Defect::WritableRom if leaf => value | 1 << 7,
            _ => value,
        };
        self.below.store(at, value);
    }

    fn publish(&self) {
        if self.defect != Defect::MissingBarrier {
            self.below.publish();
        }
    }
}

impl<H: Hardware> Registers for Saboteur<H> {
    fn read32(&self, offset: u32) -> u32 {
        let value = self.below.read32(offset);
        match (self.defect, offset) {
            (Defect::SyncNotAwaited, 0x9c) => self.seen_producer.get(),
            (Defect::AtsUnchecked, 0x24) if value & 4 != 0 => value | 1 << 4,
            _ => value,
        }
    }

    fn write32(&self, offset: u32, value: u32) {
        let value = match (self.defect, offset) {
            (Defect::GbpaOpen, 0x44) => return,
            (Defect::AtsUnchecked, 0x20) => value & !(1 << 4),
            (Defect::WrapLost, 0x98) => value & 7,
            (Defect::OneTooFar, 0x98) if value != 0 => (value + 1) & 0xf,
            _ => value,
        };
        match offset {
            0x88 if value >> 16 == 0 => self.table.set((self.table.get().0, 64 << value)),
            0x98 => self.seen_producer.set(value),
            _ => {}
        }
        self.below.write32(offset, value);
        if offset == 0x98 && self.defect == Defect::SyncBeforeLastStore {
            for (at, value) in self.held.take() {
                self.below.store(at, value);
            }
        }
    }

    fn write64(&self, offset: u32, value: u64) {
        match offset {
            0x80 => self.table.set((value & 0x000f_ffff_ffff_ffc0, 0)),
            0x90 => self.queue.set((value & 0x00ff_ffff_ffff_ffe0, 16 << (value & 0x1f))),
            _ => {}
        }
        self.below.write64(offset, value);
    }
}

impl<H: Hardware> Clock for Saboteur<H> {
    fn now_us(&self) -> u64 {
        self.below.now_us()
    }
}

/// A life that has a little of everything.
fn program(chooser: &mut Chooser, nested: bool) -> Vec<Op> {
    let open =
        |stream, vm| if nested { Op::Configure(stream, vm, 3) } else { Op::Open(stream, vm) };
    let mut ops = vec![open(0, 0), open(1, 1)];
    for _ in 0..24 {
        let (a, b) = (chooser.choose(6), chooser.choose(600));
        ops.push(match chooser.choose(9) {
            0 | 1 => open(a, b),
            2 => Op::Close(a),
            3 => Op::Restart(a),
            4 => Op::Watch(a),
            5 => Op::Unmap(a, [0, 1, 3, 510, 511, 512][b % 6], a as u64),
            6 => Op::Remap(a),
            7 => Op::Drain,
            _ => Op::Idle(10),
        });
    }
    ops
}

/// Runs one life with a defect.
fn defective(
    defect: Defect,
    profile: Profile,
    nested: bool,
    sid_bits: u8,
    seed: u64,
) -> Option<Violation> {
    let careless = Carelessness {
        no_quiesce: defect == Defect::NoQuiesce,
        no_quarantine: defect == Defect::NoQuarantine,
        no_invalidation: defect == Defect::NoInvalidation,
    };
    let mut ops = program(&mut Chooser::random(seed + 1000), nested);
    if defect == Defect::NoQuarantine {
        ops.insert(0, Op::Stick(0));
    }
    let machine = machine(profile, seed, seed.is_multiple_of(2));
    let mut streams = Streams::new();
    let layer = |machine| Saboteur::new(machine, defect);
    life(&machine, &mut streams, layer, sid_bits, careless, &ops)
}

/// The list: a defect, where it shows, and the property that it breaks.
const LIST: &[(Defect, Profile, bool, u8, Property)] = {
    use Defect::*;
    const PLAIN: Profile = Profile::PLAIN;
    const NESTED: Profile = Profile::NESTED;
    const DANGEROUS: Profile = Profile::DANGEROUS;
    &[
        (MissingCfgi, PLAIN, false, 6, NoReuseBeforeProof),
        (CfgiOfAnother, PLAIN, false, 6, NoReuseBeforeProof),
        (SyncBeforeLastStore, PLAIN, false, 6, NoReuseBeforeProof),
        (VmidNotReplaced, PLAIN, false, 6, NoMixture),
        (Word0FirstOnEnable, PLAIN, false, 6, NoMixture),
        (Word0LastOnDisable, PLAIN, false, 6, NoMixture),
        (IpaWithoutNhAll, NESTED, true, 10, NoReuseBeforeProof),
        (NhAllTooEarly, NESTED, true, 10, NoReuseBeforeProof),
        (TlbiTooEarly, PLAIN, false, 6, NoReuseBeforeProof),
        (WrapLost, NESTED, false, 10, Progress),
        (OneTooFar, NESTED, false, 10, LegalUse),
        (MissingBarrier, NESTED, false, 10, NoMixture),
        (SyncNotAwaited, NESTED, false, 10, NoReuseBeforeProof),
        (MissingTlbi, NESTED, false, 10, NoReuseBeforeProof),
        (TlbiOfAnother, NESTED, false, 10, NoReuseBeforeProof),
        (GuestFieldLeaks, PLAIN, false, 6, Stage2Always),
        (StallsAllowed, DANGEROUS, false, 6, Stage2Always),
        (GbpaOpen, NESTED, false, 10, ClosedFromTheStart),
        (AtsUnchecked, DANGEROUS, false, 10, Stage2Always),
        (OldConfiguration, NESTED, false, 10, Stage2Always),
        (OldTranslations, NESTED, false, 10, ClosedFromTheStart),
        (OldLevel1, NESTED, false, 10, Progress),
        (WrongBlock, NESTED, false, 10, Confinement),
        (WritableRom, NESTED, false, 10, Confinement),
        (NoQuiesce, NESTED, false, 10, NoReuseBeforeQuiesce),
        (NoQuarantine, NESTED, false, 10, NoReuseBeforeQuiesce),
        (NoInvalidation, NESTED, false, 10, NoReuseBeforeProof),
    ]
};

/// Within this many lives.
const LIVES: u64 = 200;

#[test]
fn every_defect_breaks_its_property() {
    let mut missed = Vec::new();
    for &(defect, profile, nested, sid_bits, property) in LIST {
        let mut others = BTreeSet::new();
        let found = (0..LIVES)
            .filter_map(|seed| defective(defect, profile, nested, sid_bits, seed))
            .any(|violation| {
                others.insert(violation.to_string());
                violation.property == property
            });
        if !found {
            missed.push(format!("{defect:?} does not break {property:?} but {others:#?}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn without_a_defect_nothing_breaks() {
    for seed in 0..10 {
        for profile in Profile::ALL {
            assert_eq!(
                defective(Defect::None, profile, false, 10, seed),
                None,
                "{profile:?} {seed}"
            );
        }
        assert_eq!(defective(Defect::None, Profile::NESTED, true, 6, seed), None, "{seed}");
    }
}
