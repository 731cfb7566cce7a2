//! What runs have in common: time limits, files, expectations, and input that only QEMU can refuse.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::run::{self, qemu, request};
use xtask::exit::Exit;
use xtask::prepare;
use xtask::run::run_prepared;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("qemu::input_that_only_qemu_can_judge_is_refused", refused_by_qemu),
    ("qemu::what_only_el2_can_judge_is_refused_by_its_line", refused_by_el2),
    ("qemu::an_el2_that_never_runs_is_noticed", silence),
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
        (&["--qemu-arg=-help"], "--qemu-arg -help: QEMU has ended without running EL2, and the"),
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

/// QEMU's SD host controller has no reset, which only EL2 finds out.
fn refused_by_el2() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (manifest, report) = (folder.path().join("a.toml"), folder.path().join("report.json"));
    let text = "name = \"a\"\nbuiltin = \"victim\"\nmemory = \"16M\"\n[[pci]]\naddress = \"00:01.0\"\n\
                reset = \"bus-master\"\n[[pci]]\naddress = \"00:05.0\"\n";
    std::fs::write(&manifest, format!("on-exit = \"restart\"\n{text}"))?;
    let (manifest, report) = (manifest.to_string_lossy(), report.to_string_lossy());
    let claimed = ["--vm", &manifest, "--device", "sdhci-pci,addr=5", "--report", &report];
    for (arguments, expected) in [
        (
            &claimed[..],
            "a.toml:1: on-exit: EL2 refuses it: VM a: on-exit = \"restart\", but 00:05.0",
        ),
        (
            &["--smmu-stage", "1"],
            "--smmu-stage 1: EL2 refuses it: SMMU at 0x9050000: the SMMU has no",
        ),
    ] {
        let Err(error) = qemu(arguments) else { anyhow::bail!("{arguments:?} was accepted") };
        ensure!(Exit::of(&error) == Exit::BadInput, "{arguments:?}: {error:#}");
        ensure!(format!("{error:#}").contains(expected), "{arguments:?}: {error:#}");
    }
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&*report)?)?;
    let reason = report["reason"].as_str().unwrap_or_default();
    ensure!(report["verdict"] == "fail" && reason.contains("EL2 refuses it"), "{report}");
    // An error of EL2's about a guest that has run refuses nothing, even if that never said a word.
    let silent = folder.path().join("off");
    let off: [u32; 3] = [0xd280_0100, 0xf2b0_8000, 0xd400_0002]; // mov x0, #SYSTEM_OFF; hvc #0
    std::fs::write(&silent, off.map(u32::to_le_bytes).concat())?;
    qemu(&["--kernel", &silent.to_string_lossy(), "--memory", "16M", "--device", "i82801"])?
        .ended_with(Exit::Fail)?
        .found("guest0 crashed: nothing proves that 00:01.0 is quiet")?;
    Ok(())
}

/// Once something spins in EL2's place, and once the user's own argument keeps the machine from starting.
fn silence() -> Result<()> {
    let patience = Duration::from_millis(200);
    let folder = tempfile::tempdir()?;
    let spinning = folder.path().join("spinning");
    std::fs::write(&spinning, 0x1400_0000_u32.to_le_bytes())?;
    let mut ours = request(&[])?;
    ours.patience = patience;
    let mut prepared = prepare::prepare(&ours)?;
    prepared.machine.boot.kernel = spinning;
    run::Run { outcome: run_prepared(&ours, &prepared)? }
        .ended_with(Exit::Fail)?
        .found("EL2 gives no sign of life")?;
    let mut users = request(&["--qemu-arg=-incoming defer"])?;
    users.patience = patience;
    let Err(error) = run::boot(&users) else { anyhow::bail!("a machine that waits passes") };
    ensure!(Exit::of(&error) == Exit::BadInput, "{error:#}");
    let expected = "--qemu-arg -incoming defer: EL2 gives no sign of life: after ";
    ensure!(error.to_string().starts_with(expected), "{error:#}");
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
