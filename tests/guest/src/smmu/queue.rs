//! The queues (section 3.5.1).

use super::format::{ALLOCATE, Command, Event, INDEX, OVERFLOW, register};
use super::{Pool, Registers};
use crate::arch::mem;

/// The command queue stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The entry at which it stopped.
    pub cons: u32,
    /// `CMDQ_CONS.ERR`; meaningless if the queue is only slow.
    pub code: u32,
    /// `GERROR.CMDQ_ERR` is active.
    pub error: bool,
}

/// Where a queue is and how many entries it has.
#[derive(Clone, Copy, Debug)]
struct Ring {
    base: u64,
    log2: u32,
    entry: u64,
}

impl Ring {
    fn new(pool: &mut Pool, log2: u32, entry: u64) -> Result<Self, &'static str> {
        Ok(Self { base: pool.take(entry << log2)?, log2, entry })
    }

    /// The value of its base register.
    fn value(self) -> u64 {
        ALLOCATE | self.base | u64::from(self.log2)
    }

    fn wrap(self, index: u32) -> u32 {
        index & ((2 << self.log2) - 1)
    }

    fn slot(self, index: u32) -> u64 {
        self.base + (u64::from(index) & ((1 << self.log2) - 1)) * self.entry
    }
}

/// The command queue.
#[derive(Clone, Copy, Debug)]
pub struct Commands {
    ring: Ring,
    prod: u32,
}

impl Commands {
    /// One of `2^log2` entries.
    ///
    /// # Errors
    ///
    /// A reason if there is no memory for it.
    pub fn new(pool: &mut Pool, log2: u32) -> Result<Self, &'static str> {
        Ok(Self { ring: Ring::new(pool, log2, 16)?, prod: 0 })
    }

    /// One that lies elsewhere.
    pub fn at(base: u64, log2: u32) -> Self {
        Self { ring: Ring { base, log2, entry: 16 }, prod: 0 }
    }

    /// How many entries it has.
    pub fn size(&self) -> u32 {
        1 << self.ring.log2
    }

    /// The index of the next entry to write.
    pub fn prod(&self) -> u32 {
        self.prod
    }

    /// Programs it, empty; it must be disabled.
    pub fn install(&mut self, registers: Registers) {
        self.prod = 0;
        registers.write64(register::CMDQ_BASE, self.ring.value());
        registers.write(register::CMDQ_PROD, 0);
        registers.write(register::CMDQ_CONS, 0);
    }

    /// Writes an entry that is in nobody's way, or overwrites one.
    pub fn put(&self, index: u32, command: Command) {
        let slot = self.ring.slot(index);
        mem::write64(slot, command[0]);
        mem::write64(slot + 8, command[1]);
    }

    /// Writes commands behind those that are there, without telling the SMMU.
    pub fn write(&mut self, commands: &[Command]) {
        for command in commands {
            self.put(self.prod, *command);
            self.prod = self.ring.wrap(self.prod + 1);
        }
    }

    /// Tells the SMMU of all commands that were written.
    pub fn ring(&self, registers: Registers) {
        registers.write(register::CMDQ_PROD, self.prod);
    }

    /// Waits until all commands are consumed.
    ///
    /// # Errors
    ///
    /// [`Stopped`].
    pub fn wait(&self, registers: Registers) -> Result<(), Stopped> {
        let ended = |cons: u32| cons & INDEX == self.prod || registers.errors() & 1 != 0;
        let _ = registers.poll(register::CMDQ_CONS, ended);
        let cons = registers.read(register::CMDQ_CONS);
        let error = registers.errors() & 1 != 0;
        if cons & INDEX == self.prod && !error {
            return Ok(());
        }
        Err(Stopped { cons: cons & INDEX, code: cons >> 24 & 0x7f, error })
    }

    /// Issues commands and waits until they are consumed; more than fit are issued in several batches.
    ///
    /// # Errors
    ///
    /// [`Stopped`].
    pub fn issue(&mut self, registers: Registers, commands: &[Command]) -> Result<(), Stopped> {
        for batch in commands.chunks(self.size() as usize) {
            self.write(batch);
            self.ring(registers);
            self.wait(registers)?;
        }
        Ok(())
    }
}

/// The event queue.
#[derive(Clone, Copy, Debug)]
pub struct Events {
    ring: Ring,
    cons: u32,
}

impl Events {
    /// One of `2^log2` entries.
    ///
    /// # Errors
    ///
    /// A reason if there is no memory for it.
    pub fn new(pool: &mut Pool, log2: u32) -> Result<Self, &'static str> {
        Ok(Self { ring: Ring::new(pool, log2, 32)?, cons: 0 })
    }

    /// One that lies elsewhere.
    pub fn at(base: u64, log2: u32) -> Self {
        Self { ring: Ring { base, log2, entry: 32 }, cons: 0 }
    }

    /// Programs it, empty; it must be disabled.
    pub fn install(&mut self, registers: Registers) {
        self.cons = 0;
        registers.write64(register::EVENTQ_BASE, self.ring.value());
        registers.write(register::EVENTQ_PROD, 0);
        registers.write(register::EVENTQ_CONS, 0);
    }

    /// How many records wait.
    pub fn waiting(&self, registers: Registers) -> u32 {
        let prod = registers.read(register::EVENTQ_PROD);
        self.ring.wrap(prod.wrapping_sub(self.cons))
    }

    /// Takes the oldest record, if there is one, and acknowledges an overflow.
    pub fn next(&mut self, registers: Registers) -> Option<Event> {
        let prod = registers.read(register::EVENTQ_PROD);
        mem::barrier();
        if self.ring.wrap(prod) == self.cons {
            return None;
        }
        let slot = self.ring.slot(self.cons);
        let event = Event(core::array::from_fn(|index| mem::read64(slot + 8 * index as u64)));
        self.cons = self.ring.wrap(self.cons + 1);
        registers.write(register::EVENTQ_CONS, self.cons | prod & OVERFLOW);
        Some(event)
    }
}
