//! The event queue: records, interrupts, overflow, and a queue that is disabled, moved or no memory.

use super::expected::Difference;
use super::{Check, Suite, Wires, count, memory};
use crate::edu::{BUFFER_SIZE, Edu, Operation, Transfer};
use crate::role::refused;
use crate::smmu::format::{OVERFLOW, cr0, event, gerror, irq_ctrl, register, ste};
use crate::smmu::{Events, Pool, Registers, Smmu};
use crate::timer::{self, Deadline};

/// Where no machine has memory.
const NOWHERE: u64 = 0x0b00_0000;
/// Two accesses, which QEMU refuses one by one.
const SIZE: u64 = 8;
/// As many as one DMA can have.
const STORM: u64 = BUFFER_SIZE;

pub fn probe(
    suite: &Suite<'_>,
    wires: &Wires,
    edu: Edu,
    sid: u32,
    pool: &mut Pool,
    mut smmu: Smmu,
) -> Result<(), &'static str> {
    let device = Device { suite, edu };
    records(&device, wires, sid, &mut smmu)?;
    disabled(&device, &mut smmu)?;
    overflow(&device, pool, &mut smmu)?;
    nowhere(&device, wires, &mut smmu)?;
    smmu.stop()
}

struct Device<'a> {
    suite: &'a Suite<'a>,
    edu: Edu,
}

impl Device<'_> {
    /// Lets the device write what it may not, `size` bytes.
    fn write(&self, size: u64) -> Result<(), &'static str> {
        let address = memory::dma_page(self.suite.machine, 2);
        refused(self.edu, Transfer { operation: Operation::Write, address, size })
    }
}

/// An invalid STE is `C_BAD_STE`, of the stream and with nothing else; the queue interrupts when it is allowed.
fn records(
    device: &Device<'_>,
    wires: &Wires,
    sid: u32,
    smmu: &mut Smmu,
) -> Result<(), &'static str> {
    let registers = smmu.registers;
    let mut check = Check::new("a-bad-ste-is-recorded");
    smmu.set_ste(sid, &ste::INVALID)?;
    for enabled in [true, false] {
        registers.set_irq_ctrl(if enabled { irq_ctrl::EVENTQ } else { 0 })?;
        let before = count(wires.eventq);
        device.write(SIZE)?;
        let Some(first) = smmu.wait_for_event() else {
            check.that(false, format_args!("no event"));
            continue;
        };
        check.same(first.kind(), event::C_BAD_STE);
        check.same(first.0, [u64::from(sid) << 32 | u64::from(event::C_BAD_STE), 0, 0, 0]);
        while let Some(next) = smmu.next_event() {
            check.same(next, first);
        }
        let patience = if enabled { 2000 } else { 20 };
        let came = || count(wires.eventq) != before;
        check.same(timer::poll_every_ms(1, Deadline::after_ms(patience), came), enabled);
        // Those that come late belong here.
        timer::poll_every_ms(1, Deadline::after_ms(20), || false);
        smmu.drop_events();
    }
    registers.set_irq_ctrl(0)?;
    // An abort is nobody's event.
    smmu.set_ste(sid, &ste::ABORT)?;
    device.write(SIZE)?;
    timer::poll_every_ms(1, Deadline::after_ms(20), || false);
    check.same(smmu.next_event(), None);
    smmu.set_ste(sid, &ste::INVALID)
}

