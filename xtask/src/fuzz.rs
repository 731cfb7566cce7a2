//! `cargo xtask fuzz`: libFuzzer on the targets of `tests/fuzz`.
//!
//! Plain cargo builds them, with the flags that put LLVM's coverage counters in. There is no address sanitizer: what is
//! fuzzed has no `unsafe`. What the fuzzer learns stays in the target folder; only `tests/fuzz/corpus` is committed.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};

use crate::exit::{Exit, bad_input};
use crate::setup::Program;
use crate::workspace;

/// LLVM's coverage counters, as libFuzzer reads them, and the `cfg` that brings libFuzzer in.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Seconds that one input may take.
const INPUT_TIMEOUT: u32 = 20;
/// The longest input in bytes: a device tree with some damage.
const LONGEST: u32 = 12_288;

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// After so many seconds.
    pub seconds: u64,
    /// After so many executions.
    pub runs: Option<u64>,
}

/// What a change has time for: each target alike, and never long on a slow machine.
const SHORT: Limit = Limit { seconds: 4, runs: Some(5_000) };

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No finding in so many executions.
    Clean(u64),
    /// An input that breaks a property, and how to see it again.
    Finding(String),
}

impl Outcome {
    /// The exit code that it means.
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Clean(_) => Exit::Pass,
            Self::Finding(_) => Exit::Fail,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean(runs) => write!(f, "no finding in {runs} executions"),
            Self::Finding(what) => write!(f, "a finding:\n{what}"),
        }
    }
}

/// The names of all targets: each is a program in `tests/fuzz/targets`.
///
/// # Errors
///
/// If the folder cannot be read.
pub fn targets() -> Result<Vec<String>> {
    let folder = workspace::root().join("tests/fuzz/targets");
    let entries = folder.read_dir().with_context(|| format!("reading {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Programs that are built.
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Builds the programs of `targets`.
    ///
    /// # Errors
    ///
    /// A target that there is none of, no C++ compiler, or a failed build.
    pub fn build(targets: &[String]) -> Result<Self> {
        let known = self::targets()?;
        if let Some(unknown) = targets.iter().find(|target| !known.contains(target)) {
            return Err(bad_input(format!(
                "there is no fuzz target named `{unknown}`: use one of {}",
                known.join(", ")
            )));
        }
        // libFuzzer itself is C++, and built like everything else.
        Program::Cpp.need()?;
        let host = host()?;
        let mut cargo = workspace::cargo();
        // With a target named, build scripts and macros are built without the flags.
        cargo.args(["build", "--package", "fuzz", "--profile", "fuzz", "--target", &host]);
        for target in targets {
            cargo.args(["--bin", target]);
        }
        cargo.env("RUSTFLAGS", FLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
        let status = cargo.stdin(Stdio::null()).status().context("running cargo")?;
        if !status.success() {
            return Err(anyhow!("the fuzz targets do not build: see cargo's messages above"));
        }
        Ok(Self { folder: workspace::target_folder().join(host).join("fuzz") })
    }

    /// Fuzzes one target, from what is committed and what earlier runs learned.
    ///
    /// # Errors
    ///
    /// If the program does not start, or ends without saying how it was.
    pub fn fuzz(&self, target: &str, limit: Limit) -> Result<Outcome> {
        let learned = workspace::target_folder().join("fuzz-learned").join(target);
        let findings = workspace::target_folder().join("fuzz-findings").join(target);
        for folder in [&learned, &findings] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("making {}", folder.display()))?;
        }
        let program = self.folder.join(target);
        let mut fuzzer = Command::new(&program);
        fuzzer.args([
            format!("-max_total_time={}", limit.seconds),
            format!("-timeout={INPUT_TIMEOUT}"),
            format!("-max_len={LONGEST}"),
            // Sequences of steps have to be long before they are interesting.
            "-len_control=20".into(),
            "-print_final_stats=1".into(),
            "-rss_limit_mb=2048".into(),
        ]);
        // -1 is no limit.
        fuzzer.arg(format!("-runs={}", limit.runs.map_or("-1".into(), |runs| runs.to_string())));
        let mut prefix = OsString::from("-artifact_prefix=");
        prefix.push(findings.join(""));
        fuzzer.arg(prefix).arg(&learned).args(seeds(target)).env("RUST_BACKTRACE", "0");
        let run = fuzzer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = run.output().with_context(|| format!("running {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            let runs = statistic(&said, "number_of_executed_units").ok_or_else(|| {
                anyhow!("the fuzzer of {target} does not say how much it tried:\n{}", tail(&said))
            })?;
            return Ok(Outcome::Clean(runs));
        }
        let Some(file) = said.lines().find_map(|line| line.split_once("Test unit written to "))
        else {
            return Err(anyhow!("the fuzzer of {target} broke off:\n{}", tail(&said)));
        };
        Ok(Outcome::Finding(format!(
            "{}\nto see it again: {} {}",
            tail(&said),
            program.display(),
            file.1
        )))
    }
}

