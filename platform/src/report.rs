//! The report: what EL2 saw, as records on the UART that EL2 alone owns.
//!
//! One record is one line, [`frame`]d so that a torn or mixed line is noticed:
//!
//! ```text
//! @portcullis <crc32 of the JSON, 8 hex digits> <JSON of one Record>
//! ```
//!
//! A complete report is a `Begin`, the other records in any order, and an `End` that says how many there
//! were. The host turns the records into the `--report` file; the names below are that file's names.

use core::fmt::{self, Write as _};

use heapless::{String, Vec};
use serde::{Deserialize, Serialize, Serializer};

use crate::bundle::MAX_FUNCTIONS;

/// The longest line, without its line end.
pub const MAX_LINE: usize = 4096;
/// What every framed line starts with.
pub const PREFIX: &str = "@portcullis ";
/// The longest name of a VM.
pub const NAME_LEN: usize = 32;

/// A VM's name.
pub type Name = String<NAME_LEN>;

/// An address, written as a hex string.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::<18>::new();
        write!(text, "{:#x}", self.0).map_err(|_| serde::ser::Error::custom("address"))?;
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Hex;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a hex string such as \"0x1000\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Hex, E> {
                text.strip_prefix("0x")
                    .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                    .map(Hex)
                    .ok_or_else(|| E::custom("not a hex string"))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// A name and how often it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// An exit reason, an event name or an opcode name.
    pub name: String<24>,
    /// How often.
    pub count: u64,
}

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Its CPUs execute guest code.
    Running,
    /// It switched itself off, or an operator did.
    Off,
    /// It died, or its memory could not be proven free of DMA (C3).
    Crashed,
    /// It is between two boots.
    Restarting,
}

/// What a piece of a VM's address space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryKind {
    /// Its RAM: the only thing its devices may reach, besides a doorbell.
    Ram,
    /// A device register window that its CPUs reach directly.
    Mmio,
    /// Emulated registers that it reads without an exit.
    Registers,
    /// An MSI doorbell page.
    Doorbell,
}

/// What the physical stream table says of a stream (C2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamState {
    /// Everything aborts, silently.
    Abort,
    /// Everything aborts, and is recorded.
    Watch,
    /// Stage 2 of its VM only.
    Stage2,
    /// The guest's stage 1 on its VM's stage 2.
    Nested,
}

impl StreamState {
    /// Whether its device reaches memory.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Stage2 | Self::Nested)
    }
}

/// Why streams were closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The guest cleared `CR0.SMMUEN`.
    SmmuDisable,
    /// PSCI `SYSTEM_OFF`.
    SystemOff,
    /// PSCI `SYSTEM_RESET`.
    SystemReset,
    /// A CPU of the guest switched its MMU off again.
    MmuOff,
    /// A new kernel started without any shutdown of the old one.
    CrashKexec,
    /// The guest did what no guest may.
    Fault,
    /// The operator said so.
    Operator,
}

impl Cause {
    /// Its name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SmmuDisable => "smmu-disable",
            Self::SystemOff => "system-off",
            Self::SystemReset => "system-reset",
            Self::MmuOff => "mmu-off",
            Self::CrashKexec => "crash-kexec",
            Self::Fault => "fault",
            Self::Operator => "operator",
        }
    }
}

/// How one function was stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiesced {
    /// Its physical address, `BB:DD.F`.
    pub address: String<8>,
    /// By what: `flr`, `virtio`, `pm`, `bus-reset`, `bus-master`, `idle`.
    pub how: String<12>,
    /// Whether EL2 has proof that it is quiet.
    pub clean: bool,
}

/// What happened at one moment of a teardown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// The last stream was closed.
    Closed,
    /// The streams were watched from here on.
    Watched,
    /// The function was made to stop.
    Quiesced,
    /// The function's first late DMA was stopped.
    Late,
    /// The function's stream fell silent, because its budget was spent.
    Silenced,
    /// The function's stream was opened again.
    Reopened,
    /// The watch was over.
    Ended,
    /// The VM's memory was scrubbed and free of the past.
    Scrubbed,
}

