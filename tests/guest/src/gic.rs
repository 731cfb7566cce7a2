//! A minimal driver of a GICv3 with one security state (IHI 0069).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::arch::boot::MAX_CPUS;
use crate::arch::{cpu, mem};
use crate::machine::Machine;

/// The SGI by which one CPU wakes another one.
pub const DOORBELL: u32 = 15;
/// The virtual timer's interrupt.
pub const VIRTUAL_TIMER: u32 = 27;
/// The physical timer's interrupt.
pub const PHYSICAL_TIMER: u32 = 30;
/// The first INTID shared by all CPUs.
pub const FIRST_SPI: u32 = 32;
/// The first INTID that an acknowledge returns for no interrupt.
pub const FIRST_SPECIAL: u32 = 1020;
/// A priority in the middle.
pub const PRIORITY: u8 = 0xa0;

const GICD_CTLR: u64 = 0x0000;
const GICD_CTLR_ARE_GROUP1: u32 = 0x12;
const GICD_CTLR_RWP: u32 = 1 << 31;
const GICD_TYPER: u64 = 0x0004;
const IGROUPR: u64 = 0x0080;
const ISENABLER: u64 = 0x0100;
const ICENABLER: u64 = 0x0180;
const ISPENDR: u64 = 0x0200;
const ICPENDR: u64 = 0x0280;
const ICACTIVER: u64 = 0x0380;
const IPRIORITYR: u64 = 0x0400;
const ICFGR: u64 = 0x0c00;
const GICD_IROUTER: u64 = 0x6000;
const GICR_TYPER: u64 = 0x0008;
const GICR_WAKER: u64 = 0x0014;
const GICR_WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
/// The distance between two redistributors.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// Where in a redistributor the registers of SGIs and PPIs are.
pub const SGI_FRAME: u64 = 0x1_0000;
const AFFINITY: u64 = 0xff_00ff_ffff;

static DISTRIBUTOR: AtomicU64 = AtomicU64::new(0);
static REDISTRIBUTORS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static OWN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Switches the distributor on, and this CPU's interface to it.
///
/// # Panics
///
/// If no redistributor is this CPU's.
pub fn start(machine: &Machine) {
    DISTRIBUTOR.store(machine.distributor, Ordering::Relaxed);
    REDISTRIBUTORS[0].store(machine.redistributors.start, Ordering::Relaxed);
    REDISTRIBUTORS[1].store(machine.redistributors.end, Ordering::Relaxed);
    mem::write32(machine.distributor + GICD_CTLR, GICD_CTLR_ARE_GROUP1);
    while mem::read32(machine.distributor + GICD_CTLR) & GICD_CTLR_RWP != 0 {}
    start_cpu();
}

/// Switches this CPU's interface on, with all SGIs and both timers enabled.
///
/// # Panics
///
/// If no redistributor is this CPU's.
pub fn start_cpu() {
    let own = find_redistributor();
    OWN[cpu::index()].store(own, Ordering::Relaxed);
    mem::write32(own + GICR_WAKER, 0);
    while mem::read32(own + GICR_WAKER) & GICR_WAKER_CHILDREN_ASLEEP != 0 {}
    mem::write32(own + SGI_FRAME + IGROUPR, u32::MAX);
    for intid in 0..FIRST_SPI {
        set_priority(intid, PRIORITY);
    }
    for intid in (0..16).chain([VIRTUAL_TIMER, PHYSICAL_TIMER]) {
        enable(intid);
    }
    cpu::set_system_register_interface(7);
    set_priority_mask(0xff);
    cpu::set_binary_point(0);
    cpu::set_interface_control(0);
    cpu::set_group1_enable(1);
}

fn find_redistributor() -> u64 {
    let own = cpu::affinity() & AFFINITY;
    let own = (own >> 32 & 0xff) << 24 | own & 0xff_ffff;
    let [start, end] = REDISTRIBUTORS.each_ref().map(|address| address.load(Ordering::Relaxed));
    (start..end)
        .step_by(GICR_STRIDE as usize)
        .find(|frame| mem::read64(frame + GICR_TYPER) >> 32 == own)
        .unwrap_or_else(|| panic!("no redistributor for affinity {own:#x}"))
}

