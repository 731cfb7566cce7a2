//! The built-in demonstration: two guests, one of which attacks and dies.

use anyhow::Result;
use tests::run::qemu;

use crate::Test;

pub const TESTS: &[Test] = &[("qemu::demonstration_passes", passes)];

fn passes() -> Result<()> {
    qemu(&[])?
        .passed()?
        .has_row("00:01.0 edu victim own RAM")?
        .has_row("00:02.0 edu rogue hypervisor")?
        .has_row("00:02.0 edu (dead) late write")?
        .has_row("three sources agree: guests, EL2, QEMU trace PASS")?;
    Ok(())
}
