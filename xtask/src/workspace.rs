//! Where the project is, and how cargo is called on it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the work tree that this xtask was built from.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Where cargo builds this project.
pub fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // As cargo does: relative to where it is called, which is the root.
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// The cargo that called us, or the one on the search path, in the project's root.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}
