//! A run: QEMU started, listened to, told what the operator wants, and ended in time.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use evidence::memory::RamFile;
use evidence::report::Collector;
use evidence::timeline;
use evidence::{Case, Testimony, Trace, Verdict, trace, verdict};
use platform::operator::Command;
use platform::report::{Cause, Name};

use crate::exit::{Exit, bad_input};
use crate::frames;
use crate::linux::LastWrite;
use crate::machine::RAM_BASE;
use crate::prepare::{self, Prepared};
use crate::request::{Request, When};

/// How often it is looked whether QEMU has ended.
const POLL: Duration = Duration::from_millis(20);
/// How long EL2 has to report when the time limit has passed.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long QEMU has to connect EL2's UART.
const CONNECT: Duration = Duration::from_secs(30);
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
}

/// Boots what was asked for, judges, and writes the report.
///
/// # Errors
///
/// What keeps the run from starting; a run that went wrong is an [`Outcome`].
pub fn run(request: &Request) -> Result<Outcome> {
    run_prepared(request, &prepare::prepare(request)?)
}

/// Boots what was prepared, judges, and writes the report.
///
/// # Errors
///
/// As [`run`].
pub fn run_prepared(request: &Request, prepared: &Prepared) -> Result<Outcome> {
    let recorded = record(request, prepared)?;
    let mut host = recorded.host;
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
    if let Some(path) = &request.report {
        let json = verdict.file().to_json()?;
        std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
        draw_teardowns(path, &verdict.report)?;
    }
    let exit = match (recorded.timed_out, verdict.pass) {
        (true, _) => Exit::TimedOut,
        (false, true) => Exit::Pass,
        (false, false) => Exit::Fail,
    };
    let Recorded { testimony, trace, console, duration, .. } = recorded;
    Ok(Outcome { exit, verdict, testimony, trace, console, duration })
}

/// How far a VM came with what it writes to its disks: whoever is ended by others may be in the middle of it.
fn last_write(vm: Option<&evidence::report::Vm>) -> LastWrite {
    match vm.and_then(|vm| vm.teardowns.last()) {
        Some(last) if last.cause == Cause::Operator => LastWrite::CutShort,
        _ => LastWrite::Done,
    }
}

/// Puts a picture of each teardown beside the report at `path`: `NAME.VM.NUMBER.svg`.
fn draw_teardowns(path: &Path, report: &evidence::Report) -> Result<()> {
    for vm in &report.vms {
        for (number, teardown) in vm.teardowns.iter().enumerate() {
            let picture = path.with_extension(format!("{}.{}.svg", vm.name, number + 1));
            std::fs::write(&picture, timeline::svg(&vm.name, teardown))
                .with_context(|| format!("writing {}", picture.display()))?;
        }
    }
    Ok(())
}

/// What was seen and heard while QEMU ran.
struct Recorded {
    testimony: Testimony,
    report: Collector,
    trace: Trace,
    console: Vec<String>,
    host: Vec<String>,
    timed_out: bool,
    duration: Duration,
}

/// QEMU, which does not outlive this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what they are for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn record(request: &Request, prepared: &Prepared) -> Result<Recorded> {
    let machine = &prepared.machine;
    let socket = machine.wires.report.as_deref();
    let listener =
        socket.map(UnixListener::bind).transpose().context("making the socket for EL2's UART")?;
    let mut command = prepared.qemu.command();
    command.args(machine.arguments()).args(trace::qemu_arguments());
    command.stdin(if request.interactive { Stdio::piped() } else { Stdio::null() });
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| format!("starting {}", prepared.qemu.program.display()))?;
    let started = Instant::now();
    let mut qemu = Process(child);
    if request.gdb && !request.quiet {
        eprintln!("QEMU waits for a debugger on TCP port 1234.");
    }

    let (heard, said) = channel();
    let console = Console::new(request, prepared, heard)?;
    let console = spawn(qemu.0.stdout.take(), |stdout: ChildStdout| console.listen(stdout))?;
    let tracer = Tracer::new(request.trace.as_deref())?;
    let tracer = spawn(qemu.0.stderr.take(), |stderr: ChildStderr| tracer.listen(stderr))?;
    let uart = listener.map(|listener| connect(&listener, &mut qemu.0)).transpose()?.flatten();
    let (reports, reported) = channel();
    let reader = uart.as_ref().map(UnixStream::try_clone).transpose()?;
    let collector = reader.map(|uart| std::thread::spawn(move || collect(uart, &reports)));
    let mut operator = Operator { uart, terminal: None };
    if let Some(stdin) = qemu.0.stdin.take() {
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
    let timed_out = supervise(request, &mut qemu.0, &mut operator, &reported, &said, started)?;
    drop(sender);
    if timed_out {
        // If it has just ended by itself, that is as good.
        let _ = qemu.0.kill();
    }
    let status = qemu.0.wait().context("waiting for QEMU")?;
    let duration = started.elapsed();

    let console = join(console)?;
    let tracer = join(tracer)?;
    let report = collector.map(join).transpose()?.unwrap_or_default();
    let mut host = Vec::new();
    host.extend(console.failure.clone());
    host.extend(tracer.failure.clone());
    if timed_out {
        let limit = request.timeout.unwrap_or_default().as_secs();
        host.push(format!("the time limit of {limit} s has passed"));
    } else if !status.success() {
        if console.is_silent() && tracer.trace.lines() == 0 {
            return Err(bad_input(format!(
                "QEMU refuses the machine: {}",
                tracer.messages.join("\n  ")
            )));
        }
        host.push(format!("QEMU {}: {}", ended(status), tracer.messages.join("; ")));
    }
    Ok(Recorded {
        testimony: console.testimony,
        report,
        trace: tracer.trace,
        console: console.transcript,
        host,
        timed_out,
        duration,
    })
}

