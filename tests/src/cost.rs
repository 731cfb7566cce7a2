//! What closing a VM's streams costs EL2, in instructions.

use anyhow::{Context, Result, ensure};
use platform::bundle::{Function, MAX_FUNCTIONS, Reset};
use platform::pcie::Bdf;
use xtask::vm::{Said, Vm};

use crate::built_in::{machine, told};
use crate::run::boot;

/// The most streams that one VM can have: each function is one.
pub const MOST_STREAMS: u32 = MAX_FUNCTIONS as u32;
/// Instructions that a close may cost, whatever it closes.
const BASE: u64 = 2_000;
/// Instructions that each stream of it may cost.
const PER_STREAM: u64 = 400;

/// By how many instructions two closes of as many streams differ: a look more or less at a queue. One instruction for each
/// 2 MiB of a VM of 512 MiB would be more.
const NOISE: u64 = 100;

/// The name of the VM that is closed.
const NAME: &str = "victim";

/// A VM to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Its streams.
    pub streams: u32,
    /// Its memory in bytes.
    pub memory: u64,
}

/// How many instructions the close of this VM costs, on a machine whose time is instructions, with further options of
/// `cargo xtask qemu`. It has the machine to itself: QEMU's counter counts the instructions of all CPUs together, so that
/// a turn of another busy one, of some ten thousand, may be among them.
///
/// # Errors
///
/// What kept the VM from being closed as a whole, once, and counted.
pub fn of_close(size: Size, options: &[&str]) -> Result<u64> {
    let run = boot(&machine(vec![sized(size)], &[&["--icount"], options].concat())?)?.passed()?;
    let vm = run.outcome.verdict.report.vm(NAME).context("the VM is not in the report")?;
    let [close] = &vm.teardowns[..] else { anyhow::bail!("{} closes", vm.teardowns.len()) };
    ensure!(close.streams == size.streams, "{} streams of {}", close.streams, size.streams);
    close.instructions.context("the close was not counted")
}

fn sized(Size { streams, memory }: Size) -> Vm {
    let mut vm = told(NAME, "victim", 1, "rounds=2");
    vm.memory = Said::new(memory, "the test");
    let places = (1..32).flat_map(|slot| (0..8).filter_map(move |n| Bdf::new(0, slot, n)));
    let claims = places.take(streams as usize);
    vm.functions = claims
        .map(|address| Said::new(Function { address, reset: Reset::Auto }, "the test"))
        .collect();
    vm
}

/// Requires that a close of `streams` streams, when one of one stream costs `of_one`, stays within the budget, and that
/// each stream after the first costs no more than one may.
///
/// # Errors
///
/// The figures.
pub fn is_linear(streams: u32, instructions: u64, of_one: u64) -> Result<()> {
    let most = BASE + PER_STREAM * u64::from(streams);
    ensure!(instructions <= most, "{instructions} instructions for {streams} streams");
    let linear = of_one + PER_STREAM * u64::from(streams - 1);
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
    ensure!(growth < NOISE, "{instructions:?} instructions in VMs of more and more memory");
    Ok(())
}
