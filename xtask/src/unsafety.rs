//! Where `unsafe` may be: nowhere in `smmu` and `platform`, which forbid it, and in `hyp` only under `arch` and `mem`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace;

/// Crates that forbid it.
const FORBIDDING: [&str; 2] = ["smmu", "platform"];
/// Where else it is looked for, and the parts of that which may have it.
const ALLOWED: (&str, [&str; 4]) = ("hyp/src", ["arch.rs", "arch/", "mem.rs", "mem/"]);

/// Looks for `unsafe` where there should be none, and prints what it finds. Returns whether there was none.
///
/// # Errors
///
/// If a source cannot be read.
pub fn check() -> Result<bool> {
    let mut wrong = Vec::new();
    for name in FORBIDDING {
        let root = workspace::root().join(name).join("src/lib.rs");
        if !read(&root)?.contains("#![forbid(unsafe_code)]") {
            wrong.push(format!("{name} does not forbid unsafe code"));
        }
    }
    let (folder, allowed) = ALLOWED;
    let folder = workspace::root().join(folder);
    let mut count = 0;
    for path in sources(&folder)? {
        let name = path.strip_prefix(&folder).unwrap_or(&path).to_string_lossy().into_owned();
        let lines = unsafe_lines(&read(&path)?);
        if allowed.iter().any(|place| name == *place || name.starts_with(place)) {
            count += lines.len();
        } else {
            wrong.extend(lines.iter().map(|line| format!("hyp/src/{name}:{line}: unsafe")));
        }
    }
    say!("{count} lines with `unsafe` in hyp, all under arch and mem; none in {FORBIDDING:?}");
    for line in &wrong {
        say!("{line}");
    }
    Ok(wrong.is_empty())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// All Rust sources below a folder.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The numbers of the lines that have the keyword outside comments.
fn unsafe_lines(text: &str) -> Vec<usize> {
    let has = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
            .any(|word| word == "unsafe")
    };
    text.lines().enumerate().filter(|(_, line)| has(line)).map(|(index, _)| index + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyword_is_found_and_nothing_like_it() {
        let text =
            "// unsafe here\n    unsafe { x() }\n#![forbid(unsafe_code)]\nunsafe extern \"C\" {}\n";
        assert_eq!(unsafe_lines(text), [2, 4]);
    }

    #[test]
    fn this_project_keeps_to_it() {
        assert!(check().unwrap());
    }
}
