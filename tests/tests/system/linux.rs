//! Linux guests: Debian's kernel, unmodified, on real disks.

use anyhow::Result;
use tests::run::qemu;

use crate::Test;

/// One of each axis; `cargo xtask soak linux` runs all combinations.
pub const TESTS: &[Test] = &[
    ("linux::cortex_a57_with_1_cpu", || boots("cortex-a57", "1", "512M")),
    ("linux::cortex_a72_with_2_cpus_and_2g", || boots("cortex-a72", "2", "2G")),
    ("linux::cortex_a76_with_4_cpus", || boots("cortex-a76", "4", "512M")),
    ("linux::neoverse_n1_with_2_cpus", || boots("neoverse-n1", "2", "512M")),
    ("linux::neoverse_v1_with_1_cpu_and_2g", || boots("neoverse-v1", "1", "2G")),
    ("linux::neoverse_n2_with_4_cpus", || boots("neoverse-n2", "4", "512M")),
    ("linux::max_with_2_cpus", || boots("max", "2", "512M")),
    ("linux::stage_2_only", stage_2_only),
    ("linux::beside_a_rogue", beside_a_rogue),
];

fn boots(cpu: &str, cpus: &str, memory: &str) -> Result<()> {
    qemu(&["--linux", "--cpu", cpu, "--smp", cpus, "--memory", memory])?
        .passed()?
        .has_row("00:03.0 nvme linux")?
        .has_row("00:04.0 virtio-blk linux")?;
    Ok(())
}

fn stage_2_only() -> Result<()> {
    qemu(&["--linux", "--machine-version", "9.1", "--smmu-stage", "2"])?
        .passed()?
        .holds("the SMMU has stage 2 only", |outcome| {
            outcome.verdict.report.smmu.iter().all(|smmu| smmu.class == "stage2")
        })?;
    Ok(())
}

/// Linux's disks verify while every DMA of the rogue is stopped.
fn beside_a_rogue() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let manifest = folder.path().join("rogue.toml");
    std::fs::write(
        &manifest,
        "name = \"rogue\"\nbuiltin = \"rogue\"\ncpus = 1\nmemory = \"16M\"\n[[pci]]\naddress = \"00:05.0\"\n",
    )?;
    let manifest = manifest.to_string_lossy().into_owned();
    qemu(&["--linux", "--vm", &manifest])?
        .passed()?
        .printed("[rogue] @done role=rogue")?
        .has_row("00:05.0 edu rogue hypervisor")?
        .has_row("00:05.0 edu (dead) late write")?;
    Ok(())
}
