//! The list registers: what goes in before the guest runs, and what comes back.
//!
//! Not everything may fit. Pending interrupts go in by priority, so one that is left out is never more
//! urgent than one that is in, and nothing is owed to the guest before it has taken all that is in: then
//! `NPIE` brings us back. (`UIE` would not do: with a single list register it is always asserted.) An
//! interrupt of a group that the vCPU has disabled (`ICC_IGRPEN<n>_EL1`) must not block the others, so it
//! ranks behind them, and the `VGrp<n>EIE`/`DIE` interrupts report the change of heart.
//!
//! Active interrupts go in first, but leave one list register to the pending ones: the most urgent of those
//! may be about to preempt. An active interrupt that is left out, the least urgent first, is *evicted*:
//!
//! * With `EOImode=0` priority drop and deactivation are one, in the reverse order of acknowledgement. An
//!   end of interrupt that finds no list register counts in `EOIcount`, and raises the `LRENPIE`
//!   maintenance interrupt; it was for the most urgent evicted one that the vCPU acknowledged.
//! * With `EOImode=1` deactivation comes in any order, so `ICC_DIR_EL1` is trapped and names it. (A CPU without
//!   `ICH_VTR_EL2.TDS` cannot trap it; there `EOIcount` serves, and a guest that ends evicted interrupts out
//!   of order confuses its own.)
//!
//! `ICC_DIR_EL1` is always trapped where there are several vCPUs, because one may deactivate an SPI that is
//! active in the list register of another. `EOImode=0`, which Linux uses at EL1, never writes it.

use super::interrupt::{Id, Interrupt};
use super::{ListRegisters, MAX_LIST_REGISTERS, PhysicalGic, Place, Vgic};
use heapless::Vec;

/// `ICH_LR<n>_EL2`.
mod lr {
    pub const PENDING: u64 = 1 << 62;
    pub const ACTIVE: u64 = 1 << 63;
    pub const HW: u64 = 1 << 61;
    pub const GROUP1: u64 = 1 << 60;
    pub const PRIORITY_SHIFT: u32 = 48;
    /// Maintenance interrupt at deactivation, where `HW` is 0.
    pub const EOI: u64 = 1 << 41;
    pub const PHYSICAL_SHIFT: u32 = 32;
}

/// `ICH_HCR_EL2`.
mod hcr {
    pub const EN: u64 = 1 << 0;
    pub const LRENPIE: u64 = 1 << 2;
    pub const NPIE: u64 = 1 << 3;
    /// Maintenance interrupt when the group becomes enabled, and when it becomes disabled.
    pub const ENABLED: [u64; 2] = [1 << 4, 1 << 6];
    pub const DISABLED: [u64; 2] = [1 << 5, 1 << 7];
    pub const TDIR: u64 = 1 << 14;
    pub const EOI_COUNT_SHIFT: u32 = 27;
}

/// `ICH_VMCR_EL2`.
mod vmcr {
    /// `VENG0`, `VENG1`.
    pub const ENABLED: [u64; 2] = [1 << 0, 1 << 1];
    /// `VEOIM`.
    pub const SPLIT_EOI: u64 = 1 << 9;
}

/// The most urgent of the interrupts it was offered.
struct Choice {
    limit: usize,
    offered: usize,
    /// Rank and INTID; the lowest rank first, then the lowest INTID.
    best: Vec<(u16, u8), MAX_LIST_REGISTERS>,
}

impl Choice {
    fn new(limit: usize) -> Self {
        Self { limit, offered: 0, best: Vec::new() }
    }

    /// Offers `intid`, not lower than any before.
    fn offer(&mut self, rank: u16, intid: u32) {
        self.offered += 1;
        let at = self.best.iter().position(|&(r, _)| rank < r).unwrap_or(self.best.len());
        if at < self.limit {
            self.best.truncate(self.limit - 1);
            // There is room for one more, and every INTID fits: `INTIDS` is 256.
            let _ = self.best.insert(at, (rank, intid as u8));
        }
    }
}

