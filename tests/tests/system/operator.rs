//! The operator, and how runs end.

use anyhow::Result;
use evidence::report::Report;
use platform::report::{Cause, VmState};
use tests::built_in::{machine, order, vm};
use tests::run::{boot, qemu};
use xtask::exit::Exit;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("qemu::killing_one_vm_leaves_the_other_running", kill),
    ("qemu::switching_guest_0_off_ends_the_run", off),
    ("qemu::a_run_that_takes_too_long_still_reports", timeout),
    ("qemu::an_expected_text_must_be_printed", expect),
];

fn closed_for(report: &Report, vm: &str, cause: Cause) -> bool {
    report.vm(vm).is_some_and(|vm| vm.teardowns.iter().any(|teardown| teardown.cause == cause))
}

fn kill() -> Result<()> {
    qemu(&["--at", "2:kill:rogue"])?
        .passed()?
        .printed("[victim] @done role=victim")?
        .holds("the rogue was killed", |outcome| {
            closed_for(&outcome.verdict.report, "rogue", Cause::Operator)
        })?;
    Ok(())
}

fn off() -> Result<()> {
    let mut request = machine(vec![vm("a", "spin", 1), vm("b", "spin", 1)], &[])?;
    order(&mut request, 3, "off a");
    boot(&request)?
        .printed("[b] @alive")?
        .holds("the run ended before its limit", |outcome| outcome.exit != Exit::TimedOut)?
        .holds("both are off", |outcome| {
            let vms = &outcome.verdict.report.vms;
            vms.len() == 2 && vms.iter().all(|vm| vm.state == VmState::Off)
        })?;
    Ok(())
}

fn timeout() -> Result<()> {
    boot(&machine(vec![vm("a", "spin", 1)], &["--timeout", "6"])?)?
        .ended_with(Exit::TimedOut)?
        .found("the time limit of 6 s has passed")?
        .holds("EL2 reported a running VM", |outcome| {
            outcome.verdict.report.vm("a").is_some_and(|vm| vm.state == VmState::Running)
        })?;
    Ok(())
}

fn expect() -> Result<()> {
    qemu(&["--expect", "@done role=victim"])?.passed()?;
    qemu(&["--expect", "something else"])?
        .ended_with(Exit::Fail)?
        .found("victim never printed \"something else\"")?;
    Ok(())
}
