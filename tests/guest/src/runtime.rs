//! From entry to a role and off again.

use core::panic::PanicInfo;

use crate::machine::Machine;
use crate::{arch, console, println, psci, role};

/// Where RAM starts on every machine this runs on; a loader that passes no device tree leaves it there.
const RAM_START: u64 = 0x4000_0000;

/// What the CPU that booted does.
pub fn primary(tree: u64) -> ! {
    let tree = if tree == 0 { RAM_START } else { tree };
    let tree =
        arch::boot::device_tree(tree).unwrap_or_else(|| panic!("no device tree at {tree:#x}"));
    let machine = Machine::discover(&tree).unwrap_or_else(|reason| panic!("device tree: {reason}"));
    console::attach(machine.uart);
    psci::attach(machine.conduit);
    match role::run(&machine) {
        Ok(()) => {}
        Err(reason) => println!("guest: {reason}"),
    }
    psci::system_off()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::panicking();
    println!("guest: {info}");
    psci::system_off()
}