fn ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("ended with status {code}"),
        None => "was killed".into(),
    }
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

/// Waits for QEMU to connect EL2's UART; `None` if it ends instead.
fn connect(listener: &UnixListener, qemu: &mut Child) -> Result<Option<UnixStream>> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + CONNECT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(Some(stream));
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                return Err(error.into());
            }
            Err(_) if qemu.try_wait()?.is_some() => return Ok(None),
            Err(_) if Instant::now() > deadline => {
                return Err(anyhow!("QEMU does not connect EL2's UART"));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Carries out what the operator wants until QEMU ends or the time is over, in which case EL2 is asked for its report
/// first. Returns whether the time was over.
fn supervise(
    request: &Request,
    qemu: &mut Child,
    operator: &mut Operator,
    reported: &Receiver<()>,
    said: &Receiver<usize>,
    started: Instant,
) -> Result<bool> {
    let mut timed = request.actions.iter().filter(|action| action.delay().is_some()).peekable();
    loop {
        if qemu.try_wait()?.is_some() {
            return Ok(false);
        }
        let elapsed = started.elapsed();
        while let Some(action) =
            timed.next_if(|action| action.delay().is_some_and(|after| after <= elapsed))
        {
            operator.order(&action.command);
        }
        for index in said.try_iter() {
            operator.order(&request.actions[index].command);
        }
        operator.obey_terminal();
        if request.timeout.is_some_and(|timeout| elapsed >= timeout) {
            break;
        }
        std::thread::sleep(POLL);
    }
    while reported.try_recv().is_ok() {}
    operator.order(&Command::Report);
    if operator.uart.is_some() {
        // A complete report, silence, or QEMU's end: whichever comes, the run is over.
        let _ = reported.recv_timeout(LAST_WORDS);
    }
    Ok(true)
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
    fn order(&mut self, command: &Command) {
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
                    Err(error) => eprintln!("{error}"),
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

/// Collects EL2's report; `complete` hears of every complete one.
fn collect(uart: UnixStream, complete: &Sender<()>) -> Collector {
    let mut collector = Collector::new();
    for line in lines(uart) {
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
    failure: Option<String>,
}

impl Console {
    fn new(request: &Request, prepared: &Prepared, heard: Sender<usize>) -> Result<Self> {
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
        Ok(Self {
            testimony,
            native: native.map(|vm| vm.name.clone()),
            serial: request.serial.as_deref().map(create).transpose()?,
            awaited: awaited.collect(),
            heard,
            show: !request.quiet,
            line: Vec::new(),
            transcript: Vec::new(),
            failure: None,
        })
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
            self.end_line();
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
                self.end_line();
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).trim_end_matches('\r').to_owned();
        self.line.clear();
        let guest_spoke = match &self.native {
            Some(name) => {
                self.testimony.said(name, &line);
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
        if let Some(serial) = self.serial.as_mut().filter(|_| guest_spoke)
            && let Err(error) = writeln!(serial, "{line}")
        {
            self.failure.get_or_insert(format!("cannot write --serial: {error}"));
        }
        if self.transcript.len() < TRANSCRIPT {
            self.transcript.push(line);
        }
    }

    fn is_silent(&self) -> bool {
        self.transcript.is_empty()
    }
}

/// Listens to QEMU's SMMU trace and its messages.
struct Tracer {
    trace: Trace,
    file: Option<BufWriter<File>>,
    messages: Vec<String>,
    failure: Option<String>,
}

impl Tracer {
    fn new(file: Option<&Path>) -> Result<Self> {
        let file = file.map(create).transpose()?;
        Ok(Self { trace: Trace::new(), file, messages: Vec::new(), failure: None })
    }

    fn listen(mut self, stderr: ChildStderr) -> Self {
        for line in lines(stderr) {
            if self.trace.line(&line) {
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

fn create(path: &Path) -> Result<BufWriter<File>> {
    Ok(BufWriter::new(File::create(path).with_context(|| format!("creating {}", path.display()))?))
}

#[cfg(test)]
mod tests {
    use super::*;

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
