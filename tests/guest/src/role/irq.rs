//! The interrupt suite: more interrupts at once than a CPU interface can list, storms, and races with their end.

use core::ops::Range;

use super::{Check, check, done, expect};
use crate::arch::{boot::MAX_CPUS, cpu, odd};
use crate::edu::Edu;
use crate::gic::{self, Trigger};
use crate::interrupt::{self, Source};
use crate::machine::Machine;
use crate::pci::Bus;
use crate::smp::{self, Order};
use crate::timer::{self, Deadline};
use crate::{console, println};

const PATIENCE_MS: u64 = 5000;
const STORM: u32 = 10_000;
const IDLE_RAISES: u32 = 10_000;
const SGI_ROUNDS: u32 = 500;
/// SPIs that no device of the fixed guest map drives: they become pending by software only.
const SOFTWARE_SPIS: Range<u32> = 40..64;
const SGIS: Range<u32> = 0..14;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    gic::start(machine);
    // Whoever does this is no other kernel, which would find an interrupt controller as after a reset: all that follows
    // needs this one. Only devices would have been stopped.
    odd::blink_mmu();
    cpu::unmask_interrupts();
    let edu = Edu::find(machine, &mut Bus::new(machine)?)?;
    let source = edu.connect()?;

    if gic::intids() < SOFTWARE_SPIS.end {
        return Err("the distributor has too few interrupts for the suite");
    }
    for intid in SOFTWARE_SPIS {
        let trigger = if intid % 2 == 0 { Trigger::Level } else { Trigger::Edge };
        gic::configure_spi(intid, trigger, cpu::affinity());
        gic::enable(intid);
    }
    for intid in SGIS {
        gic::set_priority(intid, gic::PRIORITY);
    }

    timers();
    console_interrupt(machine);
    pending_and_enable();
    priority_mask();
    all_at_once();
    by_priority();
    storm(edu, source);
    idle_raises(edu, source);
    if machine.cpus > 1 {
        let mut started = Check::new("cpu-on");
        for index in 1..machine.cpus {
            started.same(smp::start(machine, index), Ok(()));
        }
        across(machine);
        routed(machine, edu, source);
    }
    done("irq");
    Ok(())
}

/// Waits until `done` holds without using a timer, so that timers can be what is waited for.
fn soon(done: impl FnMut() -> bool) -> bool {
    timer::poll_every_ms(0, Deadline::after_ms(PATIENCE_MS), done)
}

/// Gives an interrupt that must not come the time to come.
fn settle() {
    timer::poll_every_ms(1, Deadline::after_ms(2), || false);
}

fn timers() {
    let taken = |intid| interrupt::count(0, intid);
    let before = taken(gic::VIRTUAL_TIMER);
    Deadline::after_ms(1).arm_timer();
    check(
        "virtual-timer",
        soon(|| taken(gic::VIRTUAL_TIMER) == before + 1),
        format_args!("no interrupt"),
    );

    let before = taken(gic::PHYSICAL_TIMER);
    cpu::set_physical_timer_compare(cpu::physical_counter() + cpu::counter_frequency() / 1000);
    cpu::set_physical_timer_control(1);
    check(
        "physical-timer",
        soon(|| taken(gic::PHYSICAL_TIMER) == before + 1),
        format_args!("no interrupt"),
    );

    // Masked at its source, a timer is silent; unmasked, a condition that holds since then fires at once.
    let before = taken(gic::VIRTUAL_TIMER);
    cpu::set_virtual_timer_compare(0);
    cpu::set_virtual_timer_control(3);
    settle();
    expect("masked-timer-is-silent", taken(gic::VIRTUAL_TIMER), before);
    cpu::set_virtual_timer_control(1);
    check(
        "unmasked-timer-fires",
        soon(|| taken(gic::VIRTUAL_TIMER) == before + 1),
        format_args!("silent"),
    );
}

/// The console says when it can take more, as an interrupt-driven driver needs it to.
fn console_interrupt(machine: &Machine) {
    interrupt::connect_console(machine.uart_intid);
    let taken = || interrupt::count(0, machine.uart_intid);
    let before = taken();
    println!("guest: with the console's interrupt masked");
    settle();
    expect("masked-console-is-silent", taken(), before);
    console::interrupt_on_transmit(true);
    println!("guest: with the console's interrupt unmasked");
    check("console-interrupt", soon(|| taken() != before), format_args!("no interrupt"));
    console::interrupt_on_transmit(false);
    settle();
    let after = taken();
    println!("guest: with the console's interrupt masked again");
    settle();
    expect("console-interrupt-stops", taken(), after);
}

