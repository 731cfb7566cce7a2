//! The suites that run in a guest: interrupts, CPUs, the SMMU, and everything that no driver does.

use anyhow::{Context, Result, ensure};
use evidence::budget;
use platform::bundle::{DmaAtBoot, OnCrashKexec, Reopen};
use platform::report::Cause;
use tests::built_in::{self, machine, suite, undisturbed, victim, vm};
use tests::differential::{compare, expected};
use tests::run::boot;
use xtask::bench::figures;
use xtask::vm::{Cpus, Said};

use crate::Test;

pub const TESTS: &[Test] = &[
    // Of QEMU's CPU models the first one alone lets single registers trap.
    ("qemu::interrupts_on_one_cpu", || run("irq", 1, &["--cpu", "max"])),
    ("qemu::interrupts_across_four_cpus", || run("irq", 4, &[])),
    ("qemu::cpus_go_off_and_on", hotplug),
    ("qemu::a_restarted_vm_finds_its_cpu_cold", cold),
    ("qemu::kernels_find_the_same_machine_whatever_ended_the_last_one", reborn),
    ("qemu::a_hostile_guest_hurts_only_itself", probe),
    ("qemu::a_hostile_guest_on_a_cpu_with_everything", || run("probe", 2, &["--cpu", "max"])),
    ("qemu::a_hostile_guest_on_the_oldest_cpu", || run("probe", 1, &["--cpu", "cortex-a57"])),
    ("qemu::a_virtual_smmu_is_as_specified", || smmu("smmu", 2, &[])),
    ("qemu::a_virtual_smmu_on_an_older_cpu", || smmu("smmu", 1, &["--cpu", "cortex-a57"])),
    ("qemu::a_guests_stage_1_is_its_own", || smmu("stage1", 2, &["--cpu", "cortex-a72"])),
    ("qemu::a_batch_of_one_command_is_cheap", batch_cost),
    ("qemu::a_forging_driver_hurts_only_itself", forger),
    ("qemu::a_guest_cannot_flood_the_console", flood),
    ("qemu::a_flood_of_invalidations_slows_only_itself", deluge),
    ("qemu::a_bare_smmu_is_what_the_suites_take_it_for", bare_smmu),
    // Its registers are fewer than a page, so EL2 forwards accesses to them, and it answers 64-bit ones with an error.
    ("qemu::a_hostile_guest_with_a_device_that_refuses", || {
        run("probe", 1, &["--device", "sdhci-pci"])
    }),
    ("qemu::a_bare_smmu_does_what_the_model_does", model_and_qemu),
];

/// The guest checks that its CPU remembers nothing, makes it remember everything, and starts over and checks again. This
/// CPU model has everything that there is to remember.
fn cold() -> Result<()> {
    suite("cold", 1, &["--cpu", "max"])?.holds("the VM came back", |outcome| {
        outcome.verdict.report.vm("cold").is_some_and(|vm| vm.boots == 2)
    })?;
    Ok(())
}

/// A suite of the SMMU that the hypervisor shows.
fn smmu(role: &str, cpus: u32, options: &[&str]) -> Result<()> {
    suite(role, cpus, options)?.printed("@iommu smmu=virtual")?;
    Ok(())
}

/// EL2's instructions for a batch of one command and a `CMD_SYNC`, from the trap to the guest's next instruction, on a
/// machine whose time is a count of instructions.
fn batch_cost() -> Result<()> {
    let cost = figures::batch()?;
    ensure!((1..=budget::BATCH).contains(&cost), "{cost} instructions for a batch");
    Ok(())
}

/// A guest that does what no driver does, beside a VM that moves data all the time, whose report is what it is alone.
fn probe() -> Result<()> {
    const ROUNDS: u64 = 40;
    let mut probe = vm("probe", "probe", 2);
    probe.cpus = Said::new(Cpus::These(vec![2, 3]), "the test");
    let run = boot(&machine(vec![victim(ROUNDS), probe], &[])?)?
        .passed()?
        .printed("[probe] @done role=probe")?;
    undisturbed(run, ROUNDS)?;
    Ok(())
}

/// How often the victim's device moves data beside the forger, 100 ms each time: longer than the forger needs.
const ROUNDS: u64 = 240;

/// A driver that lies to its SMMU, beside a VM that moves data all the time, whose report is what it is alone.
fn forger() -> Result<()> {
    let mut forger = vm("forger", "forger", 2);
    // CPU 1 is nobody's: there EL2 listens to the SMMU.
    forger.cpus = Said::new(Cpus::These(vec![2, 3]), "the test");
    forger.smmu.dma_at_boot = DmaAtBoot::Abort;
    forger.smmu.reopen = Reopen::Smmu;
    let run = boot(&machine(vec![victim(ROUNDS), forger], &[])?)?
        .passed()?
        .printed("[forger] @iommu smmu=virtual")?
        .printed("[forger] @done role=forger")?
        .holds("only what is a guest's to ask for was ever asked of the SMMU", |outcome| {
            let commands = outcome.verdict.report.smmu.iter().flat_map(|smmu| smmu.commands.keys());
            let foreign = ["EL2", "EL3", "_S_", "ATC", "PRI", "RESUME", "STALL", "DPTI", "PIDM"];
            let mut names = commands.peekable();
            names.peek().is_some()
                && !names.any(|name| foreign.iter().any(|part| name.contains(part)))
        })?;
    undisturbed(run, ROUNDS)?;
    Ok(())
}

