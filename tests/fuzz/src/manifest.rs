//! A VM manifest as a user may write it.

use std::fmt::Write;
use std::path::Path;

use platform::bundle::{MAX_CPUS, MAX_FUNCTIONS};
use platform::guest_map;
use xtask::exit::Exit;
use xtask::manifest::parse;
use xtask::vm::{Content, Cpus, Vm};

/// Where the manifest is said to be; the files that it may name are not there.
const PLACE: &str = "no such folder/vm.toml";

/// Reads the manifest; what is accepted means the same after it was written again.
pub fn run(bytes: &[u8]) {
    // Files elsewhere are none of the fuzzer's.
    let Some(text) = str::from_utf8(bytes).ok().filter(|text| !text.contains('/')) else { return };
    let lines = text.lines().count() + 1;
    let place = |message: &str| {
        let rest = message.strip_prefix(PLACE).and_then(|rest| rest.strip_prefix(':'));
        let line = rest.and_then(|rest| rest.split_once(": ")).map(|(line, _)| line);
        let line: usize = line.and_then(|line| line.parse().ok()).expect(message);
        assert!((1..=lines).contains(&line), "{message}");
    };
    let vm = match parse(Path::new(PLACE), text) {
        Ok(vm) => vm,
        Err(error) => {
            assert_eq!(Exit::of(&error), Exit::BadInput);
            return place(&format!("{error:#}"));
        }
    };
    place(&vm.name.origin);
    check(&vm);
    let again = parse(Path::new(PLACE), &write(&vm)).expect("what was written can be read");
    assert_eq!(write(&again), write(&vm));
    // One step past what may be said is refused.
    let refused = |change: fn(&mut Vm)| {
        let mut changed = vm.clone();
        change(&mut changed);
        assert!(parse(Path::new(PLACE), &write(&changed)).is_err(), "{}", write(&changed));
    };
    refused(|vm| vm.memory.value += guest_map::RAM_GRANULE / 2);
    refused(|vm| vm.memory.value = guest_map::RAM_LIMIT + guest_map::RAM_GRANULE);
    refused(|vm| vm.cpus.value = Cpus::Count(MAX_CPUS as u32 + 1));
    if !vm.functions.is_empty() {
        refused(|vm| vm.functions.push(vm.functions[0].clone()));
    }
}

fn check(vm: &Vm) {
    assert!(platform::name::parse(&vm.name.value).is_ok());
    let Content::BuiltIn { role, .. } = &vm.content else { panic!("no kernel is there") };
    assert!(["victim", "rogue"].contains(&role.as_str()));
    assert!((1..=MAX_CPUS as u32).contains(&vm.cpus.value.count()));
    if let Cpus::These(list) = &vm.cpus.value {
        assert!(list.iter().all(|cpu| (*cpu as usize) < MAX_CPUS));
    }
    let memory = vm.memory.value;
    assert!(
        memory > 0
            && memory <= guest_map::RAM_LIMIT
            && memory.is_multiple_of(guest_map::RAM_GRANULE)
    );
    assert!(vm.functions.len() <= MAX_FUNCTIONS);
}

/// The manifest of a VM that runs a built-in guest.
fn write(vm: &Vm) -> String {
    let mut text = String::new();
    let Content::BuiltIn { role, append } = &vm.content else { unreachable!() };
    let cpus = match &vm.cpus.value {
        Cpus::Count(count) => count.to_string(),
        Cpus::These(list) => format!("{list:?}"),
    };
    let mut line =
        |key: &str, value: String| writeln!(text, "{key} = {value}").expect("a string grows");
    line("name", quoted(&vm.name.value));
    line("builtin", quoted(role));
    line("append", quoted(append));
    line("cpus", cpus);
    line("memory", quoted(&format!("{}M", vm.memory.value >> 20)));
    vm.expect.iter().for_each(|expect| line("expect", quoted(expect)));
    line("on-exit", quoted(vm.on_exit.value.as_str()));
    line("smmu.stage1", quoted(vm.smmu.stage1.value.as_str()));
    line("smmu.dma-at-boot", quoted(vm.smmu.dma_at_boot.as_str()));
    line("smmu.on-crash-kexec", quoted(vm.smmu.on_crash_kexec.as_str()));
    line("smmu.reopen", quoted(vm.smmu.reopen.as_str()));
    for function in &vm.functions {
        line("[[pci]]\naddress", quoted(&function.value.address.to_string()));
        line("reset", quoted(function.value.reset.as_str()));
    }
    text
}

/// A TOML string of any characters.
fn quoted(text: &str) -> String {
    let escaped: String = text.chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect();
    format!("\"{escaped}\"")
}
