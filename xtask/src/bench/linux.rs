//! What is measured with Linux guests: the same kernel, disks and machine with EL2 and without.

use anyhow::{Context as _, Result, anyhow, ensure};
use evidence::testimony::Other;

use super::Figure;
use super::figures::{TIMEOUT, passed};
use super::spinner;
use crate::linux::{self, Extra, GuestFile};
use crate::request::Request;
use crate::run::{self, Outcome};
use crate::setup::{self, Flavor};
use crate::size::MIB;
use crate::vm::Content;

/// The kernel.
pub const FLAVOR: Flavor = Flavor::Cloud6_1;
/// Bytes in each half of the disks: there is enough behind them to read.
const HALF: u64 = MIB;
/// The VM's name.
const NAME: &str = "linux";

/// A run of one Linux guest with one CPU, that does `stage` after the test of its disks.
fn machine(stage: &str, append: &str, files: Vec<GuestFile>, options: &[&str]) -> Result<Request> {
    let usual = ["--linux", "--smp", "1", "--timeout", TIMEOUT];
    let mut request = Request::quiet(&[&usual[..], options].concat())?;
    let guest = request.vms.first_mut().context("no guest")?;
    let extra = Extra { files, stage: Some(stage.into()), half: HALF, ..Extra::default() };
    guest.content =
        Content::Linux { flavor: FLAVOR, append: append.into(), extra: Box::new(extra) };
    Ok(request)
}

/// The lines of the guest's testimony that are no fixed kind's, natively too.
fn said(outcome: &Outcome) -> Result<&[Other]> {
    let (_, guest) = outcome.testimony.guests().next().context("the guest said nothing")?;
    Ok(&guest.others)
}

fn number(line: &Other, key: &str) -> Option<f64> {
    line.fields.get(key)?.parse().ok()
}

/// What a Linux guest's strict unmaps cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmaps {
    /// How often the kernel has taken memory away from a device, as it counts itself.
    pub unmaps: u64,
    /// Exits for writes to its SMMU's registers.
    pub exits: u64,
    /// Batches of its commands.
    pub batches: u64,
    /// Physical `CMD_SYNC`s, EL2's own among them.
    pub syncs: u64,
}

/// Lets the first VM's kernel count how often it takes memory away from its devices, from its first driver on, and
/// say so after the test of its disks.
///
/// # Panics
///
/// If that VM runs no Linux.
pub fn count_unmaps(request: &mut Request) {
    let Content::Linux { append, extra, .. } = &mut request.vms[0].content else {
        panic!("guest 0 is no Linux");
    };
    append.push_str(" trace_event=iommu:unmap");
    extra.stage = Some(include_str!("unmaps.sh").into());
}

impl Unmaps {
    /// What a run says whose guest counted.
    ///
    /// # Errors
    ///
    /// If it did not.
    pub fn of(outcome: &Outcome) -> Result<Self> {
        let said = said(outcome)?.iter().find_map(|line| line.fields.get("unmaps")?.parse().ok());
        let report = &outcome.verdict.report;
        let vm = report.vm(NAME).context("the guest is not in the report")?;
        let of = |reason| vm.exits.by_reason.get(reason).copied().unwrap_or(0);
        Ok(Self {
            unmaps: said.context("the kernel counted no unmaps")?,
            exits: of("smmu") + of("smmu-commands"),
            batches: report.smmu.iter().map(|smmu| smmu.guest_batches).sum(),
            syncs: report.smmu.iter().map(|smmu| smmu.syncs).sum(),
        })
    }
}

/// Exits for each strict unmap, and physical `CMD_SYNC`s for each batch of commands: what more of them add.
///
/// # Errors
///
/// A run that failed.
pub fn unmaps() -> Result<(Figure, Figure)> {
    let counted = |reads: u32| {
        let mut request = machine("", &format!("reads={reads}"), Vec::new(), &[])?;
        count_unmaps(&mut request);
        Unmaps::of(&passed(run::run(&request)?)?)
    };
    let (few, many) = (counted(100)?, counted(4100)?);
    let more = |of: fn(&Unmaps) -> u64| of(&many) as f64 - of(&few) as f64;
    let exits = Figure::ratio(("exits", more(|it| it.exits)), ("unmaps", more(|it| it.unmaps)))?;
    let syncs = Figure::ratio(("syncs", more(|it| it.syncs)), ("batches", more(|it| it.batches)))?;
    Ok((exits, syncs))
}

/// Disks and KiB of each read, as the stage names them.
pub const READS: [&str; 4] = ["nvme0n1-4", "nvme0n1-128", "vda-4", "vda-128"];

/// The instructions of one read of each of [`READS`], a guest's by those of the same kernel on the bare machine.
///
/// # Errors
///
/// A run that failed.
pub fn instructions() -> Result<Vec<Figure>> {
    let count = |options: &[&str]| -> Result<Vec<f64>> {
        // On other CPU models each change of address spaces is an exit of a VM with one CPU, and the spinner makes more of
        // them. The faster instructions are, the fewer ticks of the kernel's clock are in the way.
        let counted = [
            "--cpu",
            "max",
            "--icount",
            "--qemu-arg",
            "-icount",
            "--qemu-arg",
            "shift=0,sleep=off",
        ];
        let spinner = GuestFile { path: "spinner".into(), mode: 0o755, data: spinner::program() };
        let stage = include_str!("instructions.sh");
        let options = [&counted[..], options].concat();
        let mut request = machine(stage, "passes=3", vec![spinner], &options)?;
        delay_requests(&mut request);
        let outcome = passed(run::run(&request)?)?;
        READS.iter().map(|reads| of_a_read(said(&outcome)?, reads)).collect()
    };
    let (guest, native) = (count(&[])?, count(&["--native"])?);
    guest.iter().zip(native).map(|(g, n)| Figure::ratio(("guest", *g), ("native", n))).collect()
}

