//! What closing a VM's streams may cost EL2, in instructions.

use anyhow::{Result, ensure};
use evidence::budget;

/// Requires that a close of `streams` streams, when one of one stream costs `of_one`, stays within the budget, and that
/// each stream after the first costs no more than one may.
///
/// # Errors
///
/// The figures.
pub fn is_linear(streams: u32, instructions: u64, of_one: u64) -> Result<()> {
    let most = budget::close(streams);
    ensure!(instructions <= most, "{instructions} instructions for {streams} streams");
    let linear = of_one + budget::CLOSE_PER_STREAM * u64::from(streams - 1);
    ensure!(instructions <= linear, "{instructions} for {streams} streams, {of_one} for one");
    Ok(())
}

/// Requires that closes of as many streams in VMs of more and more memory cost the same.
///
/// # Errors
///
/// The figures.
pub fn is_flat(instructions: &[u64]) -> Result<()> {
    let (least, most) = (instructions.iter().min(), instructions.iter().max());
    let growth = most.zip(least).map_or(0, |(most, least)| most - least);
    ensure!(
        growth <= budget::CLOSE_GROWTH,
        "{instructions:?} instructions in VMs of more and more memory"
    );
    Ok(())
}
