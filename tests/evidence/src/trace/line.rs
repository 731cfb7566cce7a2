//! One line of QEMU's log, as `hw/arm/trace-events` and `hw/arm/smmuv3.c` print it.
//!
//! Up to QEMU 9.0 StreamIDs were decimal, later ones are hexadecimal with `0x`; both are read. A log line
//! may carry a prefix (`pid@seconds:`, a time, a thread's name), depending on version and `-msg`.

use smmu::addr::{Iova, Pa, StreamId};

/// What a line of the trace says. `name` is QEMU's name of the function's memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A translation succeeded. `perm` is what the mapping allows, not what the access was.
    Success { name: &'a str, sid: StreamId, iova: Iova, translated: Pa, perm: u8 },
    /// An access was aborted without a record: STE.Config, or `GBPA.ABORT` with the SMMU disabled.
    Abort { name: &'a str, sid: StreamId, iova: Iova },
    /// An access went through untranslated, because the SMMU is disabled and `GBPA.ABORT` is 0.
    Disabled { name: &'a str, sid: StreamId, iova: Iova },
    /// An access went through untranslated, because the STE says so.
    Bypass { name: &'a str, sid: StreamId, iova: Iova },
    /// An access was refused; if it gets a record, the event follows.
    Failed { name: &'a str, iova: Iova, event: &'a str },
    /// An event was recorded, or lost because its queue is full.
    Event { event: &'a str, sid: StreamId },
    /// `CFGI_STE` was consumed.
    CfgiSte { sid: StreamId },
    /// A command was taken from the queue.
    Command { opcode: &'a str },
    /// A register was written, at an offset in page 0.
    RegisterWrite { offset: u64, value: u64 },
    /// `GERROR` bits toggled.
    Gerror { toggled: u32 },
    /// A bus master got its memory region.
    Master,
    /// An event of the SMMU that nobody needs.
    Other,
}

/// It begins like a line of the trace and does not go on like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

const REGION: &str = "smmuv3-iommu-memory-region-";

impl<'a> Line<'a> {
    /// Reads one line; `None` if it is not the SMMU's.
    pub fn parse(line: &'a str) -> Option<Result<Self, Unreadable>> {
        let line = line.trim_end();
        if let Some((event, rest)) = event(line) {
            return Some(Self::traced(event, rest.trim_start()).ok_or(Unreadable));
        }
        let at = line.find(REGION)?;
        let (name, rest) = line[at..].split_once(" translation failed for iova=")?;
        Some(Self::failed(name, rest).ok_or(Unreadable))
    }

    fn failed(name: &'a str, rest: &'a str) -> Option<Self> {
        let (iova, event) = rest.split_once('(')?;
        let event = event.strip_suffix(')')?;
        Some(Self::Failed { name, iova: Iova::new(number(iova.trim_end())?), event })
    }

    fn traced(event: &str, rest: &'a str) -> Option<Self> {
        match event {
            "smmuv3_translate_success" => {
                let mut words = rest.split(' ');
                let name = words.next()?;
                let mut field = |key: &str| number(words.next()?.strip_prefix(key)?);
                let sid = stream(field("sid=")?)?;
                let iova = Iova::new(field("iova=")?);
                let translated = Pa::new(field("translated=")?);
                let perm = u8::try_from(field("perm=")?).ok()?;
                Some(Self::Success { name, sid, iova, translated, perm })
            }
            "smmuv3_translate_abort" => untranslated(rest, "abort on")
                .map(|(name, sid, iova)| Self::Abort { name, sid, iova }),
            "smmuv3_translate_disable" => untranslated(rest, "bypass (smmu disabled)")
                .map(|(name, sid, iova)| Self::Disabled { name, sid, iova }),
            "smmuv3_translate_bypass" => untranslated(rest, "STE bypass")
                .map(|(name, sid, iova)| Self::Bypass { name, sid, iova }),
            "smmuv3_record_event" | "smmuv3_propagate_event" => {
                let (event, sid) = rest.split_once(" sid=")?;
                Some(Self::Event { event, sid: stream(number(sid)?)? })
            }
            "smmuv3_cmdq_cfgi_ste" => {
                let (_, sid) = rest.split_once('=')?;
                Some(Self::CfgiSte { sid: stream(number(sid.trim_start())?)? })
            }
            "smmuv3_cmdq_opcode" => Some(Self::Command { opcode: rest.strip_prefix("<--- ")? }),
            "smmuv3_write_mmio" => {
                let (offset, rest) = rest.strip_prefix("addr: ")?.split_once(" val:")?;
                let (value, _) = rest.split_once(" size:")?;
                Some(Self::RegisterWrite { offset: number(offset)?, value: number(value)? })
            }
            "smmuv3_write_gerror" => {
                let (toggled, _) = rest.strip_prefix("toggled=")?.split_once(',')?;
                Some(Self::Gerror { toggled: number(toggled)?.try_into().ok()? })
            }
            "smmu_add_mr" => Some(Self::Master),
            _ => Some(Self::Other),
        }
    }
}

/// The PCI device and function number in QEMU's name of a function's memory region.
pub fn devfn(name: &str) -> Option<u8> {
    name.strip_prefix(REGION)?.split('-').next()?.parse().ok()
}

/// Finds the event's name and what follows it, after any prefix.
fn event(line: &str) -> Option<(&str, &str)> {
    let at = line.find("smmuv3_").into_iter().chain(line.find("smmu_add_mr")).min()?;
    let prefix = line[..at].chars().next_back();
    if prefix.is_some_and(|c| c != ':' && c != ' ') {
        return None;
    }
    let line = &line[at..];
    let end = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(line.len());
    // A name at the end of a sentence is talk about an event, as in QEMU's own warnings.
    (!line[end..].starts_with('\'')).then(|| line.split_at(end))
}

/// `NAME sid=S WHAT iova:I is_write=W`
fn untranslated<'a>(rest: &'a str, what: &str) -> Option<(&'a str, StreamId, Iova)> {
    let (name, rest) = rest.split_once(" sid=")?;
    let (sid, rest) = rest.split_once(' ')?;
    let (iova, _) = rest.strip_prefix(what)?.strip_prefix(" iova:")?.split_once(' ')?;
    Some((name, stream(number(sid)?)?, Iova::new(number(iova)?)))
}

fn stream(number: u64) -> Option<StreamId> {
    number.try_into().ok().map(StreamId)
}

/// Hexadecimal with `0x`, else decimal.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
