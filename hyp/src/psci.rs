//! What a guest's `HVC` and `SMC` calls mean: PSCI 1.1 (Arm DEN 0022) and SMCCC 1.1 (Arm DEN 0028), both
//! conduits alike.

use core::sync::atomic::{AtomicU32, Ordering};

use arm_psci::{AffinityInfo, ErrorCode, Function, FunctionId, Mpidr, PsciFeature};
use smmu::addr::Ipa;

const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
const SMCCC_1_1: u64 = 0x1_0001;
const PSCI_1_1: u64 = 0x1_0001;
/// `MIGRATE_INFO_TYPE`: there is no Trusted OS that would have to be migrated.
const NO_TRUSTED_OS: u64 = 2;
const NOT_SUPPORTED: u64 = -1i64 as u64;

/// The virtual CPUs of the caller's VM, as PSCI sees them.
pub trait Cpus {
    /// Whether virtual CPU `index` runs, or `None` if there is none.
    fn power(&self, index: usize) -> Option<AffinityInfo>;
    /// Whether code can be at `entry`.
    fn is_ram(&self, entry: Ipa) -> bool;
    /// Starts virtual CPU `index`.
    ///
    /// # Errors
    ///
    /// `AlreadyOn` or `OnPending` if it is not off.
    fn start(&self, index: usize, entry: Ipa, context: u64) -> Result<(), ErrorCode>;
}

/// How many virtual CPUs of a VM are on or told to start, those that are going off left out.
#[derive(Debug, Default)]
pub struct CpusOn(AtomicU32);

