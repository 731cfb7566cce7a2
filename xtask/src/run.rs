//! A run: QEMU started, listened to, told what the operator wants, and ended in time.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use evidence::memory::RamFile;
use evidence::report::Collector;
use evidence::{Case, Testimony, Trace, Verdict, testimony, trace, verdict};
use platform::operator;
use platform::report::{Cause, Name};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::SIGBUS;

use crate::exit::{Exit, bad_input};
use crate::frames;
use crate::interrupt;
use crate::linux::LastWrite;
use crate::machine::RAM_BASE;
use crate::outputs::Outputs;
use crate::prepare::{self, Prepared};
use crate::refusal::{self, Refusal};
use crate::request::{Action, Request, When};
use crate::silence::{self, Life};

/// How often it is looked whether QEMU has ended.
const POLL: Duration = Duration::from_millis(20);
/// How long EL2 has to report when the time limit has passed.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How many of QEMU's own messages are kept for when it fails.
const MESSAGES: usize = 40;
/// How many console lines are kept.
const TRANSCRIPT: usize = 100_000;
/// The longest console line that is kept in one piece.
const MAX_LINE: usize = 16 * 1024;

/// What became of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How the command ends.
    pub exit: Exit,
    /// The verdict.
    pub verdict: Verdict,
    /// What the guests said.
    pub testimony: Testimony,
    /// What QEMU's SMMU did.
    pub trace: Trace,
    /// The console, line by line.
    pub console: Vec<String>,
    /// How long QEMU ran.
    pub duration: Duration,
    /// Whether the report is where it was to be.
    pub written: Result<()>,
}

/// Boots what was asked for, judges, and writes the report.
///
/// # Errors
///
/// What keeps the run from starting; a run that went wrong is an [`Outcome`].
pub fn run(request: &Request) -> Result<Outcome> {
    let outputs = Outputs::open(request)?;
    boot(request, &prepare::prepare(request)?, outputs)
}

/// Boots what was prepared, judges, and writes the report.
///
/// # Errors
///
/// As [`run`].
pub fn run_prepared(request: &Request, prepared: &Prepared) -> Result<Outcome> {
    boot(request, prepared, Outputs::open(request)?)
}

fn boot(request: &Request, prepared: &Prepared, mut outputs: Outputs) -> Result<Outcome> {
    let recorded = record(request, prepared, &mut outputs)?;
    let refusal = recorded.refusal(request, prepared);
    let mut host = recorded.findings(request, prepared, refusal.as_ref());
    let (report, _) = recorded.report.finish();
    host.extend(prepared.disks.iter().filter_map(|disk| {
        let vm = prepared.facts.vms.get(disk.vm).and_then(|vm| report.vm(&vm.name));
        disk.check(last_write(vm)).err()
    }));
    let ram = RamFile { path: prepared.machine.memory_file.clone(), base: RAM_BASE };
    let verdict = verdict::judge(&Case {
        machine: &prepared.facts,
        testimony: &recorded.testimony,
        report: &recorded.report,
        trace: &recorded.trace,
        ram: Some(&ram),
        smmu_text: prepared.smmu_text,
        host: &host,
    });
    let written = outputs.write_report(&verdict);
    if let Some(Refusal { why, asked: true }) = refusal {
        return Err(bad_input(why));
    }
    let exit = match (&recorded.cut, verdict.pass && written.is_ok()) {
        (Some(Cut::Time), _) => Exit::TimedOut,
        (None, true) => Exit::Pass,
        _ => Exit::Fail,
    };
    let Recorded { testimony, trace, console, duration, .. } = recorded;
    Ok(Outcome { exit, verdict, testimony, trace, console, duration, written })
}

/// How far a VM came with what it writes to its disks: whoever is ended by others may be in the middle of it.
fn last_write(vm: Option<&evidence::report::Vm>) -> LastWrite {
    match vm.and_then(|vm| vm.teardowns.last()) {
        Some(last) if last.cause == Cause::Operator => LastWrite::CutShort,
        _ => LastWrite::Done,
    }
}

/// What was seen and heard while QEMU ran.
struct Recorded {
    testimony: Testimony,
    report: Collector,
    trace: Trace,
    console: Vec<String>,
    /// QEMU's own messages.
    messages: Vec<String>,
    /// What could not be read or written.
    failures: Vec<String>,
    /// Whether EL2 has shown itself.
    alive: bool,
    /// The actions that the operator did not come to, by who wanted them.
    left: Vec<String>,
    status: ExitStatus,
    cut: Option<Cut>,
    duration: Duration,
}

