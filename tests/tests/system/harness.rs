//! What runs have in common: time limits, files, expectations, and input that only QEMU can refuse.

use anyhow::{Result, ensure};
use tests::run::qemu;
use xtask::exit::Exit;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("qemu::input_that_only_qemu_can_judge_is_refused", refused_by_qemu),
    ("qemu::a_time_limit_has_its_own_exit_code", time_limit),
    ("qemu::files_are_written", files),
    ("qemu::manifests_choose_cpus_and_slots", manifests),
];

/// A kernel that does nothing for ever: `wfi; b .-4`, with an arm64 Image header around it or without.
fn idle_kernel(folder: &std::path::Path) -> Result<String> {
    let path = folder.join("idle");
    std::fs::write(&path, [0x7f, 0x20, 0x03, 0xd5, 0xff, 0xff, 0xff, 0x17])?;
    Ok(path.to_string_lossy().into_owned())
}

fn refused_by_qemu() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let nested = folder.path().join("nested.toml");
    std::fs::write(&nested, "name = \"a\"\nbuiltin = \"victim\"\n[smmu]\nstage1 = \"nested\"\n")?;
    let nested = nested.to_string_lossy();
    for (arguments, expected) in [
        (&["--device", "no-such-device"][..], "QEMU has no device \"no-such-device\""),
        (&["--cpu", "no-such-cpu"], "--cpu no-such-cpu: this QEMU has no such model"),
        (&["--machine-version", "1.0"], "--machine-version 1.0: this QEMU has no virt-1.0"),
        (&["--native", "--device", "nvme,drive=nowhere"], "QEMU refuses the machine"),
        (
            &["--vm", &nested, "--machine-version", "9.1", "--smmu-stage", "2"],
            "nested.toml:4: smmu.stage1: this machine's SMMU has one stage",
        ),
    ] {
        let Err(error) = qemu(arguments) else { anyhow::bail!("{arguments:?} was accepted") };
        ensure!(Exit::of(&error) == Exit::BadInput, "{arguments:?}: {error:#}");
        ensure!(format!("{error:#}").contains(expected), "{arguments:?}: {error:#}");
    }
    Ok(())
}

fn time_limit() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kernel = idle_kernel(folder.path())?;
    qemu(&["--native", "--kernel", &kernel, "--timeout", "2"])?
        .ended_with(Exit::TimedOut)?
        .found("the time limit of 2 s has passed")?;
    Ok(())
}

fn files() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (trace, report, serial) = (path("trace"), path("report.json"), path("serial"));
    qemu(&["--native", "--trace", &trace, "--report", &report, "--serial", &serial])?
        .ended_with(Exit::Fail)?;
    ensure!(std::fs::read_to_string(trace)?.contains("smmuv3_"), "--trace has no trace");
    ensure!(
        std::fs::read_to_string(serial)?.contains("@done role=rogue"),
        "--serial has no console"
    );
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(report)?)?;
    ensure!(report["version"] == 1 && report["verdict"] == "fail", "{report}");
    Ok(())
}

/// Without anything else to boot, the first manifest is guest 0.
fn manifests() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let manifest = |role: &str, cpu: u32, slot: u32| -> Result<String> {
        let path = folder.path().join(format!("{role}.toml"));
        let text = format!(
            "name = \"my-{role}\"\nbuiltin = \"{role}\"\ncpus = [{cpu}]\nmemory = \"16M\"\n\
             expect = \"@done role={role}\"\n[[pci]]\naddress = \"00:{slot:02x}.0\"\n"
        );
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let (victim, rogue) = (manifest("victim", 3, 6)?, manifest("rogue", 1, 7)?);
    qemu(&["--vm", &victim, "--vm", &rogue])?
        .passed()?
        .has_row("00:06.0 edu my-victim own RAM")?
        .has_row("00:07.0 edu (dead) late write")?
        .holds("each runs on its CPU", |outcome| {
            let cpus: Vec<&[u32]> =
                outcome.verdict.report.vms.iter().map(|vm| vm.cpus.as_slice()).collect();
            cpus == [&[3][..], &[1]]
        })?;
    Ok(())
}