impl CpusOn {
    /// The first CPU is told to start, and no other is on.
    pub fn first(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    /// One that is on tells another to start.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One that is on asks to go off; returns whether it may, and then it has to. The last one may not, nor may all that
    /// ask at the same time: a VM without any CPU could never be woken again.
    pub fn leave(&self) -> bool {
        let less = |on| (on > 1).then(|| on - 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// x0 becomes this value and the guest goes on.
    Return(u64),
    /// The guest sleeps until an interrupt, then x0 becomes 0.
    Standby,
    /// The calling CPU stops.
    CpuOff,
    /// The VM stops for good.
    SystemOff,
    /// The VM starts over.
    SystemReset,
}

/// Answers the call whose function identifier and arguments are in `x[0..4]`.
pub fn call(x: &[u64; 4], cpus: &impl Cpus) -> Outcome {
    // Bits 63:32 of the function identifier are ignored by the convention.
    match x[0] as u32 {
        SMCCC_VERSION => return Outcome::Return(SMCCC_1_1),
        SMCCC_ARCH_FEATURES => {
            let known = matches!(x[1] as u32, SMCCC_VERSION | SMCCC_ARCH_FEATURES);
            return Outcome::Return(if known { 0 } else { NOT_SUPPORTED });
        }
        _ => {}
    }
    match Function::try_from(x) {
        Ok(function) => answer(function, cpus).unwrap_or_else(|error| Outcome::Return(code(error))),
        Err(error) => Outcome::Return(code(error.into())),
    }
}

fn code(error: ErrorCode) -> u64 {
    i64::from(i32::from(error)) as u64
}

/// The index of the virtual CPU with this affinity; ours differ in Aff0 only.
fn index(mpidr: Mpidr) -> Option<usize> {
    let flat = mpidr.aff1 == 0 && mpidr.aff2 == 0 && mpidr.aff3.unwrap_or(0) == 0;
    flat.then_some(mpidr.aff0.into())
}

fn answer(function: Function, cpus: &impl Cpus) -> Result<Outcome, ErrorCode> {
    Ok(match function {
        Function::Version => Outcome::Return(PSCI_1_1),
        // A power-down request may be answered by a standby.
        Function::CpuSuspend { .. } => Outcome::Standby,
        Function::CpuOff => Outcome::CpuOff,
        Function::CpuOn { target_cpu, entry } => {
            let target = index(target_cpu).ok_or(ErrorCode::InvalidParameters)?;
            let at = Ipa::new(entry.entry_point_address());
            let off = cpus.power(target).ok_or(ErrorCode::InvalidParameters)? == AffinityInfo::Off;
            if off && (!cpus.is_ram(at) || !at.is_aligned(4)) {
                return Err(ErrorCode::InvalidAddress);
            }
            // Another CPU may have been faster since.
            cpus.start(target, at, entry.context_id())?;
            Outcome::Return(0)
        }
        Function::AffinityInfo { mpidr, lowest_affinity_level: 0 } => {
            let state = index(mpidr).and_then(|target| cpus.power(target));
            Outcome::Return(state.ok_or(ErrorCode::InvalidParameters)? as u64)
        }
        // Levels above 0 are optional since PSCI 1.0.
        Function::AffinityInfo { .. } => return Err(ErrorCode::InvalidParameters),
        Function::MigrateInfoType => Outcome::Return(NO_TRUSTED_OS),
        Function::SystemOff => Outcome::SystemOff,
        Function::SystemReset | Function::SystemReset2 { .. } => Outcome::SystemReset,
        Function::Features { psci_func_id } => Outcome::Return(features(psci_func_id)?),
        _ => return Err(ErrorCode::NotSupported),
    })
}

/// The answer to `PSCI_FEATURES`: 0 flags for what [`answer`] knows.
fn features(id: PsciFeature) -> Result<u64, ErrorCode> {
    match id {
        PsciFeature::SmcccVersion => Ok(0),
        PsciFeature::PsciFunction(
            FunctionId::PsciVersion
            | FunctionId::CpuSuspend32
            | FunctionId::CpuSuspend64
            | FunctionId::CpuOff
            | FunctionId::CpuOn32
            | FunctionId::CpuOn64
            | FunctionId::AffinityInfo32
            | FunctionId::AffinityInfo64
            | FunctionId::MigrateInfoType
            | FunctionId::SystemOff
            | FunctionId::SystemReset
            | FunctionId::SystemReset232
            | FunctionId::SystemReset264
            | FunctionId::PsciFeatures,
        ) => Ok(0),
        PsciFeature::PsciFunction(_) => Err(ErrorCode::NotSupported),
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use std::thread;

    use super::*;

    /// Two virtual CPUs: 0 runs, 1 is off.
    #[derive(Default)]
    struct Two {
        started: Cell<Option<(usize, Ipa, u64)>>,
    }

    impl Cpus for Two {
        fn power(&self, index: usize) -> Option<AffinityInfo> {
            match index {
                0 => Some(AffinityInfo::On),
                1 if self.started.get().is_some() => Some(AffinityInfo::OnPending),
                1 => Some(AffinityInfo::Off),
                _ => None,
            }
        }

        fn is_ram(&self, entry: Ipa) -> bool {
            (0x4000_0000..0x6000_0000).contains(&entry.raw())
        }

        fn start(&self, index: usize, entry: Ipa, context: u64) -> Result<(), ErrorCode> {
            match self.power(index) {
                Some(AffinityInfo::Off) => self.started.set(Some((index, entry, context))),
                Some(AffinityInfo::On) => return Err(ErrorCode::AlreadyOn),
                _ => return Err(ErrorCode::OnPending),
            }
            Ok(())
        }
    }

    fn returned(x: [u64; 4], cpus: &Two) -> i64 {
        match call(&x, cpus) {
            Outcome::Return(value) => value as i64,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn versions() {
        let cpus = Two::default();
        assert_eq!(returned([0x8400_0000, 0, 0, 0], &cpus), 0x1_0001);
        assert_eq!(returned([0x8000_0000, 0, 0, 0], &cpus), 0x1_0001);
        assert_eq!(returned([0x8000_0001, 0x8000_8000, 0, 0], &cpus), -1);
    }

    #[test]
    fn an_unknown_call_is_not_supported() {
        let cpus = Two::default();
        for function in [0, 0x1234, 0x8400_00ff, 0xc600_0000, 0x8600_0000, u64::MAX] {
            assert_eq!(returned([function, 1, 2, 3], &cpus), -1, "{function:#x}");
        }
    }

    #[test]
    fn a_cpu_that_is_off_starts_once() {
        let cpus = Two::default();
        assert_eq!(returned([0xc400_0003, 1, 0x4008_0000, 42], &cpus), 0);
        assert_eq!(cpus.started.get(), Some((1, Ipa::new(0x4008_0000), 42)));
        assert_eq!(returned([0xc400_0003, 1, 0x4008_0000, 42], &cpus), -5);
    }

    #[test]
    fn cpu_on_refuses_what_it_should() {
        let cpus = Two::default();
        assert_eq!(returned([0xc400_0003, 0, 0x4008_0000, 0], &cpus), -4);
        assert_eq!(returned([0xc400_0003, 2, 0x4008_0000, 0], &cpus), -2);
        assert_eq!(returned([0xc400_0003, 0x100, 0x4008_0000, 0], &cpus), -2);
        assert_eq!(returned([0xc400_0003, 1 << 40, 0x4008_0000, 0], &cpus), -2);
        assert_eq!(returned([0xc400_0003, 1, 0x0800_0000, 0], &cpus), -9);
        assert_eq!(cpus.started.get(), None);
    }

    #[test]
    fn affinity_info() {
        let cpus = Two::default();
        assert_eq!(returned([0xc400_0004, 0, 0, 0], &cpus), 0);
        assert_eq!(returned([0xc400_0004, 1, 0, 0], &cpus), 1);
        assert_eq!(returned([0xc400_0004, 7, 0, 0], &cpus), -2);
        assert_eq!(returned([0xc400_0004, 0, 1, 0], &cpus), -2);
        assert_eq!(returned([0xc400_0004, 0, 9, 0], &cpus), -2);
    }

    #[test]
    fn the_ends_of_a_vm() {
        let cpus = Two::default();
        assert_eq!(call(&[0x8400_0008, 0, 0, 0], &cpus), Outcome::SystemOff);
        assert_eq!(call(&[0x8400_0009, 0, 0, 0], &cpus), Outcome::SystemReset);
        assert_eq!(call(&[0xc400_0012, 0, 0, 0], &cpus), Outcome::SystemReset);
        assert_eq!(call(&[0x8400_0002, 0, 0, 0], &cpus), Outcome::CpuOff);
    }

    #[test]
    fn the_last_cpu_does_not_go_off() {
        let cpus = CpusOn::default();
        cpus.first();
        assert!(!cpus.leave());
        cpus.add();
        assert!(cpus.leave());
        assert!(!cpus.leave());
        cpus.add();
        cpus.first();
        assert!(!cpus.leave(), "a VM starts with one CPU, however many it ended with");
    }

    #[test]
    fn of_two_cpus_that_go_off_together_one_stays() {
        const ROUNDS: u32 = 10_000;
        let (cpus, arrivals) = (CpusOn::default(), AtomicU32::new(0));
        cpus.first();
        cpus.add();
        let race = || {
            let rounds = (1..=ROUNDS).map(|round| {
                arrivals.fetch_add(1, Ordering::AcqRel);
                // No barrier of the library's: it would wake one after the other.
                while arrivals.load(Ordering::Acquire) < 2 * round {
                    core::hint::spin_loop();
                }
                let left = cpus.leave();
                if !left {
                    cpus.add();
                }
                left
            });
            rounds.collect::<std::vec::Vec<_>>()
        };
        let [one, other] = thread::scope(|scope| {
            [scope.spawn(race), scope.spawn(race)].map(|thread| thread.join().unwrap())
        });
        assert!(one.iter().zip(&other).all(|(one, other)| one != other));
    }

    #[test]
    fn features_name_what_is_there() {
        let cpus = Two::default();
        assert_eq!(returned([0x8400_000a, 0x8400_0008, 0, 0], &cpus), 0);
        assert_eq!(returned([0x8400_000a, 0x8000_0000, 0, 0], &cpus), 0);
        assert_eq!(returned([0x8400_000a, 0x8400_0015, 0, 0], &cpus), -1);
        assert_eq!(returned([0x8400_000a, 0x8400_00ff, 0, 0], &cpus), -1);
    }
}
