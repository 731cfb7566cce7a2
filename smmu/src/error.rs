//! What goes wrong on our side of the machine: never a guest's doing, never hidden.

use core::fmt;

use crate::addr::{StreamId, Vmid};
use crate::cmd::Opcode;

/// What a bounded wait was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// `GBPA.UPDATE` to become 0 (section 6.3.14).
    GbpaUpdate,
    /// `CR0ACK` to follow `CR0` (section 6.3.9).
    Cr0Ack,
    /// `IRQ_CTRLACK` to follow `IRQ_CTRL` (section 6.3.16).
    IrqCtrlAck,
    /// The SMMU to consume a command, so that the next one fits.
    CommandSpace,
    /// A `CMD_SYNC` to complete (section 4.7.3).
    Sync,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GbpaUpdate => "GBPA.UPDATE to clear",
            Self::Cr0Ack => "CR0ACK to follow CR0",
            Self::IrqCtrlAck => "IRQ_CTRLACK to follow IRQ_CTRL",
            Self::CommandSpace => "room in the command queue",
            Self::Sync => "CMD_SYNC to complete",
        })
    }
}

/// Why the driver could not do what it was asked to.
///
/// The first four mean that the hardware does not keep its promises: nothing is proven any more, the
/// caller quarantines what it wanted to free (C3) or stops the machine with [`crate::device::stop`].
/// The others are the caller's mistakes, and leave everything as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    /// The SMMU did not answer in time.
    Timeout(Wait),
    /// The SMMU refused a command of ours: `CMDQ_CONS.ERR` at entry `index` (section 6.3.28).
    Command {
        /// The reason, 1 = `CERROR_ILL`, 2 = `CERROR_ABT`, 3 = `CERROR_ATC_INV_SYNC`.
        error: u8,
        /// The index of the refused entry.
        index: u32,
        /// Its two words as the queue holds them.
        words: [u64; 2],
    },
    /// `GERROR.SFM_ERR`: the SMMU has entered service failure mode (section 12.3).
    ServiceFailure,
    /// No memory for a level-2 stream table.
    OutOfMemory,
    /// The stream was never attached.
    UnknownStream(StreamId),
    /// The StreamID lies outside the stream table.
    StreamOutOfRange(StreamId),
    /// More streams than [`crate::streams::MAX_STREAMS`].
    TooManyStreams,
    /// The stream has no owner to open it for.
    Unowned(StreamId),
    /// The stream is open, and this needs it closed.
    StreamOpen(StreamId),
    /// The VMID is reserved, or wider than the SMMU's.
    BadVmid(Vmid),
    /// A command that was to be relayed for a VM is none of its own.
    Foreign(Opcode),
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(wait) => {
                write!(f, "SMMU: gave up waiting for {wait}; its streams cannot be proven closed")
            }
            Self::Command { error, index, words: [low, high] } => {
                write!(
                    f,
                    "SMMU: error {error} for command {low:#018x} {high:#018x} at {index:#x}, \
                     which EL2 itself built"
                )
            }
            Self::ServiceFailure => f.write_str("SMMU: service failure mode; it needs a reset"),
            Self::OutOfMemory => {
                f.write_str("SMMU: no memory left for a level-2 stream table; give EL2 more")
            }
            Self::UnknownStream(sid) => write!(f, "SMMU: stream {sid} was never attached"),
            Self::StreamOutOfRange(sid) => {
                write!(f, "SMMU: stream {sid} lies outside the stream table")
            }
            Self::TooManyStreams => {
                write!(
                    f,
                    "SMMU: more than {} streams; assign fewer functions",
                    crate::streams::MAX_STREAMS
                )
            }
            Self::Unowned(sid) => write!(f, "SMMU: stream {sid} has no owner"),
            Self::StreamOpen(sid) => write!(f, "SMMU: stream {sid} is open; close it first"),
            Self::Foreign(opcode) => {
                write!(f, "SMMU: {} is not the VM's to issue", opcode.name())
            }
            Self::BadVmid(Vmid(vmid)) => write!(f, "SMMU: VMID {vmid} cannot be a VM's"),
        }
    }
}

impl core::error::Error for HostError {}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn every_error_says_what_and_where() {
        let refused = HostError::Command { error: 1, index: 7, words: [0x46, 0x1000] };
        let sid = StreamId(0x10);
        for (error, parts) in [
            (HostError::Timeout(Wait::GbpaUpdate), ["GBPA.UPDATE", "cannot be proven closed"]),
            (HostError::Timeout(Wait::Cr0Ack), ["CR0ACK", "cannot be proven closed"]),
            (HostError::Timeout(Wait::IrqCtrlAck), ["IRQ_CTRLACK", "cannot be proven closed"]),
            (HostError::Timeout(Wait::CommandSpace), ["room in the command queue", "proven"]),
            (HostError::Timeout(Wait::Sync), ["CMD_SYNC", "cannot be proven closed"]),
            (refused, ["error 1 for command 0x0000000000000046 0x0000000000001000", "at 0x7"]),
            (HostError::ServiceFailure, ["service failure", "reset"]),
            (HostError::OutOfMemory, ["level-2 stream table", "give EL2 more"]),
            (HostError::UnknownStream(sid), ["0x10", "never attached"]),
            (HostError::StreamOutOfRange(sid), ["0x10", "outside the stream table"]),
            (HostError::TooManyStreams, ["more than 128", "assign fewer"]),
            (HostError::Unowned(sid), ["0x10", "no owner"]),
            (HostError::StreamOpen(sid), ["0x10", "close it first"]),
            (HostError::Foreign(Opcode::CfgiAll), ["CMD_CFGI_ALL", "not the VM's"]),
            (HostError::BadVmid(Vmid(255)), ["255", "cannot be a VM's"]),
        ] {
            let text = error.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
