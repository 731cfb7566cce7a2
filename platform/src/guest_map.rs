//! The address space that every VM sees: that of QEMU's virt machine, the same for all, never identity mapped.

use smmu::addr::Ipa;

use crate::dt::{Interrupt, Trigger};
use crate::pcie::Pin;

/// Bits of an IPA.
pub const IPA_BITS: u32 = 40;

/// The GIC distributor's registers.
pub const GICD: Ipa = Ipa::new(0x0800_0000);
/// Bytes of [`GICD`].
pub const GICD_SIZE: u64 = 0x1_0000;
/// The first vCPU's GIC redistributor; the others follow.
pub const GICR: Ipa = Ipa::new(0x080a_0000);
/// Bytes of one redistributor: the RD and the SGI frame.
pub const GICR_STRIDE: u64 = 0x2_0000;

/// The console: a PL011.
pub const PL011: Ipa = Ipa::new(0x0900_0000);
/// Bytes of [`PL011`].
pub const PL011_SIZE: u64 = 0x1000;
/// The console's interrupt.
pub const PL011_INTERRUPT: Interrupt = Interrupt { intid: 33, trigger: Trigger::Level };
/// The frequency in Hz that the console's clock claims; baud rates mean nothing here.
pub const PL011_CLOCK_HZ: u32 = 24_000_000;

/// The SMMU's registers, where a VM sees one.
pub const SMMU: Ipa = Ipa::new(0x0905_0000);
/// Bytes of [`SMMU`]: two pages of 64 KiB.
pub const SMMU_SIZE: u64 = 0x2_0000;
/// The SMMU's event queue is no longer empty.
pub const SMMU_EVENTQ: Interrupt = Interrupt { intid: 106, trigger: Trigger::Edge };
/// A `CMD_SYNC` that asked for an interrupt is complete.
pub const SMMU_CMDQ_SYNC: Interrupt = Interrupt { intid: 108, trigger: Trigger::Edge };
/// The SMMU has a global error.
pub const SMMU_GERROR: Interrupt = Interrupt { intid: 109, trigger: Trigger::Edge };
/// Bits of a StreamID: the SMMU knows a function by its requester ID.
pub const SMMU_SID_BITS: u8 = 16;

/// The window for 32-bit PCI memory; PCI and CPU addresses are the same.
pub const PCI_MEM32: Ipa = Ipa::new(0x1000_0000);
/// Bytes of [`PCI_MEM32`].
pub const PCI_MEM32_SIZE: u64 = 0x2eff_0000;
/// The window for PCI I/O: port 0 is here.
pub const PCI_IO: Ipa = Ipa::new(0x3eff_0000);
/// Bytes of [`PCI_IO`].
pub const PCI_IO_SIZE: u64 = 0x1_0000;
/// The PCI configuration space of bus 0, the only bus.
pub const PCI_ECAM: Ipa = Ipa::new(0x40_1000_0000);
/// Bytes of [`PCI_ECAM`].
pub const PCI_ECAM_SIZE: u64 = 0x10_0000;
/// The window for 64-bit PCI memory; PCI and CPU addresses are the same.
pub const PCI_MEM64: Ipa = Ipa::new(0x80_0000_0000);
/// Bytes of [`PCI_MEM64`].
pub const PCI_MEM64_SIZE: u64 = 0x80_0000_0000;

/// Where RAM starts.
pub const RAM: Ipa = Ipa::new(0x4000_0000);
/// The most RAM in bytes: up to the next fixed thing above it.
pub const RAM_LIMIT: u64 = PCI_ECAM.raw() - RAM.raw();
/// RAM comes in multiples of this many bytes, the smallest block of stage 2.
pub const RAM_GRANULE: u64 = 0x20_0000;
/// Where the device tree lies when a VM starts: the start of RAM, where boot loaders look for it.
pub const DEVICE_TREE: Ipa = RAM;
/// The most bytes of a device tree (arm64 boot protocol).
pub const DEVICE_TREE_LIMIT: u64 = 0x20_0000;
/// The base to which an arm64 Image adds its text offset; a flat binary is loaded and entered here.
pub const KERNEL: Ipa = Ipa::new(0x4020_0000);
/// The alignment in bytes of an initrd.
pub const INITRD_ALIGN: u64 = 0x20_0000;

/// The INTID of the secure physical timer, which no guest has but the binding names.
pub const TIMER_SECURE_PHYSICAL: u32 = 29;
/// The INTID of the physical timer.
pub const TIMER_PHYSICAL: u32 = 30;
/// The INTID of the virtual timer.
pub const TIMER_VIRTUAL: u32 = 27;
/// The INTID of the hypervisor's timer, which no guest has but the binding names.
pub const TIMER_HYPERVISOR: u32 = 26;

/// The INTID of the first of the four PCI interrupt lines.
const INTX_BASE: u32 = 35;

/// Returns the interrupt that `pin` of the function in slot `device` of bus 0 raises.
pub const fn intx(device: u8, pin: Pin) -> Interrupt {
    Interrupt { intid: INTX_BASE + pin.swizzle(device) as u32 - 1, trigger: Trigger::Level }
}