fn pending_and_enable() {
    let intid = SOFTWARE_SPIS.start + 1;
    let before = interrupt::count(0, intid);
    gic::disable(intid);
    gic::set_pending(intid);
    settle();
    expect("disabled-is-not-taken", interrupt::count(0, intid), before);
    expect("disabled-stays-pending", gic::is_pending(intid), true);
    gic::clear_pending(intid);
    gic::enable(intid);
    settle();
    expect("cleared-is-not-taken", interrupt::count(0, intid), before);
    gic::disable(intid);
    gic::set_pending(intid);
    gic::enable(intid);
    check(
        "enabled-is-taken",
        soon(|| interrupt::count(0, intid) == before + 1),
        format_args!("not taken"),
    );
    expect("taken-is-not-pending", gic::is_pending(intid), false);
}

fn priority_mask() {
    let intid = SOFTWARE_SPIS.start;
    let before = interrupt::count(0, intid);
    gic::set_priority_mask(gic::PRIORITY);
    gic::set_pending(intid);
    settle();
    expect("masked-priority-is-not-taken", interrupt::count(0, intid), before);
    gic::set_priority_mask(0xff);
    check(
        "unmasked-priority-is-taken",
        soon(|| interrupt::count(0, intid) == before + 1),
        format_args!("lost"),
    );
}

/// Every SGI and software SPI pending before the first one is taken: each comes once.
fn all_at_once() {
    const ROUNDS: u32 = 100;
    let all = || SGIS.chain(SOFTWARE_SPIS);
    let mut before = [0; SOFTWARE_SPIS.end as usize];
    for intid in all() {
        before[intid as usize] = interrupt::count(0, intid);
    }
    let mut complete = true;
    for round in 1..=ROUNDS {
        cpu::mask_interrupts();
        for intid in SOFTWARE_SPIS {
            gic::set_pending(intid);
        }
        for intid in SGIS {
            gic::send_sgi(intid, cpu::affinity());
        }
        Deadline::after_ms(0).arm_timer();
        cpu::unmask_interrupts();
        complete &= soon(|| {
            all().all(|intid| interrupt::count(0, intid) == before[intid as usize] + round)
        });
        if !complete {
            break;
        }
    }
    settle();
    for intid in all() {
        let taken = interrupt::count(0, intid) - before[intid as usize];
        if taken != ROUNDS {
            check(
                "all-at-once",
                false,
                format_args!("INTID {intid} came {taken} times in {ROUNDS}"),
            );
            return;
        }
    }
    check("all-at-once", complete, format_args!("too slow"));
}

/// The most urgent one first, however many are pending.
fn by_priority() {
    for (place, intid) in SOFTWARE_SPIS.rev().enumerate() {
        gic::set_priority(intid, 8 * (1 + place as u8));
    }
    cpu::mask_interrupts();
    for intid in SOFTWARE_SPIS {
        gic::set_pending(intid);
    }
    interrupt::forget_order();
    cpu::unmask_interrupts();
    let arrived = soon(|| interrupt::order().count() >= SOFTWARE_SPIS.len());
    let wrong = interrupt::order().zip(SOFTWARE_SPIS.rev()).find(|(seen, wanted)| seen != wanted);
    check(
        "most-urgent-first",
        arrived && wrong.is_none(),
        format_args!("(seen, wanted) {wrong:?}"),
    );
    for intid in SOFTWARE_SPIS {
        gic::set_priority(intid, gic::PRIORITY);
    }
}

