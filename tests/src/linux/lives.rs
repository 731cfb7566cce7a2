//! Lives of a Linux guest: sequences that are run as a guest and on the bare machine alike.

use anyhow::{Context, Result, ensure};
use evidence::report::Stream;
use evidence::testimony::Other;
use platform::report::{Cause, StreamState};
use xtask::linux::GuestFile;
use xtask::request::Request;
use xtask::run::Outcome;
use xtask::setup::Flavor;
use xtask::vm::Content;
use xtask::{prepare, run};

use super::{Stage, machine, patch, uboot};
use crate::run::{Run, boot};

/// The options of a run as a guest.
pub const GUEST: &[&str] = &["--memory", "1G", "--timeout", "1500"];
/// The options of a run on the bare machine: without an ITS, since without firmware nobody tells the next kernel where it
/// and the redistributors have their tables, which go on being written.
pub const NATIVE: &[&str] = &["--native", "--its", "off", "--memory", "1G", "--timeout", "1500"];

/// What the SMMU's driver says of one that somebody has left on.
pub const FOUND_ENABLED: &str = "SMMU currently enabled! Resetting";

/// Every way to go on once, each with its disks right: kexec, crash, reboot.
///
/// # Errors
///
/// What keeps it from starting.
pub fn each_way(options: &[&str]) -> Result<Request> {
    machine(Flavor::Cloud6_1, Stage::Lives, "steps=kexec,crash,reboot crashkernel=256M", options)
}

/// Requires that [`each_way`] came to its end.
///
/// # Errors
///
/// What did not come.
pub fn came_each_way(run: Run) -> Result<Run> {
    let run = run.passed()?;
    came_in_turn(&run.outcome.console, &["kexec", "crash", "reboot"])?;
    Ok(run)
}

/// The second life's SMMU driver does nothing at shutdown; the third life has its disks all the same.
///
/// # Errors
///
/// What went wrong.
pub fn without_shutdown(options: &[&str]) -> Result<Run> {
    let mut request = machine(Flavor::Cloud6_1, Stage::Lives, "steps=kexec,kexec", options)?;
    let patched = patch::without_shutdown(Flavor::Cloud6_12, &request.setup)?;
    add_file(&mut request, patched);
    boot(&request)?
        .passed()?
        .printed("@check life=1 after=kexec release=6.12.")?
        .printed("@check life=2 after=kexec release=6.1.")
}

/// Two operating systems that know no SMMU have their disks: Linux tests them, then U-Boot reads what the host has
/// put there.
///
/// # Errors
///
/// What went wrong.
pub fn unaware(options: &[&str]) -> Result<Run> {
    let mut request = machine(Flavor::Cloud6_1, Stage::Lives, "steps=unaware,u-boot", options)?;
    let image = uboot::image(&request.setup)?;
    add_file(&mut request, image);
    let prepared = prepare::prepare(&request)?;
    let mut expected = Vec::new();
    for disk in &prepared.disks {
        let content = std::fs::read(&disk.image).context("reading a disk image")?;
        expected.push(uboot::checksum(&content));
    }
    let run = Run { outcome: run::run_prepared(&request, &prepared)? };
    let run = run.passed()?.printed("@check life=1 after=unaware release=6.12.")?;
    expected.iter().try_fold(run.printed("@iommu none")?, |run, text| run.printed(text))
}

/// A crash kernel that knows no SMMU finds the registers that say where the stream table is as they were before the
/// crash, the SMMU being on.
///
/// # Errors
///
/// What went wrong.
pub fn adopt(request: &Request) -> Result<Run> {
    boot(request)?.passed()?.holds("the registers survive the crash", |outcome| {
        let said = outcome.testimony.guest("linux");
        let value = |name: &str, when: &str| {
            let is = |other: &&Other, key: &str, value: &str| {
                other.fields.get(key).is_some_and(|found| found == value)
            };
            let mut others = said.iter().flat_map(|said| &said.others);
            let other = others.find(|o| is(o, "name", name) && is(o, "when", when))?;
            let digits = other.fields.get("value")?.strip_prefix("0x")?;
            u64::from_str_radix(digits, 16).ok()
        };
        let names = ["CR0", "CR0ACK", "STRTAB_BASE", "STRTAB_BASE_CFG"];
        names.iter().all(|name| {
            value(name, "before").is_some_and(|found| value(name, "after") == Some(found))
        }) && value("CR0", "after").is_some_and(|cr0| cr0 & 1 == 1)
    })
}

/// The run that [`adopt`] judges.
///
/// # Errors
///
/// What keeps it from starting.
pub fn adopting(options: &[&str]) -> Result<Request> {
    let append = "steps=adopt crashkernel=256M iomem=relaxed";
    machine(Flavor::Cloud6_12, Stage::Lives, append, options)
}

fn add_file(request: &mut Request, file: GuestFile) {
    if let Content::Linux { extra, .. } = &mut request.vms[0].content {
        extra.files.push(file);
    }
}

/// What ended the lives of a VM, in order.
pub fn causes(outcome: &Outcome, vm: &str) -> Vec<Cause> {
    let vm = outcome.verdict.report.vm(vm);
    vm.iter().flat_map(|vm| &vm.teardowns).map(|teardown| teardown.cause).collect()
}

/// Requires that a VM whose first kernel is [`Flavor::Cloud6_1`] had one life more than `steps`, in order: a kexec or a
/// crash starts the other kernel, a reboot the first one.
///
/// # Errors
///
/// The life that was another one.
pub fn came_in_turn(console: &[String], steps: &[&str]) -> Result<()> {
    const RELEASES: [&str; 2] = ["6.1.", "6.12."];
    let lives: Vec<&str> = console
        .iter()
        .filter_map(|line| line.split_once("@check life="))
        .map(|(_, life)| life)
        .collect();
    ensure!(lives.len() == 1 + steps.len(), "{} lives: {lives:?}", lives.len());
    let mut kernel = 0;
    for (number, (life, after)) in lives.iter().zip(["boot"].iter().chain(steps)).enumerate() {
        kernel = match *after {
            "boot" | "reboot" => 0,
            _ => 1 - kernel,
        };
        let wanted = format!("{number} after={after} release={}", RELEASES[kernel]);
        ensure!(life.starts_with(&wanted), "{life:?} instead of {wanted:?}");
    }
    Ok(())
}

/// Whether no event was lost, and each stream of a VM was nested whenever its driver ran.
pub fn undisturbed(outcome: &Outcome) -> bool {
    let report = &outcome.verdict.report;
    let undelivered: u64 = report.smmu.iter().map(|smmu| smmu.events.undelivered).sum();
    let mut streams = report.streams.iter().filter(|stream| stream.vm.is_some());
    let nested = |stream: &Stream| stream.history.iter().any(|e| e.state == StreamState::Nested);
    report.dropped() == 0 && undelivered == 0 && streams.all(nested)
}
