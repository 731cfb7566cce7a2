//! What is typed on the console is guest 0's to read.
//!
//! The guest's FIFO takes as much as it has room for; the rest stays in the UART, and so with whoever types, until the
//! guest reads. Nothing is lost, and nobody waits.

use platform::guest_map;

use crate::console::CONSOLE;
use crate::machine;
use crate::run::Running;
use crate::vuart::VirtualUart;

/// Takes what was typed, on the CPU that is interrupted for it, on which `running` runs, if anything.
pub fn take(running: Option<&mut Running>) {
    let Some(vm) = machine::vms().next() else { return CONSOLE.listen(false) };
    let mut uart = vm.uart.lock();
    let before = uart.interrupt();
    refill(&mut uart);
    let after = uart.interrupt();
    if before == after {
        return;
    }
    // With the UART still locked: levels must arrive in the order in which they arose.
    let intid = guest_map::PL011_INTERRUPT.intid;
    match running {
        Some(running) if running.vm.index == vm.index => {
            running.with_gic(|gic| gic.set_line(intid, after));
        }
        _ => vm.vgic.lock().set_line(intid, after),
    }
}

/// Gives guest 0's UART what was typed meanwhile, as far as it has room. When it is full, the physical one keeps quiet until
/// the guest has read.
pub fn refill(uart: &mut VirtualUart) {
    while uart.has_room() {
        let Some(byte) = CONSOLE.read() else { return CONSOLE.listen(true) };
        uart.receive(byte);
    }
    CONSOLE.listen(false);
}