/// One moment of a teardown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Microseconds since the cause, on EL2's clock.
    pub at_us: u64,
    /// What happened.
    pub what: What,
    /// The function's physical address, `BB:DD.F`; empty if it is about all of them.
    pub device: String<8>,
    /// How many accesses were late, or streams closed; 0 otherwise.
    pub count: u64,
}

/// How many moments of a teardown are kept: one for each function, and some for what is late.
pub const MAX_MOMENTS: usize = MAX_FUNCTIONS + 32;

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its unique name.
    pub name: Name,
    /// What it is doing.
    pub state: VmState,
    /// How often it was started.
    pub boots: u32,
    /// The physical CPUs it runs on.
    pub cpus: Vec<u32, 16>,
    /// Guest exits, all CPUs together.
    pub exits: u64,
    /// Lines about it that EL2 left out on the console (C7).
    pub lines_left_out: u64,
    /// How often one of its CPUs found a lock taken that VMs share, a physical SMMU's or a UART's. Each time it waited for at
    /// most one turn of every other CPU.
    #[serde(default)]
    pub lock_waits: u64,
}

/// One piece of a VM's address space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmMemory {
    /// Whose.
    pub vm: Name,
    /// Where the guest sees it.
    pub ipa: Hex,
    /// Where it is.
    pub pa: Hex,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// Why a VM's CPUs left guest code, one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmExits {
    /// Whose.
    pub vm: Name,
    /// The reason and how often.
    pub reason: Count,
}

/// One close of a VM's streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Teardown {
    /// Whose.
    pub vm: Name,
    /// Why.
    pub cause: Cause,
    /// How many streams.
    pub streams: u32,
    /// EL2 instructions to the last closed stream, where a deterministic counter exists.
    pub instructions: Option<u64>,
}

/// What became of one function in a teardown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeardownFunction {
    /// Whose teardown.
    pub vm: Name,
    /// Which of the VM's, from 0, in the order of their records.
    pub teardown: u32,
    /// What became of it.
    pub function: Quiesced,
}

/// What happened in a teardown, in the order in which EL2 found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeardownMoment {
    /// Whose teardown.
    pub vm: Name,
    /// Which of the VM's, from 0, in the order of their records.
    pub teardown: u32,
    /// What happened.
    pub moment: Moment,
}

/// DMA that arrived after its owner was gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Accesses that were refused and recorded.
    pub count: u64,
    /// The first address.
    pub first: Option<Hex>,
    /// Whether the first one was a write.
    pub write: Option<bool>,
    /// Whether the stream went silent because its budget was spent.
    pub silenced: bool,
}

/// One stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Its StreamID.
    pub sid: u32,
    /// Its owner's name, if a VM owns it.
    pub vm: Option<Name>,
    /// `BB:DD.F vendor:device` of the function behind it.
    pub device: String<24>,
    /// Its state now.
    pub state: StreamState,
    /// How often the state changed.
    pub transitions: u64,
    /// Whether its function could still do DMA when its owner went.
    pub armed_at_close: bool,
    /// Whether its events were switched off because they came too fast (C7).
    pub muted: bool,
    /// What its function tried after its owner went.
    pub stopped_after_teardown: Stopped,
}

/// One step in a stream's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The stream.
    pub sid: u32,
    /// The state it entered.
    pub state: StreamState,
    /// How many CFGI commands for this stream had been issued when the state could first be seen.
    pub cfgi: u64,
}

/// How often one event was recorded for a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The stream.
    pub sid: u32,
    /// The event and how often.
    pub event: Count,
}

/// What became of the physical event queue's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Taken from the queue.
    pub drained: u64,
    /// Passed on to a guest.
    pub forwarded: u64,
    /// Lost to an overflow.
    pub dropped: u64,
    /// Meant for a guest that could not be told: its queue was full, or disabled, or nowhere in its RAM.
    #[serde(default)]
    pub undelivered: u64,
}

