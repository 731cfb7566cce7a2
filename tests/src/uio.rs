//! A Linux guest whose userspace drives an `edu`, and aims it at what the VM does not own.

use std::fs;

use anyhow::{Context, Result, ensure};
use xtask::builtin;
use xtask::image::{self, Package};
use xtask::linux::{Extra, GuestFile};
use xtask::machine::Machine;
use xtask::request::Request;
use xtask::setup::{self, Flavor};
use xtask::size::MIB;
use xtask::vm::{Content, Said};

use crate::built_in;
use crate::run::request;

/// What runs after the guest's disks have been tested.
const STAGE: &str = include_str!("uio/stage.sh");
/// The memory of the Linux guest: little, so that most of the machine's lies at addresses that are not the guest's.
const MEMORY: u64 = 256 * MIB;
/// The memory of the victim: more than lies between two targets, so that one of them is in it wherever it is.
const VICTIM_MEMORY: u64 = 64 * MIB;
/// Bytes of kernel and initramfs, roughly: what the size of the machine's memory does not depend on.
const BUNDLE: u64 = 48 * MIB;
/// More rounds than the victim lives for.
const ROUNDS: &str = "rounds=100000";

/// A run of a Linux guest with its disks and an `edu` at 00:01.0, which attacks, and of a victim. The guest's own SMMU lets
/// all of its devices pass, so that nothing but the VM's stage 2 stands between them and what is not the VM's.
///
/// # Errors
///
/// If the program does not build, or what it is built with is missing.
pub fn attack() -> Result<Request> {
    let mut victim = built_in::told("victim", "victim", 1, ROUNDS);
    victim.memory = Said::new(VICTIM_MEMORY, "the test");
    let ram = Machine::memory_for(MEMORY + VICTIM_MEMORY, BUNDLE);
    let targets = builtin::targets(MEMORY, ram);
    ensure!(!targets.is_empty(), "there is nothing to aim at");
    let targets: Vec<String> = targets.iter().map(|target| format!("{target:#x}")).collect();
    let nonce = builtin::nonce(false);
    let aims = format!("nonce={nonce:#x} targets={}", targets.join(","));
    let mut request = linux("iommu.passthrough=1", &aims, Some(nonce))?;
    request.vms.push(victim);
    Ok(request)
}

/// A run of the same Linux guest, alone, whose SMMU maps nothing for the `edu`, which writes to `addresses` and
/// to a page that its program has let go of.
///
/// # Errors
///
/// As [`attack`].
pub fn stray(addresses: &str) -> Result<Request> {
    linux("", &format!("stray={addresses}"), None)
}

/// A Linux guest with an `edu`, and a program that is told what to aim it at.
fn linux(append: &str, aims: &str, nonce: Option<u32>) -> Result<Request> {
    let mut request = request(&[
        "--linux",
        "--smp",
        "1",
        "--memory",
        &format!("{}M", MEMORY / MIB),
        "--device",
        "edu,addr=1,dma_mask=0xffffffffffffffff",
    ])?;
    request.vms[0].content = Content::Linux {
        flavor: Flavor::Standard6_1,
        append: append.into(),
        extra: Box::new(Extra {
            modules: vec!["uio_pci_generic".into()],
            files: vec![program(&request)?],
            stage: Some(STAGE.replace("AIMS", aims)),
            nonce,
            ..Extra::default()
        }),
    };
    Ok(request)
}

fn program(request: &Request) -> Result<GuestFile> {
    let target = setup::ensure_rust_target(&request.setup)?;
    let elf = image::compile(Package::Uio, &target, true)?;
    let data = fs::read(&elf).with_context(|| format!("reading {}", elf.display()))?;
    Ok(GuestFile { path: "bin/uio".into(), mode: 0o755, data })
}
