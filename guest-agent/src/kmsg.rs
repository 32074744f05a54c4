//! OOM killer records in the kernel log: which process was the victim and which limit was hit. The
//! kernel limits their rate, ten in five seconds. The line `Killed process` has no rate limit, and
//! no cgroup either: it is kept for a process that is known by its pid.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coroner_proto::agent::Level;
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

/// Records kept that no counter has risen for yet. Each has at most [`MAX_RECORD`] bytes. Without a
/// limit they could fill the memory: any process with access to /dev/kmsg can cause many.
const MAX_RECORDS: usize = 64;
/// Bytes of one record; the kernel's own limit for it: CONSOLE_EXT_LOG_MAX in printk.c.
const MAX_RECORD: usize = 8 << 10;
/// Bytes kept of a command name; the kernel's limit is 16, four times as many when escaped.
const MAX_COMM: usize = 64;

/// One record of the OOM killer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OomRecord {
    pub(crate) pid: u32,
    pub(crate) comm: String,
    /// The victim's cgroup.
    task_cgroup: String,
    /// The cgroup that hit its limit; none when the machine ran out of memory.
    oom_cgroup: Option<String>,
}

impl OomRecord {
    /// Which limit was hit, relative to `cgroup`.
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

/// Whether `path` is `cgroup` or below it.
pub(crate) fn is_within(path: &str, cgroup: &str) -> bool {
    path == cgroup || is_below(path, cgroup)
}

/// Whether `path` is strictly below `above`.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| above == "/" || rest.starts_with('/'))
}

/// Reads /dev/kmsg from its end at opening.
#[derive(Debug)]
pub(crate) struct Kmsg {
    file: OwnedFd,
    records: VecDeque<OomRecord>,
    killed: KilledPids,
}

/// The pids of `Killed process` lines without a record: the rate limit suppressed it.
#[derive(Debug, Default)]
struct KilledPids {
    /// Victims of the latest records: their lines follow.
    recorded: VecDeque<u32>,
    suppressed: VecDeque<(u32, String)>,
}

impl KilledPids {
    fn recorded(&mut self, pid: u32) {
        keep(&mut self.recorded, pid);
    }

    /// A group kill has the line of its first victim twice.
    fn killed(&mut self, pid: u32, comm: &str) {
        if !self.recorded.contains(&pid) && !self.suppressed.iter().any(|(known, _)| *known == pid) {
            keep(&mut self.suppressed, (pid, comm.to_owned()));
        }
    }

    fn claim(&mut self, pid: u32) -> Option<String> {
        let at = self.suppressed.iter().position(|(known, _)| *known == pid)?;
        self.suppressed.remove(at).map(|(_, comm)| comm)
    }
}

