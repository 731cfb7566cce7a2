//! U-Boot for QEMU's `virt`, made into something that kexec can start: an operating system that knows no SMMU.

use anyhow::{Context, Result, anyhow, ensure};
use flate2::Crc;
use xtask::linux::GuestFile;
use xtask::setup::{self, Options};

/// Where U-Boot is in the image: it runs at any multiple of 4 KiB.
const U_BOOT: usize = 0x1000;
/// Where its default environment starts.
const ENVIRONMENT: &[u8] = b"bootcmd=";
/// Where it may put what it reads, clear of itself and of what it reserves at the top of RAM.
const BUFFER: usize = 0x5000_0000;
/// Bytes read from each disk: its first half.
const BYTES: usize = super::HALF as usize;

/// An arm64 Image header, and code that moves the image to 0x4800_0000, then the device tree that x0 points at to the
/// start of RAM, where this U-Boot looks for it, and enters U-Boot. Instructions and data may be anything in any cache:
/// the MMU is off, and the kexec before it has cleaned the image.
#[rustfmt::skip]
const STUB: [u32; 44] = [
    0x1400_0010, // b       move
    0xd503_201f, // nop
    0, 0,        // text_offset
    0, 0,        // image_size: filled in
    0xa, 0,      // flags: 4 KiB pages, anywhere in memory
    0, 0, 0, 0, 0, 0,
    0x644d_5241, // magic
    0,
    // move:
    0x10ff_fe01, // adr     x1, start
    0xd2a9_0002, // mov     x2, #0x48000000
    0x5800_0303, // ldr     x3, size
    0xaa02_03e5, // mov     x5, x2
    0xa8c1_1c26, // 1: ldp  x6, x7, [x1], #16
    0xa881_1ca6, // stp     x6, x7, [x5], #16
    0xf100_4063, // subs    x3, x3, #16
    0x54ff_ffa8, // b.hi    1b
    0xd503_3f9f, // dsb     sy
    0xd508_751f, // ic      iallu
    0xd503_3f9f, // dsb     sy
    0xd503_3fdf, // isb
    0x9101_e044, // add     x4, x2, #(tree - start)
    0xd61f_0080, // br      x4
    // tree: the image is out of the way of what follows
    0xb940_0403, // ldr     w3, [x0, #4]
    0x5ac0_0863, // rev     w3, w3
    0xd2a8_0005, // mov     x5, #0x40000000
    0xaa00_03e1, // mov     x1, x0
    0xa8c1_1c26, // 2: ldp  x6, x7, [x1], #16
    0xa881_1ca6, // stp     x6, x7, [x5], #16
    0xf100_4063, // subs    x3, x3, #16
    0x54ff_ffa8, // b.hi    2b
    0xd2a8_0000, // mov     x0, #0x40000000
    0xd503_3f9f, // dsb     sy
    0x9140_0444, // add     x4, x2, #0x1000
    0xd61f_0080, // br      x4
    0, 0,        // size: filled in
];
const IMAGE_SIZE: usize = 16;
const SIZE: usize = 4 * (STUB.len() - 2);

/// `/boot/u-boot`: reads the first halves of both disks, prints their checksums as [`checksum`] gives them, and powers off.
///
/// # Errors
///
/// What could not be fetched, or is not built as expected.
pub fn image(options: &Options) -> Result<GuestFile> {
    let (package, suite) = setup::U_BOOT;
    let tree = setup::ensure_package(options, package, suite)?;
    let path = tree.join("usr/lib/u-boot/qemu_arm64/u-boot.bin");
    let mut u_boot = std::fs::read(&path).with_context(|| path.display().to_string())?;
    command(&mut u_boot).with_context(|| path.display().to_string())?;
    no_flash(&mut u_boot);
    let mut data: Vec<u8> = STUB.iter().flat_map(|word| word.to_le_bytes()).collect();
    data.resize(U_BOOT, 0);
    data.extend(u_boot);
    data.resize(data.len().next_multiple_of(16), 0);
    let size = (data.len() as u64).to_le_bytes();
    for at in [IMAGE_SIZE, SIZE] {
        data[at..at + 8].copy_from_slice(&size);
    }
    Ok(GuestFile { path: "boot/u-boot".into(), mode: 0o644, data })
}

/// What U-Boot prints of a disk with this content.
pub fn checksum(content: &[u8]) -> String {
    let mut crc = Crc::new();
    crc.update(&content[..BYTES]);
    format!("crc32 for {BUFFER:08x} ... {:08x} ==> {:08x}", BUFFER + BYTES - 1, crc.sum())
}

/// Makes U-Boot look for its saved environment in RAM, where it finds none, rather than at 0x400_0000 in the flash, which
/// a guest does not have: changes the upper half of the address in each instruction that makes it.
fn no_flash(u_boot: &mut [u8]) {
    /// A64: `movz x0, #imm, lsl #16` and `movk` alike, the bit between them left out.
    const MOVE: u32 = 0xd2a0_0000;
    const KIND: u32 = 0x2000_0000;
    const FLASH: u32 = 0x400 << 5;
    const RAM: u32 = 0x4a00 << 5;
    const REGISTER: u32 = 0x1f;
    for bytes in u_boot.chunks_exact_mut(4) {
        let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if word & !(KIND | REGISTER) == MOVE | FLASH {
            let kept = word & (KIND | REGISTER);
            bytes.copy_from_slice(&(kept | MOVE | RAM).to_le_bytes());
        }
    }
}

/// Replaces U-Boot's default environment by one that does what is wanted and waits for nobody.
fn command(u_boot: &mut [u8]) -> Result<()> {
    let sectors = BYTES / 512;
    let disk = |scan: &str, read: &str| {
        format!("{scan}; {read} {BUFFER:x} 0 {sectors:x} && crc32 {BUFFER:x} {BYTES:x}")
    };
    let (nvme, virtio) = (disk("nvme scan", "nvme read"), disk("virtio scan", "virtio read"));
    let environment = format!(
        "bootcmd=pci enum; {nvme}; {virtio}; poweroff\0bootdelay=0\0stdout=serial\0stderr=serial\0\0"
    );
    let start = u_boot.windows(ENVIRONMENT.len()).position(|bytes| bytes == ENVIRONMENT);
    let start = start.ok_or_else(|| anyhow!("no default environment"))?;
    let length = u_boot[start..].windows(2).position(|bytes| bytes == b"\0\0");
    let length = length.ok_or_else(|| anyhow!("the default environment has no end"))? + 2;
    ensure!(environment.len() <= length, "the default environment is too short");
    u_boot[start..start + length].fill(0);
    u_boot[start..start + environment.len()].copy_from_slice(environment.as_bytes());
    Ok(())
}