impl Recorded {
    /// Why nothing ran, if QEMU or EL2 would not run it.
    fn refusal(&self, request: &Request, prepared: &Prepared) -> Option<Refusal> {
        let silence = |after| refusal::silence(request, after, &self.console);
        match (&self.cut, self.status.code()) {
            (Some(Cut::Silence), _) => Some(silence(Some(self.duration))),
            (Some(Cut::Time | Cut::Signal(_)), _) | (None, None) => None,
            (None, Some(code)) if code != 0 => {
                let nothing = self.console.is_empty() && !self.trace.has_guest();
                nothing.then(|| refusal::by_qemu(&self.messages))
            }
            _ if request.native => None,
            _ if !self.alive => Some(silence(None)),
            // Whoever refuses has nothing to report; once guests run, what goes wrong is no refusal.
            _ if self.report.finish().1 == Some(evidence::report::Error::Missing) => {
                let said = self.console.iter().find_map(|line| refusal::said(line))?;
                Some(refusal::by_el2(said, request, &prepared.plan))
            }
            _ => None,
        }
    }

    /// What is wrong with the run itself.
    fn findings(
        &self,
        request: &Request,
        prepared: &Prepared,
        refusal: Option<&Refusal>,
    ) -> Vec<String> {
        let mut findings: Vec<String> = refusal.iter().map(|refusal| refusal.why.clone()).collect();
        match &self.cut {
            Some(Cut::Time) => {
                let limit = request.timeout.unwrap_or_default().as_secs();
                findings.push(format!("the time limit of {limit} s has passed"));
                if !(self.alive || request.native || request.gdb) {
                    let silence = refusal::silence(request, Some(self.duration), &self.console);
                    findings.push(silence.why);
                }
            }
            Some(Cut::Signal(signal)) => findings.push(format!("interrupted by {signal}")),
            Some(Cut::Silence) => {}
            None => {
                if !self.status.success() && refusal.is_none() {
                    let memory = &prepared.machine.memory_file;
                    findings.push(ended(self.status, memory, &self.messages));
                }
                findings.extend(self.left.iter().map(|who| format!("{who}: the run ended before")));
            }
        }
        findings.extend(self.failures.iter().cloned());
        findings
    }
}

/// Why a run ends that has not come to its end.
enum Cut {
    /// The time limit has passed.
    Time,
    /// This program was asked to end by a signal of that name.
    Signal(&'static str),
    /// EL2 gives no sign of life.
    Silence,
}

/// QEMU, which does not outlive this, nor does what it has started: it may be a script.
struct Process {
    child: Child,
    /// Its process group, if it has one of its own.
    group: Option<Pid>,
}

impl Process {
    fn start(command: &mut Command, own_group: bool) -> std::io::Result<Self> {
        if own_group {
            command.process_group(0);
        }
        let child = command.spawn()?;
        let group = own_group.then(|| Pid::from_child(&child));
        Ok(Self { child, group })
    }

    /// Ends all of it that has not ended yet.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        // Both fail if there is nothing left, which is what they are for.
        if let Some(group) = self.group.take() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.kill();
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It does not matter any more how it ended.
        let _ = self.end();
    }
}

