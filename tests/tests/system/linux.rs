//! Linux guests: Debian's kernel, unmodified, on real disks.

use std::path::Path;

use anyhow::Result;
use evidence::budget;
use platform::report::Cause;
use tests::linux::disks_are_in;
use tests::run::{boot, qemu, request};
use xtask::bench::linux::{Unmaps, count_unmaps};
use xtask::run::Outcome;

use crate::Test;

/// One of each axis; `cargo xtask soak linux` runs all combinations.
pub const TESTS: &[Test] = &[
    ("linux::cortex_a57_with_1_cpu", || boots("cortex-a57", "1", "512M", &STRICT)),
    ("linux::cortex_a72_with_2_cpus_and_2g", || boots("cortex-a72", "2", "2G", &COUNTED)),
    ("linux::cortex_a76_with_4_cpus", || boots("cortex-a76", "4", "512M", &COUNTED)),
    ("linux::neoverse_n1_with_2_cpus_lazily", || boots("neoverse-n1", "2", "512M", &LAZY)),
    ("linux::neoverse_v1_with_1_cpu_and_2g_passing", || boots("neoverse-v1", "1", "2G", &PASSING)),
    ("linux::neoverse_n2_with_4_cpus_without_msi_polling", || {
        boots("neoverse-n2", "4", "512M", &NO_MSI_POLLING)
    }),
    ("linux::max_with_2_cpus", || boots("max", "2", "512M", &STRICT)),
    ("linux::stage_2_only", stage_2_only),
    ("linux::beside_a_rogue", beside_a_rogue),
    ("linux::beside_a_killed_rogue", beside_a_killed_rogue),
];

/// What the guest's kernel is told about its SMMU, and what follows from that.
struct Mode {
    append: &'static str,
    /// The type of each device's domain.
    domain: &'static str,
    /// How many batches of commands there are at least.
    batches: u64,
    /// Whether the kernel counts its unmaps.
    counts: bool,
}

const STRICT: Mode = Mode { append: "", domain: "DMA", batches: 1000, counts: false };
const COUNTED: Mode = Mode { counts: true, ..STRICT };
const LAZY: Mode = Mode { append: "iommu.strict=0", domain: "DMA-FQ", batches: 10, counts: false };
const PASSING: Mode =
    Mode { append: "iommu.passthrough=1", domain: "identity", batches: 4, counts: false };
const NO_MSI_POLLING: Mode = Mode { append: "arm-smmu-v3.disable_msipolling=1", ..STRICT };

fn boots(cpu: &str, cpus: &str, memory: &str, mode: &Mode) -> Result<()> {
    let arguments = ["--linux", "--cpu", cpu, "--smp", cpus, "--memory", memory];
    let append = ["--append", mode.append];
    let append = if mode.append.is_empty() { &[] } else { &append[..] };
    let mut request = request(&[&arguments[..], append].concat())?;
    if mode.counts {
        count_unmaps(&mut request);
    }
    let run = boot(&request)?
        .passed()?
        .has_row("00:03.0 nvme linux")?
        .has_row("00:04.0 virtio-blk linux")?;
    disks_are_in(&run, mode.domain)?;
    run.holds("a batch costs one exit and one CMD_SYNC", |outcome| {
        one_exit_and_one_sync_per_batch(outcome, mode.batches)
    })?
    .holds("an unmap costs one exit", |outcome| {
        !mode.counts || one_exit_per_unmap(outcome, mode.batches)
    })?;
    Ok(())
}

/// Writes to registers of the SMMU beside the driver's commands, and commands that are no unmaps: when the driver takes it
/// over, for each device that it attaches, and at the end.
const NO_UNMAPS: u64 = 64;

/// The kernel itself counted its strict unmaps: each cost one exit, whatever for.
fn one_exit_per_unmap(outcome: &Outcome, at_least: u64) -> bool {
    Unmaps::of(outcome).is_ok_and(|it| {
        it.unmaps >= at_least && it.exits <= it.unmaps * budget::EXITS_PER_UNMAP + NO_UNMAPS
    })
}

/// Commands that a driver issues once, when it takes its SMMU over.
const DRIVER_START: u64 = 8;

/// What the driver did to both devices' memory cost one exit and one `CMD_SYNC` for each of its batches; EL2's own
/// commands, at boot and for each change of a stream, are a few more.
fn one_exit_and_one_sync_per_batch(outcome: &Outcome, batches: u64) -> bool {
    let report = &outcome.verdict.report;
    let (Some(vm), [smmu]) = (report.vm("linux"), &report.smmu[..]) else { return false };
    let doorbells = vm.exits.by_reason.get("smmu-commands").copied().unwrap_or(0);
    let own: u64 = report.streams.iter().map(|stream| 3 * stream.transitions).sum();
    smmu.guest_batches >= batches
        && doorbells <= smmu.guest_batches + DRIVER_START
        && smmu.syncs <= smmu.guest_batches * budget::SYNCS_PER_BATCH + DRIVER_START + own
}

fn stage_2_only() -> Result<()> {
    qemu(&["--linux", "--machine-version", "9.1", "--smmu-stage", "2"])?
        .passed()?
        .printed("[linux] @iommu none")?
        .holds("the SMMU has stage 2 only", |outcome| {
            outcome.verdict.report.smmu.iter().all(|smmu| smmu.class == "stage2")
        })?;
    Ok(())
}

/// Writes the manifest of a rogue with an `edu` in a slot whose interrupt line Linux does not have.
fn rogue(folder: &Path) -> Result<String> {
    let manifest = folder.join("rogue.toml");
    let text = "name = \"rogue\"\nbuiltin = \"rogue\"\ncpus = 1\nmemory = \"16M\"\n\
                [[pci]]\naddress = \"00:05.0\"\n";
    std::fs::write(&manifest, text)?;
    Ok(manifest.to_string_lossy().into_owned())
}

/// Linux's disks verify while every DMA of the rogue is stopped.
fn beside_a_rogue() -> Result<()> {
    let folder = tempfile::tempdir()?;
    qemu(&["--linux", "--vm", &rogue(folder.path())?])?
        .passed()?
        .printed("[rogue] @done role=rogue")?
        .has_row("00:05.0 edu rogue hypervisor")?
        .has_row("00:05.0 edu (dead) late write")?;
    Ok(())
}

/// Killing one VM in the middle of what it does leaves the other one running.
fn beside_a_killed_rogue() -> Result<()> {
    let folder = tempfile::tempdir()?;
    qemu(&["--linux", "--vm", &rogue(folder.path())?, "--at", "3:kill:rogue"])?
        .passed()?
        .printed("[linux] @done role=linux")?
        .holds("the rogue was killed", |outcome| {
            let rogue = outcome.verdict.report.vm("rogue");
            rogue.is_some_and(|vm| {
                vm.teardowns.iter().any(|teardown| teardown.cause == Cause::Operator)
            })
        })?;
    Ok(())
}
