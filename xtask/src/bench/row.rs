//! What was measured beside what is allowed: a table for people, JSON for programs, one verdict.

use std::collections::BTreeMap;
use std::fmt;

use evidence::verdict::thousands;
use serde::Serialize;

use crate::exit::Exit;

/// The version of the JSON.
const VERSION: u32 = 1;

/// A figure that has a budget.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What programs know it by.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// What it may be.
    pub bound: Bound,
    /// What it is counted in.
    pub unit: Unit,
    /// Whether it is the same on every host, so that the command fails with it.
    pub gates: bool,
}

/// What a figure may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// What a figure is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Instructions.
    Instructions,
    /// Bytes.
    Bytes,
    /// Nothing: one count or time by another, in hundredths.
    Ratio,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    value: f64,
    /// What it was made of.
    parts: BTreeMap<&'static str, f64>,
}

impl From<u64> for Figure {
    fn from(count: u64) -> Self {
        Self { value: count as f64, parts: BTreeMap::new() }
    }
}

impl Figure {
    /// One number by another, in whole hundredths, as budgets are.
    ///
    /// # Errors
    ///
    /// If there is nothing to divide by.
    pub fn ratio(
        (name, value): (&'static str, f64),
        (by_name, by): (&'static str, f64),
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(by > 0.0 && value.is_finite(), "{name}: {value} by {by_name}: {by}");
        let ratio = Self { value: (value / by * 100.0).round() / 100.0, parts: BTreeMap::new() };
        Ok(ratio.with(name, value).with(by_name, by))
    }

    /// Likewise, with a number that it was made of.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: f64) -> Self {
        self.parts.insert(name, value);
        self
    }
}

/// What a figure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is within its budget.
    Ok,
    /// It is more than it may be.
    Over,
    /// It is less than it may be.
    Short,
    /// There is none, which is no pass.
    NotMeasured,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Over => "over",
            Self::Short => "short",
            Self::NotMeasured => "not measured",
        }
    }
}

impl Bound {
    const fn value(self) -> f64 {
        match self {
            Self::AtMost(value) | Self::AtLeast(value) => value,
        }
    }

    fn judge(self, measured: f64) -> Verdict {
        match self {
            Self::AtMost(most) if measured > most => Verdict::Over,
            Self::AtLeast(least) if measured < least => Verdict::Short,
            _ => Verdict::Ok,
        }
    }
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Instructions => thousands(value as u64),
            Self::Bytes => {
                let tenths = (value / 1024.0 * 10.0).ceil() as u64;
                match tenths % 10 {
                    0 => format!("{} KiB", thousands(tenths / 10)),
                    tenth => format!("{}.{tenth} KiB", thousands(tenths / 10)),
                }
            }
            Self::Ratio => format!("{value:.2}"),
        }
    }
}

/// All rows with what was measured.
#[derive(Debug)]
pub struct Table(Vec<(Row, Result<Figure, String>)>);

impl Table {
    /// Puts figures, by their rows' names, into rows. One without a figure was not measured.
    pub fn new(rows: &[Row], figures: &mut BTreeMap<&str, Result<Figure, String>>) -> Self {
        let unknown = || Err("nobody counted it".into());
        let figure = |row: &Row| (*row, figures.remove(row.name).unwrap_or_else(unknown));
        Self(rows.iter().map(figure).collect())
    }

    fn verdicts(&self) -> impl Iterator<Item = (&Row, &Result<Figure, String>, Verdict)> {
        self.0.iter().map(|(row, figure)| {
            let verdict = figure
                .as_ref()
                .map_or(Verdict::NotMeasured, |figure| row.bound.judge(figure.value));
            (row, figure, verdict)
        })
    }

    /// Whether every row that gates is within its budget.
    fn passes(&self) -> bool {
        self.verdicts().all(|(row, _, verdict)| verdict == Verdict::Ok || !row.gates)
    }

    /// How the command ends.
    pub fn exit(&self) -> Exit {
        if self.passes() { Exit::Pass } else { Exit::Fail }
    }

    /// What programs read.
    ///
    /// # Errors
    ///
    /// None in practice: every field has a JSON form.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let rows = self.verdicts().map(|(row, figure, verdict)| JsonRow {
            name: row.name,
            what: row.what,
            unit: row.unit,
            measured: figure.as_ref().ok().map(|figure| number(figure.value)),
            parts: figure.iter().flat_map(|it| &it.parts).map(|(n, v)| (*n, number(*v))).collect(),
            bound: match row.bound {
                Bound::AtMost(_) => "at-most",
                Bound::AtLeast(_) => "at-least",
            },
            budget: number(row.bound.value()),
            gates: row.gates,
            verdict,
            reason: figure.as_ref().err().map(String::as_str),
        });
        let verdict = if self.passes() { "pass" } else { "fail" };
        let file = JsonFile { version: VERSION, verdict, rows: rows.collect() };
        serde_json::to_string_pretty(&file).map(|text| text + "\n")
    }
}

/// A whole number without a fraction, as a count is written.
fn number(value: f64) -> serde_json::Number {
    let whole = (value >= 0.0 && value.fract() == 0.0).then_some(value as u64);
    whole.map_or_else(|| serde_json::Number::from_f64(value).unwrap_or(0.into()), Into::into)
}

