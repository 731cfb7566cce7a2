//! The folder of a run: where everything is that the run needs or leaves, until it is over.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::setup::Missing;
use crate::size::MIB;

/// What the names of all such folders begin with.
const PREFIX: &str = "portcullis-";
/// The file in it that is locked for as long as its run goes on.
const LOCK: &str = "lock";
/// The longest path of a socket (`sun_path`), without the zero behind it.
const SOCKET_PATH: usize = 107;
/// The longest name of a socket in the folder.
const LONGEST_NAME: usize = 8;

/// A folder that goes with its run.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    /// Held until the folder is gone: fields are dropped in this order.
    _lock: File,
}

impl Scratch {
    /// Makes the folder, and removes those of runs that were killed.
    ///
    /// # Errors
    ///
    /// If there is no place for it.
    pub fn new() -> Result<Self, Missing> {
        Self::below(&std::env::temp_dir())
    }

    fn below(place: &Path) -> Result<Self, Missing> {
        remove_abandoned(place);
        let refuse = |why: String| missing(place, &why);
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(place)
            .map_err(|error| refuse(error.to_string()))?;
        if folder.path().as_os_str().len() + 1 + LONGEST_NAME > SOCKET_PATH {
            return Err(refuse("its path is too long for a socket".into()));
        }
        let lock = lock(folder.path()).map_err(|error| refuse(error.to_string()))?;
        Ok(Self { folder, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Checks that there is room for `bytes` more.
    ///
    /// # Errors
    ///
    /// If there is not.
    pub fn check_room(&self, bytes: u64) -> Result<(), Missing> {
        // Where nobody can say, QEMU finds out.
        let Ok(about) = rustix::fs::statvfs(self.path()) else { return Ok(()) };
        let free = about.f_bavail.saturating_mul(about.f_frsize);
        if free >= bytes {
            return Ok(());
        }
        let (free, wanted) = (free / MIB, bytes / MIB);
        let why =
            format!("it has room for {free} MiB, and the machine's memory takes {wanted} MiB");
        Err(missing(self.folder.path(), &why))
    }
}

/// Writes the file `name` in the folder of a run, or in one of its folders; returns where it is.
///
/// # Errors
///
/// If there is no room for it.
pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf, Missing> {
    let path = folder.join(name);
    std::fs::write(&path, bytes)
        .map_err(|error| missing(folder, &format!("writing {name}: {error}")))?;
    Ok(path)
}

/// What is missing when the folder cannot be had at `place`.
pub fn missing(place: &Path, why: &str) -> Missing {
    Missing {
        what: format!("a temporary folder ({})", place.display()),
        why: why.into(),
        how: "set TMPDIR to a folder that exists, with a short path and room for the machine's memory".into(),
    }
}

/// Locks the folder; the lock appears at once with its file.
fn lock(folder: &Path) -> io::Result<File> {
    let making = folder.join("lock.new");
    let lock = File::create(&making)?;
    lock.lock()?;
    std::fs::rename(making, folder.join(LOCK))?;
    Ok(lock)
}

/// Removes the folders whose runs are gone; one without a lock is still being made.
fn remove_abandoned(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            && let Ok(lock) = File::open(entry.path().join(LOCK))
            && lock.try_lock().is_ok()
            && let Err(error) = std::fs::remove_dir_all(entry.path())
            && error.kind() != ErrorKind::NotFound
        {
            note!("cannot remove {}, which nobody uses: {error}", entry.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_uses_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let used = Scratch::below(place.path()).unwrap();
        for name in ["portcullis-dead", "portcullis-new", "others"] {
            std::fs::create_dir(place.path().join(name)).unwrap();
        }
        for name in ["portcullis-dead/lock", "portcullis-dead/ram", "others/lock"] {
            std::fs::write(place.path().join(name), "").unwrap();
        }
        let next = Scratch::below(place.path()).unwrap();
        assert!(used.path().exists() && next.path().exists());
        let there = ["portcullis-dead", "portcullis-new", "others"];
        assert_eq!(there.map(|name| place.path().join(name).exists()), [false, true, true]);
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn a_place_that_will_not_do_is_named() {
        let place = tempfile::tempdir().unwrap();
        let error = Scratch::below(&place.path().join("nowhere")).unwrap_err().to_string();
        assert!(error.contains("nowhere") && error.contains("next: set TMPDIR"), "{error}");
        let long = place.path().join("x".repeat(90));
        std::fs::create_dir(&long).unwrap();
        assert!(Scratch::below(&long).unwrap_err().why.contains("too long for a socket"));
        let error = write(Path::new("/dev/full"), "bundle.fit", b"x").unwrap_err().to_string();
        assert!(
            error.contains("writing bundle.fit") && error.contains("next: set TMPDIR"),
            "{error}"
        );
        let scratch = Scratch::below(place.path()).unwrap();
        assert!(scratch.check_room(1).is_ok());
        assert!(scratch.check_room(u64::MAX).unwrap_err().why.contains("it has room for"));
    }
}
