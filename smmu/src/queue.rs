//! The command and the event queue (section 3.5): rings in memory, indices in registers.

use tock_registers::LocalRegisterCopy;

use crate::addr::Pa;
use crate::cmd::{Command, Opcode};
use crate::error::{HostError, Wait};
use crate::event::Event;
use crate::ports::{Clock, Frames, Hardware};
use crate::regs::{CMDQ_CONS, EVENTQ_PROD, GERROR, QUEUE_BASE, offset};

/// How long the SMMU may take to consume a command.
const COMMAND_LIMIT_US: u64 = 1_000_000;

/// Calls `done` until it says true, for at most `limit_us`.
///
/// # Errors
///
/// [`HostError::Timeout`] for `wait`.
pub(crate) fn poll(
    clock: &impl Clock,
    limit_us: u64,
    wait: Wait,
    mut done: impl FnMut() -> bool,
) -> Result<(), HostError> {
    // Most waits are over at once, and need no clock.
    if done() {
        return Ok(());
    }
    let start = clock.now_us();
    loop {
        // The clock first: whatever delays this CPU after it, the condition is looked at once more.
        let late = clock.now_us().saturating_sub(start) > limit_us;
        if done() {
            return Ok(());
        }
        if late {
            return Err(HostError::Timeout(wait));
        }
        core::hint::spin_loop();
    }
}

/// Index arithmetic of one ring. An index has one bit more than a slot number, so that a full ring can
/// be told from an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ring {
    /// The bits of an index that are a slot number.
    slots: u32,
}

impl Ring {
    fn new(log2: u8) -> Self {
        Self { slots: (1 << log2) - 1 }
    }

    fn len(self) -> u32 {
        self.slots + 1
    }

    fn wrap(self, index: u32) -> u32 {
        index & (self.slots << 1 | 1)
    }

    fn slot(self, index: u32) -> u32 {
        index & self.slots
    }

    /// How many entries lie between the two. A sane pair has at most [`Ring::len`]; any other is what a
    /// broken SMMU claims, and counts as a full ring.
    fn used(self, producer: u32, consumer: u32) -> u32 {
        self.wrap(producer.wrapping_sub(consumer)).min(self.len())
    }
}

/// A ring in memory.
struct Buffer {
    base: Pa,
    ring: Ring,
    entry_bytes: u64,
}

impl Buffer {
    fn allocate(log2: u8, entry_bytes: u64, frames: &mut dyn Frames) -> Option<Self> {
        let size = (entry_bytes << log2).max(crate::addr::PAGE_SIZE);
        Some(Self { base: frames.allocate(size)?, ring: Ring::new(log2), entry_bytes })
    }

    /// What `CMDQ_BASE` or `EVENTQ_BASE` is set to.
    fn base_register(&self) -> u64 {
        (QUEUE_BASE::LOG2SIZE.val(self.ring.len().trailing_zeros().into())
            + QUEUE_BASE::ADDR.val(self.base.raw() >> 5)
            + QUEUE_BASE::ALLOCATE::SET)
            .value
    }

    #[inline]
    fn entry(&self, index: u32) -> Pa {
        self.base.add(u64::from(self.ring.slot(index)) * self.entry_bytes)
    }
}

/// The command queue, written by us.
pub(crate) struct CommandQueue {
    buffer: Buffer,
    producer: u32,
    /// The SMMU's index as it was when we last needed to know.
    consumer: u32,
    /// How many commands were issued since the last `CMD_SYNC`, and how many may be.
    unsynced: u32,
    batch_limit: u32,
    issued: [u64; Opcode::ALL.len()],
}

impl CommandQueue {
    /// Allocates a queue whose `CMD_SYNC`s are never more than `batch_limit` commands apart.
    pub(crate) fn allocate(log2: u8, batch_limit: u32, frames: &mut dyn Frames) -> Option<Self> {
        let buffer = Buffer::allocate(log2, 16, frames)?;
        Some(Self { buffer, producer: 0, consumer: 0, unsynced: 0, batch_limit, issued: [0; _] })
    }

    /// Tells the SMMU where the queue is. The queue is disabled.
    pub(crate) fn install(&self, hw: &impl Hardware) {
        hw.write64(offset::CMDQ_BASE, self.buffer.base_register());
        hw.write32(offset::CMDQ_PROD, self.producer);
        hw.write32(offset::CMDQ_CONS, self.producer);
    }

