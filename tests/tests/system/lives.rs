//! Linux guests that end and go on: kexec, crash kernels, reboots; and drivers and CPUs that come and go.

use anyhow::Result;
use evidence::report::Teardown;
use platform::bundle::OnCrashKexec;
use platform::report::{Cause, What};
use tests::linux::{Stage, add, add_bystander, lives, machine};
use tests::run::boot;
use xtask::setup::Flavor;

use crate::Test;

/// One of each; `cargo xtask soak kexec`, `load` and `native` repeat them, longer and on the bare machine.
pub const TESTS: &[Test] = &[
    ("linux::lives_by_kexec_crash_and_reboot", each_way),
    ("linux::who_knows_no_smmu_has_its_disks", unaware),
    ("linux::a_preserving_crash_leaves_the_stream_table", adopt),
    ("linux::cpus_and_drivers_come_and_go", hotplug),
    ("linux::two_vms_under_load", load),
];

/// Beside a VM that notices nothing.
fn each_way() -> Result<()> {
    let mut request = lives::each_way(lives::GUEST)?;
    add_bystander(&mut request, Flavor::Cloud6_1)?;
    lives::came_each_way(boot(&request)?)?
        .holds("each end is a teardown", |outcome| {
            let mut causes = lives::causes(outcome, "linux").into_iter();
            [Cause::SmmuDisable, Cause::CrashKexec, Cause::SystemReset, Cause::SystemOff]
                .iter()
                .all(|wanted| causes.any(|cause| cause == *wanted))
        })?
        .holds("the other VM has one, at the end", |outcome| {
            lives::causes(outcome, "bystander") == [Cause::Operator]
        })?;
    Ok(())
}

/// C5: what knows no SMMU gives no sign of its own, so the evidence is that each disk was stopped after the close.
fn unaware() -> Result<()> {
    lives::unaware(lives::GUEST)?.holds("each disk opens after it was stopped", |outcome| {
        let vm = outcome.verdict.report.vm("linux");
        let ends = vm.map(|vm| &vm.teardowns[..]).unwrap_or_default();
        // To Linux without an SMMU, and from there to U-Boot.
        let handed_over = ends.iter().filter(|end| end.cause == Cause::MmuOff);
        handed_over.map(opened_on_evidence).eq([2, 2])
    })?;
    Ok(())
}

/// How many functions were stopped after the close, with proof, and opened after that.
fn opened_on_evidence(teardown: &Teardown) -> usize {
    let at = |what: What, device: &str| {
        let mut moments = teardown.moments.iter();
        moments.find(|m| m.what == what && m.device == device).map(|moment| moment.at_us)
    };
    let closed = at(What::Closed, "");
    let stopped = teardown.quiesced.iter().filter(|function| function.clean);
    stopped
        .filter(|function| {
            let of = |what: What| at(what, &function.address);
            matches!(
                (closed, of(What::Quiesced), of(What::Reopened)),
                (Some(closed), Some(quiesced), Some(reopened))
                    if closed < quiesced && quiesced < reopened
            )
        })
        .count()
}

fn adopt() -> Result<()> {
    let mut request = lives::adopting(lives::GUEST)?;
    request.vms[0].smmu.on_crash_kexec = OnCrashKexec::Preserve;
    lives::adopt(&request)?;
    Ok(())
}

fn hotplug() -> Result<()> {
    boot(&machine(Flavor::Cloud6_12, Stage::Hotplug, "rounds=10", &["--smp", "2"])?)?
        .passed()?
        .printed("@check cpu rounds=10 ok")?
        .printed("@check drivers rounds=10 ok")?
        .printed("@check rescan ok")?
        .holds("the only teardown is the one at the end", |outcome| {
            lives::causes(outcome, "linux") == [Cause::SmmuDisable, Cause::SystemOff]
        })?;
    Ok(())
}

fn load() -> Result<()> {
    let mut request = machine(Flavor::Standard6_1, Stage::Load, "seconds=60", &[])?;
    add(&mut request, "other", Flavor::Standard6_12, Stage::Load, "seconds=0")?;
    boot(&request)?
        .passed()?
        .printed("[linux] @check fio")?
        .printed("[other] @check fio")?
        .holds("no event was lost, and both VMs' disks were nested", lives::undisturbed)?;
    Ok(())
}