/// A guest of which EL2 could say thousands of lines, beside a victim. EL2 says what its budget has room for, counts the
/// rest, and still says how it ends. Its clock counts instructions, so that it says the same on any host.
fn flood() -> Result<()> {
    let run = boot(&machine(vec![vm("flood", "flood", 1), victim(4)], &["--icount"])?)?
        .passed()?
        .printed("[el2] flood: system-off, ")?;
    let outcome = &run.outcome;
    let count = |text: &str| outcome.console.iter().filter(|line| line.contains(text)).count();
    let number = |text: &str, end: &str| {
        let found = outcome.console.iter().filter_map(|line| line.split_once(text));
        found
            .filter_map(|(_, rest)| rest.split(end).next()?.trim().parse::<u64>().ok())
            .sum::<u64>()
    };
    let provoked = number("[flood] @provoked lines=", " ");
    let closes = ["smmu-disable", "crash-kexec", "mmu-off"];
    let said = closes.map(|cause| count(&format!("[el2] flood: {cause}, ")));
    let said = said.iter().sum::<usize>() as u64;
    let left_out = outcome.verdict.report.vm("flood").map_or(0, |vm| vm.lines_left_out);
    ensure!(provoked > 2000, "only {provoked} lines were provoked");
    ensure!(provoked == said + left_out, "{provoked} provoked, {said} said, {left_out} left out");
    ensure!(said <= provoked / 4, "{said} lines of {provoked} were said");
    let told = number("[el2] WARN: flood: ", " lines left out");
    ensure!(told == left_out, "{left_out} lines were left out, {told} of them told");
    let others = outcome.verdict.report.vm("victim").map(|vm| vm.lines_left_out);
    ensure!(others == Some(0), "the victim paid for it: {others:?}");
    Ok(())
}

/// Two VMs that invalidate without a pause, beside one that moves data: that one comes to EL2 as often as alone, and waits
/// for a shared lock less than once in a hundred commands of theirs. They do wait for each other.
fn deluge() -> Result<()> {
    const ROUNDS: u64 = 60;
    let drowning = |name, cpu| {
        let mut vm = vm(name, "deluge", 1);
        vm.cpus = Said::new(Cpus::These(vec![cpu]), "the test");
        vm
    };
    let vms = vec![victim(ROUNDS), drowning("rain", 2), drowning("storm", 3)];
    let run = boot(&machine(vms, &[])?)?
        .passed()?
        .printed("[rain] @done role=deluge")?
        .printed("[storm] @done role=deluge")?;
    let run = undisturbed(run, ROUNDS)?;
    let report = &run.outcome.verdict.report;
    let invalidations = ["CMD_TLBI_NH_ALL", "CMD_TLBI_NSNH_ALL"];
    let commands = report.smmu.iter().flat_map(|smmu| &smmu.commands);
    let commands: u64 =
        commands.filter(|(name, _)| invalidations.contains(&name.as_str())).map(|(_, n)| n).sum();
    ensure!(commands >= 2 * 200 * 249, "only {commands} invalidations");
    let theirs: u64 =
        ["rain", "storm"].iter().filter_map(|vm| Some(report.vm(vm)?.lock_waits)).sum();
    ensure!(theirs > 0, "nobody found a lock taken");
    let victim = report.vm("victim").context("no victim")?;
    let (waits, exits) = (victim.lock_waits, victim.exits.total);
    ensure!(waits <= exits.min(commands / 100), "{waits} waits in {exits} exits beside {commands}");
    Ok(())
}

/// The suites of the SMMU, natively: what they require is what an SMMU does.
fn bare_smmu() -> Result<()> {
    for role in ["smmu", "stage1"] {
        suite(role, 1, &["--native"])?.printed("@iommu smmu=bare")?;
    }
    Ok(())
}

/// The scenarios, natively. The run itself is not judged: they let DMA bypass the SMMU.
fn model_and_qemu() -> Result<()> {
    let bare = machine(vec![vm("scenarios", "scenarios", 1)], &["--native"])?;
    let run = boot(&bare)?.printed("@done role=scenarios")?;
    let lines = run.outcome.console.iter().filter_map(|line| line.split_once("seen: "));
    let seen: Vec<&str> = lines.map(|(_, line)| line.trim_end()).collect();
    compare(&expected(&model::bench::play(), scenarios::DIFFERENCES)?, &seen)
}

/// CPUs that go off and come back are no new kernel: nothing is closed before the guest switches itself off. This CPU
/// model cannot let single registers trap, so every write of a translation control is looked at meanwhile.
fn hotplug() -> Result<()> {
    suite("smp", 4, &["--cpu", "cortex-a72"])?.holds("only the end was an end", |outcome| {
        let vm = outcome.verdict.report.vm("smp");
        let causes = vm.map(|vm| vm.teardowns.iter().map(|teardown| teardown.cause));
        causes.is_some_and(|causes| causes.eq([Cause::SystemOff]))
    })?;
    Ok(())
}

/// Whatever ended the last kernel, the next one finds the same machine, and nothing is left after ten lives that was not
/// after three, which differ in what their manifest says of crashes and in how EL2 notices another kernel: single
/// registers trap there. `cargo xtask soak restarts` has a thousand lives.
fn reborn() -> Result<()> {
    const BOOTS: u32 = 10;
    let few = built_in::reborn(3, OnCrashKexec::Abort, &["--cpu", "max"])?;
    let many = built_in::reborn(BOOTS, OnCrashKexec::Quiesce, &[])?;
    built_in::finds_the_same(&few, 3)?;
    built_in::finds_the_same(&many, BOOTS)?;
    built_in::leaves_nothing(&few, &many, BOOTS)
}

fn run(role: &str, cpus: u32, options: &[&str]) -> Result<()> {
    suite(role, cpus, options)?;
    Ok(())
}