/// One SMMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Smmu {
    /// Its registers.
    pub base: Hex,
    /// `nested` or `stage2`.
    pub class: String<8>,
    /// `CMD_SYNC`s issued.
    pub syncs: u64,
    /// Batches taken over from guests.
    pub guest_batches: u64,
    /// Event records.
    pub events: Events,
    /// Every `GERROR` bit ever seen active.
    pub gerror: u32,
}

/// How often one command was issued to an SMMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The SMMU's registers.
    pub base: Hex,
    /// The opcode's name and how often.
    pub opcode: Count,
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Code of the image.
    pub image_text: u64,
    /// EL2's memory beside guest RAM: its image, and its frames that are in use.
    pub el2_memory: u64,
    /// Guest RAM that is in use.
    pub guest_memory: u64,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, clippy::large_enum_variant)] // each variant is documented at its content
pub enum Record {
    Begin { version: u32 },
    Vm(Vm),
    VmMemory(VmMemory),
    VmExits(VmExits),
    Teardown(Teardown),
    TeardownFunction(TeardownFunction),
    TeardownMoment(TeardownMoment),
    Stream(Stream),
    Step(Step),
    Fault(Fault),
    Smmu(Smmu),
    Command(Command),
    Sizes(Sizes),
    End { records: u32 },
}

const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// Why a framed line was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// It is not a framed line at all.
    NotAFrame,
    /// It is one, but torn or changed on the way.
    Damaged,
    /// Its record does not fit a line.
    TooLong,
}

/// Writes `record` as one framed line, without line end.
///
/// # Errors
///
/// [`FrameError::TooLong`] if the record needs more than [`MAX_LINE`] bytes.
pub fn frame(record: &Record, line: &mut String<MAX_LINE>) -> Result<(), FrameError> {
    let mut buffer = [0; MAX_LINE];
    let length = serde_json_core::to_slice(record, &mut buffer).map_err(|_| FrameError::TooLong)?;
    let json = &buffer[..length];
    let text = core::str::from_utf8(json).map_err(|_| FrameError::TooLong)?;
    line.clear();
    write!(line, "{PREFIX}{:08x} {text}", CRC.checksum(json)).map_err(|_| FrameError::TooLong)
}

/// Returns the JSON inside a framed line.
///
/// # Errors
///
/// [`FrameError::NotAFrame`] for any other line, [`FrameError::Damaged`] if the checksum does not match.
pub fn unframe(line: &str) -> Result<&str, FrameError> {
    let rest = line.strip_prefix(PREFIX).ok_or(FrameError::NotAFrame)?;
    let (sum, json) = rest.split_once(' ').ok_or(FrameError::Damaged)?;
    let sum = u32::from_str_radix(sum, 16).map_err(|_| FrameError::Damaged)?;
    if sum == CRC.checksum(json.as_bytes()) { Ok(json) } else { Err(FrameError::Damaged) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::VmExits(VmExits {
            vm: "victim".try_into().unwrap(),
            reason: Count { name: "wfi".try_into().unwrap(), count: 7 },
        })
    }

    #[test]
    fn what_el2_frames_the_host_reads() {
        let mut line = String::new();
        frame(&record(), &mut line).unwrap();
        let read: Record = serde_json::from_str(unframe(&line).unwrap()).unwrap();
        assert_eq!(read, record());
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let mut line = String::new();
        frame(&record(), &mut line).unwrap();
        let damaged = line.replace("victim", "victjm");
        assert_eq!(unframe(&damaged), Err(FrameError::Damaged));
        assert_eq!(unframe("[victim] hello"), Err(FrameError::NotAFrame));
    }

    #[test]
    fn causes_have_one_name() {
        for cause in [Cause::SmmuDisable, Cause::SystemOff, Cause::MmuOff, Cause::Operator] {
            assert_eq!(serde_json::to_string(&cause).unwrap(), format!("\"{}\"", cause.name()));
        }
    }

    #[test]
    fn addresses_are_hex_strings() {
        assert_eq!(serde_json::to_string(&Hex(0x4000_0000)).unwrap(), "\"0x40000000\"");
        assert_eq!(serde_json::from_str::<Hex>("\"0x40000000\"").unwrap(), Hex(0x4000_0000));
    }
}
