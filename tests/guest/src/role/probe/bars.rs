//! BARs: they decode inside their window only, and never over anything else.

use super::{Check, answered, check, expect, is_vacant, memory};
use crate::arch::{exception, mem};
use crate::edu::{self, Edu};
use crate::machine::Machine;
use crate::pci::{self, Bar, Bus, COMMAND_MEMORY, Function};

const MOVES: u64 = 64;
const SEED: u32 = 0xba5e_0000;

pub fn probe(machine: &Machine, bus: &Bus<'_>, edu: Edu) -> Result<(), &'static str> {
    widths(bus);
    let function = edu.function;
    let (home, bar) = home_of(function)?;
    let answers = |address| exception::catch(|| mem::read32(address)) == Ok(edu::IDENTIFICATION);
    check("bar-at-home", answers(home), format_args!("nothing at {home:#x}"));

    function.disable(COMMAND_MEMORY);
    check("bar-without-decode", is_vacant(home), format_args!("answers at {home:#x}"));
    function.enable(COMMAND_MEMORY);

    // Over RAM, registers of others, and past either end of the window.
    let ram = machine.ram.start + (6 << 20);
    memory::fill(ram, bar.size, memory::noise(SEED));
    place(function, bar, ram);
    mem::write32(ram + bar.size - 4, !SEED);
    expect("bar-over-ram", mem::read32(ram + bar.size - 4), !SEED);
    expect(
        "ram-under-bar",
        memory::matching(ram, bar.size - 4, memory::noise(SEED)),
        bar.size / 4 - 1,
    );
    for (name, register) in [
        ("bar-over-distributor", machine.distributor + 0xffe8),
        ("bar-over-redistributor", machine.redistributors.start + 0xffe8),
        ("bar-over-console", machine.uart + 0xfe0),
    ] {
        let before = mem::read32(register);
        place(function, bar, register & !(bar.size - 1));
        expect(name, mem::read32(register), before);
    }
    let window = bus.bridge.mem32.clone();
    let mut beyond = Check::new("bar-outside-its-window");
    for outside in [0, window.start - bar.size, window.end.next_multiple_of(bar.size), 0xfff0_0000]
    {
        place(function, bar, outside);
        beyond.that(!answers(outside), format_args!("answers at {outside:#x}"));
    }
    drop(beyond);
    // Half inside it may decode or not.
    place(function, bar, window.end & !(bar.size - 1));

    // Anywhere inside.
    let slots = (window.end - window.start) / bar.size;
    let mut moves = Check::new("bar-moves");
    let mut at = home;
    let mut random = u64::from(SEED);
    for _ in 0..MOVES {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let old = at;
        at = window.start + (random >> 33) % slots * bar.size;
        place(function, bar, at);
        moves.that(answers(at), format_args!("nothing at {at:#x}"));
        moves.that(old == at || is_vacant(old), format_args!("still something at {old:#x}"));
    }
    drop(moves);

    // Two over each other: whoever answers, both work once they are apart.
    let others = pci::functions(bus.bridge).filter(|other| *other != function);
    if let Some((other, there)) =
        others.into_iter().find_map(|other| Some((other, home_of(other).ok()?)))
    {
        let (other_home, other_bar) = there;
        place(function, bar, home);
        place(other, other_bar, home & !(other_bar.size - 1));
        let _ = exception::catch(|| mem::read32(home));
        place(other, other_bar, other_home);
        check("bar-under-another", answers(home), format_args!("{function} is gone"));
    }
    place(function, bar, home);
    check("bar-back-home", answers(home), format_args!("nothing at {home:#x}"));
    Ok(())
}

/// Registers of every device, in every width: a device may refuse, but whatever it answers is the guest's.
fn widths(bus: &Bus<'_>) {
    let mut check = Check::new("device-any-width");
    for function in pci::functions(bus.bridge) {
        for bar in function.bars() {
            let address = function.bar_address(bar);
            for seen in [
                exception::catch(|| _ = mem::read8(address)),
                exception::catch(|| _ = mem::read16(address)),
                exception::catch(|| _ = mem::read32(address)),
                exception::catch(|| _ = mem::read64(address)),
            ] {
                check.that(answered(seen), format_args!("{function}: {seen:x?} at {address:#x}"));
            }
        }
    }
}

/// The first memory BAR and where it is; decoding is off meanwhile.
fn home_of(function: Function) -> Result<(u64, Bar), &'static str> {
    function.disable(COMMAND_MEMORY);
    let bar = function.bars().next().ok_or("a function without memory BAR")?;
    let home = function.bar_address(bar);
    function.enable(COMMAND_MEMORY);
    Ok((home, bar))
}

fn place(function: Function, bar: Bar, address: u64) {
    function.disable(COMMAND_MEMORY);
    function.set_bar(bar, address);
    function.enable(COMMAND_MEMORY);
}
