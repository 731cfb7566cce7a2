//! The two UARTs, both EL2's: one for people (every guest's console and EL2's log, line by line; what they type is guest
//! 0's), one for the report and the operator.

use core::fmt::{self, Write as _};

use arm_pl011_uart::{Interrupts, Uart};

use crate::turns::Shared;

/// Guests' lines and EL2's log going out, what is typed for guest 0 coming in.
pub static CONSOLE: Port = Port::new();
/// The report going out, operator commands coming in.
pub static OPERATOR: Port = Port::new();

/// A UART, once it was found.
pub struct Port(Shared<Option<Uart<'static>>>);

impl Port {
    const fn new() -> Self {
        Self(Shared::new(None))
    }

    /// From now on this port is `uart`.
    pub fn install(&self, uart: Uart<'static>) {
        *self.0.lock() = Some(uart);
    }

    /// Whether there is a UART.
    pub fn is_present(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Writes one line; nothing if there is no UART.
    pub fn line(&self, text: fmt::Arguments<'_>) {
        if let Some(uart) = self.0.lock().as_mut() {
            // The UART's writer knows no errors.
            let _ = writeln!(Patient(uart), "{text}\r");
        }
    }

    /// Makes received bytes interrupt, or keeps them from it.
    pub fn listen(&self, on: bool) {
        if let Some(uart) = self.0.lock().as_mut() {
            let received = Interrupts::RXI | Interrupts::RTI;
            uart.set_interrupt_masks(if on { received } else { Interrupts::empty() });
        }
    }

    /// Takes one received byte.
    pub fn read(&self) -> Option<u8> {
        let mut port = self.0.lock();
        let uart = port.as_mut()?;
        uart.clear_interrupts(Interrupts::RXI | Interrupts::RTI);
        // A byte with a framing or parity error is as good as none.
        uart.read_word().ok().flatten()
    }
}

/// Looks at a full FIFO before a byte is given up.
const PATIENCE: u32 = 1_000_000;

/// Waits for room before each byte, but not for ever: whoever reads the other end must not be able to stop EL2. What
/// finds no room is lost.
struct Patient<'a>(&'a mut Uart<'static>);

impl fmt::Write for Patient<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if !(0..PATIENCE).any(|_| !self.0.is_tx_fifo_full()) {
                return Ok(());
            }
            self.0.write_word(byte);
        }
        Ok(())
    }
}

/// EL2's log: lines `[el2] ...` on the console.
struct Log;

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match record.level() {
            log::Level::Info => CONSOLE.line(format_args!("[el2] {}", record.args())),
            level => CONSOLE.line(format_args!("[el2] {level}: {}", record.args())),
        }
    }

    fn flush(&self) {}
}

/// Sends the log to [`CONSOLE`], down to `level`.
pub fn start_log(level: log::LevelFilter) {
    static LOG: Log = Log;
    // The only call, so nobody else's logger can be in the way.
    let _ = log::set_logger(&LOG);
    log::set_max_level(level);
}
