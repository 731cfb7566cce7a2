//! `cargo xtask ci`: every check that a change must pass, in the order in which they fail fastest.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use evidence::budget;

use crate::coverage;
use crate::exit::Exit;
use crate::fuzz;
use crate::image::{self, Package};
use crate::setup::{self, Missing, Target};
use crate::suite::{self, Scope, Tally};
use crate::tool;
use crate::unsafety;
use crate::workspace;

/// The most bytes of code in the hypervisor's image. Its budget is less; until it is reached this only falls.
const IMAGE_TEXT: u64 = 202 << 10;

/// Tests that an interpreter would take minutes for: modules, and one test of a module whose others run.
const MIRI_SKIPS: [&str; 5] =
    ["device::", "guest::", "stage2::tests::tables_mean_what", "bundle::", "dt::tests::"];
/// Tests of each of those modules for which it has the time after all.
const MIRI_SHORT: [&str; 7] = [
    "device::tests::a_closed_stream_is_shut_at_once_and_forgotten",
    "guest::tests::commands::identifiers_are_replaced",
    "guest::tests::registers::a_disable_is_acknowledged_after_the_close",
    "guest::tests::stream_table::an_entry_is_copied_once",
    "guest::tests::linux::it_probes",
    "bundle::tests::what_the_host_writes_el2_reads",
    "dt::tests::the_smallest_machine_is_found",
];

/// Runs every check, whatever the earlier ones say; counts tests and steps together.
///
/// # Errors
///
/// A missing prerequisite.
pub fn run(options: &setup::Options) -> Result<Tally> {
    let target = setup::ensure_rust_target(options)?;
    let mut steps = Steps::default();
    steps.command("fmt", cargo(&["fmt", "--all", "--check"]));
    steps.command(
        "clippy",
        cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    );
    steps.command("clippy for the target", clippy_for(&target));
    let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    steps.command("doc", doc);
    steps.step("unused dependencies", || machete(options));
    steps.step("unsafe code", unsafety::check);
    steps.step("sizes", || sizes(&target, options));
    let tests = suite::run(Scope::All, None, options)?;
    steps.step("line coverage of smmu", coverage::run);
    // Either has one thread.
    steps.beside("Miri", miri, |steps| steps.step("fuzzing", fuzz::briefly));
    steps.tally.add(tests);
    say!("");
    for (name, result, seconds) in &steps.results {
        say!("{result:7} {name} ({seconds} s)");
    }
    say!("{:7} tests: {tests}", if tests.failed == 0 { "ok" } else { "FAILED" });
    steps.finish()
}

#[derive(Default)]
struct Steps {
    tally: Tally,
    results: Vec<(&'static str, &'static str, u64)>,
    /// The first prerequisite that a step did not find.
    missing: Option<Error>,
}

impl Steps {
    fn command(&mut self, name: &'static str, mut command: Command) {
        self.step(name, || run_command(&mut command));
    }

    fn step(&mut self, name: &'static str, step: impl FnOnce() -> Result<bool>) {
        say!("\n== {name}");
        let started = Instant::now();
        let result = step();
        self.note(name, result, started.elapsed());
    }

