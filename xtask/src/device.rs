//! `-device` arguments: read, judged, completed and written again.

use std::fmt;
use std::str::FromStr;

use platform::pcie::Pin;

/// One `-device` argument: a driver and its properties, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceArg {
    /// The driver.
    pub driver: String,
    /// The properties; a later one of the same name wins, as in QEMU.
    pub properties: Vec<(String, String)>,
}

/// Why a `-device` argument is refused whatever the machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// It does not name a driver.
    NoDriver,
    /// It is JSON, but not an object of plain values.
    Json(String),
    /// Its `addr` is not a slot, or not one that a device can have.
    Address(String),
    /// It is a virtio device whose DMA the SMMU never sees.
    VirtioPlatform(String),
    /// It is a virtio device that is not on PCI.
    VirtioMmio(String),
    /// It is no device, but writes to memory before anybody owns that.
    Loader(String),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver => f.write_str("it names no driver: write DRIVER[,property=value]..."),
            Self::Json(why) => write!(f, "not a JSON object of plain values: {why}"),
            Self::Address(text) => write!(
                f,
                "addr={text} is not a free slot: write it in hex, 1 to 1f, with a function 0 to 7 after a \
                 dot if need be, such as addr=5 or addr=5.1"
            ),
            Self::VirtioPlatform(driver) => write!(
                f,
                "{driver} without iommu_platform=on does its DMA past the SMMU, where nothing confines it: \
                 add iommu_platform=on"
            ),
            Self::VirtioMmio(driver) => write!(
                f,
                "{driver} sits on virtio-mmio, whose DMA never passes the SMMU: use {} with iommu_platform=on",
                driver.replace("-device", "-pci")
            ),
            Self::Loader(driver) => write!(
                f,
                "{driver} writes to memory before EL2 gives it to anybody: use --kernel and --initrd, or a manifest's"
            ),
        }
    }
}

impl std::error::Error for DeviceError {}

impl FromStr for DeviceArg {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let device = if text.trim_start().starts_with('{') {
            Self::from_json(text)?
        } else {
            Self::from_options(text)?
        };
        if device.driver.is_empty() { Err(DeviceError::NoDriver) } else { Ok(device) }
    }
}

impl DeviceArg {
    /// A device of xtask's own.
    pub fn new(driver: &str, properties: &[(&str, &str)]) -> Self {
        let properties = properties
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Self { driver: driver.to_owned(), properties }
    }

    fn from_options(text: &str) -> Result<Self, DeviceError> {
        let mut device = Self { driver: String::new(), properties: Vec::new() };
        for (index, option) in split_options(text).into_iter().enumerate() {
            match option.split_once('=') {
                Some(("driver", driver)) => device.driver = driver.to_owned(),
                Some((name, value)) => device.set(name, value),
                None if index == 0 => device.driver = option,
                // A property without a value is a switch.
                None => device.set(&option, "on"),
            }
        }
        Ok(device)
    }

    fn from_json(text: &str) -> Result<Self, DeviceError> {
        use serde_json::Value;
        let object: serde_json::Map<String, Value> =
            serde_json::from_str(text).map_err(|error| DeviceError::Json(error.to_string()))?;
        let mut device = Self { driver: String::new(), properties: Vec::new() };
        for (name, value) in object {
            let value = match value {
                Value::String(text) => text,
                Value::Bool(true) => "on".into(),
                Value::Bool(false) => "off".into(),
                // As a number, `addr` is device and function in one byte; as text it is what we write.
                Value::Number(number) if name == "addr" => {
                    let devfn = number.as_u64().unwrap_or(u64::MAX);
                    format!("{:x}.{:x}", devfn / 8, devfn % 8)
                }
                Value::Number(number) => number.to_string(),
                _ => return Err(DeviceError::Json(format!("{name} is not a plain value"))),
            };
            if name == "driver" {
                device.driver = value;
            } else {
                device.set(&name, &value);
            }
        }
        Ok(device)
    }

    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Gives a property a value, in place of any other.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.properties.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value.to_owned(),
            None => self.properties.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Whether a switch is on.
    fn is_on(&self, name: &str) -> bool {
        matches!(self.get(name), Some("on" | "yes" | "true" | "y"))
    }

