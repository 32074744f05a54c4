//! OOM killer records in the kernel log: which process was the victim and which limit was hit. The
//! kernel limits their rate, ten in five seconds. The line `Killed process` has no rate limit, and
//! no cgroup either: it is kept for a process that is known by its pid. The lines around them are
//! `oom_report`'s.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use coroner_proto::agent::{Level, VictimMemory};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use tokio::time::Instant;

use crate::oom_report::lines::{killed, truncated};
use crate::oom_report::{KernelLine, OomReports};

/// How long the log's naming of a process is kept. A victim ends within it.
const NAMED: Duration = Duration::from_secs(10);
/// Records kept that no counter has risen for yet. Each has at most [`MAX_RECORD`] bytes. Without a
/// limit they could fill the memory: any process with access to /dev/kmsg can cause many.
const MAX_RECORDS: usize = 64;
/// Bytes of one record; the kernel's own limit for it: CONSOLE_EXT_LOG_MAX in printk.c.
const MAX_RECORD: usize = 8 << 10;

/// One record of the OOM killer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OomRecord {
    pub(crate) pid: u32,
    pub(crate) comm: String,
    /// The victim's cgroup.
    task_cgroup: String,
    /// The cgroup that hit its limit; none when the machine ran out of memory.
    oom_cgroup: Option<String>,
    /// The report that it is part of.
    pub(crate) report: u64,
}

impl OomRecord {
    /// The cgroup that hit its limit; "/" when the machine ran out of memory.
    pub(crate) fn limit_cgroup(&self) -> &str {
        self.oom_cgroup.as_deref().unwrap_or("/")
    }

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
pub(crate) fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| above == "/" || rest.starts_with('/'))
}

/// Reads /dev/kmsg from its end at opening.
#[derive(Debug)]
pub(crate) struct Kmsg {
    file: OwnedFd,
    records: VecDeque<OomRecord>,
    killed: KilledPids,
    pub(crate) reports: OomReports,
    /// The sequence number of the next record; 0: not known.
    next: u64,
}

/// The pids of `Killed process` lines without a record: the rate limit suppressed it.
#[derive(Debug, Default)]
struct KilledPids {
    /// Victims of the latest records: their lines follow.
    recorded: VecDeque<u32>,
    suppressed: VecDeque<VictimMemory>,
    /// All victims, by a record or that line.
    victims: VecDeque<(u32, Instant)>,
}

impl KilledPids {
    fn recorded(&mut self, pid: u32) {
        keep(&mut self.recorded, pid);
        keep(&mut self.victims, (pid, Instant::now()));
    }

    /// A group kill has the line of its first victim twice.
    fn killed(&mut self, victim: VictimMemory) {
        keep(&mut self.victims, (victim.pid, Instant::now()));
        let is_known = self.suppressed.iter().any(|known| known.pid == victim.pid);
        if !is_known && !self.recorded.contains(&victim.pid) {
            keep(&mut self.suppressed, victim);
        }
    }

    fn claim(&mut self, pid: u32) -> Option<VictimMemory> {
        let at = self.suppressed.iter().position(|known| known.pid == pid)?;
        self.suppressed.remove(at)
    }

    fn take_victim(&mut self, pid: u32, now: Instant) -> bool {
        self.victims.retain(|(_, at)| now < *at + NAMED);
        let count = self.victims.len();
        self.spared(pid);
        self.victims.len() < count
    }

    fn spared(&mut self, pid: u32) {
        self.victims.retain(|(victim, _)| *victim != pid);
    }
}

