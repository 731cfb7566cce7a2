//! `cargo xtask bench`: what things cost, beside what they may.
//!
//! A row for each figure that has a budget, in the design's order. What is a count is the same in every run and gates; what
//! is time on a clock is reported. A figure that could not be had says why, and is no pass.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use evidence::budget;

use crate::exit::Exit;
use crate::image::{self, Package};
use crate::outputs;
use crate::setup::{self, Missing, Needs};
use crate::size::MIB;

pub mod figures;
pub mod linux;
mod row;
mod spinner;

use figures::Size;
pub use row::{Bound, Figure, Row, Table, Unit, Verdict};

/// Figures, by the names of their rows.
type Figures = Vec<(&'static str, Figure)>;

/// What is measured together: what it is called, the rows that it gives, and how.
struct Step {
    what: &'static str,
    measure: fn(&setup::Options) -> Result<Figures>,
    rows: &'static [&'static str],
}

/// Every measurement, the quickest first.
const STEPS: &[Step] = &[
    Step { what: "the images' sizes", measure: sizes, rows: &["image-text", "smmu-text"] },
    Step { what: "a batch of one command", measure: batch, rows: &["batch"] },
    Step { what: "interrupts", measure: interrupts, rows: &["exits-per-intx"] },
    Step {
        what: "closes",
        measure: closes,
        rows: &["close-of-one", "close-of-most", "close-growth"],
    },
    Step { what: "EL2's boot", measure: boot, rows: &["boot", "el2-memory"] },
    Step {
        what: "strict unmaps of a Linux guest",
        measure: unmaps,
        rows: &["exits-per-unmap", "syncs-per-batch"],
    },
    Step {
        what: "throughput of Linux's disks, a guest's and natively",
        measure: throughput,
        rows: &["throughput-nvme", "throughput-virtio-blk"],
    },
    Step {
        what: "instructions of Linux's reads, a guest's and natively",
        measure: instructions,
        rows: &["nvme-4k", "nvme-128k", "virtio-blk-4k", "virtio-blk-128k"],
    },
];

/// Why guests' interrupts by messages cost nothing that could be counted.
const NO_MSIX: &str = "guests have no MSI-X";

/// Measures everything, says it, and writes it to `json`.
///
/// # Errors
///
/// Bad input, or a missing prerequisite.
pub fn run(json: Option<&Path>, options: &setup::Options) -> Result<Exit> {
    let mut file = outputs::open_alone("--json", json)?;
    let needs =
        Needs { qemu: true, rust_target: true, linux: &[linux::FLAVOR], ..Needs::default() };
    setup::ensure(&needs, options)?;
    let quiet = setup::Options { quiet: true, ..options.clone() };
    let mut figures: BTreeMap<&str, Result<Figure, String>> = BTreeMap::new();
    figures.insert("exits-per-msix", Err(NO_MSIX.into()));
    for (number, step) in (1..).zip(STEPS) {
        note!("{number}/{}  {}", STEPS.len(), step.what);
        let began = Instant::now();
        let measured = match (step.measure)(&quiet) {
            Err(error) if error.chain().any(|cause| cause.is::<Missing>()) => return Err(error),
            measured => measured.map_err(|error| format!("{error:#}")),
        };
        note!("     {} s", began.elapsed().as_secs());
        match measured {
            Ok(measured) => figures.extend(measured.into_iter().map(|(row, it)| (row, Ok(it)))),
            Err(why) => figures.extend(step.rows.iter().map(|&row| (row, Err(why.clone())))),
        }
    }
    let table = Table::new(ROWS, &mut figures);
    say!("{table}");
    if let Some(file) = &mut file {
        file.write_all(table.to_json()?.as_bytes()).context("writing --json")?;
    }
    Ok(table.exit())
}