    /// The slot and function it asks for.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Address`] if it asks for something that is none; slot 0 is the host bridge's.
    pub fn address(&self) -> Result<Option<(u8, u8)>, DeviceError> {
        let Some(text) = self.get("addr") else { return Ok(None) };
        let number = |text: &str, limit: u8| {
            let digits = text.strip_prefix("0x").unwrap_or(text);
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            u8::from_str_radix(digits, 16).ok().filter(|&number| plain && number <= limit)
        };
        let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
        number(slot, 0x1f)
            .zip(number(function, 7))
            .map(Some)
            .ok_or_else(|| DeviceError::Address(text.to_owned()))
    }

    /// Its function's interrupt pin in QEMU: A, but for some USB controllers, and for what never interrupts.
    pub fn pin(&self) -> Option<Pin> {
        const WITHOUT: [&str; 11] = [
            "VGA",
            "bochs-display",
            "cirrus-vga",
            "i6300esb",
            "iommu-testdev",
            "ivshmem-plain",
            "pci-testdev",
            "pvpanic-pci",
            "rocker",
            "secondary-vga",
            "virtio-iommu-pci",
        ];
        match self.driver.as_str() {
            "ich9-usb-uhci2" | "ich9-usb-uhci5" => Some(Pin::B),
            "ich9-usb-uhci3" | "ich9-usb-uhci6" => Some(Pin::C),
            "ich9-usb-ehci1" | "ich9-usb-ehci2" | "piix3-usb-uhci" | "piix4-usb-uhci"
            | "usb-ehci" => Some(Pin::D),
            driver => (!WITHOUT.contains(&driver)).then_some(Pin::A),
        }
    }

    /// Whether it is known to have no reset of its own. Others may have none either: EL2 looks at the real
    /// capabilities.
    pub fn has_no_reset(&self) -> bool {
        const WITHOUT: [&str; 30] = [
            "AC97",
            "ES1370",
            "ahci",
            "e1000",
            "e1000-82540em",
            "e1000-82544gc",
            "e1000-82545em",
            "edu",
            "es1370",
            "ich9-ahci",
            "ich9-usb-ehci1",
            "ich9-usb-ehci2",
            "ich9-usb-uhci1",
            "ich9-usb-uhci2",
            "ich9-usb-uhci3",
            "ich9-usb-uhci4",
            "ich9-usb-uhci5",
            "ich9-usb-uhci6",
            "intel-hda",
            "iommu-testdev",
            "lsi",
            "lsi53c810",
            "lsi53c895a",
            "nec-usb-xhci",
            "pci-ohci",
            "piix3-usb-uhci",
            "piix4-usb-uhci",
            "qemu-xhci",
            "rtl8139",
            "usb-ehci",
        ];
        WITHOUT.contains(&self.driver.as_str())
    }

    /// Refuses devices whose DMA would not pass the SMMU.
    ///
    /// # Errors
    ///
    /// [`DeviceError::VirtioPlatform`], [`DeviceError::VirtioMmio`] and [`DeviceError::Loader`].
    pub fn check_confined(&self) -> Result<(), DeviceError> {
        let driver = self.driver.as_str();
        if matches!(driver, "loader" | "guest-loader") {
            return Err(DeviceError::Loader(driver.to_owned()));
        }
        if !(driver.starts_with("virtio-") || driver.starts_with("vhost-")) {
            return Ok(());
        }
        if driver.ends_with("-device") || driver == "virtio-mmio" {
            return Err(DeviceError::VirtioMmio(driver.to_owned()));
        }
        if self.is_on("iommu_platform") {
            Ok(())
        } else {
            Err(DeviceError::VirtioPlatform(driver.to_owned()))
        }
    }

    /// Adds what a device on this machine needs and a user would not think of: on the root bus, virtio has to
    /// drop its legacy interface, which cannot offer `iommu_platform`; and no boot ROM, since nothing runs it
    /// and its file may not be installed.
    pub fn complete(&mut self) {
        const WITH_ROM: [&str; 18] = [
            "VGA",
            "ati-vga",
            "bochs-display",
            "cirrus-vga",
            "e1000",
            "e1000-82540em",
            "e1000-82544gc",
            "e1000-82545em",
            "e1000e",
            "igb",
            "ne2k_pci",
            "pcnet",
            "qxl",
            "rtl8139",
            "virtio-net-pci",
            "virtio-net-pci-non-transitional",
            "virtio-net",
            "vmxnet3",
        ];
        let driver = self.driver.as_str();
        let rom = (WITH_ROM.contains(&driver) || driver.starts_with("i825"))
            && self.get("romfile").is_none();
        let modern = driver.starts_with("virtio-")
            && !driver.ends_with("transitional")
            && self.get("disable-legacy").is_none();
        if rom {
            self.set("romfile", "");
        }
        if modern {
            self.set("disable-legacy", "on");
        }
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.driver))?;
        for (name, value) in &self.properties {
            write!(f, ",{}={}", escape(name), escape(value))?;
        }
        Ok(())
    }
}

