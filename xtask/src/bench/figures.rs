//! What one figure is measured with: runs on machines whose time is a count of instructions. The system tests hold some
//! of them to their budgets as well.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use evidence::report;
use platform::bundle::{Bundle, Function, MAX_FUNCTIONS, Reset, VmConfig};
use platform::pcie::Bdf;

use super::Figure;
use crate::image::{self, Package};
use crate::kernel::Kernel;
use crate::prepare;
use crate::request::Request;
use crate::run::{self, Outcome};
use crate::setup;
use crate::size::MIB;
use crate::vm::{Content, Said, VICTIM, Vm};

/// Who wants these VMs.
const ORIGIN: &str = "the bench";
/// Seconds until a run that hangs is given up; far more than any takes on a loaded machine.
pub(super) const TIMEOUT: &str = "600";
/// The memory of a VM where it does not matter.
const MEMORY: u64 = 32 * MIB;

/// A VM that runs the built-in guest.
fn vm(name: &str, role: &str, append: &str) -> Vm {
    let name = platform::name::parse(name).expect("ours are valid");
    Vm::built_in(name, role, append, MEMORY, ORIGIN)
}

/// A run of these VMs that counts instructions, with further options of `cargo xtask qemu`.
fn counting(vms: Vec<Vm>, options: &[&str]) -> Result<Request> {
    let limit: &[&str] = if options.contains(&"--timeout") { &[] } else { &["--timeout", TIMEOUT] };
    let request = Request::quiet(&[&["--icount"], limit, options].concat())?;
    Ok(Request { vms, demonstration: false, ..request })
}

/// Boots what was asked for. A run that fails is no measurement.
fn boot_and_judge(request: &Request) -> Result<Outcome> {
    passed(run::run(request)?)
}

/// A run's outcome, if it passed.
pub(super) fn passed(outcome: Outcome) -> Result<Outcome> {
    if outcome.verdict.pass {
        return Ok(outcome);
    }
    let last = outcome.console.last().map_or("", String::as_str);
    bail!("{}; the console's last line: {last}", outcome.verdict.reason)
}

fn of_vm<'a>(outcome: &'a Outcome, name: &str) -> Result<&'a report::Vm> {
    outcome.verdict.report.vm(name).with_context(|| format!("{name} is not in the report"))
}

/// What guests said with `@cost what=WHAT instructions=`.
fn costs(console: &[String], what: &str) -> Vec<u64> {
    let text = format!("@cost what={what} instructions=");
    let said = console.iter().filter_map(|line| line.split_once(&text)?.1.trim().parse().ok());
    said.collect()
}

/// EL2's instructions for a batch of one command and a `CMD_SYNC`, from the trap to the guest's next instruction.
///
/// # Errors
///
/// A run that failed, or said nothing.
pub fn batch() -> Result<u64> {
    let outcome = boot_and_judge(&counting(vec![vm("cost", "cost", "")], &[])?)?;
    costs(&outcome.console, "batch").first().copied().context("nobody said what a batch costs")
}

/// The most streams that one VM can have: each function is one.
pub const MOST_STREAMS: u32 = MAX_FUNCTIONS as u32;

/// A VM to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Its streams.
    pub streams: u32,
    /// Its memory in bytes.
    pub memory: u64,
}

/// How many instructions the close of this VM costs, with further options of `cargo xtask qemu`. It has the machine to
/// itself: QEMU's counter counts the instructions of all CPUs together, so that a turn of another busy one, of some ten
/// thousand, may be among them.
///
/// # Errors
///
/// What kept the VM from being closed as a whole, once, and counted.
pub fn close(size: Size, options: &[&str]) -> Result<u64> {
    let outcome = boot_and_judge(&counting(vec![sized(size)], options)?)?;
    let closes = &of_vm(&outcome, VICTIM)?.teardowns;
    let [close] = &closes[..] else { bail!("{} closes", closes.len()) };
    ensure!(close.streams == size.streams, "{} streams of {}", close.streams, size.streams);
    close.instructions.context("the close was not counted")
}

fn sized(Size { streams, memory }: Size) -> Vm {
    let mut vm = vm(VICTIM, VICTIM, "rounds=2");
    vm.memory = Said::new(memory, ORIGIN);
    let places = (1..32).flat_map(|slot| (0..8).filter_map(move |n| Bdf::new(0, slot, n)));
    let claims = places.take(streams as usize);
    vm.functions =
        claims.map(|address| Said::new(Function { address, reset: Reset::Auto }, ORIGIN)).collect();
    vm
}

/// Exits for each interrupt of a device with a wire: what more of them add, beside what the guest prints meanwhile.
///
/// # Errors
///
/// A run that failed.
pub fn exits_per_intx() -> Result<Figure> {
    let counts = |rounds: u64| -> Result<(u64, u64)> {
        let told = format!("rounds={rounds}");
        let outcome = boot_and_judge(&counting(vec![vm(VICTIM, VICTIM, &told)], &[])?)?;
        let exits = &of_vm(&outcome, VICTIM)?.exits;
        let said = outcome.testimony.guest(VICTIM).context("the guest said nothing")?;
        let taken = said.others.iter().find_map(|other| other.fields.get("count")?.parse().ok());
        let printed = exits.by_reason.get("uart").copied().unwrap_or(0);
        Ok((exits.total - printed, taken.context("the guest counted no interrupts")?))
    };
    let (few, many) = (counts(10)?, counts(110)?);
    let (exits, interrupts) = (many.0.saturating_sub(few.0), many.1.saturating_sub(few.1));
    Figure::ratio(("exits", exits as f64), ("interrupts", interrupts as f64))
}

