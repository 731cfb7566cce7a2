//! EL2's instruction counter, where the machine counts instructions deterministically.
//!
//! Guests see no performance monitors, so the first event counter is EL2's own.

use crate::arch::sysreg::{isb, read, write};

/// Instructions architecturally executed (Arm ARM, D14.11).
const INST_RETIRED: u64 = 8;
/// Count at EL2, not at EL1 and EL0 (`PMEVTYPER<n>_EL0`: P, U, NSH).
const EL2_ONLY: u64 = 1 << 31 | 1 << 30 | 1 << 27;

read!(id_aa64dfr0_el1, "id_aa64dfr0_el1");
read!(pmceid0_el0, "pmceid0_el0");
read!(pmcr_el0, "pmcr_el0");
write!(pmcr_el0_write, "pmcr_el0");
write!(pmcntenset_el0, "pmcntenset_el0");
write!(pmevtyper0_el0, "pmevtyper0_el0");
write!(pmevcntr0_el0_write, "pmevcntr0_el0");
read!(pmevcntr0_el0, "pmevcntr0_el0");

fn is_present() -> bool {
    let version = id_aa64dfr0_el1() >> 8 & 0xf;
    version != 0 && version != 0xf && pmceid0_el0() & 1 << INST_RETIRED != 0
}

/// A count that runs.
#[derive(Debug)]
pub struct Running(());

/// Starts to count EL2's instructions on this CPU; `None` if the machine does not count them. QEMU's counter is one for
/// all CPUs and exception levels: there it counts what others execute meanwhile as well.
pub fn start() -> Option<Running> {
    if !is_present() {
        return None;
    }
    pmevtyper0_el0(INST_RETIRED | EL2_ONLY);
    pmevcntr0_el0_write(0);
    pmcntenset_el0(1);
    pmcr_el0_write(pmcr_el0() | 1);
    isb();
    Some(Running(()))
}

impl Running {
    /// The instructions so far.
    pub fn count(&self) -> u64 {
        isb();
        // 32 bits without FEAT_PMUv3p5; nothing that is counted runs that long.
        pmevcntr0_el0() & 0xffff_ffff
    }
}
