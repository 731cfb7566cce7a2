//! A VM as the user asked for it, wherever that was said.

use platform::bundle::{DmaAtBoot, Function, OnCrashKexec, OnExit, Reopen, Stage1};
use platform::report::Name;

use crate::kernel::Kernel;
use crate::linux::Extra;
use crate::setup::Flavor;
use crate::size::MIB;

/// The VCPUs of a VM that does not say.
pub const DEFAULT_CPUS: u32 = 2;
/// The bytes of memory of a VM that does not say.
pub const DEFAULT_MEMORY: u64 = 512 * MIB;

/// A value, and where it was said: `vm.toml:3: cpus`, `--smp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said<T> {
    /// The value.
    pub value: T,
    /// Where, as messages start with it.
    pub origin: String,
}

impl<T> Said<T> {
    /// A value said at `origin`.
    pub fn new(value: T, origin: impl Into<String>) -> Self {
        Self { value, origin: origin.into() }
    }
}

/// The CPUs that a VM asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// So many, whichever are free.
    Count(u32),
    /// Exactly these physical CPUs, vCPU 0 first.
    These(Vec<u32>),
}

impl Cpus {
    /// How many.
    pub fn count(&self) -> u32 {
        match self {
            Self::Count(count) => *count,
            Self::These(list) => u32::try_from(list.len()).unwrap_or(u32::MAX),
        }
    }
}

/// The role of the victim, which moves data through its device and watches its canaries.
pub const VICTIM: &str = "victim";
/// The role of the rogue, which aims its device at everything it does not own, and dies with the device armed.
pub const ROGUE: &str = "rogue";
/// The role of kernels that follow each other in one VM, and leave devices behind.
pub const LINEAGE: &str = "lineage";

/// What runs in a VM.
#[derive(Clone, Debug)]
pub enum Content {
    /// The built-in guest image.
    BuiltIn {
        /// In this role, by its name in the image.
        role: String,
        /// Words added to its bootargs, in place of ours of the same key.
        append: String,
    },
    /// A kernel that the user gave.
    Kernel {
        /// The kernel, unpacked.
        kernel: Kernel,
        /// The initial RAM disk.
        initrd: Option<Vec<u8>>,
        /// Its command line.
        append: String,
    },
    /// Debian's kernel with our initramfs and two disks.
    Linux {
        /// Which kernel.
        flavor: Flavor,
        /// What the user adds to its command line.
        append: String,
        /// What a test adds to its initramfs.
        extra: Box<Extra>,
    },
}

/// One VM.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Its unique name.
    pub name: Said<Name>,
    /// Its CPUs.
    pub cpus: Said<Cpus>,
    /// Its memory in bytes.
    pub memory: Said<u64>,
    /// What runs in it.
    pub content: Content,
    /// Texts that its console must print.
    pub expect: Vec<String>,
    /// What happens when it ends.
    pub on_exit: Said<OnExit>,
    /// What its SMMU is like.
    pub smmu: SmmuPolicy,
    /// The functions that it claims.
    pub functions: Vec<Said<Function>>,
}

/// The `[smmu]` table of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmmuPolicy {
    /// Whether the VM sees one.
    pub stage1: Said<Stage1>,
    /// What its streams may do before the driver claims them.
    pub dma_at_boot: DmaAtBoot,
    /// What happens when it crashes into a new kernel.
    pub on_crash_kexec: OnCrashKexec,
    /// What opens a closed stream again.
    pub reopen: Reopen,
}

/// Why a text cannot be expected on a console, whose lines are looked at one by one.
pub fn check_expected(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        Err("an empty text says nothing: give one that must be printed")
    } else if text.contains(['\n', '\r', '\0']) {
        Err("no line of a console has a line end in it: give a text within a line")
    } else {
        Ok(())
    }
}

impl Vm {
    /// A VM with nothing but defaults.
    pub fn new(name: Said<Name>, content: Content) -> Self {
        let defaults = format!("{} (default)", name.origin);
        Self {
            name,
            cpus: Said::new(Cpus::Count(DEFAULT_CPUS), defaults.clone()),
            memory: Said::new(DEFAULT_MEMORY, defaults.clone()),
            content,
            expect: Vec::new(),
            on_exit: Said::new(OnExit::default(), defaults.clone()),
            smmu: SmmuPolicy {
                stage1: Said::new(Stage1::default(), defaults),
                dma_at_boot: DmaAtBoot::default(),
                on_crash_kexec: OnCrashKexec::default(),
                reopen: Reopen::default(),
            },
            functions: Vec::new(),
        }
    }

    /// A VM of one CPU and `memory` bytes that runs the built-in guest in `role`, with the words of `append` added to its
    /// bootargs; `origin` wants it.
    pub fn built_in(name: Name, role: &str, append: &str, memory: u64, origin: &str) -> Self {
        let content = Content::BuiltIn { role: role.into(), append: append.into() };
        let mut vm = Self::new(Said::new(name, origin), content);
        vm.cpus = Said::new(Cpus::Count(1), origin);
        vm.memory = Said::new(memory, origin);
        vm
    }
}
