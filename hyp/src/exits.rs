//! Why guests leave guest code, counted.

use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a CPU left guest code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in the report.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

reasons! {
    /// A physical interrupt.
    Interrupt = "interrupt",
    /// The GIC's registers.
    Gic = "gic",
    /// The console's registers.
    Uart = "uart",
    /// PCI configuration space.
    PciConfig = "pci-config",
    /// A device register that is forwarded one access at a time.
    PciForward = "pci-forward",
    /// A batch of commands for the guest's SMMU.
    SmmuCommands = "smmu-commands",
    /// Any other write to its SMMU's registers.
    Smmu = "smmu",
    /// PSCI and other calls.
    Call = "call",
    /// A system register.
    SystemRegister = "system-register",
    /// An access that nothing answers.
    Abort = "abort",
    /// An instruction that this machine does not have.
    Undefined = "undefined",
    /// An asynchronous error.
    SystemError = "system-error",
}

/// How often each reason occurred.
#[derive(Debug, Default)]
pub struct Exits([AtomicU64; Reason::ALL.len()]);

impl Exits {
    /// Counts one exit.
    pub fn count(&self, reason: Reason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Each reason and how often it occurred so far.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().map(|&reason| (reason, self.0[reason as usize].load(Ordering::Relaxed)))
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_count() {
        let exits = Exits::default();
        exits.count(Reason::Uart);
        exits.count(Reason::Uart);
        exits.count(Reason::SystemError);
        let seen: Vec<_> = exits.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(seen, [(Reason::Uart, 2), (Reason::SystemError, 1)]);
        assert_eq!(exits.total(), 3);
    }

    #[test]
    fn names_fit_the_report() {
        assert!(Reason::ALL.iter().all(|reason| reason.name().len() <= 24));
    }
}
