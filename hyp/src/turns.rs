//! Locks that CPUs of several VMs take, and how often a CPU had to wait for its turn at one.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::{Mutex, MutexGuard};

use crate::arch::cpu::{self, MAX_CPUS};

/// How often each CPU found a shared lock taken.
static WAITS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// A ticket lock that VMs share: whoever finds it taken waits for at most one turn of each other CPU.
pub struct Shared<T>(Mutex<T>);

impl<T> Shared<T> {
    /// One around `value`.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Takes it, and counts for this CPU if it is taken already.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        if self.0.is_locked() {
            WAITS[cpu::number()].fetch_add(1, Ordering::Relaxed);
        }
        self.0.lock()
    }
}

/// How often the CPU of this number found a shared lock taken.
pub fn waits(cpu: usize) -> u64 {
    WAITS[cpu].load(Ordering::Relaxed)
}
