//! What the agent keeps of an OOM kill, compared with the kernel's own accounting.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Child;
use std::time::Instant;

use coroner_agent::EvidenceDetail;
use coroner_proto::agent::{CgroupMemory, Evidence, EvidenceRequest, Level, OomKill, ProcessMemory};
use rustix::fs::{Mode, OFlags, SeekFrom};

use crate::harness::{Agent, Reader, Scratch, TIMEOUT, contain, limit, remove, unique};

const LIMIT: u64 = 32 << 20;
const PAGE: u64 = 4096;
/// What a process of the container holds, and no other process.
const HELD: u64 = 4 << 20;
/// Holds it in memory of its own: tail keeps a line until it ends.
const HOLD: &str = "{ head -c 4194304 /dev/zero; exec sleep 600; } | tail";

/// The kernel's log, read beside the agent.
struct Log(rustix::fd::OwnedFd);

impl Log {
    fn open() -> Self {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).unwrap();
        rustix::fs::seek(&file, SeekFrom::End(0)).unwrap();
        Self(file)
    }

    /// A number of kB in the line that names a victim.
    fn of_victim(&self, pid: u32, name: &str) -> u64 {
        let mut buffer = [0; 8 << 10];
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < TIMEOUT, "no line of {pid} in the kernel's log");
            let Ok(length) = rustix::io::read(&self.0, &mut buffer) else { continue };
            let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if line.contains(&format!(": Killed process {pid} (")) {
                let (_, after) = line.split_once(&format!("{name}:")).unwrap();
                return after.split_once("kB").unwrap().0.parse::<u64>().unwrap() * 1024;
            }
        }
    }
}

pub(crate) async fn evidence_of(reader: &Reader, id: &str) -> Option<Evidence> {
    let request = EvidenceRequest { container_id: id.to_owned(), ..EvidenceRequest::default() };
    reader.client.get_evidence(limit(), &request).await.unwrap().evidence.into_option()
}

/// A number of kB in /proc/PID/status, in bytes.
fn status(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

/// The process that holds [`HELD`], once it waits for more.
fn holder(cgroup: &Path) -> u32 {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < TIMEOUT, "nothing holds memory in {}", cgroup.display());
        let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        let named = |name: &str| {
            let mut pids = pids.lines().filter_map(|pid| pid.parse::<u32>().ok());
            pids.find(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
            })
        };
        if let (Some(tail), Some(_)) = (named("tail"), named("sleep")) {
            let waits = fs::read_to_string(format!("/proc/{tail}/stat")).is_ok_and(|it| it.contains(") S "));
            if waits && status(tail, "RssAnon").is_some_and(|bytes| bytes >= HELD) {
                return tail;
            }
        }
    }
}

fn process(evidence: &Evidence, pid: u32) -> &ProcessMemory {
    evidence.report.processes.iter().find(|it| it.pid == pid).unwrap()
}

#[track_caller]
fn assert_near(found: u64, expect: u64, pages: u64) {
    assert!(found.abs_diff(expect) <= pages * PAGE, "{found} is not {expect}");
}

/// How far the report's sizes may be from those of /proc. The report has a counter that misses up
/// to 32 pages for each processor (percpu_counter_batch), /proc adds up all of it.
fn inexact() -> u64 {
    32 * std::thread::available_parallelism().unwrap().get() as u64
}

/// A container in which one process holds memory and another hits the limit.
struct Killed {
    id: String,
    kill: OomKill,
    seq: u64,
    holder: u32,
    held: u64,
    child: Child,
}

