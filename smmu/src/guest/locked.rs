//! One physical SMMU as a virtual one sees it.

use crate::addr::{StreamId, VmIndex};
use crate::cmd::Command;
use crate::device::{Configuration, Smmu};
use crate::error::HostError;
use crate::guest::Physical;
use crate::ports::Hardware;
use crate::streams::Stage2Binding;

/// The [`Physical`] of a VM whose streams all come through one SMMU, whose lock is held meanwhile.
pub struct Locked<'a, 'b, H: Hardware> {
    /// The SMMU.
    pub smmu: &'a mut Smmu<'b, H>,
    /// The VM.
    pub owner: VmIndex,
    /// Its stage 2, and its tag.
    pub binding: Stage2Binding,
}

impl<H: Hardware> Physical for Locked<'_, '_, H> {
    fn configure(&mut self, _smmu: u8, sid: StreamId, to: &Configuration) -> Result<(), HostError> {
        self.smmu.configure(sid, &self.binding, to)
    }

    fn relay(&mut self, _smmu: u8, command: Command) -> Result<(), HostError> {
        self.smmu.relay(self.owner, self.binding.vmid, command)
    }

    fn sync(&mut self, _smmu: u8) -> Result<(), HostError> {
        self.smmu.sync()
    }
}
