//! A driver of the SMMUv3 (IHI 0070): registers, command and event queue, stream table, one stage 1.
//!
//! It does what it is told, also what no driver should. What structures look like stands in [`format`].

pub mod format;
mod pool;
mod queue;
mod stage1;
mod table;

pub use pool::Pool;
pub use queue::{Commands, Events, Stopped};
pub use stage1::Stage1;
pub use table::{Shape, StreamTable};

use format::{CR1_CACHED, CR2_RECINVSID, Command, Event, Identity, command, cr0, gbpa, register};

use crate::arch::mem;
use crate::machine::{Machine, SmmuNode};
use crate::pci::Function;
use crate::timer::{self, Deadline};

/// How long a register may take to acknowledge, and a command to be consumed.
const PATIENCE_MS: u64 = 5000;

/// The registers.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    base: u64,
}

impl Registers {
    /// What looks like some, elsewhere.
    pub fn at(base: u64) -> Self {
        Self { base }
    }

    /// Those of the machine's SMMU.
    ///
    /// # Errors
    ///
    /// A reason if there is none.
    pub fn find(machine: &Machine) -> Result<Self, &'static str> {
        Ok(Self::at(node(machine)?.registers.start))
    }

    /// The address of the register at `offset`.
    pub fn address(self, offset: u32) -> u64 {
        self.base + u64::from(offset)
    }

    /// Reads 32 bits.
    pub fn read(self, offset: u32) -> u32 {
        mem::read32(self.address(offset))
    }

    /// Writes 32 bits, after everything that was written before.
    pub fn write(self, offset: u32, value: u32) {
        mem::barrier();
        mem::write32(self.address(offset), value);
    }

    /// Reads 64 bits.
    pub fn read64(self, offset: u32) -> u64 {
        mem::read64(self.address(offset))
    }

    /// Writes 64 bits, after everything that was written before.
    pub fn write64(self, offset: u32, value: u64) {
        mem::barrier();
        mem::write64(self.address(offset), value);
    }

    /// What it can do.
    pub fn identity(self) -> Identity {
        Identity { idr: core::array::from_fn(|index| self.read(register::IDR0 + 4 * index as u32)) }
    }

    /// Reads until `done` holds; gives up after five seconds.
    pub fn poll(self, offset: u32, done: impl Fn(u32) -> bool) -> bool {
        let now = || {
            let value = self.read(offset);
            mem::barrier();
            done(value)
        };
        now() || timer::poll_every_ms(1, Deadline::after_ms(PATIENCE_MS), now)
    }

    /// Writes `CR0` and waits for its acknowledgement.
    ///
    /// # Errors
    ///
    /// A reason if it does not come.
    pub fn set_cr0(self, value: u32) -> Result<(), &'static str> {
        self.write(register::CR0, value);
        let acknowledged = self.poll(register::CR0ACK, |seen| seen == value);
        if acknowledged { Ok(()) } else { Err("smmu: CR0 is not acknowledged") }
    }

    /// Writes `IRQ_CTRL` and waits for its acknowledgement.
    ///
    /// # Errors
    ///
    /// A reason if it does not come.
    pub fn set_irq_ctrl(self, value: u32) -> Result<(), &'static str> {
        self.write(register::IRQ_CTRL, value);
        let acknowledged = self.poll(register::IRQ_CTRLACK, |seen| seen == value);
        if acknowledged { Ok(()) } else { Err("smmu: IRQ_CTRL is not acknowledged") }
    }

    /// Lets everything pass as long as the SMMU is disabled. What is refused later is no longer the late DMA of
    /// whoever drove it before.
    ///
    /// # Errors
    ///
    /// A reason if `GBPA` does not take it.
    pub fn pass_while_disabled(self) -> Result<(), &'static str> {
        self.write(register::GBPA, gbpa::UPDATE);
        let taken = self.poll(register::GBPA, |seen| seen & (gbpa::UPDATE | gbpa::ABORT) == 0);
        if taken { Ok(()) } else { Err("smmu: GBPA is not updated") }
    }

    /// Acknowledges every active global error.
    pub fn acknowledge_errors(self) {
        self.write(register::GERRORN, self.read(register::GERROR));
    }

    /// The active global errors.
    pub fn errors(self) -> u32 {
        self.read(register::GERROR) ^ self.read(register::GERRORN)
    }
}