/// Writes a value into a comma-separated QEMU option.
pub fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// Splits a QEMU option at its commas; a doubled comma stands for itself.
pub fn split_options(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            options.push(String::new());
        } else if let Some(option) = options.last_mut() {
            option.push(character);
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> DeviceArg {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_read_is_written_again() {
        for text in ["edu,addr=2,dma_mask=0xff", "nvme,serial=a,,b,drive=d0"] {
            assert_eq!(device(text).to_string(), text);
        }
        assert_eq!(device("driver=edu,addr=5.1").driver, "edu");
        assert_eq!(device("edu,multifunction").to_string(), "edu,multifunction=on");
        let json =
            device(r#"{"driver": "edu", "addr": "3.0", "dma_mask": 255, "multifunction": true}"#);
        assert_eq!(json.address(), Ok(Some((3, 0))));
        assert_eq!(json.get("dma_mask"), Some("255"));
        assert_eq!(device(r#"{"driver": "edu", "addr": 25}"#).address(), Ok(Some((3, 1))));
    }

    #[test]
    fn addresses_are_hexadecimal_as_in_qemu() {
        assert_eq!(device("edu,addr=10").address(), Ok(Some((0x10, 0))));
        assert_eq!(device("edu,addr=0x5.1").address(), Ok(Some((5, 1))));
        assert_eq!(device("edu").address(), Ok(None));
        for text in ["20", "5.8", "", "x", "+1", "1.", "300"] {
            let refused = device(&format!("edu,addr={text}")).address();
            assert_eq!(refused, Err(DeviceError::Address(text.into())));
        }
    }

    #[test]
    fn dma_past_the_smmu_is_refused() {
        let refused = |text: &str| device(text).check_confined().unwrap_err();
        assert!(matches!(refused("virtio-blk-pci,drive=d"), DeviceError::VirtioPlatform(_)));
        assert!(matches!(
            refused("virtio-blk-pci,iommu_platform=off"),
            DeviceError::VirtioPlatform(_)
        ));
        assert!(matches!(refused("virtio-blk-device,drive=d"), DeviceError::VirtioMmio(_)));
        assert_eq!(device("virtio-blk-pci,iommu_platform=on").check_confined(), Ok(()));
        assert_eq!(device("nvme").check_confined(), Ok(()));
    }

    #[test]
    fn what_has_no_reset_is_known_by_its_driver() {
        for driver in ["edu", "ich9-ahci", "usb-ehci", "qemu-xhci", "lsi53c895a"] {
            assert!(device(driver).has_no_reset(), "{driver}");
        }
        assert!(!device("nvme").has_no_reset() && !device("igb").has_no_reset());
    }

    #[test]
    fn what_a_user_would_not_think_of_is_added() {
        let completed = |text: &str| {
            let mut device = device(text);
            device.complete();
            device.to_string()
        };
        assert_eq!(completed("virtio-blk-pci,drive=d"), "virtio-blk-pci,drive=d,disable-legacy=on");
        assert_eq!(completed("e1000,netdev=n"), "e1000,netdev=n,romfile=");
        assert_eq!(completed("e1000,romfile=x"), "e1000,romfile=x");
        assert_eq!(completed("VGA"), "VGA,romfile=");
        assert_eq!(completed("edu"), "edu");
    }

    #[test]
    fn malformed_arguments_are_refused() {
        assert_eq!("".parse::<DeviceArg>(), Err(DeviceError::NoDriver));
        assert_eq!("{}".parse::<DeviceArg>(), Err(DeviceError::NoDriver));
        assert!(matches!("{\"driver\": [1]}".parse::<DeviceArg>(), Err(DeviceError::Json(_))));
        assert!(matches!("{".parse::<DeviceArg>(), Err(DeviceError::Json(_))));
    }
}
