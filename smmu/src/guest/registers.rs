//! The registers of a virtual SMMU (section 6.3): what they hold, when they can be written, how they read.

use tock_registers::LocalRegisterCopy;

use crate::guest::RegisterFrames;
use crate::guest::features::Identity;
use crate::guest::queue::{INDEX, Ring};
use crate::regs::{CR0, CR2, GBPA, GERROR, IRQ_CTRL};

/// Offsets that [`crate::regs::offset`] does not have, and those that are used here under the same names.
pub mod offset {
    pub use crate::regs::offset::{
        AIDR, CMDQ_BASE, CMDQ_CONS, CMDQ_PROD, CR0, CR0ACK, CR1, CR2, EVENTQ_BASE, EVENTQ_CONS,
        EVENTQ_IRQ_CFG0, EVENTQ_PROD, GBPA, GERROR, GERROR_IRQ_CFG0, GERRORN, IDR0, IDR1, IDR3,
        IDR5, IRQ_CTRL, IRQ_CTRLACK, STRTAB_BASE, STRTAB_BASE_CFG,
    };

    pub const STATUSR: u32 = 0x40;
    pub const GERROR_IRQ_CFG2: u32 = GERROR_IRQ_CFG0 + 12;
    pub const EVENTQ_IRQ_CFG2: u32 = EVENTQ_IRQ_CFG0 + 12;
    /// The second halves of 64-bit registers.
    pub const STRTAB_BASE_HIGH: u32 = STRTAB_BASE + 4;
    pub const CMDQ_BASE_HIGH: u32 = CMDQ_BASE + 4;
    pub const EVENTQ_BASE_HIGH: u32 = EVENTQ_BASE + 4;
    /// Where page 1 is; page 0 has the event queue's indices as well.
    pub const PAGE1: u32 = 0x1_0000;

    /// The one offset of a register that has two.
    pub const fn canonical(at: u32) -> u32 {
        match at | PAGE1 {
            EVENTQ_PROD | EVENTQ_CONS => at | PAGE1,
            _ => at,
        }
    }

    /// Every register that can read as other than 0.
    pub const ALL: [u32; 27] = [
        IDR0,
        IDR1,
        IDR3,
        IDR5,
        AIDR,
        CR0,
        CR0ACK,
        CR1,
        CR2,
        GBPA,
        IRQ_CTRL,
        IRQ_CTRLACK,
        GERROR,
        GERRORN,
        STRTAB_BASE,
        STRTAB_BASE_HIGH,
        STRTAB_BASE_CFG,
        CMDQ_BASE,
        CMDQ_BASE_HIGH,
        CMDQ_PROD,
        CMDQ_CONS,
        EVENTQ_BASE,
        EVENTQ_BASE_HIGH,
        EVENTQ_PROD & !PAGE1,
        EVENTQ_CONS & !PAGE1,
        EVENTQ_PROD,
        EVENTQ_CONS,
    ];
}

/// `CR0`'s bits that there are: no PRI queue, no ATS, no VMID wildcards.
const CR0_BITS: u32 = CR0::SMMUEN::SET.value | CR0::EVENTQEN::SET.value | CR0::CMDQEN::SET.value;
/// `CR1`'s attributes of queues and of tables.
const CR1_QUEUE: u32 = 0x3f;
const CR1_TABLE: u32 = 0xfc0;
/// Without broadcast TLB maintenance there is no PTM, without EL2 no E2H.
const CR2_BITS: u32 = CR2::RECINVSID::SET.value;
const IRQ_BITS: u32 = IRQ_CTRL::GERROR_IRQEN::SET.value | IRQ_CTRL::EVENTQ_IRQEN::SET.value;
/// Global errors that are defined without PRI and MSIs.
const ERRORS: u32 =
    GERROR::CMDQ_ERR::SET.value | GERROR::EVENTQ_ABT_ERR::SET.value | GERROR::SFM_ERR::SET.value;
