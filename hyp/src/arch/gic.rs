//! The physical GICv3: distributor, redistributors, this CPU's interface, and the list registers.
//!
//! EL2 takes every physical interrupt. With `EOImode`=1 acknowledging and dropping the priority is EL2's part;
//! an interrupt that belongs to a guest is deactivated by the guest, through its list register.

use core::arch::asm;

use spin::Mutex;

use crate::arch::cpu::{self, MAX_CPUS};
use crate::arch::mmio::Window;
use crate::arch::sysreg::{isb, read, write};

/// The first shared interrupt.
pub const FIRST_SPI: u32 = 32;
/// From here on an acknowledged number means that nothing is pending.
const SPECIAL: u32 = 1020;
/// The software-generated interrupt that makes a CPU leave guest code.
pub const KICK: u32 = 0;

const GICD_CTLR: u64 = 0x0;
const GICD_TYPER: u64 = 0x4;
const GICD_IROUTER: u64 = 0x6000;
const GICR_CTLR: u64 = 0x0;
const ENABLE_LPIS: u32 = 1;
const GITS_CTLR: u64 = 0x0;
const GITS_CTLR_ENABLED: u32 = 1;
const GITS_CTLR_QUIESCENT: u32 = 1 << 31;
const GICR_CTLR_RWP: u32 = 1 << 3;
const GICD_CTLR_RWP: u32 = 1 << 31;
const GICR_TYPER: u64 = 0x8;
const GICR_WAKER: u64 = 0x14;
const SGI_FRAME: u64 = 0x1_0000;

// Offsets shared by the distributor and the redistributor's SGI frame.
const IGROUPR: u64 = 0x80;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;

/// Bytes of a redistributor without virtual LPIs.
const FRAMES: u64 = 0x2_0000;
/// Reads before a register write that never takes effect is given up.
const RWP_TRIES: u32 = 100_000;

/// Something in the GIC is not what the architecture says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicError {
    /// No redistributor names this CPU's affinity.
    NoRedistributor {
        /// The CPU's `MPIDR_EL1` affinity fields.
        mpidr: u64,
    },
    /// LPIs cannot be disabled any more, so the redistributor goes on writing to a predecessor's tables.
    LpisStuck,
    /// The redistributor did not wake up, or a write was never done.
    Stuck,
}

/// The physical interrupt controller.
#[derive(Debug)]
pub struct Gic {
    distributor: Window,
    redistributors: [Option<Window>; MAX_CPUS],
    affinities: [u64; MAX_CPUS],
    /// Held while a register that interrupts of several owners share is read, changed and written.
    configuration: Mutex<()>,
}

/// A physical interrupt, and whose it is if every CPU has one of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// INTID 0 to 31 of one CPU.
    Private {
        /// Its CPU.
        cpu: usize,
        /// Its number.
        intid: u32,
    },
    /// INTID 32 to 1019.
    Shared(u32),
}

impl Line {
    fn intid(self) -> u32 {
        match self {
            Self::Private { intid, .. } | Self::Shared(intid) => intid,
        }
    }
}

/// The affinity fields of an `MPIDR_EL1` value.
pub fn affinity(mpidr: u64) -> u64 {
    mpidr & 0xff_00ff_ffff
}

impl Gic {
    /// Finds the redistributor of each CPU. `regions` are mapped register windows, with the bytes per CPU where
    /// the device tree says them.
    ///
    /// # Errors
    ///
    /// [`GicError::NoRedistributor`] if a CPU has none.
    pub fn find(
        distributor: Window,
        regions: impl Iterator<Item = (Window, Option<u64>)> + Clone,
        mpidrs: &[u64],
    ) -> Result<Self, GicError> {
        let mut gic = Self {
            distributor,
            redistributors: [None; MAX_CPUS],
            affinities: [0; MAX_CPUS],
            configuration: Mutex::new(()),
        };
        for (cpu, &mpidr) in mpidrs.iter().enumerate() {
            let wanted = affinity(mpidr);
            gic.affinities[cpu] = wanted;
            gic.redistributors[cpu] = regions.clone().find_map(|(region, stride)| {
                let stride = stride.unwrap_or(FRAMES);
                (0..region.size() / stride).find_map(|frame| {
                    let typer = region.read64(frame * stride + GICR_TYPER);
                    let found = (typer >> 32 & 0xff_ffff) | typer >> 56 << 32;
                    // SAFETY: a part of a mapped window; redistributor registers other than the LPI table bases, which
                    // EL2 never writes, cause no memory access.
                    (found == wanted)
                        .then(|| unsafe { Window::new(region.base().add(frame * stride), stride) })
                })
            });
            if gic.redistributors[cpu].is_none() {
                return Err(GicError::NoRedistributor { mpidr });
            }
        }
        Ok(gic)
    }

