//! Dynamically linked arm64 programs: the files they need to run in the guest.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use elf::ElfBytes;
use elf::abi::{DT_NEEDED, DT_RUNPATH, PT_INTERP};
use elf::endian::LittleEndian;

use super::initramfs::GuestFile;

/// Where Debian's arm64 loader looks for libraries, and where packages have them.
const FOLDERS: [&str; 4] = ["lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib", "usr/lib"];

/// A program below `tree`, its loader and every library it needs, at the same paths in the guest.
pub fn with_libraries(tree: &Path, program: &str) -> anyhow::Result<Vec<GuestFile>> {
    let mut files = BTreeMap::new();
    let mut queue = VecDeque::from([program.to_owned()]);
    while let Some(path) = queue.pop_front() {
        if files.contains_key(&path) {
            continue;
        }
        let place = tree.join(&path);
        let data =
            fs::read(&place).with_context(|| format!("{}: cannot be read", place.display()))?;
        let needs = needs(&data)
            .with_context(|| format!("{}: not a program or library", place.display()))?;
        queue.extend(needs.loader.map(|loader| loader.trim_start_matches('/').to_owned()));
        for library in needs.libraries {
            let own = needs.folders.iter().map(|folder| folder.trim_start_matches('/'));
            let found = own
                .chain(FOLDERS)
                .map(|folder| format!("{folder}/{library}"))
                .find(|path| tree.join(path).exists());
            queue.push_back(found.ok_or_else(|| {
                anyhow!("{}: needs {library}, which is not below it", tree.display())
            })?);
        }
        files.insert(path.clone(), GuestFile { path, mode: 0o755, data });
    }
    Ok(files.into_values().collect())
}

/// What an ELF file names.
#[derive(Debug, PartialEq, Eq)]
struct Needs {
    loader: Option<String>,
    libraries: Vec<String>,
    /// Where the loader looks for them first.
    folders: Vec<String>,
}

fn needs(data: &[u8]) -> anyhow::Result<Needs> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(data)?;
    let interpreter = file
        .segments()
        .and_then(|segments| segments.iter().find(|segment| segment.p_type == PT_INTERP));
    let loader = match interpreter {
        Some(segment) => {
            let bytes = file.segment_data(&segment)?;
            Some(std::str::from_utf8(bytes)?.trim_end_matches('\0').to_owned())
        }
        None => None,
    };
    let common = file.find_common_data()?;
    let (mut libraries, mut folders) = (Vec::new(), Vec::new());
    for entry in common
        .dynamic
        .iter()
        .flat_map(|table| table.iter())
        .filter(|entry| [DT_NEEDED, DT_RUNPATH].contains(&entry.d_tag))
    {
        let Some(strings) = &common.dynsyms_strs else { bail!("names libraries but has no names") };
        let text = strings.get(usize::try_from(entry.d_val())?)?;
        if entry.d_tag == DT_NEEDED {
            libraries.push(text.to_owned());
        } else {
            folders.extend(text.split(':').map(String::from));
        }
    }
    Ok(Needs { loader, libraries, folders })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_program_names_its_loader_and_the_c_library() {
        let data = fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = needs(&data).unwrap();
        assert!(needs.loader.unwrap().contains("ld-"));
        assert!(needs.libraries.iter().any(|name| name.starts_with("libc.")));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let tree = tempfile::tempdir().unwrap();
        fs::copy(std::env::current_exe().unwrap(), tree.path().join("program")).unwrap();
        let error = with_libraries(tree.path(), "program").unwrap_err().to_string();
        assert!(error.contains("needs lib") && error.contains("not below"), "{error}");
        fs::write(tree.path().join("text"), "text").unwrap();
        assert!(
            with_libraries(tree.path(), "text")
                .unwrap_err()
                .to_string()
                .contains("text: not a program")
        );
    }
}
