//! The program that the agent starts and reaps, for example a guest's own init.

use std::ffi::OsString;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, set_child_subreaper, setpriority_process};
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::log::log;
use crate::watcher::reaper::StartedCommand;
use crate::watcher::requests::Request;

/// Time for the command to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Exit status of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandExit {
    /// Exit code, or 128 plus the signal.
    pub status: u8,
}

/// The running command, if one was given.
#[derive(Debug)]
pub(crate) struct RunningCommand(Option<(Pid, oneshot::Receiver<u32>)>);

impl RunningCommand {
    /// Starts the command unless `words` is empty.
    pub(crate) async fn start(words: &[OsString], requests: &mpsc::Sender<Request>) -> Result<Self, Error> {
        let Some((program, arguments)) = words.split_first() else { return Ok(Self(None)) };
        let failed = |source| Error::Command { command: program.clone(), source };
        set_child_subreaper(Some(rustix::process::getpid())).map_err(|error| failed(error.into()))?;
        let child = std::process::Command::new(program).args(arguments).spawn().map_err(failed)?;
        let pid = Pid::from_child(&child);
        // The command does not inherit the agent's priority. It may have ended already.
        setpriority_process(Some(pid), 0).ok();
        let (ended, exit_code) = oneshot::channel();
        // The watcher reaps it with all other children. If the watcher is gone the agent ends
        // anyway.
        requests.send(Request::Command(StartedCommand { pid: child.id(), ended })).await.ok();
        log!(Info, "command started", pid = child.id());
        Ok(Self(Some((pid, exit_code))))
    }

    /// Resolves when the command has ended; never if there is none.
    pub(crate) async fn ended(&mut self) -> CommandExit {
        let Some((_, exit_code)) = &mut self.0 else { return std::future::pending().await };
        let Ok(code) = exit_code.await else { return std::future::pending().await };
        self.0 = None;
        exit(code)
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) async fn end(mut self) -> Option<CommandExit> {
        let (pid, _) = self.0.as_ref()?;
        // An error means that it has ended already.
        kill_process(*pid, Signal::TERM).ok();
        let ended = tokio::time::timeout(STOP_TIMEOUT, self.ended()).await.ok();
        if ended.is_none() {
            log!(Warn, "the command did not end within 10 s of SIGTERM");
        }
        ended
    }
}

fn exit(code: u32) -> CommandExit {
    let status = match code & 0x7f {
        0 => code >> 8 & 0xff,
        signal => 128 + signal,
    };
    CommandExit { status: u8::try_from(status).unwrap_or(u8::MAX) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn exit_status_follows_shell_convention() {
        for (code, status) in [(0, 0), (7 << 8, 7), (9, 137), (0x80 | 11, 139)] {
            assert_eq!(super::exit(code).status, status, "{code:#x}");
        }
    }
}
