//! Machines other than the usual one: SMMU classes, no ITS, repeatable time, and what EL2 refuses.

use anyhow::Result;
use tests::built_in::{machine, vm};
use tests::cost;
use tests::run::{qemu, request};
use xtask::bench::figures::{self, Size};
use xtask::exit::Exit;
use xtask::size::MIB;
use xtask::{prepare, run};

use crate::Test;

pub const TESTS: &[Test] = &[
    ("qemu::stage_2_only_hardware_confines_as_well", stage_2_only),
    ("linux::without_an_its", || passes(&["--linux", "--its", "off"])),
    ("qemu::a_close_costs_what_its_streams_cost", close_cost),
    ("qemu::a_device_of_the_users_is_guest_0s", users_device),
    ("qemu::a_corrupt_bundle_is_refused", corrupt_bundle),
    ("qemu::too_little_memory_is_refused", too_little_memory),
];

fn passes(options: &[&str]) -> Result<()> {
    qemu(options)?.passed()?;
    Ok(())
}

fn stage_2_only() -> Result<()> {
    qemu(&["--machine-version", "9.1", "--smmu-stage", "2"])?
        .passed()?
        .holds("the SMMU has stage 2 only", |outcome| {
            outcome.verdict.report.smmu.iter().all(|smmu| smmu.class == "stage2")
        })?;
    Ok(())
}

/// As many streams as there can be, and 32 times the memory: only the former costs. `cargo xtask soak cost` has more sizes.
fn close_cost() -> Result<()> {
    let size = |streams, memory| Size { streams, memory: memory * MIB };
    let sizes = [size(figures::MOST_STREAMS, 16), size(1, 16), size(1, 512)];
    let costs = sizes.iter().map(|size| figures::close(*size, &[]));
    let costs = costs.collect::<Result<Vec<u64>>>()?;
    for (size, cost) in sizes.iter().zip(&costs) {
        cost::is_linear(size.streams, *cost, costs[1])?;
    }
    cost::is_flat(&costs[1..])
}

fn users_device() -> Result<()> {
    let users = ["--device", "edu,addr=5", "--device", "edu"];
    qemu(&users)?.passed()?.holds("the victim owns three functions", |outcome| {
        let streams = &outcome.verdict.report.streams;
        streams.iter().filter(|stream| stream.vm.as_deref() == Some("victim")).count() == 3
    })?;
    Ok(())
}

/// Boots the demonstration with one byte of the kernel's data in the bundle changed.
fn corrupt_bundle() -> Result<()> {
    let request = request(&[])?;
    let prepared = prepare::prepare(&request)?;
    let path = prepared
        .machine
        .boot
        .initrd
        .clone()
        .ok_or_else(|| anyhow::anyhow!("there is no bundle"))?;
    let mut bundle = std::fs::read(&path)?;
    let kernel = bundle.windows(4).position(|bytes| bytes == b"ARM\x64");
    let kernel = kernel.ok_or_else(|| anyhow::anyhow!("there is no kernel in the bundle"))?;
    bundle[kernel + 64] ^= 1;
    std::fs::write(&path, bundle)?;
    let run = tests::run::Run { outcome: run::run_prepared(&request, &prepared)? };
    run.ended_with(Exit::Fail)?
        .printed("the data does not match its SHA-256")?
        .holds("no guest ran", |outcome| outcome.testimony.guests().next().is_none())?;
    Ok(())
}

/// The VM is larger than the machine: xtask would size the machine, so this one is cut down afterwards.
fn too_little_memory() -> Result<()> {
    let request = machine(vec![vm("big", "spin", 1)], &[])?;
    let mut prepared = prepare::prepare(&request)?;
    let bundle = std::fs::metadata(prepared.machine.boot.initrd.as_ref().expect("a bundle"))?.len();
    anyhow::ensure!(bundle < 4 << 20, "the bundle alone fills the machine");
    prepared.machine.memory = 32 << 20;
    let Err(error) = run::run_prepared(&request, &prepared) else { anyhow::bail!("it fits") };
    let expected = "the test: EL2 refuses it: big: ";
    let text = error.to_string();
    anyhow::ensure!(Exit::of(&error) == Exit::BadInput, "{text}");
    anyhow::ensure!(text.starts_with(expected) && text.contains("give the machine more"), "{text}");
    Ok(())
}
