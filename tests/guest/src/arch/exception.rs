//! Exceptions: interrupts go to [`crate::interrupt`], faults to whoever is prepared to [`catch`] them.

use core::arch::global_asm;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::boot::MAX_CPUS;
use super::cpu;

global_asm!(include_str!("exception.S"));

const SYNCHRONOUS: u64 = 4;
const IRQ: u64 = 5;

#[repr(C)]
struct Frame {
    x: [u64; 31],
    elr: u64,
    spsr: u64,
    esr: u64,
    far: u64,
    reserved: u64,
}

/// A synchronous exception that was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The syndrome (`ESR_EL1`).
    pub esr: u64,
    /// The faulting virtual address (`FAR_EL1`), where the syndrome defines it.
    pub far: u64,
}

impl Fault {
    /// The exception class: 0 for an undefined instruction, 0x25 for a data abort.
    pub fn class(self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// Whether it is a synchronous external abort on a data access, not on a table walk.
    pub fn is_external_abort(self) -> bool {
        self.class() == 0x25 && self.esr & 0x3f == 0x10
    }

    /// Whether it is a synchronous external abort on a data access or on the table walk for it.
    pub fn is_external_abort_of_walk(self) -> bool {
        self.is_external_abort() || self.class() == 0x25 && self.esr & 0x3c == 0x14
    }

    /// Whether it is a synchronous external abort on an instruction fetch.
    pub fn is_external_fetch_abort(self) -> bool {
        self.class() == 0x21 && self.esr & 0x3f == 0x10
    }

    /// Whether it is an undefined instruction or register.
    pub fn is_undefined(self) -> bool {
        self.class() == 0
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exception class {:#x}, esr {:#x}, far {:#x}", self.class(), self.esr, self.far)
    }
}

struct Catcher {
    armed: AtomicBool,
    caught: AtomicBool,
    esr: AtomicU64,
    far: AtomicU64,
}

static CATCHERS: [Catcher; MAX_CPUS] = [const {
    Catcher {
        armed: AtomicBool::new(false),
        caught: AtomicBool::new(false),
        esr: AtomicU64::new(0),
        far: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// Runs `attempt` and returns the first synchronous exception in it, if there was one.
///
/// Every faulting instruction is skipped: a load among them leaves its register as it was. A jump out of the
/// image is answered with a return.
pub fn catch<T>(attempt: impl FnOnce() -> T) -> Result<T, Fault> {
    let catcher = &CATCHERS[cpu::index()];
    catcher.caught.store(false, Ordering::Relaxed);
    catcher.armed.store(true, Ordering::Relaxed);
    super::mem::barrier();
    let value = attempt();
    super::mem::barrier();
    catcher.armed.store(false, Ordering::Relaxed);
    if catcher.caught.load(Ordering::Relaxed) {
        let esr = catcher.esr.load(Ordering::Relaxed);
        return Err(Fault { esr, far: catcher.far.load(Ordering::Relaxed) });
    }
    Ok(value)
}

#[unsafe(no_mangle)]
extern "C" fn guest_exception(kind: u64, frame: &mut Frame) {
    if kind == IRQ {
        crate::interrupt::handle();
        return;
    }
    let catcher = &CATCHERS[cpu::index()];
    if kind == SYNCHRONOUS && catcher.armed.load(Ordering::Relaxed) {
        if !catcher.caught.swap(true, Ordering::Relaxed) {
            catcher.esr.store(frame.esr, Ordering::Relaxed);
            catcher.far.store(frame.far, Ordering::Relaxed);
        }
        let in_image = super::boot::image().contains(&frame.elr);
        frame.elr = if in_image { frame.elr + 4 } else { frame.x[30] };
        return;
    }
    panic!(
        "vector {kind}: esr {:#x}, far {:#x}, elr {:#x}, spsr {:#x}, x30 {:#x}",
        frame.esr, frame.far, frame.elr, frame.spsr, frame.x[30]
    );
}
