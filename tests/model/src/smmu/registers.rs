//! The registers (chapter 6): what they hold, what acts late, and what may not be written when.

use crate::machine::World;
use crate::violation::Property;

/// `CR0` bits (section 6.3.9).
const SMMUEN: u32 = 1 << 0;
const EVENTQEN: u32 = 1 << 2;
const CMDQEN: u32 = 1 << 3;
const ATSCHK: u32 = 1 << 4;
/// `GBPA` bits (section 6.3.14).
const ABORT: u32 = 1 << 20;
const UPDATE: u32 = 1 << 31;

/// What the registers hold.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    pub cr0: u32,
    /// What the SMMU acts on, and `CR0ACK` shows.
    pub cr0ack: u32,
    pub cr1: u32,
    pub cr2: u32,
    pub gbpa: u32,
    /// What the SMMU acts on while `UPDATE` is set.
    pub gbpa_before: u32,
    pub irq_ctrl: u32,
    pub irq_ctrlack: u32,
    pub gerror: u32,
    pub gerrorn: u32,
    pub strtab_base: u64,
    pub strtab_base_cfg: u32,
    pub cmdq_base: u64,
    pub cmdq_prod: u32,
    pub cmdq_cons: u32,
    pub eventq_base: u64,
    pub eventq_prod: u32,
    pub eventq_cons: u32,
    pub irq_cfg: [u64; 2],
}

impl Registers {
    pub fn commands_enabled(&self) -> bool {
        self.cr0ack & CMDQEN != 0
    }

    pub fn events_enabled(&self) -> bool {
        self.cr0ack & EVENTQEN != 0
    }

    pub fn checks_ats(&self) -> bool {
        self.cr0ack & ATSCHK != 0
    }

    /// `CMDQ_ERR` is active: no command is consumed.
    pub fn command_error(&self) -> bool {
        (self.gerror ^ self.gerrorn) & 1 != 0
    }
}

impl World {
    /// Whether the SMMU translates; while `CR0` is not acknowledged, it may or may not.
    pub(crate) fn translates(&mut self) -> bool {
        let (now, next) = (self.regs.cr0ack & SMMUEN != 0, self.regs.cr0 & SMMUEN != 0);
        if now != next && self.chooser.unusual(2) { next } else { now }
    }

    /// Whether transactions abort while the SMMU is disabled.
    pub(crate) fn aborts_when_disabled(&mut self) -> bool {
        let (now, next) = (self.regs.gbpa_before & ABORT != 0, self.regs.gbpa & ABORT != 0);
        if now != next && self.chooser.unusual(2) { next } else { now }
    }

    /// A control register takes effect.
    pub(crate) fn acknowledge(&mut self) {
        let regs = &self.regs;
        let pending =
            regs.cr0 != regs.cr0ack || regs.irq_ctrl != regs.irq_ctrlack || regs.gbpa & UPDATE != 0;
        if !pending || !self.hardware_may_act() {
            return;
        }
        let regs = &mut self.regs;
        let disabled = regs.cr0ack & SMMUEN != 0 && regs.cr0 & SMMUEN == 0;
        regs.cr0ack = regs.cr0;
        regs.irq_ctrlack = regs.irq_ctrl;
        regs.gbpa &= !UPDATE;
        regs.gbpa_before = regs.gbpa;
        let aborts = regs.gbpa & ABORT != 0;
        if self.closed && !aborts {
            self.violate(Property::ClosedFromTheStart, "GBPA.ABORT was cleared".into());
        }
        self.closed |= aborts;
        if disabled {
            // What was accepted before completes before the acknowledgement.
            self.land_all();
        }
    }

