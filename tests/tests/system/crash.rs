//! Kernels that crash into another one while the SMMU is enabled and a device runs: what the manifest says is done.

use anyhow::Result;
use platform::bundle::OnCrashKexec;
use platform::report::{Cause, StreamState};
use tests::run::{Run, boot, request};

use crate::Test;

pub const TESTS: &[Test] = &[
    ("qemu::a_crash_may_close_and_stop_nothing", abort),
    ("qemu::a_crash_may_leave_stage_1_as_it_is", preserve),
];

/// The StreamID of the device: it is in slot 2.
const SOURCE: u32 = 0x10;

fn crash(policy: OnCrashKexec) -> Result<Run> {
    let mut request = request(&["--scenario", "es1370-crash"])?;
    for vm in &mut request.vms {
        vm.smmu.on_crash_kexec = policy;
    }
    boot(&request)
}

fn abort() -> Result<()> {
    crash(OnCrashKexec::Abort)?.passed()?.printed("after crash-kexec")?.holds(
        "the streams were closed, and the devices left alone",
        |outcome| {
            let report = &outcome.verdict.report;
            let first = report.vm("lineage").and_then(|vm| vm.teardowns.first());
            let closed = first.is_some_and(|first| {
                first.cause == Cause::CrashKexec && first.streams > 0 && first.quiesced.is_empty()
            });
            let late = report.stream(SOURCE).map(|stream| stream.stopped_after_teardown);
            closed && late.is_some_and(|late| late.count > 0)
        },
    )?;
    Ok(())
}

/// The next kernel of this run uses the memory in which the old one had its tables, which a crash kernel would not: so
/// what its device does is not judged, but what EL2 did is.
fn preserve() -> Result<()> {
    crash(OnCrashKexec::Preserve)?.printed("[lineage] @generation number=1")?.holds(
        "nothing was closed before the end",
        |outcome| {
            let report = &outcome.verdict.report;
            let teardowns = report.vm("lineage").map_or(&[][..], |vm| &vm.teardowns);
            let first = teardowns.first().is_some_and(|first| {
                first.cause == Cause::CrashKexec && first.streams == 0 && first.quiesced.is_empty()
            });
            let last = teardowns
                .last()
                .is_some_and(|last| last.cause == Cause::SystemOff && last.streams > 0);
            let history = report.stream(SOURCE).map_or(&[][..], |stream| &stream.history);
            let nested = history.iter().filter(|entered| entered.state == StreamState::Nested);
            first && last && nested.count() == 1
        },
    )?;
    Ok(())
}
