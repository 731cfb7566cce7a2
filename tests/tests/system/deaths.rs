//! Kernels that go and leave a device behind that does DMA by itself: their successors notice nothing of it.
//!
//! Here is one of each device and of most ways to go; `cargo xtask soak deaths` runs all combinations.

use anyhow::Result;
use platform::bundle::Reopen;
use platform::report::{Cause, StreamState, What};
use tests::run::{Run, boot, qemu, request};
use xtask::exit::Exit;
use xtask::run::Outcome;
use xtask::vm::{Cpus, Said};

use crate::Test;

pub const TESTS: &[Test] = &[
    ("qemu::death_of_a_recorder_by_kexec", || named("es1370-kexec", Cause::MmuOff, &[])),
    // Of QEMU's CPU models this one alone lets the write trap that switches the MMU off, and no other write.
    ("qemu::death_by_kexec_where_single_registers_trap", || {
        named("es1370-kexec", Cause::MmuOff, &["--cpu", "max"])
    }),
    ("qemu::death_of_a_recorder_that_was_kept_from_the_bus", kept_from_the_bus),
    ("qemu::death_while_another_cpu_issues_commands", beside_another_cpu),
    ("qemu::death_with_the_smmu_switched_off", || {
        named("shutdown-bypass", Cause::SmmuDisable, &[])
    }),
    ("qemu::death_of_an_nvme_before_an_unaware_successor", || {
        reset("unaware-successor", Cause::CrashKexec, "nvme", "flr")
    }),
    ("qemu::an_unaware_successor_has_no_disk_where_only_an_smmu_reopens", never_reopened),
    ("qemu::death_of_a_receiver_by_reset", || named("e1000-reset", Cause::SystemReset, &[])),
    ("qemu::death_of_a_virtio_disk_by_the_operator", || {
        reset("virtio-blk-kill", Cause::Operator, "virtio-blk", "virtio")
    }),
    ("qemu::death_of_a_usb_controller_by_off", dies_of_its_first_refusal),
    ("qemu::native_death_of_an_nvme_overwrites_its_successor", native),
];

/// The StreamID of the device: it is in slot 2.
const SOURCE: u32 = 0x10;

/// Requires of a scenario's run that a successor found all its canaries as it had planted them.
fn survived(run: Run, cause: Cause) -> Result<Run> {
    run.passed()?
        .printed("[lineage] @generation number=1")?
        .printed("[lineage] @canary page=0x40400000 ok")?
        .printed("[lineage] @canary page=0x40e00000 ok")?
        .holds("the first end was what it should be", |outcome| {
            let vm = outcome.verdict.report.vm("lineage");
            vm.is_some_and(|vm| vm.teardowns.first().is_some_and(|t| t.cause == cause))
        })
}

/// A device that has no reset goes on: it is stopped, counted, and named on the console.
fn named(name: &str, cause: Cause, options: &[&str]) -> Result<()> {
    let run = qemu(&[&["--scenario", name], options].concat())?;
    survived(run, cause)?.printed("late DMA: 00:02.0 (")?.holds(
        "EL2 knew that it was armed, and stopped it",
        |outcome| {
            let stream = outcome.verdict.report.stream(SOURCE);
            stream.is_some_and(|s| s.armed_at_close && s.stopped_after_teardown.count > 0)
        },
    )?;
    Ok(())
}

/// QEMU's OHCI dies of the first access that is refused. If that comes after the close and before the watch, nobody hears it,
/// and it is as silent as it seems; otherwise it is named.
fn dies_of_its_first_refusal() -> Result<()> {
    survived(qemu(&["--scenario", "ohci-off"])?, Cause::SystemOff)?
        .holds("EL2 knew that it was armed", |outcome| {
            outcome.verdict.report.stream(SOURCE).is_some_and(|stream| stream.armed_at_close)
        })?;
    Ok(())
}