    pub(crate) fn read_register(&mut self, offset: u32) -> u64 {
        let acknowledges = matches!(offset, 0x24 | 0x54 | 0x44);
        if acknowledges && !self.chooser.unusual(2) {
            self.acknowledge();
        }
        match offset {
            // At random it is never in a hurry.
            0x9c => {
                let most =
                    if self.chooser.unusual(1) { self.chooser.choose(4) } else { usize::MAX };
                self.consume(most);
            }
            0x1_00a8 if !self.chooser.unusual(2) => self.deliver(usize::MAX),
            _ => {}
        }
        let regs = &self.regs;
        match offset {
            0x00 => self.profile.idr0.into(),
            0x04 => self.profile.idr1.into(),
            0x0c => self.profile.idr3.into(),
            0x14 => self.profile.idr5.into(),
            0x18 => 0,
            // SMMUv3.1.
            0x1c => 1,
            0x20 => regs.cr0.into(),
            0x24 => regs.cr0ack.into(),
            0x44 => regs.gbpa.into(),
            0x50 => regs.irq_ctrl.into(),
            0x54 => regs.irq_ctrlack.into(),
            0x60 => regs.gerror.into(),
            0x64 => regs.gerrorn.into(),
            0x98 => regs.cmdq_prod.into(),
            0x9c => regs.cmdq_cons.into(),
            0x1_00a8 => regs.eventq_prod.into(),
            0x1_00ac => regs.eventq_cons.into(),
            _ => {
                self.violate(Property::LegalUse, format!("read of register {offset:#x}"));
                0
            }
        }
    }

    pub(crate) fn write_register(&mut self, offset: u32, value: u64, bytes: u32) {
        // The port's promise: every earlier store is visible before the write is.
        self.memory.flush();
        self.check_write(offset, value, bytes);
        let low = value as u32;
        let regs = &mut self.regs;
        match offset {
            0x20 => regs.cr0 = low,
            0x28 => regs.cr1 = low,
            0x2c => regs.cr2 = low,
            // Without UPDATE the write is ignored.
            0x44 if low & UPDATE != 0 => {
                regs.gbpa_before = regs.gbpa;
                regs.gbpa = low;
            }
            0x50 => regs.irq_ctrl = low,
            0x64 => regs.gerrorn = low,
            0x68 => regs.irq_cfg[0] = value,
            0xb0 => regs.irq_cfg[1] = value,
            0x80 => regs.strtab_base = value,
            0x88 => regs.strtab_base_cfg = low,
            0x90 => regs.cmdq_base = value,
            0x98 => regs.cmdq_prod = low,
            0x9c => regs.cmdq_cons = low,
            0xa0 => regs.eventq_base = value,
            0x1_00a8 => regs.eventq_prod = low,
            0x1_00ac => regs.eventq_cons = low,
            _ => {}
        }
    }

    /// Writes that the specification makes ignored, unpredictable or wrong at this moment.
    fn check_write(&mut self, offset: u32, value: u64, bytes: u32) {
        let regs = &self.regs;
        let enabled = |bits: u32| (regs.cr0 | regs.cr0ack) & bits != 0;
        let interrupts = |bits: u32| (regs.irq_ctrl | regs.irq_ctrlack) & bits != 0;
        let wrong = match offset {
            0x20 => regs.cr0 != regs.cr0ack,
            0x28 => enabled(SMMUEN | EVENTQEN | CMDQEN),
            0x2c | 0x80 | 0x88 => enabled(SMMUEN),
            0x44 => regs.gbpa & UPDATE != 0 || value as u32 & UPDATE == 0,
            0x90 | 0x9c => enabled(CMDQEN),
            0xa0 | 0x1_00a8 => enabled(EVENTQEN),
            0x50 => regs.irq_ctrl != regs.irq_ctrlack,
            0x68 => interrupts(1),
            0xb0 => interrupts(4),
            0x64 => (regs.gerror ^ value as u32) & !(regs.gerror ^ regs.gerrorn) != 0,
            0x98 | 0x1_00ac => false,
            _ => true,
        };
        let wide = matches!(offset, 0x68 | 0x80 | 0x90 | 0xa0 | 0xb0);
        // After a failure nobody can wait for what did not happen.
        if (wrong && !self.has_failed) || wide != (bytes == 8) {
            let what = format!("{bytes}-byte write of {value:#x} to register {offset:#x}");
            self.violate(Property::LegalUse, what);
        }
    }
}