/// The device raises its line again and again, a timer fires meanwhile: each raise is seen exactly once.
fn storm(edu: Edu, source: Source) {
    let Some(intid) = edu.intid else { return };
    let (raised, taken) = (source.raised(), interrupt::count(0, intid));
    let ticked = interrupt::count(0, gic::VIRTUAL_TIMER);
    let mut armed = 0;
    for raise in 1..=STORM {
        if interrupt::count(0, gic::VIRTUAL_TIMER) == ticked + armed {
            Deadline::after_ms(1).arm_timer();
            armed += 1;
        }
        edu.raise(1 + raise % 0xff);
        if !soon(|| source.raised() == raised + raise) {
            check(
                "storm",
                false,
                format_args!("raise {raise} was seen {} times", source.raised() - raised),
            );
            return;
        }
    }
    settle();
    expect("storm", source.raised() - raised, STORM);
    expect("storm-takes-no-more", interrupt::count(0, intid) - taken, STORM);
    let all_ticks = soon(|| interrupt::count(0, gic::VIRTUAL_TIMER) == ticked + armed);
    check("timer-in-storm", all_ticks, format_args!("{armed} armed"));
    check("timer-in-storm-repeats", armed > 1, format_args!("{armed} armed"));
}

/// The line falls before the interrupt is taken: it may come or not, but the next real one does.
fn idle_raises(edu: Edu, source: Source) {
    let Some(intid) = edu.intid else { return };
    let (raised, taken) = (source.raised(), interrupt::count(0, intid));
    for raise in 1..=IDLE_RAISES {
        cpu::mask_interrupts();
        edu.raise(1);
        edu.acknowledge();
        cpu::unmask_interrupts();
        edu.raise(2);
        if !soon(|| source.raised() == raised + raise) {
            check("idle-raise", false, format_args!("the raise after number {raise} is stuck"));
            return;
        }
    }
    settle();
    expect("idle-raise", source.raised() - raised, IDLE_RAISES);
    let taken = interrupt::count(0, intid) - taken;
    check("idle-raise-comes-once", taken <= 2 * IDLE_RAISES, format_args!("{taken} interrupts"));
}

/// SGIs to the others, one by one and all at once, and back.
fn across(machine: &Machine) {
    const SGI: u32 = 3;
    let others = 1..machine.cpus;
    let mut before = [0; MAX_CPUS];
    for index in others.clone() {
        before[index] = interrupt::count(index, SGI);
    }
    let mut sent = 0;
    let arrived = (0..SGI_ROUNDS).all(|round| {
        sent += 1;
        if round % 2 == 0 {
            gic::send_sgi_to_others(SGI);
        } else {
            machine.affinities[1..machine.cpus]
                .iter()
                .for_each(|affinity| gic::send_sgi(SGI, *affinity));
        }
        soon(|| others.clone().all(|index| interrupt::count(index, SGI) == before[index] + sent))
    });
    check("sgi-to-others", arrived, format_args!("number {sent} did not arrive"));

    let before = interrupt::count(0, smp::REPLY);
    let mut replies = 0;
    let arrived = (0..SGI_ROUNDS).all(|_| {
        others.clone().all(|index| {
            replies += 1;
            smp::order(machine, index, Order::Reply);
            soon(|| interrupt::count(0, smp::REPLY) == before + replies)
        })
    });
    check("sgi-back", arrived, format_args!("number {replies} did not arrive"));
}

/// SPIs go to the CPU that they are routed to.
fn routed(machine: &Machine, edu: Edu, source: Source) {
    const ROUNDS: u32 = 100;
    let spi = SOFTWARE_SPIS.start + 2;
    let mut software = Check::new("routed-software-spi");
    let mut line = Check::new("routed-intx");
    for index in (0..machine.cpus).rev() {
        let affinity = machine.affinities[index];
        gic::configure_spi(spi, Trigger::Edge, affinity);
        gic::enable(spi);
        let before = interrupt::count(index, spi);
        let arrived = (1..=ROUNDS).all(|round| {
            gic::set_pending(spi);
            soon(|| interrupt::count(index, spi) == before + round)
        });
        software.that(arrived, format_args!("to CPU {index}"));

        let Some(intx) = edu.intid else { continue };
        gic::configure_spi(intx, Trigger::Level, affinity);
        gic::enable(intx);
        let (taken, raised) = (interrupt::count(index, intx), source.raised());
        let arrived = (1..=ROUNDS).all(|round| {
            edu.raise(round);
            soon(|| {
                source.raised() == raised + round && interrupt::count(index, intx) == taken + round
            })
        });
        line.that(arrived, format_args!("to CPU {index}"));
    }
}
