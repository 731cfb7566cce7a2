//! The reborn: tells what it finds of the machine at its start, changes all of it, and starts over, again and again.
//!
//! What a cold boot finds and what every later one finds has to be the same. In between the MMU goes off and on: that is
//! how another kernel begins, so interrupt controller, timers and SMMU have to be the same then as well, whether the old
//! one had no driver of the SMMU, switched it off, or crashed with it on.

use core::sync::atomic::{AtomicU32, Ordering};

use super::{Check, done, memory};
use crate::arch::{boot, cpu, mem, odd};
use crate::edu::Edu;
use crate::machine::Machine;
use crate::pci::{self, Bar, Bus, COMMAND, COMMAND_MEMORY, Function};
use crate::println;
use crate::psci;
use crate::smmu::Registers;
use crate::smmu::format::{cr0, gbpa, register};

/// Offsets of a distributor's registers that are no more than state: `GICD_CTLR` to `GICD_NSACR`, and `GICD_IROUTER`
/// of the SPIs that a VM has.
const DISTRIBUTOR: [(u64, u64); 2] = [(0, 0xf00), (0x6100, 0x6800)];
/// The same of a redistributor: `GICR_CTLR` to `GICR_WAKER`, and its SGIs and PPIs.
const REDISTRIBUTOR: [(u64, u64); 2] = [(0, 0x18), (0x1_0080, 0x1_0d04)];
/// The registers of an SMMU's two pages, but for `GBPA`, which is open at a first boot and closed ever after.
const SMMU: [(u64, u64); 3] = [(0, GBPA), (GBPA + 4, 0x200), (0x1_0000, 0x1_0200)];
const GBPA: u64 = 0x44;
/// Configuration space that a function can have.
const CONFIGURATION: [(u64, u64); 1] = [(0, 0x1000)];
/// How many different GiB a 64-bit BAR is put into.
const PLACES: u64 = 40;

/// What [`PRISTINE`] is loaded as.
const AS_LOADED: u32 = 0x9115_713e;
/// Part of the image.
static PRISTINE: [AtomicU32; 4] = [const { AtomicU32::new(AS_LOADED) }; 4];
/// Every how many bytes of memory there is something to find: once a cache line.
const STRIDE: usize = 64;
/// What each life leaves there.
const USED: u64 = 0x0bad_da7a_0bad_da7a;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let boots = machine.bootargs.number("boots", 10)? as u32;
    is_fresh(machine);
    tell_all(machine);
    let mut bus = Bus::new(machine)?;
    for function in pci::functions(bus.bridge) {
        let digest = digest(function.register(0), &CONFIGURATION);
        println!("@finds what=pci-{function} digest={digest:#018x}");
    }
    for way in Way::ALL {
        soil(machine);
        way.prepare(machine)?;
        odd::take_over();
        tell_all(machine);
    }

    let (function, bar) = pci::functions(bus.bridge)
        .find_map(|function| Some((function, function.bars().find(|bar| bar.is_64bit)?)))
        .ok_or("no function has a 64-bit BAR")?;
    let window = bus.bridge.mem64.clone().ok_or("no 64-bit PCI window")?;
    let edu = Edu::find(machine, &mut bus)?;
    // Nobody has told it anything before the first boot.
    let boot = edu.recall().wrapping_add(1);
    println!("@boot number={boot}");
    // Where the first life never put it: what later ones need must not be left of an earlier one.
    if boot > 0 && read_at(function, bar, window.start) == u32::MAX {
        return Err("a BAR is not where it was placed");
    }
    if boot + 1 >= boots {
        done("reborn");
        return Ok(());
    }
    edu.remember(boot);
    soil(machine);
    for place in 1..=PLACES {
        function.set_bar(bar, window.start + (place << 30));
        function.enable(COMMAND_MEMORY);
        function.disable(COMMAND_MEMORY);
    }
    pci::functions(bus.bridge).for_each(soil_function);
    use_memory(machine);
    if boot + 2 == boots {
        // The last life but one does not end by itself.
        println!("@waits");
        loop {
            core::hint::spin_loop();
        }
    }
    psci::system_reset()
}

/// How a kernel leaves its SMMU to the next one.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// It never switched it on.
    Unused,
    /// It switched it off.
    Disabled,
    /// It crashed.
    Enabled,
}

impl Way {
    const ALL: [Self; 3] = [Self::Unused, Self::Disabled, Self::Enabled];

    fn prepare(self, machine: &Machine) -> Result<(), &'static str> {
        if matches!(self, Self::Unused) {
            return Ok(());
        }
        let registers = Registers::find(machine)?;
        registers.set_cr0(cr0::CMDQEN | cr0::SMMUEN)?;
        if matches!(self, Self::Disabled) {
            registers.set_cr0(cr0::CMDQEN)?;
            let mut closed = Check::new("a-disabled-smmu-aborts");
            closed.same(registers.read(register::GBPA) & gbpa::ABORT, gbpa::ABORT);
        }
        Ok(())
    }
}