fn record(request: &Request, prepared: &Prepared, outputs: &mut Outputs) -> Result<Recorded> {
    let machine = &prepared.machine;
    let socket = machine.wires.report.as_deref();
    let listener =
        socket.map(UnixListener::bind).transpose().context("making the socket for EL2's UART")?;
    let mut command = prepared.qemu.command();
    command.args(machine.arguments()).args(trace::qemu_arguments());
    command.stdin(if request.interactive { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // What the terminal sends to everybody is not for QEMU: it is asked for EL2's report first.
    let mut qemu = Process::start(&mut command, interrupt::hold())
        .with_context(|| format!("starting {}", prepared.qemu.program.display()))?;
    let started = Instant::now();
    if request.gdb && !request.quiet {
        note!("QEMU waits for a debugger on TCP port 1234.");
    }

    let (heard, said) = channel();
    let life = Life::default();
    let console = Console::new(request, prepared, outputs.serial.take(), heard, life.clone());
    let console = spawn(qemu.child.stdout.take(), |stdout: ChildStdout| console.listen(stdout))?;
    let tracer = Tracer::new(outputs.trace.take(), life.clone());
    let tracer = spawn(qemu.child.stderr.take(), |stderr: ChildStderr| tracer.listen(stderr))?;
    let watch = Watch { request, life: &life, started };
    let uart =
        listener.map(|listener| connect(&listener, &mut qemu.child, &watch)).transpose()?.flatten();
    let (reports, reported) = channel();
    let reader = uart.as_ref().map(UnixStream::try_clone).transpose()?;
    let alive = life.clone();
    let collector = reader.map(|uart| std::thread::spawn(move || collect(uart, &reports, &alive)));
    let mut operator = Operator { uart, terminal: None };
    if let Some(stdin) = qemu.child.stdin.take() {
        let terminal =
            Terminal { native: request.native, typed: type_lines(), guest: type_for(stdin) };
        operator.terminal = Some(terminal);
    }

    let sender = match &machine.wires.network {
        Some(wire) => {
            Some(frames::Sender::start(wire, prepared.facts.nonce().unwrap_or_default())?)
        }
        None => None,
    };
    let mut left: Vec<&Action> = request.actions.iter().collect();
    let cut = supervise(&watch, &mut qemu.child, &mut operator, &reported, &said, &mut left)?;
    drop(sender);
    // If it has just ended by itself, that is as good.
    let status = qemu.end().context("waiting for QEMU")?;
    let duration = started.elapsed();

    let console = join(console)?;
    let tracer = join(tracer)?;
    let report = collector.map(join).transpose()?.unwrap_or_default();
    Ok(Recorded {
        testimony: console.testimony,
        report,
        trace: tracer.trace,
        console: console.transcript,
        messages: tracer.messages,
        failures: console.failure.into_iter().chain(tracer.failure).collect(),
        alive: life.is_shown(),
        left: left.iter().map(|action| action.origin.clone()).collect(),
        status,
        cut,
        duration,
    })
}

/// How QEMU ended that should not have.
fn ended(status: ExitStatus, memory: &Path, messages: &[String]) -> String {
    let mut text = match status.signal() {
        Some(SIGBUS) => format!(
            "QEMU was killed by SIGBUS, as when there is no room for the machine's memory in {}: set TMPDIR to a \
             folder that has room",
            memory.display()
        ),
        Some(signal) => format!("QEMU was killed by {}", interrupt::name(signal)),
        None => format!("QEMU ended with status {}", status.code().unwrap_or_default()),
    };
    for message in messages {
        text += "; ";
        text += message;
    }
    text
}

fn spawn<S: Send + 'static, T: Send + 'static>(
    stream: Option<S>,
    listen: impl FnOnce(S) -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let stream = stream.ok_or_else(|| anyhow!("QEMU was started without its streams"))?;
    Ok(std::thread::spawn(move || listen(stream)))
}

fn join<T>(thread: JoinHandle<T>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread that listened to QEMU panicked"))
}

/// When a run has to end that does not end by itself.
struct Watch<'a> {
    request: &'a Request,
    life: &'a Life,
    started: Instant,
}

impl Watch<'_> {
    /// Why it has to end now.
    fn cut(&self, qemu: &Child) -> Option<Cut> {
        let elapsed = self.started.elapsed();
        if let Some(signal) = interrupt::caught() {
            return Some(Cut::Signal(signal));
        }
        if self.request.timeout.is_some_and(|timeout| elapsed >= timeout) {
            return Some(Cut::Time);
        }
        // Whoever debugs or types may have stopped the machine.
        let Request { native, gdb, interactive, patience, .. } = *self.request;
        let awaited = !(native || gdb || interactive || self.life.is_shown());
        let silent =
            awaited && silence::is_over(patience, elapsed, silence::processor_time(qemu.id()));
        silent.then_some(Cut::Silence)
    }
}

/// Waits for QEMU to connect EL2's UART; `None` if it ends instead, or the run has to.
fn connect(
    listener: &UnixListener,
    qemu: &mut Child,
    watch: &Watch<'_>,
) -> Result<Option<UnixStream>> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(Some(stream));
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                return Err(error.into());
            }
            Err(_) if qemu.try_wait()?.is_some() || watch.cut(qemu).is_some() => return Ok(None),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Carries out what the operator wants, and takes it from what is `left`, until QEMU ends or has to, in which case EL2
