//! Unix signals as something to wait for. tokio's own way keeps a channel for each signal there is, which takes 26 KiB.

use std::io;
use std::os::unix::net::UnixStream as StdStream;

use signal_hook::SigId;
use signal_hook::low_level::{pipe, unregister};
use tokio::net::UnixStream;

/// Some signals; which of them came is not told.
#[derive(Debug)]
pub struct Signals {
    woken: UnixStream,
    registered: Vec<SigId>,
}

impl Signals {
    /// Those of these numbers. They no longer do what they would by themselves, for as long as the process lives.
    pub fn of(numbers: &[libc::c_int]) -> io::Result<Self> {
        let (woken, wakes) = StdStream::pair()?;
        woken.set_nonblocking(true)?;
        let mut signals = Self { woken: UnixStream::from_std(woken)?, registered: Vec::new() };
        for number in numbers {
            signals.registered.push(pipe::register(*number, wakes.try_clone()?)?);
        }
        Ok(signals)
    }

    /// Resolves when one came since this last did.
    pub async fn came(&self) {
        // It ends for no other reason than that nobody can write to it, which is never.
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

impl Drop for Signals {
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
    async fn a_signal_is_heard_once_however_often_it_came() {
        let signals = Signals::of(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap();
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, signals.came()).await.is_err());
        for _ in 0..200 {
            signal_hook::low_level::raise(libc::SIGUSR1).unwrap();
        }
        signals.came().await;
        assert!(tokio::time::timeout(soon, signals.came()).await.is_err());
        signal_hook::low_level::raise(libc::SIGUSR2).unwrap();
        signals.came().await;
    }
}
