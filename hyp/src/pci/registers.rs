//! Offsets and bits of configuration space (section 7.5), only those that EL2 decides on.

/// Vendor ID; device ID in the upper half.
pub const VENDOR_ID: u16 = 0x00;
/// Command.
pub const COMMAND: u16 = 0x04;
/// Answers to I/O addresses.
pub const COMMAND_IO: u16 = 1 << 0;
/// Answers to memory addresses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// May issue requests of its own. On a bridge: forwards requests upstream.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Does not assert its interrupt pin.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status.
pub const STATUS: u16 = 0x06;
/// The function has a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Bits that a guest may read as they are: the pending interrupt, bus timing and errors.
pub const STATUS_READABLE: u16 = 0xffa8;
/// Error bits, cleared by writing 1.
pub const STATUS_ERRORS: u16 = 0xf900;
/// Revision ID; class code in the upper three bytes.
pub const REVISION: u16 = 0x08;
/// Cache line size.
pub const CACHE_LINE: u16 = 0x0c;
/// Header type.
pub const HEADER_TYPE: u16 = 0x0e;
/// The device has further functions.
pub const HEADER_MULTI_FUNCTION: u8 = 1 << 7;
/// The first BAR.
pub const BAR0: u16 = 0x10;
/// End of the BARs of an endpoint.
pub const BARS_END: u16 = 0x28;
/// Subsystem vendor ID; subsystem ID in the upper half.
pub const SUBSYSTEM: u16 = 0x2c;
/// Expansion ROM of an endpoint.
pub const ROM: u16 = 0x30;
/// The first standard capability.
pub const CAPABILITIES: u16 = 0x34;
/// Interrupt line, a note from software to software.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin.
pub const INTERRUPT_PIN: u16 = 0x3d;
/// Minimum grant; maximum latency follows.
pub const MIN_GRANT: u16 = 0x3e;

/// Primary, secondary and subordinate bus number and the secondary latency timer of a bridge.
pub const BUS_NUMBERS: u16 = 0x18;
/// I/O base and limit of a bridge, a byte each.
pub const IO_WINDOW: u16 = 0x1c;
/// Memory base and limit of a bridge.
pub const MEMORY_WINDOW: u16 = 0x20;
/// Prefetchable memory base and limit of a bridge.
pub const PREFETCH_WINDOW: u16 = 0x24;
/// Upper half of the prefetchable base.
pub const PREFETCH_BASE_UPPER: u16 = 0x28;
/// Upper half of the prefetchable limit.
pub const PREFETCH_LIMIT_UPPER: u16 = 0x2c;
/// Upper halves of I/O base and limit.
pub const IO_WINDOW_UPPER: u16 = 0x30;
/// Expansion ROM of a bridge.
pub const BRIDGE_ROM: u16 = 0x38;
/// Bridge control.
pub const BRIDGE_CONTROL: u16 = 0x3e;
/// Resets everything below the bridge as long as it is set.
pub const BRIDGE_CONTROL_BUS_RESET: u16 = 1 << 6;

/// First offset at which a standard capability may lie.
pub const STANDARD_START: u16 = 0x40;
/// End of the standard and start of the extended configuration space.
pub const EXTENDED_START: u16 = 0x100;
/// End of a function's configuration space.
pub const SPACE_END: u16 = 0x1000;

/// Standard capability: power management.
pub const CAP_POWER: u8 = 0x01;
/// Standard capability: MSI.
pub const CAP_MSI: u8 = 0x05;
/// Standard capability: vendor-specific.
pub const CAP_VENDOR: u8 = 0x09;
/// Standard capability: PCI Express.
pub const CAP_EXPRESS: u8 = 0x10;
/// Standard capability: MSI-X.
pub const CAP_MSIX: u8 = 0x11;
/// Standard capability: advanced features of a conventional function, function-level reset among them.
pub const CAP_ADVANCED: u8 = 0x13;
/// Standard capability: enhanced allocation, resources at fixed addresses.
pub const CAP_ENHANCED_ALLOCATION: u8 = 0x14;

/// PM: capabilities.
pub const POWER_CAPABILITIES: u16 = 2;
/// PM: version and device-specific initialisation, all that a guest needs to know.
pub const POWER_CAPABILITIES_READABLE: u16 = 0x0027;
/// PM: control and status.
pub const POWER_CONTROL: u16 = 4;
/// PM: the power state, D0 to D3hot.
pub const POWER_STATE: u16 = 3;
/// PM: D3hot.
pub const POWER_D3: u16 = 3;
/// PM: the way from D3hot to D0 does not reset the function.
pub const POWER_NO_SOFT_RESET: u16 = 1 << 3;

/// MSI: message control.
pub const MSI_CONTROL: u16 = 2;
/// MSI: enable.
pub const MSI_ENABLE: u16 = 1 << 0;
/// MSI-X: message control.
pub const MSIX_CONTROL: u16 = 2;
/// MSI-X: enable.
pub const MSIX_ENABLE: u16 = 1 << 15;