/// Fuzzes every target for a short time. Returns whether nothing was found.
///
/// # Errors
///
/// See [`Programs::build`] and [`Programs::fuzz`].
pub fn briefly() -> Result<bool> {
    let targets = targets()?;
    let programs = Programs::build(&targets)?;
    let mut clean = true;
    for target in &targets {
        let outcome = programs.fuzz(target, SHORT)?;
        say!("{target}: {outcome}");
        clean &= outcome.exit() == Exit::Pass;
    }
    Ok(clean)
}

/// Folders with inputs to start from.
fn seeds(target: &str) -> Vec<PathBuf> {
    let mut seeds = vec![workspace::root().join("tests/fuzz/corpus").join(target)];
    if target == "device-tree" {
        seeds.push(workspace::root().join("tests/dtb"));
    }
    seeds
}

/// Where the words of one of libFuzzer's own lines stop being of interest, and an input's bytes begin.
const NOISE: [&str; 6] = ["stat::", "MS: ", "artifact_prefix=", "Base64: ", "0x", "INFO: "];

/// The last lines that say something.
fn tail(said: &str) -> String {
    let telling =
        |line: &&str| !line.starts_with('#') && !NOISE.iter().any(|noise| line.starts_with(noise));
    let lines: Vec<&str> = said.lines().filter(telling).collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Reads one of libFuzzer's final statistics: `stat::NAME: 1234`.
fn statistic(said: &str, name: &str) -> Option<u64> {
    let line = said.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name))?;
    line.trim_start_matches(':').trim().parse().ok()
}

/// What this machine is called where targets are named.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut rustc = Command::new(rustc);
    let output = rustc.arg("-vV").current_dir(workspace::root()).stdin(Stdio::null()).output();
    let output = output.context("running rustc")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| anyhow!("rustc -vV does not say what this machine is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "#20000\tDONE   cov: 341 ft: 900 corp: 87/1024b exec/s: 0 rss: 40Mb\n\
        Done 20000 runs in 1 second(s)\n\
        stat::number_of_executed_units: 20000\n\
        stat::average_exec_per_sec:     0\n";

    #[test]
    fn statistics_are_read() {
        assert_eq!(statistic(SAID, "number_of_executed_units"), Some(20_000));
        assert_eq!(statistic(SAID, "peak_rss_mb"), None);
        assert_eq!(tail(SAID), "Done 20000 runs in 1 second(s)");
    }

    #[test]
    fn an_unknown_target_is_refused_with_those_there_are() {
        let error = Programs::build(&["psci".into(), "nothing".into()]).err().unwrap();
        assert_eq!(Exit::of(&error), Exit::BadInput);
        let message = error.to_string();
        assert!(message.starts_with("there is no fuzz target named `nothing`: use one of "));
        assert!(message.contains("device-tree") && message.contains("psci"));
    }
}
