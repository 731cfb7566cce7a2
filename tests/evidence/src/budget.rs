//! What things may cost at most: each budget once, for the tests, `cargo xtask ci` and `cargo xtask bench`.

/// Exits for each unmap of a driver that invalidates strictly.
pub const EXITS_PER_UNMAP: u64 = 1;
/// Physical `CMD_SYNC`s for each batch of a guest's commands.
pub const SYNCS_PER_BATCH: u64 = 1;
/// Instructions of EL2's for a batch of one command and a `CMD_SYNC`, from the trap to the guest's next instruction.
pub const BATCH: u64 = 1_500;
/// Instructions for an I/O of 4 KiB: a guest's by those of the same kernel on the bare machine.
pub const IO_4K: f64 = 1.15;
/// Likewise for 128 KiB.
pub const IO_128K: f64 = 1.05;
/// Exits for each interrupt by a wire.
pub const EXITS_PER_INTX: u64 = 3;
/// Exits for each interrupt by a message.
pub const EXITS_PER_MSIX: u64 = 2;
/// A guest's throughput by that of the same kernel on the bare machine: at least.
pub const THROUGHPUT: f64 = 0.95;
/// Instructions from EL2's entry to a guest's first instruction, beside what is copied, hashed and zeroed.
pub const BOOT: u64 = 2_000_000;
/// Instructions of a close, whatever it closes.
pub const CLOSE: u64 = 2_000;
/// Instructions that each stream adds to a close.
pub const CLOSE_PER_STREAM: u64 = 400;
/// By how many instructions closes of as many streams differ, however much memory their VMs have: a look more or less at
/// a queue. One instruction for each 2 MiB of a VM of 512 MiB would be more.
pub const CLOSE_GROWTH: u64 = 100;
/// Bytes of code in the hypervisor's image.
pub const IMAGE_TEXT: u64 = 160 << 10;
/// Bytes of them that are the `smmu` crate's.
pub const SMMU_TEXT: u64 = 48 << 10;
/// Bytes of EL2's memory beside guests' RAM and tables.
pub const EL2_MEMORY: u64 = 4 << 20;

/// Instructions of a close of so many streams.
pub const fn close(streams: u32) -> u64 {
    CLOSE + CLOSE_PER_STREAM * streams as u64
}
