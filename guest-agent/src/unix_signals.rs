//! Waits for unix signals. tokio's own implementation keeps a channel for every signal number,
//! which takes 26 KiB.

use std::io;
use std::os::unix::net::UnixStream as StdStream;

use signal_hook::SigId;
use signal_hook::low_level::{pipe, unregister};
use tokio::net::UnixStream;

/// A set of signals. Which of them was received is not distinguished.
#[derive(Debug)]
pub struct UnixSignals {
    woken: UnixStream,
    registered: Vec<SigId>,
}

impl UnixSignals {
    /// Registers these signal numbers. Their default action is replaced for the life of the
    /// process.
    pub fn register(numbers: &[libc::c_int]) -> io::Result<Self> {
        let (woken, wakes) = StdStream::pair()?;
        woken.set_nonblocking(true)?;
        let mut signals = Self { woken: UnixStream::from_std(woken)?, registered: Vec::new() };
        for number in numbers {
            signals.registered.push(pipe::register(*number, wakes.try_clone()?)?);
        }
        Ok(signals)
    }

    /// Resolves when a signal was received since this last resolved.
    pub async fn received(&self) {
        // The write end is kept by the handlers, so reading fails only if the runtime stops.
        while self.woken.readable().await.is_ok() {
            let mut any = false;
            while self.woken.try_read(&mut [0; 64]).is_ok_and(|count| count > 0) {
                any = true;
            }
            if any {
                return;
            }
        }
    }
}

impl Drop for UnixSignals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            unregister(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn received_resolves_once_for_repeated_signals() {
        let signals = UnixSignals::register(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap();
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, signals.received()).await.is_err());
        for _ in 0..200 {
            signal_hook::low_level::raise(libc::SIGUSR1).unwrap();
        }
        signals.received().await;
        assert!(tokio::time::timeout(soon, signals.received()).await.is_err());
        signal_hook::low_level::raise(libc::SIGUSR2).unwrap();
        signals.received().await;
    }
}