    /// Takes a step while others are taken. What it says is shown when all are done.
    fn beside(
        &mut self,
        name: &'static str,
        step: impl FnOnce(&mut String) -> Result<bool> + Send,
        others: impl FnOnce(&mut Self),
    ) {
        std::thread::scope(|scope| {
            let started = Instant::now();
            let beside = scope.spawn(move || {
                let mut said = String::new();
                let result = step(&mut said);
                (said, result, started.elapsed())
            });
            others(self);
            say!("\n== {name}");
            match beside.join() {
                Ok((said, result, took)) => {
                    say!("{}", said.trim_end());
                    self.note(name, result, took);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        });
    }

    fn note(&mut self, name: &'static str, result: Result<bool>, took: Duration) {
        let result = match result {
            Ok(true) => "ok",
            Ok(false) => "FAILED",
            Err(error) => {
                note!("error: {error:#}");
                let missing = Exit::of(&error) == Exit::Missing;
                if missing {
                    self.missing.get_or_insert(error);
                }
                if missing { "MISSING" } else { "FAILED" }
            }
        };
        self.tally.passed += u64::from(result == "ok");
        self.tally.failed += u64::from(result == "FAILED");
        self.results.push((name, result, took.as_secs()));
    }

    /// What failed counts for more than what was missing.
    fn finish(self) -> Result<Tally> {
        match self.missing {
            Some(missing) if self.tally.failed == 0 => {
                say!("{}", self.tally);
                Err(missing)
            }
            _ => Ok(self.tally),
        }
    }
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = workspace::cargo();
    cargo.args(arguments);
    cargo
}

fn run_command(command: &mut Command) -> Result<bool> {
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("running {}", command.get_program().display()))?;
    Ok(status.success())
}

fn clippy_for(target: &Target) -> Command {
    let mut clippy = cargo(&["clippy", "--release"]);
    clippy.args(["--package", "hyp", "--package", "guest", "--package", "uio"]);
    target.apply(&mut clippy);
    clippy.args(["--", "-D", "warnings"]);
    clippy
}

/// Builds both images and holds the hypervisor's to its budget.
fn sizes(target: &Target, options: &setup::Options) -> Result<bool> {
    let hypervisor = image::build(Package::Hypervisor, target, options.quiet)?;
    let guest = image::build(Package::Guest, target, options.quiet)?;
    say!("guest       {:>9} bytes of code", guest.text);
    say!("hypervisor  {:>9} bytes of code, at most {IMAGE_TEXT}", hypervisor.text);
    say!("  of smmu   {:>9} bytes of code, at most {}", hypervisor.smmu_text, budget::SMMU_TEXT);
    say!("  in memory {:>9} bytes", hypervisor.memory);
    Ok(hypervisor.text <= IMAGE_TEXT && hypervisor.smmu_text <= budget::SMMU_TEXT)
}

/// Looks for dependencies that nothing uses.
fn machete(options: &setup::Options) -> Result<bool> {
    let machete = tool::subcommand("cargo-machete", options)?;
    // With CARGO in its environment it would take its first argument for the name of a cargo command.
    run_command(Command::new(machete).env_remove("CARGO").current_dir(workspace::root()))
}

/// Runs the tests of the crates that both sides trust most under an interpreter that knows undefined behaviour.
fn miri(said: &mut String) -> Result<bool> {
    let mut run = |mut command: Command| {
        let output = command.stdin(Stdio::null()).output().context("running Miri")?;
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        said.push_str(&lines);
        anyhow::Ok((output.status.success(), lines))
    };
    let nightly = |arguments: &[&str]| {
        let mut command = Command::new("rustup");
        command.args(arguments).current_dir(workspace::root());
        // What the stable cargo that runs us says of itself means nothing to the nightly one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_cargos(name)) {
            command.env_remove(name);
        }
        command
    };
    let there = nightly(&["run", "nightly", "rustc", "--version"]).stdin(Stdio::null()).output();
    if !there.is_ok_and(|output| output.status.success()) {
        return Err(Missing {
            what: "Miri, which is in Rust's nightly toolchain".into(),
            why: "rustup has no toolchain `nightly`".into(),
            how: "rustup toolchain install nightly --component miri,rust-src".into(),
        }
        .into());
    }
    if !run(nightly(&["run", "nightly", "cargo", "miri", "--version"]))?.0 {
        let add = ["component", "add", "--toolchain", "nightly", "miri", "rust-src"];
        if !run(nightly(&add))?.0 {
            return Ok(false);
        }
    }
    let tests = |arguments: &[&str]| {
        let mut miri = nightly(&["run", "nightly", "cargo", "miri", "test"]);
        miri.args(["--package", "smmu", "--package", "platform", "--lib", "--"]).args(arguments);
        // Property tests keep their regressions in files; a handful of cases is what an interpreter has time for.
        miri.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", "4");
        miri.env("CARGO_TARGET_DIR", workspace::target_folder().join("miri"));
        miri
    };
    // These run a whole SMMU, fill a whole address space, or read a whole device tree again and again: minutes each in
    // an interpreter, and safe code all the same. Some of each are short.
    let skips: Vec<&str> = MIRI_SKIPS.iter().flat_map(|long| ["--skip", long]).collect();
    if !run(tests(&skips))?.0 {
        return Ok(false);
    }
    let short: Vec<&str> = std::iter::once("--exact").chain(MIRI_SHORT).collect();
    let (succeeded, lines) = run(tests(&short))?;
    let passed = passed(&lines);
    if passed != MIRI_SHORT.len() {
        let all = MIRI_SHORT.len();
        said.push_str(&format!(
            "{passed} of {all} short tests passed: every name in MIRI_SHORT has to be a test's\n"
        ));
    }
    Ok(succeeded && passed == MIRI_SHORT.len())
}

/// How many tests passed, by what the test programs say.
fn passed(text: &str) -> usize {
    let results = text.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    results.filter_map(|rest| rest.split_once(" passed")?.0.parse::<usize>().ok()).sum()
}

fn is_cargos(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    name == "CARGO"
        || name == "RUSTUP_TOOLCHAIN"
        || (name.starts_with("CARGO_") && name != "CARGO_HOME")
        || name == "RUSTC"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_wholly_left_out_of_the_interpreter() {
        for module in MIRI_SKIPS.iter().filter(|skip| skip.ends_with("::")) {
            assert!(MIRI_SHORT.iter().any(|test| test.starts_with(module)), "{module}");
        }
        let text = "test result: ok. 2 passed; 0 failed\n\ntest result: ok. 5 passed; 0 failed\n";
        assert_eq!((passed(text), passed("test result: FAILED. 3 passed; 1 failed")), (7, 0));
    }

    #[test]
    fn what_runs_beside_others_counts_like_them() {
        let mut steps = Steps::default();
        let wrong = |said: &mut String| {
            said.push_str("no");
            Ok(false)
        };
        steps.beside("wrong", wrong, |steps| steps.step("fine", || Ok(true)));
        assert_eq!(steps.tally, Tally { passed: 1, failed: 1 });
        let names: Vec<&str> = steps.results.iter().map(|(name, ..)| *name).collect();
        assert_eq!(names, ["fine", "wrong"]);
    }

    #[test]
    fn what_is_missing_has_its_own_exit_code_unless_something_failed() {
        let missing = || Missing { what: "Miri".into(), why: "no".into(), how: "add it".into() };
        let mut steps = Steps::default();
        steps.step("fine", || Ok(true));
        steps.step("Miri", || Err(missing().into()));
        assert_eq!(steps.tally, Tally { passed: 1, failed: 0 });
        assert_eq!(Exit::of(&steps.finish().unwrap_err()), Exit::Missing);
        let mut steps = Steps::default();
        steps.step("Miri", || Err(missing().into()));
        steps.step("wrong", || Ok(false));
        assert_eq!(steps.finish().unwrap(), Tally { passed: 0, failed: 1 });
    }
}
