//! Kernels as users have them: arm64 Image, gzip, EFI zboot, or a flat binary entered at its start.
//!
//! Everything is unpacked here, so that EL2 only ever copies bytes.

use std::fmt;
use std::io::Read;

use platform::guest_map;

/// The most bytes a kernel unpacks to: far above any real one, far below what would exhaust the host.
const MAX_UNPACKED: u64 = 512 << 20;
/// Bytes of the arm64 Image header.
const HEADER_LEN: usize = 64;
/// `ARM\x64` at [`MAGIC_OFFSET`] (Documentation/arch/arm64/booting.rst).
const IMAGE_MAGIC: &[u8] = b"ARM\x64";
const MAGIC_OFFSET: usize = 0x38;
/// The text offset of images from before the field was reliable, which have an `image_size` of 0.
const LEGACY_TEXT_OFFSET: u64 = 0x8_0000;

/// How the bytes of a [`Kernel`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An arm64 Image.
    Image,
    /// Code without any header.
    Flat,
}

/// A kernel, unpacked.
#[derive(Clone, PartialEq, Eq)]
pub struct Kernel {
    /// What it is, once unpacked.
    pub format: Format,
    /// Where it is loaded and entered, as an offset in bytes from [`guest_map::KERNEL`].
    pub offset: u64,
    /// What is loaded.
    pub bytes: Vec<u8>,
    /// Bytes of memory it needs from where it is loaded, at least `bytes.len()`.
    pub memory: u64,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("format", &self.format)
            .field("offset", &self.offset)
            .field("bytes", &self.bytes.len())
            .field("memory", &self.memory)
            .finish()
    }
}

/// Why a file is not a kernel that can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelError {
    /// It has no bytes.
    Empty,
    /// It is something known that is not a kernel for this boot.
    Foreign {
        /// What it is.
        what: &'static str,
        /// What to give instead.
        instead: &'static str,
    },
    /// Its compression is damaged or cut off.
    Packed {
        /// `gzip` or `zstd`.
        how: &'static str,
        /// What the unpacker said.
        why: String,
    },
    /// It unpacks to more than any kernel has.
    TooLarge,
    /// It is an EFI zboot whose payload is not inside the file.
    ZbootCut,
    /// It is an EFI zboot with a compression that is not read here.
    ZbootCompression(String),
    /// What was packed is not an arm64 Image.
    PackedOther,
    /// It is a big-endian arm64 Image.
    BigEndian,
    /// Its Image header contradicts itself.
    Header(&'static str),
    /// It ends before the contents that its header promises.
    Truncated {
        /// Bytes its header promises.
        promised: u64,
        /// Bytes there are.
        there: u64,
    },
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the file is empty: give an arm64 Image or a flat binary"),
            Self::Foreign { what, instead } => write!(f, "the file is {what}: {instead}"),
            Self::Packed { how, why } => {
                write!(f, "the {how} data is damaged or cut off ({why}): get the file again")
            }
            Self::TooLarge => {
                write!(f, "it unpacks to more than {} MiB: not a kernel", MAX_UNPACKED >> 20)
            }
            Self::ZbootCut => {
                f.write_str("the EFI zboot payload lies outside the file: get the file again")
            }
            Self::ZbootCompression(name) => write!(
                f,
                "the EFI zboot payload is compressed with {name:?}; gzip and zstd are read here: \
                 give the arm64 Image itself"
            ),
            Self::PackedOther => f.write_str(
                "the compressed file holds no arm64 Image: give an arm64 Image, packed or not, or a \
                 flat binary that is not packed",
            ),
            Self::BigEndian => {
                f.write_str("the kernel is big-endian: build it with CONFIG_CPU_LITTLE_ENDIAN")
            }
            Self::Header(what) => {
                write!(f, "the arm64 Image header is damaged ({what}): get the file again")
            }
            Self::Truncated { promised, there } => write!(
                f,
                "the arm64 Image is cut off: its header promises {promised} bytes, the file has {there}: \
                 get the file again"
            ),
        }
    }
}

impl std::error::Error for KernelError {}

impl Kernel {
    /// Recognises and unpacks a kernel file.
    ///
    /// # Errors
    ///
    /// [`KernelError`] says what the file is instead, or where it is damaged.
    pub fn parse(file: &[u8]) -> Result<Self, KernelError> {
        if file.is_empty() {
            return Err(KernelError::Empty);
        }
        if file.starts_with(&[0x1f, 0x8b]) {
            return Self::packed(&gunzip(file)?);
        }
        if file.starts_with(b"MZ") && file.get(4..8) == Some(b"zimg") {
            return Self::packed(&unpack_zboot(file)?);
        }
        if file.get(MAGIC_OFFSET..MAGIC_OFFSET + 4) == Some(IMAGE_MAGIC) {
            return Self::image(file);
        }
        if let Some((what, instead)) = foreign(file) {
            return Err(KernelError::Foreign { what, instead });
        }
        let memory = file.len() as u64;
        Ok(Self { format: Format::Flat, offset: 0, bytes: file.to_vec(), memory })
    }

