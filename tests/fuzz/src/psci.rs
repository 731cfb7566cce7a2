//! A guest's `HVC` and `SMC` calls, one after the other, on the virtual CPUs that they start.

use std::cell::RefCell;

use hyp::psci::{Cpus, Outcome, call};
use platform::guest_map::RAM;
use smmu::addr::Ipa;

use crate::Input;

/// `AFFINITY_INFO`'s answers.
const ON: u64 = 0;
const OFF: u64 = 1;
const ON_PENDING: u64 = 2;
const RAM_SIZE: u64 = 64 << 20;

const CPU_SUSPEND: [u32; 2] = [0x8400_0001, 0xc400_0001];
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: [u32; 2] = [0x8400_0003, 0xc400_0003];
const AFFINITY_INFO: [u32; 2] = [0x8400_0004, 0xc400_0004];
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: [u32; 3] = [0x8400_0009, 0x8400_0012, 0xc400_0012];
/// Calls with small positive answers: versions and features.
const ASKING: [u32; 5] = [0x8000_0000, 0x8000_0001, 0x8400_0000, 0x8400_0006, 0x8400_000a];

const CALLS: [u32; 20] = [
    0x8000_0000,
    0x8000_0001,
    0x8400_0000,
    0x8400_0001,
    0x8400_0002,
    0x8400_0003,
    0x8400_0004,
    0x8400_0006,
    0x8400_0008,
    0x8400_0009,
    0x8400_000a,
    0x8400_0012,
    0xc400_0001,
    0xc400_0003,
    0xc400_0004,
    0xc400_0012,
    0x8400_0005,
    0x8400_000e,
    0x8600_ff01,
    0xc300_0000,
];

/// The virtual CPUs of a VM, and what was started since it was looked at.
struct Vcpus {
    power: RefCell<Vec<u64>>,
    started: RefCell<Vec<(usize, u64, u64)>>,
}

impl Cpus for Vcpus {
    fn power(&self, index: usize) -> Option<arm_psci::AffinityInfo> {
        Some(match *self.power.borrow().get(index)? {
            ON => arm_psci::AffinityInfo::On,
            OFF => arm_psci::AffinityInfo::Off,
            _ => arm_psci::AffinityInfo::OnPending,
        })
    }

    fn is_ram(&self, entry: Ipa) -> bool {
        (RAM.raw()..RAM.raw() + RAM_SIZE).contains(&entry.raw())
    }

    fn start(&self, index: usize, entry: Ipa, context: u64) -> Result<(), arm_psci::ErrorCode> {
        match self.power.borrow_mut()[index] {
            ref mut power @ OFF => *power = ON_PENDING,
            ON => return Err(arm_psci::ErrorCode::AlreadyOn),
            _ => return Err(arm_psci::ErrorCode::OnPending),
        }
        self.started.borrow_mut().push((index, entry.raw(), context));
        Ok(())
    }
}

/// Makes the calls.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let count = input.below(16) as usize + 1;
    let mut power = vec![OFF; count];
    power[0] = ON;
    let cpus = Vcpus { power: RefCell::new(power), started: RefCell::default() };
    for _ in 0..64 {
        if input.is_empty() {
            return;
        }
        let function = if input.any() { input.one_of(&CALLS) } else { input.any() };
        let mut x = [0; 4];
        x[0] = u64::from(function) | u64::from(input.any::<u32>()) << 32;
        for argument in &mut x[1..] {
            *argument = input.near(&[
                0,
                RAM.raw(),
                RAM.raw() + RAM_SIZE,
                u64::MAX,
                0x8400_0000,
                0xc400_0000,
            ]);
        }
        one(&x, &cpus);
    }
}

/// Makes one call, and checks what came of it against the specification.
fn one(x: &[u64; 4], cpus: &Vcpus) {
    let function = x[0] as u32;
    let before = cpus.power.borrow().clone();
    let outcome = call(x, cpus);
    let started = std::mem::take(&mut *cpus.started.borrow_mut());

    // Bits 63:32 of the function identifier do not count, and of a 32-bit call's arguments neither (SMCCC 1.1,
    // section 3.1).
    let mut same = *x;
    same[0] ^= 0xa5a5_a5a5 << 32;
    if function >> 30 & 1 == 0 {
        for argument in &mut same[1..] {
            *argument ^= 0x5a5a_5a5a << 32;
        }
    }
    let again = Vcpus { power: RefCell::new(before.clone()), started: RefCell::default() };
    assert_eq!(call(&same, &again), outcome, "{x:x?}");
    assert_eq!(*again.started.borrow(), started, "{x:x?}");

    match outcome {
        Outcome::SystemOff => assert_eq!(function, SYSTEM_OFF),
        Outcome::SystemReset => assert!(SYSTEM_RESET.contains(&function), "{function:#x}"),
        Outcome::CpuOff => assert_eq!(function, CPU_OFF),
        Outcome::Standby => assert!(CPU_SUSPEND.contains(&function), "{function:#x}"),
        Outcome::Return(value) => {
            let error = -(value as i64);
            let expected = if CPU_ON.contains(&function) {
                value == 0
            } else if AFFINITY_INFO.contains(&function) {
                value <= ON_PENDING
            } else {
                ASKING.contains(&function) && value <= 0x1_0001
            };
            assert!((1..=9).contains(&error) || expected, "{x:x?} gave {value:#x}");
        }
    }
    // Nothing but a CPU_ON that says so starts anything, and only what was off, in RAM, at an instruction.
    match started[..] {
        [] => assert!(!CPU_ON.contains(&function) || outcome != Outcome::Return(0)),
        [(index, entry, context)] => {
            assert!(CPU_ON.contains(&function) && outcome == Outcome::Return(0), "{x:x?}");
            assert_eq!(before[index], OFF);
            assert!(cpus.is_ram(Ipa::new(entry)) && entry % 4 == 0, "{entry:#x}");
            let mask = if function >> 30 & 1 == 0 { u64::from(u32::MAX) } else { u64::MAX };
            assert_eq!((index as u64, entry, context), (x[1] & mask, x[2] & mask, x[3] & mask));
        }
        _ => panic!("{x:x?} started {started:x?}"),
    }
}
