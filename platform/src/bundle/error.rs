//! What is wrong with a bundle.

use core::fmt;

use heapless::String;

use crate::dt::Path;
use crate::fdt::BlobError;
use crate::name::NameError;
use crate::pcie::{Bdf, BdfError};
use crate::report::Name;

/// Why a bundle is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleError {
    /// The node's path, or the VM's name.
    pub place: Path,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bundle, {}: {}", self.place, self.problem)
    }
}

impl core::error::Error for BundleError {}

/// Which of a VM's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// The kernel.
    Kernel,
    /// The initial file system.
    Initrd,
    /// The device tree.
    DeviceTree,
}

impl ImageKind {
    /// Returns the property of a configuration that refers to such an image.
    pub fn property(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "ramdisk",
            Self::DeviceTree => "fdt",
        }
    }

    /// Returns the image's `type`.
    pub fn type_(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "ramdisk",
            Self::DeviceTree => "flat_dt",
        }
    }
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "the kernel",
            Self::Initrd => "the initrd",
            Self::DeviceTree => "the device tree",
        })
    }
}

/// What is wrong with a node or a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The bytes are not a FIT image.
    NotATree(BlobError),
    /// A node that must be there is not.
    NoNode(&'static str),
    /// A property that must be there is not.
    NoProperty(&'static str),
    /// A property's value does not have the right form.
    Malformed {
        /// The property.
        property: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A property of ours that this version does not know.
    UnknownProperty(String<32>),
    /// A reference to an image that is not there.
    NoImage(ImageKind),
    /// An image's hash does not match its data.
    WrongHash,
    /// The VM's name cannot be one.
    Name(NameError),
    /// A function's address cannot be one.
    Address(BdfError),
    /// More of something than there is room for.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there is room for.
        limit: usize,
    },
    /// Nobody is in the bundle.
    NoVm,
    /// Another VM has the same name.
    NameTaken,
    /// The VM has no CPU.
    NoCpu,
    /// The CPU index is larger than any machine's.
    NoSuchCpu(u32),
    /// The CPU is owned twice, the first time by this VM.
    CpuTaken(u32, Name),
    /// The function is owned twice, the first time by this VM.
    FunctionTaken(Bdf, Name),
    /// The size of the memory is 0, too large, or no multiple of 2 MiB.
    MemorySize(u64),
    /// An image has no bytes.
    EmptyImage(ImageKind),
    /// An image does not lie in the VM's memory.
    OutsideMemory(ImageKind),
    /// Two images overlap.
    Overlap(ImageKind, ImageKind),
    /// The device tree is larger than 2 MiB or not at a multiple of 8 bytes.
    DeviceTreePlace,
    /// The kernel's entry is not a multiple of 4 bytes inside the kernel.
    Entry,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotATree(error) => {
                write!(f, "not a FIT image: {error}; was a bundle loaded, and all of it?")
            }
            Self::NoNode(node) => write!(f, "no node {node}"),
            Self::NoProperty(property) => write!(f, "no property {property}"),
            Self::Malformed { property, expected } => {
                write!(f, "property {property}: expected {expected}")
            }
            Self::UnknownProperty(property) => {
                write!(f, "unknown property {property}: was the bundle made for another version?")
            }
            Self::NoImage(kind) => {
                write!(f, "property {} names no image", kind.property())
            }
            Self::WrongHash => f.write_str("the data does not match its SHA-256: load it again"),
            Self::Name(error) => write!(f, "{error}"),
            Self::Address(error) => write!(f, "{error}"),
            Self::TooMany { what, limit } => write!(f, "more than {limit} {what}"),
            Self::NoVm => f.write_str("no VM"),
            Self::NameTaken => f.write_str("another VM has the same name"),
            Self::NoCpu => f.write_str("the VM has no CPU"),
            Self::NoSuchCpu(cpu) => {
                write!(f, "CPU {cpu}: the largest index is {}", super::MAX_CPUS - 1)
            }
            Self::CpuTaken(cpu, vm) => write!(f, "CPU {cpu} belongs to {vm} already"),
            Self::FunctionTaken(bdf, vm) => write!(f, "function {bdf} belongs to {vm} already"),
            Self::MemorySize(size) => write!(
                f,
                "memory of {size} bytes: it must be a multiple of {} MiB and at most {} GiB",
                crate::guest_map::RAM_GRANULE >> 20,
                crate::guest_map::RAM_LIMIT >> 30
            ),
            Self::EmptyImage(kind) => write!(f, "{kind} is empty"),
            Self::OutsideMemory(kind) => {
                write!(f, "{kind} does not fit into the VM's memory: give the VM more")
            }
            Self::Overlap(one, other) => write!(f, "{one} overlaps {other}"),
            Self::DeviceTreePlace => {
                f.write_str("the device tree is larger than 2 MiB or not at a multiple of 8 bytes")
            }
            Self::Entry => {
                f.write_str("the entry is not at a multiple of 4 bytes inside the kernel")
            }
        }
    }
}
