//! A signal that asks this program to end, while a run goes on: QEMU goes first, and there is a verdict.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

static WATCH: OnceLock<Watch> = OnceLock::new();

struct Watch {
    /// The signal that came, or 0.
    caught: Arc<AtomicUsize>,
    /// Whether no run goes on yet, so that a signal ends this program as it does any other.
    idle: Arc<AtomicBool>,
}

/// Watches for signals from now on; before [`hold`] they end this program as ever.
///
/// # Errors
///
/// If the system refuses it.
pub fn watch() -> Result<()> {
    let watch = Watch { caught: Arc::default(), idle: Arc::new(AtomicBool::new(true)) };
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, Arc::clone(&watch.idle))
            .and_then(|_| flag::register_usize(signal, Arc::clone(&watch.caught), signal as usize))
            .with_context(|| format!("watching for {}", name(signal)))?;
    }
    // Whoever watches twice hears the same.
    let _ = WATCH.set(watch);
    Ok(())
}

/// Keeps signals for [`caught`] from now on. Returns whether anybody watches.
pub fn hold() -> bool {
    WATCH.get().is_some_and(|watch| {
        watch.idle.store(false, Ordering::SeqCst);
        true
    })
}

/// The name of a signal that came since [`hold`].
pub fn caught() -> Option<&'static str> {
    let signal = WATCH.get()?.caught.load(Ordering::SeqCst);
    c_int::try_from(signal).ok().filter(|&signal| signal != 0).map(name)
}

/// The name of a signal.
pub fn name(signal: c_int) -> &'static str {
    low_level::signal_name(signal).unwrap_or("an unknown signal")
}