impl Kmsg {
    /// Opens it at its end: records of older kills are skipped.
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open("/dev/kmsg", flags, Mode::empty())?;
        rustix::fs::seek(&file, SeekFrom::End(0))?;
        Ok(Self { file, records: VecDeque::new(), killed: KilledPids::default() })
    }

    /// Reads the records logged since the last call.
    pub(crate) fn drain(&mut self) {
        let mut buffer = [0; MAX_RECORD];
        loop {
            match rustix::io::read(&self.file, &mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    if let Some(record) = parse(&text) {
                        self.killed.recorded(record.pid);
                        keep(&mut self.records, record);
                    } else if let Some((pid, comm)) = killed_process(&text) {
                        self.killed.killed(pid, comm);
                    } else if let Some(pid) = spared_process(&text) {
                        self.records.retain(|record| record.pid != pid);
                    }
                }
                // EPIPE: records were overwritten before they were read; the next read continues
                // after them.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Cgroups of victims that no counter has risen for yet.
    pub(crate) fn unclaimed_cgroups(&self) -> impl Iterator<Item = &str> {
        self.records.iter().map(|record| record.task_cgroup.as_str())
    }

    /// Takes the records of victims in `cgroup` or below it: the latest, and their number.
    pub(crate) fn claim(&mut self, cgroup: &str) -> Option<(OomRecord, u64)> {
        claim(&mut self.records, cgroup)
    }

    /// The command name of this process, if it was killed without a record. The pid is that of the
    /// initial namespace.
    pub(crate) fn claim_pid(&mut self, pid: u32) -> Option<String> {
        self.killed.claim(pid)
    }
}

impl AsFd for Kmsg {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn keep<T>(kept: &mut VecDeque<T>, latest: T) {
    if kept.len() == MAX_RECORDS {
        kept.pop_front();
    }
    kept.push_back(latest);
}

fn claim(records: &mut VecDeque<OomRecord>, cgroup: &str) -> Option<(OomRecord, u64)> {
    let ours = |record: &OomRecord| is_within(&record.task_cgroup, cgroup);
    let (mut latest, mut count) = (None, 0);
    records.retain(|record| {
        let ours = ours(record);
        if ours {
            latest = Some(record.clone());
            count += 1;
        }
        !ours
    });
    latest.map(|record| (record, count))
}

/// Parses a record: `dump_oom_victim` in mm/oom_kill.c, framed as in
/// Documentation/ABI/testing/dev-kmsg. A command name may contain anything, commas and equals signs
/// too, so the line is parsed from its end and the name is the remainder.
fn parse(record: &str) -> Option<OomRecord> {
    let line = kernel_line(record)?.strip_prefix("oom-kill:constraint=")?;
    let (line, _uid) = line.rsplit_once(",uid=")?;
    let (line, pid) = line.rsplit_once(",pid=")?;
    let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
    // The path before the name may contain a comma too: the first `,task=` after `,task_memcg=`
    // ends it.
    let (before, after) = line.split_once(",task_memcg=")?;
    // A cgroup may be named so: which of them is the victim's is not certain.
    if after.contains(",task_memcg=") {
        return None;
    }
    let (task_cgroup, comm) = after.split_once(",task=")?;
    let oom_cgroup = match before.split_once(",oom_memcg=") {
        Some((_, path)) => Some(path.to_owned()),
        None if before.ends_with(",global_oom") => None,
        None => return None,
    };
    let task_cgroup = task_cgroup.to_owned();
    Some(OomRecord { pid, comm: truncated(comm), task_cgroup, oom_cgroup })
}

/// The victim in a line of `__oom_kill_process`, its pid and command name: `Memory cgroup out of
/// memory: Killed process 7 (sh) total-vm:`.
fn killed_process(record: &str) -> Option<(u32, &str)> {
    let (reason, rest) = kernel_line(record)?.split_once(": Killed process ")?;
    let (pid, rest) = rest.split_once(" (")?;
    let (comm, _) = rest.rsplit_once(") total-vm:")?;
    let is_kill = ["Memory cgroup out of memory", "Out of memory"].contains(&reason);
    (is_kill && comm.len() <= MAX_COMM).then_some((pid.parse().ok()?, comm))
}

/// The victim that was not killed: `...: OOM victim 7 (sh) is already exiting. Skip killing the
/// task`.
fn spared_process(record: &str) -> Option<u32> {
    let (_, rest) = kernel_line(record)?.split_once(": OOM victim ")?;
    rest.split_once(" (")?.0.parse().ok()
}

/// The line of a record that the kernel wrote.
fn kernel_line(record: &str) -> Option<&str> {
    let (prefix, rest) = record.split_once(';')?;
    // Facility 0 is the kernel. Any other facility means that a process wrote the record.
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    if priority >> 3 != 0 {
        return None;
    }
    rest.lines().next()
}

/// Cuts a command name to at most [`MAX_COMM`] bytes.
fn truncated(comm: &str) -> String {
    comm[..comm.floor_char_boundary(MAX_COMM)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "6,1207,5140900,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
                        oom_memcg=/k/c1,task_memcg=/k/c1/sub,task=sh,pid=321,uid=0\n";

    #[test]
    fn record_parsed_with_cgroups_and_level() {
        let record = parse(LINE).unwrap();
        assert_eq!((record.pid, record.comm.as_str()), (321, "sh"));
        for (seen_from, expect) in [
            ("/k/c1", Level::LEVEL_CONTAINER),
            ("/k/c1/sub", Level::LEVEL_ANCESTOR),
            ("/k", Level::LEVEL_CHILD),
            ("/", Level::LEVEL_CHILD),
            ("/k/c", Level::LEVEL_UNKNOWN),
        ] {
            assert_eq!(record.level(seen_from), expect, "{seen_from}");
        }
        let global = LINE.replace("oom_memcg=/k/c1,", "global_oom,");
        assert_eq!(parse(&global).unwrap().level("/k/c1"), Level::LEVEL_GUEST);
    }

    #[test]
    fn record_parsed_with_any_command_name() {
        for comm in ["a,b", "x,pid=7,uid=0", ",task=y", "", "a;b", "\\x0aoom-kill:"] {
            let record = parse(&LINE.replace("task=sh", &format!("task={comm}"))).unwrap();
            assert_eq!((record.pid, record.comm.as_str()), (321, comm));
        }
        let long = parse(&LINE.replace("task=sh", &format!("task={}", "\u{e9}".repeat(500)))).unwrap();
        assert!(long.comm.len() <= MAX_COMM);
    }

    #[test]
    fn other_records_are_rejected() {
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
            // A cgroup with the name of such a part.
            "6,1,2,-;oom-kill:constraint=X,oom_memcg=/x,task_memcg=/c2,task=z,task_memcg=/x,task=b,pid=4,uid=0",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        // 14 is facility 1: written by a process.
        assert_eq!(parse(&LINE.replacen('6', "14", 1)), None);
    }

    #[test]
    fn killed_line_counts_only_without_record() {
        let line = "3,1208,5140950,-;Memory cgroup out of memory: Killed process 321 (sh) total-vm:1kB\n";
        assert_eq!(killed_process(line), Some((321, "sh")));
        assert_eq!(killed_process(&line.replace("Memory cgroup out", "Out")), Some((321, "sh")));
        for bad in [
            line.replacen('3', "14", 1),
            line.replace("321 ", "x "),
            line.replace("321 (sh)", "-3 (sh)"),
            line.replace("Memory", "A memory"),
            LINE.to_owned(),
        ] {
            assert_eq!(killed_process(&bad), None, "{bad}");
        }
        let spared = "6,9,9,-;Memory cgroup out of memory: OOM victim 7 (sh) is already exiting. Skip\n";
        assert_eq!((spared_process(spared), spared_process(line)), (Some(7), None));
        let mut pids = KilledPids::default();
        pids.recorded(1);
        for pid in [1, 2, 2] {
            pids.killed(pid, "sh");
        }
        assert_eq!([1, 2, 2].map(|pid| pids.claim(pid)), [None, Some("sh".to_owned()), None]);
    }

    #[test]
    fn claim_returns_latest_record_once() {
        let mut records = VecDeque::new();
        for pid in 1..=MAX_RECORDS as u32 + 5 {
            keep(&mut records, parse(&LINE.replace("321", &pid.to_string())).unwrap());
        }
        assert_eq!(records.len(), MAX_RECORDS);
        assert_eq!(claim(&mut records, "/k/c2"), None);
        let (latest, count) = claim(&mut records, "/k/c1").unwrap();
        assert_eq!((latest.pid, count), (MAX_RECORDS as u32 + 5, MAX_RECORDS as u64));
        assert_eq!(claim(&mut records, "/k/c1"), None);
    }
}
