//! The suites of the bare-metal guest image, each alone on the machine with an `edu`.

use std::time::Duration;

use anyhow::{Result, ensure};
use evidence::report::{Report, Stream};
use xtask::request::{Action, Request, When};
use xtask::size::MIB;
use xtask::vm::{Content, Cpus, Said, Vm};

use crate::run::{Run, boot, request};

/// The memory of a VM that runs a suite.
const MEMORY: u64 = 32 * MIB;

/// A VM that runs the built-in guest in any of its roles.
pub fn vm(name: &str, role: &str, cpus: u32) -> Vm {
    told(name, role, cpus, "")
}

/// Likewise, with what the role is told in its boot arguments.
pub fn told(name: &str, role: &str, cpus: u32, append: &str) -> Vm {
    let content = Content::BuiltIn { role: role.into(), append: append.into() };
    let name = platform::name::parse(name).expect("tests use valid names");
    let mut vm = Vm::new(Said::new(name, "the test"), content);
    vm.cpus = Said::new(Cpus::Count(cpus), "the test");
    vm.memory = Said::new(MEMORY, "the test");
    vm
}

/// A VM on CPU 0 whose device moves data so often, which it checks.
pub fn victim(rounds: u64) -> Vm {
    let mut victim = told("victim", "victim", 1, &format!("rounds={rounds}"));
    victim.cpus = Said::new(Cpus::These(vec![0]), "the test");
    victim
}

/// A run of these VMs with further options of `cargo xtask qemu`.
///
/// # Errors
///
/// Whatever is wrong with the options.
pub fn machine(vms: Vec<Vm>, options: &[&str]) -> Result<Request> {
    Ok(Request { vms, demonstration: false, ..request(options)? })
}

/// Orders the operator to do something a number of seconds after QEMU's start.
pub fn order(request: &mut Request, seconds: u64, command: &str) {
    let command = command.parse().expect("tests give orders that exist");
    request.actions.push(Action { when: When::After(Duration::from_secs(seconds)), command });
}

/// Runs one suite, and requires that it passed.
///
/// # Errors
///
/// What did not.
pub fn suite(role: &str, cpus: u32, options: &[&str]) -> Result<Run> {
    boot(&machine(vec![vm(role, role, cpus)], options)?)?.passed()
}

/// Lives of one VM after each other, `boots` in all, in each of which its kernel starts over once more.
///
/// # Errors
///
/// What did not pass.
pub fn reborn(boots: u32, options: &[&str]) -> Result<Run> {
    let vm = told("reborn", "reborn", 1, &format!("boots={boots}"));
    boot(&machine(vec![vm], options)?)?.passed()
}

/// Requires that a VM that was started `boots` times has left no more behind than one that was started a few times:
/// in EL2's memory and that of guests, in its streams, and in event queues.
///
/// # Errors
///
/// What it left.
pub fn leaves_nothing(few: &Run, many: &Run, boots: u32) -> Result<()> {
    let (before, after) = (&few.outcome.verdict.report, &many.outcome.verdict.report);
    let lives = after.vm("reborn").map(|vm| vm.boots);
    ensure!(lives == Some(boots), "{lives:?} boots");
    ensure!(before.sizes == after.sizes, "in use: {:?}, then {:?}", before.sizes, after.sizes);
    ensure!(after.dropped() == 0, "{} events were lost", after.dropped());
    let streams = |report: &Report| {
        let of = |stream: &Stream| (stream.sid, stream.vm.clone(), stream.state, stream.muted);
        report.streams.iter().map(of).collect::<Vec<_>>()
    };
    let (before, after) = (streams(before), streams(after));
    ensure!(before == after, "streams: {before:?}, then {after:?}");
    Ok(())
}
