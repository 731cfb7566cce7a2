//! `cargo xtask soak mutants`: whether the tests notice when the `smmu` crate is changed.
//!
//! cargo-mutants changes one expression or function at a time, in a copy of the last commit, and runs the crate's own
//! tests; what survives them is tried against the model's as well. A shard is some of the mutants of one file: each that
//! is done is kept in `tests/soak/mutants.json` with the version of the file that it is of, and does not run again until
//! that file changes. Of a file that did not, only survivors run again that nobody explained: there may be a test for
//! them now. A survivor that changes nothing that matters is explained in `tests/soak/survivors.md`.

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
/// The most mutants in a shard.
const SHARD: usize = 12;
/// Seconds until tests that hang are given up; that counts as caught.
const TIMEOUT: &str = "120";
/// How often properties are tried.
const CASES: &str = "24";
const RESULTS: &str = "tests/soak/mutants.json";
const EXPLANATIONS: &str = "tests/soak/survivors.md";

/// What became of all shards so far.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Results {
    /// Of all shards together, in words.
    summary: String,
    /// By file, number and count of shards.
    shards: BTreeMap<String, Shard>,
}

/// What became of a shard's mutants.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
struct Shard {
    /// Git's name for the file's content that the result is of.
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
    let folder = workspace::target_folder().join("mutants");
    let tree = copy(&folder)?;
    let path = workspace::root().join(RESULTS);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    let mut results: Results = std::fs::read_to_string(&path)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let mutants = Mutants { program, tree, output: folder.join("output") };
    let explained =
        std::fs::read_to_string(workspace::root().join(EXPLANATIONS)).unwrap_or_default();
    let mut tally = Tally::default();
    let shards = mutants.shards()?;
    // What is no shard any more does not count.
    results.shards.retain(|name, _| shards.contains_key(name));
    for (name, (file, shard)) in &shards {
        let version = git(&["rev-parse", "--short=12", &format!("HEAD:{file}")])?;
        let known = results.shards.get(name).filter(|known| known.version == version).cloned();
        let found = match known {
            None => Some(Shard { version, ..mutants.test(file, shard)? }),
            Some(known) if unexplained(&known, &explained).is_empty() => None,
            Some(known) => Some(mutants.test_again(file, known, &explained)?),
        };
        if let Some(found) = found {
            results.shards.insert(name.clone(), found);
            results.summary = summary(&results.shards, shards.len());
            let text = serde_json::to_string_pretty(&results)? + "\n";
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        let known = &results.shards[name];
        let unexplained = unexplained(known, &explained);
        say!("{name}: {} of {} caught", known.caught, known.viable);
        for survivor in &unexplained {
            say!("    not explained in {EXPLANATIONS}: {survivor}");
        }
        let passed = unexplained.is_empty();
        tally.add(Tally { passed: passed.into(), failed: (!passed).into() });
    }
    say!("{}", results.summary);
    let enough = is_enough(&results.shards);
    tally.add(Tally { passed: enough.into(), failed: (!enough).into() });
    Ok(tally)
}

/// The survivors that the text has no explanation of: each that it has one of is an item of a list.
fn unexplained<'a>(shard: &'a Shard, explained: &str) -> Vec<&'a String> {
    let is_explained =
        |survivor: &str| explained.lines().any(|line| line.strip_prefix("- ") == Some(survivor));
    shard.survivors.iter().filter(|survivor| !is_explained(survivor)).collect()
}

fn totals(shards: &BTreeMap<String, Shard>) -> (usize, usize) {
    let add = |(viable, caught), shard: &Shard| (viable + shard.viable, caught + shard.caught);
    shards.values().fold((0, 0), add)
}

fn is_enough(shards: &BTreeMap<String, Shard>) -> bool {
    let (viable, caught) = totals(shards);
    caught * 100 >= viable * LEAST
}

