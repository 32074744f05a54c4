//! One process: its /proc files, and a pidfd that stays valid when the pid is reused.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::cgroup::read;

/// Bytes read of a file in /proc/PID; `status` has some 1,500.
const MAX_FILE: u64 = 16 << 10;
/// USER_HZ, the unit of times in /proc: a hundredth of a second on all architectures with
/// containers.
const TICK: Duration = Duration::from_millis(10);
/// include/linux/sched.h
const PF_EXITING: u64 = 4;

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

/// What /proc has of a process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProcessInfo {
    pub(crate) pid: u32,
    pub(crate) comm: Box<str>,
    /// It has begun to end: on v1 it is in the root's cgroup.
    pub(crate) is_exiting: bool,
    /// When the thread started, on the boot clock. Rounded down.
    pub(crate) started: Duration,
}

/// Inspects a process by the id of one of its threads.
pub(crate) fn inspect(thread: u32) -> Option<ProcessInfo> {
    let stat = Stat::read(thread)?;
    let status = read(Path::new(&format!("/proc/{thread}/status")), MAX_FILE).ok()?;
    let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
    let comm = if pid == thread { stat.comm } else { Stat::read(pid)?.comm };
    Some(ProcessInfo { pid, comm, is_exiting: stat.is_exiting, started: stat.started })
}

/// The name of a process.
pub(crate) fn comm(pid: u32) -> Option<String> {
    let comm = read(Path::new(&format!("/proc/{pid}/comm")), MAX_FILE).ok()?;
    Some(comm.strip_suffix('\n').unwrap_or(&comm).to_owned())
}

/// The parent of a process.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    Some(Stat::read(pid)?.parent)
}

/// When a process started, on the boot clock. Rounded down.
pub(crate) fn started(pid: u32) -> Option<Duration> {
    Some(Stat::read(pid)?.started)
}

/// Whether a process has used the processor time of its limit: the hard one, or the soft one.
pub(crate) fn is_at_cpu_limit(pid: u32, is_hard: bool) -> bool {
    let limits = read(Path::new(&format!("/proc/{pid}/limits")), MAX_FILE).unwrap_or_default();
    let Some(limit) = cpu_limit(&limits, is_hard) else { return false };
    // The kernel compares its count of ticks with the limit. The time shown here is measured, and
    // on a busy machine up to a tenth less.
    Stat::read(pid).is_some_and(|stat| stat.cpu >= limit * 3 / 4)
}

/// `Max cpu time SOFT HARD seconds`, or `unlimited`.
fn cpu_limit(limits: &str, is_hard: bool) -> Option<Duration> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max cpu time"))?;
    let seconds = line.split_whitespace().nth(usize::from(is_hard))?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// `/proc/PID/stat`: proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    comm: Box<str>,
    parent: u32,
    is_exiting: bool,
    /// User and system time of the process.
    cpu: Duration,
    started: Duration,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&read(Path::new(&format!("/proc/{pid}/stat")), MAX_FILE).ok()?)
    }

    /// The name may contain anything, parentheses too.
    fn parse(text: &str) -> Option<Self> {
        let (before, after) = text.rsplit_once(") ")?;
        let (_pid, comm) = before.split_once(" (")?;
        // From the third field on, which is the state.
        let fields: Vec<&str> = after.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks = |count: u64| TICK.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
        Some(Self {
            comm: comm.into(),
            parent: u32::try_from(number(4)?).ok()?,
            is_exiting: number(9)? & PF_EXITING != 0,
            cpu: ticks(number(14)?.saturating_add(number(15)?)),
            started: ticks(number(22)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_with_any_command_name() {
        let rest = "S 17 1 1 0 -1 4194564 1 2 3 4 150 50 0 0 20 0 1 0 12345 0 0";
        for comm in ["sh", "a) S 99", "x (y", "", ") "] {
            let stat = Stat::parse(&format!("4711 ({comm}) {rest}")).unwrap();
            assert_eq!((&*stat.comm, stat.parent, stat.is_exiting), (comm, 17, true), "{comm:?}");
            assert_eq!((stat.cpu, stat.started.as_millis()), (Duration::from_secs(2), 123_450));
        }
        let living = Stat::parse(&format!("1 (sh) {}", rest.replace("4194564", "4194560"))).unwrap();
        assert!(!living.is_exiting);
        for bad in
            ["", "1 (sh)", "1 (sh) S 17", "1 sh S 17 1", "1 (sh) S x 1 1 0 -1 4 1 2 3 4 1 1 1 1 1 1 1 1 1"]
        {
            assert_eq!(Stat::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn cpu_limit_is_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              1                    unlimited            seconds   \n\
                    Max file size             unlimited            unlimited            bytes     \n";
        assert_eq!(cpu_limit(text, false), Some(Duration::from_secs(1)));
        assert_eq!((cpu_limit(text, true), cpu_limit("", false)), (None, None));
        assert!(!is_at_cpu_limit(std::process::id(), true));
    }

    #[test]
    fn thread_is_inspected_as_its_process() {
        let thread = || {
            let path = std::fs::read_link("/proc/thread-self").unwrap();
            path.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap()
        };
        let info = inspect(thread()).unwrap();
        assert!(inspect(u32::MAX).is_none());
        assert_eq!((info.pid, info.is_exiting), (std::process::id(), false));
        let now = Duration::from_nanos(crate::shared_state::now().boot_ns);
        assert!(info.started <= now && info.started + Duration::from_secs(3600) > now, "{info:?}");
        let parent = parent(std::process::id());
        assert_eq!(parent, rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32));
        assert!(started(std::process::id()) <= Some(info.started));
    }

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
