//! The initramfs: a newc archive that depends on nothing but its content.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use cpio::newc::{self, ModeFileType};

/// A file of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFile {
    /// Its path, without the leading `/`.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// Its content.
    pub data: Vec<u8>,
}

/// The content of an initramfs. A later file replaces an earlier one with the same path.
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    /// Folders have no content.
    entries: BTreeMap<String, Option<GuestFile>>,
}

impl Initramfs {
    /// Adds a folder and those it is in.
    pub fn folder(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            self.entries.entry(path[..end].into()).or_insert(None);
        }
        self.entries.entry(path.into()).or_insert(None);
    }

    /// Adds a file and the folders it is in.
    pub fn file(&mut self, file: GuestFile) {
        if let Some((folder, _)) = file.path.rsplit_once('/') {
            self.folder(folder);
        }
        self.entries.insert(file.path.clone(), Some(file));
    }

    /// The archive. Folders come before what is in them.
    pub fn archive(&self) -> io::Result<Vec<u8>> {
        let mut archive = Vec::new();
        for (number, (path, file)) in (1..).zip(&self.entries) {
            let (kind, mode, data) = match file {
                None => (ModeFileType::Directory, 0o755, &[][..]),
                Some(file) => (ModeFileType::Regular, file.mode & 0o7777, &file.data[..]),
            };
            let size = u32::try_from(data.len())
                .map_err(|_| io::Error::other(format!("{path} is too large")))?;
            // Equal inode numbers with more than one link would make the kernel join the files.
            let entry =
                newc::Builder::new(path).ino(number).nlink(1).mode(mode).set_mode_file_type(kind);
            let mut writer = entry.write(&mut archive, size);
            writer.write_all(data)?;
            writer.finish()?;
        }
        newc::trailer(&mut archive)?;
        Ok(archive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn file(path: &str, mode: u32, data: &str) -> GuestFile {
        GuestFile { path: path.into(), mode, data: data.into() }
    }

    /// What a reader finds: path, mode with type, content.
    fn list(archive: &[u8]) -> Vec<(String, u32, String)> {
        let mut found = Vec::new();
        let mut rest = archive;
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            if reader.entry().is_trailer() {
                return found;
            }
            let mut data = String::new();
            reader.read_to_string(&mut data).unwrap();
            rest = reader.finish().unwrap();
            found.push((name, mode, data));
        }
    }

    #[test]
    fn folders_precede_their_files_and_later_files_replace_earlier_ones() {
        let mut initramfs = Initramfs::default();
        initramfs.file(file("usr/bin/tool", 0o755, "old"));
        initramfs.file(file("init", 0o755, "#!/bin/sh\n"));
        initramfs.file(file("usr/bin/tool", 0o644, "new"));
        initramfs.folder("dev");
        let expected = [
            ("dev", 0o040_755, ""),
            ("init", 0o100_755, "#!/bin/sh\n"),
            ("usr", 0o040_755, ""),
            ("usr/bin", 0o040_755, ""),
            ("usr/bin/tool", 0o100_644, "new"),
        ]
        .map(|(name, mode, data)| (name.to_owned(), mode, data.to_owned()));
        assert_eq!(list(&initramfs.archive().unwrap()), expected);
    }

    #[test]
    fn the_same_content_gives_the_same_archive() {
        let mut one = Initramfs::default();
        one.file(file("a", 0o644, "1"));
        one.file(file("b/c", 0o644, "2"));
        let mut two = Initramfs::default();
        two.file(file("b/c", 0o644, "2"));
        two.file(file("a", 0o644, "1"));
        assert_eq!(one.archive().unwrap(), two.archive().unwrap());
    }
}
