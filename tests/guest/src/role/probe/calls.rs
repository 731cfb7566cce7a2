//! Calls to what runs below, by both conduits.

use super::{Check, expect};
use crate::arch::call::{self, Conduit};
use crate::arch::cpu;
use crate::arch::exception::{self, Fault};
use crate::psci::{self, Status, function};
use crate::timer::Deadline;

const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// One of each owner, and numbers that no owner has.
const UNKNOWN: [u32; 12] = [
    0,
    1,
    0x8000_ffff,
    0x8100_0000,
    0x8200_0000,
    0x8300_ff01,
    0x8400_00ff,
    0xc400_00ff,
    0x8600_0000,
    0xb200_0000,
    0xbf00_ff01,
    u32::MAX,
];

/// What `PSCI_FEATURES` says of a function.
const FEATURES: [(u32, Status); 9] = [
    (function::CPU_SUSPEND, 0),
    (function::CPU_OFF, 0),
    (function::CPU_ON, 0),
    (function::AFFINITY_INFO, 0),
    (function::SYSTEM_OFF, 0),
    (function::SYSTEM_RESET, 0),
    (function::FEATURES, 0),
    (SMCCC_VERSION, 0),
    (0x8400_00ff, psci::NOT_SUPPORTED),
];

pub fn probe() {
    for conduit in [Conduit::Smc, Conduit::Hvc] {
        let call = |function: u32, arguments: [u64; 3]| {
            exception::catch(|| call::call(conduit, function, arguments) as Status)
        };
        let mut unknown = Check::new("unknown-call");
        for function in UNKNOWN {
            let seen = call(function, [u64::MAX; 3]);
            unknown.that(
                seen == Ok(psci::NOT_SUPPORTED),
                format_args!("{conduit:?} {function:#x}: {seen:x?}"),
            );
        }
        let numbered = exception::catch(|| call::call_with_number(conduit) as Status);
        let refused =
            numbered == Ok(psci::NOT_SUPPORTED) || numbered.is_err_and(Fault::is_undefined);
        unknown.that(refused, format_args!("{conduit:?} with a number: {numbered:x?}"));

        expect("call-psci-version", call(function::VERSION, [0; 3]), Ok(0x1_0001));
        expect("call-smccc-version", call(SMCCC_VERSION, [0; 3]), Ok(0x1_0001));
        let mut features = Check::new("call-features");
        for (function, wanted) in FEATURES {
            let seen = call(function::FEATURES, [function.into(), 0, 0]);
            features.that(seen == Ok(wanted), format_args!("PSCI {function:#x}: {seen:x?}"));
        }
        for (function, wanted) in [(SMCCC_ARCH_FEATURES, 0), (0x8000_7fff, psci::NOT_SUPPORTED)] {
            let seen = call(SMCCC_ARCH_FEATURES, [function.into(), 0, 0]);
            features.that(seen == Ok(wanted), format_args!("SMCCC {function:#x}: {seen:x?}"));
        }
        let mut preserved = Check::new("call-preserves-registers");
        for function in [function::VERSION, 0x8400_00ff] {
            preserved
                .same(exception::catch(|| call::preserves_registers(conduit, function)), Ok(true));
        }

        cpu::mask_interrupts();
        Deadline::after_ms(2).arm_timer();
        let woken = call(function::CPU_SUSPEND, [0; 3]);
        cpu::unmask_interrupts();
        expect("standby-ends-with-an-interrupt", woken, Ok(psci::SUCCESS));
    }
}
