//! Debian's kernel with a function of it reduced to a return.

use anyhow::{Context, Result, anyhow, bail, ensure};
use xtask::kernel::Kernel;
use xtask::linux::GuestFile;
use xtask::setup::{self, Flavor, Options};

use super::{Stage, machine};
use crate::run::boot;

/// What the Linux SMMU driver does at shutdown: in the driver for SMMUv3, and under the same name in that for v1 and v2.
const SHUTDOWN: &str = "arm_smmu_device_shutdown";
/// Where the image starts.
const START: &str = "_text";

/// A64: `nop`, `bti c`, `bti jc`, `paciasp`, `ret`.
const NOP: u32 = 0xd503_201f;
const BTI_C: u32 = 0xd503_245f;
const BTI_JC: u32 = 0xd503_24df;
const PACIASP: u32 = 0xd503_233f;
const RET: u32 = 0xd65f_03c0;
/// How many instructions a landing pad may have.
const LANDING: usize = 4;

/// The kernel of `flavor` whose SMMU driver does nothing at shutdown, for [`xtask::linux::Extra::files`]: it takes the
/// place of the one that the kernel's flavor names.
///
/// Boots the kernel once without address randomisation to learn where the function is.
///
/// # Errors
///
/// If the kernel does not boot, or is not built as expected.
pub fn without_shutdown(flavor: Flavor, options: &Options) -> Result<GuestFile> {
    let kernel = setup::ensure_linux(options, flavor)?;
    let file = std::fs::read(&kernel.image).with_context(|| kernel.image.display().to_string())?;
    let mut image = Kernel::parse(&file)?.bytes;
    let symbols = symbols(flavor, &[START, SHUTDOWN])?;
    let start = symbols.iter().find(|(name, _)| name == START);
    let start = start.ok_or_else(|| anyhow!("{flavor} has no {START}"))?.1;
    let mut patched = 0;
    for (_, address) in symbols.iter().filter(|(name, _)| name == SHUTDOWN) {
        let offset = usize::try_from(address.wrapping_sub(start))?;
        reduce(&mut image, offset).with_context(|| format!("{SHUTDOWN} of {flavor}"))?;
        patched += 1;
    }
    ensure!(patched > 0, "{flavor} has no {SHUTDOWN}");
    Ok(GuestFile { path: format!("boot/{flavor}"), mode: 0o644, data: image })
}

/// Makes the function at `offset` bytes return at once, before it signs its return address. Its landing pad stays, and
/// so do the words that the kernel's tracer expects to find there.
fn reduce(image: &mut [u8], offset: usize) -> Result<()> {
    for at in (offset..).step_by(4).take(LANDING) {
        let Some(bytes) = image.get_mut(at..at + 4) else { bail!("{offset:#x} is outside") };
        let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if ![NOP, BTI_C, BTI_JC].contains(&word) {
            ensure!(
                word == PACIASP || word & 0xffc0_7fff == 0xa980_7bfd,
                "{word:#x} at {at:#x} starts no function"
            );
            bytes.copy_from_slice(&RET.to_le_bytes());
            return Ok(());
        }
    }
    bail!("nothing but a landing pad at {offset:#x}")
}

/// Where these symbols are when `flavor` runs natively and is not moved at boot.
fn symbols(flavor: Flavor, names: &[&str]) -> Result<Vec<(String, u64)>> {
    let append = format!("nokaslr symbols={}", names.join(","));
    let run = boot(&machine(flavor, Stage::Symbols, &append, &["--native"])?)?.passed()?;
    let said = run.outcome.testimony.guests().next();
    let said = said.ok_or_else(|| anyhow!("nobody said anything"))?.1;
    let symbols = said.others.iter().filter(|other| other.words.iter().any(|w| w == "symbol"));
    symbols
        .map(|other| {
            let field =
                |key: &str| other.fields.get(key).ok_or_else(|| anyhow!("a symbol without {key}"));
            let address = field("address")?.trim_start_matches("0x");
            Ok((field("name")?.clone(), u64::from_str_radix(address, 16)?))
        })
        .collect()
}
