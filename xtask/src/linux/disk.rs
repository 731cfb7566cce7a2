//! Disks whose content both sides know.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Bytes in each half of the guest's disks, unless a test wants others.
pub(super) const HALF: u64 = 16 << 20;
/// Bytes behind the two halves, zero at first, which a stage may use as it likes.
pub(super) const SCRATCH: u64 = 64 << 20;

/// What a disk is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// An NVMe controller.
    Nvme,
    /// A virtio block device on PCI.
    VirtioBlk,
}

impl Bus {
    /// The name of the block node behind the disk on this bus of the VM with this index.
    pub fn node(self, vm: usize) -> String {
        match self {
            Self::Nvme => format!("linux{vm}-nvme"),
            Self::VirtioBlk => format!("linux{vm}-virtio"),
        }
    }
}

/// A disk of the guest. The first half has known content, the second is zero until the guest writes to it, and behind
/// them there is room that nobody judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The name in the guest's testimony.
    pub name: &'static str,
    /// What it is attached to.
    pub bus: Bus,
    /// The index of its VM.
    pub vm: usize,
    /// The serial number the device must have (at most 20 bytes): the guest finds the disk by it.
    pub serial: &'static str,
    /// The raw image.
    pub image: PathBuf,
    /// Bytes in each half.
    pub half: u64,
    /// SHA-256 of the first half, and of the second after the guest has written to it.
    pub digests: [[u8; 32]; 2],
}

/// How far a guest came with what it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastWrite {
    /// It ended by itself, with everything written.
    Done,
    /// It was ended from outside, as by a power cut: what it was writing may be the old, the new, or neither.
    CutShort,
}

impl Disk {
    /// Writes the two disks of the VM with index `vm` to `folder`, each of two halves, as they are before the first boot.
    pub(super) fn create(folder: &Path, vm: usize, half: u64) -> io::Result<[Self; 2]> {
        let [nvme, virtio] = [
            ("nvme0n1", Bus::Nvme, "portcullis-nvme", "nvme.img", 1),
            ("vda", Bus::VirtioBlk, "portcullis-virtio", "virtio.img", 2),
        ];
        let create = |(name, bus, serial, file, seed)| {
            let image = folder.join(file);
            let digest = write_image(&image, seed, half)?;
            io::Result::Ok(Self { name, bus, vm, serial, image, half, digests: [digest, digest] })
        };
        let [mut nvme, mut virtio] = [create(nvme)?, create(virtio)?];
        // The guest copies each first half to the other disk's second half.
        std::mem::swap(&mut nvme.digests[1], &mut virtio.digests[1]);
        Ok([nvme, virtio])
    }

    /// Judges the image after the run: the first half unchanged, the second as the guest should have written it, unless
    /// something ended the guest in the middle of that.
    ///
    /// The error says which half differs.
    pub fn check(&self, last: LastWrite) -> Result<(), String> {
        let name = self.image.display();
        let found = (|| {
            let mut file = BufReader::new(File::open(&self.image)?);
            let halves = [digest(&mut file, self.half)?, digest(&mut file, self.half)?];
            io::Result::Ok(halves)
        })()
        .map_err(|error| format!("{name}: {error}"))?;
        for (half, what) in [
            (0, "first half, which the guest only reads"),
            (1, "second half, which the guest writes"),
        ] {
            let judged = half == 0 || last == LastWrite::Done;
            if judged && found[half] != self.digests[half] {
                return Err(format!(
                    "{name}: the {what}, has SHA-256 {}, not {}",
                    hex(&found[half]),
                    hex(&self.digests[half])
                ));
            }
        }
        Ok(())
    }
}

/// Writes an image of two halves and returns the digest of the first.
fn write_image(path: &Path, seed: u64, half: u64) -> io::Result<[u8; 32]> {
    let mut file = BufWriter::new(fs::File::create(path)?);
    let mut hasher = Sha256::new();
    let mut block = Vec::with_capacity(64 << 10);
    for index in 0..half / 8 {
        block.extend_from_slice(&word(seed, index).to_le_bytes());
        if block.len() == block.capacity() || index + 1 == half / 8 {
            hasher.update(&block);
            file.write_all(&block)?;
            block.clear();
        }
    }
    let mut file = file.into_inner().map_err(|error| error.into_error())?;
    file.set_len(2 * half + SCRATCH)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(hasher.finalize().into())
}

/// Word `index` of the content with this seed: SplitMix64, so that no block resembles another.
fn word(seed: u64, index: u64) -> u64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut z = (seed << 56).wrapping_add(index.wrapping_add(1).wrapping_mul(STEP));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The digest of the next `length` bytes.
fn digest(reader: &mut impl Read, length: u64) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    if io::copy(&mut reader.take(length), &mut hasher)? != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(hasher.finalize().into())
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_content_and_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let found = write_image(&path, 1, 4096).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, 8192 + SCRATCH);
        assert_eq!(found, <[u8; 32]>::from(Sha256::digest(&bytes[..4096])));
        assert!(bytes[4096..].iter().all(|byte| *byte == 0));
        assert_eq!(write_image(&path, 1, 4096).unwrap(), found);
        assert_ne!(write_image(&path, 2, 4096).unwrap(), found);
    }

    /// Two small disks after a guest has done its work.
    fn written(folder: &Path) -> [Disk; 2] {
        let [a, b] = Disk::create(folder, 0, 4096).unwrap();
        let [mut left, mut right] = [&a, &b].map(|disk| fs::read(&disk.image).unwrap());
        left.splice(4096..8192, right[..4096].to_vec());
        right.splice(4096..8192, left[..4096].to_vec());
        fs::write(&a.image, left).unwrap();
        fs::write(&b.image, right).unwrap();
        [a, b]
    }

    #[test]
    fn the_host_sees_what_the_guest_wrote_and_what_it_should_not_have() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = written(folder.path());
        assert_eq!((a.check(LastWrite::Done), b.check(LastWrite::Done)), (Ok(()), Ok(())));
        let mut bytes = fs::read(&a.image).unwrap();
        bytes[17] ^= 1;
        fs::write(&a.image, &bytes).unwrap();
        for last in [LastWrite::Done, LastWrite::CutShort] {
            assert!(a.check(last).unwrap_err().contains("first half"));
        }
        write_image(&b.image, 2, 4096).unwrap();
        assert!(b.check(LastWrite::Done).unwrap_err().contains("second half"));
        assert_eq!(b.check(LastWrite::CutShort), Ok(()));
        fs::write(&b.image, "short").unwrap();
        assert!(b.check(LastWrite::CutShort).is_err());
    }

    #[test]
    fn serial_numbers_fit_the_devices() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disk::create(folder.path(), 0, 4096).unwrap();
        assert!(disks.iter().all(|disk| disk.serial.len() <= 20));
        assert_eq!(disks[0].digests[0], disks[1].digests[1]);
        assert_eq!(disks[1].digests[0], disks[0].digests[1]);
        assert_ne!(disks[0].digests[0], disks[0].digests[1]);
    }
}
