//! A PCI function driven from userspace: `uio_pci_generic` owns it, sysfs leads to its registers.

use core::fmt;

use crate::arch::map::Mapping;
use crate::arch::system::{Errno, File};
use crate::text::Text;

/// The offset of the command register in config space.
const COMMAND: u64 = 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;

/// Why a function cannot be driven.
#[derive(Clone, Copy, Debug)]
pub enum Error {
    /// A file of the kernel's could not be used.
    File(&'static str, Errno),
    /// The command register does not keep what is written to it.
    Command,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(what, errno) => write!(f, "{what}: {errno}"),
            Self::Command => f.write_str("bus mastering does not stay on"),
        }
    }
}

/// A function that masters the bus.
pub struct Driver {
    /// Its first BAR.
    pub registers: Mapping,
    /// While this is open the kernel leaves bus mastering on.
    _uio: File,
}

impl Driver {
    /// Takes the function with this sysfs name, which `uio` belongs to, and switches bus mastering on, which
    /// `uio_pci_generic` leaves to its user.
    ///
    /// # Errors
    ///
    /// Whatever of it could not be had.
    pub fn open(device: &str, uio: &str, bar_size: usize) -> Result<Self, Error> {
        let file =
            |what, path: Text| File::open(path.as_c()).map_err(|errno| Error::File(what, errno));
        let uio = file("uio", Text::new(format_args!("{uio}")))?;
        let folder = format_args!("/sys/bus/pci/devices/{device}");
        let config = file("config", Text::new(format_args!("{folder}/config")))?;
        let used = |errno| Error::File("config", errno);
        let mut command = [0; 2];
        config.read(&mut command, COMMAND).map_err(used)?;
        let wanted = u16::from_le_bytes(command) | COMMAND_MEMORY | COMMAND_BUS_MASTER;
        config.write(&wanted.to_le_bytes(), COMMAND).map_err(used)?;
        config.read(&mut command, COMMAND).map_err(used)?;
        if u16::from_le_bytes(command) != wanted {
            return Err(Error::Command);
        }
        let resource = file("resource0", Text::new(format_args!("{folder}/resource0")))?;
        let registers =
            Mapping::new(&resource, bar_size).map_err(|errno| Error::File("resource0", errno))?;
        Ok(Self { registers, _uio: uio })
    }
}
