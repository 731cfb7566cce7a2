//! The cold boot: checks that nobody left anything in this CPU, leaves something in everything, and starts over, once.

use super::{Check, done};
use crate::arch::state::{self, EVERYWHERE, POINTER_AUTHENTICATION, Register};
use crate::arch::{exception, mem, odd};
use crate::edu::Edu;
use crate::machine::Machine;
use crate::pci::Bus;
use crate::psci;

/// What an edu, which has no reset, tells the next life.
const SECOND: u32 = 0x5ec0_4d11;

pub fn run(machine: &Machine) -> Result<(), &'static str> {
    odd::enable_vectors();
    let mut clean = Check::new("cold-vectors");
    clean.same(state::vectors(), [0; 64]);
    drop(clean);
    let mut clean = Check::new("cold-registers");
    let registers = EVERYWHERE.iter().chain(
        has_pointer_authentication().then_some(&POINTER_AUTHENTICATION).into_iter().flatten(),
    );
    for Register { name, read, soil } in registers {
        let seen = exception::catch(read);
        clean.that(seen == Ok(0), format_args!("{name}: {seen:x?}"));
        let seen = exception::catch(soil);
        clean.that(seen.is_ok(), format_args!("{name} cannot be written: {seen:x?}"));
    }
    drop(clean);
    state::set_vectors(&[u64::MAX; 64]);
    let edu = Edu::find(machine, &mut Bus::new(machine)?)?;
    if edu.recall() != SECOND {
        edu.remember(SECOND);
        psci::system_reset()
    }
    big_endian(machine);
    done("cold");
    Ok(())
}

/// A register of the UART, from big-endian code. What that leaves of timers and interrupts does not matter any more.
fn big_endian(machine: &Machine) {
    const UARTIBRD: u64 = 0x24;
    let mut check = Check::new("big-endian-accesses");
    let divisor = machine.uart + UARTIBRD;
    mem::write32(divisor, 0x1234);
    check.same(odd::exchange_big_endian(divisor, 0x7856_0000), 0x3412_0000);
    check.same(mem::read32(divisor), 0x5678);
}

/// `ID_AA64ISAR1_EL1`: APA, API; with either there are GPA or GPI on every CPU known here.
fn has_pointer_authentication() -> bool {
    const ISAR1: usize = 5 * 8 + 1;
    exception::catch(odd::IDENTIFICATION[ISAR1].read).is_ok_and(|value| value & 0xff0 != 0)
}