    /// The first guest address behind the kernel.
    pub fn end(&self) -> u64 {
        // Both are bounded by what `parse` accepts, far below the sum's limit.
        guest_map::KERNEL.raw() + self.offset + self.memory
    }

    /// The guest address where it is loaded and entered.
    pub fn load(&self) -> u64 {
        guest_map::KERNEL.raw() + self.offset
    }

    fn packed(bytes: &[u8]) -> Result<Self, KernelError> {
        if bytes.get(MAGIC_OFFSET..MAGIC_OFFSET + 4) == Some(IMAGE_MAGIC) {
            Self::image(bytes)
        } else {
            Err(KernelError::PackedOther)
        }
    }

    fn image(bytes: &[u8]) -> Result<Self, KernelError> {
        let header = bytes.get(..HEADER_LEN).ok_or(KernelError::Truncated {
            promised: HEADER_LEN as u64,
            there: bytes.len() as u64,
        })?;
        let field = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let (text_offset, image_size, flags) = (field(8), field(16), field(24));
        if flags & 1 != 0 {
            return Err(KernelError::BigEndian);
        }
        let (offset, memory) = if image_size == 0 {
            (LEGACY_TEXT_OFFSET, bytes.len() as u64)
        } else {
            (text_offset, image_size.max(bytes.len() as u64))
        };
        if offset >= guest_map::RAM_GRANULE || !offset.is_multiple_of(4096) {
            return Err(KernelError::Header("text_offset"));
        }
        if memory > MAX_UNPACKED {
            return Err(KernelError::Header("image_size"));
        }
        check_sections(bytes)?;
        Ok(Self { format: Format::Image, offset, bytes: bytes.to_vec(), memory })
    }
}

/// Checks that an Image that is an EFI application as well has all the contents of its sections: the one place
/// where an Image says how long the file must be.
fn check_sections(bytes: &[u8]) -> Result<(), KernelError> {
    const COFF_LEN: usize = 24;
    const SECTION_LEN: usize = 40;
    let word = |at: usize| -> Option<usize> {
        let word = bytes.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(word.try_into().ok()?)).ok()
    };
    let half = |at: usize| word(at).map(|word| word & 0xffff);
    if !bytes.starts_with(b"MZ") {
        return Ok(());
    }
    let Some(pe) = word(0x3c) else { return Ok(()) };
    if word(pe) != Some(0x4550) {
        return Err(KernelError::Header("no PE header where the MZ header says"));
    }
    let sections = half(pe + 6).zip(half(pe + 20));
    let Some((count, optional)) = sections else {
        return Err(KernelError::Header("PE header cut off"));
    };
    let mut promised = 0;
    for index in 0..count {
        let section = pe + COFF_LEN + optional + index * SECTION_LEN;
        let Some((size, at)) = word(section + 16).zip(word(section + 20)) else {
            return Err(KernelError::Header("PE section table cut off"));
        };
        promised = promised.max(at as u64 + size as u64);
    }
    if promised > bytes.len() as u64 {
        return Err(KernelError::Truncated { promised, there: bytes.len() as u64 });
    }
    Ok(())
}

fn gunzip(packed: &[u8]) -> Result<Vec<u8>, KernelError> {
    read_bounded(flate2::read::GzDecoder::new(packed), "gzip")
}

fn unzstd(packed: &[u8]) -> Result<Vec<u8>, KernelError> {
    let decoder = ruzstd::decoding::StreamingDecoder::new(packed)
        .map_err(|error| KernelError::Packed { how: "zstd", why: error.to_string() })?;
    read_bounded(decoder, "zstd")
}

fn read_bounded(reader: impl Read, how: &'static str) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Vec::new();
    reader
        .take(MAX_UNPACKED + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| KernelError::Packed { how, why: error.to_string() })?;
    if bytes.len() as u64 > MAX_UNPACKED { Err(KernelError::TooLarge) } else { Ok(bytes) }
}

