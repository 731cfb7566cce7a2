//! Checks of a suite: one line of testimony for each that holds, a few for each that does not.

use core::fmt::{Arguments, Debug};

use crate::println;

/// How many failures of one check are told.
const TOLD: u32 = 8;

/// A check that may look at many things; it holds if all of them do. Dropping it ends it.
#[derive(Debug)]
pub struct Check {
    name: &'static str,
    failures: u32,
}

impl Check {
    /// Begins a check.
    pub fn new(name: &'static str) -> Self {
        Self { name, failures: 0 }
    }

    /// One thing to look at; what was seen matters only if it is not right.
    pub fn that(&mut self, right: bool, seen: Arguments<'_>) {
        if right {
            return;
        }
        if self.failures < TOLD {
            println!("@check name={} FAILED why={seen}", self.name);
        }
        self.failures += 1;
    }

    /// One thing that has to be `wanted`.
    pub fn same<T: PartialEq + Debug>(&mut self, seen: T, wanted: T) {
        self.that(seen == wanted, format_args!("{seen:x?} instead of {wanted:x?}"));
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if self.failures == 0 {
            println!("@check name={} ok", self.name);
        }
    }
}

/// A check of a single thing.
pub fn check(name: &'static str, right: bool, seen: Arguments<'_>) {
    Check::new(name).that(right, seen);
}

/// A check that something is `wanted`.
pub fn expect<T: PartialEq + Debug>(name: &'static str, seen: T, wanted: T) {
    Check::new(name).same(seen, wanted);
}
