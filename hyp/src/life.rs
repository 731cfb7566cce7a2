//! What becomes of a VM, and why.

use platform::bundle::{OnCrashKexec, OnExit};
use platform::report::{Cause, VmState};

use crate::pci::Scope;

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

/// What is done to a VM that goes on after its streams are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// Streams are closed; then these functions are stopped, before the guest goes on.
    CloseFirst(Scope),
    /// Functions are stopped before their streams are closed, so that no device sees an error.
    QuiesceFirst,
    /// Streams are closed, and functions left as they are.
    CloseOnly,
    /// Nothing is closed: the next kernel adopts what the old one left behind.
    Preserve,
}

impl HandOver {
    /// What `cause` asks for in a VM whose manifest says `on_crash`.
    pub fn after(cause: Cause, on_crash: OnCrashKexec) -> Self {
        match (cause, on_crash) {
            // It need not be a new kernel: a driver that is unbound, or sleeps, has stopped what it used.
            (Cause::SmmuDisable, _) => Self::CloseFirst(Scope::Armed),
            (Cause::CrashKexec, OnCrashKexec::Quiesce) => Self::QuiesceFirst,
            (Cause::CrashKexec, OnCrashKexec::Abort) => Self::CloseOnly,
            (Cause::CrashKexec, OnCrashKexec::Preserve) => Self::Preserve,
            _ => Self::CloseFirst(Scope::All),
        }
    }
}

/// The end of a VM that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub cause: Cause,
    /// What follows.
    pub next: Next,
}

/// Where a VM is between birth and death.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    /// It was never started, or it ended.
    #[default]
    Off,
    /// Its CPUs run guest code.
    Running,
    /// So they do, but for the one that closes its streams and stops its devices: another kernel, or another
    /// driver, is about to take over.
    HandingOver,
    /// Its streams are being closed for good.
    Closing(End),
    /// Its streams are closed; its CPUs are on their way out of guest code.
    Stopping(End),
    /// None of its CPUs runs; what its devices still try is recorded.
    Watching {
        /// Why it ended, and what follows.
        end: End,
        /// When the watch ends, on EL2's clock.
        until_us: u64,
    },
    /// It died, or its memory could not be proven free of DMA: nothing of it is used again.
    Crashed,
}

/// What a CPU that wants to hand its VM over has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Close and quiesce: it is this CPU's turn.
    Mine,
    /// Try again: another CPU of the VM is at it.
    Wait,
    /// Leave guest code: the VM ends.
    Ended,
}

impl Life {
    /// Its name in the report.
    pub fn state(self) -> VmState {
        match self {
            Self::Off => VmState::Off,
            Self::Running | Self::HandingOver => VmState::Running,
            Self::Closing(end) | Self::Stopping(end) | Self::Watching { end, .. } => match end.next
            {
                Next::Off => VmState::Off,
                Next::Restart => VmState::Restarting,
                Next::Crashed => VmState::Crashed,
            },
            Self::Crashed => VmState::Crashed,
        }
    }

    /// Whether a function may be let loose now: the VM's CPUs run, and its streams are not being closed (C5).
    pub fn may_open(self) -> bool {
        self == Self::Running
    }

    /// The VM ends; returns whether the caller has to see to it. A hand-over that is under way goes on, but
    /// leads nowhere.
    pub fn end(&mut self, end: End) -> bool {
        let lives = matches!(self, Self::Running | Self::HandingOver);
        if lives {
            *self = Self::Closing(end);
        }
        lives
    }

    /// The streams are closed: the VM's CPUs may go on with its end.
    pub fn closed(&mut self) {
        if let Self::Closing(end) = *self {
            *self = Self::Stopping(end);
        }
    }

    /// A CPU of the VM wants to hand it over.
    pub fn hand_over(&mut self) -> Turn {
        match self {
            Self::Running => {
                *self = Self::HandingOver;
                Turn::Mine
            }
            Self::HandingOver => Turn::Wait,
            Self::Off
            | Self::Closing(_)
            | Self::Stopping(_)
            | Self::Watching { .. }
            | Self::Crashed => Turn::Ended,
        }
    }

    /// The CPU whose turn it was is done; returns whether the guest goes on.
    pub fn handed_over(&mut self) -> bool {
        let goes_on = *self == Self::HandingOver;
        if goes_on {
            *self = Self::Running;
        }
        goes_on
    }

    /// The operator wants `wanted` to follow an end that is under way; returns whether one is.
    pub fn overrule(&mut self, wanted: Next) -> bool {
        match self {
            Self::Closing(end) | Self::Stopping(end) | Self::Watching { end, .. } => {
                end.next = wanted;
                true
            }
            Self::Off | Self::Running | Self::HandingOver | Self::Crashed => false,
        }
    }