impl<P: PhysicalGic> Vgic<P> {
    /// Fills the list registers before `vcpu` runs guest code. Returns how many of them, from 0, the
    /// caller has to write, beside `hcr`.
    pub fn enter(&mut self, vcpu: usize, lrs: &mut ListRegisters) -> usize {
        self.leave(vcpu, lrs);
        let dirty = lrs.used;
        lrs.lr.fill(0);
        lrs.used = 0;
        lrs.hcr = hcr::EN | if self.config.vcpus > 1 { hcr::TDIR } else { 0 };
        let Some(cpu) = self.cpu(vcpu) else { return dirty };
        if !cpu.here.is_empty() {
            self.fill(vcpu, lrs);
        }
        self.cpus[vcpu].place = Place::In;
        dirty.max(lrs.used)
    }

    /// Takes the state in the list registers back after `vcpu` ran guest code.
    pub fn leave(&mut self, vcpu: usize, lrs: &ListRegisters) {
        if self.cpu(vcpu).is_none_or(|cpu| cpu.place == Place::Out) {
            return;
        }
        let cpu = &mut self.cpus[vcpu];
        cpu.place = Place::Out;
        cpu.withdrawing = false;
        cpu.split_eoi = lrs.vmcr & vmcr::SPLIT_EOI != 0;
        if cpu.here.is_empty() {
            return;
        }
        // What is loaded has not been taken back yet, so whatever is active outside was evicted.
        if lrs.hcr & hcr::LRENPIE != 0 {
            for _ in 0..lrs.hcr >> hcr::EOI_COUNT_SHIFT & 0x1f {
                self.end_evicted(vcpu);
            }
        }
        let loaded = core::mem::take(&mut self.cpus[vcpu].loaded);
        for (&intid, &lr) in loaded.iter().zip(&lrs.lr) {
            self.take_back(Id { bank: vcpu, intid: intid.into() }, lr);
        }
        for intid in self.cpus[vcpu].here.iter() {
            self.sample(Id { bank: vcpu, intid });
        }
    }

    /// Chooses what goes into the list registers of `vcpu`.
    fn fill(&mut self, vcpu: usize, lrs: &mut ListRegisters) {
        let slots = self.config.list_registers;
        let group_enabled = vmcr::ENABLED.map(|bit| lrs.vmcr & bit != 0);
        let mut active = Choice::new(slots);
        let mut pending = Choice::new(slots);
        let mut takeable = 0;
        for intid in self.cpus[vcpu].here.iter() {
            let id = Id { bank: vcpu, intid };
            let interrupt = self.interrupt(id);
            if interrupt.active {
                active.offer(interrupt.active_priority.into(), intid);
            } else if self.is_forwarded(id, vcpu) {
                let enabled = group_enabled[usize::from(interrupt.group1)];
                takeable += usize::from(enabled);
                pending.offer(u16::from(interrupt.priority) | u16::from(!enabled) << 8, intid);
            }
        }
        let active_slots = active.best.len().min(slots - usize::from(takeable > 0));
        let pending_slots = pending.best.len().min(slots - active_slots);
        if active.offered > active_slots {
            lrs.hcr |= hcr::LRENPIE | hcr::TDIR;
        }
        if takeable > pending_slots {
            lrs.hcr |= hcr::NPIE;
        }
        if pending.offered > pending_slots {
            for (group, enabled) in group_enabled.into_iter().enumerate() {
                lrs.hcr |= if enabled { hcr::DISABLED[group] } else { hcr::ENABLED[group] };
            }
        }
        let chosen = active.best[..active_slots].iter().chain(&pending.best[..pending_slots]);
        for (&(_, intid), slot) in chosen.zip(&mut lrs.lr) {
            let id = Id { bank: vcpu, intid: intid.into() };
            let forwarded = self.is_forwarded(id, vcpu);
            *slot = self.interrupt_mut(id).load(intid, forwarded);
            // As many as there are list registers.
            let _ = self.cpus[vcpu].loaded.push(intid);
        }
        lrs.used = self.cpus[vcpu].loaded.len();
    }

