//! The names of our own properties, once for both sides.

/// What they all start with.
pub(super) const PREFIX: &str = "portcullis,";

pub(super) const NAME: &str = "portcullis,name";
pub(super) const CPUS: &str = "portcullis,cpus";
pub(super) const MEMORY: &str = "portcullis,memory";
pub(super) const ON_EXIT: &str = "portcullis,on-exit";
pub(super) const STAGE1: &str = "portcullis,stage1";
pub(super) const DMA_AT_BOOT: &str = "portcullis,dma-at-boot";
pub(super) const ON_CRASH_KEXEC: &str = "portcullis,on-crash-kexec";
pub(super) const REOPEN: &str = "portcullis,reopen";
/// What a configuration may have.
pub(super) const OF_VM: &[&str] =
    &[NAME, CPUS, MEMORY, ON_EXIT, STAGE1, DMA_AT_BOOT, ON_CRASH_KEXEC, REOPEN];

pub(super) const ADDRESS: &str = "portcullis,address";
pub(super) const RESET: &str = "portcullis,reset";
/// What a function may have.
pub(super) const OF_FUNCTION: &[&str] = &[ADDRESS, RESET];
