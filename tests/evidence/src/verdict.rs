//! The verdict: three sources, compared cell by cell.
//!
//! A cell of the table counts 4-byte accesses, the unit in which QEMU refuses DMA. What a guest tried is its
//! own word; what was stopped is QEMU's; what is allowed is the difference, and must be what the guest saw
//! arrive. EL2's counts must be QEMU's, event by event. The canary column is physical memory itself and
//! what its owners say of it. A guest that does not tell of each DMA (Linux) has a row per device instead,
//! in which QEMU's translations are counted.

use std::fmt;

use crate::machine::{Guest, Machine};
use crate::memory::{Found, RamFile};
use crate::oracle;
use crate::report::{self, Collector, Report, Source, Sources};
use crate::testimony::Testimony;
use crate::trace::Trace;

mod agreement;
mod cells;
mod place;
mod table;

pub use table::thousands;

use cells::Cells;

/// Everything that is known of one run.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// What the host knew beforehand.
    pub machine: &'a Machine,
    /// What the guests said.
    pub testimony: &'a Testimony,
    /// What EL2 reported. Ignored natively.
    pub report: &'a Collector,
    /// What QEMU's SMMU did.
    pub trace: &'a Trace,
    /// The machine's RAM, still as the run left it.
    pub ram: Option<&'a RamFile>,
    /// Bytes of code of the `smmu` crate in the image, from the ELF file.
    pub smmu_text: Option<u64>,
    /// What went wrong on the host, such as a timeout or a disk image with the wrong content. Each fails the
    /// run.
    pub host: &'a [String],
}

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Whether every forbidden DMA left its target unchanged, every legal one arrived and all sources agree.
    pub pass: bool,
    /// In one line, why.
    pub reason: String,
    /// Everything that is wrong, the gravest first; [`reason`](Self::reason) is the first of them.
    pub findings: Vec<String>,
    /// What each source had to say.
    pub sources: Sources,
    /// What EL2 reported, as far as it arrived.
    pub report: Report,
    table: String,
}

impl Verdict {
    /// The table with its last line, ready to print.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The `--report` file.
    pub fn file(&self) -> report::File {
        report::File {
            version: report::VERSION,
            verdict: if self.pass { "pass" } else { "fail" }.into(),
            reason: self.reason.clone(),
            sources: self.sources.clone(),
            report: self.report.clone(),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table)
    }
}

/// Judges a run that is over.
pub fn judge(case: &Case<'_>) -> Verdict {
    let Case { machine, testimony, trace, .. } = *case;
    let (mut report, incomplete) = match machine.native {
        true => (Report::default(), None),
        false => case.report.finish(),
    };
    report.sizes.smmu_text = case.smmu_text;

    let mut findings = case.host.to_vec();
    let (found, unsearched) = search(case, &report);
    let cells = Cells::gather(machine, testimony, &report, trace, &found, case.ram);

    // Natively nothing confines, so that only the trace itself can be at fault.
    let judged = match machine.native {
        true => oracle::integrity(trace, machine),
        false => oracle::judge(trace, incomplete.is_none().then_some(&report), machine),
    };
    findings.extend(judged.iter().map(ToString::to_string));
    findings.extend(incomplete.iter().map(ToString::to_string));
    if incomplete.is_none() {
        findings.extend(cells.findings);
        findings.extend(agreement::memory(machine, &report, &found));
    }
    findings.extend(agreement::guests(machine, testimony));
    if !machine.native && incomplete.is_none() {
        findings.extend(agreement::ends(machine, &report));
        findings.extend(agreement::el2(&report, trace, machine));
    }
    findings.extend(unsearched);
    let sources = sources(case, incomplete);

    let pass = findings.is_empty();
    let agree = if machine.native { "two sources agree" } else { "three sources agree" };
    let reason = findings.first().cloned().unwrap_or_else(|| agree.into());
    let table = table::render(&cells.rows, &findings, machine.native);
    Verdict { pass, reason, findings, sources, report, table }
}

/// Searches physical memory for what the attackers wrote; says what keeps it from being searched.
fn search(case: &Case<'_>, report: &Report) -> (Found, Option<String>) {
    let nonces: Vec<u32> = case.machine.vms.iter().filter_map(|vm| vm.guest.nonce()).collect();
    if nonces.is_empty() {
        return (Found::default(), None);
    }
    let Some(ram) = case.ram else {
        return (Found::default(), Some("physical memory was not searched".into()));
    };
    match ram.search(&nonces, &place::where_attackers_write(case.machine, report)) {
        Ok(found) if found.bytes == 0 => (found, Some("the machine's RAM file is empty".into())),
        Ok(found) => (found, None),
        Err(error) => {
            let why = format!("cannot read the machine's RAM in {}: {error}", ram.path.display());
            (Found::default(), Some(why))
        }
    }
}

fn sources(case: &Case<'_>, incomplete: Option<report::Error>) -> Sources {
    let source = |lines, problem: Option<String>| Source {
        complete: problem.is_none() && lines > 0,
        lines,
        problem,
    };
    let integrity = oracle::integrity(case.trace, case.machine);
    let unread = case.testimony.guests().find_map(|(_, guest)| guest.unread.clone());
    Sources {
        guests: source(case.testimony.lines(), unread),
        el2: match case.machine.native {
            true => Source::default(),
            false => source(case.report.lines(), incomplete.map(|error| error.to_string())),
        },
        qemu: source(case.trace.lines(), integrity.first().map(ToString::to_string)),
    }
}

impl Guest {
    /// What the data of its devices starts with, if it attacks.
    pub(crate) const fn nonce(&self) -> Option<u32> {
        match self {
            Self::BuiltIn { nonce, .. } | Self::Linux { nonce } => *nonce,
            Self::Other => None,
        }
    }
}

#[cfg(test)]
mod tests;
