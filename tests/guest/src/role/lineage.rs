//! Generations of kernels in one VM: each leaves its successor a device that nobody has stopped.
//!
//! A generation lets [`live`] devices go on by themselves and goes, in the way that the bootargs name. The next one has all
//! memory that was handed to it under canaries, waits, and tells what has changed; then it tries whether the devices
//! work for it. The number of the generation is in an `edu`, which no end of a VM and no reset makes forget it.

use heapless::Vec;

use super::{done, memory};
use crate::arch::{self, kexec};
use crate::edu::{self, Edu};
use crate::live::{self, Live, Room};
use crate::machine::Machine;
use crate::pci::{self, Bus, COMMAND_BUS_MASTER};
use crate::println;
use crate::psci;
use crate::smmu::format::{command, gbpa, register, ste};
use crate::smmu::{self, Pool, Registers, Shape, Smmu, Stage1};
use crate::timer::{self, Deadline};
use crate::{gic, smp};

/// How much of RAM is handed on, from its start: natively there may be more.
const SPAN: u64 = 16 << 20;
/// The most devices that one generation leaves behind.
const MAX_SOURCES: usize = 8;
/// The first page for DMA that is the sources': those before it are for the SMMU's tables.
const FIRST_PAGE: u64 = 256;
/// How far a device's addresses are from those of the CPU, if there is an SMMU in between.
const SHIFT: u64 = 4 << 20;
/// Bytes of a source's pages.
const ROOM: u64 = live::PAGES * memory::PAGE;
/// All of bus 0.
const STREAM_BITS: u32 = 8;
const ASID: u16 = 0x11;
/// What has a canary of its own to tell of.
const PLOT: u64 = 1 << 20;
const CANARY_SEED: u32 = 0x6e4e_7a71;
/// How long a device is given to take its last orders; less than it takes to carry them out.
const TAKING_MS: u64 = 10;
/// How long a generation waits for what its predecessor's device still does: longer than a slow disk takes.
const DEFAULT_WATCH_MS: u64 = 3000;
/// How long it waits once more when the devices may master the bus again: many of their accesses.
const MASTERING_MS: u64 = 200;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let generations = machine.bootargs.number("generations", 2)? as u32;
    let watch_ms = machine.bootargs.number("watch", DEFAULT_WATCH_MS)?;
    let sources = machine.bootargs.get("source").ok_or("bootargs: no source=")?;
    let way = Way::parse(machine.bootargs.get("way").ok_or("bootargs: no way=")?)?;
    let message = memory::signature(machine.bootargs.number("nonce", 0)? as u32);
    let heritage = Heritage::of(machine)?;
    kexec::keep(heritage.kept);
    // First of all: what a device writes before there is a canary is not seen.
    heritage.plant();

    let mut bus = Bus::new(machine)?;
    let tally = pci::functions(bus.bridge)
        .find(|function| function.id() == edu::ID)
        .ok_or("no edu to keep the generation's number")?;
    let tally = Edu::place(tally, &mut bus)?;
    // The first one finds what the device holds at power-on: 0, whose inverse it says that it remembers.
    let generation = !tally.recall();
    println!("@generation number={generation} way={way:?}");
    if generation > 0 {
        timer::poll_every_ms(1, Deadline::after_ms(watch_ms), || false);
        // As a driver's first step may be, before it has reset anything.
        for source in sources.split(',') {
            live::find(source, &bus)?.enable(COMMAND_BUS_MASTER);
        }
        timer::poll_every_ms(1, Deadline::after_ms(MASTERING_MS), || false);
        heritage.testify();
    }
    let is_last = generation + 1 >= generations;
    if !is_last {
        // Before the source is placed: it may be the same device.
        tally.remember(!(generation + 1));
    }
    let aware = match machine.bootargs.get("smmu") {
        None => false,
        Some("first") => generation == 0,
        Some("all") => true,
        Some(_) => return Err("bootargs: smmu is neither first nor all"),
    };
    let rooms = sources.split(',').zip((0..).map(|index| room(machine, index, aware)));
    let smmu = aware.then(|| translate(machine, &bus, rooms.clone())).transpose()?;
    let mut lives = Vec::<Live, MAX_SOURCES>::new();
    for (source, room) in rooms {
        match live::start(source, &mut bus, room, message) {
            Ok(live) if lives.push(live).is_err() => return Err("bootargs: too many sources"),
            Ok(_) if generation > 0 => println!("@again source={source} works"),
            Ok(_) => {}
            Err(reason) if generation > 0 => {
                println!("@again source={source} refused why={reason}")
            }
            Err(reason) => return Err(reason),
        }
    }
    if is_last {
        done("lineage");
        return Ok(());
    }
    for live in &lives {
        println!(
            "@armed device={} op={} address={:#x} accesses={}",
            live.function,
            live.next.operation,
            live.next.address,
            live.next.accesses()
        );
    }
    if let Some(registers) = smmu
        && machine.cpus > 1
    {
        // Its second CPU goes on with that whatever kernel comes.
        gic::start(machine);
        smp::start(machine, 1).map_err(|_| "the second CPU does not start")?;
        smp::ring(machine, 1, registers.address(register::CMDQ_PROD));
    }
    lives.iter().for_each(|live| live.release());
    // Orders that the devices have not even taken would not outlive anybody.
    timer::poll_every_ms(1, Deadline::after_ms(TAKING_MS), || false);
    way.go(&lives, smmu, heritage.kept)
}

