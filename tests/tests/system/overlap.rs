//! Ends that overlap: of a VM while another kernel is about to take it over, and of two VMs at once.

use anyhow::{Context, Result, bail};
use platform::operator::Command;
use platform::pcie::Bdf;
use platform::report::{Cause, Name, VmState};
use tests::built_in::{undisturbed, victim};
use tests::run::{Run, boot, request};
use xtask::request::{Action, Request, When};
use xtask::vm::{Cpus, LINEAGE, Said, VICTIM};

use crate::Test;

pub const TESTS: &[Test] = &[("qemu::a_kill_during_a_hand_over_ends_it", kill)];

/// How often the kill may come before or after the hand-over, of which no clock outside of the machine knows: the
/// hand-over takes a quarter of a second, as its device has no reset and is watched.
const ATTEMPTS: u32 = 6;
/// What EL2 says of one that came during it.
const HIT: &str = "lineage: ended during its hand-over";

/// How often the device of the VM beside them moves data.
const ROUNDS: u64 = 80;

/// The StreamID of the first VM's device: it is in slot 2.
const FIRST: u32 = 0x10;
/// That of the other one's, in slot 8: its lines are no other VM's.
const OTHER: u32 = 0x40;
const OTHER_SLOTS: [u8; 2] = [4, 8];
/// The slot of the `edu` in which the first VM keeps its generation.
const FIRST_TALLY: u8 = 3;

fn kill() -> Result<()> {
    for _ in 0..ATTEMPTS {
        let run = judge(boot(&machine()?)?)?;
        if run.outcome.console.iter().any(|line| line.contains(HIT)) {
            run.holds("the hand-over and the end were both torn down", |outcome| {
                let vm = outcome.verdict.report.vm(LINEAGE);
                let teardowns = vm.map_or(&[][..], |vm| &vm.teardowns);
                let causes: Vec<Cause> = teardowns.iter().map(|each| each.cause).collect();
                let closed: u64 = teardowns.iter().map(|each| u64::from(each.streams)).sum();
                // Whichever CPU comes first to the SMMU's lock closes both streams.
                let orders = [[Cause::MmuOff, Cause::Operator], [Cause::Operator, Cause::MmuOff]];
                orders.iter().any(|order| causes == *order) && closed == 2
            })?;
            return Ok(());
        }
    }
    bail!("no kill of {ATTEMPTS} came during the hand-over")
}

/// A VM that moves data all the time, one whose kernel starts another one, and one that waits. As soon as the second is
/// about to go the operator switches it off; as soon as the third waits he restarts it. Both take as long to get there, so
/// that the operator ends them at about the same time.
fn machine() -> Result<Request> {
    let mut machine = request(&["--scenario", "es1370-kexec"])?;
    let other = request(&["--scenario", "virtio-blk-kill"])?;
    let mut vm = other.vms.into_iter().next().context("a scenario without VM")?;
    vm.name.value = Name::try_from("other").expect("it fits");
    for (function, slot) in vm.functions.iter_mut().zip(OTHER_SLOTS) {
        function.value.address = Bdf::new(0, slot, 0).expect("slots are below 32");
    }
    // The victim's device is where it is when the victim is alone.
    machine.vms[0].functions[0].value.address =
        Bdf::new(0, FIRST_TALLY, 0).expect("it is below 32");
    let mut device = other.devices.into_iter().next().context("a scenario without device")?;
    device.device.set("addr", &format!("{:x}", OTHER_SLOTS[1]));
    machine.devices.push(device);
    machine.backends.extend(other.backends);
    machine.extra.extend(other.extra);
    machine.vms[0].expect.clear();
    let name = machine.vms[0].name.value.clone();
    let other = vm.name.value.clone();
    machine.actions = [
        (name.clone(), "@armed", Command::Off(name)),
        (other.clone(), "@waits", Command::Restart(other)),
    ]
    .map(|(vm, text, command)| Action {
        when: When::Said { vm, text: text.into() },
        command,
        origin: format!("the order at {text}"),
    })
    .into();
    machine.vms.push(vm);
    // CPU 1 is nobody's: there EL2 listens to the SMMU.
    for (vm, cpu) in machine.vms.iter_mut().zip(2..) {
        vm.cpus = Said::new(Cpus::These(vec![cpu]), "the test");
    }
    // The run ends when the first one does.
    machine.vms.insert(0, victim(ROUNDS));
    Ok(machine)
}

/// What must hold whenever the kill came.
fn judge(run: Run) -> Result<Run> {
    run.passed()?
        .printed("[victim] @done role=victim")?
        .printed("[other] @canary page=0x40400000 ok")?
        .printed("[other] @again source=virtio-blk works")?
        .holds("the kill was the end", |outcome| {
            let vm = outcome.verdict.report.vm(LINEAGE);
            vm.is_some_and(|vm| vm.state == VmState::Off && vm.boots == 1)
        })?
        .holds("the restart was one", |outcome| {
            outcome.verdict.report.vm("other").is_some_and(|vm| vm.boots == 2)
        })?
        .holds("what was closed stays closed; who was restarted has its device again", |outcome| {
            let report = &outcome.verdict.report;
            let (Some(first), Some(other)) = (report.stream(FIRST), report.stream(OTHER)) else {
                return false;
            };
            first.openings() == 1 && other.openings() == 2 && !first.state.is_open()
        })?
        .holds("the VM beside them waited for each end a few times at most", |outcome| {
            // The SMMU's lock is held once for each change of a stream.
            let report = &outcome.verdict.report;
            let changes: u64 = report.streams.iter().map(|s| s.transitions).sum();
            report.vm(VICTIM).is_some_and(|vm| vm.lock_waits <= changes)
        })
        .and_then(|run| undisturbed(run, ROUNDS))
}
