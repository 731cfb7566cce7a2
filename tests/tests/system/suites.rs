//! The suites that run in a guest: interrupts, CPUs, the SMMU, and everything that no driver does.

use anyhow::Result;
use tests::built_in::{machine, suite, vm};
use tests::differential::{compare, expected};
use tests::run::boot;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("qemu::interrupts_on_one_cpu", || run("irq", 1, &[])),
    ("qemu::interrupts_across_four_cpus", || run("irq", 4, &[])),
    ("qemu::cpus_go_off_and_on", || run("smp", 4, &[])),
    ("qemu::a_restarted_vm_finds_its_cpu_cold", cold),
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

fn run(role: &str, cpus: u32, options: &[&str]) -> Result<()> {
    suite(role, cpus, options)?;
    Ok(())
}
