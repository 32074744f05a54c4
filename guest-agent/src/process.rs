//! One process: its /proc files, and a pidfd that stays valid when the pid is reused.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::cgroup::read;

/// Bytes read of a file in /proc/PID; `status` has some 1,500.
const MAX_FILE: u64 = 16 << 10;

/// Opens a pidfd, readable when the last thread has ended. None: there is no such process.
pub(crate) fn open(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok()
}

/// Whether the process behind a pidfd has ended.
pub(crate) fn has_ended(handle: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(handle, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// The depth of `pid`'s pid namespace below the agent's, if `pid` is the init of that namespace.
pub(crate) fn init_depth(pid: u32) -> Option<usize> {
    let status = read(Path::new(&format!("/proc/{pid}/status")), MAX_FILE).ok()?;
    depth(&status)
}

/// `NSpid` lists a process's pids from the reader's namespace inwards: proc_pid_status(5). For the
/// init of an inner namespace the last is 1. A single pid is a process of the agent's own
/// namespace.
fn depth(status: &str) -> Option<usize> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let count = numbers.split_whitespace().count();
    (count > 1 && numbers.split_whitespace().last() == Some("1")).then(|| count - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_known_only_for_inits_of_inner_namespaces() {
        for (status, expect) in [
            ("Name:\tsh\nNSpid:\t4711\t1\n", Some(1)),
            ("NSpid:\t4711\t20\t1\n", Some(2)),
            ("NSpid:\t4711\t20\n", None),
            ("NSpid:\t1\n", None),
            ("NSpid:\n", None),
            ("Name:\tNSpid:\t7\t1\n", None),
            ("", None),
        ] {
            assert_eq!(depth(status), expect, "{status:?}");
        }
    }

    #[test]
    fn has_ended_reports_end_of_process() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let handle = open(child.id()).unwrap();
        assert!(!has_ended(&handle));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(has_ended(&handle));
        assert!(open(0).is_none());
        assert!(open(u32::MAX).is_none());
    }
}
