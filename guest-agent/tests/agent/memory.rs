//! Samples and limits in the evidence of a kill: of a real process that grows, and by imitated
//! files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use coroner_agent::EvidenceDetail;
use coroner_proto::agent::{Evidence, MemorySample};

use crate::evidence::evidence_of;
use crate::harness::{Agent, Reader, Scratch, unique};
use crate::imitated::{cgroup, hierarchy};

const LIMIT: u64 = 32 << 20;
/// Holds 5 MiB more each second: tail keeps a line until it ends.
const GROW: &str = "read go; while head -c 1048576 /dev/zero; do sleep 0.2; done | tail; read end";

fn usages(evidence: &Evidence) -> Vec<u64> {
    evidence.samples.iter().map(|it| it.usage_bytes).collect()
}

fn limits(evidence: &Evidence) -> Vec<Option<u64>> {
    evidence.limits.iter().map(|it| it.limit_bytes).collect()
}

fn is_rising(samples: &[MemorySample]) -> bool {
    let is_after = |two: &[MemorySample]| two[0].boot_ns < two[1].boot_ns;
    samples.windows(2).all(|two| two[0].usage_bytes < two[1].usage_bytes && is_after(two))
}

#[tokio::test]
async fn growth_and_resize_before_a_kill_are_recorded() {
    let scratch = Scratch::new();
    let agent = Agent::start(&[&scratch.name], None);
    let mut reader = agent.reader().await;
    let id = format!("grows-{}", unique());
    let mut child = reader.run(&scratch, &id, LIMIT / 2, GROW).await;
    for file in ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"] {
        let file = scratch.folder(&id).join(file);
        if file.exists() {
            fs::write(file, LIMIT.to_string()).unwrap();
        }
    }
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    reader.until_kill(&id).await;
    let evidence = evidence_of(&reader, &id).await.unwrap();
    let seq = reader.seen.iter().rfind(|signal| signal.container_id == id).unwrap();
    assert_eq!(limits(&evidence), [Some(LIMIT / 2), Some(LIMIT)], "{:?}", evidence.limits);
    let samples = &evidence.samples;
    assert!(samples.len() >= 2 && is_rising(samples), "{samples:?}");
    assert!(samples.iter().all(|it| it.usage_bytes > LIMIT / 2 && it.limit_bytes == Some(LIMIT)));
    // v1 has no PSI.
    assert!(samples.iter().all(|it| (it.some_us, it.full_us) == (None, None)));
    let last = samples.last().unwrap();
    assert!((LIMIT / 4 * 3..=LIMIT).contains(&last.usage_bytes), "{samples:?}");
    assert!(last.boot_ns < seq.boot_ns && evidence.limits[1].boot_ns < samples[0].boot_ns);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A container with a limit of 1 MiB, and what its files have then.
struct Imitated {
    mount: tempfile::TempDir,
    reader: Reader,
    _agent: Agent,
}

const MIB: u64 = 1 << 20;

impl Imitated {
    async fn start(containers: usize, detail: EvidenceDetail) -> Self {
        let mount = hierarchy();
        for at in 0..containers {
            let folder = cgroup(mount.path(), &format!("c{at}"));
            fs::write(folder.join("memory.events"), events(0, 0)).unwrap();
            fs::write(folder.join("memory.pressure"), pressure(7, 3)).unwrap();
        }
        let agent = Agent::start_with(&["r"], Some(mount.path().to_owned()), detail);
        Self { reader: agent.reader().await, mount, _agent: agent }
    }

    fn folder(&self, at: usize) -> PathBuf {
        self.mount.path().join(format!("r/c{at}"))
    }

    fn uses(&self, at: usize, bytes: u64) {
        overwrite(&self.folder(at).join("memory.current"), &format!("{bytes:>20}\n"));
    }

    /// The kernel's notice that the limit was reached. The agent has applied it then.
    async fn reaches_limit(&self, at: usize) {
        overwrite(&self.folder(at).join("memory.events"), &events(1, 0));
        self.reader.final_count(&format!("c{at}")).await;
    }

