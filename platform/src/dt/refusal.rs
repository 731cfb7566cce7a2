//! Why a machine is refused.

use core::fmt;

use heapless::String;

use crate::fdt::BlobError;

/// A node's path; a path that is longer loses its start.
pub type Path = String<64>;

/// Why the machine cannot be used. Printed, it says which node, what is wrong with it, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The node.
    pub node: Path,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device tree, {}: {}; {}", self.node, self.problem, self.problem.remedy())
    }
}

impl core::error::Error for Refusal {}

/// What is wrong with a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The bytes are not a device tree.
    NotATree(BlobError),
    /// Nodes are nested too deep.
    TooDeep,
    /// No node of this kind is below this one.
    NoNode(&'static str),
    /// This is the second of something that there is one of.
    Twice(&'static str),
    /// There are more of something than there is room for.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there is room for.
        limit: usize,
    },
    /// A property that must be there is not.
    NoProperty(&'static str),
    /// A property's value does not have the form that its binding gives it.
    Malformed {
        /// The property.
        property: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A register range is too small for the device.
    RegistersTooSmall {
        /// Bytes that the device has.
        needed: u64,
    },
    /// The bus above the node does not say where the node's registers are.
    Untranslatable,
    /// An interrupt does not go to the GICv3 directly.
    ForeignInterrupt,
    /// A property refers to something that is no usable node of this kind.
    Dangling {
        /// The property.
        property: &'static str,
        /// What it must refer to.
        to: &'static str,
    },
    /// The interrupt controller is a GICv2.
    GicV2,
    /// The GIC has no maintenance interrupt.
    NoMaintenanceInterrupt,
    /// There is no SMMUv3.
    NoSmmu,
    /// The CPU is not started through PSCI.
    NotPsci,
    /// PSCI is older than version 0.2.
    PsciTooOld,
    /// Devices see memory at other addresses than CPUs do.
    DmaOffset,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotATree(error) => write!(f, "not a device tree: {error}"),
            Self::TooDeep => f.write_str("its nodes are nested too deep"),
            Self::NoNode(kind) => write!(f, "no {kind}"),
            Self::Twice(what) => write!(f, "a second {what}"),
            Self::TooMany { what, limit } => write!(f, "more than {limit} {what}"),
            Self::NoProperty(property) => write!(f, "no property {property}"),
            Self::Malformed { property, why } => write!(f, "property {property}: {why}"),
            Self::RegistersTooSmall { needed } => {
                write!(f, "property reg: the device has {needed:#x} bytes of registers")
            }
            Self::Untranslatable => {
                f.write_str("the ranges of the bus above do not cover its registers")
            }
            Self::ForeignInterrupt => {
                f.write_str("its interrupt does not go to the GICv3 directly")
            }
            Self::Dangling { property, to } => {
                write!(f, "property {property} does not refer to {to}")
            }
            Self::GicV2 => f.write_str("the interrupt controller is a GICv2"),
            Self::NoMaintenanceInterrupt => f.write_str("the GIC has no maintenance interrupt"),
            Self::NoSmmu => f.write_str("no SMMUv3"),
            Self::NotPsci => f.write_str("property enable-method: not psci"),
            Self::PsciTooOld => f.write_str("PSCI is older than version 0.2"),
            Self::DmaOffset => {
                f.write_str("property dma-ranges: devices see memory at other addresses than CPUs")
            }
        }
    }
}

impl Problem {
    /// Says what to do next.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotATree(_) => {
                "pass the address of the device tree in x0, as the arm64 boot protocol says"
            }
            Self::GicV2 => "use a machine with a GICv3 (QEMU: -M virt,gic-version=3)",
            Self::NoSmmu => "use a machine with an SMMUv3 (QEMU: -M virt,iommu=smmuv3)",
            Self::NoMaintenanceInterrupt => {
                "use a machine whose CPUs have EL2 (QEMU: -M virt,virtualization=on)"
            }
            Self::NotPsci | Self::PsciTooOld => "use firmware with PSCI 0.2 or later",
            Self::TooMany { .. } => {
                "use a smaller machine or raise the limit in platform/src/dt.rs"
            }
            Self::Untranslatable | Self::ForeignInterrupt | Self::DmaOffset => {
                "this machine is wired in a way that is not supported yet"
            }
            Self::Dangling { .. } => {
                "correct the reference, or enable the node it refers to, in the firmware's device tree"
            }
            Self::TooDeep
            | Self::NoNode(_)
            | Self::Twice(_)
            | Self::NoProperty(_)
            | Self::Malformed { .. }
            | Self::RegistersTooSmall { .. } => "correct the device tree that the firmware passes",
        }
    }
}
