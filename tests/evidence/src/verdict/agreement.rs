//! Checks that need no table: each source for itself, and EL2's counts against QEMU's.

use std::collections::{BTreeMap, BTreeSet};

use platform::report::{Cause, VmState};
use smmu::addr::StreamId;

use super::place::physical;
use super::table::thousands;
use crate::machine::{Guest, Machine, Vm};
use crate::memory::Found;
use crate::report::{self, Report};
use crate::testimony::{self, Testimony};
use crate::trace::{Trace, command_name, event_name};

/// What is wrong with what the guests said, or did not say.
pub fn guests(machine: &Machine, testimony: &Testimony) -> Vec<String> {
    let mut findings = Vec::new();
    for vm in &machine.vms {
        let nothing = testimony::Guest::default();
        let said = testimony.guest(&vm.name).unwrap_or(&nothing);
        guest(vm, said, machine, &mut findings);
    }
    let missing = testimony.missing();
    findings.extend(missing.map(|(vm, text)| format!("{vm} never printed \"{text}\"")));
    findings
}

fn guest(vm: &Vm, said: &testimony::Guest, machine: &Machine, findings: &mut Vec<String>) {
    let name = &vm.name;
    for failure in &said.failures {
        findings.push(format!("{name}: {failure}"));
    }
    for canary in &said.canaries {
        if let Some(changed) = canary.changed {
            findings.push(format!("{name}: canary {:#x} changed at {changed:#x}", canary.page));
        }
    }
    // Somebody who is cut off may be cut off within a line.
    if let Some(line) = said.unread.as_ref().filter(|_| !vm.may_be_cut_off) {
        findings.push(format!("{name} said what nobody understands: {line}"));
    }
    if said.overflowed {
        findings.push(format!("{name} said more than {} lines", testimony::LIMIT));
    }
    if vm.guest.says_done() && !vm.may_be_cut_off && said.done.is_empty() {
        findings.push(format!("{name} did not come to its end"));
    }
    match &vm.guest {
        Guest::BuiltIn { role, .. } => {
            if let Some(done) = said.done.iter().find(|done| done.role != *role) {
                findings.push(format!("{name} is a {role} and says that it is a {}", done.role));
            }
            if role == "victim" && said.canaries.is_empty() && !vm.may_be_cut_off {
                findings.push(format!("{name} said nothing of its canaries"));
            }
        }
        Guest::Linux { .. } | Guest::Other => {}
    }
    let owned = machine.devices.iter().filter(|device| device.vm.as_ref() == Some(name));
    for disk in owned.filter_map(|device| device.disk.as_ref()) {
        let told = |written| said.disks.iter().any(|d| d.name == *disk && d.written == written);
        if !vm.may_be_cut_off && [false, true].into_iter().any(|written| !told(written)) {
            findings.push(format!("{name} did not tell what it read from and wrote to {disk}"));
        }
    }
    for device in said.tried.iter().map(|t| &t.device).chain(said.armed.iter().map(|a| &a.device)) {
        if machine.device_of(name, device).is_none() {
            findings.push(format!("{name} told of DMA by {device}, which it does not own"));
            break;
        }
    }
}

/// Which VMs did not end as they should, by EL2's word.
pub fn ends(machine: &Machine, report: &Report) -> Vec<String> {
    let ended = |vm: &Vm| {
        let Some(reported) = report.vm(&vm.name) else {
            return Some(format!("EL2 reported nothing of {}", vm.name));
        };
        let wrong = match reported.state {
            VmState::Off => return None,
            VmState::Crashed => "crashed",
            VmState::Running => "still runs",
            VmState::Restarting => "is between two boots",
        };
        let why = if reported.state == VmState::Crashed { restless(reported) } else { None };
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        (!vm.may_be_cut_off).then(|| format!("{} {wrong}{why}", vm.name))
    };
    machine.vms.iter().filter_map(ended).collect()
}

/// Why EL2 never uses the memory of a VM again that ended by itself and in order.
fn restless(vm: &report::Vm) -> Option<String> {
    let last = vm.teardowns.last()?;
    let in_order = matches!(last.cause, Cause::SystemOff | Cause::SystemReset);
    let restless = last.quiesced.iter().find(|function| in_order && !function.clean)?;
    Some(format!(
        "nothing proves that {} is quiet after its end; where switching bus mastering off will do, say reset = \
         \"bus-master\" in a manifest's [[pci]]",
        restless.address
    ))
}

