//! The other CPUs: how they are started, and what they can be asked to do.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::arch::boot::{self, MAX_CPUS};
use crate::arch::{cpu, kexec};
use crate::machine::Machine;
use crate::psci::{self, Status, function};
use crate::timer::{self, Deadline};
use crate::{gic, println, role};

/// How long a CPU may take to come, go or answer.
const PATIENCE_MS: u64 = 5000;
/// By how much [`Order::Count`] adds to the counter, one by one.
pub const STEPS: u64 = 1000;
/// The SGI that answers [`Order::Reply`].
pub const REPLY: u32 = 14;

/// What a CPU can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Order {
    /// Add [`STEPS`] ones to the common counter, by exclusive accesses.
    Count = 1,
    /// Switch yourself off.
    Off = 2,
    /// Send the SGI [`REPLY`] to the CPU that booted.
    Reply = 3,
    /// Get into the way of the CPU that booted, as [`role::disturb`] says.
    Disturb = 4,
    /// Go off together with another one, as [`role::go_off_together`] says.
    OffTogether = 5,
    /// Ring the doorbell of [`ring`], and never stop.
    Ring = 6,
}

struct Mailbox {
    order: AtomicU32,
    answers: AtomicU32,
    boots: AtomicU32,
    affinity: AtomicU64,
}

static MAILBOXES: [Mailbox; MAX_CPUS] = [const {
    Mailbox {
        order: AtomicU32::new(0),
        answers: AtomicU32::new(0),
        boots: AtomicU32::new(0),
        affinity: AtomicU64::new(0),
    }
}; MAX_CPUS];
static COUNTER: AtomicU64 = AtomicU64::new(0);
static DOORBELL: AtomicU64 = AtomicU64::new(0);

/// Asks PSCI to start the CPU of this index and waits until it runs.
///
/// # Errors
///
/// What PSCI answered, if that is not `SUCCESS`; `None` if it did but the CPU does not come.
pub fn start(machine: &Machine, index: usize) -> Result<(), Option<Status>> {
    MAILBOXES[0].affinity.store(cpu::affinity(), Ordering::Release);
    start_at(machine.affinities[index], index)
}

/// Likewise a CPU that ran before, the one that booted included. It begins with `order`.
///
/// # Errors
///
/// As for [`start`].
pub fn start_again(index: usize, order: Order) -> Result<(), Option<Status>> {
    MAILBOXES[index].order.store(order as u32, Ordering::Release);
    start_at(found_affinity(index), index)
}

fn start_at(affinity: u64, index: usize) -> Result<(), Option<Status>> {
    let before = boots(index);
    let arguments = [affinity, boot::secondary_entry_address(), index as u64];
    match psci::psci(function::CPU_ON, arguments) {
        psci::SUCCESS => {}
        status => return Err(Some(status)),
    }
    if patiently(|| boots(index) != before) { Ok(()) } else { Err(None) }
}

/// How often the CPU of this index came up.
pub fn boots(index: usize) -> u32 {
    MAILBOXES[index].boots.load(Ordering::Acquire)
}

/// The affinity that the CPU of this index found in its own `MPIDR_EL1`.
pub fn found_affinity(index: usize) -> u64 {
    MAILBOXES[index].affinity.load(Ordering::Acquire) & 0xff_00ff_ffff
}

/// What [`Order::Count`] added up to.
pub fn counter() -> u64 {
    COUNTER.load(Ordering::Acquire)
}

/// Asks the CPU of this index to do something, without waiting for it.
pub fn order(machine: &Machine, index: usize, order: Order) {
    MAILBOXES[index].order.store(order as u32, Ordering::Release);
    gic::send_sgi(gic::DOORBELL, machine.affinities[index]);
}

/// Has the CPU of this index write indices to the doorbell at `address` for as long as the VM lives, whatever kernel runs
/// on the others.
pub fn ring(machine: &Machine, index: usize, address: u64) {
    DOORBELL.store(address, Ordering::Relaxed);
    order(machine, index, Order::Ring);
}

/// How many orders the CPU of this index carried out.
pub fn answers(index: usize) -> u32 {
    MAILBOXES[index].answers.load(Ordering::Acquire)
}

/// Looks at `done` until it holds; gives up after five seconds.
pub fn patiently(done: impl FnMut() -> bool) -> bool {
    timer::poll_every_ms(1, Deadline::after_ms(PATIENCE_MS), done)
}

/// Likewise, and sees it as soon as it holds.
pub fn at_once(done: impl FnMut() -> bool) -> bool {
    timer::poll_every_ms(0, Deadline::after_ms(PATIENCE_MS), done)
}

/// What a CPU does that was started by another one; its stack is empty then.
pub fn secondary(index: usize) -> ! {
    let mailbox = &MAILBOXES[index];
    gic::start_cpu();
    mailbox.affinity.store(cpu::affinity(), Ordering::Release);
    mailbox.boots.fetch_add(1, Ordering::Release);
    loop {
        cpu::mask_interrupts();
        let order = mailbox.order.swap(0, Ordering::AcqRel);
        if order == 0 {
            cpu::wait_for_interrupt();
            cpu::unmask_interrupts();
            continue;
        }
        if order == Order::Count as u32 {
            for _ in 0..STEPS {
                COUNTER.fetch_add(1, Ordering::Relaxed);
            }
        } else if order == Order::Reply as u32 {
            gic::send_sgi(REPLY, found_affinity(0));
        } else if order == Order::Disturb as u32 {
            role::disturb();
        } else if order == Order::OffTogether as u32 {
            role::go_off_together(index);
        } else if order == Order::Ring as u32 {
            kexec::ring(DOORBELL.load(Ordering::Relaxed));
        } else if order == Order::Off as u32 {
            let status = psci::psci(function::CPU_OFF, [0; 3]);
            println!("guest: CPU_OFF returned {status}");
        }
        mailbox.answers.fetch_add(1, Ordering::Release);
        cpu::unmask_interrupts();
    }
}