/// The pages of the source number `index`. Behind an SMMU the device sees them at addresses which are those of other
/// memory: what is not translated any more arrives there.
fn room(machine: &Machine, index: u64, aware: bool) -> Room {
    let memory = memory::dma_page(machine, FIRST_PAGE + index * live::PAGES);
    Room { memory, device: if aware { memory + SHIFT } else { memory } }
}

/// Lets the SMMU translate for the sources: each sees its room and nothing else.
fn translate<'a>(
    machine: &Machine,
    bus: &Bus<'_>,
    rooms: impl Iterator<Item = (&'a str, Room)>,
) -> Result<Registers, &'static str> {
    let registers = Registers::find(machine)?;
    let mut pool = Pool::new(machine);
    let log2 = registers.identity().sid_bits().min(STREAM_BITS);
    let mut smmu = Smmu::start_with(registers, &mut pool, Shape::Linear { log2 })?;
    let stage1 = Stage1::new(&mut pool, ASID)?;
    for (source, room) in rooms {
        for page in 0..live::PAGES {
            let offset = page * memory::PAGE;
            stage1.map(&mut pool, room.device + offset, room.memory + offset)?;
        }
        let sid = smmu::stream_id(machine, live::find(source, bus)?)?;
        smmu.set_ste(sid, &ste::stage1(stage1.context))?;
    }
    // Whoever rings the doorbell has all STEs read again.
    (0..smmu.commands.size()).for_each(|index| smmu.commands.put(index, command::CFGI_ALL));
    Ok(registers)
}

/// How a generation goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// `SYSTEM_OFF`.
    Off,
    /// `SYSTEM_RESET`.
    Reset,
    /// It starts the next kernel and has told its devices to stop mastering the bus, and its SMMU to stop.
    Orderly,
    /// It starts the next kernel and has told its SMMU to stop.
    Shutdown,
    /// It starts the next kernel and has told its SMMU to let nothing through, which it stopped then.
    Abort,
    /// It starts the next kernel and has told nobody.
    Jump,
    /// It waits for somebody to end it.
    Wait,
}

impl Way {
    fn parse(name: &str) -> Result<Self, &'static str> {
        match name {
            "off" => Ok(Self::Off),
            "reset" => Ok(Self::Reset),
            "orderly" => Ok(Self::Orderly),
            "shutdown" => Ok(Self::Shutdown),
            "abort" => Ok(Self::Abort),
            "jump" => Ok(Self::Jump),
            "wait" => Ok(Self::Wait),
            _ => Err("bootargs: unknown way"),
        }
    }

    fn go(self, lives: &[Live], smmu: Option<Registers>, kept: u64) -> ! {
        if matches!(self, Self::Orderly) {
            lives.iter().for_each(|live| live.function.disable(COMMAND_BUS_MASTER));
        }
        if let Some(registers) = smmu {
            if matches!(self, Self::Abort) {
                registers.write(register::GBPA, gbpa::UPDATE | gbpa::ABORT);
                registers.poll(register::GBPA, |value| value & gbpa::UPDATE == 0);
            }
            if matches!(self, Self::Orderly | Self::Shutdown | Self::Abort)
                && let Err(reason) = registers.set_cr0(0)
            {
                panic!("{reason}");
            }
        }
        match self {
            Self::Off => psci::system_off(),
            Self::Reset => psci::system_reset(),
            Self::Orderly | Self::Shutdown | Self::Abort | Self::Jump => {
                kexec::jump(kept, arch::boot::tree().start)
            }
            Self::Wait => {
                println!("@waits");
                loop {
                    core::hint::spin_loop();
                }
            }
        }
    }
}

/// The memory that one generation hands to the next.
#[derive(Clone, Copy, Debug)]
struct Heritage {
    /// What is under canaries: all from the predecessor's DMA pages on.
    start: u64,
    end: u64,
    /// Where the kernel keeps the next one.
    kept: u64,
}

impl Heritage {
    fn of(machine: &Machine) -> Result<Self, &'static str> {
        let start = memory::dma_page(machine, 0);
        let end = machine.ram.end.min(machine.ram.start + SPAN);
        let kept = end.checked_sub(kexec::KEPT).filter(|kept| *kept > start);
        let kept = kept.ok_or("RAM is too small")?;
        Ok(Self { start, end: kept, kept })
    }

    /// The plots, each with the content of its canary.
    fn plots(self) -> impl Iterator<Item = (u64, u64)> {
        (self.start..self.end).step_by(PLOT as usize).map(move |at| (at, PLOT.min(self.end - at)))
    }

    fn plant(self) {
        // Where something is most likely to come first.
        let rooms = |(at, _): &(u64, u64)| *at == self.start + FIRST_PAGE * memory::PAGE;
        for (at, size) in self.plots().filter(rooms).chain(self.plots().filter(|plot| !rooms(plot)))
        {
            memory::fill(at, size, memory::noise(CANARY_SEED ^ at as u32));
        }
    }

    fn testify(self) {
        for (at, size) in self.plots() {
            let canary = memory::noise(CANARY_SEED ^ at as u32);
            if memory::first_change(at, size, canary).is_none() {
                println!("@canary page={at:#x} ok");
                continue;
            }
            // Who wrote there shows by the room.
            for room in (0..size).step_by(ROOM as usize) {
                let canary = |word| canary(room / 4 + word);
                let size = ROOM.min(size - room);
                if let Some(address) = memory::first_change(at + room, size, canary) {
                    let words = size / 4 - memory::matching(at + room, size, canary);
                    println!("@canary page={:#x} changed={address:#x} words={words}", at + room);
                }
            }
        }
    }
}