/// Repeats it until the kernel's log has the report: there are ten in five seconds at most, for all
/// tests of this machine together.
async fn kill_reported(reader: &mut Reader, scratch: &Scratch) -> Killed {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < TIMEOUT, "no report in the kernel's log");
        let id = format!("evidence-{}", unique());
        let script = format!("{HOLD} & read go; tail /dev/zero; read end");
        let mut child = reader.run(scratch, &id, LIMIT, &script).await;
        let holder = holder(&scratch.folder(&id));
        let held = status(holder, "RssAnon").unwrap();
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        let kill = reader.until_kill(&id).await;
        if kill.level.enum_value() == Ok(Level::LEVEL_CONTAINER) {
            let seq = reader.seen.iter().rfind(|signal| signal.container_id == id).unwrap().seq;
            return Killed { id, kill, seq, holder, held, child };
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn evidence_agrees_with_the_kernels_accounting() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let log = Log::open();
    let Killed { id, kill, seq, holder, held, child } = kill_reported(&mut reader, &scratch).await;
    let evidence = evidence_of(&reader, &id).await.unwrap();
    assert_eq!((evidence.seq, evidence.detail.as_str(), evidence.left_out), (seq, "full", 0));
    let (report, path) = (&*evidence.report, scratch.path(&id));
    assert_eq!((report.limit_cgroup.clone(), report.incomplete), (path.clone(), false), "{report:?}");
    let memory = report.usage.iter().find(|it| it.name == "memory").unwrap();
    assert_eq!(memory.limit_bytes, Some(LIMIT));
    assert!(memory.usage_bytes <= LIMIT && memory.usage_bytes > LIMIT - (1 << 20), "{memory:?}");
    let rss = report.stats.iter().find(|it| it.name == "total_rss").unwrap().bytes;
    assert!(rss > LIMIT / 2 && rss <= LIMIT, "{rss}");
    // The victim, by the line of the kernel's log that the test reads itself.
    let victim = kill.victim.as_ref().unwrap().pid;
    let anon = log.of_victim(victim, "anon-rss");
    let killed = &report.victims[0];
    assert_eq!((report.victims.len(), killed.pid, killed.comm.as_str()), (1, victim, "tail"));
    assert_eq!(killed.anon_bytes, anon);
    assert!(anon > LIMIT - HELD - (6 << 20) && anon < LIMIT - HELD, "{anon}");
    let row = process(&evidence, victim);
    assert_near(row.anon_bytes.unwrap(), anon, 2);
    assert_near(row.rss_bytes, anon + row.file_bytes.unwrap(), 2);
    // The other process, by /proc: it holds what it was given.
    assert_near(process(&evidence, holder).anon_bytes.unwrap(), held, inexact());
    assert_eq!(process(&evidence, holder).comm, "tail");
    // The cgroups as they are now.
    let paths: Vec<&str> = evidence.cgroups.iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, [path.as_str(), &format!("/{}", scratch.name), "/"]);
    let own: &CgroupMemory = &evidence.cgroups[0];
    assert_eq!((own.limit_bytes, own.limited, own.kills), (Some(LIMIT), Some(true), Some(1)));
    assert!(own.peak_bytes.is_some_and(|peak| peak.abs_diff(LIMIT) <= 64 * PAGE), "{own:?}");
    assert!(own.usage_bytes.is_some_and(|usage| (HELD..=LIMIT).contains(&usage)), "{own:?}");
    assert!(own.stats.iter().any(|it| it.name == "total_rss" && it.bytes >= HELD), "{own:?}");
    assert_eq!((evidence.cgroups[1].limit_bytes, evidence.cgroups[1].limited), (None, Some(false)));
    assert!(evidence.cgroups.iter().all(|it| it.children.is_empty()));
    end(child);
}

