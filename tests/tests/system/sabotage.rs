//! Sabotage: what the demonstration must notice.

use anyhow::Result;
use tests::sabotage::is_noticed;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("qemu::sabotage_of_the_devices_tables_is_noticed", || {
        noticed("foreign-page.patch", "outside of it")
    }),
    ("qemu::sabotage_by_the_cpus_tables_is_noticed", || noticed("cpu-root.patch", "outside of it")),
    ("qemu::sabotage_by_silence_to_the_smmu_is_noticed", || {
        noticed("missing-cfgi.patch", "CFGI_STE")
    }),
    ("qemu::sabotage_of_the_trace_is_noticed", || {
        noticed("no-trace.patch", "QEMU's trace is lost")
    }),
    // C1: EL2 itself breaks, on several CPUs at once. What stops it is the unmapped page below a stack; each CPU then has
    // another stack to say why on.
    ("qemu::a_broken_el2_stops_closed_and_says_why", || {
        noticed("stack-overflow.patch", "fatal: sync exception at EL2")
    }),
    ("qemu::sabotage_of_the_canaries_is_noticed", || {
        noticed("no-canary.patch", "said nothing of its canaries")
    }),
];

fn noticed(patch: &str, reason: &str) -> Result<()> {
    is_noticed(patch, reason)
}
