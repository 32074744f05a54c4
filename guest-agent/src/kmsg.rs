//! The kernel's own log of whom its OOM killer chose: who the victim was and whose limit was hit, never that there was
//! a kill. The kernel limits its rate, so a kill may have no line here.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coroner_proto::agent::Level;
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

/// Victims that no counter has risen for yet. Each is a line of at most [`LINE`] bytes that only the kernel's OOM killer
/// writes in this form, but any process with access to /dev/kmsg could write many.
const MAX_VICTIMS: usize = 64;
/// Bytes of one record; the kernel's own limit for it: CONSOLE_EXT_LOG_MAX in printk.c.
const LINE: usize = 8 << 10;
/// Bytes of a command name told on; the kernel's limit is 16, four times as many when escaped.
const MAX_COMM: usize = 64;

/// One line of the OOM killer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) pid: u32,
    pub(crate) comm: String,
    /// The cgroup the victim was in.
    task_cgroup: String,
    /// The cgroup whose limit was hit; none when it was the machine's memory.
    oom_cgroup: Option<String>,
}

impl Choice {
    /// Whose limit was hit, seen from `cgroup`.
    pub(crate) fn level(&self, cgroup: &str) -> Level {
        match &self.oom_cgroup {
            None => Level::LEVEL_GUEST,
            Some(hit) if hit == cgroup => Level::LEVEL_CONTAINER,
            Some(hit) if is_below(hit, cgroup) => Level::LEVEL_CHILD,
            Some(hit) if is_below(cgroup, hit) => Level::LEVEL_ANCESTOR,
            Some(_) => Level::LEVEL_UNKNOWN,
        }
    }
}

/// Whether `path` is strictly below `above`.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| above == "/" || rest.starts_with('/'))
}

/// Reads /dev/kmsg from where it was opened on.
#[derive(Debug)]
pub(crate) struct Kmsg {
    file: OwnedFd,
    victims: VecDeque<Choice>,
}