#[tokio::test]
async fn parents_limit_names_its_children_with_their_usage() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&format!("{}/kubepods*", scratch.name)], None);
    let mut reader = agent.reader().await;
    let root = scratch.cgroup("kubepods", 1 << 40);
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < TIMEOUT, "no report in the kernel's log");
        let name = format!("pod{}", unique());
        let [greedy, idle] = ["1", "2"].map(|end| format!("{:063x}{end}", begun.elapsed().as_nanos()));
        let folder = |id: &str| root.join(&name).join(id);
        for id in [&greedy, &idle] {
            fs::create_dir_all(folder(id)).unwrap();
        }
        fs::write(root.join(&name).join("memory.limit_in_bytes"), LIMIT.to_string()).unwrap();
        let holding = contain(&folder(&idle), HOLD);
        let held = holder(&folder(&idle));
        let victim = contain(&folder(&greedy), "tail /dev/zero; read end");
        let kill = reader.until_kill(&greedy).await;
        let evidence = evidence_of(&reader, &greedy).await.unwrap();
        end(holding);
        end(victim);
        if kill.level.enum_value() == Ok(Level::LEVEL_UNKNOWN) {
            continue;
        }
        let pod = scratch.path(&format!("kubepods/{name}"));
        assert_eq!((kill.limit_cgroup, kill.limit_cgroup_bytes), (pod.clone(), Some(LIMIT)));
        let limited = evidence.cgroups.iter().find(|it| it.path == pod).unwrap();
        assert_eq!((limited.limit_bytes, limited.children.len()), (Some(LIMIT), 2));
        assert!(limited.children[0].usage_bytes >= limited.children[1].usage_bytes, "{limited:?}");
        let usage = |id: &str| {
            let path = format!("{pod}/{id}");
            limited.children.iter().find(|it| it.path == path).unwrap().usage_bytes
        };
        assert!((HELD..2 * HELD).contains(&usage(&idle)), "{limited:?}");
        // The victim may not have freed all of its memory yet.
        assert!((1..=LIMIT - HELD).contains(&usage(&greedy)), "{limited:?}");
        assert_eq!(evidence.report.limit_cgroup, pod);
        assert_eq!(process(&evidence, held).cgroup, Some(format!("{pod}/{idle}")));
        assert!(evidence.cgroups.iter().filter(|it| it.path != pod).all(|it| it.children.is_empty()));
        return;
    }
}

#[tokio::test]
async fn evidence_is_kept_though_the_cgroup_is_removed() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let Killed { id, child, .. } = kill_reported(&mut reader, &scratch).await;
    let kept = evidence_of(&reader, &id).await;
    end(child);
    let begun = Instant::now();
    while !fs::read_to_string(scratch.folder(&id).join("cgroup.procs")).unwrap().is_empty() {
        assert!(begun.elapsed() < TIMEOUT, "the container ends");
    }
    remove(&scratch.folder(&id));
    reader.until_exit(&id).await;
    assert_eq!(evidence_of(&reader, &id).await, kept);
    assert!(kept.is_some_and(|it| !it.report.incomplete));
    assert_eq!(evidence_of(&reader, "unknown").await, None);
    let request = EvidenceRequest { container_id: "../x".to_owned(), ..EvidenceRequest::default() };
    assert!(reader.client.get_evidence(limit(), &request).await.is_err());
}

#[tokio::test]
async fn detail_decides_what_is_kept() {
    let scratch = Scratch::new();
    let counts = Agent::start_with(&[&scratch.name], None, EvidenceDetail::Counts);
    let none = Agent::start_with(&[&scratch.name], None, EvidenceDetail::None);
    let mut reader = counts.reader().await;
    let Killed { id, child, .. } = kill_reported(&mut reader, &scratch).await;
    let evidence = evidence_of(&reader, &id).await.unwrap();
    assert_eq!((evidence.detail.as_str(), evidence.report.trigger_comm.as_str()), ("counts", ""));
    let (processes, victims) = (&evidence.report.processes, &evidence.report.victims);
    assert!(processes.len() >= 4 && processes.iter().all(|it| it.comm.is_empty() && it.rss_bytes > 0));
    assert!(victims.len() == 1 && victims[0].comm.is_empty() && victims[0].anon_bytes > HELD);
    let mut reader = none.reader().await;
    let kill = reader.until_kill(&id).await;
    assert_eq!((kill.limit_cgroup, kill.limit_cgroup_bytes), (scratch.path(&id), Some(LIMIT)));
    assert_eq!(evidence_of(&reader, &id).await, None);
    end(child);
}
