//! What scripts rely on: exit codes, and that bad input is refused with one clear error before anything is fetched,
//! built or started.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Runs xtask where it can find no QEMU, fetch nothing and build nothing: whatever goes beyond its input fails
/// otherwise than with exit code 2.
fn xtask(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments).current_dir(folder).env_clear();
    command.env("PATH", "/nonexistent").env("CARGO", "/nonexistent/cargo");
    command.env("PORTCULLIS_CACHE", folder.join("cache"));
    command
}

/// A folder with a kernel, an empty file, a damaged kernel and the given manifests.
fn folder(manifests: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let files =
        [("kernel", &b"\x1f\x20\x03\xd5"[..]), ("empty", b""), ("damaged.gz", b"\x1f\x8b\x08\x00")];
    let manifests = manifests.iter().map(|(name, text)| (*name, text.as_bytes()));
    for (name, bytes) in files.into_iter().chain(manifests) {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

#[track_caller]
fn refused(manifests: &[(&str, &str)], arguments: &[&str], expected: &str) {
    let folder = folder(manifests);
    let output = xtask(folder.path(), arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    assert!(stderr.contains(expected), "{arguments:?}\n  says     {stderr}\n  expected {expected}");
    assert_eq!(stderr.matches("error:").count(), 1, "one clear error: {stderr}");
    assert!(!folder.path().join("cache").exists(), "{arguments:?} fetched something");
}

const VICTIM: &str = "name = \"a\"\nbuiltin = \"victim\"\n";

#[test]
fn bad_options_are_refused() {
    for (arguments, expected) in [
        (&[][..], "Usage: cargo xtask"),
        (&["nonsense"], "unrecognized subcommand"),
        (&["qemu", "--nonsense"], "unexpected argument"),
        (&["qemu", "--smp", "many"], "invalid value 'many'"),
        (&["qemu", "--smmu-stage", "3"], "invalid value '3'"),
        (&["qemu", "--linux", "--kernel", "kernel"], "cannot be used with"),
        (&["qemu", "--kernel", "nowhere"], "--kernel nowhere: "),
        (&["qemu", "--kernel", "empty"], "--kernel empty: the file is empty"),
        (
            &["qemu", "--kernel", "damaged.gz"],
            "--kernel damaged.gz: the gzip data is damaged or cut off",
        ),
        (&["qemu", "--kernel", "kernel", "--memory", "2M"], "--memory: \"2M\" is too little"),
        (&["qemu", "--scenario", "any"], "there is no such one"),
        (&["qemu", "--device", "virtio-blk-pci,drive=d"], "add iommu_platform=on"),
        (&["qemu", "--device", "edu,addr=2", "--device", "edu,addr=2"], "addr=2.0 is taken by"),
        (&["qemu", "--vm", "nowhere.toml"], "nowhere.toml: "),
        (&["soak", "nonsense"], "there is no soak named `nonsense`"),
        (&["bench", "--json", "nowhere/b.json"], "--json nowhere/b.json: "),
        (&["fuzz", "nonsense"], "there is no fuzz target named `nonsense`"),
        (&["test", "--host", "--qemu"], "cannot be used with"),
        (&["setup", "--mirror", "nonsense"], "is not a URI"),
    ] {
        if arguments.is_empty() {
            let folder = folder(&[]);
            let output = xtask(folder.path(), arguments);
            assert_eq!(output.status.code(), Some(2));
            assert!(String::from_utf8_lossy(&output.stderr).contains(expected));
        } else {
            refused(&[], arguments, expected);
        }
    }
}

#[test]
fn bad_manifests_are_refused_by_line_and_key() {
    for (text, expected) in [
        (
            "name = \"a\"\nbuiltin = \"victim\"\ncolour = \"red\"\n",
            "a.toml:3: colour: there is no such key here",
        ),
        (
            "name = \"a\"\nbuiltin = \"victim\"\ncpus = \"two\"\n",
            "a.toml:3: cpus: invalid type: string \"two\"",
        ),
        (
            "name = \"a\"\nbuiltin = \"victim\"\nmemory = \"1000\"\n",
            "a.toml:3: memory: \"1000\" is not a size",
        ),
        ("name = \"a\"\nkernel = \"nowhere\"\n", "a.toml:2: kernel: nowhere: "),
        ("name = \"a\"\nkernel = \"damaged.gz\"\n", "a.toml:2: kernel: the gzip data is damaged"),
        (
            "name = \"a\"\nkernel = \"kernel\"\ninitrd = \"empty\"\n",
            "a.toml:3: initrd: the file is empty",
        ),
        (
            "name = \"a\"\nbuiltin = \"victim\"\n[[pci]]\naddress = \"2.0\"\n",
            "a.toml:4: pci[0].address: not a PCI",
        ),
    ] {
        refused(&[("a.toml", text)], &["qemu", "--vm", "a.toml"], expected);
    }
    let unknown = "name = \"a\"\nkernel = \"kernel\"\n[[pci]]\naddress = \"00:07.0\"\n";
    refused(
        &[("a.toml", unknown)],
        &["qemu", "--vm", "a.toml"],
        "a.toml:4: pci[0].address: 00:07.0 has no device",
    );
    let restart = format!("{VICTIM}on-exit = \"restart\"\n");
    refused(
        &[("a.toml", &restart)],
        &["qemu", "--vm", "a.toml"],
        "a.toml:3: on-exit: edu 00:01.0 of VM a has no reset",
    );
}

#[test]
fn overlaps_between_manifests_are_refused_with_both_places() {
    let both = &["qemu", "--vm", "a.toml", "--vm", "b.toml"];
    let b = VICTIM.replace("\"a\"", "\"b\"");
    for (first, second, expected) in [
        (
            VICTIM.to_owned(),
            VICTIM.to_owned(),
            "b.toml:1: name: the name a is taken by the VM of a.toml:1: name",
        ),
        (
            format!("{VICTIM}cpus = [0, 1]\n"),
            format!("{b}cpus = [1]\n"),
            "b.toml:3: cpus: CPU 1 belongs to VM a already (a.toml:3: cpus)",
        ),
        (
            format!("{VICTIM}[[pci]]\naddress = \"00:05.0\"\n"),
            format!("{b}[[pci]]\naddress = \"00:05.0\"\n"),
            "b.toml:4: pci[0].address: 00:05.0 belongs to VM a already (a.toml:4: pci[0].address)",
        ),
        (
            format!("{VICTIM}[[pci]]\naddress = \"00:05.0\"\n"),
            format!("{b}[[pci]]\naddress = \"00:09.0\"\n"),
            "b.toml:4: pci[0].address: 00:05.0 of VM a and 00:09.0 of VM b share an interrupt line",
        ),
    ] {
        refused(&[("a.toml", &first), ("b.toml", &second)], both, expected);
    }
}

#[test]
fn a_missing_prerequisite_has_its_own_exit_code() {
    let folder = folder(&[]);
    let output = xtask(folder.path(), &["qemu", "--kernel", "kernel"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("next: "), "it says what to do next: {stderr}");
}

/// The search path that these tests have leads nowhere.
#[test]
fn setup_knows_the_programs_that_it_cannot_fetch() {
    let folder = folder(&[]);
    let output = xtask(folder.path(), &["setup", "--check"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for (what, how) in [("a C compiler", "gcc"), ("a C++ compiler", "g++"), ("git", "git")] {
        let missing = |line: &str| line.starts_with("missing") && line.contains(what);
        let line = said.lines().find(|line| missing(line)).expect("a line for each");
        assert!(line.contains(&format!("(Debian: {how})")), "{line}");
    }
    let output = xtask(folder.path(), &["test", "--host"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("next: install one (Debian: gcc)"), "{said}");
}

#[test]
fn what_cannot_be_written_is_refused_first() {
    refused(
        &[],
        &["qemu", "--kernel", "kernel", "--report", "/proc/x.json"],
        "--report /proc/x.json: ",
    );
    refused(&[], &["qemu", "--kernel", "kernel", "--serial", "kernel/x"], "--serial kernel/x: ");
    let folder = folder(&[("a.toml", VICTIM)]);
    for (boots, file) in [("--kernel", "kernel"), ("--vm", "a.toml")] {
        let before = std::fs::read(folder.path().join(file)).unwrap();
        let output = xtask(folder.path(), &["qemu", boots, file, "--report", file]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(&format!("--report: {boots} is the same file")), "{stderr}");
        assert_eq!(std::fs::read(folder.path().join(file)).unwrap(), before);
    }
}

#[test]
fn a_report_of_an_earlier_run_does_not_outlive_the_start_of_the_next() {
    let folder = folder(&[("r.json", "{\"verdict\":\"pass\"}")]);
    let output = xtask(folder.path(), &["qemu", "--kernel", "kernel", "--report", "r.json"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(std::fs::read(folder.path().join("r.json")).unwrap(), b"");
}

#[test]
fn a_terminal_that_is_gone_changes_no_exit_code() {
    let folder = folder(&[]);
    for arguments in [&["setup", "--check"][..], &["qemu", "--kernel", "kernel"]] {
        let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
        let status = command(folder.path(), arguments).stdout(full()).stderr(full()).status();
        assert_eq!(status.unwrap().code(), Some(3), "{arguments:?}");
    }
}

/// What answers like QEMU and then starts what says nothing for long.
const SILENT: &str = r#"#!/bin/sh
case "$*" in
    *--version*) echo "QEMU emulator version 10.0.2" ;;
    *help*) echo "  cortex-a72" ;;
    *) sleep 120 & echo $! > started.new && mv started.new started && wait ;;
esac
"#;

/// Whether a process runs; one that has ended stays known until its parent asks.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_signal_ends_qemu_and_the_run_and_leaves_nothing() {
    let folder = folder(&[]);
    let place = folder.path().join("temporary");
    std::fs::create_dir(&place).unwrap();
    // A shell writes it: were it open for writing here, another test's fork could keep it busy for `exec`.
    let write = "printf %s \"$0\" > silent && chmod 755 silent";
    let mut sh = Command::new("sh");
    sh.args(["-c", write, SILENT]).current_dir(folder.path());
    assert!(sh.status().unwrap().success());
    let run = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["qemu", "--native", "--kernel", "kernel", "--qemu", "./silent", "--timeout", "120"])
        .current_dir(folder.path())
        .env("TMPDIR", &place)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let started = folder.path().join("started");
    for _ in 0..6000 {
        if started.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let qemu = std::fs::read_to_string(started).unwrap();
    let killed = Command::new("sh").arg("-c").arg(format!("kill -TERM {}", run.id())).status();
    assert!(killed.unwrap().success());
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("interrupted by SIGTERM"));
    assert_eq!(std::fs::read_dir(place).unwrap().count(), 0);
    for _ in 0..500 {
        if !runs(qemu.trim()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("what --qemu started lives on");
}

#[test]
fn help_is_no_error() {
    let folder = folder(&[]);
    let output = xtask(folder.path(), &["qemu", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("--smmu-stage") && said.contains("Exit codes: 0 pass, 1 fail"), "{said}");
}