/// Without `EVENTQEN` nothing is recorded, and the queue is as it was when it is enabled again.
fn disabled(device: &Device<'_>, smmu: &mut Smmu) -> Result<(), &'static str> {
    let registers = smmu.registers;
    let mut check = Check::new("a-disabled-event-queue-records-nothing");
    registers.set_cr0(cr0::SMMUEN | cr0::CMDQEN)?;
    let prod = registers.read(register::EVENTQ_PROD);
    device.write(SIZE)?;
    timer::poll_every_ms(1, Deadline::after_ms(20), || false);
    check.same(registers.read(register::EVENTQ_PROD), prod);
    check.same(registers.errors(), 0);
    registers.set_cr0(cr0::SMMUEN | cr0::CMDQEN | cr0::EVENTQEN)?;
    device.write(SIZE)?;
    check.that(smmu.wait_for_event().is_some(), format_args!("no event after it is enabled again"));
    timer::poll_every_ms(1, Deadline::after_ms(20), || false);
    smmu.drop_events();
    Ok(())
}

/// A queue that is full overflows once, and goes on when there is room (section 7.4).
fn overflow(device: &Device<'_>, pool: &mut Pool, smmu: &mut Smmu) -> Result<(), &'static str> {
    let registers = smmu.registers;
    let mut check = Check::new("an-event-queue-overflows");
    let mut small = Events::at(pool.take(64)?, 1);
    rebase(registers, &mut small)?;
    for round in 0..2 {
        device.write(16)?;
        let full = |_| small.waiting(registers) == 2;
        check.that(registers.poll(register::EVENTQ_PROD, full), format_args!("it is not full"));
        let flag = registers.read(register::EVENTQ_PROD) ^ registers.read(register::EVENTQ_CONS);
        let told = flag & OVERFLOW != 0 && registers.errors() == 0;
        device.suite.that(
            &mut check,
            told,
            Some(Difference::OverflowIsAbort),
            format_args!("round {round}: {flag:#x}, GERROR {:#x}", registers.errors()),
        );
        let events = [small.next(registers), small.next(registers), small.next(registers)];
        check.that(
            events[0].is_some() && events[1] == events[0] && events[2].is_none(),
            format_args!("{events:x?}"),
        );
        // What QEMU says instead.
        registers.acknowledge_errors();
        let flag = registers.read(register::EVENTQ_PROD) ^ registers.read(register::EVENTQ_CONS);
        check.that(flag & OVERFLOW == 0, format_args!("it is not acknowledged: {flag:#x}"));
    }
    // Nothing more comes of what was lost.
    timer::poll_every_ms(1, Deadline::after_ms(20), || false);
    check.same(small.next(registers), None);
    drop(check);
    rebase(registers, &mut smmu.events)?;
    if device.suite.bare {
        return Ok(());
    }
    // Whoever stands between the queue and the device may lose some, but has to say so.
    let mut check = Check::new("the-largest-event-queue-overflows");
    device.write(STORM)?;
    let flagged = |prod: u32| (prod ^ registers.read(register::EVENTQ_CONS)) & OVERFLOW != 0;
    let told = registers.poll(register::EVENTQ_PROD, flagged) && registers.errors() == 0;
    check.that(told, format_args!("nobody said so, GERROR {:#x}", registers.errors()));
    check.that(smmu.next_event().is_some(), format_args!("a full queue has no event"));
    timer::poll_every_ms(1, Deadline::after_ms(20), || false);
    smmu.drop_events();
    Ok(())
}

/// A queue that cannot be written is `GERROR.EVENTQ_ABT_ERR`, and hurts nothing else.
fn nowhere(device: &Device<'_>, wires: &Wires, smmu: &mut Smmu) -> Result<(), &'static str> {
    let registers = smmu.registers;
    let mut check = Check::new("an-event-queue-that-is-no-memory-aborts");
    rebase(registers, &mut Events::at(NOWHERE, 4))?;
    registers.set_irq_ctrl(irq_ctrl::GERROR)?;
    let before = count(wires.gerror);
    device.write(SIZE)?;
    let errors = |_| registers.errors() & gerror::EVENTQ_ABT_ERR != 0;
    check.that(registers.poll(register::GERROR, errors), format_args!("no error"));
    let came = timer::poll_every_ms(1, Deadline::after_ms(2000), || count(wires.gerror) != before);
    check.that(came, format_args!("no interrupt"));
    // Commands are taken all the same.
    check.same(smmu.issue(&super::FLUSH), Ok(()));
    registers.set_irq_ctrl(0)?;
    rebase(registers, &mut smmu.events)?;
    registers.acknowledge_errors();
    check.same(registers.errors(), 0);
    device.write(SIZE)?;
    check.that(smmu.wait_for_event().is_some(), format_args!("no event afterwards"));
    timer::poll_every_ms(1, Deadline::after_ms(20), || false);
    smmu.drop_events();
    Ok(())
}

/// Replaces the event queue while the SMMU stays enabled.
fn rebase(registers: Registers, events: &mut Events) -> Result<(), &'static str> {
    registers.set_cr0(cr0::SMMUEN | cr0::CMDQEN)?;
    events.install(registers);
    registers.set_cr0(cr0::SMMUEN | cr0::CMDQEN | cr0::EVENTQEN)
}