impl Kmsg {
    /// Opens it at its end: records of older kills are skipped.
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open("/dev/kmsg", flags, Mode::empty())?;
        rustix::fs::seek(&file, SeekFrom::End(0))?;
        let reports = OomReports::new(rustix::param::page_size() as u64);
        Ok(Self { file, records: VecDeque::new(), killed: KilledPids::default(), reports, next: 0 })
    }

    /// Reads the records logged since the last call.
    pub(crate) fn drain(&mut self) {
        let mut buffer = [0; MAX_RECORD];
        loop {
            match rustix::io::read(&self.file, &mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    self.record(&text);
                }
                // EPIPE: records were overwritten before they were read; the next read continues
                // after them.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn record(&mut self, record: &str) {
        let Some(line) = KernelLine::parse(record) else {
            // A process wrote it: it has a number all the same.
            self.next = self.next.saturating_add(u64::from(self.next > 0));
            return;
        };
        if self.next > 0 && self.next != line.seq {
            self.reports.lost_lines();
        }
        self.next = line.seq.saturating_add(1);
        if let Some(record) = parse(&line) {
            self.killed.recorded(record.pid);
            self.reports.chosen(&line, record.pid, record.limit_cgroup());
            keep(&mut self.records, record);
        } else if let Some(victim) = killed(line.text) {
            self.reports.killed(&victim);
            self.killed.killed(victim);
        } else if let Some(pid) = spared_process(line.text) {
            self.reports.spared(pid);
            self.killed.spared(pid);
            self.records.retain(|record| record.pid != pid);
        } else {
            self.reports.line(&line);
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

    /// The line of this process, if it was killed without a record. The pid is that of the initial
    /// namespace.
    pub(crate) fn claim_pid(&mut self, pid: u32) -> Option<VictimMemory> {
        self.killed.claim(pid)
    }

    /// Takes the log's naming of this process as a victim: by a record, or by its line alone.
    pub(crate) fn take_victim(&mut self, pid: u32) -> bool {
        self.killed.take_victim(pid, Instant::now())
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

/// Parses a record: `dump_oom_victim` in mm/oom_kill.c. A command name may contain anything, commas
/// and equals signs too, so the line is parsed from its end and the name is the remainder.
fn parse(record: &KernelLine<'_>) -> Option<OomRecord> {
    let line = record.text.strip_prefix("oom-kill:constraint=")?;
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
    let (comm, report) = (truncated(comm).to_owned(), record.seq);
    Some(OomRecord { pid, comm, task_cgroup, oom_cgroup, report })
}

/// The victim that was not killed: `...: OOM victim 7 (sh) is already exiting. Skip killing the
/// task`.
fn spared_process(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once(": OOM victim ")?;
    rest.split_once(" (")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "6,1207,5140900,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
                        oom_memcg=/k/c1,task_memcg=/k/c1/sub,task=sh,pid=321,uid=0\n";

    fn parse(record: &str) -> Option<OomRecord> {
        super::parse(&KernelLine::parse(record)?)
    }

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
        assert_eq!(record.limit_cgroup(), "/k/c1");
        let global = parse(&LINE.replace("oom_memcg=/k/c1,", "global_oom,")).unwrap();
        assert_eq!((global.level("/k/c1"), global.limit_cgroup()), (Level::LEVEL_GUEST, "/"));
    }

    #[test]
    fn record_parsed_with_any_command_name() {
        for comm in ["a,b", "x,pid=7,uid=0", ",task=y", "", "a;b", "\\x0aoom-kill:"] {
            let record = parse(&LINE.replace("task=sh", &format!("task={comm}"))).unwrap();
            assert_eq!((record.pid, record.comm.as_str()), (321, comm));
        }
        let long = parse(&LINE.replace("task=sh", &format!("task={}", "\u{e9}".repeat(500)))).unwrap();
        assert!(long.comm.len() <= 64);
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

    fn victim(pid: u32) -> VictimMemory {
        VictimMemory { pid, comm: "sh".to_owned(), ..VictimMemory::default() }
    }

    #[test]
    fn killed_line_counts_only_without_record() {
        let spared = "Memory cgroup out of memory: OOM victim 7 (sh) is already exiting. Skip";
        assert_eq!((spared_process(spared), spared_process("out of memory")), (Some(7), None));
        let mut pids = KilledPids::default();
        pids.recorded(1);
        for pid in [1, 2, 2] {
            pids.killed(victim(pid));
        }
        assert_eq!([1, 2, 2].map(|pid| pids.claim(pid)), [None, Some(victim(2)), None]);
    }

    #[test]
    fn victim_is_named_once_and_for_a_while() {
        let mut pids = KilledPids::default();
        pids.recorded(1);
        pids.killed(victim(1));
        pids.killed(victim(2));
        pids.recorded(3);
        pids.spared(3);
        let now = Instant::now();
        assert_eq!([1, 1, 2, 3, 4].map(|pid| pids.take_victim(pid, now)), [true, false, true, false, false]);
        pids.recorded(5);
        assert!(!pids.take_victim(5, Instant::now() + NAMED));
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
