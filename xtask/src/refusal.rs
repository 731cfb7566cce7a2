//! Machines that nobody runs: QEMU refuses them, EL2 refuses them, or EL2 never shows itself. And who asked for them.
//!
//! Most claims are checked here before anything starts ([`plan`](crate::plan)). What only the machine itself can tell, a
//! device's reset or an SMMU's stages, EL2 finds out, says on its console, and starts nobody. If that was a claim of the
//! user's it is bad input like any other, with the place where it was made.

use std::time::Duration;

use platform::pcie::Bdf;

use crate::plan::{Owner, Plan};
use crate::request::Request;

/// Why nothing ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What, where, and what to do next.
    pub why: String,
    /// Whether the user asked for what is refused.
    pub asked: bool,
}

/// QEMU's, with its `messages`.
pub fn by_qemu(messages: &[String]) -> Refusal {
    let messages = match messages {
        [] => {
            "it ended at once and said nothing: try the same without --qemu and --qemu-arg".into()
        }
        said => said.join("\n  "),
    };
    Refusal { why: format!("QEMU refuses the machine: {messages}"), asked: true }
}

/// EL2's, which [`said`] `text`.
pub fn by_el2(text: &str, request: &Request, plan: &Plan) -> Refusal {
    match origin(text, request, plan) {
        Some(origin) => Refusal { why: format!("{origin}: EL2 refuses it: {text}"), asked: true },
        None => Refusal { why: format!("EL2 refuses to start: {text}"), asked: false },
    }
}

/// That of a machine on which EL2 has not shown itself, whose console has `lines`: it runs on after the given time, or QEMU
/// has ended.
pub fn silence(request: &Request, after: Option<Duration>, lines: &[String]) -> Refusal {
    let mut why = match after {
        Some(after) => format!(
            "EL2 gives no sign of life: after {} s nothing has closed the SMMU, which it does before all else",
            after.as_secs()
        ),
        None => "QEMU has ended without running EL2".to_owned(),
    };
    if let Some(line) = lines.iter().find(|line| !line.trim().is_empty()) {
        why += &format!(", and the console begins with {line:?}");
    }
    let machine = request.machine();
    match &machine {
        Some(options) => {
            why = format!(
                "{options}: {why}: leave out what EL2 cannot run with, or look with --gdb where the CPU is"
            );
        }
        None => why += ": look with --gdb where the CPU is",
    }
    Refusal { why, asked: machine.is_some() }
}

/// What a line of the console refuses, if it is EL2's word about the machine or what it shall run.
pub fn said(line: &str) -> Option<&str> {
    line.strip_prefix("[el2] ERROR: ")
}

/// Where the user asked for what EL2 refuses by `text`; `None` if nobody did.
fn origin(text: &str, request: &Request, plan: &Plan) -> Option<String> {
    let vm = plan.vms.iter().find_map(|owner| {
        let of_vm = text.strip_prefix("VM ").unwrap_or(text);
        let what = of_vm.strip_prefix(owner.vm.name.value.as_str())?.strip_prefix(": ")?;
        Some((owner, what))
    });
    match vm {
        // Nobody asked for what the demonstration consists of.
        Some((owner, what)) if !request.demonstration => Some(claim(owner, what, plan)),
        _ => function(None, text, plan).or_else(|| request.machine()),
    }
}

/// Where the claim of `owner` was made that EL2 cannot grant for the reason `what`.
fn claim(owner: &Owner, what: &str, plan: &Plan) -> String {
    let vm = &owner.vm;
    let keys = [
        ("on-exit", &vm.on_exit.origin),
        ("stage1", &vm.smmu.stage1.origin),
        ("CPU ", &vm.cpus.origin),
    ];
    let key = keys.into_iter().find(|(key, _)| what.starts_with(key));
    let key = key.or(what.contains("RAM").then_some(("memory", &vm.memory.origin)));
    key.map(|(_, origin)| origin.clone())
        .or_else(|| function(Some(owner), what, plan))
        .unwrap_or_else(|| vm.name.origin.clone())
}

/// Where the first function that `text` names was claimed by `owner`, or else given to the machine.
fn function(owner: Option<&Owner>, text: &str, plan: &Plan) -> Option<String> {
    let word = |word: &str| word.trim_end_matches([':', ',']).parse::<Bdf>().ok();
    let bdf = text.split(' ').find_map(word)?;
    let claim = owner
        .and_then(|owner| owner.vm.functions.iter().find(|claim| claim.value.address == bdf))
        .map(|claim| &claim.origin);
    let given =
        || plan.devices.iter().find(|placed| placed.bdf == bdf).map(|placed| &placed.origin);
    claim.or_else(given).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::plan;

    const MANIFEST: &str = "name = \"a\"\nbuiltin = \"victim\"\ncpus = [0]\nmemory = \"16M\"\n\
                            on-exit = \"off\"\n[smmu]\nstage1 = \"nested\"\n[[pci]]\naddress = \"00:05.0\"\n";

    fn origin_of(text: &str, options: &[&str]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join("a.toml");
        std::fs::write(&manifest, MANIFEST).unwrap();
        let arguments = [&["--vm", manifest.to_str().unwrap()], options].concat();
        let request = crate::request::tests::request(&arguments).unwrap();
        let plan = plan::plan(request.vms.clone(), &request.devices, &Catalog::Unasked).unwrap();
        let origin = origin(text, &request, &plan)?;
        Some(origin.rsplit_once('/').map_or(origin.clone(), |(_, name)| name.to_owned()))
    }

    #[test]
    fn a_refusal_leads_to_the_line_that_made_the_claim() {
        let devices = ["--device", "edu,addr=9", "--cpu", "max"];
        for (text, expected) in [
            ("VM a: CPU 4 does not exist, there are 2: change `cpus`", "a.toml:3: cpus"),
            ("a: 16384 KiB of its RAM could not be had: give the machine more", "a.toml:4: memory"),
            ("VM a: on-exit = \"restart\", but 00:05.0 has no reset: say", "a.toml:5: on-exit"),
            ("a: stage1 = \"nested\", but its SMMU cannot nest", "a.toml:7: smmu.stage1"),
            ("VM a: 00:05.0: its DMA would bypass the SMMU", "a.toml:9: pci[0].address"),
            ("VM a: 00:05.0 shares its interrupt line with 00:09.0", "a.toml:9: pci[0].address"),
            ("VM a: the DMA of 00:09.0 passes no SMMU", "--device edu,addr=9"),
            ("a: its interrupts make no GIC", "a.toml:1: name"),
            ("no bus number left below the PCI bridge 00:09.0: enlarge", "--device edu,addr=9"),
            ("this CPU has 36 bits of physical address", "--cpu max, --device edu,addr=9"),
        ] {
            assert_eq!(origin_of(text, &devices).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_nobody_asked_for_leads_nowhere() {
        assert_eq!(origin_of("bundle: the data does not match its SHA-256", &[]), None);
        assert_eq!(said("[el2] ERROR: x"), Some("x"));
        assert_eq!(said("[a] [el2] ERROR: x"), None);
        assert_eq!(said("[el2] 00:01.0 1234:11e8"), None);
    }
}
