//! Kernel modules: which files to load, in which order.
//!
//! Debian's packages come without `modules.dep`, which is made at installation; so each module's own `.modinfo`
//! says what it depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::endian::LittleEndian;

/// Why modules cannot be loaded.
#[derive(Debug)]
pub enum Error {
    /// No such module, and it is not built in either.
    Absent {
        /// The module.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The module's dependencies lead back to it.
    Cycle(String),
    /// A file cannot be read.
    File(PathBuf, io::Error),
    /// A file is not a module.
    Format(PathBuf, &'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { name, folder } => {
                write!(
                    f,
                    "{}: no kernel module {name}; another flavor of the kernel may have it",
                    folder.display()
                )
            }
            Self::Cycle(name) => write!(f, "kernel module {name} depends on itself"),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Format(path, why) => write!(f, "{}: {why}", path.display()),
        }
    }
}

impl std::error::Error for Error {}

/// A kernel module, decompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with `_` throughout.
    pub name: String,
    /// The ELF file.
    pub data: Vec<u8>,
}

/// The modules of one kernel.
#[derive(Clone, Debug)]
pub struct Modules {
    folder: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Modules {
    /// Lists the modules in a kernel's module folder.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let list = folder.join("modules.builtin");
        let text = fs::read_to_string(&list).map_err(|error| Error::File(list, error))?;
        let builtin = text.lines().filter_map(|line| module_name(Path::new(line))).collect();
        let mut files = BTreeMap::new();
        collect(folder, &mut files).map_err(|error| Error::File(folder.into(), error))?;
        Ok(Self { folder: folder.into(), files, builtin })
    }

    /// The modules `wanted` and all they depend on, in an order in which they load. Built-in ones need no loading.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<Module>, Error> {
        let mut loaded = BTreeMap::new();
        let order = order(wanted, |name| {
            if self.builtin.contains(name) {
                return Ok(None);
            }
            let path = self
                .files
                .get(name)
                .ok_or_else(|| Error::Absent { name: name.into(), folder: self.folder.clone() })?;
            let data = decompress(path)?;
            let mut needs = dependencies(path, &data)?;
            // A soft dependency that this kernel does not have is none.
            needs.soft.retain(|name| self.builtin.contains(name) || self.files.contains_key(name));
            loaded.insert(name.to_owned(), data);
            Ok(Some([needs.hard, needs.soft].concat()))
        })?;
        Ok(order
            .into_iter()
            .filter_map(|name| Some(Module { data: loaded.remove(&name)?, name }))
            .collect())
    }
}

/// Orders `wanted` and its dependencies so that each comes after what it depends on. `depends` says on which modules one
/// depends directly, or that it is built in; it is asked once for each.
fn order(
    wanted: &[&str],
    mut depends: impl FnMut(&str) -> Result<Option<Vec<String>>, Error>,
) -> Result<Vec<String>, Error> {
    /// A module is finished when its dependencies have been handled.
    enum Step {
        Enter(String),
        Finish(String),
    }
    let mut order = Vec::new();
    let mut open = BTreeSet::new();
    let mut done = BTreeSet::new();
    let mut steps: Vec<Step> = wanted.iter().rev().map(|name| Step::Enter(normal(name))).collect();
    while let Some(step) = steps.pop() {
        match step {
            Step::Enter(name) if done.contains(&name) => {}
            Step::Enter(name) if !open.insert(name.clone()) => return Err(Error::Cycle(name)),
            Step::Enter(name) => match depends(&name)? {
                None => {
                    done.insert(name);
                }
                Some(needs) => {
                    steps.push(Step::Finish(name));
                    steps.extend(needs.iter().rev().map(|need| Step::Enter(normal(need))));
                }
            },
            Step::Finish(name) => {
                done.insert(name.clone());
                order.push(name);
            }
        }
    }
    Ok(order)
}

/// The kernel takes `-` and `_` in module names for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module in a file, if it is one.
fn module_name(path: &Path) -> Option<String> {
    let (name, rest) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".gz" | ".zst").then(|| normal(name))
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some(name) = module_name(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// Reads a module and decompresses it: the guest's busybox cannot.
fn decompress(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::File(path.into(), error);
    let bytes = fs::read(path).map_err(failed)?;
    let mut data = Vec::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return Ok(bytes),
        Some("xz") => {
            lzma_rust2::XzReader::new(&bytes[..], false).read_to_end(&mut data).map_err(failed)?
        }
        Some("gz") => {
            flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut data).map_err(failed)?
        }
        _ => {
            return Err(Error::Format(
                path.into(),
                "compressed in a way that is not supported (xz and gzip are)",
            ));
        }
    };
    Ok(data)
}

/// What a module depends on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dependencies {
    /// Cannot be loaded without.
    hard: Vec<String>,
    /// Should be loaded before, where it exists.
    soft: Vec<String>,
}

