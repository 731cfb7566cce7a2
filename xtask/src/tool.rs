//! Programs of other people's that checks need: built or added once, and kept.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::setup::{self, Missing};
use crate::workspace;

/// Returns where the cargo subcommand `name` is, after building it into the cache folder if it is not there.
///
/// # Errors
///
/// [`Missing`] if cargo cannot install it.
pub fn subcommand(name: &str, options: &setup::Options) -> Result<PathBuf> {
    let tools = setup::cache_folder(options)?.join("tools");
    let program = tools.join("bin").join(name);
    if !program.is_file() {
        let mut install = workspace::cargo();
        install.args(["install", name, "--locked", "--root"]).arg(&tools).stdin(Stdio::null());
        if !install.status().context("running cargo install")?.success() {
            return Err(Missing {
                what: name.into(),
                why: "cargo could not install it".into(),
                how: "see cargo's messages above; it needs the crates registry".into(),
            }
            .into());
        }
    }
    Ok(program)
}

/// Returns the folder of the toolchain's own LLVM programs, after adding them if they are not there.
///
/// # Errors
///
/// [`Missing`] if rustup cannot add them.
pub fn llvm() -> Result<PathBuf> {
    let rustc = |what: &str| -> Result<String> {
        let output = Command::new("rustc")
            .args(["--print", what])
            .current_dir(workspace::root())
            .stdin(Stdio::null())
            .output()
            .context("running rustc")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let folder = PathBuf::from(rustc("target-libdir")?).with_file_name("bin");
    if !folder.join("llvm-cov").is_file() {
        let mut add = Command::new("rustup");
        add.args(["component", "add", "llvm-tools"]).current_dir(workspace::root());
        let added = add.stdin(Stdio::null()).status().is_ok_and(|status| status.success());
        if !added || !folder.join("llvm-cov").is_file() {
            return Err(Missing {
                what: "LLVM's coverage tools, which are in the Rust toolchain".into(),
                why: "rustup could not add the component `llvm-tools`".into(),
                how: "rustup component add llvm-tools".into(),
            }
            .into());
        }
    }
    Ok(folder)
}