    /// Its watch is over: it comes to rest as its end says, or as the operator said since; returns whether it does. If
    /// not, it is to start over.
    pub fn rest(&mut self) -> bool {
        if let Self::Watching { end, .. } = *self {
            *self = match end.next {
                Next::Off => Self::Off,
                Next::Crashed => Self::Crashed,
                Next::Restart => return false,
            };
        }
        true
    }

    /// Its images are loaded: it runs, unless the operator wanted something else to follow meanwhile; returns whether it
    /// does.
    pub fn start(&mut self) -> bool {
        let starts = match self {
            Self::Off => true,
            Self::Watching { end, .. } => end.next == Next::Restart,
            _ => false,
        };
        if starts {
            *self = Self::Running;
        }
        starts
    }

    /// Whether nothing more will happen to it by itself.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Off | Self::Crashed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESET: End = End { cause: Cause::SystemReset, next: Next::Restart };

    const ALL: [Life; 7] = [
        Life::Off,
        Life::Running,
        Life::HandingOver,
        Life::Closing(RESET),
        Life::Stopping(RESET),
        Life::Watching { end: RESET, until_us: 1 },
        Life::Crashed,
    ];

    #[test]
    fn a_manifest_decides_about_a_crash_and_nothing_else() {
        for on_crash in [OnCrashKexec::Quiesce, OnCrashKexec::Abort, OnCrashKexec::Preserve] {
            let after = |cause| HandOver::after(cause, on_crash);
            assert_eq!(after(Cause::SmmuDisable), HandOver::CloseFirst(Scope::Armed));
            assert_eq!(after(Cause::MmuOff), HandOver::CloseFirst(Scope::All));
        }
        let crash = |on_crash| HandOver::after(Cause::CrashKexec, on_crash);
        assert_eq!(crash(OnCrashKexec::Quiesce), HandOver::QuiesceFirst);
        assert_eq!(crash(OnCrashKexec::Abort), HandOver::CloseOnly);
        assert_eq!(crash(OnCrashKexec::Preserve), HandOver::Preserve);
    }

    #[test]
    fn only_one_cpu_hands_over_at_a_time_and_the_others_wait() {
        let mut life = Life::Running;
        assert_eq!(life.hand_over(), Turn::Mine);
        assert_eq!(life.hand_over(), Turn::Wait);
        assert!(life.handed_over());
        assert_eq!(life.hand_over(), Turn::Mine);
    }

    #[test]
    fn a_kill_during_a_hand_over_wins_and_nobody_waits_for_ever() {
        let mut life = Life::Running;
        assert_eq!(life.hand_over(), Turn::Mine);
        assert!(life.end(RESET));
        assert_eq!(life.hand_over(), Turn::Ended);
        life.closed();
        assert!(!life.handed_over());
        assert_eq!(life, Life::Stopping(RESET));
    }

    #[test]
    fn nothing_opens_but_in_a_vm_that_runs() {
        for mut life in ALL {
            assert_eq!(life.may_open(), life == Life::Running);
            let lives = matches!(life, Life::Running | Life::HandingOver);
            assert_eq!(life.hand_over() == Turn::Ended, !lives);
            assert_eq!(life.end(RESET), lives);
            assert!(!life.may_open());
        }
    }

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
        let mut life = Life::Stopping(RESET);
        assert!(life.overrule(Next::Off));
        assert_eq!(life, Life::Stopping(End { next: Next::Off, ..RESET }));
        for mut life in [Life::Off, Life::Running, Life::HandingOver, Life::Crashed] {
            let before = life;
            assert!(!life.overrule(Next::Restart));
            assert_eq!(life, before);
        }
    }

    #[test]
    fn what_the_operator_wants_while_images_are_loaded_is_obeyed() {
        for (wanted, rests) in [(Next::Crashed, Life::Crashed), (Next::Off, Life::Off)] {
            let mut life = Life::Watching { end: RESET, until_us: 1 };
            assert!(!life.rest(), "it is to start over, so its images are loaded");
            assert!(life.overrule(wanted));
            assert!(!life.start());
            assert!(life.rest());
            assert_eq!(life, rests);
        }
    }

    #[test]
    fn a_vm_starts_from_rest_or_from_a_watch_that_leads_there_and_from_nowhere_else() {
        for mut life in ALL {
            let before = life;
            let starts = matches!(before, Life::Off | Life::Watching { .. });
            assert_eq!(life.start(), starts);
            assert_eq!(life, if starts { Life::Running } else { before });
        }
    }

    #[test]
    fn only_a_vm_without_a_future_is_settled() {
        assert!(Life::Off.is_settled() && Life::Crashed.is_settled());
        assert!(!Life::Running.is_settled());
        let stopping = Life::Stopping(RESET);
        assert!(!stopping.is_settled());
        assert_eq!(stopping.state(), VmState::Restarting);
    }
}