/// `STRTAB_BASE`: RA and ADDR.
const STRTAB_BASE_BITS: u64 = 1 << 62 | 0x00ff_ffff_ffff_ffc0;
/// FMT, SPLIT and LOG2SIZE.
const STRTAB_CFG_BITS: u32 = 0x3_07ff;
/// `CMDQ_BASE` and `EVENTQ_BASE`: RA or WA, ADDR and LOG2SIZE.
const QUEUE_BASE_BITS: u64 = 1 << 62 | 0x00ff_ffff_ffff_ffff;
/// `OVFLG` and `OVACKFLG`.
const OVERFLOW: u32 = 1 << 31;
/// `CMDQ_CONS.ERR`.
const ERR_SHIFT: u32 = 24;
const ERR_BITS: u32 = 0x7f << ERR_SHIFT;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The register holds it, as far as the register has such bits.
    Stored,
    /// The register is read-only, or guarded by what is enabled now.
    Ignored,
    /// There is no such register.
    Unknown,
}

/// A global error (section 6.3.19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GlobalError {
    /// The command queue stopped.
    Command,
    /// An event could not be written.
    EventQueueAbort,
}

/// A queue's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    base: u64,
    /// The producer's index, and for events the overflow flag.
    pub prod: u32,
    /// The consumer's index, and beside it an error or the acknowledged overflow flag.
    pub cons: u32,
}

/// All registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    identity: Identity,
    cr0: u32,
    cr0ack: u32,
    cr1: u32,
    cr2: u32,
    abort: bool,
    irq_ctrl: u32,
    gerror: u32,
    gerrorn: u32,
    strtab_base: u64,
    strtab_cfg: u32,
    /// Commands.
    pub cmdq: Queue,
    /// Events.
    pub eventq: Queue,
}

/// What a write to `GBPA` asks for, if it asks for anything (section 6.3.14): only with UPDATE it does. ABORT
/// is all there is, since `IDR1.ATTR_TYPES_OVR` and `ATTR_PERMS_OVR` are 0.
pub fn requested_abort(value: u32) -> Option<bool> {
    let value = LocalRegisterCopy::<u32, GBPA::Register>::new(value);
    value.is_set(GBPA::UPDATE).then(|| value.is_set(GBPA::ABORT))
}

/// Puts the half at `offset` of a 64-bit register in place, as far as it has such bits.
fn set_half(register: &mut u64, offset: u32, value: u32, bits: u64) {
    let shift = (offset & 4) * 8;
    let half = u64::from(u32::MAX) << shift;
    *register = (*register & !half | u64::from(value) << shift) & bits;
}

fn half(register: u64, offset: u32) -> u32 {
    (register >> ((offset & 4) * 8)) as u32
}

