//! The same scenarios on the model and on QEMU's SMMU: what they must say, and where they part.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use scenarios::Difference;

/// What QEMU must say: what the model says, but for the listed differences.
///
/// # Errors
///
/// A difference of which the model no longer says its part, or not in that order.
pub fn expected(model: &[String], differences: &[Difference]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut rest = model;
    for Difference { model, qemu, reason } in differences {
        let Some(at) = rest.windows(model.len()).position(|lines| lines == *model) else {
            bail!("the model no longer says {model:?}: remove or mend the difference ({reason})");
        };
        lines.extend_from_slice(&rest[..at]);
        lines.extend(qemu.iter().map(|line| (*line).to_owned()));
        rest = &rest[at + model.len()..];
    }
    lines.extend_from_slice(rest);
    Ok(lines)
}

/// Requires that QEMU said exactly that.
///
/// # Errors
///
/// All lines that differ, those before and after left out.
pub fn compare(expected: &[String], seen: &[&str]) -> Result<()> {
    if expected == seen {
        return Ok(());
    }
    let mut text =
        String::from("QEMU's SMMU does not do what the model does, listed differences aside:\n");
    // The longest common subsequence: a line more or less must not make all others differ.
    let (rows, columns) = (expected.len(), seen.len());
    let mut common = vec![vec![0_usize; columns + 1]; rows + 1];
    for row in (0..rows).rev() {
        for column in (0..columns).rev() {
            common[row][column] = if expected[row] == seen[column] {
                common[row + 1][column + 1] + 1
            } else {
                common[row + 1][column].max(common[row][column + 1])
            };
        }
    }
    let (mut row, mut column) = (0, 0);
    while row < rows || column < columns {
        if row < rows && column < columns && expected[row] == seen[column] {
            (row, column) = (row + 1, column + 1);
        } else if column == columns
            || row < rows && common[row + 1][column] >= common[row][column + 1]
        {
            _ = writeln!(text, "  expected {}", expected[row]);
            row += 1;
        } else {
            _ = writeln!(text, "  QEMU     {}", seen[column]);
            column += 1;
        }
    }
    bail!(text)
}
