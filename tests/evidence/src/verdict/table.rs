//! The table that a run ends with.

use super::cells::{Canary, Row};

const HEAD: [&str; 6] = ["device", "owner", "tried", "allowed", "stopped", "canary"];
const COUNTS: std::ops::Range<usize> = 3..5;
/// How many findings are listed beside the first one.
const LISTED: usize = 8;

/// Renders the rows, the further findings and the last line.
pub fn render(rows: &[Row], findings: &[String], native: bool) -> String {
    let cells: Vec<[String; 6]> = rows.iter().map(cells).collect();
    let widths: [usize; 6] = std::array::from_fn(|column| {
        let cells = cells.iter().map(|row| row[column].chars().count());
        cells.chain([HEAD[column].len()]).max().unwrap_or_default()
    });
    let mut text = line(&HEAD.map(str::to_owned), &widths);
    for row in &cells {
        text += &line(row, &widths);
    }
    for finding in findings.iter().skip(1).take(LISTED) {
        text += &format!("also: {finding}\n");
    }
    if findings.len() > 1 + LISTED {
        text += &format!("and {} more\n", findings.len() - 1 - LISTED);
    }
    let (number, names) =
        if native { ("two", "guests, QEMU trace") } else { ("three", "guests, EL2, QEMU trace") };
    text + &match findings.first() {
        None => format!("{number} sources agree: {names}     PASS\n"),
        Some(reason) => format!("{number} sources: {names}     FAIL: {reason}\n"),
    }
}

fn line(cells: &[String; 6], widths: &[usize; 6]) -> String {
    let padded = cells.iter().zip(widths).enumerate().map(|(column, (cell, &width))| {
        if COUNTS.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
    });
    let line = padded.collect::<Vec<_>>().join("  ");
    line.trim_end().to_owned() + "\n"
}

fn cells(row: &Row) -> [String; 6] {
    let canary = match row.canary {
        Canary::Ok => "ok".to_owned(),
        Canary::Changed(Some(address)) => format!("CHANGED {address:#x}"),
        Canary::Changed(None) => "CHANGED".to_owned(),
        Canary::None => "-".to_owned(),
    };
    [
        row.device.clone(),
        row.owner.clone(),
        row.tried.clone(),
        thousands(row.allowed),
        thousands(row.stopped),
        canary,
    ]
}

/// The number with a comma between each three digits.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        let numbers = [0, 7, 999, 1000, 4096, 123_456, 1_234_567].map(thousands);
        assert_eq!(numbers, ["0", "7", "999", "1,000", "4,096", "123,456", "1,234,567"]);
    }
}
