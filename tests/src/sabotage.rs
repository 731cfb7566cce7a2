//! Sabotage: a copy of the work tree is broken on purpose, and its own run has to notice.
//!
//! A patch that does not apply any more fails its test, so that the check it stands for cannot disappear unnoticed.
//! All patches share one copy and one target folder, which are kept: only what a patch touches is built again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use xtask::workspace;

/// Applies `patch`, a file of `tests/sabotage`, to a copy of the tree, and requires that `cargo xtask qemu` fails there
/// for a reason that contains `reason`.
///
/// # Errors
///
/// What did not happen.
pub fn is_noticed(patch: &str, reason: &str) -> Result<()> {
    let place = workspace::target_folder().join("sabotage");
    fs::create_dir_all(&place)?;
    let lock = fs::File::create(place.join("lock"))?;
    lock.lock().context("waiting for the other sabotage tests")?;

    let tree = place.join("tree");
    synchronise(workspace::root(), &tree)?;
    let patch = workspace::root().join("tests/sabotage").join(patch);
    apply(&patch, &tree)?;
    let report = place.join("report.json");
    let _ = fs::remove_file(&report);
    let output = run(&tree, &place.join("target"), &report)?;

    let shown = || {
        let tail = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(40)..].join("\n  | ")
        };
        format!("{}\n  | {}", tail(&output.stderr), tail(&output.stdout))
    };
    ensure!(
        output.status.code() == Some(1),
        "sabotaged, it ended with {}:\n{}",
        output.status,
        shown()
    );
    let report =
        fs::read_to_string(&report).with_context(|| format!("it left no report:\n{}", shown()))?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = report["reason"].as_str().unwrap_or_default();
    ensure!(
        said.contains(reason) || table.contains(reason),
        "it failed for another reason, {said:?}:\n{}",
        shown()
    );
    Ok(())
}

/// Makes `to` what git tracks of `from`, as it is in the work tree; files that are right already keep their time.
fn synchronise(from: &Path, to: &Path) -> Result<()> {
    let listed = git(from, &["ls-files", "-z"])?;
    let listed = String::from_utf8(listed.stdout).context("a file name that is not text")?;
    let tracked: BTreeSet<PathBuf> =
        listed.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    ensure!(!tracked.is_empty(), "git tracks nothing in {}", from.display());
    for name in &tracked {
        // What is deleted in the work tree but not yet in git is not there.
        let Ok(content) = fs::read(from.join(name)) else { continue };
        let copy = to.join(name);
        if fs::read(&copy).is_ok_and(|old| old == content) {
            continue;
        }
        fs::create_dir_all(
            copy.parent().ok_or_else(|| anyhow!("no folder for {}", copy.display()))?,
        )?;
        fs::write(&copy, content)?;
    }
    remove_others(to, to, &tracked)
}

/// Removes what an earlier patch has added.
fn remove_others(root: &Path, folder: &Path, tracked: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_others(root, &path, tracked)?;
        } else if !tracked.contains(path.strip_prefix(root)?) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn apply(patch: &Path, tree: &Path) -> Result<()> {
    let patch = patch.to_str().ok_or_else(|| anyhow!("the patch's path is not text"))?;
    git(tree, &["apply", "--whitespace=nowarn", patch]).with_context(|| {
        format!("{patch} does not apply any more: make it break the same thing again")
    })?;
    Ok(())
}

fn git(folder: &Path, arguments: &[&str]) -> Result<Output> {
    let mut git = Command::new("git");
    git.args(arguments).current_dir(folder).stdin(Stdio::null());
    // The copy lies inside the work tree, whose repository must not be taken for its own.
    if let Some(above) = workspace::target_folder().join("sabotage").to_str() {
        git.env("GIT_CEILING_DIRECTORIES", above);
    }
    let output = git.output().context("running git")?;
    if !output.status.success() {
        bail!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

fn run(tree: &Path, target: &Path, report: &Path) -> Result<Output> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--quiet", "--package", "xtask", "--", "qemu", "--report"]).arg(report);
    cargo.current_dir(tree).stdin(Stdio::null());
    cargo.env("CARGO_TARGET_DIR", target);
    // The images are built for each patch anew, and what they do does not depend on how well they are optimised.
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "off");
    // Such images are too large for the code model that ours have.
    cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_RUSTFLAGS", "-Ccode-model=small");
    cargo.output().context("running the sabotaged xtask")
}
