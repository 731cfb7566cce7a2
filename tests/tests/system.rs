//! System tests: the hypervisor and its guests under QEMU, judged by the same oracle as every run.
//!
//! Names start with what a test needs, which is how `cargo xtask test` chooses: `qemu::` bare-metal guests only,
//! `linux::` the Linux guest.

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

#[path = "system/crash.rs"]
mod crash;
#[path = "system/deaths.rs"]
mod deaths;
#[path = "system/demonstration.rs"]
mod demonstration;
#[path = "system/harness.rs"]
mod harness;
#[path = "system/interactive.rs"]
mod interactive;
#[path = "system/linux.rs"]
mod linux;
#[path = "system/lives.rs"]
mod lives;
#[path = "system/machines.rs"]
mod machines;
#[path = "system/native.rs"]
mod native;
#[path = "system/operator.rs"]
mod operator;
#[path = "system/overlap.rs"]
mod overlap;
#[path = "system/quarantine.rs"]
mod quarantine;
#[path = "system/sabotage.rs"]
mod sabotage;
#[path = "system/suites.rs"]
mod suites;
#[path = "system/uio.rs"]
mod uio;

/// A named test.
type Test = (&'static str, fn() -> Result<()>);

fn main() {
    let mut arguments = Arguments::from_args();
    // A machine has several CPUs of its own: more machines at once than host CPUs only wait for each other.
    arguments.test_threads.get_or_insert_with(|| {
        std::thread::available_parallelism().map_or(1, |cpus| cpus.get().div_ceil(2))
    });
    let tests = [
        demonstration::TESTS,
        crash::TESTS,
        deaths::TESTS,
        harness::TESTS,
        machines::TESTS,
        operator::TESTS,
        overlap::TESTS,
        quarantine::TESTS,
        suites::TESTS,
        sabotage::TESTS,
        native::TESTS,
        linux::TESTS,
        interactive::TESTS,
        lives::TESTS,
        uio::TESTS,
    ]
    .concat();
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
