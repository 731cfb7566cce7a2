//! The CPU suite: every CPU on, working, off and on again, by PSCI, which lets the last one not go.

use core::sync::atomic::{AtomicU32, Ordering};

use super::{Check, done, expect};
use crate::arch::{boot, cpu};
use crate::machine::Machine;
use crate::psci::{self, function};
use crate::smp::{self, Order};
use crate::{gic, interrupt};

/// How often every CPU goes off and comes back.
const CYCLES: u32 = 5;
/// An affinity that no machine has.
const NOBODY: u64 = 0xff_00ff_fff0;
/// How often two CPUs, which are all that are on, go off together.
const PARTINGS: u32 = 200;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let own = cpu::affinity() & 0xff_00ff_ffff;
    let entry = boot::secondary_entry_address();
    let on = |affinity, entry| psci::psci(function::CPU_ON, [affinity, entry, 0]);
    gic::start(machine);
    cpu::unmask_interrupts();

    expect("psci-version", psci::psci(function::VERSION, [0; 3]), 0x1_0001);
    expect("boot-cpu-is-the-first", own, machine.affinities[0]);
    expect("cpu-on-nobody", on(NOBODY, entry), psci::INVALID_PARAMETERS);
    expect("cpu-on-self", on(own, entry), psci::ALREADY_ON);
    expect("affinity-info-self", psci::affinity_info(own), psci::SUCCESS);
    expect("affinity-info-nobody", psci::affinity_info(NOBODY), psci::INVALID_PARAMETERS);
    if machine.cpus > 1 {
        others(machine, on);
    }
    expect("cpu-off-the-last", psci::psci(function::CPU_OFF, [0; 3]), psci::DENIED);
    if machine.cpus > 1 {
        expect("cpu-on-the-second", smp::start(machine, 1), Ok(()));
        smp::order(machine, 1, Order::OffTogether);
        go_off_together(0);
    }
    done("smp");
    Ok(())
}

/// The first two CPUs meet and go off at the same time, again and again. The one that has to stay starts the other one,
/// at last ends the suite, and may be either: so this returns on neither.
pub fn go_off_together(index: usize) -> ! {
    static ARRIVALS: AtomicU32 = AtomicU32::new(0);
    let other = 1 - index;
    let mut met = Check::new("cpus-meet");
    let mut denied = Check::new("cpu-off-together-denied");
    let mut off = Check::new("cpu-off-together");
    let mut started = Check::new("cpu-on-again");
    loop {
        let parting = ARRIVALS.fetch_add(1, Ordering::AcqRel) / 2 + 1;
        let both = || ARRIVALS.load(Ordering::Acquire) == 2 * parting;
        met.that(smp::at_once(both), format_args!("CPU {index} waited alone"));
        denied.same(psci::psci(function::CPU_OFF, [0; 3]), psci::DENIED);
        // Whoever comes here stayed.
        let gone = smp::patiently(|| psci::affinity_info(smp::found_affinity(other)) == psci::OFF);
        off.that(gone, format_args!("CPU {other} stayed as well"));
        if !gone || parting == PARTINGS {
            break;
        }
        started.same(smp::start_again(other, Order::OffTogether), Ok(()));
    }
    drop((met, denied, off, started));
    done("smp");
    psci::system_off()
}

fn others(machine: &Machine, on: impl Fn(u64, u64) -> psci::Status) {
    let others = 1..machine.cpus;
    let entry = boot::secondary_entry_address();
    let affinity = |index: usize| machine.affinities[index];
    let mut started = Check::new("cpu-on");
    let mut booted = Check::new("cpu-boots-once");
    let mut itself = Check::new("cpu-affinity");
    let mut info = Check::new("affinity-info");
    let mut twice = Check::new("cpu-on-twice");
    let mut counted = Check::new("cpus-count");
    let mut answered = Check::new("cpu-answers");
    let mut off = Check::new("cpu-off");

    for index in others.clone() {
        info.same(psci::affinity_info(affinity(index)), psci::OFF);
    }
    for cycle in 1..=CYCLES {
        for index in others.clone() {
            started.same(smp::start(machine, index), Ok(()));
            booted.same(smp::boots(index), cycle);
            itself.same(smp::found_affinity(index), affinity(index));
            info.same(psci::affinity_info(affinity(index)), psci::SUCCESS);
            twice.same(on(affinity(index), entry), psci::ALREADY_ON);
        }
        let wanted = smp::counter() + smp::STEPS * others.len() as u64;
        for index in others.clone() {
            smp::order(machine, index, Order::Count);
        }
        let all = smp::patiently(|| smp::counter() == wanted);
        counted.that(all, format_args!("{} instead of {wanted}", smp::counter()));
        for index in others.clone() {
            let all = smp::patiently(|| smp::answers(index) == cycle);
            answered.that(all, format_args!("CPU {index} gave {}", smp::answers(index)));
            smp::order(machine, index, Order::Off);
            let gone = smp::patiently(|| psci::affinity_info(affinity(index)) == psci::OFF);
            off.that(gone, format_args!("CPU {index} is {}", psci::affinity_info(affinity(index))));
        }
    }
    let mut rung = Check::new("doorbells");
    for index in others {
        let rings = interrupt::count(index, gic::DOORBELL);
        rung.that(rings >= CYCLES, format_args!("CPU {index} took {rings}"));
    }
}