/// A device that can be reset forgets what it was told, although the SMMU had let it have its buffers long before; its
/// new owner gets it back working.
fn reset(name: &str, cause: Cause, source: &str, how: &str) -> Result<()> {
    survived(qemu(&["--scenario", name])?, cause)?
        .printed(&format!("[lineage] @again source={source} works"))?
        .holds("EL2 knew that it was armed, and reset it", |outcome| was_reset(outcome, how))?;
    Ok(())
}

fn was_reset(outcome: &Outcome, how: &str) -> bool {
    let report = &outcome.verdict.report;
    let armed = report.stream(SOURCE).is_some_and(|stream| stream.armed_at_close);
    let quiesced = report.vm("lineage").and_then(|vm| vm.teardowns.first());
    let mut quiesced = quiesced.into_iter().flat_map(|teardown| &teardown.quiesced);
    armed && quiesced.any(|q| q.address == "00:02.0" && q.how == how && q.clean)
}

/// Whether no stream opened again after any end of the VM.
fn stays_closed(outcome: &Outcome) -> bool {
    outcome.verdict.report.vm("lineage").is_some_and(|vm| {
        vm.teardowns.iter().flat_map(|end| &end.moments).all(|m| m.what != What::Reopened)
    })
}

/// C5: a reset and bus mastering are no evidence where the manifest says `reopen = "smmu"`. The successor has no driver
/// of the SMMU, so its disk, reset as it is, never does anything for it.
fn never_reopened() -> Result<()> {
    let mut request = request(&["--scenario", "unaware-successor"])?;
    for vm in &mut request.vms {
        vm.smmu.reopen = Reopen::Smmu;
    }
    survived(boot(&request)?, Cause::CrashKexec)?
        .printed("[lineage] @again source=nvme refused")?
        .holds("EL2 knew that it was armed, and reset it", |outcome| was_reset(outcome, "flr"))?
        .holds("its stream never opened after the close", |outcome| {
            let report = &outcome.verdict.report;
            let Some(stream) = report.stream(SOURCE) else { return false };
            let mut open = stream.history.iter().filter(|entered| entered.state.is_open());
            // What the first kernel's driver asked for was the last.
            stays_closed(outcome)
                && !stream.state.is_open()
                && open.next_back().is_some_and(|last| last.state == StreamState::Nested)
        })?;
    Ok(())
}

/// A kernel that has only taken bus mastering from its device has not stopped it: it is heard as soon as it may master the
/// bus again, which its successor's driver allows before it does anything else. So that is no evidence (C5).
fn kept_from_the_bus() -> Result<()> {
    survived(qemu(&["--scenario", "es1370-orderly"])?, Cause::SmmuDisable)?
        .printed("late DMA: 00:02.0 (")?
        .printed("[lineage] @again source=es1370 refused")?
        .holds("it was heard, and its stream did not open again", |outcome| {
            let stream = outcome.verdict.report.stream(SOURCE);
            stays_closed(outcome) && stream.is_some_and(|s| s.stopped_after_teardown.count > 0)
        })?;
    Ok(())
}

/// The kernel's second CPU never goes off: it has all STEs read again while the first one starts another kernel, and goes
/// on with that afterwards. No late command of it opens what was closed.
fn beside_another_cpu() -> Result<()> {
    let mut request = request(&["--scenario", "es1370-crash", "--cpu", "max"])?;
    for vm in &mut request.vms {
        vm.cpus = Said::new(Cpus::Count(2), "the test");
    }
    survived(boot(&request)?, Cause::CrashKexec)?
        .printed("late DMA: 00:02.0 (")?
        .holds("commands came all the time", |outcome| {
            let vm = outcome.verdict.report.vm("lineage");
            let rings = vm.and_then(|vm| vm.exits.by_reason.get("smmu-commands"));
            rings.is_some_and(|rings| *rings > 1000)
        })?
        .holds("its stream never opened after the close", stays_closed)?;
    Ok(())
}

/// On the bare machine the same reads land in memory that belongs to the next kernel by then.
fn native() -> Result<()> {
    qemu(&["--native", "--scenario", "nvme-kexec"])?
        .ended_with(Exit::Fail)?
        .printed("@generation number=1")?
        .found("canary 0x40500000 changed")?;
    Ok(())
}
