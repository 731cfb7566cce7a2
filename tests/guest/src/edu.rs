//! QEMU's `edu` device, driven on the bare machine.

use core::fmt;

pub use edu::{BUFFER_SIZE, ID, IDENTIFICATION, Operation};
use edu::{RUN, register};

use crate::arch::{self, mem};
use crate::gic;
use crate::interrupt::{self, Source};
use crate::machine::Machine;
use crate::pci::{self, Bus, COMMAND_BUS_MASTER, Function};
use crate::timer::{self, Deadline};

/// How long a DMA may take: fifty times what it should.
const PATIENCE_MS: u64 = 5000;

/// One DMA.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Which way.
    pub operation: Operation,
    /// The memory address that the device is given.
    pub address: u64,
    /// Bytes, a multiple of four, at most [`BUFFER_SIZE`]; always from the start of the buffer.
    pub size: u64,
}

impl Transfer {
    /// How many 4-byte accesses it consists of.
    pub fn accesses(self) -> u64 {
        self.size / 4
    }
}

/// An edu device, ready for DMA.
#[derive(Clone, Copy)]
pub struct Edu {
    /// The function.
    pub function: Function,
    /// The INTID of its line.
    pub intid: Option<u32>,
    bar: u64,
}

impl Edu {
    /// Finds an edu on the bus and switches it on: the first one, or that of `device=` in the bootargs.
    ///
    /// # Errors
    ///
    /// A reason if there is none.
    pub fn find(machine: &Machine, bus: &mut Bus<'_>) -> Result<Self, &'static str> {
        let wanted = machine.bootargs.get("device");
        let function = pci::functions(bus.bridge)
            .filter(|function| function.id() == ID)
            .find(|function| wanted.is_none_or(|address| is_called(*function, address)))
            .ok_or("no edu device")?;
        Self::switch_on(function, bus)
    }

    /// Switches on the edu that `function` is.
    ///
    /// # Errors
    ///
    /// A reason if it cannot be placed.
    pub fn switch_on(function: Function, bus: &mut Bus<'_>) -> Result<Self, &'static str> {
        let edu = Self::place(function, bus)?;
        function.enable(COMMAND_BUS_MASTER);
        Ok(edu)
    }

    /// Places the edu that `function` is, and leaves bus mastering as it is.
    ///
    /// # Errors
    ///
    /// A reason if the window is full.
    pub fn place(function: Function, bus: &mut Bus<'_>) -> Result<Self, &'static str> {
        bus.assign(function)?;
        let bar = function.bar_address(function.bars().next().ok_or("edu: no BAR")?);
        Ok(Self { function, intid: function.intx(bus.bridge), bar })
    }

    /// Writes everything but the command that starts it.
    ///
    /// # Panics
    ///
    /// If it does not fit the buffer.
    pub fn prepare(self, transfer: Transfer) {
        assert!(transfer.size <= BUFFER_SIZE, "edu: {} bytes", transfer.size);
        let (source, destination) = transfer.operation.ends(transfer.address);
        mem::write64(self.bar + register::DMA_SOURCE, source);
        mem::write64(self.bar + register::DMA_DESTINATION, destination);
        mem::write64(self.bar + register::DMA_COUNT, transfer.size);
    }

    /// Starts the prepared transfer.
    pub fn start(self, operation: Operation, interrupt: bool) {
        let (register, command) = self.command(operation, interrupt);
        mem::barrier();
        mem::write32(register, command);
    }

    /// The write that starts the prepared transfer: register and value.
    pub fn command(self, operation: Operation, interrupt: bool) -> (u64, u32) {
        (self.bar + register::DMA_COMMAND, operation.command(interrupt))
    }

    /// Whether a transfer is under way.
    pub fn is_busy(self) -> bool {
        let busy = mem::read32(self.bar + register::DMA_COMMAND) & RUN != 0;
        mem::barrier();
        busy
    }

    /// Does one transfer, looking at the device until it is over.
    ///
    /// # Errors
    ///
    /// A reason if the device does not finish.
    pub fn transfer(self, transfer: Transfer) -> Result<(), &'static str> {
        self.prepare(transfer);
        self.start(transfer.operation, false);
        let patience = Deadline::after_ms(PATIENCE_MS);
        if timer::poll_every_ms(1, patience, || !self.is_busy()) {
            Ok(())
        } else {
            Err("edu: DMA is stuck")
        }
    }

    /// Does one transfer, sleeping until the device's interrupt says that it is over.
    ///
    /// # Errors
    ///
    /// A reason if the interrupt does not come, or comes early.
    pub fn transfer_with(self, source: Source, transfer: Transfer) -> Result<(), &'static str> {
        let before = source.raised();
        self.prepare(transfer);
        self.start(transfer.operation, true);
        if !interrupt::wait_until(Deadline::after_ms(PATIENCE_MS), || source.raised() != before) {
            return Err("edu: no interrupt after DMA");
        }
        if self.is_busy() { Err("edu: interrupt before the end of DMA") } else { Ok(()) }
    }

    /// Lets interrupts of this device reach this CPU, and the handler silence them.
    ///
    /// # Errors
    ///
    /// A reason if it has no line.
    pub fn connect(self) -> Result<Source, &'static str> {
        let intid = self.intid.ok_or("edu: no interrupt line")?;
        let source = Source::add_edu(intid, self.bar);
        gic::configure_spi(intid, gic::Trigger::Level, arch::cpu::affinity());
        gic::enable(intid);
        Ok(source)
    }

    /// Writes the register that reads as the inverse of what was written, and that nothing clears: no reset of this
    /// device does.
    pub fn remember(self, value: u32) {
        mem::write32(self.bar + register::LIVENESS, value);
    }

    /// What [`Edu::remember`] wrote, in whatever life of the machine.
    pub fn recall(self) -> u32 {
        !mem::read32(self.bar + register::LIVENESS)
    }

    /// Raises its interrupt line for the reasons in `status`.
    pub fn raise(self, status: u32) {
        mem::write32(self.bar + register::INTERRUPT_RAISE, status);
    }

    /// Lowers its interrupt line; returns for which reasons it was raised.
    pub fn acknowledge(self) -> u32 {
        acknowledge(self.bar)
    }
}

/// Lowers the line of the edu at `bar`; returns for which reasons it was raised.
pub fn acknowledge(bar: u64) -> u32 {
    let status = mem::read32(bar + register::INTERRUPT_STATUS);
    if status != 0 {
        mem::write32(bar + register::INTERRUPT_ACKNOWLEDGE, status);
    }
    status
}

fn is_called(function: Function, address: &str) -> bool {
    struct Rest<'a>(&'a str);
    impl fmt::Write for Rest<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.strip_prefix(text).ok_or(fmt::Error)?;
            Ok(())
        }
    }
    let mut rest = Rest(address);
    fmt::write(&mut rest, format_args!("{function}")).is_ok() && rest.0.is_empty()
}