    async fn kill(&mut self, at: usize) -> Evidence {
        overwrite(&self.folder(at).join("memory.events"), &events(1, 1));
        self.evidence(at).await
    }

    async fn evidence(&mut self, at: usize) -> Evidence {
        let id = format!("c{at}");
        self.reader.until_kill(&id).await;
        evidence_of(&self.reader, &id).await.unwrap()
    }
}

fn pressure(some: u64, full: u64) -> String {
    let line = |name, total| format!("{name} avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
    line("some", some) + &line("full", full)
}

fn events(max: u64, kills: u64) -> String {
    format!("max {max}\noom {kills}\noom_kill {kills}\n")
}

/// In one write, as the kernel changes a file: it is never empty.
fn overwrite(file: &Path, text: &str) {
    fs::OpenOptions::new().write(true).open(file).unwrap().write_all(text.as_bytes()).unwrap();
}

/// Without a notice: a file that is replaced causes none.
fn replace(file: &Path, text: &str) {
    let next = file.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, file).unwrap();
}

#[tokio::test]
async fn container_short_of_memory_is_sampled_at_once() {
    let mut it = Imitated::start(2, EvidenceDetail::Full).await;
    it.uses(0, MIB / 2 + 4096);
    it.uses(1, MIB / 2);
    for at in 0..2 {
        it.reaches_limit(at).await;
    }
    let above = it.kill(0).await;
    let sample = &above.samples[0];
    assert_eq!((sample.usage_bytes, sample.limit_bytes), (MIB / 2 + 4096, Some(MIB)));
    assert_eq!((sample.some_us, sample.full_us), (Some(7), Some(3)));
    assert_eq!(usages(&it.kill(1).await), [0; 0]);
}

#[tokio::test]
async fn usage_is_compared_with_the_smallest_limit() {
    let mut it = Imitated::start(1, EvidenceDetail::Full).await;
    fs::write(it.mount.path().join("r/memory.max"), (MIB / 2).to_string()).unwrap();
    it.uses(0, MIB / 4 + 4096);
    // The limits above are read when the own one is written.
    fs::write(it.folder(0).join("memory.max"), (2 * MIB).to_string()).unwrap();
    it.reaches_limit(0).await;
    let evidence = it.kill(0).await;
    assert_eq!(evidence.samples[0].limit_bytes, Some(MIB / 2));
    assert_eq!(limits(&evidence), [Some(MIB), Some(2 * MIB)]);
}

#[tokio::test]
async fn samples_end_before_the_kill_freed_memory() {
    let mut it = Imitated::start(1, EvidenceDetail::Full).await;
    it.uses(0, MIB);
    it.reaches_limit(0).await;
    replace(&it.folder(0).join("memory.events"), &events(1, 1));
    it.uses(0, MIB / 4 * 3);
    let evidence = it.evidence(0).await;
    let usages = usages(&evidence);
    assert!(!usages.is_empty() && usages.iter().all(|usage| *usage == MIB), "{usages:?}");
}

#[tokio::test]
async fn limit_is_read_again_at_a_kill() {
    let mut it = Imitated::start(1, EvidenceDetail::Counts).await;
    replace(&it.folder(0).join("memory.max"), "4096\n");
    assert_eq!(limits(&it.kill(0).await), [Some(MIB), Some(4096)]);
}

#[tokio::test]
async fn fullest_containers_are_sampled() {
    const COUNT: usize = 68;
    let mut it = Imitated::start(COUNT, EvidenceDetail::Full).await;
    for at in 0..COUNT {
        it.uses(at, MIB / 2 + 4096 * (1 + at as u64));
        it.reaches_limit(at).await;
    }
    for at in 0..COUNT {
        let samples = it.kill(at).await.samples;
        assert_eq!(samples.is_empty(), at < COUNT - 64, "{at}");
    }
}
