//! A minimal driver of a GICv3 with one security state (IHI 0069).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::arch::{cpu, mem};
use crate::machine::Machine;

/// The virtual timer's interrupt.
pub const VIRTUAL_TIMER: u32 = 27;
/// The first INTID shared by all CPUs.
pub const FIRST_SPI: u32 = 32;
/// What an acknowledge returns when nothing is pending.
pub const SPURIOUS: u32 = 1023;

const GICD_CTLR: u64 = 0x0000;
const GICD_CTLR_ARE_GROUP1: u32 = 0x12;
const GICD_CTLR_RWP: u32 = 1 << 31;
const IGROUPR: u64 = 0x0080;
const ISENABLER: u64 = 0x0100;
const ICENABLER: u64 = 0x0180;
const IPRIORITYR: u64 = 0x0400;
const GICD_IROUTER: u64 = 0x6000;
const GICR_TYPER: u64 = 0x0008;
const GICR_WAKER: u64 = 0x0014;
const GICR_FRAME: u64 = 0x2_0000;
const SGI_FRAME: u64 = 0x1_0000;
const AFFINITY: u64 = 0xff_00ff_ffff;
const PRIORITY: u8 = 0xa0;

static DISTRIBUTOR: AtomicU64 = AtomicU64::new(0);

/// Switches the distributor on, and this CPU's interface to it.
///
/// # Panics
///
/// If no redistributor frame is this CPU's.
pub fn start(machine: &Machine) {
    DISTRIBUTOR.store(machine.distributor, Ordering::Relaxed);
    mem::write32(machine.distributor + GICD_CTLR, GICD_CTLR_ARE_GROUP1);
    while mem::read32(machine.distributor + GICD_CTLR) & GICD_CTLR_RWP != 0 {}
    start_cpu(machine);
}

/// Switches this CPU's interface on.
///
/// # Panics
///
/// If no redistributor frame is this CPU's.
pub fn start_cpu(machine: &Machine) {
    let frame = redistributor(machine);
    mem::write32(frame + GICR_WAKER, 0);
    while mem::read32(frame + GICR_WAKER) & 4 != 0 {}
    let private = frame + SGI_FRAME;
    mem::write32(private + IGROUPR, u32::MAX);
    for intid in 0..u64::from(FIRST_SPI) {
        mem::write8(private + IPRIORITYR + intid, PRIORITY);
    }
    mem::write32(private + ISENABLER, 0xffff | 1 << VIRTUAL_TIMER);
    cpu::set_system_register_interface(7);
    cpu::set_priority_mask(0xff);
    cpu::set_binary_point(0);
    cpu::set_interface_control(0);
    cpu::set_group1_enable(1);
}

/// The redistributor frame of this CPU.
fn redistributor(machine: &Machine) -> u64 {
    let own = cpu::affinity() & AFFINITY;
    let own = (own >> 32 & 0xff) << 24 | own & 0xff_ffff;
    machine
        .redistributors
        .clone()
        .step_by(GICR_FRAME as usize)
        .find(|frame| mem::read64(frame + GICR_TYPER) >> 32 == own)
        .unwrap_or_else(|| panic!("no redistributor for affinity {own:#x}"))
}

/// Lets the level-sensitive SPI `intid` reach this CPU.
pub fn enable_spi(intid: u32) {
    let base = DISTRIBUTOR.load(Ordering::Relaxed);
    let (word, bit) = (u64::from(intid / 32) * 4, 1 << (intid % 32));
    let group = mem::read32(base + IGROUPR + word);
    mem::write32(base + IGROUPR + word, group | bit);
    mem::write8(base + IPRIORITYR + u64::from(intid), PRIORITY);
    mem::write64(base + GICD_IROUTER + u64::from(intid) * 8, cpu::affinity() & AFFINITY);
    mem::write32(base + ISENABLER + word, bit);
}

/// Keeps the SPI `intid` away from all CPUs.
pub fn disable_spi(intid: u32) {
    let base = DISTRIBUTOR.load(Ordering::Relaxed);
    mem::write32(base + ICENABLER + u64::from(intid / 32) * 4, 1 << (intid % 32));
}