/// Reads a module's dependencies from its ELF file.
fn dependencies(path: &Path, data: &[u8]) -> Result<Dependencies, Error> {
    let broken = |_| Error::Format(path.into(), "not an ELF file");
    let file = ElfBytes::<LittleEndian>::minimal_parse(data).map_err(broken)?;
    let section = file
        .section_header_by_name(".modinfo")
        .map_err(broken)?
        .ok_or_else(|| Error::Format(path.into(), "not a kernel module: it has no .modinfo"))?;
    let (bytes, _) = file.section_data(&section).map_err(broken)?;
    Ok(parse_modinfo(bytes))
}

/// Parses `.modinfo`: `key=value` strings that end with a zero byte.
fn parse_modinfo(bytes: &[u8]) -> Dependencies {
    let mut found = Dependencies::default();
    for field in bytes.split(|byte| *byte == 0) {
        let Some((key, value)) =
            std::str::from_utf8(field).ok().and_then(|field| field.split_once('='))
        else {
            continue;
        };
        match key {
            "depends" => {
                found.hard.extend(value.split(',').filter(|name| !name.is_empty()).map(normal))
            }
            "softdep" => {
                let before = value.split("post:").next().and_then(|text| text.split_once("pre:"));
                found.soft.extend(
                    before.into_iter().flat_map(|(_, names)| names.split_whitespace()).map(normal),
                );
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Orders among modules given as `name: dependency dependency`; a leading `*` means built in.
    fn sort(wanted: &[&str], table: &[&str]) -> Result<Vec<String>, Error> {
        order(wanted, |name| {
            let line = table.iter().find_map(|line| {
                let (found, needs) = line.split_once(':')?;
                (found.trim_start_matches('*') == name).then_some((found.starts_with('*'), needs))
            });
            let (builtin, needs) =
                line.ok_or(Error::Absent { name: name.into(), folder: "/m".into() })?;
            Ok((!builtin).then(|| needs.split_whitespace().map(String::from).collect()))
        })
    }

    #[test]
    fn modules_come_after_what_they_depend_on_and_once() {
        let table = [
            "virtio:",
            "virtio_ring: virtio",
            "virtio_pci: virtio-ring virtio",
            "virtio_blk: virtio virtio_ring",
        ];
        let order = sort(&["virtio-pci", "virtio_blk"], &table).unwrap();
        assert_eq!(order, ["virtio", "virtio_ring", "virtio_pci", "virtio_blk"]);
    }

    #[test]
    fn built_in_modules_are_not_loaded() {
        let order =
            sort(&["nvme", "virtio_blk"], &["*nvme:", "*virtio:", "virtio_blk: virtio"]).unwrap();
        assert_eq!(order, ["virtio_blk"]);
    }

    #[test]
    fn absent_and_circular_modules_are_named() {
        assert!(matches!(sort(&["a"], &["a: b"]), Err(Error::Absent { name, .. }) if name == "b"));
        assert!(matches!(sort(&["a"], &["a: b", "b: a"]), Err(Error::Cycle(name)) if name == "a"));
    }

    #[test]
    fn modinfo_names_hard_and_soft_dependencies() {
        let bytes = b"license=GPL\0depends=virtio,virtio-ring\0softdep=pre: crc32c aes post: late\0name=x\0";
        let hard = vec!["virtio".to_owned(), "virtio_ring".into()];
        assert_eq!(
            parse_modinfo(bytes),
            Dependencies { hard, soft: vec!["crc32c".into(), "aes".into()] }
        );
        assert_eq!(
            parse_modinfo(b"depends=\0softdep=post: late\0\xff=\0"),
            Dependencies::default()
        );
    }

    #[test]
    fn names_are_read_from_file_names() {
        let name = |path| module_name(Path::new(path));
        assert_eq!(name("kernel/drivers/virtio/virtio-rng.ko.xz").as_deref(), Some("virtio_rng"));
        assert_eq!(name("kernel/nvme.ko").as_deref(), Some("nvme"));
        assert_eq!(name("modules.order"), None);
        assert_eq!(name("x.korean"), None);
    }

    /// `xz` of the five bytes "hello".
    const HELLO: [u8; 64] = [
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21,
        0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x04, 0x68, 0x65, 0x6c,
        0x6c, 0x6f, 0x00, 0x00, 0x00, 0x00, 0xb1, 0x37, 0xb9, 0xdb, 0xe5, 0xda, 0x1e, 0x9b, 0x00,
        0x01, 0x1d, 0x05, 0xb8, 0x2d, 0x80, 0xaf, 0x1f, 0xb6, 0xf3, 0x7d, 0x01, 0x00, 0x00, 0x00,
        0x00, 0x04, 0x59, 0x5a,
    ];

    #[test]
    fn compressed_modules_are_decompressed_and_other_files_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ko.xz");
        fs::write(&path, HELLO).unwrap();
        assert_eq!(decompress(&path).unwrap(), b"hello");
        assert!(matches!(dependencies(&path, b"hello"), Err(Error::Format(..))));
        let path = folder.path().join("a.ko.zst");
        fs::write(&path, "").unwrap();
        assert!(matches!(decompress(&path), Err(Error::Format(..))));
    }
}
