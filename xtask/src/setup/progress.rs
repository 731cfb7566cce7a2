//! Progress on standard error, for work that a user would otherwise wonder about.

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often a long step says that it is still going on.
const INTERVAL: Duration = Duration::from_secs(5);

/// Where progress goes.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    quiet: bool,
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether it succeeded.
    pub success: bool,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
}

impl Outcome {
    /// Why a command failed, in one line: the first things it marked as errors, else the last it said.
    pub fn reason(&self) -> String {
        let lines = || self.errors.lines().chain(self.output.lines()).map(str::trim);
        let marked = ["E: ", "error: ", "dpkg-deb: error: "];
        let errors: Vec<_> = lines()
            .filter_map(|line| marked.iter().find_map(|mark| line.strip_prefix(mark)))
            // apt's summary of what it has said before.
            .filter(|line| !line.starts_with("Some index files failed"))
            .take(2)
            .collect();
        if !errors.is_empty() {
            return errors.join("; ");
        }
        let last = |text: &str| {
            text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(String::from)
        };
        last(&self.errors)
            .or_else(|| last(&self.output))
            .unwrap_or_else(|| "it gave no reason".into())
    }
}

impl Progress {
    /// Reports on standard error, unless `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Says what begins now.
    pub fn step(self, what: &str) {
        if !self.quiet {
            note!("setup: {what}...");
        }
    }

    /// Says something that is not a step.
    pub fn note(self, what: &str) {
        if !self.quiet {
            note!("setup: {what}");
        }
    }

    /// Runs a command to its end; every few seconds `status` says how far it is.
    ///
    /// `stdin` is what the command gets as standard input. The error is that the command could not be started.
    pub fn run(
        self,
        command: &mut Command,
        stdin: Stdio,
        status: impl Fn() -> String,
    ) -> io::Result<Outcome> {
        let mut last = Instant::now();
        finish(command.stdin(stdin), || {
            if last.elapsed() >= INTERVAL {
                last = Instant::now();
                self.note(&format!("  {}", status()));
            }
            Ok(())
        })
    }
}

/// Runs a command that has to end within `patience`; it gets no input. The error is that it could not be started or did not
/// end.
pub fn answer(command: &mut Command, patience: Duration) -> io::Result<Outcome> {
    let started = Instant::now();
    finish(command.stdin(Stdio::null()), || match started.elapsed() > patience {
        true => {
            let why = format!("no answer within {} s", patience.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        }
        false => Ok(()),
    })
}

/// Runs a command to its end, or until `go_on` refuses.
fn finish(command: &mut Command, mut go_on: impl FnMut() -> io::Result<()>) -> io::Result<Outcome> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let output = drain(child.stdout.take());
    let errors = drain(child.stderr.take());
    let success = loop {
        if let Some(code) = child.try_wait()? {
            break code.success();
        }
        if let Err(error) = go_on() {
            // It may have ended just now. Whoever has its pipes besides may go on.
            let _ = child.kill().and_then(|()| child.wait());
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Ok(Outcome {
        success,
        output: output.join().unwrap_or_default(),
        errors: errors.join().unwrap_or_default(),
    })
}

/// Reads a pipe to its end beside the waiting thread, so that a child never blocks on a full pipe.
fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A pipe that breaks ends the text; the exit status tells the rest.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(errors: &str) -> Outcome {
        Outcome {
            success: false,
            output: "Reading package lists...\n".into(),
            errors: errors.into(),
        }
    }

    #[test]
    fn the_reason_is_what_the_command_marked_as_such() {
        let text = "Get:1 x\nE: The repository is not signed.\nE: Some index files failed to download.\nN: See.\n";
        assert_eq!(outcome(text).reason(), "The repository is not signed.");
        assert_eq!(outcome("first\nlast\n\n").reason(), "last");
        assert_eq!(outcome("").reason(), "Reading package lists...");
    }

    #[test]
    fn a_command_that_does_not_answer_is_given_up() {
        let mut command = Command::new("sleep");
        let error = answer(command.arg("600"), Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let outcome = answer(Command::new("echo").arg("x"), Duration::from_secs(600)).unwrap();
        assert_eq!((outcome.success, &*outcome.output), (true, "x\n"));
    }

    #[test]
    fn a_command_with_much_output_ends() {
        let mut command = Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; echo no >&2; exit 3"]);
        let outcome = Progress::new(true).run(&mut command, Stdio::null(), String::new).unwrap();
        assert!(!outcome.success);
        assert_eq!(outcome.output.len(), 20_000 * 11);
        assert_eq!(outcome.errors, "no\n");
    }
}