/// Where EL2's counts differ from QEMU's.
pub fn el2(report: &Report, trace: &Trace, machine: &Machine) -> Vec<String> {
    let mut findings = events(report, trace, machine);
    findings.extend(commands(report, trace));
    let gerror = report.smmu.iter().fold(0, |bits, smmu| bits | smmu.gerror);
    if trace.gerror() & !gerror != 0 {
        let traced = trace.gerror();
        findings.push(format!("QEMU set GERROR bits {traced:#x}, EL2 saw {gerror:#x}"));
    }
    findings
}

fn events(report: &Report, trace: &Trace, machine: &Machine) -> Vec<String> {
    let mut findings = Vec::new();
    let mut missing = 0;
    let traced = trace.streams().keys().copied();
    let reported = report.streams.iter().map(|stream| StreamId(stream.sid));
    for sid in traced.chain(reported).collect::<BTreeSet<_>>() {
        let qemu = trace.streams().get(&sid).map(|stream| stream.events()).unwrap_or_default();
        let mut el2 = BTreeMap::<String, u64>::new();
        for (name, count) in report.stream(sid.0).iter().flat_map(|stream| &stream.faults) {
            let sum = el2.entry(event_name(name)).or_default();
            *sum = sum.saturating_add(*count);
        }
        for event in qemu.keys().chain(el2.keys()).collect::<BTreeSet<_>>() {
            let (qemu, el2) = (count(&qemu, event), count(&el2, event));
            missing += qemu.saturating_sub(el2);
            // An event that QEMU could not deliver is in its trace all the same.
            if el2 > qemu || (el2 < qemu && report.dropped() == 0) {
                let device = named(machine, sid);
                findings.push(format!(
                    "EL2 counts {} {event} of {device}, QEMU {}",
                    thousands(el2),
                    thousands(qemu)
                ));
            }
        }
    }
    // What a guest's own queue had no room for was counted before it was dropped.
    let guests_queues = report.smmu.iter().any(|smmu| smmu.guest_batches > 0);
    if missing < report.dropped() && !guests_queues {
        findings.push(format!(
            "EL2 says that {} events were dropped, QEMU has {} that EL2 did not count",
            thousands(report.dropped()),
            thousands(missing)
        ));
    }
    findings
}

fn commands(report: &Report, trace: &Trace) -> Vec<String> {
    let mut el2 = BTreeMap::<String, u64>::new();
    for (name, count) in report.smmu.iter().flat_map(|smmu| &smmu.commands) {
        let sum = el2.entry(command_name(name)).or_default();
        *sum = sum.saturating_add(*count);
    }
    let opcodes: BTreeSet<_> = el2.keys().chain(trace.commands().keys()).collect();
    let differs = |opcode: &&&String| count(&el2, opcode) != count(trace.commands(), opcode);
    opcodes
        .iter()
        .filter(differs)
        .map(|opcode| {
            let (el2, qemu) = (count(&el2, opcode), count(trace.commands(), opcode));
            format!("EL2 issued {} {opcode}, QEMU took {}", thousands(el2), thousands(qemu))
        })
        .collect()
}

/// What attackers left in memory that is not theirs.
pub fn memory(machine: &Machine, report: &Report, found: &Found) -> Vec<String> {
    let attacker = |nonce| {
        let attacker = machine.vms.iter().find(|vm| vm.guest.nonce() == Some(nonce));
        attacker.map_or("somebody", |vm| vm.name.as_str())
    };
    let findings = found.hits.iter().map(|hit| {
        let whose = physical(machine, report, hit.at.start);
        let (start, end) = (hit.at.start, hit.at.end);
        format!("{} wrote {start:#x}..{end:#x} of {whose}", attacker(hit.nonce))
    });
    findings.collect()
}

fn count(counts: &BTreeMap<String, u64>, name: &str) -> u64 {
    counts.get(name).copied().unwrap_or_default()
}

/// What findings call the function with StreamID `sid`.
pub fn named(machine: &Machine, sid: StreamId) -> String {
    match machine.device(sid) {
        Some(device) => format!("{} {}", device.address, device.label),
        None => format!("stream {sid}"),
    }
}
