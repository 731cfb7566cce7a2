//! What a function says it can do, and what EL2 does not let it do.

use heapless::Vec;

use super::{Config, ConfigSpace, reg};

/// The most vendor-specific capabilities that are remembered.
const MAX_VENDOR: usize = 12;
/// The most standard capabilities that fit into the space for them.
const MAX_STANDARD: usize = 48;
/// The most extended capabilities that are followed: every one has at least eight bytes.
const MAX_EXTENDED: usize = (reg::SPACE_END - reg::EXTENDED_START) as usize / 8;

/// What a PCI Express function is (section 7.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// An endpoint, also a legacy one or one inside the root complex.
    Endpoint,
    /// A root port.
    Root,
    /// The upper side of a switch.
    Upstream,
    /// A lower side of a switch.
    Downstream,
    /// A bridge to a conventional bus.
    ToConventional,
    /// Anything else.
    Other,
}

impl Port {
    const fn decode(flags: u16) -> Self {
        match flags >> 4 & 0xf {
            0 | 1 | 9 => Self::Endpoint,
            4 => Self::Root,
            5 => Self::Upstream,
            6 => Self::Downstream,
            7 => Self::ToConventional,
            _ => Self::Other,
        }
    }
}

/// The PCI Express capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Express {
    /// Where it is.
    pub offset: u16,
    /// What the function is.
    pub port: Port,
    /// Whether it can be reset on its own.
    pub flr: bool,
    /// Device control as EL2 found it, less what has to be off.
    pub control: u16,
}

/// The power management capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Power {
    /// Where it is.
    pub offset: u16,
    /// Whether the function forgets what it was told on its way from D3hot to D0, or says that it does.
    pub forgets: bool,
}

/// Where a function's capabilities are: offsets into its configuration space.
///
/// Of a capability that is listed twice, the first counts. The functions behind MSI, MSI-X, ATS, PRI, PASID
/// and SR-IOV are off, whether listed once or twice, and stay off (C2, C8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Power management.
    pub power: Option<Power>,
    /// MSI.
    pub msi: Option<u16>,
    /// MSI-X.
    pub msix: Option<u16>,
    /// PCI Express.
    pub express: Option<Express>,
    /// Function-level reset of a conventional function, with the bit for pending transactions.
    pub advanced: Option<u16>,
    /// Resources at fixed addresses, which EL2 does not support.
    pub enhanced_allocation: bool,
    /// Vendor-specific ones, in the order of the list.
    pub vendor: Vec<u16, MAX_VENDOR>,
    /// Device serial number.
    pub serial: Option<u16>,
    /// Access control services.
    pub acs: Option<u16>,
    /// Address translation services.
    pub ats: Option<u16>,
    /// Page request interface.
    pub pri: Option<u16>,
    /// Process address space IDs.
    pub pasid: Option<u16>,
    /// Single-root I/O virtualization.
    pub sriov: Option<u16>,
}

impl Capabilities {
    /// Follows both lists of a function, and switches off what has to be off.
    pub(super) fn discover<C: ConfigSpace>(config: &Config<'_, C>) -> Self {
        let mut found = Self::default();
        found.follow_standard(config);
        if found.express.is_some() {
            found.follow_extended(config);
        }
        found
    }

    /// Switches on what access control can do to keep the function apart from its neighbours, and returns
    /// whether it does (section 6.12). What is missing from the capability is not controllable because it
    /// cannot happen.
    pub(super) fn isolate<C: ConfigSpace>(&self, config: &Config<'_, C>) -> bool {
        let Some(acs) = self.acs else { return false };
        let able = config.read16(acs + reg::ACS_CAPABILITIES);
        let wanted = able & (reg::ACS_ISOLATION | reg::ACS_TRANSLATION_BLOCKING);
        config.write16(acs + reg::ACS_CONTROL, wanted);
        config.read16(acs + reg::ACS_CONTROL) & wanted == wanted
    }