/// Lets each request take the host so long that the kernel has always gone to sleep over it: at a fast one's end it sometimes
/// is about to, which costs less.
fn delay_requests(request: &mut Request) {
    const MOST_REQUESTS: u32 = 200;
    for vm in &mut request.vms {
        if let Content::Linux { extra, .. } = &mut vm.content {
            extra.most_requests = Some(MOST_REQUESTS);
        }
    }
}

/// What the spinner missed while `count` reads were done, in steps of the counter.
#[derive(Clone, Copy, Debug)]
struct Sample {
    count: f64,
    missed: f64,
    elapsed: f64,
}

/// The instructions of one read: the median of what more of them take from the spinner, beside what the kernel takes from it
/// anyhow as time goes by.
fn of_a_read(said: &[Other], reads: &str) -> Result<f64> {
    let mhz = said.iter().find_map(|line| number(line, "mhz"));
    let mhz = mhz.context("the guest does not know how fast its counter counts")?;
    let calm = median(grown(&samples(said, "pause"), |more| more.missed / more.elapsed)?)?;
    let cost = |more: Sample| (more.missed - calm * more.elapsed) / more.count;
    // One instruction is a nanosecond.
    Ok((median(grown(&samples(said, reads), cost)?)? * 1000.0 / mhz).round())
}

fn samples(said: &[Other], what: &str) -> Vec<Sample> {
    let ours = said.iter().filter(|line| line.fields.get("what").is_some_and(|of| of == what));
    ours.filter_map(|line| {
        let [count, missed, elapsed] = ["count", "missed", "elapsed"].map(|key| number(line, key));
        Some(Sample { count: count?, missed: missed?, elapsed: elapsed? })
    })
    .collect()
}

/// What each pair of samples, a small one and a large one, says of the difference.
fn grown(samples: &[Sample], of: impl Fn(Sample) -> f64) -> Result<Vec<f64>> {
    let (pairs, rest) = samples.as_chunks::<2>();
    ensure!(!pairs.is_empty() && rest.is_empty(), "{} samples", samples.len());
    let more = pairs.iter().map(|[small, large]| Sample {
        count: large.count - small.count,
        missed: large.missed - small.missed,
        elapsed: large.elapsed - small.elapsed,
    });
    Ok(more.map(of).collect())
}

fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    let median = values.get(values.len() / 2).filter(|value| value.is_finite());
    median.copied().ok_or_else(|| anyhow!("nothing in {values:?}"))
}

/// The throughput of each disk, NVMe and virtio-blk: a guest's by that of the same kernel on the bare machine, medians of
/// several passes.
///
/// # Errors
///
/// A run that failed.
pub fn throughput(options: &setup::Options) -> Result<[Figure; 2]> {
    let fio = linux::program(options, setup::FIO, "usr/bin/fio")?;
    let read = |options: &[&str]| -> Result<Outcome> {
        let stage = include_str!("throughput.sh");
        passed(run::run(&machine(stage, "passes=5", fio.clone(), options)?)?)
    };
    let (guest, native) = (read(&[])?, read(&["--native"])?);
    let of = |disk| Figure::ratio(("guest", kib(&guest, disk)?), ("native", kib(&native, disk)?));
    Ok([of("nvme0n1")?, of("vda")?])
}

/// The median of what a disk gave each second.
fn kib(outcome: &Outcome, disk: &str) -> Result<f64> {
    let ours = said(outcome)?.iter().filter(|l| l.fields.get("what").is_some_and(|of| of == disk));
    median(ours.filter_map(|line| number(line, "kib")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(fields: &[(&str, &str)]) -> Other {
        let fields = fields.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Other { kind: "check".into(), words: Vec::new(), fields: fields.collect() }
    }

    /// A kernel that takes one step in a hundred of time anyhow, 1000 for looking, and `cost` for each read.
    fn testimony(cost: u64, disturbed: u64) -> Vec<Other> {
        let mut said = vec![line(&[("mhz", "62.50")])];
        let mut sample = |what: &str, count: u64, work: u64, elapsed: u64| {
            let missed = (1000 + work + elapsed / 100).to_string();
            let (count, elapsed) = (count.to_string(), elapsed.to_string());
            let fields =
                [("what", what), ("count", &count), ("missed", &missed), ("elapsed", &elapsed)];
            said.push(line(&fields));
        };
        for pass in 0..3 {
            sample("pause", 1, 0, 100_000);
            sample("pause", 2, 0, 300_000);
            sample("vda-4", 100, 100 * cost, 500_000);
            let disturbed = if pass == 0 { disturbed } else { 0 };
            sample("vda-4", 500, 500 * cost + disturbed, 500_000 + 700_000 * pass);
        }
        said
    }

    #[test]
    fn a_read_costs_what_more_of_them_take() {
        for disturbed in [0, 123_456] {
            assert_eq!(of_a_read(&testimony(2500, disturbed), "vda-4").unwrap(), 40_000.0);
        }
        assert!(of_a_read(&testimony(2500, 0), "vda-128").is_err());
        assert!(of_a_read(&testimony(2500, 0)[1..], "vda-4").is_err());
        let broken = testimony(2500, 0);
        assert!(of_a_read(&broken[..broken.len() - 1], "vda-4").is_err());
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]).unwrap(), 2.0);
        assert!(median(Vec::new()).is_err());
        assert!(median(vec![f64::NAN]).is_err());
    }
}