    /// How often each command was issued.
    pub(crate) fn issued(&self) -> impl Iterator<Item = (Opcode, u64)> + '_ {
        Opcode::ALL.iter().copied().zip(self.issued.iter().copied())
    }

    /// How often one of them was.
    pub(crate) fn issued_of(&self, opcode: Opcode) -> u64 {
        self.issued[opcode as usize]
    }

    /// Appends a command. The SMMU may take until the next [`CommandQueue::sync`] to hear of it.
    ///
    /// # Errors
    ///
    /// [`HostError::Timeout`] if the queue stays full, [`HostError::Command`] if the SMMU stopped at one.
    pub(crate) fn push(&mut self, hw: &impl Hardware, command: Command) -> Result<(), HostError> {
        if self.unsynced == self.batch_limit {
            self.sync(hw)?;
        }
        self.append(hw, command)
    }

    /// Issues `CMD_SYNC` and waits until it, and with it every command before, is complete.
    ///
    /// # Errors
    ///
    /// As [`CommandQueue::push`].
    pub(crate) fn sync(&mut self, hw: &impl Hardware) -> Result<(), HostError> {
        self.append(hw, Command::Sync)?;
        self.ring_doorbell(hw);
        self.wait(hw, Wait::Sync, |used| used == 0)
    }

    /// What is wrong with the command at which the SMMU stopped.
    pub(crate) fn error(&self, hw: &impl Hardware) -> HostError {
        let consumer =
            LocalRegisterCopy::<u32, CMDQ_CONS::Register>::new(hw.read32(offset::CMDQ_CONS));
        let index = consumer.read(CMDQ_CONS::RD);
        let at = self.buffer.entry(index);
        HostError::Command {
            error: consumer.read(CMDQ_CONS::ERR) as u8,
            index,
            words: [hw.load(at), hw.load(at.add(8))],
        }
    }

    fn append(&mut self, hw: &impl Hardware, command: Command) -> Result<(), HostError> {
        let ring = self.buffer.ring;
        if ring.used(self.producer, self.consumer) == ring.len() {
            self.ring_doorbell(hw);
            self.wait(hw, Wait::CommandSpace, |used| used < ring.len())?;
        }
        let at = self.buffer.entry(self.producer);
        hw.store_pair(at, command.encode());
        self.producer = ring.wrap(self.producer.wrapping_add(1));
        self.unsynced = if command == Command::Sync { 0 } else { self.unsynced + 1 };
        self.issued[command.opcode() as usize] += 1;
        Ok(())
    }

    fn ring_doorbell(&self, hw: &impl Hardware) {
        // The write comes after the commands: the port orders it behind every store.
        hw.write32(offset::CMDQ_PROD, self.producer);
    }

    /// Waits until the number of commands that the SMMU has not consumed is small enough, or until it
    /// stops at one of them.
    fn wait(
        &mut self,
        hw: &impl Hardware,
        wait: Wait,
        enough: impl Fn(u32) -> bool,
    ) -> Result<(), HostError> {
        let ring = self.buffer.ring;
        let mut stopped = false;
        poll(hw, COMMAND_LIMIT_US, wait, || {
            let consumer =
                LocalRegisterCopy::<u32, CMDQ_CONS::Register>::new(hw.read32(offset::CMDQ_CONS));
            self.consumer = ring.wrap(consumer.read(CMDQ_CONS::RD));
            let done = enough(ring.used(self.producer, self.consumer));
            stopped = !done && active_errors(hw).is_set(GERROR::CMDQ_ERR);
            done || stopped
        })?;
        if stopped { Err(self.error(hw)) } else { Ok(()) }
    }
}

/// The errors that are active now: `GERROR` against `GERRORN` (section 6.3.19).
pub(crate) fn active_errors(hw: &impl Hardware) -> LocalRegisterCopy<u32, GERROR::Register> {
    LocalRegisterCopy::new(hw.read32(offset::GERROR) ^ hw.read32(offset::GERRORN))
}

/// The event queue, written by the SMMU.
pub(crate) struct EventQueue {
    buffer: Buffer,
    consumer: u32,
    /// The `OVACKFLG` that the SMMU has seen: an overflow is unacknowledged while `OVFLG` differs.
    overflow: bool,
    drained: u64,
}

impl EventQueue {
    pub(crate) fn allocate(log2: u8, frames: &mut dyn Frames) -> Option<Self> {
        Some(Self {
            buffer: Buffer::allocate(log2, 32, frames)?,
            consumer: 0,
            overflow: false,
            drained: 0,
        })
    }

