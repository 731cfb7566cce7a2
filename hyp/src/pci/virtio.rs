//! Whether a virtio device lets the SMMU see its DMA.

use core::fmt;

use smmu::addr::Pa;

use super::{BusError, Config, ConfigSpace, DeviceMemory, Function, Width, reg};

/// The `cfg_type` of the common configuration structure (virtio 1.2, section 4.1.4).
const COMMON_CFG: u8 = 1;
/// Offsets in a virtio capability.
const CFG_TYPE: u16 = 3;
const CFG_BAR: u16 = 4;
const CFG_OFFSET: u16 = 8;
const CFG_LENGTH: u16 = 12;
/// Bytes of a virtio capability.
pub(crate) const VIRTIO_CAPABILITY_LENGTH: u16 = 16;
/// Offsets in the common configuration structure, and what of it is needed.
const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DEVICE_STATUS: u64 = 20;
const COMMON_CFG_LENGTH: u64 = DEVICE_STATUS + 1;
/// `VIRTIO_F_ACCESS_PLATFORM` (bit 33) in the second word of features.
const ACCESS_PLATFORM: u64 = 1 << 1;

/// Why the DMA of a virtio device cannot be confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// It does not offer `VIRTIO_F_ACCESS_PLATFORM`: it uses physical addresses, whatever the SMMU says.
    NoAccessPlatform,
    /// It has no modern interface in a memory BAR, and a legacy device knows no such feature.
    NoModernInterface,
}

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAccessPlatform => {
                "its DMA would bypass the SMMU (no VIRTIO_F_ACCESS_PLATFORM): add iommu_platform=on"
            }
            Self::NoModernInterface => {
                "its DMA would bypass the SMMU (no modern virtio interface): add disable-legacy=on,iommu_platform=on"
            }
        })
    }
}

/// Checks that the SMMU sees the DMA of `function`: that it is no virtio device, or one that offers
/// `VIRTIO_F_ACCESS_PLATFORM` (virtio 1.2, section 6.1). A driver that then does not accept the offer gets no
/// DMA at all.
///
/// The function decodes its BARs, as [`super::enumerate`] leaves it.
///
/// # Errors
///
/// Why its DMA would go past the SMMU.
pub fn dma_check<H: ConfigSpace + DeviceMemory>(
    hardware: &H,
    function: &Function,
) -> Result<(), Bypass> {
    if !function.is_virtio() {
        return Ok(());
    }
    let common = common_configuration(hardware, function).ok_or(Bypass::NoModernInterface)?;
    match features(hardware, common) {
        // What is not there reads as all ones, and offers nothing.
        Ok(features) if features & ACCESS_PLATFORM != 0 && features != u64::from(u32::MAX) => {
            Ok(())
        }
        _ => Err(Bypass::NoAccessPlatform),
    }
}

/// Reads the second word of what the device offers.
fn features(hardware: &impl DeviceMemory, common: Pa) -> Result<u64, BusError> {
    hardware.store(common.add(DEVICE_FEATURE_SELECT), Width::Word, 1)?;
    let features = hardware.load(common.add(DEVICE_FEATURE), Width::Word);
    hardware.store(common.add(DEVICE_FEATURE_SELECT), Width::Word, 0)?;
    features
}

/// Tells a virtio device to forget what it was told (virtio 1.2, section 2.4); `false` if it is none, or has no
/// modern interface that answers.
pub(super) fn start_reset<H: ConfigSpace + DeviceMemory>(
    hardware: &H,
    function: &Function,
) -> bool {
    common_configuration(hardware, function)
        .is_some_and(|common| hardware.store(common.add(DEVICE_STATUS), Width::Byte, 0).is_ok())
}

/// Whether the reset of a virtio device has ended (virtio 1.2, section 4.1.4.3.2).
pub(super) fn is_reset<H: ConfigSpace + DeviceMemory>(hardware: &H, function: &Function) -> bool {
    common_configuration(hardware, function)
        .is_some_and(|common| hardware.load(common.add(DEVICE_STATUS), Width::Byte) == Ok(0))
}

/// Returns where the common configuration structure of a virtio device is.
fn common_configuration<C: ConfigSpace>(space: &C, function: &Function) -> Option<Pa> {
    let config = Config::new(space, function.at);
    let structure = |&offset: &u16| common_configuration_at(&config, function, offset);
    function.capabilities.vendor.iter().filter(|_| function.is_virtio()).find_map(structure)
}

/// Returns where the common configuration structure is, if the capability at `offset` is about it and all of
/// what is needed lies inside a memory BAR.
fn common_configuration_at<C: ConfigSpace>(
    config: &Config<'_, C>,
    function: &Function,
    offset: u16,
) -> Option<Pa> {
    if configuration_type(config, offset)? != COMMON_CFG {
        return None;
    }
    let bar = function.bars.get(usize::from(config.read8(offset + CFG_BAR)))?.as_ref()?;
    let start = u64::from(config.read32(offset + CFG_OFFSET));
    let length = u64::from(config.read32(offset + CFG_LENGTH));
    let fits = length >= COMMON_CFG_LENGTH && start + COMMON_CFG_LENGTH <= bar.size;
    let inside = fits && start.is_multiple_of(4);
    let place = bar.place.filter(|_| bar.is_memory() && inside)?;
    place.cpu.checked_add(start)
}

/// Returns the `cfg_type` of the vendor-specific capability at `offset`, or `None` if it is too short to have
/// one.
pub(crate) fn configuration_type<C: ConfigSpace>(
    config: &Config<'_, C>,
    offset: u16,
) -> Option<u8> {
    let length = u16::from(config.read8(offset + reg::VENDOR_LENGTH));
    let fits = length >= VIRTIO_CAPABILITY_LENGTH && offset + length <= reg::EXTENDED_START;
    fits.then(|| config.read8(offset + CFG_TYPE))
}