    /// Disables every shared interrupt, gives it to the non-secure group and enables the distributor. Once, on the first CPU.
    ///
    /// # Errors
    ///
    /// [`GicError::Stuck`].
    pub fn start(&self) -> Result<(), GicError> {
        let d = &self.distributor;
        // Only the group enables: affinity routing may not be switched off again.
        d.write32(GICD_CTLR, d.read32(GICD_CTLR) & !0b111);
        self.wait_distributor()?;
        let words = u64::from(d.read32(GICD_TYPER) & 0x1f) + 1;
        for word in 1..words {
            d.write32(ICENABLER + 4 * word, u32::MAX);
            d.write32(ICPENDR + 4 * word, u32::MAX);
            d.write32(ICACTIVER + 4 * word, u32::MAX);
            d.write32(IGROUPR + 4 * word, u32::MAX);
            for priorities in 0..8 {
                d.write32(IPRIORITYR + 32 * word + 4 * priorities, 0xa0a0_a0a0);
            }
        }
        self.wait_distributor()?;
        // Affinity routing and group 1; the bits are where they are in both security configurations.
        d.write32(GICD_CTLR, 1 << 4 | 1 << 1);
        self.wait_distributor()
    }

    fn wait_distributor(&self) -> Result<(), GicError> {
        (0..RWP_TRIES)
            .any(|_| self.distributor.read32(GICD_CTLR) & GICD_CTLR_RWP == 0)
            .then_some(())
            .ok_or(GicError::Stuck)
    }

    fn redistributor(&self, cpu: usize) -> &Window {
        self.redistributors[cpu].as_ref().expect("`find` gave every CPU a redistributor")
    }

    /// Wakes this CPU's redistributor and interface; of its private interrupts only `private` are enabled.
    ///
    /// # Errors
    ///
    /// [`GicError::Stuck`].
    pub fn start_cpu(&self, private: &[u32]) -> Result<(), GicError> {
        let r = self.redistributor(cpu::number());
        // A predecessor's LPI tables may be in what is guests' RAM now (C8).
        r.write32(GICR_CTLR, r.read32(GICR_CTLR) & !ENABLE_LPIS);
        if r.read32(GICR_CTLR) & ENABLE_LPIS != 0 {
            return Err(GicError::LpisStuck);
        }
        r.write32(GICR_WAKER, r.read32(GICR_WAKER) & !(1 << 1));
        if !(0..RWP_TRIES).any(|_| r.read32(GICR_WAKER) & 1 << 2 == 0) {
            return Err(GicError::Stuck);
        }
        r.write32(SGI_FRAME + ICENABLER, u32::MAX);
        r.write32(SGI_FRAME + ICPENDR, u32::MAX);
        r.write32(SGI_FRAME + ICACTIVER, u32::MAX);
        r.write32(SGI_FRAME + IGROUPR, u32::MAX);
        for priorities in 0..8 {
            r.write32(SGI_FRAME + IPRIORITYR + 4 * priorities, 0xa0a0_a0a0);
        }
        let enabled = private.iter().fold(1 << KICK, |bits, intid| bits | 1 << intid);
        r.write32(SGI_FRAME + ISENABLER, enabled);
        if !(0..RWP_TRIES).any(|_| r.read32(0) & GICR_CTLR_RWP == 0) {
            return Err(GicError::Stuck);
        }
        start_interface();
        Ok(())
    }

    /// The window and register offset that hold the bit of `line`.
    fn place(&self, line: Line, register: u64) -> (&Window, u64) {
        match line {
            Line::Private { cpu, .. } => (self.redistributor(cpu), SGI_FRAME + register),
            Line::Shared(intid) => (&self.distributor, register + 4 * u64::from(intid / 32)),
        }
    }

    fn write_bit(&self, line: Line, register: u64) {
        let (window, offset) = self.place(line, register);
        window.write32(offset, 1 << (line.intid() % 32));
    }

    /// Enables or disables an interrupt.
    pub fn set_enabled(&self, line: Line, enabled: bool) {
        self.write_bit(line, if enabled { ISENABLER } else { ICENABLER });
    }

    /// Sets or clears an interrupt's pending state; a level that is high stays pending.
    pub fn set_pending(&self, line: Line, pending: bool) {
        self.write_bit(line, if pending { ISPENDR } else { ICPENDR });
    }

