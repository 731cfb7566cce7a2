//! `cargo xtask soak mutants`: whether the tests notice when the `smmu` crate is changed.
//!
//! cargo-mutants changes one expression or function at a time, in a copy of the last commit, and runs the crate's own
//! tests; what survives them is tried against the model's as well. Files of the crate are the shards: each that is done
//! is kept in `tests/soak/mutants.json` with the version of the crate that it is of, and does not run again for that
//! version. A survivor that changes nothing that matters is explained in `tests/soak/survivors.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::exit::bad_input;
use crate::setup;
use crate::suite::Tally;
use crate::tool;
use crate::workspace;

/// Hundredths of the viable mutants that have to be caught.
const LEAST: usize = 90;
/// Seconds until tests that hang are given up; that counts as caught.
const TIMEOUT: &str = "120";
/// How often properties are tried.
const CASES: &str = "24";
const RESULTS: &str = "tests/soak/mutants.json";
const EXPLANATIONS: &str = "tests/soak/survivors.md";

/// What became of all files so far.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Results {
    /// Of all files together, in words.
    summary: String,
    /// By file.
    files: BTreeMap<String, File>,
}

/// What became of one file's mutants.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
struct File {
    /// Git's name for the crate's tree and the model's that the result is of.
    version: String,
    /// Mutants that compile.
    viable: usize,
    /// Mutants that a test noticed.
    caught: usize,
    /// What no test noticed, without the place in the file.
    survivors: Vec<String>,
}