/// What the device tree says of the SMMU.
///
/// # Errors
///
/// A reason if there is none.
pub fn node(machine: &Machine) -> Result<&SmmuNode, &'static str> {
    machine.smmu.as_ref().ok_or("no SMMU in the device tree")
}

/// The StreamID of a function.
///
/// # Errors
///
/// A reason if the device tree gives it none.
pub fn stream_id(machine: &Machine, function: Function) -> Result<u32, &'static str> {
    let requester = function.requester_id();
    let ranges = node(machine)?.streams.iter().flatten();
    let mut streams = ranges.filter_map(|(first, stream, count)| {
        let index = requester.checked_sub(*first)?;
        (index < *count).then_some(stream + index)
    });
    streams.next().ok_or("pcie: iommu-map has no StreamID for the device")
}

/// A running SMMU: both queues and a stream table.
#[derive(Debug)]
pub struct Smmu {
    /// Its registers.
    pub registers: Registers,
    /// Its command queue.
    pub commands: Commands,
    /// Its event queue.
    pub events: Events,
    /// Its stream table.
    pub table: StreamTable,
}

impl Smmu {
    /// Resets the SMMU and enables it with these queues and this table, in the order of section 3.11.
    ///
    /// # Errors
    ///
    /// What did not work.
    pub fn start(
        registers: Registers,
        commands: Commands,
        events: Events,
        table: StreamTable,
    ) -> Result<Self, &'static str> {
        let mut smmu = Self { registers, commands, events, table };
        registers.set_cr0(0)?;
        registers.acknowledge_errors();
        registers.write(register::CR1, CR1_CACHED);
        registers.write(register::CR2, CR2_RECINVSID);
        smmu.table.install(registers);
        smmu.commands.install(registers);
        registers.set_cr0(cr0::CMDQEN)?;
        smmu.issue(&[command::CFGI_ALL, command::TLBI_NSNH_ALL, command::SYNC])?;
        smmu.events.install(registers);
        registers.set_cr0(cr0::CMDQEN | cr0::EVENTQEN)?;
        registers.set_cr0(cr0::CMDQEN | cr0::EVENTQEN | cr0::SMMUEN)?;
        Ok(smmu)
    }

    /// Resets the SMMU and enables it with the largest queues up to 256 entries, and a table of this shape in
    /// which every stream aborts.
    ///
    /// # Errors
    ///
    /// What did not work.
    pub fn start_with(
        registers: Registers,
        pool: &mut Pool,
        shape: Shape,
    ) -> Result<Self, &'static str> {
        let identity = registers.identity();
        let commands = Commands::new(pool, identity.command_queue_log2().min(8))?;
        let events = Events::new(pool, identity.event_queue_log2().min(8))?;
        let table = StreamTable::new(pool, shape)?;
        Self::start(registers, commands, events, table)
    }

    /// Likewise with a linear table, as large as a suite needs one.
    ///
    /// # Errors
    ///
    /// What did not work.
    pub fn start_linear(registers: Registers, pool: &mut Pool) -> Result<Self, &'static str> {
        let log2 = registers.identity().table_log2();
        Self::start_with(registers, pool, Shape::Linear { log2 })
    }

    /// Issues commands and waits until they are consumed.
    ///
    /// # Errors
    ///
    /// A reason if they are not.
    pub fn issue(&mut self, commands: &[Command]) -> Result<(), &'static str> {
        self.commands.issue(self.registers, commands).map_err(|_| "smmu: a command was refused")
    }

    /// Writes a stream's entry, and has it read again.
    ///
    /// # Errors
    ///
    /// A reason if a command was refused.
    pub fn set_ste(&mut self, sid: u32, ste: &format::Ste) -> Result<(), &'static str> {
        self.table.write(sid, ste);
        self.issue(&[command::cfgi_ste(sid, true), command::SYNC])
    }

    /// Takes the oldest event, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.next(self.registers)
    }

    /// Waits for an event, for two seconds.
    pub fn wait_for_event(&mut self) -> Option<Event> {
        let mut found = None;
        timer::poll_every_ms(1, Deadline::after_ms(2000), || {
            found = self.events.next(self.registers);
            found.is_some()
        });
        found
    }

    /// Takes everything from the event queue.
    pub fn drop_events(&mut self) {
        while self.next_event().is_some() {}
    }

    /// Disables everything.
    ///
    /// # Errors
    ///
    /// A reason if that is not acknowledged.
    pub fn stop(self) -> Result<(), &'static str> {
        self.registers.set_cr0(0)
    }
}
