//! What is typed: at a shell of guest 0, and for the operator.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use xtask::workspace;

use crate::Test;

pub const TESTS: &[Test] = &[("linux::a_shell_is_typed_at", shell)];

/// How long each answer may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A shell in the place of Linux's `init` answers, more than its UART's FIFO holds arrives whole, and a command for the
/// operator ends the run.
fn shell() -> Result<()> {
    let mut qemu = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["run", "--quiet", "--package", "xtask", "--", "qemu", "--interactive", "--linux"])
        .args(["--append", "rdinit=/bin/busybox -- sh", "--timeout", "500"])
        .current_dir(workspace::root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let (Some(mut keyboard), Some(screen)) = (qemu.stdin.take(), qemu.stdout.take()) else {
        bail!("cargo has no pipes")
    };
    let (sender, shown) = channel();
    std::thread::spawn(move || {
        BufReader::new(screen).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok());
    });
    let typed = (|| {
        // Whether the shell reads already cannot be seen: its prompt has no line of its own.
        until(&shown, "[linux] answer=42", || Ok(writeln!(keyboard, "echo answer=$((6*7))")?))?;
        let long = "x".repeat(700);
        until(&shown, "[linux] length=700", || {
            Ok(writeln!(keyboard, "a={long}; echo length=${{#a}}")?)
        })?;
        let mut quiet = || Ok(());
        writeln!(keyboard, "!off nobody")?;
        until(&shown, "there is no VM nobody", &mut quiet)?;
        writeln!(keyboard, "!off linux")?;
        until(&shown, "linux: operator", &mut quiet)
    })();
    if typed.is_err() {
        // The run ends by itself then as well, but not as soon.
        let _ = writeln!(keyboard, "!off linux");
    }
    let status = qemu.wait()?;
    typed?;
    ensure!(status.code().is_some_and(|code| code != 124), "the operator did not end it: {status}");
    Ok(())
}

/// Does `again` every few seconds until a line contains `text`.
fn until(
    shown: &Receiver<String>,
    text: &str,
    mut again: impl FnMut() -> Result<()>,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut next = Instant::now();
    while Instant::now() < deadline {
        if Instant::now() >= next {
            again()?;
            next = Instant::now() + Duration::from_secs(5);
        }
        match shown.recv_timeout(Duration::from_millis(500)) {
            Ok(line) if line.contains(text) => return Ok(()),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("it ended before it printed {text:?}"),
        }
    }
    bail!("nobody printed {text:?}")
}