/// PCI Express: capabilities register.
pub const EXPRESS_FLAGS: u16 = 2;
/// PCI Express: version in the capabilities register.
pub const EXPRESS_VERSION: u16 = 0xf;
/// PCI Express: device capabilities.
pub const DEVICE_CAPABILITIES: u16 = 4;
/// PCI Express: largest payload the function supports, in device capabilities.
pub const DEVICE_CAPABILITIES_PAYLOAD: u32 = 7;
/// PCI Express: what of device capabilities a guest sees beside the payload: extended tags, role-based
/// errors, function-level reset.
pub const DEVICE_CAPABILITIES_READABLE: u32 = 1 << 5 | 1 << 15 | DEVICE_CAPABILITIES_FLR;
/// PCI Express: function-level reset, in device capabilities.
pub const DEVICE_CAPABILITIES_FLR: u32 = 1 << 28;
/// PCI Express: device control.
pub const DEVICE_CONTROL: u16 = 8;
/// PCI Express: what of device control a guest may set: relaxed ordering, payload, extended tags, read
/// request size. Not: error messages, which the root port would take for its own, and No Snoop, which
/// would make DMA incoherent behind the back of whoever scrubs the memory.
pub const DEVICE_CONTROL_WRITABLE: u16 =
    1 << 4 | DEVICE_CONTROL_PAYLOAD | 1 << 8 | DEVICE_CONTROL_READ_REQUEST;
/// PCI Express: the function may ask for DMA that is not coherent, in device control.
pub const DEVICE_CONTROL_NO_SNOOP: u16 = 1 << 11;
/// PCI Express: largest payload, in device control.
pub const DEVICE_CONTROL_PAYLOAD: u16 = 7 << 5;
/// PCI Express: largest read request, in device control.
pub const DEVICE_CONTROL_READ_REQUEST: u16 = 7 << 12;
/// PCI Express: starts a function-level reset, in device control.
pub const DEVICE_CONTROL_FLR: u16 = 1 << 15;
/// PCI Express: device status.
pub const DEVICE_STATUS: u16 = 10;
/// PCI Express: detected errors, cleared by writing 1, in device status.
pub const DEVICE_STATUS_ERRORS: u16 = 0xf;
/// PCI Express: non-posted requests are outstanding, in device status.
pub const DEVICE_STATUS_PENDING: u16 = 1 << 5;
/// PCI Express: what of device status a guest may read: errors and outstanding requests.
pub const DEVICE_STATUS_READABLE: u16 = DEVICE_STATUS_ERRORS | DEVICE_STATUS_PENDING;
/// PCI Express: bytes of the capability that every function has.
pub const EXPRESS_LENGTH: u16 = 12;

/// Advanced features: capabilities.
pub const ADVANCED_CAPABILITIES: u16 = 3;
/// Advanced features: both pending-transaction bit and function-level reset exist.
pub const ADVANCED_CAPABILITIES_RESET: u8 = 3;
/// Advanced features: control.
pub const ADVANCED_CONTROL: u16 = 4;
/// Advanced features: starts a function-level reset.
pub const ADVANCED_CONTROL_FLR: u8 = 1;
/// Advanced features: status.
pub const ADVANCED_STATUS: u16 = 5;
/// Advanced features: requests are outstanding.
pub const ADVANCED_STATUS_PENDING: u8 = 1;
/// Advanced features: bytes of the capability.
pub const ADVANCED_LENGTH: u16 = 6;

/// Vendor-specific: length in bytes.
pub const VENDOR_LENGTH: u16 = 2;

/// Extended capability: device serial number.
pub const EXT_SERIAL: u16 = 0x0003;
/// Extended capability: access control services.
pub const EXT_ACS: u16 = 0x000d;
/// Extended capability: address translation services.
pub const EXT_ATS: u16 = 0x000f;
/// Extended capability: single-root I/O virtualization.
pub const EXT_SRIOV: u16 = 0x0010;
/// Extended capability: page request interface.
pub const EXT_PRI: u16 = 0x0013;
/// Extended capability: process address space ID.
pub const EXT_PASID: u16 = 0x001b;

/// ACS: capabilities.
pub const ACS_CAPABILITIES: u16 = 4;
/// ACS: control.
pub const ACS_CONTROL: u16 = 6;
/// ACS: source validation, request and completion redirect, upstream forwarding: what keeps neighbours apart.
pub const ACS_ISOLATION: u16 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;
/// ACS: translation blocking: refuses requests that claim to be translated already.
pub const ACS_TRANSLATION_BLOCKING: u16 = 1 << 1;

/// ATS: control.
pub const ATS_CONTROL: u16 = 6;
/// ATS: enable.
pub const ATS_ENABLE: u16 = 1 << 15;
/// PRI: control.
pub const PRI_CONTROL: u16 = 4;
/// PRI: enable.
pub const PRI_ENABLE: u16 = 1 << 0;
/// PASID: control.
pub const PASID_CONTROL: u16 = 6;
/// PASID: enable.
pub const PASID_ENABLE: u16 = 1 << 0;
/// SR-IOV: control.
pub const SRIOV_CONTROL: u16 = 8;
/// SR-IOV: VF enable and VF memory space enable.
pub const SRIOV_ENABLE: u16 = 1 << 0 | 1 << 3;
