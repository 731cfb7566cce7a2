//! Live bus masters: devices that go on with DMA after their driver has looked away.
//!
//! [`start`] brings one to the point where its DMA has been seen to arrive, and leaves at most one write for
//! [`Live::release`] to do: from there on the device needs nobody any more. Register numbers are those of the
//! devices' public data sheets, as QEMU models them.

mod e1000;
mod edu;
mod es1370;
mod nvme;
mod ohci;
mod virtio_blk;

use crate::arch::mem;
use crate::edu::{Operation, Transfer};
use crate::pci::{self, Bus, COMMAND_MEMORY, Function};
use crate::timer::{self, Deadline};

/// How many pages a device is given.
pub const PAGES: u64 = 16;
/// The last of them holds what a device may be told to write.
const MESSAGE: u64 = (PAGES - 1) * 4096;

/// The pages that a device is given for its rings and data.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Where the CPU sees them.
    pub memory: u64,
    /// Where the device sees them.
    pub device: u64,
}

impl Room {
    /// What the device calls the byte that the CPU has at `address`.
    fn seen(self, address: u64) -> u64 {
        address - self.memory + self.device
    }
}
/// How long a device may take until its first DMA has arrived: it may wait for the outside world.
const PATIENCE_MS: u64 = 5000;
/// What memory that a device is going to write to holds before.
const BLANK: u32 = 0xb1a4_b1a4;

/// A device that is about to do DMA that nobody waits for, or does already.
#[derive(Clone, Copy)]
pub struct Live {
    /// The function.
    pub function: Function,
    /// What it does next.
    pub next: Transfer,
    /// The writes that let go of it, in order.
    release: [Option<(u64, u32)>; 2],
}

impl Live {
    /// Lets go of it.
    pub fn release(self) {
        mem::barrier();
        for (address, value) in self.release.into_iter().flatten() {
            mem::write32(address, value);
            mem::barrier();
        }
    }
}

/// The function that is called `name`.
///
/// # Errors
///
/// A reason if there is no such device.
pub fn find(name: &str, bus: &Bus<'_>) -> Result<Function, &'static str> {
    let (id, _) = driver(name)?;
    let found = pci::functions(bus.bridge).find(|function| function.id() == id);
    found.ok_or("the source is not on the bus")
}

type Driver = fn(Function, &mut Bus<'_>, Room) -> Result<Live, &'static str>;

/// The IDs of the device that is called `name`, and its driver.
fn driver(name: &str) -> Result<(u32, Driver), &'static str> {
    Ok(match name {
        "edu" => (edu::ID, edu::start),
        "es1370" => (es1370::ID, es1370::start),
        "ohci" => (ohci::ID, ohci::start),
        "e1000" => (e1000::ID, e1000::start),
        "e1000e" => (e1000::ID_EXPRESS, e1000::start),
        "virtio-blk" => (virtio_blk::ID, virtio_blk::start),
        "nvme" => (nvme::ID, nvme::start),
        _ => return Err("bootargs: unknown source"),
    })
}

/// Switches on the device that is called `name`. One that writes what it was given writes what `message` says.
///
/// # Errors
///
/// A reason if there is no such device, or if its first DMA does not arrive.
pub fn start(
    name: &str,
    bus: &mut Bus<'_>,
    room: Room,
    message: impl Fn(u64) -> u32,
) -> Result<Live, &'static str> {
    let function = find(name, bus)?;
    let (_, start) = driver(name)?;
    for word in 0..1024 {
        mem::write32(room.memory + MESSAGE + 4 * word, message(word));
    }
    start(function, bus, room)
}

/// Places the memory BARs of `function`; returns where the last one is. What an earlier owner told the device is its
/// driver's to end, before it lets the device master the bus again.
fn place(function: Function, bus: &mut Bus<'_>) -> Result<u64, &'static str> {
    function.disable(COMMAND_MEMORY);
    let bar = function.bars().last().ok_or("the source has no memory BAR")?;
    bus.assign(function)?;
    Ok(function.bar_address(bar))
}

/// The device writes `size` bytes next, at what it calls `address`.
fn writes(function: Function, address: u64, size: u64) -> Live {
    let next = Transfer { operation: Operation::Write, address, size };
    Live { function, next, release: [None; 2] }
}

/// Prepares the word at `address` for [`arrives`].
fn blank(address: u64) {
    mem::write32(address, BLANK);
}

/// Waits until the device has written to the word at `address`.
fn arrives(address: u64) -> Result<(), &'static str> {
    wait(|| mem::read32(address) != BLANK, "the source's first DMA does not arrive")
}

fn wait(done: impl FnMut() -> bool, otherwise: &'static str) -> Result<(), &'static str> {
    let came = timer::poll_every_ms(1, Deadline::after_ms(PATIENCE_MS), done);
    mem::barrier();
    if came { Ok(()) } else { Err(otherwise) }
}