impl Registers {
    /// In the state after reset.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            cr0: 0,
            cr0ack: 0,
            cr1: 0,
            cr2: 0,
            abort: true,
            irq_ctrl: 0,
            gerror: 0,
            gerrorn: 0,
            strtab_base: 0,
            strtab_cfg: 0,
            cmdq: Queue::default(),
            eventq: Queue::default(),
        }
    }

    /// Back to that state.
    pub fn reset(&mut self, abort: bool) {
        *self = Self { abort, ..Self::new(self.identity) };
    }

    /// Stores what the guest writes to the canonical `at`, unless more hangs on it: see the caller for `GBPA`.
    pub fn write(&mut self, at: u32, value: u32) -> Written {
        // A change is under way until it is acknowledged.
        let enabled = LocalRegisterCopy::<u32, CR0::Register>::new(self.cr0 | self.cr0ack);
        let smmu = enabled.is_set(CR0::SMMUEN);
        let commands = enabled.is_set(CR0::CMDQEN);
        let events = enabled.is_set(CR0::EVENTQEN);
        let guarded = match at {
            offset::CR2
            | offset::STRTAB_BASE
            | offset::STRTAB_BASE_HIGH
            | offset::STRTAB_BASE_CFG => smmu,
            offset::CMDQ_BASE | offset::CMDQ_BASE_HIGH | offset::CMDQ_CONS => commands,
            offset::EVENTQ_BASE | offset::EVENTQ_BASE_HIGH | offset::EVENTQ_PROD => events,
            _ => false,
        };
        if guarded {
            return Written::Ignored;
        }
        match at {
            offset::CR0 => {
                // SMMUEN is on its way to 0: until it is there, nothing else can become of it (section 6.3.9).
                let disabling = self.cr0ack & !self.cr0 & CR0::SMMUEN::SET.value;
                self.cr0 = value & CR0_BITS & !disabling;
            }
            offset::CR1 => {
                let writable = if smmu { 0 } else { CR1_TABLE }
                    | if commands || events { 0 } else { CR1_QUEUE };
                self.cr1 = self.cr1 & !writable | value & writable;
            }
            offset::CR2 => self.cr2 = value & CR2_BITS,
            offset::IRQ_CTRL => self.irq_ctrl = value & IRQ_BITS,
            offset::GERRORN => self.gerrorn = value & ERRORS,
            offset::STRTAB_BASE | offset::STRTAB_BASE_HIGH => {
                set_half(&mut self.strtab_base, at, value, STRTAB_BASE_BITS);
            }
            offset::STRTAB_BASE_CFG => self.strtab_cfg = value & STRTAB_CFG_BITS,
            offset::CMDQ_BASE | offset::CMDQ_BASE_HIGH => {
                set_half(&mut self.cmdq.base, at, value, QUEUE_BASE_BITS);
            }
            offset::CMDQ_PROD => self.cmdq.prod = value & INDEX,
            offset::CMDQ_CONS => self.cmdq.cons = value & (INDEX | ERR_BITS),
            offset::EVENTQ_BASE | offset::EVENTQ_BASE_HIGH => {
                set_half(&mut self.eventq.base, at, value, QUEUE_BASE_BITS);
            }
            offset::EVENTQ_PROD => self.eventq.prod = value & (INDEX | OVERFLOW),
            offset::EVENTQ_CONS => self.eventq.cons = value & (INDEX | OVERFLOW),
            // IDR0 to AIDR, what acknowledges, what messages interrupts would need, and the identification of
            // the component.
            0..=0x1c
            | offset::CR0ACK
            | offset::STATUSR
            | offset::IRQ_CTRLACK
            | offset::GERROR
            | offset::GERROR_IRQ_CFG0..=offset::GERROR_IRQ_CFG2
            | offset::EVENTQ_IRQ_CFG0..=offset::EVENTQ_IRQ_CFG2
            | 0xfd0..=0xffc => return Written::Ignored,
            _ => return Written::Unknown,
        }
        Written::Stored
    }

    /// What a read of `at` finds.
    fn value(&self, at: u32) -> u32 {
        match offset::canonical(at) {
            offset::IDR0 => self.identity.idr0,
            offset::IDR1 => self.identity.idr1,
            offset::IDR3 => self.identity.idr3,
            offset::IDR5 => self.identity.idr5,
            offset::AIDR => self.identity.aidr,
            offset::CR0 => self.cr0,
            offset::CR0ACK => self.cr0ack,
            offset::CR1 => self.cr1,
            offset::CR2 => self.cr2,
            offset::GBPA => GBPA::ABORT.val(self.abort.into()).value,
            offset::IRQ_CTRL | offset::IRQ_CTRLACK => self.irq_ctrl,
            offset::GERROR => self.gerror,
            offset::GERRORN => self.gerrorn,
            offset::STRTAB_BASE | offset::STRTAB_BASE_HIGH => half(self.strtab_base, at),
            offset::STRTAB_BASE_CFG => self.strtab_cfg,
            offset::CMDQ_BASE | offset::CMDQ_BASE_HIGH => half(self.cmdq.base, at),
            offset::CMDQ_PROD => self.cmdq.prod,
            offset::CMDQ_CONS => {
                self.cmdq.cons & ERR_BITS | self.command_ring().wrap(self.cmdq.cons)
            }
            offset::EVENTQ_BASE | offset::EVENTQ_BASE_HIGH => half(self.eventq.base, at),
            offset::EVENTQ_PROD => {
                self.eventq.prod & OVERFLOW | self.event_ring().wrap(self.eventq.prod)
            }
            offset::EVENTQ_CONS => self.eventq.cons,
            _ => 0,
        }
    }

    /// Makes reads find the register at the canonical `at` as it is now, and what follows it at once: an
    /// acknowledgement, the same register at its other offset, or an index whose width the register decides.
    pub fn publish(&self, frames: &dyn RegisterFrames, at: u32) {
        frames.write32(at, self.value(at));
        match at {
            offset::IRQ_CTRL => frames.write32(offset::IRQ_CTRLACK, self.irq_ctrl),
            offset::CMDQ_BASE => self.publish(frames, offset::CMDQ_CONS),
            offset::EVENTQ_BASE => self.publish(frames, offset::EVENTQ_PROD),
            offset::EVENTQ_PROD | offset::EVENTQ_CONS => {
                frames.write32(at & !offset::PAGE1, self.value(at));
            }
            _ => {}
        }
    }

    /// Makes reads find all of them.
    pub fn publish_all(&self, frames: &dyn RegisterFrames) {
        for at in offset::ALL {
            frames.write32(at, self.value(at));
        }
    }

    /// Whether `CR0.SMMUEN` was cleared and the guest does not know yet that it is.
    pub fn is_disabling(&self) -> bool {
        self.cr0ack & !self.cr0 & CR0::SMMUEN::SET.value != 0
    }

    /// Whether `CR0.SMMUEN` is set.
    pub fn is_enabled(&self) -> bool {
        self.cr0 & CR0::SMMUEN::SET.value != 0
    }

    /// `CR0ACK` becomes `CR0`.
    pub fn acknowledge(&mut self) {
        self.cr0ack = self.cr0;
    }

    /// Sets `GBPA.ABORT`.
    pub fn set_abort(&mut self, abort: bool) {
        self.abort = abort;
    }

    /// `STRTAB_BASE` and `STRTAB_BASE_CFG`.
    pub fn stream_table(&self) -> (u64, u32) {
        (self.strtab_base, self.strtab_cfg)
    }

    /// Whether `C_BAD_STREAMID` is recorded.
    pub fn records_bad_streams(&self) -> bool {
        self.cr2 & CR2::RECINVSID::SET.value != 0
    }

    /// Whether commands are consumed: the queue is enabled, and its last error is acknowledged.
    pub fn command_queue_runs(&self) -> bool {
        let stopped = (self.gerror ^ self.gerrorn) & GERROR::CMDQ_ERR::SET.value != 0;
        self.cr0 & CR0::CMDQEN::SET.value != 0 && !stopped
    }

    /// Where commands are.
    pub fn command_ring(&self) -> Ring {
        Ring::new(self.cmdq.base, 4)
    }

    /// One more command is consumed. An error that the guest had acknowledged is history.
    pub fn advance_commands(&mut self, ring: Ring) {
        self.cmdq.cons = ring.next(self.cmdq.cons);
    }

    /// Says why the command at the consumer's index was not consumed.
    pub fn set_command_error(&mut self, code: u32) {
        self.cmdq.cons = self.cmdq.cons & !ERR_BITS | code << ERR_SHIFT;
    }

    /// Whether events can be written: the queue is enabled, and no write to it aborted since.
    pub fn event_queue_runs(&self) -> bool {
        let stopped = (self.gerror ^ self.gerrorn) & GERROR::EVENTQ_ABT_ERR::SET.value != 0;
        self.cr0 & CR0::EVENTQEN::SET.value != 0 && !stopped
    }

    /// Where events are.
    pub fn event_ring(&self) -> Ring {
        Ring::new(self.eventq.base, 5)
    }

    /// One more event is in the queue.
    pub fn advance_events(&mut self, ring: Ring) {
        self.eventq.prod = self.eventq.prod & OVERFLOW | ring.next(self.eventq.prod);
    }

    /// An event was lost for want of room. Returns whether the guest has to hear of it: it knows of an overflow
    /// that it has not acknowledged.
    pub fn overflow(&mut self) -> bool {
        let news = (self.eventq.prod ^ self.eventq.cons) & OVERFLOW == 0;
        if news {
            self.eventq.prod ^= OVERFLOW;
        }
        news
    }

    /// Makes a global error active; returns whether it was not.
    pub fn raise(&mut self, error: GlobalError) -> bool {
        let bit = match error {
            GlobalError::Command => GERROR::CMDQ_ERR::SET.value,
            GlobalError::EventQueueAbort => GERROR::EVENTQ_ABT_ERR::SET.value,
        };
        let news = (self.gerror ^ self.gerrorn) & bit == 0;
        if news {
            self.gerror ^= bit;
        }
        news
    }

    /// Whether global errors are to interrupt.
    pub fn error_interrupt_enabled(&self) -> bool {
        self.irq_ctrl & IRQ_CTRL::GERROR_IRQEN::SET.value != 0
    }

    /// Whether the event queue is to interrupt.
    pub fn event_interrupt_enabled(&self) -> bool {
        self.irq_ctrl & IRQ_CTRL::EVENTQ_IRQEN::SET.value != 0
    }
}
