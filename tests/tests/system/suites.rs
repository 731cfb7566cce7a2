//! The suites that run in a guest: interrupts, CPUs, the SMMU, and everything that no driver does.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use platform::report::Cause;
use tests::built_in::{machine, suite, vm};
use tests::differential::{compare, expected};
use tests::run::boot;
use xtask::vm::Content;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("qemu::interrupts_on_one_cpu", || run("irq", 1, &[])),
    ("qemu::interrupts_across_four_cpus", || run("irq", 4, &[])),
    ("qemu::cpus_go_off_and_on", hotplug),
    ("qemu::a_restarted_vm_finds_its_cpu_cold", cold),
    ("qemu::twenty_kernels_find_the_same_machine", reborn),
    ("qemu::a_hostile_guest_hurts_only_itself", || run("probe", 2, &[])),
    ("qemu::a_hostile_guest_on_a_cpu_with_everything", || run("probe", 2, &["--cpu", "max"])),
    ("qemu::a_hostile_guest_on_the_oldest_cpu", || run("probe", 1, &["--cpu", "cortex-a57"])),
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

/// Ten boots, and ten kernels that began by switching the MMU off, find what the first one found: in timers, interrupt
/// controller, SMMU and, at a boot, in configuration space. Exception: `GBPA` aborts after every end. EL2 and guests have
/// as much memory in use as after two boots.
fn reborn() -> Result<()> {
    const BOOTS: usize = 10;
    let run = |boots: usize| {
        let mut vm = vm("reborn", "reborn", 1);
        if let Content::BuiltIn { append, .. } = &mut vm.content {
            *append = format!("boots={boots}");
        }
        boot(&machine(vec![vm], &[])?)?.passed()
    };
    let (few, many) = (run(2)?, run(BOOTS)?);
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in &many.outcome.console {
        let Some(finds) = line.split("@finds what=").nth(1) else { continue };
        let (what, digest) = finds.split_once(" digest=").context("a line without digest")?;
        found.entry(what).or_default().push(digest.trim());
    }
    ensure!(found.len() >= 6, "only {:?} were looked at", found.keys());
    for (what, digests) in found {
        let kernels = if what.starts_with("pci") { BOOTS } else { 2 * BOOTS };
        ensure!(digests.len() == kernels, "{what} was seen {} times", digests.len());
        let (cold, later) = (digests[0], &digests[1..]);
        let wanted = if what == "gbpa" { "0x0000000000100000" } else { cold };
        ensure!(
            later.iter().all(|digest| *digest == wanted),
            "{what}: cold {cold}, then {later:?}"
        );
    }
    let report = &many.outcome.verdict.report;
    let (before, after) = (&few.outcome.verdict.report.sizes, &report.sizes);
    ensure!(before == after, "in use: {before:?}, then {after:?}");
    ensure!(report.dropped() == 0, "{} events were lost", report.dropped());
    let boots = report.vm("reborn").map(|vm| vm.boots as usize);
    ensure!(boots == Some(BOOTS), "{boots:?} boots");
    Ok(())
}

fn run(role: &str, cpus: u32, options: &[&str]) -> Result<()> {
    suite(role, cpus, options)?;
    Ok(())
}
