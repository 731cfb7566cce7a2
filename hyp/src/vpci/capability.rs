//! The capabilities that a guest sees: those on the allow-list, in a list of their own.

use heapless::Vec;

use crate::pci::registers as reg;
use crate::pci::{Config, ConfigSpace, Function, ResetPolicy, configuration_type};

/// The `cfg_type` of the window through which a driver reaches BARs by configuration accesses (virtio 1.2,
/// section 4.1.4.9): it would reach all of the BAR, whatever stage 2 says.
const VIRTIO_CONFIGURATION_ACCESS: u8 = 5;
/// Power management, PCI Express, advanced features, and the vendor-specific ones.
const MAX_SHOWN: usize = 16;

/// What a visible capability is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Power management.
    Power,
    /// PCI Express, up to and including device status.
    Express,
    /// Function-level reset of a conventional function.
    Advanced,
    /// The place of a virtio structure, for reading only.
    Virtio,
}

impl Shown {
    const fn id(self) -> u8 {
        match self {
            Self::Power => reg::CAP_POWER,
            Self::Express => reg::CAP_EXPRESS,
            Self::Advanced => reg::CAP_ADVANCED,
            Self::Virtio => reg::CAP_VENDOR,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    what: Shown,
    offset: u16,
    /// Bytes.
    length: u16,
}

/// The visible capabilities, each where the function has it.
#[derive(Clone, Debug)]
pub(super) struct List {
    entries: Vec<Entry, MAX_SHOWN>,
}

impl List {
    /// Picks what a guest may see of `function`.
    pub(super) fn of<C: ConfigSpace>(
        config: &Config<'_, C>,
        function: &Function,
        policy: ResetPolicy,
    ) -> Self {
        let capabilities = &function.capabilities;
        let mut entries = Vec::new();
        let mut show = |what, offset, length| {
            // The room suffices for three and all vendor-specific ones that are remembered.
            _ = entries.push(Entry { what, offset, length });
        };
        if let Some(power) = capabilities.power {
            show(Shown::Power, power.offset, 8);
        }
        if let Some(express) = capabilities.express {
            show(Shown::Express, express.offset, reg::EXPRESS_LENGTH);
        }
        // All that it offers is a reset.
        if let Some(offset) = capabilities.advanced.filter(|_| policy == ResetPolicy::Auto) {
            show(Shown::Advanced, offset, reg::ADVANCED_LENGTH);
        }
        if function.is_virtio() {
            for &offset in &capabilities.vendor {
                let kind = configuration_type(config, offset);
                if kind.is_some_and(|kind| kind != VIRTIO_CONFIGURATION_ACCESS) {
                    let length = config.read8(offset + reg::VENDOR_LENGTH);
                    show(Shown::Virtio, offset, length.into());
                }
            }
        }
        Self { entries }
    }

    /// Returns the offset of the first capability; 0 if there is none.
    pub(super) fn first(&self) -> u8 {
        self.entries.first().map_or(0, |entry| entry.offset as u8)
    }

    /// Returns what is at `register`, and where in it; the list's own bytes come from [`List::header`].
    pub(super) fn find(&self, register: u16) -> Option<Found> {
        let (index, entry) =
            self.entries.iter().enumerate().find(|(_, entry)| {
                (entry.offset..entry.offset + entry.length).contains(&register)
            })?;
        let inside = register - entry.offset;
        let left = u32::from(entry.length - inside).min(4);
        let next = self.entries.get(index + 1).map_or(0, |entry| entry.offset);
        Some(Found {
            what: entry.what,
            start: entry.offset,
            inside,
            mask: u32::MAX >> (32 - 8 * left),
            header: u32::from(entry.what.id()) | u32::from(next) << 8,
        })
    }
}

/// A register inside a visible capability.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) what: Shown,
    /// Where the capability starts.
    pub(super) start: u16,
    /// Where the register is in it.
    pub(super) inside: u16,
    /// The register's bits that belong to it.
    mask: u32,
    header: u32,
}

impl Found {
    /// Turns the register's value into what the guest sees: with the guest's list, and nothing of what follows
    /// the capability.
    pub(super) const fn present(&self, value: u32) -> u32 {
        let value = if self.inside == 0 { value & !0xffff | self.header } else { value };
        value & self.mask
    }
}
