//! What there is: the one machine, its devices and its VMs, fixed once it is built.

use core::sync::atomic::{AtomicBool, Ordering};

use heapless::Vec;
use platform::bundle::MAX_VMS;
use platform::dt;
use spin::Once;

use crate::arch::cpu::{self, MAX_CPUS};
use crate::arch::gic::{Gic, Line};
use crate::arch::pcie::HostBridge;
use crate::iommu::Iommus;
use crate::pci::Topology;
use crate::vgic::{PhysicalGic, PhysicalInterrupt};
use crate::vm::Vm;

/// Everything that lives as long as the machine runs.
pub struct Hypervisor {
    /// What the device tree says.
    pub facts: dt::Machine,
    /// The SMMUs.
    pub iommus: Iommus,
    /// The PCI bus, if there is one.
    pub pci: Option<&'static PciBus>,
    /// The VMs. The first one is guest 0, with which the run ends.
    pub vms: Vec<Vm, MAX_VMS>,
    /// What the boot map and the tables of EL2 itself take, in bytes.
    pub own_memory: u64,
}

/// The physical PCI bus.
#[derive(Debug)]
pub struct PciBus {
    /// Its host bridge.
    pub hardware: HostBridge,
    /// What is on it.
    pub topology: &'static Topology,
}

static HYPERVISOR: Once<Hypervisor> = Once::new();

impl Hypervisor {
    /// Makes this the machine, once.
    pub fn install(self) -> &'static Self {
        HYPERVISOR.call_once(|| self)
    }

    /// The VM that owns the interrupt `intid`, a shared one, and what the VM calls it.
    pub fn interrupt_owner(&self, intid: u32) -> Option<&Vm> {
        self.vms.iter().find(|vm| vm.spis.iter().any(|spi| spi.phys == intid))
    }
}

/// The machine.
///
/// # Panics
///
/// Before it was installed.
pub fn hypervisor() -> &'static Hypervisor {
    HYPERVISOR.get().expect("the machine is installed before any guest runs")
}

static GIC: Once<Gic> = Once::new();

/// Makes this the physical interrupt controller, once.
pub fn install_gic(gic: Gic) -> &'static Gic {
    GIC.call_once(|| gic)
}

/// The physical interrupt controller.
///
/// # Panics
///
/// Before it was installed.
pub fn gic() -> &'static Gic {
    GIC.get().expect("the interrupt controller is installed before any VM is made")
}

/// Lets the shared interrupt `intid`, which is EL2's own, come to the first CPU.
pub fn enable_own(intid: u32, edge: bool) {
    gic().set_edge(Line::Shared(intid), edge);
    gic().set_target(intid, 0);
    gic().set_enabled(Line::Shared(intid), true);
}

/// CPUs whose list registers are out of date.
static ATTENTION: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

/// Whether this CPU's list registers are out of date; asking ends it.
pub fn take_attention() -> bool {
    ATTENTION[cpu::number()].swap(false, Ordering::Acquire)
}

/// The maintenance interrupt came: this CPU's list registers ran dry.
pub fn need_attention() {
    ATTENTION[cpu::number()].store(true, Ordering::Release);
}

/// The physical interrupt controller as one VM's virtual one sees it.
#[derive(Debug)]
pub struct VmInterrupts {
    /// The physical CPU of each virtual one.
    pub cpus: Vec<usize, MAX_CPUS>,
}

impl VmInterrupts {
    fn line(&self, interrupt: PhysicalInterrupt) -> Line {
        match interrupt {
            PhysicalInterrupt::Ppi { vcpu, intid } => Line::Private { cpu: self.cpus[vcpu], intid },
            PhysicalInterrupt::Spi { intid } => Line::Shared(intid),
        }
    }
}

impl PhysicalGic for VmInterrupts {
    fn set_enabled(&self, interrupt: PhysicalInterrupt, enabled: bool) {
        gic().set_enabled(self.line(interrupt), enabled);
    }

    fn set_target(&self, intid: u32, vcpu: usize) {
        gic().set_target(intid, self.cpus[vcpu]);
    }

    fn set_edge(&self, interrupt: PhysicalInterrupt, edge: bool) {
        gic().set_edge(self.line(interrupt), edge);
    }

    fn set_pending(&self, interrupt: PhysicalInterrupt, pending: bool) {
        gic().set_pending(self.line(interrupt), pending);
    }

    fn is_pending(&self, interrupt: PhysicalInterrupt) -> bool {
        gic().is_pending(self.line(interrupt))
    }

    fn deactivate(&self, interrupt: PhysicalInterrupt) {
        gic().deactivate(self.line(interrupt));
    }

    fn kick(&self, vcpu: usize) {
        let cpu = self.cpus[vcpu];
        ATTENTION[cpu].store(true, Ordering::Release);
        gic().kick(cpu);
    }
}
