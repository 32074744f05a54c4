//! The kernel log: what it has of OOM kills since it was opened.
//!
//! The format is that of `dump_oom_victim`, `__oom_kill_process` and `mem_cgroup_print_oom_group`
//! in the kernel, framed as in Documentation/ABI/testing/dev-kmsg. The kernel writes at most ten
//! records in five seconds, and a `Killed process` line for every kill.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

const DEVICE: &str = "/dev/kmsg";
/// Bytes of one record; the kernel's own limit for it: CONSOLE_EXT_LOG_MAX in printk.c.
const MAX_RECORD: usize = 8 << 10;

/// What a line shows of an OOM kill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A victim with its cgroup.
    Record { cgroup: String, pid: u32, comm: String },
    /// All processes of a cgroup are killed (`memory.oom.group`); their lines follow.
    Group { cgroup: String },
    /// A killed process. Its record comes before it, unless the kernel suppressed the record.
    Killed { pid: u32, comm: String },
    /// A victim that ended by itself before the kill.
    Spared { pid: u32 },
    /// Lines that were overwritten before they were read.
    Gap,
}

/// The kernel log from the time at which it was opened.
#[derive(Debug)]
pub(crate) struct KernelLog(OwnedFd);

impl KernelLog {
    /// Opens the log at its end.
    pub(crate) fn open() -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let advice = "run deathtest as root on the node, or with --no-kernel-log";
        let file = rustix::fs::open(DEVICE, flags, Mode::empty())
            .with_context(|| format!("cannot read the kernel log {DEVICE}: {advice}"))?;
        rustix::fs::seek(&file, SeekFrom::End(0)).with_context(|| format!("seeking in {DEVICE}"))?;
        Ok(Self(file))
    }

    /// The entries since the last call.
    pub(crate) fn take(&mut self) -> Result<Vec<Entry>> {
        let mut buffer = [0; MAX_RECORD];
        let mut entries = Vec::new();
        loop {
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(entries),
                Ok(length) => entries.extend(parse(&String::from_utf8_lossy(&buffer[..length]))),
                Err(Errno::PIPE) => entries.push(Entry::Gap),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).with_context(|| format!("reading {DEVICE}")),
            }
        }
    }
}

fn parse(record: &str) -> Option<Entry> {
    let line = kernel_line(record)?;
    oom_record(line).or_else(|| group(line)).or_else(|| killed(line)).or_else(|| spared(line))
}

/// The line of a record that the kernel wrote: facility 0. Any other facility means that a process
/// wrote it.
fn kernel_line(record: &str) -> Option<&str> {
    let (prefix, rest) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    if priority >> 3 == 0 { rest.lines().next() } else { None }
}

/// `oom-kill:constraint=...,task_memcg=PATH,task=COMM,pid=PID,uid=UID`. A command name may contain
/// anything, so the line is read from its end and the name is the remainder.
fn oom_record(line: &str) -> Option<Entry> {
    let line = line.strip_prefix("oom-kill:constraint=")?;
    let (line, _uid) = line.rsplit_once(",uid=")?;
    let (line, pid) = line.rsplit_once(",pid=")?;
    let (_, after) = line.split_once(",task_memcg=")?;
    let (cgroup, comm) = after.split_once(",task=")?;
    Some(Entry::Record { cgroup: cgroup.to_owned(), pid: pid.parse().ok()?, comm: comm.to_owned() })
}

/// `Tasks in PATH are going to be killed due to memory.oom.group set`.
fn group(line: &str) -> Option<Entry> {
    let path = line.strip_prefix("Tasks in ")?;
    let path = path.strip_suffix(" are going to be killed due to memory.oom.group set")?;
    Some(Entry::Group { cgroup: path.to_owned() })
}

/// `Memory cgroup out of memory: Killed process 7 (sh) total-vm:...`.
fn killed(line: &str) -> Option<Entry> {
    let (reason, rest) = line.split_once(": Killed process ")?;
    let is_kill = ["Memory cgroup out of memory", "Out of memory"].contains(&reason);
    let (pid, rest) = rest.split_once(" (").filter(|_| is_kill)?;
    let (comm, _) = rest.rsplit_once(") total-vm:")?;
    Some(Entry::Killed { pid: pid.parse().ok()?, comm: comm.to_owned() })
}

/// `...: OOM victim 7 (sh) is already exiting. Skip killing the task`.
fn spared(line: &str) -> Option<Entry> {
    let (_, rest) = line.split_once(": OOM victim ")?;
    let pid = rest.split_once(" (")?.0.parse().ok()?;
    line.ends_with("Skip killing the task").then_some(Entry::Spared { pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "6,1207,5140900,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,\
                          mems_allowed=0,oom_memcg=/k/c1,task_memcg=/k/c1,task=sh,pid=321,uid=0\n";

    #[test]
    fn record_is_read_with_any_command_name() {
        for comm in ["sh", "a,b", "x,pid=7,uid=0", ",task=y", ""] {
            let line = RECORD.replace("task=sh", &format!("task={comm}"));
            let expect = Entry::Record { cgroup: "/k/c1".to_owned(), pid: 321, comm: comm.to_owned() };
            assert_eq!(parse(&line), Some(expect), "{line}");
        }
    }

    #[test]
    fn other_lines_of_a_kill_are_read() {
        let check = |line: &str, expect: Entry| assert_eq!(parse(line), Some(expect), "{line}");
        let killed = Entry::Killed { pid: 7, comm: "a) b".to_owned() };
        let line = "Killed process 7 (a) b) total-vm:1kB, anon-rss:1kB";
        check(&format!("3,1,1,-;Memory cgroup out of memory: {line}\n"), killed.clone());
        check(&format!("3,1,1,-;Out of memory: {line}\n"), killed);
        let line = "6,1,1,-;Tasks in /k/c 1 are going to be killed due to memory.oom.group set\n";
        check(line, Entry::Group { cgroup: "/k/c 1".to_owned() });
        let line = "6,1,1,-;Out of memory: OOM victim 7 (sh) is already exiting. Skip killing the task\n";
        check(line, Entry::Spared { pid: 7 });
    }

    #[test]
    fn lines_of_processes_and_other_lines_are_left_out() {
        for line in [
            // 14 is facility 1: written by a process.
            &RECORD.replacen('6', "14", 1),
            &RECORD.replace("pid=321", "pid=x"),
            "6,1,1,-;Tasks in /k\n",
            "3,1,1,-;sh: Killed process 7 (sh) total-vm:1kB\n",
            "6,1,1,-;dd invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n",
            "6,1,1,-;oom_kill_process: 4 callbacks suppressed\n",
            "",
            ";",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
