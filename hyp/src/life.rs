//! What becomes of a VM, and why.

use platform::bundle::OnExit;
use platform::report::{Cause, VmState};

/// What follows a VM's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It stays off.
    Off,
    /// It starts over.
    Restart,
    /// It stays as it died.
    Crashed,
}

impl Next {
    /// What follows `cause` for a VM whose manifest says `on_exit`.
    pub fn after(cause: Cause, on_exit: OnExit) -> Self {
        match (on_exit, cause) {
            (OnExit::Restart, _) => Self::Restart,
            (OnExit::Off, Cause::SystemReset) => Self::Off,
            (_, Cause::Fault) => Self::Crashed,
            (OnExit::AsAsked, Cause::SystemReset) => Self::Restart,
            _ => Self::Off,
        }
    }
}

/// Where a VM is between birth and death.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    /// It was never started, or it ended.
    #[default]
    Off,
    /// Its CPUs run guest code.
    Running,
    /// Its streams are being closed.
    Closing {
        /// Why.
        cause: Cause,
        /// What follows.
        next: Next,
    },
    /// Its streams are closed; its CPUs are on their way out of guest code.
    Stopping {
        /// Why.
        cause: Cause,
        /// What follows.
        next: Next,
    },
    /// None of its CPUs runs; what its devices still try is recorded until `until_us`.
    Watching {
        /// Why it ended.
        cause: Cause,
        /// What follows.
        next: Next,
        /// When the watch ends, on EL2's clock.
        until_us: u64,
    },
    /// It died, or its memory could not be proven free of DMA: nothing of it is used again.
    Crashed,
}

impl Life {
    /// Its name in the report.
    pub fn state(self) -> VmState {
        match self {
            Self::Off => VmState::Off,
            Self::Running => VmState::Running,
            Self::Closing { next, .. }
            | Self::Stopping { next, .. }
            | Self::Watching { next, .. } => match next {
                Next::Off => VmState::Off,
                Next::Restart => VmState::Restarting,
                Next::Crashed => VmState::Crashed,
            },
            Self::Crashed => VmState::Crashed,
        }
    }

    /// The operator wants `wanted` to follow an end that is under way; returns whether one is.
    pub fn overrule(&mut self, wanted: Next) -> bool {
        match self {
            Self::Closing { next, .. }
            | Self::Stopping { next, .. }
            | Self::Watching { next, .. } => {
                *next = wanted;
                true
            }
            Self::Off | Self::Running | Self::Crashed => false,
        }
    }

    /// Whether nothing more will happen to it by itself.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Off | Self::Crashed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_gets_what_it_asked_for() {
        assert_eq!(Next::after(Cause::SystemOff, OnExit::AsAsked), Next::Off);
        assert_eq!(Next::after(Cause::SystemReset, OnExit::AsAsked), Next::Restart);
        assert_eq!(Next::after(Cause::Fault, OnExit::AsAsked), Next::Crashed);
        assert_eq!(Next::after(Cause::Operator, OnExit::AsAsked), Next::Off);
    }

    #[test]
    fn a_manifest_overrides_the_guest() {
        assert_eq!(Next::after(Cause::SystemOff, OnExit::Restart), Next::Restart);
        assert_eq!(Next::after(Cause::Fault, OnExit::Restart), Next::Restart);
        assert_eq!(Next::after(Cause::SystemReset, OnExit::Off), Next::Off);
        assert_eq!(Next::after(Cause::Fault, OnExit::Off), Next::Crashed);
    }

    #[test]
    fn an_operator_overrules_an_end_under_way_and_nothing_else() {
        let mut life = Life::Stopping { cause: Cause::SystemReset, next: Next::Restart };
        assert!(life.overrule(Next::Off));
        assert_eq!(life, Life::Stopping { cause: Cause::SystemReset, next: Next::Off });
        for mut life in [Life::Off, Life::Running, Life::Crashed] {
            let before = life;
            assert!(!life.overrule(Next::Restart));
            assert_eq!(life, before);
        }
    }

    #[test]
    fn only_a_vm_without_a_future_is_settled() {
        assert!(Life::Off.is_settled() && Life::Crashed.is_settled());
        assert!(!Life::Running.is_settled());
        let stopping = Life::Stopping { cause: Cause::SystemReset, next: Next::Restart };
        assert!(!stopping.is_settled());
        assert_eq!(stopping.state(), VmState::Restarting);
    }
}
