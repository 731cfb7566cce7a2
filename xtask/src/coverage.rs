//! How many lines of the `smmu` crate its own tests execute.
//!
//! Lines of tests do not count: neither files of tests nor what follows `#[cfg(test)] mod tests {` in a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::tool;
use crate::workspace;

/// Hundredths of the lines that have to be executed.
const LEAST: u64 = 95;

/// Lines of a file that can be executed, and those that were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lines {
    all: u64,
    executed: u64,
}

impl Lines {
    fn add(&mut self, other: Self) {
        self.all += other.all;
        self.executed += other.executed;
    }

    fn is_enough(self) -> bool {
        self.executed * 100 >= self.all * LEAST
    }
}

impl std::fmt::Display for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tenths = self.executed * 1000 / self.all.max(1);
        write!(f, "{:>3}.{} % of {:>5} lines", tenths / 10, tenths % 10, self.all)
    }
}

/// Runs the crate's tests and prints what they execute; says whether that is enough.
///
/// # Errors
///
/// A missing prerequisite, or tools that fail.
pub fn run() -> Result<bool> {
    let llvm = tool::llvm()?;
    let folder = workspace::target_folder().join("coverage");
    let profiles = folder.join("profiles");
    if profiles.exists() {
        std::fs::remove_dir_all(&profiles)
            .with_context(|| format!("removing {}", profiles.display()))?;
    }
    let test = |arguments: &[&str]| {
        let mut cargo = workspace::cargo();
        cargo.args(["test", "--package", "smmu", "--lib"]).args(arguments);
        cargo.env("CARGO_TARGET_DIR", &folder).env("RUSTFLAGS", "-C instrument-coverage");
        cargo.env("LLVM_PROFILE_FILE", profiles.join("%p.profraw")).stdin(Stdio::null());
        cargo
    };
    let built = output(&mut test(&["--no-run", "--message-format", "json"]))?;
    let Some(program) = executable(&built) else { bail!("cargo names no test program") };
    if !test(&["--", "--quiet"]).status().context("running cargo test")?.success() {
        return Ok(false);
    }
    let merged = folder.join("merged.profdata");
    let found = std::fs::read_dir(&profiles)
        .with_context(|| format!("reading {}", profiles.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<PathBuf>>>()?;
    let mut merge = Command::new(llvm.join("llvm-profdata"));
    output(merge.args(["merge", "-sparse", "-o"]).arg(&merged).args(found))?;
    let mut export = Command::new(llvm.join("llvm-cov"));
    export.args(["export", "--format=lcov", "--instr-profile"]).arg(&merged).arg(program);
    let report = output(&mut export)?;
    let crate_folder = workspace::root().join("smmu/src");
    let files = count(&report, &crate_folder, |path| std::fs::read_to_string(path).ok());
    let mut total = Lines::default();
    for (file, lines) in &files {
        say!("{lines}  {file}");
        total.add(*lines);
    }
    say!("{total}  in all; at least {LEAST} %");
    Ok(total.all > 0 && total.is_enough())
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The test program in what cargo says as JSON, a message a line.
fn executable(messages: &str) -> Option<String> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "smmu" && message["profile"]["test"] == true)
        .find_map(|message| message["executable"].as_str().map(str::to_owned))
}

/// Counts the lines of each file below `folder` in a report in lcov's format, without tests.
fn count(
    report: &str,
    folder: &Path,
    read: impl Fn(&Path) -> Option<String>,
) -> BTreeMap<String, Lines> {
    let mut files = BTreeMap::<String, Lines>::new();
    let mut current = None;
    for line in report.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            let path = Path::new(path);
            let name = path.strip_prefix(folder).ok().map(|name| name.to_string_lossy());
            current = name.filter(|name| !is_test(name)).map(|name| {
                let tests = read(path).and_then(|text| first_test_line(&text));
                (name.into_owned(), tests.unwrap_or(u64::MAX))
            });
        } else if let Some((name, tests)) = &current
            && let Some((number, count)) =
                line.strip_prefix("DA:").and_then(|data| data.split_once(','))
            && number.parse().is_ok_and(|number: u64| number < *tests)
        {
            let lines = files.entry(name.clone()).or_default();
            lines.add(Lines { all: 1, executed: (count != "0").into() });
        }
    }
    files
}

fn is_test(name: &str) -> bool {
    name == "fake.rs" || name.ends_with("tests.rs") || name.contains("tests/")
}

/// The number of the line at which a file's own tests begin.
fn first_test_line(text: &str) -> Option<u64> {
    let at = text.find("#[cfg(test)]\nmod tests {")?;
    Some(text[..at].lines().count() as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tests_do_not_count() {
        let text = "fn a() {\n    b()\n}\n\n#[cfg(test)]\nmod tests {\n    c()\n}\n";
        assert_eq!(first_test_line(text), Some(5));
        let report = "SF:/p/smmu/src/a.rs\nDA:1,4\nDA:2,0\nDA:3,4\nDA:7,1\nend_of_record\n\
                      SF:/p/smmu/src/a/tests.rs\nDA:1,1\nend_of_record\n\
                      SF:/elsewhere/b.rs\nDA:1,1\nend_of_record\n";
        let files = count(report, Path::new("/p/smmu/src"), |_| Some(text.into()));
        assert_eq!(files, BTreeMap::from([("a.rs".into(), Lines { all: 3, executed: 2 })]));
        assert_eq!(files["a.rs"].to_string(), " 66.6 % of     3 lines");
    }

    #[test]
    fn five_lines_in_a_hundred_may_be_missed() {
        assert!(Lines { all: 100, executed: 95 }.is_enough());
        assert!(!Lines { all: 1000, executed: 949 }.is_enough());
    }

    #[test]
    fn the_test_program_is_found() {
        let messages = concat!(
            r#"{"target":{"name":"smmu"},"profile":{"test":false},"executable":null}"#,
            "\nnoise\n",
            r#"{"target":{"name":"smmu"},"profile":{"test":true},"executable":"/t/smmu-1"}"#,
        );
        assert_eq!(executable(messages), Some("/t/smmu-1".into()));
    }
}