    /// The guest ended an interrupt that was in no list register of `vcpu`.
    fn end_evicted(&mut self, vcpu: usize) {
        let evicted = self.cpus[vcpu]
            .here
            .iter()
            .map(|intid| (self.interrupt(Id { bank: vcpu, intid }), intid))
            .filter(|(interrupt, _)| interrupt.active && !interrupt.loaded)
            .min_by_key(|(i, intid)| (!i.acknowledged, i.active_priority, *intid));
        if let Some((_, intid)) = evicted {
            self.clear_active(Id { bank: vcpu, intid });
        }
    }

    /// Takes one interrupt out of its list register, and settles what was changed about it meanwhile.
    fn take_back(&mut self, id: Id, lr: u64) {
        let source = self.source(id);
        let interrupt = self.interrupt_mut(id);
        let mut pending = lr & lr::PENDING != 0;
        let active = lr & lr::ACTIVE != 0;
        interrupt.loaded = false;
        let lent_latch = core::mem::take(&mut interrupt.lent_latch);
        let lent_hw = core::mem::take(&mut interrupt.lent_hw);
        let mut deactivate = false;
        if core::mem::take(&mut interrupt.drop_pending) && pending {
            pending = false;
            deactivate = lent_hw;
        }
        interrupt.latch |= pending && lent_latch;
        let was_active = core::mem::replace(&mut interrupt.active, false);
        if active {
            interrupt.acknowledged |= !was_active;
            interrupt.activate((lr >> lr::PRIORITY_SHIFT) as u8, lr & lr::GROUP1 != 0);
        }
        if lr & lr::HW != 0 {
            // If the guest has deactivated it, the physical one may have fired again already, perhaps on
            // another CPU: then `hw_pending` is set.
            interrupt.hw_pending |= pending;
            interrupt.tied = active;
        } else if !active {
            deactivate |= core::mem::take(&mut interrupt.tied);
        }
        let force_active = interrupt.force_active.take();
        if deactivate && let Some(source) = source {
            self.port.deactivate(source);
        }
        match force_active {
            Some(true) => self.set_active(id),
            Some(false) => self.clear_active(id),
            None => self.refresh(id),
        }
    }

    /// Takes back a level-sensitive physical interrupt whose line has become low before the guest
    /// acknowledged it.
    fn sample(&mut self, id: Id) {
        let Interrupt { hw_pending, edge, .. } = *self.interrupt(id);
        if hw_pending
            && !edge
            && let Some(source) = self.source(id)
            && !self.port.is_pending(source)
        {
            self.interrupt_mut(id).hw_pending = false;
            self.port.deactivate(source);
            self.refresh(id);
        }
    }
}

impl Interrupt {
    /// Moves its state into a list register of a vCPU to which it would be forwarded if `forwarded`.
    fn load(&mut self, intid: u8, forwarded: bool) -> u64 {
        let (priority, group1) = if self.active {
            (self.active_priority, self.active_group1)
        } else {
            (self.priority, self.group1)
        };
        let mut lr = u64::from(intid)
            | u64::from(priority) << lr::PRIORITY_SHIFT
            | if group1 { lr::GROUP1 } else { 0 };
        let physical = lr::HW | u64::from(self.phys) << lr::PHYSICAL_SHIFT;
        if self.active {
            lr |= lr::ACTIVE;
            // A list register that is both becomes pending at deactivation, with the priority it has now.
            let both = self.latch
                && !self.is_held()
                && forwarded
                && !self.hw_pending
                && !self.tied
                && (priority, group1) == (self.priority, self.group1);
            if both {
                lr |= lr::PENDING;
                self.lent_latch = core::mem::take(&mut self.latch);
            } else if self.is_pending() {
                // It is pending again as soon as it is inactive: come back then.
                lr |= lr::EOI;
            } else if self.tied {
                lr |= physical;
            }
        } else {
            lr |= lr::PENDING;
            self.lent_latch = core::mem::take(&mut self.latch);
            self.lent_hw = core::mem::take(&mut self.hw_pending);
            if self.lent_hw {
                lr |= physical;
            } else if self.is_held() {
                // The line may still be high when the guest deactivates it.
                lr |= lr::EOI;
            }
        }
        self.loaded = true;
        lr
    }
}
