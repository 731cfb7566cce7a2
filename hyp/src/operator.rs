//! What the operator types on EL2's own UART.

use heapless::String;
use platform::operator::{Command, MAX_LINE};
use platform::report::{Cause, Name};
use spin::Mutex;

use crate::life::Next;
use crate::vm::Vm;
use crate::{machine, report, teardown};

/// The line so far; `None` once it can be no command.
static LINE: Mutex<Option<String<MAX_LINE>>> = Mutex::new(Some(String::new()));

/// Takes one typed byte, and obeys at the end of a line.
pub fn receive(byte: u8) {
    let mut line = LINE.lock();
    if !matches!(byte, b'\n' | b'\r') {
        // What is no text is in no command, and must not drive a terminal.
        let text = matches!(byte, b'\t' | b' '..=b'~');
        let fits = line.as_mut().is_some_and(|line| line.push(byte.into()).is_ok());
        if !(text && fits) {
            *line = None;
        }
        return;
    }
    let text = line.replace(String::new());
    drop(line);
    match text {
        Some(text) if text.trim().is_empty() => {}
        Some(text) => match text.parse() {
            Ok(command) => obey(command),
            Err(error) => log::warn!("operator: \"{text}\": {error}"),
        },
        None => log::warn!(
            "operator: a line of more than {MAX_LINE} characters, or not of text, was ignored"
        ),
    }
}

fn obey(command: Command) {
    match command {
        Command::Report => report::send(),
        Command::Kill(name) => with(&name, |vm| {
            teardown::begin_with(vm, Cause::Operator, Next::Crashed);
        }),
        Command::Restart(name) => with(&name, |vm| {
            teardown::begin_with(vm, Cause::Operator, Next::Restart);
        }),
        Command::Off(name) => with(&name, |vm| {
            teardown::begin_with(vm, Cause::Operator, Next::Off);
        }),
    }
}

fn with(name: &Name, act: impl FnOnce(&'static Vm)) {
    match machine::vms().find(|vm| vm.name() == name) {
        Some(vm) => act(vm),
        None => log::warn!("operator: there is no VM {name}"),
    }
}