/// Runs what is missing.
///
/// # Errors
///
/// Uncommitted changes in the crate or its model, a missing tool, or one that fails.
pub fn run(options: &setup::Options) -> Result<Tally> {
    if !git(&["status", "--porcelain", "--", "smmu", "tests/model"])?.is_empty() {
        return Err(bad_input("smmu or tests/model has uncommitted changes: commit them first"));
    }
    let program = tool::subcommand("cargo-mutants", options)?;
    let version = format!(
        "{} {}",
        git(&["rev-parse", "--short=12", "HEAD:smmu"])?,
        git(&["rev-parse", "--short=12", "HEAD:tests/model"])?
    );
    let folder = workspace::target_folder().join("mutants");
    let tree = copy(&folder)?;
    let path = workspace::root().join(RESULTS);
    let mut results: Results = std::fs::read_to_string(&path)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let mutants = Mutants { program, tree, output: folder.join("output") };
    let explained =
        std::fs::read_to_string(workspace::root().join(EXPLANATIONS)).unwrap_or_default();
    let mut tally = Tally::default();
    for file in mutants.files()? {
        if results.files.get(&file).is_none_or(|known| known.version != version) {
            let found = File { version: version.clone(), ..mutants.test(&file)? };
            results.files.insert(file.clone(), found);
            results.summary = summary(&results.files);
            let text = serde_json::to_string_pretty(&results)? + "\n";
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        let known = &results.files[&file];
        let unexplained: Vec<&String> =
            known.survivors.iter().filter(|survivor| !explained.contains(*survivor)).collect();
        println!("{file}: {} of {} caught", known.caught, known.viable);
        for survivor in &unexplained {
            println!("    not explained in {EXPLANATIONS}: {survivor}");
        }
        let passed = unexplained.is_empty();
        tally.add(Tally { passed: passed.into(), failed: (!passed).into() });
    }
    println!("{}", results.summary);
    let enough = is_enough(&results.files);
    tally.add(Tally { passed: enough.into(), failed: (!enough).into() });
    Ok(tally)
}

fn totals(files: &BTreeMap<String, File>) -> (usize, usize) {
    files
        .values()
        .fold((0, 0), |(viable, caught), file| (viable + file.viable, caught + file.caught))
}

fn is_enough(files: &BTreeMap<String, File>) -> bool {
    let (viable, caught) = totals(files);
    caught * 100 >= viable * LEAST
}

fn summary(files: &BTreeMap<String, File>) -> String {
    let (viable, caught) = totals(files);
    let tenths = caught * 1000 / viable.max(1);
    format!("{caught} of {viable} viable mutants caught, {}.{} %", tenths / 10, tenths % 10)
}

/// The tool, and the copy that it changes.
struct Mutants {
    program: PathBuf,
    tree: PathBuf,
    output: PathBuf,
}

impl Mutants {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut mutants = Command::new(&self.program);
        mutants.args(["mutants", "--package", "smmu", "--in-place"]).args(arguments);
        mutants.current_dir(&self.tree).stdin(Stdio::null());
        mutants.env("CARGO_TARGET_DIR", self.tree.with_file_name("target"));
        mutants.env("CARGO_PROFILE_DEV_DEBUG", "0");
        mutants.env("PROPTEST_CASES", CASES).env("PROPTEST_MAX_SHRINK_ITERS", "0");
        mutants
    }

    /// The crate's files that have any.
    fn files(&self) -> Result<Vec<String>> {
        let output = self.command(&["--list"]).output().context("running cargo-mutants")?;
        if !output.status.success() {
            bail!("cargo-mutants: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let list = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut files: Vec<String> =
            list.lines().filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect();
        files.dedup();
        Ok(files)
    }

    /// Tests one file's.
    fn test(&self, file: &str) -> Result<File> {
        if self.output.exists() {
            std::fs::remove_dir_all(&self.output)
                .with_context(|| format!("removing {}", self.output.display()))?;
        }
        std::fs::create_dir_all(&self.output)
            .with_context(|| format!("making {}", self.output.display()))?;
        let tests: [&[&str]; 2] = [
            &["--cargo-test-arg=--lib"],
            // Only what has survived so far.
            &["--iterate", "--test-package", "model", "--cargo-test-arg=--lib"],
        ];
        let mut found = File::default();
        for (round, arguments) in tests.into_iter().enumerate() {
            let mut mutants =
                self.command(&["--baseline", "skip", "--timeout", TIMEOUT, "--no-shuffle"]);
            mutants.args(["--file", file, "--output"]).arg(&self.output).args(arguments);
            let status = mutants.status().context("running cargo-mutants")?;
            // 2: some survive; 3: some tests hung.
            if !matches!(status.code(), Some(0 | 2 | 3)) {
                bail!("cargo-mutants on {file}: {status}");
            }
            let count = |name: &str| self.list(name).len();
            found.survivors = self.list("missed");
            if round == 0 {
                let caught = count("caught") + count("timeout");
                found.viable = caught + found.survivors.len();
            }
            if found.survivors.is_empty() {
                break;
            }
        }
        found.caught = found.viable - found.survivors.len();
        Ok(found)
    }

    /// What the tool put on one of its lists, without the places.
    fn list(&self, name: &str) -> Vec<String> {
        let path = self.output.join("mutants.out").join(format!("{name}.txt"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(without_place).collect()
    }
}

/// `smmu/src/queue.rs:29:57: replace > with == in poll` without the numbers, which change too often.
fn without_place(line: &str) -> String {
    let mut parts = line.splitn(4, ':');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(file), Some(_), Some(_), Some(what)) => format!("{file}:{what}"),
        _ => line.to_owned(),
    }
}

/// Puts the last commit where it may be changed, and returns the folder. What was built there stays.
fn copy(folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("tree");
    if tree.exists() {
        std::fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let to = tree.to_string_lossy();
    git(&["clone", "--quiet", "--shared", ".", &to])?;
    Ok(tree)
}

fn git(arguments: &[&str]) -> Result<String> {
    let mut git = Command::new("git");
    let output = git.args(arguments).current_dir(workspace::root()).stdin(Stdio::null()).output();
    let output = output.context("running git")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("git {}: {why}", arguments.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_survivor_keeps_its_name_when_lines_move() {
        let line = "smmu/src/queue.rs:29:57: replace > with == in poll";
        assert_eq!(without_place(line), "smmu/src/queue.rs: replace > with == in poll");
        let line = "smmu/src/a.rs:1:2: replace A::b -> C with D::e()";
        assert_eq!(without_place(line), "smmu/src/a.rs: replace A::b -> C with D::e()");
    }

    #[test]
    fn nine_in_ten_are_enough() {
        let file = |viable, caught| File { viable, caught, ..File::default() };
        let files = |last| BTreeMap::from([("a".to_owned(), file(10, 10)), ("b".to_owned(), last)]);
        assert!(is_enough(&files(file(10, 8))));
        assert!(!is_enough(&files(file(10, 7))));
        assert_eq!(summary(&files(file(10, 8))), "18 of 20 viable mutants caught, 90.0 %");
    }
}