    /// Whether an interrupt is pending.
    pub fn is_pending(&self, line: Line) -> bool {
        let (window, offset) = self.place(line, ISPENDR);
        window.read32(offset) & 1 << (line.intid() % 32) != 0
    }

    /// Clears an interrupt's active state.
    pub fn deactivate(&self, line: Line) {
        self.write_bit(line, ICACTIVER);
    }

    /// Routes a shared interrupt to CPU `cpu`.
    pub fn set_target(&self, intid: u32, cpu: usize) {
        self.distributor.write64(GICD_IROUTER + 8 * u64::from(intid), self.affinities[cpu]);
    }

    /// Makes an interrupt edge-triggered or level-sensitive. Its two bits share a register with fifteen others.
    pub fn set_edge(&self, line: Line, edge: bool) {
        let intid = line.intid();
        let (window, offset) = match line {
            Line::Private { cpu, .. } => (self.redistributor(cpu), SGI_FRAME + ICFGR + 4),
            Line::Shared(_) => (&self.distributor, ICFGR + 4 * u64::from(intid / 16)),
        };
        let bit = 2 << (2 * (intid % 16));
        let (enable, at) = self.place(line, ISENABLER);
        let _guard = self.configuration.lock();
        let old = window.read32(offset);
        let new = if edge { old | bit } else { old & !bit };
        if old == new {
            return;
        }
        // The trigger of an enabled interrupt must not change.
        let enabled = enable.read32(at) & 1 << (intid % 32) != 0;
        self.set_enabled(line, false);
        window.write32(offset, new);
        if enabled {
            self.set_enabled(line, true);
        }
    }

    /// Makes CPU `cpu` leave guest code soon.
    pub fn kick(&self, cpu: usize) {
        let target = self.affinities[cpu];
        let list = 1u64 << (target & 0xf);
        let value = (target >> 32 & 0xff) << 48
            | (target >> 4 & 0xf) << 44
            | (target >> 16 & 0xff) << 32
            | u64::from(KICK) << 24
            | (target >> 8 & 0xff) << 16
            | list;
        // SAFETY: generates an interrupt whose handler only returns; the barrier lets the CPU see what it is kicked for.
        unsafe {
            asm!("dsb ishst", "msr s3_0_c12_c11_5, {}", "isb", in(reg) value, options(nostack, preserves_flags))
        };
    }
}

read!(icc_sre_el2, "s3_4_c12_c9_5");
write!(icc_sre_el2_write, "s3_4_c12_c9_5");
write!(icc_pmr_el1, "s3_0_c4_c6_0");
write!(icc_bpr1_el1, "s3_0_c12_c12_3");
write!(icc_ctlr_el1, "s3_0_c12_c12_4");
write!(icc_igrpen1_el1, "s3_0_c12_c12_7");
write!(icc_eoir1_el1, "s3_0_c12_c12_1");
write!(icc_dir_el1, "s3_0_c12_c11_1");
write!(ich_hcr_el2_write, "s3_4_c12_c11_0");
read!(ich_hcr_el2, "s3_4_c12_c11_0");
read!(ich_vtr_el2, "s3_4_c12_c11_1");
write!(ich_vmcr_el2_write, "s3_4_c12_c11_7");
read!(
    /// The virtual CPU interface's priority mask, binary points and group enables.
    pub virtual_machine_control, "s3_4_c12_c11_7"
);
write!(ich_ap0r0_el2, "s3_4_c12_c8_0");
write!(ich_ap0r1_el2, "s3_4_c12_c8_1");
write!(ich_ap0r2_el2, "s3_4_c12_c8_2");
write!(ich_ap0r3_el2, "s3_4_c12_c8_3");
write!(ich_ap1r0_el2, "s3_4_c12_c9_0");
write!(ich_ap1r1_el2, "s3_4_c12_c9_1");
write!(ich_ap1r2_el2, "s3_4_c12_c9_2");
write!(ich_ap1r3_el2, "s3_4_c12_c9_3");

/// Stops an ITS, which a predecessor may have left at work: its tables are DMA too (C8).
///
/// # Errors
///
/// [`GicError::Stuck`].
pub fn stop_its(registers: &Window) -> Result<(), GicError> {
    registers.write32(GITS_CTLR, registers.read32(GITS_CTLR) & !GITS_CTLR_ENABLED);
    (0..RWP_TRIES)
        .any(|_| registers.read32(GITS_CTLR) & GITS_CTLR_QUIESCENT != 0)
        .then_some(())
        .ok_or(GicError::Stuck)
}