    /// Tells the SMMU where the queue is. The queue is disabled.
    pub(crate) fn install(&self, hw: &impl Hardware) {
        hw.write64(offset::EVENTQ_BASE, self.buffer.base_register());
        hw.write32(offset::EVENTQ_PROD, self.consumer);
        hw.write32(offset::EVENTQ_CONS, self.consumer);
    }

    /// How many records were taken so far: the sequence number of the next one.
    pub(crate) fn drained(&self) -> u64 {
        self.drained
    }

    /// The sequence number of the next record that the SMMU will write. After a `CMD_SYNC`, everything
    /// that was refused before it has a smaller one (section 4.7.3).
    pub(crate) fn frontier(&self, hw: &impl Hardware) -> u64 {
        self.drained + u64::from(self.waiting(self.producer(hw)))
    }

    /// Looks how many records there are, and whether some were lost for want of room since the last look.
    pub(crate) fn poll(&mut self, hw: &impl Hardware) -> (u32, bool) {
        let producer = self.producer(hw);
        let overflow = producer.is_set(EVENTQ_PROD::OVFLG);
        let lost = overflow != self.overflow;
        self.overflow = overflow;
        (self.waiting(producer), lost)
    }

    /// How many records wait now.
    pub(crate) fn pending(&self, hw: &impl Hardware) -> u32 {
        self.waiting(self.producer(hw))
    }

    /// Takes the next record, of which [`EventQueue::poll`] said that it is there.
    pub(crate) fn take(&mut self, hw: &impl Hardware) -> Event {
        let at = self.buffer.entry(self.consumer);
        self.consumer = self.buffer.ring.wrap(self.consumer.wrapping_add(1));
        self.drained += 1;
        Event::decode([0, 8, 16, 24].map(|offset| hw.load(at.add(offset))))
    }

    /// Gives what was taken back to the SMMU, and acknowledges the overflow seen last.
    pub(crate) fn acknowledge(&self, hw: &impl Hardware) {
        // EVENTQ_CONS has OVACKFLG where EVENTQ_PROD has OVFLG (section 6.3.96).
        let overflow = EVENTQ_PROD::OVFLG.val(self.overflow.into());
        hw.write32(offset::EVENTQ_CONS, (EVENTQ_PROD::WR.val(self.consumer) + overflow).value);
    }

    fn producer(&self, hw: &impl Hardware) -> LocalRegisterCopy<u32, EVENTQ_PROD::Register> {
        LocalRegisterCopy::new(hw.read32(offset::EVENTQ_PROD))
    }

    fn waiting(&self, producer: LocalRegisterCopy<u32, EVENTQ_PROD::Register>) -> u32 {
        self.buffer.ring.used(producer.read(EVENTQ_PROD::WR), self.consumer)
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// Ten microseconds from look to look.
    struct Ticks(Cell<u64>);

    impl Clock for Ticks {
        fn now_us(&self) -> u64 {
            self.0.set(self.0.get() + 10);
            self.0.get()
        }
    }

    #[test]
    fn a_wait_is_over_when_its_limit_is_exceeded() {
        let wait = |until: u32| {
            let mut looks = 0;
            let result = poll(&Ticks(Cell::new(0)), 100, Wait::Sync, || {
                looks += 1;
                looks == until
            });
            (result, looks)
        };
        assert_eq!(wait(1), (Ok(()), 1));
        // At 110 it is too late, but the condition is looked at once more.
        assert_eq!(wait(12), (Ok(()), 12));
        assert_eq!(wait(13), (Err(HostError::Timeout(Wait::Sync)), 12));
    }

    proptest! {
        #![proptest_config(crate::fake::cases(256))]

        /// Any number of entries in and out, any size: the indices agree with plain counting.
        #[test]
        fn indices_count_like_numbers(log2 in 0_u8..=19, start in 0_u32..1 << 20, fill in 0_u32..=1 << 19) {
            let ring = Ring::new(log2);
            let fill = fill.min(ring.len());
            let (consumer, producer) = (ring.wrap(start), ring.wrap(start + fill));
            prop_assert_eq!(ring.used(producer, consumer), fill);
            prop_assert_eq!(ring.slot(producer), (start + fill) % ring.len());
        }

        /// Whatever a broken SMMU claims, there are never more entries than the ring has.
        #[test]
        fn no_claim_exceeds_the_ring(log2 in 0_u8..=19, producer: u32, consumer: u32) {
            let ring = Ring::new(log2);
            prop_assert!(ring.used(producer, consumer) <= ring.len());
        }
    }
}