/// EL2's boot, from its entry to a guest's first instruction, in instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// All of it.
    pub total: u64,
    /// What grows with the guests' images: copying and hashing them.
    pub copied_and_hashed: u64,
    /// What grows with their memory: filling it with zeros.
    pub zeroed: u64,
    /// The rest.
    pub own: u64,
    /// Bytes of memory that EL2 has then, tables included.
    pub el2_memory: u64,
}

/// What a boot of so much costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Booted {
    /// Bytes of the guests' images.
    images: u64,
    /// Bytes of their memory.
    memory: u64,
    /// Instructions.
    total: u64,
}

/// Measures EL2's boot with two VMs of 512 MiB. What copying, hashing and zeroing take of it is learnt from boots with larger
/// images, and with less memory.
///
/// # Errors
///
/// A run that failed.
pub fn boot(options: &setup::Options) -> Result<Boot> {
    const USUAL: u64 = 512 * MIB;
    let (usual, el2_memory) = boot_of(USUAL, 0, options)?;
    let (larger, _) = boot_of(USUAL, 2 << 20, options)?;
    let (smaller, _) = boot_of(USUAL / 2, 0, options)?;
    take_apart(usual, larger, smaller, el2_memory)
}

fn take_apart(usual: Booted, larger: Booted, smaller: Booted, el2_memory: u64) -> Result<Boot> {
    // What all of `of` bytes cost if `more` of them cost as many instructions as lie between two boots.
    let share = |instructions: Option<u64>, more: u64, of: u64| {
        let instructions = instructions.filter(|_| more > 0)?;
        u64::try_from(u128::from(instructions) * u128::from(of) / u128::from(more)).ok()
    };
    let more = larger.images - usual.images;
    let copied_and_hashed = share(larger.total.checked_sub(usual.total), more, usual.images);
    let more = usual.memory - smaller.memory;
    let zeroed = share(usual.total.checked_sub(smaller.total), more, usual.memory);
    let apart = copied_and_hashed.zip(zeroed).and_then(|(copied_and_hashed, zeroed)| {
        let own = usual.total.checked_sub(copied_and_hashed)?.checked_sub(zeroed)?;
        Some(Boot { total: usual.total, copied_and_hashed, zeroed, own, el2_memory })
    });
    apart.ok_or_else(|| anyhow!("boots do not add up: {usual:?}, {larger:?}, {smaller:?}"))
}

/// Boots two VMs of `memory` bytes each with initial RAM disks of `initrd` bytes; says EL2's memory too.
fn boot_of(memory: u64, initrd: usize, options: &setup::Options) -> Result<(Booted, u64)> {
    let target = setup::ensure_rust_target(options)?;
    let guest = std::fs::read(image::build(Package::Guest, &target, options.quiet)?.flat)?;
    let kernel = Kernel::parse(&guest).map_err(|error| anyhow!("the guest image: {error}"))?;
    let vms = ["first", "second"].map(|name| {
        let mut vm = vm(name, "boot", "");
        let initrd = (initrd > 0).then(|| vec![0; initrd]);
        vm.content = Content::Kernel { kernel: kernel.clone(), initrd, append: "role=boot".into() };
        vm.memory = Said::new(memory, ORIGIN);
        vm
    });
    let request = counting(vms.into(), &[])?;
    let prepared = prepare::prepare(&request)?;
    let bundle = prepared.machine.boot.initrd.as_ref().context("there is no bundle")?;
    let images = images(&std::fs::read(bundle)?)?;
    let outcome = passed(run::run_prepared(&request, &prepared)?)?;
    let first = costs(&outcome.console, "boot").into_iter().min();
    let total = first.context("nobody said what the boot cost")?;
    Ok((Booted { images, memory: 2 * memory, total }, outcome.verdict.report.sizes.el2_memory))
}

/// The bytes of a bundle's images. These VMs share all of them, so each is hashed once and copied twice.
fn images(bundle: &[u8]) -> Result<u64> {
    let bundle = Bundle::parse(bundle).map_err(|error| anyhow!("the bundle: {error}"))?;
    let [first, second] = bundle.vms() else { bail!("{} VMs in the bundle", bundle.vms().len()) };
    let images = |vm: &VmConfig<'_>| {
        let images = [Some(vm.kernel), vm.initrd, Some(vm.device_tree)].into_iter().flatten();
        images.map(|image| (image.data.as_ptr(), image.data.len() as u64)).collect::<Vec<_>>()
    };
    ensure!(images(first) == images(second), "the VMs share no images");
    Ok(images(first).iter().map(|(_, size)| size).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_heard() {
        let console =
            ["[a] @cost what=batch instructions=1294", "[b] @cost what=boot instructions=7\r"];
        let console = console.map(str::to_owned);
        assert_eq!(costs(&console, "batch"), [1294]);
        assert_eq!(costs(&console, "boot"), [7]);
        assert!(costs(&console, "nothing").is_empty());
    }

    #[test]
    fn a_boot_is_taken_apart() {
        // 20 instructions for each byte of an image, one for each 4 bytes of memory, and 1000.
        let booted = |images: u64, memory: u64| Booted {
            images,
            memory,
            total: 20 * images + memory / 4 + 1000,
        };
        let (usual, larger, smaller) = (booted(500, 8000), booted(700, 8000), booted(500, 4000));
        let boot = take_apart(usual, larger, smaller, 5).unwrap();
        let expected = Boot {
            total: 13_000,
            copied_and_hashed: 10_000,
            zeroed: 2000,
            own: 1000,
            el2_memory: 5,
        };
        assert_eq!(boot, expected);
        assert!(take_apart(usual, Booted { total: 1, ..larger }, smaller, 5).is_err());
        assert!(take_apart(usual, usual, smaller, 5).is_err());
    }
}
