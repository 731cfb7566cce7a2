//! What takes too long for every change and is more than one run: `cargo xtask soak` runs these one by one.

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use platform::bundle::OnCrashKexec;
use platform::report::Cause;
use tests::built_in;
use tests::cost;
use tests::linux::{Stage, add, add_bystander, disks_are_in, lives, machine};
use tests::run::boot;
use xtask::bench::figures::{self, Size};
use xtask::setup::Flavor;
use xtask::size::MIB;

/// A named test.
type Test = (&'static str, fn() -> Result<()>);

/// Each name starts with that of its soak; `cargo xtask soak` has the list as well.
const TESTS: &[Test] = &[
    ("cost::of_a_close", close_cost),
    ("kernels::cloud_6_1", || kernel(Flavor::Cloud6_1)),
    ("kernels::cloud_6_12", || kernel(Flavor::Cloud6_12)),
    ("kernels::standard_6_1", || kernel(Flavor::Standard6_1)),
    ("kernels::standard_6_12", || kernel(Flavor::Standard6_12)),
    ("kexec::20_kexecs", || many(&["kexec"; 20], "")),
    ("kexec::10_crashes", || many(&["crash,reboot"; 10], "crashkernel=256M")),
    ("kexec::10_reboots", || many(&["reboot"; 10], "")),
    ("kexec::crash_policies", crash_policies),
    ("kexec::without_shutdown", without_shutdown),
    ("native::kexec_crash_and_reboot", native_lives),
    ("native::kexec_without_shutdown", native_no_shutdown),
    ("native::unaware_and_u_boot", native_unaware),
    ("native::adopting_crash_kernel", native_adopt),
    ("restarts::1000_of_one_vm", restarts),
    ("restarts::where_single_registers_trap", restarts_where_single_registers_trap),
    ("load::100_rounds_of_hotplug", hotplug),
    ("load::10_minutes_on_two_vms", load),
];

/// More than any of these takes.
const TIMEOUT: [&str; 2] = ["--timeout", "7200"];

fn main() {
    let trials = TESTS.iter().map(|&(name, test)| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Streams by memory, each from the least to the most that is promised.
fn close_cost() -> Result<()> {
    const STREAMS: [u32; 3] = [1, 8, figures::MOST_STREAMS];
    let mut of_memory = Vec::new();
    for memory in [64 * MIB, 1024 * MIB, 8192 * MIB] {
        let cost = |streams| figures::close(Size { streams, memory }, &TIMEOUT);
        let costs = STREAMS.into_iter().map(cost).collect::<Result<Vec<u64>>>()?;
        println!("{} MiB: {costs:?} instructions for {STREAMS:?} streams", memory / MIB);
        of_memory.push(costs);
    }
    for costs in &of_memory {
        for (streams, cost) in STREAMS.into_iter().zip(costs) {
            cost::is_linear(streams, *cost, costs[0])?;
        }
    }
    for index in 0..STREAMS.len() {
        cost::is_flat(&of_memory.iter().map(|costs| costs[index]).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// A thousand lives of one VM leave no more behind than ten.
fn restarts() -> Result<()> {
    const BOOTS: u32 = 1000;
    let lives = |boots| built_in::reborn(boots, OnCrashKexec::Quiesce, &TIMEOUT);
    built_in::leaves_nothing(&lives(10)?, &lives(BOOTS)?, BOOTS)
}

/// On CPUs that let single registers trap, kernels find the same machine as well.
fn restarts_where_single_registers_trap() -> Result<()> {
    const BOOTS: u32 = 100;
    for on_crash in [OnCrashKexec::Abort, OnCrashKexec::Quiesce] {
        let options = [&["--cpu", "max"], &TIMEOUT[..]].concat();
        built_in::finds_the_same(&built_in::reborn(BOOTS, on_crash, &options)?, BOOTS)?;
    }
    Ok(())
}

/// Every way to use the SMMU that its driver has an option for, with the type of domain that each device has then.
fn kernel(flavor: Flavor) -> Result<()> {
    for (append, domain) in [
        ("iommu.strict=1", "DMA"),
        ("iommu.strict=0", "DMA-FQ"),
        ("iommu.passthrough=1", "identity"),
        ("arm-smmu-v3.disable_msipolling=1", "DMA"),
    ] {
        for cpus in ["1", "4"] {
            let append = format!("rounds=5 {append}");
            let options = [&["--smp", cpus], &TIMEOUT[..]].concat();
            let run = boot(&machine(flavor, Stage::Hotplug, &append, &options)?)?.passed()?;
            disks_are_in(&run, domain).with_context(|| append.clone())?;
        }
    }
    Ok(())
}

/// Lives after lives in one VM, each with its disks right, beside another VM that notices nothing.
fn many(steps: &[&str], append: &str) -> Result<()> {
    let append = format!("steps={} {append}", steps.join(","));
    let options = [&["--memory", "1G"], &TIMEOUT[..]].concat();
    let mut request = machine(Flavor::Cloud6_1, Stage::Lives, &append, &options)?;
    add_bystander(&mut request, Flavor::Cloud6_12)?;
    let run = boot(&request)?.passed()?;
    let steps: Vec<&str> = steps.iter().flat_map(|step| step.split(',')).collect();
    lives::came_in_turn(&run.outcome.console, &steps)?;
    run.holds(
        "the other VM tested its disks all the time, and is never torn down but at the end",
        |outcome| {
            let (vms, said) = (&outcome.verdict.report, outcome.testimony.guest("bystander"));
            vms.vm("bystander").is_some_and(|vm| vm.teardowns.len() == 1)
                && said.is_some_and(|said| said.disks.len() >= 4 * steps.len())
        },
    )?;
    Ok(())
}

fn crash_policies() -> Result<()> {
    for policy in [OnCrashKexec::Abort, OnCrashKexec::Quiesce, OnCrashKexec::Preserve] {
        let append = "steps=crash,reboot,crash crashkernel=256M";
        let options = [&["--memory", "1G"], &TIMEOUT[..]].concat();
        let mut request = machine(Flavor::Cloud6_12, Stage::Lives, append, &options)?;
        request.vms[0].smmu.on_crash_kexec = policy;
        boot(&request)?.passed()?.holds("each crash was seen", |outcome| {
            let linux = outcome.verdict.report.vm("linux");
            let causes = linux.iter().flat_map(|vm| &vm.teardowns).map(|t| t.cause);
            causes.filter(|cause| *cause == Cause::CrashKexec).count() == 2
        })?;
    }
    Ok(())
}

/// A kernel whose SMMU driver does nothing at its end starts another one.
fn without_shutdown() -> Result<()> {
    lives::without_shutdown(lives::GUEST)?
        .holds("the third life finds an SMMU as after reset", |outcome| {
            !outcome.console.iter().any(|line| line.contains(lives::FOUND_ENABLED))
        })?
        .holds("nobody but EL2 closed the second life's streams", |outcome| {
            // The third life's driver is as it was.
            let causes = lives::causes(outcome, "linux");
            let count = |wanted| causes.iter().filter(|cause| **cause == wanted).count();
            count(Cause::SmmuDisable) == 2 && count(Cause::CrashKexec) == 1
        })?;
    Ok(())
}

fn hotplug() -> Result<()> {
    for flavor in [Flavor::Cloud6_1, Flavor::Cloud6_12] {
        let options = [&TIMEOUT[..], &["--smp", "2"]].concat();
        boot(&machine(flavor, Stage::Hotplug, "rounds=100", &options)?)?
            .passed()?
            .printed("@check cpu rounds=100 ok")?
            .printed("@check drivers rounds=100 ok")?
            .printed("@check rescan ok")?;
    }
    Ok(())
}

fn load() -> Result<()> {
    let mut request =
        machine(Flavor::Standard6_1, Stage::Load, "seconds=600 limit=7200", &TIMEOUT)?;
    add(&mut request, "other", Flavor::Standard6_12, Stage::Load, "seconds=540 limit=7200")?;
    boot(&request)?
        .passed()?
        .printed("[linux] @check fio")?
        .printed("[other] @check fio")?
        .holds("no event was lost, and both VMs' disks were nested", lives::undisturbed)?;
    Ok(())
}

fn native_lives() -> Result<()> {
    lives::came_each_way(boot(&lives::each_way(lives::NATIVE)?)?)?;
    Ok(())
}

fn native_no_shutdown() -> Result<()> {
    lives::without_shutdown(lives::NATIVE)?.printed(lives::FOUND_ENABLED)?;
    Ok(())
}

fn native_unaware() -> Result<()> {
    lives::unaware(lives::NATIVE)?;
    Ok(())
}

fn native_adopt() -> Result<()> {
    lives::adopt(&lives::adopting(lives::NATIVE)?)?;
    Ok(())
}
