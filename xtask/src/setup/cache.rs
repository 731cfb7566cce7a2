//! The user's cache folder: complete entries only, one writer at a time.
//!
//! ```text
//! lock          held by the run that changes anything below
//! apt/          private apt states, one per set of suites and architecture
//! entries/      finished entries; each has a stamp that lists its version and its important files
//! scratch/      entries being built; whoever takes the lock empties it first
//! ```
//!
//! An entry appears by one rename, so a run that is killed leaves nothing half-done. The lock is the kernel's: it
//! goes away with the last process that holds it, which includes an apt that outlives a killed run.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::progress::Progress;
use super::{Missing, Options};

/// How long a run waits for another one that holds the lock.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// The name of the file that makes an entry complete.
const STAMP: &str = ".stamp";

/// The cache folder.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    progress: Progress,
}

/// A finished entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its folder.
    pub path: PathBuf,
    /// The version of what is in it.
    pub version: String,
}

/// The right to change the cache, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Standard input for a child that changes the cache: it keeps the cache locked if it outlives this process.
    pub fn stdin(&self) -> Stdio {
        self.file.try_clone().map_or_else(|_| Stdio::null(), Stdio::from)
    }
}

impl Cache {
    /// Names the cache folder; creates nothing.
    pub fn open(options: &Options) -> Result<Self, Missing> {
        let root =
            folder(options.cache.as_deref(), |name| std::env::var_os(name).map(PathBuf::from))
                .ok_or_else(|| Missing {
                    what: "a cache folder".into(),
                    why: "none of PORTCULLIS_CACHE, XDG_CACHE_HOME and HOME is an absolute path"
                        .into(),
                    how: "set PORTCULLIS_CACHE to a folder of yours".into(),
                })?;
        let root = std::path::absolute(&root).unwrap_or(root);
        let cache = Self { root, progress: Progress::new(options.quiet) };
        // The loader's search path and apt's configuration have no way to quote these.
        if cache.root.to_str().is_none_or(|path| path.contains([':', '"', '\\', '\n'])) {
            return Err(
                cache.unusable(&"its path has a character that apt or the loader cannot take")
            );
        }
        Ok(cache)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where to report progress.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The entry `key`, a relative path, if it is complete.
    pub fn get(&self, key: &str) -> Option<Entry> {
        let path = self.root.join("entries").join(key);
        let stamp = fs::read_to_string(path.join(STAMP)).ok()?;
        let version = verify(&path, &stamp)?;
        Some(Entry { path, version })
    }

    /// Waits for the right to change the cache, and announces the wait.
    pub fn lock(&self) -> Result<Lock, Missing> {
        self.lock_within(PATIENCE)
    }

    fn lock_within(&self, patience: Duration) -> Result<Lock, Missing> {
        let path = self.root.join("lock");
        fs::create_dir_all(&self.root).map_err(|error| self.unusable(&error))?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| self.unusable(&error))?;
        let start = Instant::now();
        let mut announced = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(self.unusable(&error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let mut owner = String::new();
            let owner =
                match file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut owner)) {
                    Ok(_) if !owner.trim().is_empty() => format!("process {}", owner.trim()),
                    _ => "another process".into(),
                };
            if start.elapsed() >= patience {
                return Err(Missing {
                    what: "the cache folder".into(),
                    why: format!(
                        "{owner} has held {} for {} s",
                        path.display(),
                        patience.as_secs()
                    ),
                    how: "wait until it is done, or end it, and run this again".into(),
                });
            }
            if !announced {
                announced = true;
                self.progress.step(&format!(
                    "waiting for {owner}, which is changing {}",
                    self.root.display()
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let claim = (|| {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(std::process::id().to_string().as_bytes())?;
            remove(&self.root.join("scratch"))
        })();
        claim.map_err(|error| self.unusable(&error))?;
        Ok(Lock { file })
    }

    /// Builds the entry `key` in an empty folder that `fill` is given, then puts it in place of an older one.
    ///
    /// `fill` returns the entry's version and its important files, relative to the folder.
    pub fn build(
        &self,
        _lock: &Lock,
        key: &str,
        fill: impl FnOnce(&Path) -> Result<(String, Vec<PathBuf>), Missing>,
    ) -> Result<Entry, Missing> {
        let scratch = self.root.join("scratch");
        let folder = scratch.join("new");
        let place = self.root.join("entries").join(key);
        let prepare = || {
            remove(&scratch)?;
            fs::create_dir_all(&folder)?;
            fs::create_dir_all(place.parent().unwrap_or(&self.root))
        };
        prepare().map_err(|error| self.unusable(&error))?;
        let (version, files) = fill(&folder)?;
        let publish = || {
            fs::write(folder.join(STAMP), stamp(&folder, &version, &files)?)?;
            if place.exists() {
                fs::rename(&place, scratch.join("old"))?;
            }
            fs::rename(&folder, &place)?;
            remove(&scratch)
        };
        publish().map_err(|error| self.unusable(&error))?;
        Ok(Entry { path: place, version })
    }

    /// The error for a cache folder that cannot be used.
    pub fn unusable(&self, error: &dyn std::fmt::Display) -> Missing {
        Missing {
            what: format!("the cache folder {}", self.root.display()),
            why: error.to_string(),
            how: "see that the folder is writable and its disk has room, or set PORTCULLIS_CACHE to another one"
                .into(),
        }
    }
}

/// Chooses the cache folder from the user's choice and the environment.
fn folder(chosen: Option<&Path>, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    chosen
        .map(Path::to_path_buf)
        .or_else(|| absolute("PORTCULLIS_CACHE"))
        .or_else(|| absolute("XDG_CACHE_HOME").map(|path| path.join("portcullis")))
        .or_else(|| absolute("HOME").map(|path| path.join(".cache/portcullis")))
}

/// Removes a folder and everything in it, if it is there.
fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The stamp of an entry: its version, then the sizes of its important files.
fn stamp(folder: &Path, version: &str, files: &[PathBuf]) -> std::io::Result<String> {
    let mut text = format!("version {version}\n");
    for file in files {
        let size = fs::metadata(folder.join(file))?.len();
        text += &format!("file {size} {}\n", file.display());
    }
    Ok(text)
}

/// The version in a stamp, if every file it lists is there with its size.
fn verify(folder: &Path, stamp: &str) -> Option<String> {
    let mut lines = stamp.lines();
    let version = lines.next()?.strip_prefix("version ")?;
    for line in lines {
        let (size, name) = line.strip_prefix("file ")?.split_once(' ')?;
        let size: u64 = size.parse().ok()?;
        fs::metadata(folder.join(name)).ok().filter(|found| found.len() == size)?;
    }
    Some(version.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(root: &Path) -> Cache {
        Cache { root: root.join("cache"), progress: Progress::new(true) }
    }

    fn fill(content: &str) -> impl FnOnce(&Path) -> Result<(String, Vec<PathBuf>), Missing> {
        move |folder| {
            fs::write(folder.join("data"), content).unwrap();
            Ok(("1.0".into(), vec!["data".into()]))
        }
    }

    #[test]
    fn folder_prefers_the_most_specific_choice_and_skips_relative_paths() {
        let all = |name: &str| Some(PathBuf::from(format!("/{name}")));
        assert_eq!(folder(Some(Path::new("/x")), all), Some("/x".into()));
        assert_eq!(folder(None, all), Some("/PORTCULLIS_CACHE".into()));
        let without =
            |gone: &'static str| move |name: &str| (name != gone).then(|| PathBuf::from("/v"));
        assert_eq!(folder(None, without("PORTCULLIS_CACHE")), Some("/v/portcullis".into()));
        let home = |name: &str| match name {
            "HOME" => Some(PathBuf::from("/home/u")),
            _ => Some(PathBuf::from("relative")),
        };
        assert_eq!(folder(None, home), Some("/home/u/.cache/portcullis".into()));
        assert_eq!(folder(None, |_| None), None);
    }

    #[test]
    fn a_folder_that_cannot_be_quoted_is_refused() {
        let open =
            |path: &str| Cache::open(&Options { cache: Some(path.into()), ..Options::default() });
        assert!(open("/a:b").unwrap_err().why.contains("character"));
        assert!(open("/a\"b").is_err());
        assert_eq!(open("/a b/../c").unwrap().root(), Path::new("/a b/../c"));
        assert!(open("relative").unwrap().root().is_absolute());
    }

    #[test]
    fn an_entry_is_complete_or_absent() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        assert_eq!(cache.get("a/b"), None);
        let lock = cache.lock().unwrap();
        let failed = cache.build(&lock, "a/b", |folder| {
            fs::write(folder.join("data"), "half").unwrap();
            Err(cache.unusable(&"network"))
        });
        assert!(failed.is_err());
        assert_eq!(cache.get("a/b"), None);
        let entry = cache.build(&lock, "a/b", fill("whole")).unwrap();
        assert_eq!(cache.get("a/b"), Some(entry.clone()));
        assert_eq!(entry.version, "1.0");
        assert_eq!(fs::read_to_string(entry.path.join("data")).unwrap(), "whole");
        assert!(!cache.root.join("scratch").exists());
    }

    #[test]
    fn a_damaged_entry_is_not_found_and_can_be_replaced() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let lock = cache.lock().unwrap();
        let entry = cache.build(&lock, "x", fill("whole")).unwrap();
        fs::write(entry.path.join("data"), "hole").unwrap();
        assert_eq!(cache.get("x"), None);
        cache.build(&lock, "x", fill("again")).unwrap();
        let found = cache.get("x").unwrap();
        assert_eq!(fs::read_to_string(found.path.join("data")).unwrap(), "again");
        fs::remove_file(found.path.join(STAMP)).unwrap();
        assert_eq!(cache.get("x"), None);
    }

    #[test]
    fn the_lock_excludes_a_second_run_until_it_is_dropped() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let lock = cache.lock().unwrap();
        let refused = cache.lock_within(Duration::ZERO).unwrap_err();
        assert!(refused.why.contains(&std::process::id().to_string()), "{refused}");
        drop(lock);
        // Another test's child that is just being started may hold a copy until it becomes its program.
        cache.lock_within(Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn the_lock_outlives_its_run_while_a_child_holds_it() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let lock = cache.lock().unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("600").stdin(lock.stdin()).spawn().unwrap();
        drop(lock);
        let held = cache.lock_within(Duration::ZERO).is_err();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(held);
        cache.lock_within(Duration::ZERO).unwrap();
    }

    #[test]
    fn taking_the_lock_removes_what_a_killed_run_left() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        fs::create_dir_all(cache.root.join("scratch/new")).unwrap();
        fs::write(cache.root.join("scratch/new/half"), "").unwrap();
        let _lock = cache.lock().unwrap();
        assert!(!cache.root.join("scratch").exists());
    }
}