    fn follow_standard<C: ConfigSpace>(&mut self, config: &Config<'_, C>) {
        if config.read16(reg::STATUS) & reg::STATUS_CAPABILITIES == 0 {
            return;
        }
        let mut next = config.read8(reg::CAPABILITIES);
        for _ in 0..MAX_STANDARD {
            let offset = u16::from(next & !3);
            if offset < reg::STANDARD_START {
                return;
            }
            let header = config.read16(offset);
            self.note_standard(config, header as u8, offset);
            next = (header >> 8) as u8;
        }
    }

    fn note_standard<C: ConfigSpace>(&mut self, config: &Config<'_, C>, id: u8, offset: u16) {
        let fits = |length: u16| offset + length <= reg::EXTENDED_START;
        match id {
            reg::CAP_POWER if fits(8) => {
                let control = config.read16(offset + reg::POWER_CONTROL);
                let forgets = control & reg::POWER_NO_SOFT_RESET == 0;
                self.power.get_or_insert(Power { offset, forgets });
            }
            reg::CAP_MSI => {
                config.clear16(offset + reg::MSI_CONTROL, reg::MSI_ENABLE);
                self.msi.get_or_insert(offset);
            }
            reg::CAP_MSIX => {
                config.clear16(offset + reg::MSIX_CONTROL, reg::MSIX_ENABLE);
                self.msix.get_or_insert(offset);
            }
            reg::CAP_EXPRESS if fits(reg::EXPRESS_LENGTH) => {
                let flags = config.read16(offset + reg::EXPRESS_FLAGS);
                let capabilities = config.read32(offset + reg::DEVICE_CAPABILITIES);
                let control = offset + reg::DEVICE_CONTROL;
                // It is on after a reset (section 7.5.3.4).
                config.clear16(control, reg::DEVICE_CONTROL_NO_SNOOP);
                self.express.get_or_insert(Express {
                    offset,
                    port: Port::decode(flags),
                    flr: capabilities & reg::DEVICE_CAPABILITIES_FLR != 0,
                    control: config.read16(control) & !reg::DEVICE_CONTROL_FLR,
                });
            }
            reg::CAP_ADVANCED if fits(reg::ADVANCED_LENGTH) => {
                let reset = reg::ADVANCED_CAPABILITIES_RESET;
                if config.read8(offset + reg::ADVANCED_CAPABILITIES) & reset == reset {
                    self.advanced.get_or_insert(offset);
                }
            }
            reg::CAP_ENHANCED_ALLOCATION => self.enhanced_allocation = true,
            // One more than fits is one that nobody sees.
            reg::CAP_VENDOR if !self.vendor.contains(&offset) => _ = self.vendor.push(offset),
            _ => {}
        }
    }

    fn follow_extended<C: ConfigSpace>(&mut self, config: &Config<'_, C>) {
        let mut offset = reg::EXTENDED_START;
        for _ in 0..MAX_EXTENDED {
            let header = config.read32(offset);
            if header == 0 || header == u32::MAX {
                return;
            }
            self.note_extended(config, header as u16, offset);
            offset = (header >> 20) as u16 & !3;
            if offset < reg::EXTENDED_START {
                return;
            }
        }
    }

    fn note_extended<C: ConfigSpace>(&mut self, config: &Config<'_, C>, id: u16, offset: u16) {
        if offset + 12 > reg::SPACE_END {
            return;
        }
        let (known, off) = match id {
            reg::EXT_SERIAL => (&mut self.serial, None),
            reg::EXT_ACS => (&mut self.acs, None),
            reg::EXT_ATS => (&mut self.ats, Some((reg::ATS_CONTROL, reg::ATS_ENABLE))),
            reg::EXT_PRI => (&mut self.pri, Some((reg::PRI_CONTROL, reg::PRI_ENABLE))),
            reg::EXT_PASID => (&mut self.pasid, Some((reg::PASID_CONTROL, reg::PASID_ENABLE))),
            reg::EXT_SRIOV => (&mut self.sriov, Some((reg::SRIOV_CONTROL, reg::SRIOV_ENABLE))),
            _ => return,
        };
        known.get_or_insert(offset);
        if let Some((control, enable)) = off {
            config.clear16(offset + control, enable);
        }
    }
}
