//! `cargo xtask soak`: what takes too long for every change. A soak that is interrupted goes on where it was.
//!
//! Results are kept in `tests/soak/NAME.json` with the commit that they are of, to be committed themselves. A result
//! counts again as long as the work tree is that commit, other soaks' results aside; whatever failed is run again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::exit::{Exit, bad_input};
use crate::fuzz::{self, Limit, Outcome, Programs};
use crate::mutants;
use crate::request::Request;
use crate::run;
use crate::scenario::Scenario;
use crate::setup;
use crate::suite::Tally;
use crate::workspace;

/// A soak: its name, and its cases.
type Soak = (&'static str, fn() -> Vec<Case>);

/// Every soak.
const SOAKS: &[Soak] = &[
    ("linux", linux),
    ("deaths", deaths),
    ("cost", || tests("cost")),
    ("kernels", || tests("kernels")),
    ("kexec", || tests("kexec")),
    ("restarts", || tests("restarts")),
    ("load", || tests("load")),
    ("native", || tests("native")),
    ("fuzz", fuzz),
];
/// The one soak whose cases are not known before.
const MUTANTS: &str = "mutants";

/// One case of a soak.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Case {
    /// A command line of `cargo xtask qemu`, which has to pass.
    Qemu(String),
    /// A test of `tests/tests/soak.rs`.
    Test(&'static str),
    /// A fuzz target, with which nothing must be found.
    Fuzz(String),
}

impl Case {
    /// What its result is kept under.
    fn name(&self) -> &str {
        match self {
            Self::Qemu(line) => line,
            Self::Test(name) => name,
            Self::Fuzz(target) => target,
        }
    }
}

/// The cases that are more than a command line: the names of tests in `tests/tests/soak.rs`, which start with their
/// soak's.
const TESTS: &[&str] = &[
    "cost::of_a_close",
    "kernels::cloud_6_1",
    "kernels::cloud_6_12",
    "kernels::standard_6_1",
    "kernels::standard_6_12",
    "kexec::20_kexecs",
    "kexec::10_crashes",
    "kexec::10_reboots",
    "kexec::crash_policies",
    "kexec::without_shutdown",
    "native::kexec_crash_and_reboot",
    "native::kexec_without_shutdown",
    "native::unaware_and_u_boot",
    "native::adopting_crash_kernel",
    "restarts::1000_of_one_vm",
    "restarts::where_single_registers_trap",
    "load::100_rounds_of_hotplug",
    "load::10_minutes_on_two_vms",
];

fn tests(soak: &str) -> Vec<Case> {
    let own = TESTS.iter().filter(|test| test.split_once("::").is_some_and(|(of, _)| of == soak));
    own.map(|test| Case::Test(test)).collect()
}

/// Seconds until a case that hangs is given up.
const TIMEOUT: &str = "900";
/// How the result of a case that passed starts.
const PASSED: &str = "pass";
/// What each fuzz target gets: 10 million executions, or half an hour.
const FUZZ: Limit = Limit { seconds: 1800, runs: Some(10_000_000) };

/// The Linux guest on every CPU model, with 1, 2 and 4 CPUs, with 512 MiB and 2 GiB.
fn linux() -> Vec<Case> {
    const MODELS: [&str; 7] = [
        "cortex-a57",
        "cortex-a72",
        "cortex-a76",
        "neoverse-n1",
        "neoverse-v1",
        "neoverse-n2",
        "max",
    ];
    let mut cases = Vec::new();
    for model in MODELS {
        for cpus in [1, 2, 4] {
            for memory in ["512M", "2G"] {
                let line = format!("--linux --cpu {model} --smp {cpus} --memory {memory}");
                cases.push(Case::Qemu(line));
            }
        }
    }
    cases
}

/// Every fuzz target; none if they cannot be listed, which a test would notice.
fn fuzz() -> Vec<Case> {
    fuzz::targets().unwrap_or_default().into_iter().map(Case::Fuzz).collect()
}

/// Every live device with every way in which its kernel can go.
fn deaths() -> Vec<Case> {
    Scenario::matrix().map(|scenario| Case::Qemu(format!("--scenario {}", scenario.name))).collect()
}

/// What became of a soak's cases so far.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Results {
    /// The commit, with `-dirty` after it if the work tree was not exactly that.
    commit: String,
    /// By case: `pass` and what there is to say of it, or why not.
    cases: BTreeMap<String, String>,
}