impl Kmsg {
    /// Opens it at its end: older kills are no news.
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open("/dev/kmsg", flags, Mode::empty())?;
        rustix::fs::seek(&file, SeekFrom::End(0))?;
        Ok(Self { file, victims: VecDeque::new() })
    }

    /// Takes in what the kernel has logged meanwhile.
    pub(crate) fn drain(&mut self) {
        let mut record = [0; LINE];
        loop {
            match rustix::io::read(&self.file, &mut record) {
                Ok(0) => return,
                Ok(length) => {
                    if let Some(choice) = parse(&String::from_utf8_lossy(&record[..length])) {
                        keep(&mut self.victims, choice);
                    }
                }
                // EPIPE: records were overwritten before they were read; the next read goes on after them.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// The cgroups of victims that no counter has risen for yet.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &str> {
        self.victims.iter().map(|choice| choice.task_cgroup.as_str())
    }

    /// The latest victim in a cgroup or below it; it and those before it are told only once.
    pub(crate) fn take(&mut self, cgroup: &str) -> Option<Choice> {
        take(&mut self.victims, cgroup)
    }
}

impl AsFd for Kmsg {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn keep(victims: &mut VecDeque<Choice>, choice: Choice) {
    if victims.len() == MAX_VICTIMS {
        victims.pop_front();
    }
    victims.push_back(choice);
}

fn take(victims: &mut VecDeque<Choice>, cgroup: &str) -> Option<Choice> {
    let ours = |choice: &Choice| choice.task_cgroup == cgroup || is_below(&choice.task_cgroup, cgroup);
    let found = victims.iter().rev().find(|choice| ours(choice)).cloned();
    victims.retain(|choice| !ours(choice));
    found
}

/// Parses a record: `dump_oom_victim` in mm/oom_kill.c, in the frame of Documentation/ABI/testing/dev-kmsg. A command name
/// may hold anything, commas and equals signs too, so the line is read from its end and the name is what is left.
fn parse(record: &str) -> Option<Choice> {
    let (prefix, rest) = record.split_once(';')?;
    // Facility 0: the kernel itself. Anything else was written by a process that only says so.
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    if priority >> 3 != 0 {
        return None;
    }
    let line = rest.lines().next()?.strip_prefix("oom-kill:constraint=")?;
    let (line, _uid) = line.rsplit_once(",uid=")?;
    let (line, pid) = line.rsplit_once(",pid=")?;
    let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
    // A path comes before the name, and may hold a comma as well: the first `,task=` after `,task_memcg=` ends it.
    let (before, after) = line.split_once(",task_memcg=")?;
    let (task_cgroup, comm) = after.split_once(",task=")?;
    let oom_cgroup = match before.split_once(",oom_memcg=") {
        Some((_, path)) => Some(path.to_owned()),
        None if before.ends_with(",global_oom") => None,
        None => return None,
    };
    let task_cgroup = task_cgroup.to_owned();
    Some(Choice { pid, comm: shortened(comm), task_cgroup, oom_cgroup })
}

/// At most [`MAX_COMM`] bytes.
fn shortened(comm: &str) -> String {
    let end = (0..=comm.len().min(MAX_COMM)).rev().find(|at| comm.is_char_boundary(*at)).unwrap_or(0);
    comm[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "6,1207,5140900,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
                        oom_memcg=/k/c1,task_memcg=/k/c1/sub,task=sh,pid=321,uid=0\n";

    #[test]
    fn a_victim_is_read_with_its_cgroups() {
        let choice = parse(LINE).unwrap();
        assert_eq!((choice.pid, choice.comm.as_str()), (321, "sh"));
        for (seen_from, expect) in [
            ("/k/c1", Level::LEVEL_CONTAINER),
            ("/k/c1/sub", Level::LEVEL_ANCESTOR),
            ("/k", Level::LEVEL_CHILD),
            ("/", Level::LEVEL_CHILD),
            ("/k/c", Level::LEVEL_UNKNOWN),
        ] {
            assert_eq!(choice.level(seen_from), expect, "{seen_from}");
        }
        let global = LINE.replace("oom_memcg=/k/c1,", "global_oom,");
        assert_eq!(parse(&global).unwrap().level("/k/c1"), Level::LEVEL_GUEST);
    }

    #[test]
    fn a_command_name_may_hold_anything() {
        for comm in ["a,b", "x,pid=7,uid=0", ",task=y", "", "a;b", "\\x0aoom-kill:"] {
            let choice = parse(&LINE.replace("task=sh", &format!("task={comm}"))).unwrap();
            assert_eq!((choice.pid, choice.comm.as_str()), (321, comm));
        }
        let long = parse(&LINE.replace("task=sh", &format!("task={}", "\u{e9}".repeat(500)))).unwrap();
        assert!(long.comm.len() <= MAX_COMM);
    }

    #[test]
    fn other_records_are_none() {
        for bad in [
            "",
            ";",
            "6,1,2,-;",
            "6,1,2,-;hello",
            "x;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/a,task_memcg=/a,task=b,pid=1,uid=0",
            "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG",
            "6,1,2,-;oom-kill:constraint=X,oom_memcg=/a,task_memcg=/a,task=b,pid=,uid=0",
            "6,1,2,-;oom-kill:constraint=X,oom_memcg=/a,task_memcg=/a,task=b,pid=-4,uid=0",
            "6,1,2,-;oom-kill:constraint=X,oom_memcg=/a,task_memcg=/a,task=b,pid=0,uid=0",
            "6,1,2,-;oom-kill:constraint=X,task_memcg=/a,task=b,pid=4,uid=0",
            "6,1,2,-;oom-kill:constraint=X,oom_memcg=/a,task=b,pid=4,uid=0",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        // 14 is facility 1: a process wrote it.
        assert_eq!(parse(&LINE.replacen('6', "14", 1)), None);
    }

    #[test]
    fn the_latest_victim_is_told_once_and_the_list_is_bounded() {
        let mut victims = VecDeque::new();
        for pid in 1..=MAX_VICTIMS as u32 + 5 {
            keep(&mut victims, parse(&LINE.replace("321", &pid.to_string())).unwrap());
        }
        assert_eq!(victims.len(), MAX_VICTIMS);
        assert_eq!(take(&mut victims, "/k/c2"), None);
        assert_eq!(take(&mut victims, "/k/c1").unwrap().pid, MAX_VICTIMS as u32 + 5);
        assert_eq!(take(&mut victims, "/k/c1"), None);
    }
}
