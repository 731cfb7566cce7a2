//! A device of which nobody knows whether it has stopped: nothing that it may reach is used again.

use anyhow::{Context, Result};
use platform::bundle::Reset;
use platform::report::{Cause, VmState};
use tests::built_in::victim;
use tests::run::{Run, boot, request};
use xtask::vm::{Content, LINEAGE};

use crate::Test;

pub const TESTS: &[Test] = &[
    ("qemu::no_kernel_follows_where_a_device_was_not_reset", || {
        quarantined("e1000-kexec", Cause::MmuOff)
    }),
    ("qemu::no_restart_follows_where_a_device_was_not_reset", || {
        quarantined("e1000-off", Cause::SystemOff)
    }),
];

/// The StreamID of the device: it is in slot 2.
const SOURCE: u32 = 0x10;

/// QEMU's e1000e says that D3hot makes it forget everything, goes there and back, and has forgotten nothing. It receives
/// when its kernel goes, beside a VM that notices nothing.
fn quarantined(scenario: &str, cause: Cause) -> Result<()> {
    let mut request = request(&["--scenario", scenario])?;
    let [lineage] = &mut request.vms[..] else { anyhow::bail!("{scenario} is not one VM") };
    let Content::BuiltIn { append, .. } = &mut lineage.content else {
        anyhow::bail!("{scenario} runs no built-in guest")
    };
    *append = append.replace("source=e1000", "source=e1000e");
    lineage.expect.clear();
    let claim = lineage.functions.last_mut().context("the scenario claims no function")?;
    claim.value.reset = Reset::Auto;
    let [device] = &mut request.devices[..] else { anyhow::bail!("{scenario} has one device") };
    device.device.driver = "e1000e".into();
    // It never gets to what the operator waits for.
    request.actions.clear();
    // The run ends when the first one does.
    request.vms.insert(0, victim(60));

    closed_for_ever(boot(&request)?, cause)?
        .printed("[victim] @done role=victim")?
        .printed("lineage: 00:02.0 was not reset by what it has for that")?
        .printed("its memory is never used again")?;
    Ok(())
}

/// Requires that the VM had one life, that its device was open in it and never after its end, and that all it ever reached
/// was its own.
fn closed_for_ever(run: Run, cause: Cause) -> Result<Run> {
    run.printed("[lineage] @armed device=")?
        .holds("nobody runs where the device may write", |outcome| {
            let second = |line: &String| line.contains("[lineage] @generation number=1");
            !outcome.console.iter().any(second)
        })?
        .holds("the VM has crashed, and was started once", |outcome| {
            let vm = outcome.verdict.report.vm(LINEAGE);
            vm.is_some_and(|vm| vm.state == VmState::Crashed && vm.boots == 1)
        })?
        .holds("the report says which device is to blame", |outcome| {
            let vm = outcome.verdict.report.vm(LINEAGE);
            let [teardown] = vm.map_or(&[][..], |vm| &vm.teardowns) else { return false };
            let mut unclean = teardown.quiesced.iter().filter(|quiesced| !quiesced.clean);
            teardown.cause == cause
                && unclean.next().is_some_and(|quiesced| quiesced.address == "00:02.0")
                && unclean.next().is_none()
        })?
        .holds("its stream was open once and is closed", |outcome| {
            let Some(stream) = outcome.verdict.report.stream(SOURCE) else { return false };
            stream.armed_at_close && stream.openings() == 1 && !stream.state.is_open()
        })?
        .holds("nobody found anything else", |outcome| {
            let findings = &outcome.verdict.findings;
            findings.iter().all(|finding| finding.contains(LINEAGE))
        })
}