/// is asked for its report first. Returns why it has to.
fn supervise<'a>(
    watch: &Watch<'a>,
    qemu: &mut Child,
    operator: &mut Operator,
    reported: &Receiver<()>,
    said: &Receiver<usize>,
    left: &mut Vec<&'a Action>,
) -> Result<Option<Cut>> {
    let cut = loop {
        if qemu.try_wait()?.is_some() {
            return Ok(None);
        }
        let elapsed = watch.started.elapsed();
        let heard: Vec<&Action> =
            said.try_iter().map(|index| &watch.request.actions[index]).collect();
        left.retain(|action| {
            let due = action.delay().is_some_and(|after| after <= elapsed)
                || heard.iter().any(|heard| std::ptr::eq(*heard, *action));
            if due {
                operator.order(&action.command);
            }
            !due
        });
        operator.obey_terminal();
        if let Some(cut) = watch.cut(qemu) {
            break cut;
        }
        std::thread::sleep(POLL);
    };
    while reported.try_recv().is_ok() {}
    operator.order(&operator::Command::Report);
    if operator.uart.is_some() && !matches!(cut, Cut::Silence) {
        // A complete report, silence, or QEMU's end: whichever comes, the run is over.
        let _ = reported.recv_timeout(LAST_WORDS);
    }
    Ok(Some(cut))
}

/// The operator: orders go to EL2 on its own UART, what is typed otherwise to guest 0's console.
struct Operator {
    uart: Option<UnixStream>,
    terminal: Option<Terminal>,
}

/// Whoever sits at this program's own input.
struct Terminal {
    /// Whether there is nobody but the guest.
    native: bool,
    /// The lines as they come.
    typed: Receiver<String>,
    /// Takes lines for guest 0.
    guest: Sender<String>,
}

impl Operator {
    fn order(&mut self, command: &operator::Command) {
        if let Some(uart) = &mut self.uart {
            // If it fails, QEMU has ended, and that is noticed anyway.
            let _ = writeln!(uart, "{command}");
        }
    }

    fn obey_terminal(&mut self) {
        let Some(terminal) = &self.terminal else { return };
        let mut orders = Vec::new();
        for line in terminal.typed.try_iter() {
            match Addressee::of(&line, terminal.native) {
                // Nobody takes it once QEMU has ended.
                Addressee::Guest(text) => _ = terminal.guest.send(text.to_owned()),
                Addressee::Operator(text) => match text.parse() {
                    Ok(command) => orders.push(command),
                    Err(error) => note!("{error}"),
                },
            }
        }
        orders.iter().for_each(|command| self.order(command));
    }
}

/// Whom a typed line is for.
#[derive(Debug, PartialEq, Eq)]
enum Addressee<'a> {
    /// Guest 0, which reads this on its console.
    Guest(&'a str),
    /// The operator, whose command this is.
    Operator(&'a str),
}

impl<'a> Addressee<'a> {
    /// A line after `!` is a command, unless a second `!` says that it is the guest's. Natively there is only the guest.
    fn of(line: &'a str, native: bool) -> Self {
        match line.strip_prefix('!') {
            Some(rest) if !native && rest.starts_with('!') => Self::Guest(rest),
            Some(rest) if !native => Self::Operator(rest),
            _ => Self::Guest(line),
        }
    }
}

/// Types lines on the console behind `stdin`, which takes them as the guest reads.
fn type_for(mut stdin: ChildStdin) -> Sender<String> {
    let (sender, receiver) = channel::<String>();
    std::thread::spawn(move || {
        for line in receiver {
            if writeln!(stdin, "{line}").and_then(|()| stdin.flush()).is_err() {
                break;
            }
        }
    });
    sender
}

/// Reads the terminal for as long as this program runs.
fn type_lines() -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Collects EL2's report; `complete` hears of every complete one. Nobody else than EL2 writes there.
fn collect(uart: UnixStream, complete: &Sender<()>, life: &Life) -> Collector {
    let mut collector = Collector::new();
    for line in lines(uart) {
        life.show();
        if collector.line(&line) && collector.is_finished() {
            // Nobody waits once the run is over.
            let _ = complete.send(());
        }
    }
    collector
}

/// The lines of a stream, whatever bytes they are made of, until it ends.
fn lines(stream: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(stream)
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned())
}

/// Listens to the console that all guests share.
struct Console {
    testimony: Testimony,
    /// Natively the only guest has the console to itself.
    native: Option<String>,
    serial: Option<BufWriter<File>>,
    /// What the operator waits for, and who tells him by the number of his action, once.
    awaited: Vec<(usize, Name, String)>,
    heard: Sender<usize>,
    show: bool,
    line: Vec<u8>,
    transcript: Vec<String>,
    life: Life,
    failure: Option<String>,
}

impl Console {
    fn new(
        request: &Request,
        prepared: &Prepared,
        serial: Option<File>,
        heard: Sender<usize>,
        life: Life,
    ) -> Self {
        let awaited = request.actions.iter().enumerate().filter_map(|(index, action)| {
            let When::Said { vm, text } = &action.when else { return None };
            Some((index, vm.clone(), text.clone()))
        });
        let mut testimony = Testimony::new();
        for vm in &prepared.facts.vms {
            for text in &vm.expect {
                testimony.expect(&vm.name, text);
            }
        }
        let native = prepared.facts.vms.first().filter(|_| request.native);
        Self {
            testimony,
            native: native.map(|vm| vm.name.clone()),
            serial: serial.map(BufWriter::new),
            awaited: awaited.collect(),
            heard,
            show: !request.quiet,
            line: Vec::new(),
            transcript: Vec::new(),
            life,
            failure: None,
        }
    }