/// The redistributor of this CPU, or 0 before [`start_cpu`].
pub fn redistributor() -> u64 {
    OWN[cpu::index()].load(Ordering::Relaxed)
}

/// How many INTIDs the distributor has, private ones included.
pub fn intids() -> u32 {
    let typer = mem::read32(DISTRIBUTOR.load(Ordering::Relaxed) + GICD_TYPER);
    ((typer & 0x1f) + 1) * 32
}

/// Where the registers of `intid` are, as seen from this CPU.
fn bank(intid: u32) -> u64 {
    if intid < FIRST_SPI {
        redistributor() + SGI_FRAME
    } else {
        DISTRIBUTOR.load(Ordering::Relaxed)
    }
}

fn write_bit(registers: u64, intid: u32) {
    mem::write32(bank(intid) + registers + u64::from(intid / 32) * 4, 1 << (intid % 32));
}

fn read_bit(registers: u64, intid: u32) -> bool {
    mem::read32(bank(intid) + registers + u64::from(intid / 32) * 4) >> (intid % 32) & 1 != 0
}

/// Lets `intid` be signalled.
pub fn enable(intid: u32) {
    write_bit(ISENABLER, intid);
}

/// Keeps `intid` from being signalled.
pub fn disable(intid: u32) {
    write_bit(ICENABLER, intid);
}

/// Makes `intid` pending.
pub fn set_pending(intid: u32) {
    write_bit(ISPENDR, intid);
}

/// Makes `intid` not pending, unless its line is high.
pub fn clear_pending(intid: u32) {
    write_bit(ICPENDR, intid);
}

/// Whether `intid` is pending.
pub fn is_pending(intid: u32) -> bool {
    read_bit(ISPENDR, intid)
}

/// Gives `intid` a priority, 0 the most urgent one.
pub fn set_priority(intid: u32, priority: u8) {
    mem::write8(bank(intid) + IPRIORITYR + u64::from(intid), priority);
}

/// Lets only interrupts more urgent than `priority` reach this CPU.
pub fn set_priority_mask(priority: u8) {
    cpu::set_priority_mask(priority.into());
}

/// Makes every interrupt of this CPU, and every shared one, disabled, inactive and not pending.
pub fn silence() {
    for first in (0..intids()).step_by(32) {
        for registers in [ICENABLER, ICPENDR, ICACTIVER] {
            mem::write32(bank(first) + registers + u64::from(first / 32) * 4, u32::MAX);
        }
    }
}

/// How an SPI is triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Pending as long as the line is high.
    Level,
    /// Pending once for each rise of the line.
    Edge,
}

/// Puts the SPI `intid` into group 1 and routes it to the CPU of this affinity; it stays disabled.
pub fn configure_spi(intid: u32, trigger: Trigger, affinity: u64) {
    let base = bank(intid);
    disable(intid);
    let group = base + IGROUPR + u64::from(intid / 32) * 4;
    mem::write32(group, mem::read32(group) | 1 << (intid % 32));
    let config = base + ICFGR + u64::from(intid / 16) * 4;
    let edge = 2 << (intid % 16 * 2);
    let others = mem::read32(config) & !edge;
    mem::write32(config, if trigger == Trigger::Edge { others | edge } else { others });
    set_priority(intid, PRIORITY);
    mem::write64(base + GICD_IROUTER + u64::from(intid) * 8, affinity & AFFINITY);
}

/// Sends an SGI to the CPU of this affinity.
pub fn send_sgi(intid: u32, affinity: u64) {
    let level = |shift: u32| affinity >> shift & 0xff;
    let range = (level(0) >> 4) << 44;
    let targets = 1 << (level(0) & 0xf);
    cpu::generate_sgi(
        level(32) << 48
            | range
            | level(16) << 32
            | u64::from(intid) << 24
            | level(8) << 16
            | targets,
    );
}

/// Sends an SGI to all CPUs but this one.
pub fn send_sgi_to_others(intid: u32) {
    cpu::generate_sgi(1 << 40 | u64::from(intid) << 24);
}
