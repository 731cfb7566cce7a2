//! What the device is made to do, and what is told of it.

use core::ffi::CStr;

use crate::arguments::Arguments;
use crate::driver::{self, Driver};
use crate::edu::{self, Edu, Operation};
use crate::page::Page;
use crate::pattern::{poison, signature};
use crate::println;

/// 4-byte accesses in one DMA.
const WORDS: u32 = 64;

/// Why the program cannot do its work.
pub enum Error {
    /// In words.
    Reason(&'static str),
    /// The function cannot be driven.
    Driver(driver::Error),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Reason(reason) => f.write_str(reason),
            Self::Driver(error) => error.fmt(f),
        }
    }
}

impl From<&'static str> for Error {
    fn from(reason: &'static str) -> Self {
        Self::Reason(reason)
    }
}

/// Does what the command line asks for.
///
/// # Errors
///
/// Whatever kept it from being done.
pub fn run(arguments: &[&CStr]) -> Result<(), Error> {
    let arguments = Arguments::new(arguments);
    let device = arguments.get("device")?;
    let driver =
        Driver::open(device, arguments.get("uio")?, edu::BAR_SIZE).map_err(Error::Driver)?;
    // The testimony names functions as the other guests do: without the domain.
    let device = device.split_once(':').map_or(device, |(_, function)| function);
    let edu = Edu::new(driver)?;
    if let Ok(addresses) = arguments.numbers("stray") {
        return stray(device, &edu, addresses);
    }
    let nonce = arguments.numbers("nonce")?.next().ok_or("no nonce")?? as u32;
    let attacker = Attacker { device, edu, data: Page::new()?, proof: Page::new()?, nonce };
    attacker.load()?;
    attacker.write_stale()?;
    for target in arguments.numbers("targets")? {
        attacker.write_foreign(target?)?;
    }
    for target in arguments.numbers("targets")? {
        attacker.read_foreign(target?)?;
    }
    // Whatever became of the others, the program's own DMA goes on.
    attacker.load()?;
    Ok(())
}

/// Lets the device write where nobody has mapped anything for it: to `addresses`, and to a page that the program has let
/// go of. The VM's own SMMU stops that, whatever is behind it.
fn stray(
    device: &str,
    edu: &Edu,
    addresses: impl Iterator<Item = Result<u64, &'static str>>,
) -> Result<(), Error> {
    let write = |address| edu.transfer(Operation::Write, address, u64::from(4 * WORDS));
    let tried = |address: u64, arrived: u32| {
        println!(
            "@tried device={device} op=write address={address:#x} to=nowhere accesses={WORDS} arrived={arrived}"
        );
    };
    for address in addresses {
        let address = address?;
        write(address)?;
        tried(address, 0);
    }
    let mut page = Page::new()?;
    page.fill(WORDS, poison)?;
    page.unmap();
    write(page.address)?;
    page.map_again()?;
    tried(page.address, WORDS - page.matching(WORDS, poison)?);
    Ok(())
}

struct Attacker<'a> {
    device: &'a str,
    edu: Edu,
    /// What the device reads.
    data: Page,
    /// What it writes, to be looked at.
    proof: Page,
    nonce: u32,
}

impl Attacker<'_> {
    /// Lets the device read the signature from own memory into its buffer, and proves that it did.
    fn load(&self) -> Result<(), Error> {
        self.data.fill(WORDS, signature(self.nonce))?;
        self.transfer(Operation::Read, self.data.address)?;
        let arrived = self.write_proof(signature(self.nonce))?;
        self.tried(Operation::Read, self.data.address, arrived);
        self.tried(Operation::Write, self.proof.address, arrived);
        self.data.check()?;
        Ok(())
    }

    /// Lets the device write to a page that the program has let go of. The VM has not: the page is still its own
    /// RAM, and without an SMMU of the VM's own nothing stands between its devices and that.
    fn write_stale(&self) -> Result<(), Error> {
        let mut page = Page::new()?;
        page.fill(WORDS, poison)?;
        page.unmap();
        self.transfer(Operation::Write, page.address)?;
        page.map_again()?;
        let arrived = page.matching(WORDS, signature(self.nonce))?;
        self.tried(Operation::Write, page.address, arrived);
        Ok(())
    }

    /// Lets the device write the signature to `target`, where only others can see what arrived.
    fn write_foreign(&self, target: u64) -> Result<(), Error> {
        self.transfer(Operation::Write, target)?;
        self.tried(Operation::Write, target, 0);
        Ok(())
    }

    /// Lets the device read `target` and show what it got: a refused read gives zeros.
    fn read_foreign(&self, target: u64) -> Result<(), Error> {
        self.transfer(Operation::Read, target)?;
        let nothing = self.write_proof(|_| 0)?;
        self.tried(Operation::Read, target, WORDS - nothing);
        let poisoned = self.proof.matching(WORDS, poison)?;
        self.tried(Operation::Write, self.proof.address, WORDS - poisoned);
        Ok(())
    }

    /// Lets the device write its buffer to own memory, and returns how many words of it follow the pattern.
    fn write_proof(&self, pattern: impl Fn(u32) -> u32) -> Result<u32, Error> {
        self.proof.fill(WORDS, poison)?;
        self.transfer(Operation::Write, self.proof.address)?;
        self.proof.check()?;
        Ok(self.proof.matching(WORDS, pattern)?)
    }

    fn transfer(&self, operation: Operation, address: u64) -> Result<(), Error> {
        Ok(self.edu.transfer(operation, address, u64::from(4 * WORDS))?)
    }

    fn tried(&self, operation: Operation, address: u64, arrived: u32) {
        println!(
            "@tried device={} op={operation} address={address:#x} accesses={WORDS} arrived={arrived}",
            self.device
        );
    }
}
