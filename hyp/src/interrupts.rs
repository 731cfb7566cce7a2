//! Physical interrupts, all of which come to EL2.

use spin::Once;

use crate::arch::{gic, timer};
use crate::console::OPERATOR;
use crate::machine::hypervisor;
use crate::run::Running;
use crate::{machine, operator, teardown, typing};

/// The interrupts that are EL2's own.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// The maintenance interrupt of the virtual CPU interface.
    pub maintenance: u32,
    /// EL2's timer.
    pub timer: u32,
    /// The console's UART.
    pub console: Option<u32>,
    /// The operator's UART.
    pub operator: Option<u32>,
}

static OWN: Once<Own> = Once::new();

/// Says, once, which interrupts are EL2's own beside the SMMUs'.
pub fn set_own(own: Own) {
    OWN.call_once(|| own);
}

/// Interrupts taken at once, before the CPU looks at what else there is to do.
const AT_ONCE: usize = 64;

/// Takes pending interrupts of this CPU, on which `running` runs, if anything. What is left interrupts again.
pub fn service(mut running: Option<&mut Running>) {
    for _ in 0..AT_ONCE {
        let Some(intid) = gic::acknowledge() else { return };
        if own(intid, running.as_deref_mut()) {
            gic::end(intid);
            continue;
        }
        // From here on the guest's deactivation ends it.
        gic::drop_priority(intid);
        deliver(intid, running.as_deref_mut());
    }
}

/// What cannot wait until this CPU takes interrupts again: a guest that makes EL2 reset a function must not keep other
/// VMs' events from being heard (C7). Locks of a VM may be held.
pub fn meanwhile() {
    if let Some(hypervisor) = machine::installed() {
        hypervisor.iommus.settle();
    }
}

/// Handles `intid` if it is EL2's own.
fn own(intid: u32, running: Option<&mut Running>) -> bool {
    let own = OWN.get().expect("EL2's interrupts are set before any is enabled");
    if intid == gic::KICK {
        // Whoever kicked has left word of why.
    } else if intid == own.maintenance {
        // Its line stays high until the list registers are looked after, which is before the guest goes on.
        if let Some(running) = running {
            running.with_gic(|_| {});
        }
        gic::set_virtual_control(0);
    } else if intid == own.timer {
        timer::cancel_alarm();
        // Streams that were muted for long enough are heard again.
        hypervisor().iommus.settle();
        teardown::tell_all_late();
    } else if Some(intid) == own.console {
        typing::take(running);
    } else if Some(intid) == own.operator {
        while let Some(byte) = OPERATOR.read() {
            operator::receive(byte);
        }
    } else if !hypervisor().iommus.interrupt(intid) {
        return false;
    }
    true
}

/// Hands `intid` to the VM it belongs to.
fn deliver(intid: u32, running: Option<&mut Running>) {
    if intid < gic::FIRST_SPI {
        match running {
            Some(running) => {
                let vcpu = running.index;
                running.with_gic(|gic| gic.physical_interrupt(vcpu, intid));
            }
            // A timer of a guest that stopped meanwhile.
            None => gic::deactivate_here(intid),
        }
        return;
    }
    let Some(vm) = machine::interrupt_owner(intid) else {
        gic::deactivate_here(intid);
        return;
    };
    match running {
        Some(running) if running.vm.index == vm.index => {
            let vcpu = running.index;
            running.with_gic(|gic| gic.physical_interrupt(vcpu, intid));
        }
        // The VM's interrupts are routed to its own CPUs; on this one it is idle.
        _ => vm.vgic.lock().physical_interrupt(0, intid),
    }
}