/// The rows.
const ROWS: &[Row] = &[
    Row {
        name: "exits-per-unmap",
        what: "exits per strict-mode DMA unmap",
        bound: Bound::AtMost(budget::EXITS_PER_UNMAP as f64),
        unit: Unit::Ratio,
        gates: true,
    },
    Row {
        name: "syncs-per-batch",
        what: "physical CMD_SYNCs per guest batch",
        bound: Bound::AtMost(budget::SYNCS_PER_BATCH as f64),
        unit: Unit::Ratio,
        gates: true,
    },
    Row {
        name: "batch",
        what: "EL2 instructions per one-command batch, trap to return",
        bound: Bound::AtMost(budget::BATCH as f64),
        unit: Unit::Instructions,
        gates: true,
    },
    Row {
        name: "nvme-4k",
        what: "instructions per read of 4 KiB, guest / native, NVMe",
        bound: Bound::AtMost(budget::IO_4K),
        unit: Unit::Ratio,
        gates: true,
    },
    Row {
        name: "virtio-blk-4k",
        what: "instructions per read of 4 KiB, guest / native, virtio-blk",
        bound: Bound::AtMost(budget::IO_4K),
        unit: Unit::Ratio,
        gates: true,
    },
    Row {
        name: "nvme-128k",
        what: "instructions per read of 128 KiB, guest / native, NVMe",
        bound: Bound::AtMost(budget::IO_128K),
        unit: Unit::Ratio,
        // How many pieces its buffer is in is up to the kernel's allocator.
        gates: false,
    },
    Row {
        name: "virtio-blk-128k",
        what: "instructions per read of 128 KiB, guest / native, virtio-blk",
        bound: Bound::AtMost(budget::IO_128K),
        unit: Unit::Ratio,
        // How many pieces its buffer is in is up to the kernel's allocator.
        gates: false,
    },
    Row {
        name: "exits-per-intx",
        what: "exits per interrupt, INTx",
        bound: Bound::AtMost(budget::EXITS_PER_INTX as f64),
        unit: Unit::Ratio,
        gates: true,
    },
    Row {
        name: "exits-per-msix",
        what: "exits per interrupt, MSI-X",
        bound: Bound::AtMost(budget::EXITS_PER_MSIX as f64),
        unit: Unit::Ratio,
        gates: true,
    },
    Row {
        name: "throughput-nvme",
        what: "guest / native throughput, NVMe",
        bound: Bound::AtLeast(budget::THROUGHPUT),
        unit: Unit::Ratio,
        gates: false,
    },
    Row {
        name: "throughput-virtio-blk",
        what: "guest / native throughput, virtio-blk",
        bound: Bound::AtLeast(budget::THROUGHPUT),
        unit: Unit::Ratio,
        gates: false,
    },
    Row {
        name: "boot",
        what: "EL2 entry to first guest instruction, two VMs of 512 MiB, beside copies, hashes and zeroing",
        bound: Bound::AtMost(budget::BOOT as f64),
        unit: Unit::Instructions,
        gates: true,
    },
    Row {
        name: "close-of-one",
        what: "teardown to the last closed stream, 1 stream",
        bound: Bound::AtMost(budget::close(1) as f64),
        unit: Unit::Instructions,
        gates: true,
    },
    Row {
        name: "close-of-most",
        what: "teardown to the last closed stream, 64 streams",
        bound: Bound::AtMost(budget::close(figures::MOST_STREAMS) as f64),
        unit: Unit::Instructions,
        gates: true,
    },
    Row {
        name: "close-growth",
        what: "teardown, 512 MiB of memory rather than 16 MiB",
        bound: Bound::AtMost(budget::CLOSE_GROWTH as f64),
        unit: Unit::Instructions,
        gates: true,
    },
    Row {
        name: "image-text",
        what: "image text",
        bound: Bound::AtMost(budget::IMAGE_TEXT as f64),
        unit: Unit::Bytes,
        gates: true,
    },
    Row {
        name: "smmu-text",
        what: "the smmu crate's share",
        bound: Bound::AtMost(budget::SMMU_TEXT as f64),
        unit: Unit::Bytes,
        gates: true,
    },
    Row {
        name: "el2-memory",
        what: "EL2 memory, guests' tables included",
        bound: Bound::AtMost(budget::EL2_MEMORY as f64),
        unit: Unit::Bytes,
        gates: true,
    },
];

fn sizes(options: &setup::Options) -> Result<Figures> {
    let target = setup::ensure_rust_target(options)?;
    let image = image::build(Package::Hypervisor, &target, options.quiet)?;
    Ok(vec![("image-text", image.text.into()), ("smmu-text", image.smmu_text.into())])
}

fn batch(_: &setup::Options) -> Result<Figures> {
    Ok(vec![("batch", figures::batch()?.into())])
}

fn interrupts(_: &setup::Options) -> Result<Figures> {
    Ok(vec![("exits-per-intx", figures::exits_per_intx()?)])
}

fn closes(_: &setup::Options) -> Result<Figures> {
    let close = |streams, memory| figures::close(Size { streams, memory: memory * MIB }, &[]);
    let (one, most, large) = (close(1, 16)?, close(figures::MOST_STREAMS, 16)?, close(1, 512)?);
    Ok(vec![
        ("close-of-one", one.into()),
        ("close-of-most", most.into()),
        ("close-growth", large.abs_diff(one).into()),
    ])
}

fn boot(options: &setup::Options) -> Result<Figures> {
    let boot = figures::boot(options)?;
    let figure = Figure::from(boot.own)
        .with("total", boot.total as f64)
        .with("copied and hashed", boot.copied_and_hashed as f64)
        .with("zeroed", boot.zeroed as f64);
    Ok(vec![("boot", figure), ("el2-memory", boot.el2_memory.into())])
}

fn unmaps(_: &setup::Options) -> Result<Figures> {
    let (exits, syncs) = linux::unmaps()?;
    Ok(vec![("exits-per-unmap", exits), ("syncs-per-batch", syncs)])
}

fn throughput(options: &setup::Options) -> Result<Figures> {
    let [nvme, virtio] = linux::throughput(options)?;
    Ok(vec![("throughput-nvme", nvme), ("throughput-virtio-blk", virtio)])
}

fn instructions(_: &setup::Options) -> Result<Figures> {
    let rows = ["nvme-4k", "nvme-128k", "virtio-blk-4k", "virtio-blk-128k"];
    Ok(rows.into_iter().zip(linux::instructions()?).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_measured_once_or_known_not_to_be() {
        for row in ROWS {
            let steps = STEPS.iter().filter(|step| step.rows.contains(&row.name)).count();
            assert_eq!(steps, usize::from(row.name != "exits-per-msix"), "{}", row.name);
        }
        let given: usize = STEPS.iter().map(|step| step.rows.len()).sum();
        assert_eq!(given, ROWS.len() - 1);
    }
}
