//! The Rust target of the bare-metal images.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::progress::Progress;
use super::{Missing, Options, Wanted};

/// The target triple of the bare-metal images.
pub const TRIPLE: &str = "aarch64-unknown-none-softfloat";

const MISSING: Wanted = Wanted {
    what: "the Rust target aarch64-unknown-none-softfloat",
    how: "run `rustup target add aarch64-unknown-none-softfloat` with a network connection, \
          or install the rust-src component of this very Rust version: it is then built from source",
};

/// How to build for the bare-metal target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The target triple.
    pub triple: &'static str,
    /// Whether `core` and `alloc` are built from `rust-src`, because the target's own are not installed.
    pub build_std: bool,
}

impl Target {
    /// Adds what `cargo build` needs to build for this target.
    pub fn apply(&self, cargo: &mut Command) {
        cargo.args(["--target", self.triple]);
        if self.build_std {
            // Building them is a nightly feature of cargo; from the same version's sources they are the same crates.
            cargo.args(["-Zbuild-std=core,alloc", "-Zbuild-std-features=compiler-builtins-mem"]);
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
    }
}

/// A Rust installation.
#[derive(Clone, Debug)]
pub struct Toolchain {
    sysroot: PathBuf,
    /// What `rustc --version` prints.
    pub version: String,
}

impl Toolchain {
    /// Asks the compiler that cargo uses.
    pub fn find() -> Result<Self, Missing> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let ask = |arguments: &[&str]| {
            let output = Command::new(&rustc).args(arguments).stdin(Stdio::null()).output();
            match output {
                Ok(output) if output.status.success() => {
                    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
                }
                Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
                Err(error) => Err(error.to_string()),
            }
        };
        let answer =
            ask(&["--print", "sysroot"]).and_then(|sysroot| Ok((sysroot, ask(&["--version"])?)));
        let (sysroot, version) = answer.map_err(|error| {
            MISSING.missing(format!("{} does not run: {error}", Path::new(&rustc).display()))
        })?;
        Ok(Self { sysroot: sysroot.into(), version })
    }

    /// How this installation can build for the target, if it can.
    pub fn target(&self) -> Option<Target> {
        let rustlib = self.sysroot.join("lib/rustlib");
        let has_core = std::fs::read_dir(rustlib.join(TRIPLE).join("lib")).is_ok_and(|files| {
            files.flatten().any(|file| {
                let name = file.file_name().to_string_lossy().into_owned();
                name.starts_with("libcore-") && name.ends_with(".rlib")
            })
        });
        if has_core {
            return Some(Target { triple: TRIPLE, build_std: false });
        }
        let source = rustlib.join("src/rust/library/core/src/lib.rs");
        source.is_file().then_some(Target { triple: TRIPLE, build_std: true })
    }

    /// Where it is.
    pub fn place(&self) -> &Path {
        &self.sysroot
    }
}

/// See [`super::ensure_rust_target`].
pub fn ensure(options: &Options) -> Result<Target, Missing> {
    let progress = Progress::new(options.quiet);
    let toolchain = Toolchain::find()?;
    let present = toolchain.target();
    if let Some(target) = present.clone().filter(|target| !target.build_std) {
        return Ok(target);
    }
    let mut reasons = Vec::new();
    // The target first: it builds faster. The sources only when that failed and they are not there yet.
    for (kind, name) in [("target", TRIPLE), ("component", "rust-src")] {
        if kind == "component" && present.is_some() {
            break;
        }
        progress.step(&format!("adding the Rust {kind} {name} through rustup"));
        let outcome =
            progress.run(Command::new("rustup").args([kind, "add", name]), Stdio::null(), || {
                format!("rustup is still adding {name}")
            });
        match outcome {
            Ok(outcome) if outcome.success => {
                if let Some(target) = toolchain.target() {
                    return Ok(target);
                }
                reasons.push(format!(
                    "rustup added {name} to another toolchain than {}",
                    toolchain.sysroot.display()
                ));
            }
            Ok(outcome) => reasons.push(format!("rustup {kind} add {name}: {}", outcome.reason())),
            Err(error) => reasons.push(format!("rustup does not run: {error}")),
        }
    }
    if let Some(target) = present {
        progress.note(&format!("{}; building core from rust-src instead", reasons.join("; ")));
        return Ok(target);
    }
    reasons.dedup();
    Err(MISSING.missing(format!(
        "{} ({}): {}",
        toolchain.version,
        toolchain.sysroot.display(),
        reasons.join("; ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn toolchain(files: &[&str]) -> (tempfile::TempDir, Toolchain) {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join("lib/rustlib").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let toolchain = Toolchain { sysroot: root.path().into(), version: "rustc 1.95.0".into() };
        (root, toolchain)
    }

    const CORE: &str = "aarch64-unknown-none-softfloat/lib/libcore-0123456789abcdef.rlib";
    const SOURCE: &str = "src/rust/library/core/src/lib.rs";

    #[test]
    fn the_installed_target_goes_before_the_sources() {
        let build_std = |files: &[&str]| toolchain(files).1.target().map(|target| target.build_std);
        assert_eq!(build_std(&[]), None);
        assert_eq!(build_std(&["aarch64-unknown-none-softfloat/lib/x"]), None);
        assert_eq!(build_std(&[SOURCE]), Some(true));
        assert_eq!(build_std(&[SOURCE, CORE]), Some(false));
    }

    #[test]
    fn sources_need_cargos_nightly_options_and_the_target_does_not() {
        let arguments = |build_std| {
            let mut cargo = Command::new("cargo");
            Target { triple: TRIPLE, build_std }.apply(&mut cargo);
            (cargo.get_args().count(), cargo.get_envs().count())
        };
        assert_eq!(arguments(false), (2, 0));
        assert_eq!(arguments(true), (4, 1));
    }
}