fn summary(shards: &BTreeMap<String, Shard>, all: usize) -> String {
    let (viable, caught) = totals(shards);
    let tenths = caught * 1000 / viable.max(1);
    let (whole, tenth, done) = (tenths / 10, tenths % 10, shards.len());
    format!("{caught} of {viable} viable mutants caught, {whole}.{tenth} %; {done} of {all} shards")
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

    /// The shards: by name, their file and what the tool is told of them.
    fn shards(&self) -> Result<BTreeMap<String, (String, String)>> {
        let output = self.command(&["--list"]).output().context("running cargo-mutants")?;
        if !output.status.success() {
            bail!("cargo-mutants: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(shards(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Tests one shard of a file's.
    fn test(&self, file: &str, shard: &str) -> Result<Shard> {
        self.run(&["--file", file, "--shard", shard])?;
        let missed = self.list("missed");
        let viable = self.list("caught").len() + self.list("timeout").len() + missed.len();
        let survivors = self.survivors_of_model(file, missed)?;
        let caught = viable - survivors.len();
        let survivors = survivors.iter().map(|name| without_place(name)).collect();
        Ok(Shard { viable, caught, survivors, ..Shard::default() })
    }

    /// Tests those survivors of a shard again that nobody explained.
    fn test_again(&self, file: &str, mut shard: Shard, explained: &str) -> Result<Shard> {
        let again: Vec<String> = unexplained(&shard, explained).into_iter().cloned().collect();
        let chosen: Vec<String> = again.iter().map(|name| pattern_anywhere(name)).collect();
        let chosen = chosen.iter().flat_map(|name| ["--re", name]);
        self.run(&["--file", file].into_iter().chain(chosen).collect::<Vec<&str>>())?;
        let missed = self.survivors_of_model(file, self.list("missed"))?;
        // A name may stand for several mutants, in this shard and in others: each counts as often as before at most.
        let mut missed: Vec<String> = missed.iter().map(|name| without_place(name)).collect();
        shard.survivors.retain(|name| {
            let still = missed.iter().position(|missed| missed == name);
            let still = still.map(|place| missed.swap_remove(place)).is_some();
            !again.contains(name) || still
        });
        shard.caught = shard.viable - shard.survivors.len();
        Ok(shard)
    }

    /// Which of a file's mutants the model's tests miss as well.
    fn survivors_of_model(&self, file: &str, missed: Vec<String>) -> Result<Vec<String>> {
        if missed.is_empty() {
            return Ok(missed);
        }
        let chosen: Vec<String> = missed.iter().map(|name| pattern(name)).collect();
        let chosen = chosen.iter().flat_map(|name| ["--re", name]);
        let model = ["--file", file, "--test-package", "model"].into_iter().chain(chosen);
        self.run(&model.collect::<Vec<&str>>())?;
        // The tool tries mutants that leave out a field whatever their name.
        Ok(self.list("missed").into_iter().filter(|name| missed.contains(name)).collect())
    }

    /// Tests the mutants that the arguments choose.
    fn run(&self, chosen: &[&str]) -> Result<()> {
        if self.output.exists() {
            std::fs::remove_dir_all(&self.output)
                .with_context(|| format!("removing {}", self.output.display()))?;
        }
        std::fs::create_dir_all(&self.output)
            .with_context(|| format!("making {}", self.output.display()))?;
        let mut mutants = self.command(&["--baseline", "skip", "--timeout", TIMEOUT]);
        mutants.args(["--no-shuffle", "--cargo-test-arg=--lib", "--output"]).arg(&self.output);
        let status = mutants.args(chosen).status().context("running cargo-mutants")?;
        // 2: some survive; 3: some tests hung.
        if !matches!(status.code(), Some(0 | 2 | 3)) {
            bail!("cargo-mutants {}: {status}", chosen.join(" "));
        }
        Ok(())
    }

    /// What the tool put on one of its lists.
    fn list(&self, name: &str) -> Vec<String> {
        let path = self.output.join("mutants.out").join(format!("{name}.txt"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// A regular expression for exactly this name.
fn pattern(name: &str) -> String {
    format!("^{}$", escaped(name))
}

/// A regular expression for a name without its place, at any place.
fn pattern_anywhere(name: &str) -> String {
    let (file, what) = name.split_once(':').unwrap_or((name, ""));
    format!(r"^{}:\d+:\d+:{}$", escaped(file), escaped(what))
}

fn escaped(name: &str) -> String {
    let mut pattern = String::new();
    for letter in name.chars() {
        // Not `<` and `>`, which a backslash makes boundaries of words.
        if r"\.+*?()|[]{}^$#&-~".contains(letter) {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}

/// Cuts a list of mutants into shards: by name, their file and which of how many.
fn shards(list: &str) -> BTreeMap<String, (String, String)> {
    let mut counts = BTreeMap::<&str, usize>::new();
    for (file, _) in list.lines().filter_map(|line| line.split_once(':')) {
        *counts.entry(file).or_default() += 1;
    }
    let mut shards = BTreeMap::new();
    for (file, count) in counts {
        let all = count.div_ceil(SHARD);
        for number in 0..all {
            let name = format!("{file} {:02}/{all:02}", number + 1);
            shards.insert(name, (file.to_owned(), format!("{number}/{all}")));
        }
    }
    shards
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
    fn a_name_is_matched_letter_by_letter() {
        let name = "a.rs:1:2: replace f -> Result<()> with x += y";
        assert_eq!(pattern(name), r"^a\.rs:1:2: replace f \-> Result<\(\)> with x \+= y$");
        let name = without_place(name);
        let expected = r"^a\.rs:\d+:\d+: replace f \-> Result<\(\)> with x \+= y$";
        assert_eq!(pattern_anywhere(&name), expected);
    }

    #[test]
    fn a_file_is_cut_into_shards() {
        let list = "smmu/src/a.rs:1:2: x\n".repeat(13) + "smmu/src/b.rs:1:2: replace a::b\n";
        let shards = shards(&list);
        let names: Vec<&String> = shards.keys().collect();
        assert_eq!(names, ["smmu/src/a.rs 01/02", "smmu/src/a.rs 02/02", "smmu/src/b.rs 01/01"]);
        let second = ("smmu/src/a.rs".to_owned(), "1/2".to_owned());
        assert_eq!(shards["smmu/src/a.rs 02/02"], second);
    }

    #[test]
    fn an_explanation_is_of_one_name() {
        let survivors =
            ["a.rs: replace | with ^", "a.rs: replace | with ^ in f"].map(str::to_owned);
        let shard = Shard { survivors: survivors.to_vec(), ..Shard::default() };
        let explained = "## Why\n\n- a.rs: replace | with ^ in f\n";
        assert_eq!(unexplained(&shard, explained), [&survivors[0]]);
    }

    #[test]
    fn nine_in_ten_are_enough() {
        let shard = |viable, caught| Shard { viable, caught, ..Shard::default() };
        let shards =
            |last| BTreeMap::from([("a".to_owned(), shard(10, 10)), ("b".to_owned(), last)]);
        assert!(is_enough(&shards(shard(10, 8))));
        assert!(!is_enough(&shards(shard(10, 7))));
        let expected = "18 of 20 viable mutants caught, 90.0 %; 2 of 9 shards";
        assert_eq!(summary(&shards(shard(10, 8)), 9), expected);
    }
}