#[derive(Serialize)]
struct JsonFile<'a> {
    version: u32,
    verdict: &'a str,
    rows: Vec<JsonRow<'a>>,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    name: &'a str,
    what: &'a str,
    unit: Unit,
    measured: Option<serde_json::Number>,
    parts: BTreeMap<&'a str, serde_json::Number>,
    bound: &'a str,
    budget: serde_json::Number,
    gates: bool,
    verdict: Verdict,
    reason: Option<&'a str>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![["what", "measured", "budget", "verdict"].map(str::to_owned)];
        for (row, figure, verdict) in self.verdicts() {
            let sign = match row.bound {
                Bound::AtMost(_) => "<=",
                Bound::AtLeast(_) => ">=",
            };
            let measured = figure.as_ref().map_or("-".into(), |it| row.unit.text(it.value));
            let verdict = match figure {
                Err(why) => {
                    let why = why.lines().next().unwrap_or_default();
                    format!("{}: {why}", verdict.name())
                }
                Ok(_) if row.gates => verdict.name().into(),
                Ok(_) => format!("{}, reported only", verdict.name()),
            };
            let budget = format!("{sign} {}", row.unit.text(row.bound.value()));
            lines.push([row.what.into(), measured, budget, verdict]);
        }
        let width = |column: usize| {
            lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
        };
        let (what, measured, budget) = (width(0), width(1), width(2));
        for [row, figure, bound, verdict] in &lines {
            writeln!(f, "{row:what$}  {figure:>measured$}  {bound:>budget$}  {verdict}")?;
        }
        let count = |wanted| self.verdicts().filter(|(.., verdict)| *verdict == wanted).count();
        let missed = count(Verdict::Over) + count(Verdict::Short);
        let (ok, not) = (count(Verdict::Ok), count(Verdict::NotMeasured));
        let all = if self.passes() { "PASS" } else { "FAIL" };
        write!(f, "{ok} within budget, {missed} not, {not} not measured     {all}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [Row; 3] = [
        Row {
            name: "cost",
            what: "a cost",
            bound: Bound::AtMost(1500.0),
            unit: Unit::Instructions,
            gates: true,
        },
        Row {
            name: "size",
            what: "a size",
            bound: Bound::AtMost(163_840.0),
            unit: Unit::Bytes,
            gates: true,
        },
        Row {
            name: "speed",
            what: "a speed",
            bound: Bound::AtLeast(0.95),
            unit: Unit::Ratio,
            gates: false,
        },
    ];

    fn table(cost: Result<Figure, String>, size: u64, speed: f64) -> Table {
        let speed = Figure::ratio(("guest", speed), ("native", 100.0)).unwrap();
        let figures = [("cost", cost), ("size", Ok(size.into())), ("speed", Ok(speed))];
        Table::new(&ROWS, &mut BTreeMap::from(figures))
    }

    #[test]
    fn a_figure_at_its_budget_passes_and_one_beyond_fails() {
        let good = table(Ok(1500.into()), 160 << 10, 95.0);
        assert_eq!(good.exit(), Exit::Pass);
        assert_eq!(
            good.to_string(),
            "what     measured      budget  verdict\n\
             a cost      1,500    <= 1,500  ok\n\
             a size    160 KiB  <= 160 KiB  ok\n\
             a speed      0.95     >= 0.95  ok, reported only\n\
             3 within budget, 0 not, 0 not measured     PASS"
        );
        let broken = table(Ok(1501.into()), 160 << 10, 95.0);
        assert_eq!(broken.exit(), Exit::Fail);
        assert!(broken.to_string().contains("1,501    <= 1,500  over\n"), "{broken}");
        let broken = table(Ok(1500.into()), (160 << 10) + 1, 95.0);
        assert_eq!(broken.exit(), Exit::Fail);
        assert!(broken.to_string().contains("160.1 KiB  <= 160 KiB  over\n"), "{broken}");
    }

    #[test]
    fn time_is_reported_and_gates_nothing() {
        let slow = table(Ok(1.into()), 1, 94.0);
        assert_eq!(slow.exit(), Exit::Pass);
        assert!(slow.to_string().contains("0.94     >= 0.95  short, reported only"), "{slow}");
    }

    #[test]
    fn what_was_not_measured_is_no_pass() {
        let table = table(Err("nobody came\nand more".into()), 1, 100.0);
        assert_eq!(table.exit(), Exit::Fail);
        assert!(table.to_string().contains("  not measured: nobody came\n"), "{table}");
        assert!(Table::new(&ROWS[..1], &mut BTreeMap::new()).exit() == Exit::Fail);
        assert!(Figure::ratio(("exits", 1.0), ("unmaps", 0.0)).is_err());
        assert!(Figure::ratio(("exits", f64::NAN), ("unmaps", 1.0)).is_err());
    }

    #[test]
    fn json_has_numbers_and_reasons() {
        let json = |cost| {
            let text = table(cost, 211_180, 98.0).to_json().unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        let file = json(Ok(1_294.into()));
        assert_eq!((&file["version"], &file["verdict"]), (&1.into(), &"fail".into()));
        let [cost, size, speed] = [0, 1, 2].map(|row| &file["rows"][row]);
        assert_eq!(cost["name"], "cost");
        assert_eq!((cost["measured"].as_u64(), cost["budget"].as_u64()), (Some(1294), Some(1500)));
        assert_eq!((&cost["verdict"], &cost["reason"]), (&"ok".into(), &().into()));
        assert_eq!((&cost["unit"], &cost["bound"]), (&"instructions".into(), &"at-most".into()));
        assert_eq!((&size["verdict"], &size["gates"]), (&"over".into(), &true.into()));
        assert_eq!((speed["measured"].as_f64(), &speed["gates"]), (Some(0.98), &false.into()));
        assert_eq!(speed["parts"]["native"].as_u64(), Some(100));
        let cost = &json(Err("why".into()))["rows"][0];
        assert!(cost["measured"].is_null());
        assert_eq!((&cost["verdict"], &cost["reason"]), (&"not-measured".into(), &"why".into()));
    }

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(12_345_678), "12,345,678");
        assert_eq!(Unit::Bytes.text((4 << 20) as f64), "4,096 KiB");
    }
}
