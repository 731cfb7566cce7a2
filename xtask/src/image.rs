//! What is built for the bare target: the images, made flat as boot loaders want them, and a program for Linux.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, bail};
use elf::ElfBytes;
use elf::abi::{PT_LOAD, STT_FUNC};
use elf::endian::LittleEndian;

use crate::setup::Target;
use crate::workspace;

/// The most bytes that the loadable part of an image spans.
const MAX_SPAN: u64 = 64 << 20;

/// What this project builds for the bare target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    /// EL2.
    Hypervisor,
    /// The bare-metal guests.
    Guest,
    /// The program that drives a device from a Linux guest's userspace.
    Uio,
}

impl Package {
    /// The package and its binary.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Hypervisor => ("hyp", "portcullis"),
            Self::Guest => ("guest", "guest"),
            Self::Uio => ("uio", "uio"),
        }
    }
}

/// A built image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The flat binary, beside the ELF file that it was made from.
    pub flat: PathBuf,
    /// Bytes of code.
    pub text: u64,
    /// Bytes of the `smmu` crate's code, as far as it was not inlined into its callers.
    pub smmu_text: u64,
    /// Bytes of memory from its first byte on, with what it zeroes itself.
    pub memory: u64,
}

/// Builds `package` and makes it flat.
///
/// # Errors
///
/// If it does not compile, or its ELF file is not what it should be.
pub fn build(package: Package, target: &Target, quiet: bool) -> Result<Image> {
    let elf = compile(package, target, quiet)?;
    let file = std::fs::read(&elf).with_context(|| format!("reading {}", elf.display()))?;
    let flat = elf.with_extension("bin");
    let (bytes, image) = flatten(&file, flat.clone()).with_context(|| elf.display().to_string())?;
    replace(&flat, &bytes)?;
    Ok(image)
}

/// Builds `package` and returns its ELF file.
///
/// # Errors
///
/// If it does not compile.
pub fn compile(package: Package, target: &Target, quiet: bool) -> Result<PathBuf> {
    let (name, binary) = package.names();
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release", "--package", name, "--bin", binary]);
    cargo.arg("--message-format=json-render-diagnostics");
    target.apply(&mut cargo);
    // Quietly, cargo's messages are kept for when it fails.
    cargo.stderr(if quiet { Stdio::piped() } else { Stdio::inherit() });
    let output = cargo
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running cargo to build {name}"))?;
    if !output.status.success() {
        bail!("{name} does not build\n{}", String::from_utf8_lossy(&output.stderr));
    }
    executable(&String::from_utf8_lossy(&output.stdout), binary)
        .ok_or_else(|| anyhow!("cargo built {name} and does not say where {binary} is"))
}

/// Finds where cargo says that it put a binary.
fn executable(messages: &str, binary: &str) -> Option<PathBuf> {
    let artifacts =
        messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut ours = artifacts.filter(|message| {
        message["reason"] == "compiler-artifact"
            && message["target"]["name"] == binary
            && !message["executable"].is_null()
    });
    ours.find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// Puts what an ELF file loads into one piece, from the lowest address on.
fn flatten(file: &[u8], flat: PathBuf) -> Result<(Vec<u8>, Image)> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file)?;
    let segments = elf.segments().ok_or_else(|| anyhow!("no program headers"))?;
    let loads: Vec<_> = segments.iter().filter(|segment| segment.p_type == PT_LOAD).collect();
    let start =
        loads.iter().map(|load| load.p_vaddr).min().ok_or_else(|| anyhow!("nothing to load"))?;
    let mut bytes = Vec::new();
    let mut memory = 0;
    for load in &loads {
        let offset = load.p_vaddr - start;
        memory = memory.max(offset.saturating_add(load.p_memsz));
        if memory > MAX_SPAN || load.p_filesz > load.p_memsz {
            bail!("a segment at {:#x} of {:#x} bytes is not sensible", load.p_vaddr, load.p_memsz);
        }
        let data = elf.segment_data(load)?;
        let at = usize::try_from(offset)?;
        bytes.resize(bytes.len().max(at + data.len()), 0);
        bytes[at..at + data.len()].copy_from_slice(data);
    }
    let text = elf.section_header_by_name(".text")?.map_or(0, |section| section.sh_size);
    Ok((bytes, Image { flat, text, smmu_text: smmu_text(&elf)?, memory }))
}

/// Adds up the functions whose mangled name starts in the crate `smmu`, trait implementations included.
fn smmu_text(elf: &ElfBytes<'_, LittleEndian>) -> Result<u64> {
    let Some((symbols, names)) = elf.symbol_table()? else { return Ok(0) };
    let is_ours = |name: &str| {
        name.starts_with("_ZN4smmu") || name.contains("$LT$smmu..") || name.contains("_4smmu")
    };
    let functions = symbols.iter().filter(|symbol| symbol.st_symtype() == STT_FUNC);
    let ours = functions.filter(|symbol| names.get(symbol.st_name as usize).is_ok_and(is_ours));
    Ok(ours.map(|symbol| symbol.st_size).sum())
}

/// Writes a file in one step, so that another run never sees half of it.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().ok_or_else(|| anyhow!("{} has no folder", path.display()))?;
    let file = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("writing into {}", folder.display()))?;
    std::fs::write(file.path(), bytes)?;
    file.persist(path).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with two segments: four bytes at 0x1000, and two at 0x1008 that take six in memory.
    fn elf() -> Vec<u8> {
        let mut file = vec![0; 64 + 2 * 56];
        file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        file[16..18].copy_from_slice(&2_u16.to_le_bytes());
        file[18..20].copy_from_slice(&183_u16.to_le_bytes());
        file[20..24].copy_from_slice(&1_u32.to_le_bytes());
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[52..54].copy_from_slice(&64_u16.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&2_u16.to_le_bytes());
        file[58..60].copy_from_slice(&64_u16.to_le_bytes());
        let data = file.len() as u64;
        for (index, (offset, address, size, memory)) in
            [(data, 0x1000_u64, 4_u64, 4_u64), (data + 4, 0x1008, 2, 6)].into_iter().enumerate()
        {
            let header = 64 + index * 56;
            file[header..header + 4].copy_from_slice(&PT_LOAD.to_le_bytes());
            for (field, value) in
                [(8, offset), (16, address), (24, address), (32, size), (40, memory)]
            {
                file[header + field..header + field + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        file.extend_from_slice(&[1, 2, 3, 4, 5, 6]);
        file
    }

    #[test]
    fn segments_become_one_piece() {
        let (bytes, image) = flatten(&elf(), PathBuf::new()).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4, 0, 0, 0, 0, 5, 6]);
        assert_eq!(image.memory, 14);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(flatten(b"\x7fELF", PathBuf::new()).is_err());
        let mut huge = elf();
        huge[64 + 56 + 40..64 + 56 + 48].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(flatten(&huge, PathBuf::new()).is_err());
    }

    #[test]
    fn cargo_says_where_the_binary_is() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"hyp\"},\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"portcullis\"},\"executable\":\"/x/p\"}\n\
                        not json\n";
        assert_eq!(executable(messages, "portcullis"), Some(PathBuf::from("/x/p")));
        assert_eq!(executable(messages, "guest"), None);
    }
}
