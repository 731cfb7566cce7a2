//! What must never happen.

use std::fmt;

/// A property that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Property {
    /// C1: once closed, nothing passes around the stream table.
    ClosedFromTheStart,
    /// C2: every open stream goes through its VM's stage 2, with ATS, stalls and pass-throughs off.
    Stage2Always,
    /// C2: a transaction reaches what its stream's owner was given, and nothing else.
    Confinement,
    /// C2: the SMMU never meets an STE, a descriptor or a CD that nobody meant.
    NoMixture,
    /// C3: nothing leaves a VM while the SMMU still knows it, or an access to it is under way.
    NoReuseBeforeProof,
    /// C3: nothing leaves a VM before its devices are quiesced.
    NoReuseBeforeQuiesce,
    /// C3: the SMMU reads no memory that was given back, or never was its.
    NoPoison,
    /// C6: what a device tried is recorded as long as the stream is watched.
    NamedNotHidden,
    /// C7: no transaction is left hanging.
    NoStall,
    /// Hardware that does its part never makes the driver fail.
    Progress,
    /// Commands and register writes are those that the hardware defines.
    LegalUse,
}

/// A broken property, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What was broken.
    pub property: Property,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.property, self.what)
    }
}
