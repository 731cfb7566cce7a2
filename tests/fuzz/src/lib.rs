//! Fuzz targets: whatever a guest, a device or a file says, against what must hold all the same.
//!
//! A target is a function of bytes that returns, or panics at the first property that does not hold. Each has a
//! program in `targets`, which libFuzzer drives when `cargo xtask fuzz` builds it, and which otherwise runs the
//! files that it is given once: what the fuzzer found is looked at without the fuzzer. The inputs in `corpus` are
//! tests of this package like any other.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod device_tree;
mod input;
pub mod manifest;
pub mod pci_config;
pub mod psci;
pub mod smmu_commands;
pub mod smmu_events;
pub mod smmu_formats;
pub mod smmu_registers;
pub mod smmu_tables;
pub mod vgic;
mod vm;

pub use input::Input;

#[cfg(fuzzing)]
#[doc(hidden)]
pub use libfuzzer_sys;

/// A function of bytes that panics if they break a property.
pub type Target = fn(&[u8]);

/// Every target, by the name of its program and of its folder in `corpus`.
pub const TARGETS: &[(&str, Target)] = &[
    ("bundle", bundle::run),
    ("device-tree", device_tree::run),
    ("manifest", manifest::run),
    ("pci-config", pci_config::run),
    ("psci", psci::run),
    ("smmu-commands", smmu_commands::run),
    ("smmu-events", smmu_events::run),
    ("smmu-formats", smmu_formats::run),
    ("smmu-registers", smmu_registers::run),
    ("smmu-tables", smmu_tables::run),
    ("vgic", vgic::run),
];

/// Makes a program of a target.
#[macro_export]
macro_rules! program {
    ($target:expr) => {
        #[cfg(fuzzing)]
        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| $target(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            $crate::replay($target)
        }
    };
}

/// Runs a target on each of the files that this process was called with.
///
/// # Errors
///
/// A file that cannot be read.
pub fn replay(target: Target) -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        println!("{}", file.display());
        target(&std::fs::read(&file)?);
    }
    Ok(())
}
