//! A Linux guest drives an `edu` from userspace, through `uio_pci_generic` of Debian's standard kernel.

use anyhow::Result;
use tests::run::boot;
use tests::uio::{attack, stray};

use crate::Test;

pub const TESTS: &[Test] = &[
    ("linux::a_userspace_driver_is_confined_to_its_vm", confined),
    ("linux::a_stray_dma_is_the_guests_own_event", own_event),
];

/// The StreamID of the attacking function, 00:01.0.
const ATTACKER: u32 = 0x8;

/// The hypervisor, the victim and the registers of the SMMU are out of reach, in both directions; that they are
/// stopped, counted alike by EL2 and QEMU, and nowhere in memory, is what the verdict says.
///
/// A stale address is another matter: a page that the program has let go of is still the VM's, so where the VM's own SMMU
/// lets the device pass DMA arrives there. It is confined to the VM, not to the program.
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

/// What Linux has not mapped for the device, a page of its program's own that this has let go of included, is stopped by
/// Linux's own stage 1, and Linux's own log says so: the event, the StreamID and the address are those that Linux knows.
/// Its disks go on, and no event is lost.
fn own_event() -> Result<()> {
    // F_TRANSLATION of StreamID 8; a write, of the transaction itself; the address; no IPA.
    let first = [
        "[linux] smmu: event 0x10 received:",
        "[linux] smmu: 0x0000000800000010",
        "[linux] smmu: 0x0000020000000000",
        "[linux] smmu: 0x0000000012340000",
        "[linux] smmu: 0x0000000000000000",
    ];
    boot(&stray("0x12340000,0x56780000")?)?
        .passed()?
        .has_row("00:01.0 edu linux its driver's DMA 0 192")?
        .has_row("00:03.0 nvme linux its driver's DMA")?
        .holds("the first event is in the guest's log, in its own terms", |outcome| {
            let console: Vec<_> = outcome.console.iter().map(String::as_str).collect();
            console.windows(first.len()).any(|lines| lines == first)
        })?
        .holds("nothing arrived in what the program had let go of", |outcome| {
            let tried = outcome.testimony.guest("linux").map_or(&[][..], |said| &said.tried);
            tried.len() == 3 && tried.iter().all(|tried| tried.arrived == 0)
        })?
        .holds("every event was forwarded and none lost", |outcome| {
            let [smmu] = &outcome.verdict.report.smmu[..] else { return false };
            let events = &smmu.events;
            (events.drained, events.forwarded) == (192, 192)
                && (events.dropped, events.undelivered) == (0, 0)
        })?;
    Ok(())
}
