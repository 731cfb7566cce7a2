//! What there is: the one machine, its devices and its VMs, fixed once it is built.

use core::sync::atomic::{AtomicBool, Ordering};

use heapless::Vec;
use platform::bundle::MAX_VMS;
use platform::dt;
use platform::pcie::InterruptMap;
use spin::Once;

use crate::arch::cpu::{self, MAX_CPUS};
use crate::arch::gic::{Gic, Line};
use crate::arch::pcie::HostBridge;
use crate::iommu::Iommus;
use crate::pci::Topology;
use crate::vgic::{PhysicalGic, PhysicalInterrupt};
use crate::vm::{Vm, VmError};

/// Everything that lives as long as the machine runs.
///
/// Each part is put into a static of its own as soon as it is built: together they are larger than a stack.
#[derive(Clone, Copy)]
pub struct Hypervisor {
    /// The SMMUs.
    pub iommus: &'static Iommus,
    /// The PCI bus.
    pub pci: &'static PciBus,
}

/// The physical PCI bus.
#[derive(Debug)]
pub struct PciBus {
    /// Its host bridge.
    pub hardware: HostBridge,
    /// What is on it.
    pub topology: &'static Topology,
    /// Where its interrupt pins lead.
    pub interrupts: &'static InterruptMap,
}

static FACTS: Once<dt::Machine> = Once::new();

/// Makes this what is known of the machine, once.
///
/// # Errors
///
/// Those of `discover`.
pub fn install_facts<E>(
    discover: impl FnOnce() -> Result<dt::Machine, E>,
) -> Result<&'static dt::Machine, E> {
    FACTS.try_call_once(discover)
}

/// What the device tree says.
///
/// # Panics
///
/// Before it was read.
pub fn facts() -> &'static dt::Machine {
    FACTS.get().expect("the device tree is read before anything asks")
}

static HYPERVISOR: Once<Hypervisor> = Once::new();
static VMS: [Once<Vm>; MAX_VMS] = [const { Once::new() }; MAX_VMS];

impl Hypervisor {
    /// Makes this the machine, once.
    pub fn install(self) {
        HYPERVISOR.call_once(|| self);
    }
}

/// Adds VM number `index`, made by `make`, at boot.
///
/// # Errors
///
/// Those of `make`.
pub fn install_vm(
    index: usize,
    make: impl FnOnce() -> Result<Vm, VmError>,
) -> Result<&'static Vm, VmError> {
    VMS[index].try_call_once(make)
}

/// The VMs. The first one is guest 0, with which the run ends.
pub fn vms() -> impl Iterator<Item = &'static Vm> {
    VMS.iter().map_while(Once::get)
}

/// The VM that owns the shared interrupt `intid`.
pub fn interrupt_owner(intid: u32) -> Option<&'static Vm> {
    vms().find(|vm| vm.spis.iter().any(|spi| spi.phys == intid))
}

/// The machine, once it is installed.
pub fn installed() -> Option<&'static Hypervisor> {
    HYPERVISOR.get()
}

/// The machine.
///
/// # Panics
///
/// Before it was installed.
pub fn hypervisor() -> &'static Hypervisor {
    installed().expect("the machine is installed before any guest runs")
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

/// Lets the shared interrupt `intid`, which is EL2's own, come to CPU `cpu`.
pub fn enable_own(intid: u32, edge: bool, cpu: usize) {
    gic().set_edge(Line::Shared(intid), edge);
    gic().set_target(intid, cpu);
    gic().set_enabled(Line::Shared(intid), true);
}

/// CPUs whose list registers are out of date.
static ATTENTION: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

/// Whether this CPU's list registers are out of date; asking ends it.
pub fn take_attention() -> bool {
    ATTENTION[cpu::number()].swap(false, Ordering::Acquire)
}

/// Makes CPU number `cpu` bring its list registers up to date.
pub fn demand_attention(cpu: usize) {
    ATTENTION[cpu].store(true, Ordering::Release);
    gic().kick(cpu);
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
        demand_attention(self.cpus[vcpu]);
    }
}
