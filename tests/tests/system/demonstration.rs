//! The built-in demonstration: two guests, one of which attacks and dies.

use anyhow::{Context, Result, ensure};
use tests::run::qemu;

use crate::Test;

pub const TESTS: &[Test] = &[("qemu::demonstration_passes", passes)];

fn passes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report.json");
    qemu(&["--report", &report.to_string_lossy()])?
        .passed()?
        .has_row("00:01.0 edu victim own RAM")?
        .has_row("00:02.0 edu rogue hypervisor")?
        .has_row("00:02.0 edu (dead) late write")?
        .has_row("three sources agree: guests, EL2, QEMU trace PASS")?;
    // Beside the report is a picture of each end.
    for vm in ["victim", "rogue"] {
        let picture = folder.path().join(format!("report.{vm}.1.svg"));
        let picture = std::fs::read_to_string(&picture)
            .with_context(|| format!("no picture of the end of {vm}"))?;
        let shows = |text: &str| picture.contains(text);
        ensure!(shows("<svg") && shows(vm) && shows("</svg>"), "{vm}: {picture}");
    }
    Ok(())
}