/// Lets this CPU use the interrupt controller's system registers, before any of them is touched.
pub fn enable_system_registers() {
    icc_sre_el2_write(icc_sre_el2() | 1 | 1 << 3);
    isb();
}

fn start_interface() {
    enable_system_registers();
    icc_pmr_el1(0xff);
    icc_bpr1_el1(0);
    icc_ctlr_el1(1 << 1); // EOImode: dropping the priority does not deactivate
    icc_igrpen1_el1(1);
    isb();
}

/// Acknowledges the most urgent pending interrupt of this CPU.
pub fn acknowledge() -> Option<u32> {
    let value: u64;
    // SAFETY: acknowledging changes the state of the interrupt controller only.
    unsafe {
        asm!("mrs {}, s3_0_c12_c12_0", "dsb sy", out(reg) value, options(nostack, preserves_flags))
    };
    let intid = (value & 0xff_ffff) as u32;
    (intid < SPECIAL).then_some(intid)
}

/// Lets interrupts as urgent as `intid` in again; it stays active.
pub fn drop_priority(intid: u32) {
    icc_eoir1_el1(intid.into());
}

/// Ends `intid`, which was EL2's own.
pub fn end(intid: u32) {
    drop_priority(intid);
    icc_dir_el1(intid.into());
    isb();
}

/// How many list registers this CPU has.
pub fn list_registers() -> usize {
    (ich_vtr_el2() & 0x1f) as usize + 1
}

/// How many priority bits virtual interrupts have.
pub fn priority_bits() -> u32 {
    (ich_vtr_el2() >> 29 & 7) as u32 + 1
}

/// How many bits of a priority decide about preemption.
fn preemption_bits() -> u64 {
    (ich_vtr_el2() >> 26 & 7) + 1
}

/// Puts the virtual CPU interface where a cold boot has it.
pub fn reset_virtual_interface() {
    ich_vmcr_el2_write(0);
    ich_ap0r0_el2(0);
    ich_ap1r0_el2(0);
    if preemption_bits() > 5 {
        ich_ap0r1_el2(0);
        ich_ap1r1_el2(0);
    }
    if preemption_bits() > 6 {
        ich_ap0r2_el2(0);
        ich_ap0r3_el2(0);
        ich_ap1r2_el2(0);
        ich_ap1r3_el2(0);
    }
    for index in 0..list_registers() {
        write_list_register(index, 0);
    }
    ich_hcr_el2_write(1);
    isb();
}

/// `ICH_HCR_EL2`, whose upper bits count what the guest ended without a list register.
pub fn virtual_control() -> u64 {
    ich_hcr_el2()
}

/// Sets `ICH_HCR_EL2`.
pub fn set_virtual_control(value: u64) {
    ich_hcr_el2_write(value);
}

macro_rules! list_register {
    ($index:expr, $before:literal $after:literal, $operand:tt $value:expr) => {
        list_register!(@ $index, $before $after, $operand $value,
            0 "s3_4_c12_c12_0", 1 "s3_4_c12_c12_1", 2 "s3_4_c12_c12_2", 3 "s3_4_c12_c12_3",
            4 "s3_4_c12_c12_4", 5 "s3_4_c12_c12_5", 6 "s3_4_c12_c12_6", 7 "s3_4_c12_c12_7",
            8 "s3_4_c12_c13_0", 9 "s3_4_c12_c13_1", 10 "s3_4_c12_c13_2", 11 "s3_4_c12_c13_3",
            12 "s3_4_c12_c13_4", 13 "s3_4_c12_c13_5", 14 "s3_4_c12_c13_6", 15 "s3_4_c12_c13_7")
    };
    (@ $index:expr, $before:literal $after:literal, $operand:tt $value:expr, $($number:literal $name:literal),*) => {
        match $index {
            $(
                $number => {
                    // SAFETY: list registers hold interrupts for the guest, nothing that EL2 depends on.
                    unsafe {
                        asm!(concat!($before, $name, $after), $operand(reg) $value, options(nomem, nostack, preserves_flags));
                    }
                }
            )*
            _ => {}
        }
    };
}

/// Reads a list register; 0 for one that does not exist.
pub fn read_list_register(index: usize) -> u64 {
    let mut value: u64 = 0;
    list_register!(index, "mrs {}, " "", out value);
    value
}

/// Writes a list register; nothing happens for one that does not exist.
pub fn write_list_register(index: usize, value: u64) {
    list_register!(index, "msr " ", {}", in value);
}

/// Ends `intid` on this CPU for an owner that cannot.
pub fn deactivate_here(intid: u32) {
    icc_dir_el1(intid.into());
    isb();
}
