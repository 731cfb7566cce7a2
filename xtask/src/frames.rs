//! Somebody on the network: frames for the machine's card, from this process.
//!
//! The card is wired to a pair of sockets in the run's own folder, so that nothing of it is on any real network.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use evidence::memory;

use crate::device::escape;

/// The name of the network that a card is plugged into.
pub const NETWORK: &str = "frames";
/// The most frames of a run.
const MOST: u32 = 6000;
/// How far they are apart.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of a frame.
const SIZE: usize = 256;
/// To everybody, from a local address, of the type for local experiments (IEEE 802), and a pad, so that words are
/// aligned.
const HEADER: [u8; 16] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5, 0, 0];

/// Both ends of the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    /// The socket that QEMU listens on.
    pub machine: PathBuf,
    /// The socket that frames come from.
    pub host: PathBuf,
}

impl Wire {
    /// A wire whose ends are in `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        Self { machine: folder.join("card"), host: folder.join("network") }
    }

    /// The argument of `-netdev`.
    pub fn argument(&self) -> String {
        let path = |path: &Path| escape(&path.to_string_lossy());
        format!(
            "dgram,id={NETWORK},local.type=unix,local.path={},remote.type=unix,remote.path={}",
            path(&self.machine),
            path(&self.host)
        )
    }
}

/// Sends frames until it is dropped, or there were enough.
#[derive(Debug)]
pub struct Sender {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// Sends frames over `wire`, whose data starts with the word `nonce`.
    ///
    /// # Errors
    ///
    /// If the socket cannot be made.
    pub fn start(wire: &Wire, nonce: u32) -> Result<Self> {
        let socket = UnixDatagram::bind(&wire.host).context("making the network's socket")?;
        socket.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, machine, frame) = (Arc::clone(&stop), wire.machine.clone(), frame(nonce));
        let thread = std::thread::spawn(move || {
            for _ in 0..MOST {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                // A network loses what nobody is there for, or what there is no room for.
                let _ = socket.send_to(&frame, &machine);
                std::thread::sleep(PAUSE);
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

/// A frame whose data is found in memory as an attacker's is.
fn frame(nonce: u32) -> Vec<u8> {
    let words = (0..).flat_map(|index| memory::word(nonce, index).to_le_bytes());
    HEADER.into_iter().chain(words).take(SIZE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_and_are_of_their_sender() {
        let folder = tempfile::tempdir().unwrap();
        let wire = Wire::in_folder(folder.path());
        let card = UnixDatagram::bind(&wire.machine).unwrap();
        let sender = Sender::start(&wire, 7).unwrap();
        let mut frame = [0; 2 * SIZE];
        assert_eq!(card.recv(&mut frame).unwrap(), SIZE);
        let second = u32::from_le_bytes([frame[20], frame[21], frame[22], frame[23]]);
        assert_eq!(second, memory::word(7, 1));
        drop(sender);
    }

    #[test]
    fn a_card_that_is_not_there_fails_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(Sender::start(&Wire::in_folder(folder.path()), 0).unwrap());
    }
}