/// Runs the soak called `name`, or all of them.
///
/// # Errors
///
/// If there is none of that name, or results cannot be kept.
pub fn run(name: Option<&str>, options: &setup::Options) -> Result<Tally> {
    let chosen: Vec<&Soak> =
        SOAKS.iter().filter(|(soak, _)| name.is_none_or(|name| name == *soak)).collect();
    let with_mutants = name.is_none_or(|name| name == MUTANTS);
    if chosen.is_empty() && !with_mutants {
        let known: Vec<&str> = SOAKS.iter().map(|(name, _)| *name).chain([MUTANTS]).collect();
        return Err(bad_input(format!(
            "there is no soak named `{}`: there is {}",
            name.unwrap_or_default(),
            known.join(", ")
        )));
    }
    let mut tally = Tally::default();
    for (name, cases) in chosen {
        tally.add(soak(name, &cases(), options)?);
    }
    if with_mutants {
        tally.add(mutants::run(options)?);
    }
    Ok(tally)
}

fn soak(name: &str, cases: &[Case], options: &setup::Options) -> Result<Tally> {
    let folder = workspace::root().join("tests/soak");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let path = folder.join(format!("{name}.json"));
    let commit = commit()?;
    let mut results = read(&path).filter(|results| results.commit == commit).unwrap_or_default();
    results.commit = commit;
    let (next, progress) = (AtomicUsize::new(0), Mutex::new((results, Tally::default())));
    let work = || -> Result<()> {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            one(name, case, cases.len(), &path, &progress, options)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once(cases)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let (_, tally) = progress.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(tally)
}

/// How many cases run at a time: fuzzers have a processor each, everything else has the machine to itself.
fn at_once(cases: &[Case]) -> usize {
    if cases.iter().all(|case| matches!(case, Case::Fuzz(_))) {
        thread::available_parallelism().map_or(1, Into::into)
    } else {
        1
    }
}

/// Runs one of `of` cases, unless it is known to pass, says what came of it, and keeps that.
fn one(
    name: &str,
    case: &Case,
    of: usize,
    path: &PathBuf,
    progress: &Mutex<(Results, Tally)>,
    options: &setup::Options,
) -> Result<()> {
    let progress = || progress.lock().unwrap_or_else(PoisonError::into_inner);
    let known = progress().0.cases.get(case.name()).filter(|it| it.starts_with(PASSED)).cloned();
    let started = Instant::now();
    let result = known.clone().unwrap_or_else(|| try_case(case, options));
    let took = known
        .as_ref()
        .map_or_else(|| format!("{} s", started.elapsed().as_secs()), |_| "known".into());
    let passed = result.starts_with(PASSED);
    let mut progress = progress();
    let (results, tally) = &mut *progress;
    tally.add(Tally { passed: passed.into(), failed: (!passed).into() });
    let done = tally.passed + tally.failed;
    say!("{name} {done}/{of}  {}  {result} ({took})", case.name());
    if known.is_none() {
        results.cases.insert(case.name().to_owned(), result);
        write(path, results)?;
    }
    Ok(())
}

/// Runs one case; says `pass`, or why not.
fn try_case(case: &Case, options: &setup::Options) -> String {
    match case {
        Case::Qemu(line) => try_line(line, options),
        Case::Test(name) => try_test(name).unwrap_or_else(|error| format!("{error:#}")),
        Case::Fuzz(target) => try_target(target).unwrap_or_else(|error| format!("{error:#}")),
    }
}

/// Runs one test; what it says when it fails is shown, and the first line of that kept.
fn try_test(name: &str) -> Result<String> {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--quiet", "--package", "tests", "--test", "soak", "--", "--exact", name]);
    let output = cargo.stdin(Stdio::null()).output().context("running cargo test")?;
    if output.status.success() {
        return Ok(PASSED.into());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    say!("{said}{}", String::from_utf8_lossy(&output.stderr));
    let why = said.lines().skip_while(|line| *line != format!("---- {name} ----")).nth(1);
    Ok(why.unwrap_or("it does not build or broke off").to_owned())
}

fn try_target(target: &str) -> Result<String> {
    let outcome = Programs::build(&[target.to_owned()])?.fuzz(target, FUZZ)?;
    Ok(match outcome {
        Outcome::Clean(_) => format!("{PASSED}: {outcome}"),
        Outcome::Finding(what) => {
            say!("{target}: a finding:\n{what}");
            format!("a finding: {}", gist(&what))
        }
    })
}

/// What a target said when it broke off, in one line and without a place on this machine.
fn gist(finding: &str) -> String {
    let Some((_, said)) = finding.split_once("panicked at ") else {
        return finding.lines().next().unwrap_or_default().to_owned();
    };
    let said: Vec<&str> = said.lines().take_while(|line| !line.starts_with("note: ")).collect();
    said.join(" ")
}

fn try_line(case: &str, options: &setup::Options) -> String {
    let outcome = (|| {
        let line: Vec<&str> = ["--timeout", TIMEOUT].into_iter().chain(case.split(' ')).collect();
        let mut request = Request::quiet(&line)?;
        request.setup = setup::Options { quiet: true, ..options.clone() };
        run::run(&request)
    })();
    match outcome {
        Ok(outcome) if outcome.exit == Exit::Pass => PASSED.into(),
        Ok(outcome) => outcome.verdict.reason,
        Err(error) => format!("{error:#}"),
    }
}

/// The commit of the work tree; with `-dirty` if anything but soaks' results differs from it.
fn commit() -> Result<String> {
    let git = |arguments: &[&str]| -> Result<String> {
        let mut git = Command::new("git");
        let output =
            git.args(arguments).current_dir(workspace::root()).stdin(Stdio::null()).output();
        let output = output.context("running git, which says what the results are of")?;
        if !output.status.success() {
            bail!(
                "git {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = git(&["rev-parse", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--", ".", ":!tests/soak"])?;
    Ok(if changes.is_empty() { head } else { format!("{head}-dirty") })
}

/// Reads earlier results; what cannot be read counts for nothing.
fn read(path: &Path) -> Option<Results> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

fn write(path: &PathBuf, results: &Results) -> Result<()> {
    let text = serde_json::to_string_pretty(results)? + "\n";
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linux_matrix_is_complete() {
        let cases = linux();
        assert_eq!(cases.len(), 7 * 3 * 2);
        let line = "--linux --cpu neoverse-n2 --smp 4 --memory 2G".to_owned();
        assert!(cases.contains(&Case::Qemu(line)));
    }

    #[test]
    fn every_device_dies_every_death() {
        let cases = deaths();
        assert_eq!(cases.len(), 6 * 8);
        assert!(cases.contains(&Case::Qemu("--scenario virtio-blk-kexec".to_owned())));
    }

    #[test]
    fn every_case_is_a_command_line_that_is_accepted() {
        for (_, cases) in SOAKS {
            assert!(!cases().is_empty());
            for case in cases() {
                let Case::Qemu(case) = case else { continue };
                Request::quiet(&case.split(' ').collect::<Vec<_>>()).unwrap();
            }
        }
    }

    #[test]
    fn every_test_belongs_to_a_soak() {
        let all: Vec<Case> = SOAKS
            .iter()
            .filter(|(name, _)| *name != "fuzz")
            .flat_map(|(_, cases)| cases())
            .collect();
        assert!(TESTS.iter().all(|test| all.contains(&Case::Test(test))));
    }

    #[test]
    fn a_finding_is_kept_in_one_line() {
        let finding = "NEW_FUNC[1/3]: 0x55\n\nthread '<unnamed>' (25013) panicked at tests/fuzz/a.rs:68:9:\n\
            Interrupt { intid: 46 }\nnote: run with `RUST_BACKTRACE=1`\nto see it again: /x/y";
        assert_eq!(gist(finding), "tests/fuzz/a.rs:68:9: Interrupt { intid: 46 }");
        assert_eq!(gist("it hung\nfor long"), "it hung");
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let mut results = Results { commit: "abc".into(), ..Results::default() };
        results.cases.insert("--linux".into(), PASSED.into());
        write(&path, &results).unwrap();
        let again = read(&path).unwrap();
        assert_eq!((again.commit, again.cases), (results.commit, results.cases));
        std::fs::write(&path, "{").unwrap();
        assert!(read(&path).is_none());
    }
}
