//! The program that the agent starts and is the reaper of: a guest's own init, say.

use std::ffi::OsString;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, set_child_subreaper, setpriority_process};
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::log::log;
use crate::reap::Command;
use crate::request::Request;

/// For it to end once it was told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 and the signal.
    pub status: u8,
}

/// The command while it runs; or nothing at all.
#[derive(Debug)]
pub(crate) struct Running(Option<(Pid, oneshot::Receiver<u32>)>);

impl Running {
    /// Starts it, unless the words are none.
    pub(crate) async fn start(words: &[OsString], requests: &mpsc::Sender<Request>) -> Result<Self, Error> {
        let Some((program, arguments)) = words.split_first() else { return Ok(Self(None)) };
        let failed = |source| Error::Command { command: program.clone(), source };
        set_child_subreaper(Some(rustix::process::getpid())).map_err(|error| failed(error.into()))?;
        let child = std::process::Command::new(program).args(arguments).spawn().map_err(failed)?;
        let pid = Pid::from_child(&child);
        // The agent's own priority is not for what it starts. It may have ended already.
        setpriority_process(Some(pid), 0).ok();
        let (ended, heard) = oneshot::channel();
        // Reaped with all others; a watcher that is gone ends the agent.
        requests.send(Request::Command(Command { pid: child.id(), ended })).await.ok();
        log!(Info, "command started", pid = child.id());
        Ok(Self(Some((pid, heard))))
    }

    /// Resolves when it has ended; never, if there is none.
    pub(crate) async fn ended(&mut self) -> Exit {
        let Some((_, heard)) = &mut self.0 else { return std::future::pending().await };
        let Ok(code) = heard.await else { return std::future::pending().await };
        self.0 = None;
        exit(code)
    }

    /// Tells it to end, and waits for that.
    pub(crate) async fn end(mut self) -> Option<Exit> {
        let (pid, _) = self.0.as_ref()?;
        // Gone already: its end is being told.
        kill_process(*pid, Signal::TERM).ok();
        let ended = tokio::time::timeout(PATIENCE, self.ended()).await.ok();
        if ended.is_none() {
            log!(Warn, "the command did not end when it was told to");
        }
        ended
    }
}

fn exit(code: u32) -> Exit {
    let status = match code & 0x7f {
        0 => code >> 8 & 0xff,
        signal => 128 + signal,
    };
    Exit { status: u8::try_from(status).unwrap_or(u8::MAX) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_status_is_as_a_shell_tells_it() {
        for (code, status) in [(0, 0), (7 << 8, 7), (9, 137), (0x80 | 11, 139)] {
            assert_eq!(super::exit(code).status, status, "{code:#x}");
        }
    }
}