    fn listen(mut self, mut stdout: ChildStdout) -> Self {
        let mut chunk = [0; 4096];
        loop {
            match stdout.read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => self.hear(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failure.get_or_insert(format!("cannot read the console: {error}"));
                    break;
                }
            }
        }
        if !self.line.is_empty() {
            self.end_line(true);
        }
        if let Some(Err(error)) = self.serial.as_mut().map(Write::flush) {
            self.failure.get_or_insert(format!("cannot write --serial: {error}"));
        }
        self
    }

    fn hear(&mut self, bytes: &[u8]) {
        if self.show {
            let mut stdout = std::io::stdout().lock();
            // A terminal that is gone does not end the run.
            let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
        }
        for &byte in bytes {
            if byte == b'\n' || self.line.len() == MAX_LINE {
                self.end_line(byte == b'\n');
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
    }

    /// Takes what came of a line; `ended` says whether there is no more of it.
    fn end_line(&mut self, ended: bool) {
        let bytes = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned();
        let guest_spoke = match &self.native {
            Some(name) => {
                self.testimony.said(name, &testimony::printed(&bytes), ended);
                true
            }
            None => match self.testimony.line(&line) {
                Some((vm, text)) => {
                    let heard = &self.heard;
                    self.awaited.retain(|(index, of, awaited)| {
                        let now = of.as_str() == vm && text.contains(awaited);
                        // A run that is over obeys nobody.
                        !(now && heard.send(*index).is_ok())
                    });
                    true
                }
                None => false,
            },
        };
        if guest_spoke || line.starts_with("[el2] ") {
            self.life.show();
        }
        if let Some(serial) = self.serial.as_mut().filter(|_| guest_spoke)
            && let Err(error) = writeln!(serial, "{line}")
        {
            self.failure.get_or_insert(format!("cannot write --serial: {error}"));
        }
        if self.transcript.len() < TRANSCRIPT {
            self.transcript.push(line);
        }
    }
}

/// Listens to QEMU's SMMU trace and its messages.
struct Tracer {
    trace: Trace,
    file: Option<BufWriter<File>>,
    messages: Vec<String>,
    life: Life,
    failure: Option<String>,
}

impl Tracer {
    fn new(file: Option<File>, life: Life) -> Self {
        let file = file.map(BufWriter::new);
        Self { trace: Trace::new(), file, messages: Vec::new(), life, failure: None }
    }

    fn listen(mut self, stderr: ChildStderr) -> Self {
        for line in lines(stderr) {
            if self.trace.line(&line) {
                if self.trace.has_guest() {
                    self.life.show();
                }
                if let Some(Err(error)) = self.file.as_mut().map(|file| writeln!(file, "{line}")) {
                    self.failure.get_or_insert(format!("cannot write --trace: {error}"));
                }
            } else if self.messages.len() < MESSAGES {
                self.messages.push(line);
            }
        }
        if let Some(Err(error)) = self.file.as_mut().map(Write::flush) {
            self.failure.get_or_insert(format!("cannot write --trace: {error}"));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_qemu_ended_is_told_with_its_signal() {
        let memory = Path::new("/t/ram");
        let told = |status| ended(ExitStatus::from_raw(status), memory, &["why".into()]);
        assert_eq!(told(0x100), "QEMU ended with status 1; why");
        assert_eq!(told(9), "QEMU was killed by SIGKILL; why");
        let no_room = told(7);
        assert!(no_room.starts_with("QEMU was killed by SIGBUS, as when there is no room"));
        assert!(no_room.contains("/t/ram: set TMPDIR"), "{no_room}");
    }

    #[test]
    fn a_typed_line_is_the_guests_unless_it_is_a_command() {
        let of = |line| Addressee::of(line, false);
        assert_eq!(of("ls -l"), Addressee::Guest("ls -l"));
        assert_eq!(of(""), Addressee::Guest(""));
        assert_eq!(of("!kill linux"), Addressee::Operator("kill linux"));
        assert_eq!(of("!!ls"), Addressee::Guest("!ls"));
        assert_eq!(Addressee::of("!ls", true), Addressee::Guest("!ls"));
    }
}
