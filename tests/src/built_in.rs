//! The suites of the bare-metal guest image, each alone on the machine with an `edu`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use evidence::report::{Report, Stream};
use platform::bundle::OnCrashKexec;
use platform::operator::Command;
use platform::report::Cause;
use xtask::request::{Action, Request, When};
use xtask::run::Outcome;
use xtask::size::MIB;
use xtask::vm::{Cpus, Said, VICTIM, Vm};

use crate::run::{Run, boot, request};

/// The memory of a VM that runs a suite.
const MEMORY: u64 = 32 * MIB;

/// A VM that runs the built-in guest in any of its roles.
pub fn vm(name: &str, role: &str, cpus: u32) -> Vm {
    told(name, role, cpus, "")
}

/// Likewise, with what the role is told in its boot arguments.
pub fn told(name: &str, role: &str, cpus: u32, append: &str) -> Vm {
    let name = platform::name::parse(name).expect("tests use valid names");
    let mut vm = Vm::built_in(name, role, append, MEMORY, "the test");
    vm.cpus = Said::new(Cpus::Count(cpus), "the test");
    vm
}

/// A VM on CPU 0 whose device moves data so often, which it checks.
pub fn victim(rounds: u64) -> Vm {
    let mut victim = told(VICTIM, VICTIM, 1, &format!("rounds={rounds}"));
    victim.cpus = Said::new(Cpus::These(vec![0]), "the test");
    victim
}

/// Requires that the [`victim`] of `rounds` rounds came to EL2 as often as it does alone, was never refused anything, and
/// was closed at its end only.
///
/// # Errors
///
/// What somebody did to it.
pub fn undisturbed(run: Run, rounds: u64) -> Result<Run> {
    let (alone, beside) = (alone()?, quiet_exits(&run.outcome, rounds));
    ensure!(beside == alone, "a victim comes to EL2 for {alone:?} alone, for {beside:?} now");
    run.holds(
        "the victim's stream was never refused anything, nor closed but at its end",
        |outcome| {
            let streams = &outcome.verdict.report.streams;
            let mut theirs = streams.iter().filter(|stream| stream.vm.as_deref() == Some(VICTIM));
            theirs.next().is_some_and(|stream| {
                stream.faults.is_empty() && !stream.muted && stream.transitions <= 4
            })
        },
    )
}

/// How often a victim comes to EL2 that is alone; found out once.
fn alone() -> Result<BTreeMap<String, u64>> {
    const ROUNDS: u64 = 10;
    static ALONE: Mutex<Option<BTreeMap<String, u64>>> = Mutex::new(None);
    let mut alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(alone) = &*alone {
        return Ok(alone.clone());
    }
    let run = boot(&machine(vec![victim(ROUNDS)], &[])?)?.passed()?;
    Ok(alone.insert(quiet_exits(&run.outcome, ROUNDS)).clone())
}

/// The victim's exits, but for those of its testimony, whose length follows from its rounds, and one interrupt each.
fn quiet_exits(outcome: &Outcome, rounds: u64) -> BTreeMap<String, u64> {
    let vm = outcome.verdict.report.vm(VICTIM);
    let mut exits = vm.map(|vm| vm.exits.by_reason.clone()).unwrap_or_default();
    exits.remove("uart");
    let interrupts = exits.remove("interrupt").unwrap_or_default();
    exits.insert("interrupt".into(), interrupts.saturating_sub(rounds));
    exits
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
    let origin = format!("the order to {command}");
    let command = command.parse().expect("tests give orders that exist");
    let when = When::After(Duration::from_secs(seconds));
    request.actions.push(Action { when, command, origin });
}

/// Runs one suite, and requires that it passed.
///
/// # Errors
///
/// What did not.
pub fn suite(role: &str, cpus: u32, options: &[&str]) -> Result<Run> {
    boot(&machine(vec![vm(role, role, cpus)], options)?)?.passed()
}

/// Lives of one VM after each other, `boots` in all, in each of which kernels take over from each other in
/// [`TAKE_OVERS`] ways. The operator ends the last but one. The VM has an NVMe controller as well, which has a 64-bit BAR.
///
/// # Errors
///
/// What did not pass.
pub fn reborn(boots: u32, on_crash: OnCrashKexec, options: &[&str]) -> Result<Run> {
    let mut vm = told("reborn", "reborn", 1, &format!("boots={boots}"));
    vm.smmu.on_crash_kexec = on_crash;
    let name = vm.name.value.clone();
    let nvme = ["--device", "nvme,serial=portcullis"];
    let mut machine = machine(vec![vm], &[&nvme[..], options].concat())?;
    let when = When::Said { vm: name.clone(), text: "@waits".into() };
    let (command, origin) = (Command::Restart(name), "the test".into());
    machine.actions.push(Action { when, command, origin });
    boot(&machine)?.passed()?.holds("each way to go was noticed as what it is", |outcome| {
        let vm = outcome.verdict.report.vm("reborn");
        let causes: Vec<Cause> =
            vm.iter().flat_map(|vm| &vm.teardowns).map(|teardown| teardown.cause).collect();
        let taken_over = [Cause::MmuOff, Cause::SmmuDisable, Cause::MmuOff, Cause::CrashKexec];
        let last = [&[Cause::Operator], &taken_over[..], &[Cause::SystemOff]].concat();
        causes.ends_with(&last)
    })
}

/// In how many ways kernels of [`reborn`] take over from each other: from one that does not use its SMMU, one that
/// switches it off, and one that crashes.
pub const TAKE_OVERS: usize = 3;

/// Requires that each of the `boots` boots of [`reborn`], and each kernel that took over in between, found what the first
/// one found: in timers, interrupt controller, SMMU and, at a boot, in configuration space. Exception: `GBPA` aborts after
/// every end.
///
/// # Errors
///
/// What was different.
pub fn finds_the_same(run: &Run, boots: u32) -> Result<()> {
    let boots = boots as usize;
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in &run.outcome.console {
        let Some(finds) = line.split("@finds what=").nth(1) else { continue };
        let (what, digest) = finds.split_once(" digest=").context("a line without digest")?;
        found.entry(what).or_default().push(digest.trim());
    }
    ensure!(found.len() >= 6, "only {:?} were looked at", found.keys());
    for (what, digests) in found {
        let kernels = if what.starts_with("pci") { boots } else { (1 + TAKE_OVERS) * boots };
        ensure!(digests.len() == kernels, "{what} was seen {} times", digests.len());
        let (cold, later) = (digests[0], &digests[1..]);
        let wanted = if what == "gbpa" { "0x0000000000100000" } else { cold };
        ensure!(
            later.iter().all(|digest| *digest == wanted),
            "{what}: cold {cold}, then {later:?}"
        );
    }
    Ok(())
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