/// Unpacks the payload of an EFI zboot image (drivers/firmware/efi/libstub/zboot-header.S): `MZ`, then at byte 4
/// `zimg`, the payload's offset and size as 32-bit words, and at byte 24 the name of its compression.
fn unpack_zboot(file: &[u8]) -> Result<Vec<u8>, KernelError> {
    let word = |at: usize| {
        let word = file.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(word.try_into().ok()?)).ok()
    };
    let (Some(offset), Some(size), Some(name)) = (word(8), word(12), file.get(24..0x38)) else {
        return Err(KernelError::ZbootCut);
    };
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    let payload = offset
        .checked_add(size)
        .and_then(|end| file.get(offset..end))
        .ok_or(KernelError::ZbootCut)?;
    match name {
        b"gzip" => gunzip(payload),
        b"zstd" | b"zstd22" => unzstd(payload),
        other => Err(KernelError::ZbootCompression(String::from_utf8_lossy(other).into_owned())),
    }
}

/// Recognises what would be taken for a flat binary by mistake: what it is, and what to give instead.
fn foreign(file: &[u8]) -> Option<(&'static str, &'static str)> {
    const TO_IMAGE: &str = "give the arm64 Image";
    const UNPACK: &str = "unpack it first";
    let starts: [(&[u8], &str, &str); 11] = [
        (
            b"\x7fELF",
            "an ELF file",
            "give the arm64 Image, or make a flat binary with objcopy -O binary",
        ),
        (b"BZh", "compressed with bzip2", UNPACK),
        (b"\xfd7zXZ\0", "compressed with xz", UNPACK),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
        (b"\x04\x22\x4d\x18", "compressed with lz4", UNPACK),
        (b"\x02\x21\x4c\x18", "compressed with lz4", UNPACK),
        (b"\x89LZO", "compressed with lzo", UNPACK),
        (b"\x5d\0\0", "compressed with lzma", UNPACK),
        (b"\xd0\x0d\xfe\xed", "a device tree or a FIT image", TO_IMAGE),
        (b"\x27\x05\x19\x56", "a U-Boot legacy image", TO_IMAGE),
        (b"0707", "a cpio archive", "give it with --initrd, and the arm64 Image as the kernel"),
    ];
    if let Some((_, what, instead)) = starts.into_iter().find(|(start, ..)| file.starts_with(start))
    {
        return Some((what, instead));
    }
    let inside: [(usize, &[u8], &str); 3] = [
        (0x202, b"HdrS", "an x86 kernel"),
        // Documentation/arch/riscv/boot-image-header.rst
        (0x38, b"RSC\x05", "a RISC-V kernel"),
        // arch/arm/boot/compressed/head.S
        (0x24, b"\x18\x28\x6f\x01", "a 32-bit Arm zImage"),
    ];
    let found = |(at, magic, _): &(usize, &[u8], _)| {
        file.get(*at..).is_some_and(|rest| rest.starts_with(magic))
    };
    if let Some((.., what)) = inside.into_iter().find(found) {
        return Some((what, TO_IMAGE));
    }
    // `MZ` alone is also a valid arm64 instruction, so the PE header has to be there as well.
    let pe =
        file.get(0x3c..0x40).map(|at| u32::from_le_bytes([at[0], at[1], at[2], at[3]]) as usize);
    let is_pe = pe.and_then(|pe| file.get(pe..pe.checked_add(4)?)) == Some(b"PE\0\0");
    (file.starts_with(b"MZ") && is_pe).then_some(("an EFI application", TO_IMAGE))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// An Image of 4 KiB that needs 64 KiB.
    fn image() -> Vec<u8> {
        let mut image = vec![0xa5; 4096];
        image[..HEADER_LEN].fill(0);
        image[16..24].copy_from_slice(&0x1_0000_u64.to_le_bytes());
        image[0x38..0x3c].copy_from_slice(IMAGE_MAGIC);
        image
    }

    /// [`image`] as an EFI application with one section that ends at `end`.
    fn efi_image(end: u32) -> Vec<u8> {
        let mut image = image();
        image[..2].copy_from_slice(b"MZ");
        image[0x3c..0x40].copy_from_slice(&0x40_u32.to_le_bytes());
        image[0x40..0x44].copy_from_slice(b"PE\0\0");
        image[0x46..0x48].copy_from_slice(&1_u16.to_le_bytes());
        image[0x54..0x56].copy_from_slice(&0_u16.to_le_bytes());
        image[0x58 + 16..0x58 + 20].copy_from_slice(&(end - 0x100).to_le_bytes());
        image[0x58 + 20..0x58 + 24].copy_from_slice(&0x100_u32.to_le_bytes());
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zboot(name: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 0x100];
        file[..8].copy_from_slice(b"MZ\0\0zimg");
        file[8..12].copy_from_slice(&0x100_u32.to_le_bytes());
        file[12..16].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        file[24..24 + name.len()].copy_from_slice(name);
        file.extend_from_slice(payload);
        file
    }

    #[test]
    fn an_image_lies_at_its_text_offset_and_needs_its_image_size() {
        let kernel = Kernel::parse(&image()).unwrap();
        assert_eq!(
            (kernel.format, kernel.load(), kernel.end()),
            (Format::Image, 0x4020_0000, 0x4021_0000)
        );
        let mut offset = image();
        offset[8..16].copy_from_slice(&0x8_0000_u64.to_le_bytes());
        assert_eq!(Kernel::parse(&offset).unwrap().load(), 0x4028_0000);
        let mut legacy = image();
        legacy[16..24].fill(0);
        let legacy = Kernel::parse(&legacy).unwrap();
        assert_eq!((legacy.load(), legacy.memory), (0x4028_0000, 4096));
    }

    #[test]
    fn packed_images_are_unpacked() {
        let plain = Kernel::parse(&image()).unwrap();
        let zstd = ruzstd::encoding::compress_to_vec(
            image().as_slice(),
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        assert_eq!(Kernel::parse(&gzip(&image())).unwrap(), plain);
        assert_eq!(Kernel::parse(&zboot(b"gzip", &gzip(&image()))).unwrap(), plain);
        assert_eq!(Kernel::parse(&zboot(b"zstd", &zstd)).unwrap(), plain);
    }

    #[test]
    fn anything_without_a_header_is_flat() {
        let kernel = Kernel::parse(&[0x1f, 0x20, 0x03, 0xd5]).unwrap();
        assert_eq!((kernel.format, kernel.load(), kernel.memory), (Format::Flat, 0x4020_0000, 4));
    }

    #[test]
    fn damage_is_named() {
        assert_eq!(Kernel::parse(&[]), Err(KernelError::Empty));
        let packed = gzip(&image());
        let cut = Kernel::parse(&packed[..packed.len() - 9]);
        assert!(matches!(cut, Err(KernelError::Packed { how: "gzip", .. })), "{cut:?}");
        let mut flipped = packed;
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        let flipped = Kernel::parse(&flipped);
        assert!(matches!(flipped, Err(KernelError::Packed { how: "gzip", .. })), "{flipped:?}");
        assert_eq!(Kernel::parse(&gzip(b"nothing")), Err(KernelError::PackedOther));
        let mut zboot_cut = zboot(b"gzip", &gzip(&image()));
        zboot_cut.truncate(0x110);
        assert_eq!(Kernel::parse(&zboot_cut), Err(KernelError::ZbootCut));
        assert_eq!(
            Kernel::parse(&zboot(b"lz4", &[0; 8])),
            Err(KernelError::ZbootCompression("lz4".into()))
        );
        let mut big_endian = image();
        big_endian[24] = 1;
        assert_eq!(Kernel::parse(&big_endian), Err(KernelError::BigEndian));
        let mut offset = image();
        offset[8..16].copy_from_slice(&0x20_0000_u64.to_le_bytes());
        assert_eq!(Kernel::parse(&offset), Err(KernelError::Header("text_offset")));
        assert!(matches!(Kernel::parse(&image()[..0x3e]), Err(KernelError::Truncated { .. })));
    }

    #[test]
    fn an_image_must_hold_its_sections() {
        assert!(Kernel::parse(&efi_image(4096)).is_ok());
        assert_eq!(
            Kernel::parse(&efi_image(4097)),
            Err(KernelError::Truncated { promised: 4097, there: 4096 })
        );
        let mut no_pe = efi_image(4096);
        no_pe[0x40] = 0;
        assert!(matches!(Kernel::parse(&no_pe), Err(KernelError::Header(_))));
    }

    #[test]
    fn what_is_no_kernel_is_recognised() {
        for (start, what) in [(&b"\x7fELF"[..], "an ELF file"), (b"070701", "a cpio archive")] {
            let refused = Kernel::parse(&[start, &[0; 64]].concat()).unwrap_err();
            assert!(refused.to_string().contains(what), "{refused}");
        }
        for (at, magic, what) in [
            (0x38, &b"RSC\x05"[..], "a RISC-V kernel"),
            (0x24, &0x016f_2818_u32.to_le_bytes(), "a 32-bit Arm zImage"),
        ] {
            let mut file = vec![0; 4096];
            file[at..at + 4].copy_from_slice(magic);
            let refused = Kernel::parse(&file).unwrap_err();
            assert!(refused.to_string().contains(what), "{refused}");
        }
    }
}
