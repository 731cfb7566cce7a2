//! The files that a run leaves: opened before anything is fetched, built or started, so that none of an earlier run is
//! taken for this one's.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use evidence::{Report, Verdict, timeline};

use crate::exit::bad_input;
use crate::request::Request;

/// The files, empty.
#[derive(Debug, Default)]
pub struct Outputs {
    /// QEMU's SMMU trace.
    pub trace: Option<File>,
    /// The guests' consoles.
    pub serial: Option<File>,
    /// The report, and where it is.
    report: Option<(PathBuf, File)>,
}

impl Outputs {
    /// Opens and empties the files that `request` names, and removes the pictures that an earlier run has put beside
    /// its report.
    ///
    /// # Errors
    ///
    /// Bad input, if one cannot be written, two are the same or one is what boots; then none has changed.
    pub fn open(request: &Request) -> Result<Self> {
        let trace = open("--trace", request.trace.as_deref())?;
        let serial = open("--serial", request.serial.as_deref())?;
        let report = open("--report", request.report.as_deref())?;
        let files = [("--trace", &trace), ("--serial", &serial), ("--report", &report)];
        let inputs = request
            .inputs
            .iter()
            .filter_map(|(option, path)| Some((*option, inode(&path.metadata().ok()?)?)));
        let mut known: Vec<(&str, Inode)> = inputs.collect();
        let mut regular = Vec::new();
        for (option, file) in files {
            let Some(file) = file else { continue };
            let about = file.metadata().with_context(|| format!("looking at {option}"))?;
            let Some(inode) = inode(&about) else { continue };
            if let Some((other, _)) = known.iter().find(|(_, theirs)| *theirs == inode) {
                return Err(bad_input(format!("{option}: {other} is the same file: name another")));
            }
            known.push((option, inode));
            regular.push((option, file));
        }
        for (option, file) in regular {
            file.set_len(0).with_context(|| format!("emptying {option}"))?;
        }
        let report = request.report.clone().zip(report);
        if let Some((path, _)) = &report {
            remove_pictures(path)?;
        }
        Ok(Self { trace, serial, report })
    }

    /// Writes the report, and a picture of each teardown beside it if it is a file like others: `NAME.VM.NUMBER.svg`.
    ///
    /// # Errors
    ///
    /// What cannot be written.
    pub fn write_report(&mut self, verdict: &Verdict) -> Result<()> {
        let Some((path, file)) = &mut self.report else { return Ok(()) };
        let json = verdict.file().to_json()?;
        file.write_all(json.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
        if file.metadata()?.is_file() { draw_teardowns(path, &verdict.report) } else { Ok(()) }
    }
}

/// Opens and empties the one file that a command leaves, which `option` names.
///
/// # Errors
///
/// Bad input, if it cannot be written.
pub fn open_alone(option: &str, path: Option<&Path>) -> Result<Option<File>> {
    let file = open(option, path)?;
    if let Some(file) = file.as_ref().filter(|file| file.metadata().is_ok_and(|it| it.is_file())) {
        file.set_len(0).with_context(|| format!("emptying {option}"))?;
    }
    Ok(file)
}

fn open(option: &str, path: Option<&Path>) -> Result<Option<File>> {
    let Some(path) = path else { return Ok(None) };
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    file.map(Some).map_err(|error| {
        bad_input(format!(
            "{option} {}: {error}: name a file that can be written, in a folder that exists",
            path.display()
        ))
    })
}

/// What tells a file from all others: its file system and its number there.
type Inode = (u64, u64);

/// That of a regular file; of others it does not matter who else has them.
fn inode(about: &Metadata) -> Option<Inode> {
    about.is_file().then(|| (about.dev(), about.ino()))
}

fn draw_teardowns(path: &Path, report: &Report) -> Result<()> {
    for vm in &report.vms {
        for (number, teardown) in vm.teardowns.iter().enumerate() {
            let picture = path.with_extension(format!("{}.{}.svg", vm.name, number + 1));
            std::fs::write(&picture, timeline::svg(&vm.name, teardown))
                .with_context(|| format!("writing {}", picture.display()))?;
        }
    }
    Ok(())
}

/// Removes what [`draw_teardowns`] has put beside a report at `path`.
fn remove_pictures(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let Ok(entries) = std::fs::read_dir(folder.unwrap_or(Path::new("."))) else { return Ok(()) };
    for picture in entries.flatten().map(|entry| entry.path()).filter(|entry| drawn(path, entry)) {
        std::fs::remove_file(&picture)
            .with_context(|| format!("removing {} of an earlier run", picture.display()))?;
    }
    Ok(())
}

/// Whether `picture` has the name of one that is drawn beside a report at `path`.
fn drawn(path: &Path, picture: &Path) -> bool {
    let of = || {
        let report = path.file_stem()?.to_str()?;
        let name = picture.file_name()?.to_str()?.strip_prefix(report)?.strip_prefix('.')?;
        let (vm, number) = name.strip_suffix(".svg")?.rsplit_once('.')?;
        Some(platform::name::parse(vm).is_ok() && number.parse::<u32>().is_ok())
    };
    of().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn outputs(folder: &Path, report: &str, trace: &str) -> Result<Outputs> {
        let arguments = ["--report", report, "--trace", trace];
        let mut request = crate::request::tests::request(&arguments).unwrap();
        request.report = request.report.map(|path| folder.join(path));
        request.trace = request.trace.map(|path| folder.join(path));
        Outputs::open(&request)
    }

    #[test]
    fn nothing_of_an_earlier_run_stays() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["r.json", "r.rogue.1.svg", "t", "r.svg", "r.plan.svg", "s.rogue.1.svg"];
        for name in files {
            std::fs::write(folder.path().join(name), "{\"verdict\":\"pass\"}").unwrap();
        }
        outputs(folder.path(), "r.json", "t").unwrap();
        let length = |name: &str| std::fs::metadata(folder.path().join(name)).ok().map(|m| m.len());
        assert_eq!(
            files.map(|name| length(name).map(|length| length == 0)),
            [Some(true), None, Some(true), Some(false), Some(false), Some(false)]
        );
    }

    #[test]
    fn what_cannot_be_written_is_refused_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("old");
        std::fs::write(&old, "old").unwrap();
        for (report, trace, expected) in [
            ("/proc/x.json", "old", "--report /proc/x.json: "),
            ("old", "/nonexistent/t", "--trace /nonexistent/t: "),
            ("old", "/", "--trace /: "),
            ("old", "./old", "--report: --trace is the same file: name another"),
        ] {
            let error = outputs(folder.path(), report, trace).unwrap_err();
            assert_eq!(Exit::of(&error), Exit::BadInput);
            assert!(error.to_string().starts_with(expected), "{error}");
            assert_eq!(std::fs::read(&old).unwrap(), b"old");
        }
        outputs(folder.path(), "/dev/null", "/dev/null").unwrap();
        let error = open_alone("--json", Some(Path::new("/nonexistent/x"))).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::BadInput);
        assert!(error.to_string().starts_with("--json /nonexistent/x: "), "{error}");
        open_alone("--json", Some(&old)).unwrap();
        assert_eq!(std::fs::read(&old).unwrap(), b"");
    }
}