/// Addresses all over RAM, but for the device tree and the image.
fn free_memory(machine: &Machine) -> impl Iterator<Item = u64> {
    let (tree, image) = (boot::tree(), boot::image());
    let free = [tree.end..image.start, image.end..machine.ram.end];
    free.into_iter()
        .flat_map(|free| (free.start.next_multiple_of(memory::PAGE)..free.end).step_by(STRIDE))
}

/// Memory holds nothing of any life before, and the image is as it was loaded.
fn is_fresh(machine: &Machine) {
    let mut scrubbed = Check::new("memory-is-scrubbed");
    let kept = free_memory(machine).find(|&address| mem::read64(address) != 0);
    scrubbed.that(kept.is_none(), format_args!("{kept:x?} is not"));
    let mut pristine = Check::new("the-image-is-pristine");
    let changed = PRISTINE.iter().find(|word| word.load(Ordering::Relaxed) != AS_LOADED);
    pristine.that(changed.is_none(), format_args!("{changed:x?}"));
}

/// Leaves something in all memory, and in the image.
fn use_memory(machine: &Machine) {
    free_memory(machine).for_each(|address| mem::write64(address, USED));
    PRISTINE.iter().for_each(|word| word.store(0, Ordering::Relaxed));
}

/// Tells of what is as after a cold boot whenever a kernel begins.
fn tell_all(machine: &Machine) {
    tell("timers", timers());
    tell("distributor", digest(machine.distributor, &DISTRIBUTOR));
    tell("redistributor", digest(machine.redistributors.start, &REDISTRIBUTOR));
    if let Some(smmu) = &machine.smmu {
        tell("smmu", digest(smmu.registers.start, &SMMU));
        tell("gbpa", mem::read32(smmu.registers.start + GBPA).into());
    }
}

fn tell(what: &str, digest: u64) {
    println!("@finds what={what} digest={digest:#018x}");
}

/// One number that changes if anything in these registers does.
fn digest(base: u64, ranges: &[(u64, u64)]) -> u64 {
    let registers = ranges.iter().flat_map(|&(start, end)| (start..end).step_by(4));
    registers.fold(START, |sum, offset| mix(sum, mem::read32(base + offset).into()))
}

/// FNV-1a, a word at a time.
const START: u64 = 0xcbf2_9ce4_8422_2325;

fn mix(sum: u64, word: u64) -> u64 {
    (sum ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(23)
}

fn timers() -> u64 {
    [
        cpu::virtual_timer_control(),
        cpu::virtual_timer_compare(),
        cpu::physical_timer_control(),
        cpu::physical_timer_compare(),
    ]
    .into_iter()
    .fold(START, mix)
}

/// Leaves something in everything.
fn soil(machine: &Machine) {
    cpu::set_virtual_timer_compare(0x1234);
    cpu::set_virtual_timer_control(0b11);
    cpu::set_physical_timer_compare(0x5678);
    cpu::set_physical_timer_control(0b11);
    for (base, ranges) in
        [(machine.distributor, &DISTRIBUTOR), (machine.redistributors.start, &REDISTRIBUTOR)]
    {
        for offset in ranges.iter().flat_map(|&(start, end)| (start..end).step_by(4)) {
            mem::write32(base + offset, 0x0101_0101);
        }
    }
    if let Some(smmu) = &machine.smmu {
        let base = smmu.registers.start;
        // CR1, CR2, IRQ_CTRL, STRTAB_BASE, STRTAB_BASE_CFG, CMDQ_BASE, EVENTQ_BASE; then CR0 with the command queue.
        for (offset, value) in [
            (0x28, 0xd75),
            (0x2c, 6),
            (0x50, 5),
            (0x80, 0x4010_0000),
            (0x88, 4),
            (0x90, 0x4020_0006),
            (0xa0, 0x4030_0006),
        ] {
            mem::write32(base + offset, value);
        }
        mem::write32(base + 0x20, 8);
    }
}

/// The first word of a BAR that is put at `address`.
fn read_at(function: Function, bar: Bar, address: u64) -> u32 {
    function.set_bar(bar, address);
    function.enable(COMMAND_MEMORY);
    let word = mem::read32(address);
    function.disable(COMMAND_MEMORY);
    word
}

fn soil_function(function: Function) {
    // Cache line, BARs, interrupt line, command.
    mem::write32(function.register(0x0c), 0x10);
    for bar in 0..6 {
        mem::write32(function.register(0x10 + 4 * bar), 0x1234_0000);
    }
    mem::write32(function.register(0x3c), 0x42);
    mem::write16(function.register(COMMAND), 0x407);
}
