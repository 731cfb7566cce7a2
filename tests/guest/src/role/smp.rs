//! The CPU suite: every CPU on, working, off and on again, by PSCI.

use super::{check, done, expect};
use crate::arch::{boot, cpu};
use crate::machine::Machine;
use crate::psci::{self, function};
use crate::smp::{self, Order};
use crate::{gic, interrupt};

/// How often every CPU goes off and comes back.
const CYCLES: u32 = 5;
/// An affinity that no machine has.
const NOBODY: u64 = 0xff_00ff_fff0;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    let own = cpu::affinity() & 0xff_00ff_ffff;
    let others = 1..machine.cpus;
    gic::start(machine);
    cpu::unmask_interrupts();

    expect("psci-version", psci::psci(function::VERSION, [0; 3]), 0x1_0001);
    expect("boot-cpu-is-the-first", own, machine.affinities[0]);
    let entry = boot::secondary_entry_address();
    expect(
        "cpu-on-nobody",
        psci::psci(function::CPU_ON, [NOBODY, entry, 0]),
        psci::INVALID_PARAMETERS,
    );
    expect("cpu-on-self", psci::psci(function::CPU_ON, [own, entry, 0]), psci::ALREADY_ON);
    expect("affinity-info-self", psci::affinity_info(own), psci::SUCCESS);
    expect("affinity-info-nobody", psci::affinity_info(NOBODY), psci::INVALID_PARAMETERS);
    for index in others.clone() {
        expect("affinity-info-before", psci::affinity_info(machine.affinities[index]), psci::OFF);
    }

    for cycle in 1..=CYCLES {
        for index in others.clone() {
            let affinity = machine.affinities[index];
            expect("cpu-on", smp::start(machine, index), Ok(()));
            expect("cpu-boots", smp::boots(index), cycle);
            expect("cpu-affinity", smp::found_affinity(index), affinity);
            expect("affinity-info-on", psci::affinity_info(affinity), psci::SUCCESS);
            expect(
                "cpu-on-twice",
                psci::psci(function::CPU_ON, [affinity, entry, 0]),
                psci::ALREADY_ON,
            );
        }
        let before = smp::counter();
        for index in others.clone() {
            smp::order(machine, index, Order::Count);
        }
        let wanted = before + smp::STEPS * others.len() as u64;
        check(
            "cpus-count",
            smp::patiently(|| smp::counter() == wanted),
            format_args!("{}", smp::counter()),
        );
        for index in others.clone() {
            let answered = smp::patiently(|| smp::answers(index) == cycle);
            check(
                "cpu-answers",
                answered,
                format_args!("CPU {index} gave {}", smp::answers(index)),
            );
            smp::order(machine, index, Order::Off);
            let affinity = machine.affinities[index];
            let off = smp::patiently(|| psci::affinity_info(affinity) == psci::OFF);
            check("cpu-off", off, format_args!("CPU {index} is {}", psci::affinity_info(affinity)));
        }
    }
    for index in others {
        let rings = interrupt::count(index, gic::DOORBELL);
        check("doorbells", rings >= CYCLES, format_args!("CPU {index} took {rings}"));
    }
    done("smp");
    Ok(())
}
