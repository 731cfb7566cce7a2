//! A Linux guest drives an `edu` from userspace, through `uio_pci_generic` of Debian's standard kernel.

use anyhow::Result;
use tests::run::boot;
use tests::uio::attack;

use crate::Test;

pub const TESTS: &[Test] = &[("linux::a_userspace_driver_is_confined_to_its_vm", confined)];

/// The StreamID of the attacking function, 00:01.0.
const ATTACKER: u32 = 0x8;

/// The hypervisor, the victim and the registers of the SMMU are out of reach, in both directions; that they are
/// stopped, counted alike by EL2 and QEMU, and nowhere in memory, is what the verdict says.
///
/// A stale address is another matter: a page that the program has let go of is still the VM's, so without an SMMU of
/// the VM's own DMA arrives there. It is confined to the VM, not to the program.
fn confined() -> Result<()> {
    boot(&attack()?)?
        .passed()?
        .has_row("00:01.0 edu linux own RAM")?
        .has_row("00:01.0 edu linux victim")?
        .has_row("00:01.0 edu linux hypervisor")?
        .has_row("00:01.0 edu linux smmu 0x9050000")?
        .has_row("00:03.0 nvme linux its driver's DMA")?
        .has_row("00:04.0 virtio-blk linux its driver's DMA")?
        .holds("every access outside of the VM ended as F_TRANSLATION", |outcome| {
            let stopped = outcome.testimony.guest("linux").map(|said| {
                let foreign = said.tried.iter().filter(|tried| tried.arrived == 0);
                foreign.map(|tried| tried.accesses).sum::<u64>()
            });
            let stream = outcome.verdict.report.stream(ATTACKER);
            stream.is_some_and(|stream| {
                stream.vm.as_deref() == Some("linux")
                    && stopped.is_some_and(|stopped| stopped > 0)
                    && stream.faults.get("F_TRANSLATION").copied() == stopped
                    && stream.faults.len() == 1
            })
        })?
        .holds("both disks were read after the last DMA, and right", |outcome| {
            let lines = || outcome.console.iter().map(String::as_str);
            let last = lines().rposition(|line| line.starts_with("[linux] @tried"));
            let mut after = lines().skip(last.unwrap_or(usize::MAX));
            let read = |line: &str, name| {
                line.starts_with(&format!("[linux] @disk name={name} "))
                    && line.ends_with("sha256=ok")
            };
            ["nvme0n1", "vda"].iter().all(|name| after.any(|line| read(line, name)))
        })?
        .holds("the victim lived until the end", |outcome| {
            outcome.testimony.guest("victim").is_some_and(|said| said.done.is_empty())
        })?;
    Ok(())
}
