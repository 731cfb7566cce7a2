//! Boards and discovery: a device tree becomes typed facts, and the formats that cross the machine
//! boundary (the bundle going in, the report coming out) are defined once for both sides.
#![cfg_attr(not(any(test, feature = "host")), no_std)]
#![forbid(unsafe_code)]

pub mod bundle;
pub mod console;
pub mod dt;
mod fdt;
#[cfg(any(test, feature = "host"))]
pub mod guest_dt;
pub mod guest_map;
pub mod name;
pub mod operator;
pub mod pcie;
pub mod report;
pub mod sort;
pub mod text;

/// How often a property is tried: under Miri, which is slow and has no files, only a few times.
#[cfg(test)]
fn cases(usual: u32) -> proptest::prelude::ProptestConfig {
    use proptest::prelude::ProptestConfig;
    if cfg!(miri) {
        ProptestConfig { cases: 2, failure_persistence: None, ..ProptestConfig::default() }
    } else {
        ProptestConfig::with_cases(usual)
    }
}
