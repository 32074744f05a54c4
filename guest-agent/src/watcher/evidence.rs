//! Gathers the evidence of a kill: the kernel's report, and what the cgroups' files show. It is
//! done a moment after the kill was recorded, so that no signal waits for it.

use std::sync::Arc;
use std::time::Duration;

use coroner_proto::agent::{CgroupMemory, ChildUsage, KernelReport, MemoryStat, OomKill};
use tokio::time::Instant;

use crate::cgroup::{Hierarchy, Limit};
use crate::evidence::{CountedReport, PendingEvidence, ReportSource, only_victim};
use crate::kmsg::is_below;
use crate::shared_state::now;
use crate::watcher::Watcher;

/// Time from the record of a kill until its evidence is gathered. The readers' tasks send it at
/// once, but a reader that the kernel wakes on the agent's processor waits until the agent sleeps:
/// gathered at once, half of the kills arrived 0.9 ms later on two busy processors (debug build).
const GATHER_AFTER: Duration = Duration::from_millis(2);
/// Cgroups from the container's own up. Kubernetes has five. Without a limit a container in a deep
/// tree could make every kill arbitrarily expensive.
const MAX_LEVELS: usize = 16;
/// Cgroups below the one that hit its limit, the largest.
const MAX_CHILDREN: usize = 16;
/// Processes of a report of which the cgroup is read, the largest: 20 µs each.
const MAX_MEMBERS: usize = 8;

impl Watcher {
    /// Notes that a kill was recorded, for its evidence.
    pub(crate) fn expect_evidence(&mut self, key: u32, kill: &OomKill, seq: u64, source: ReportSource) {
        let Some(container) = self.containers.get(&key) else { return };
        let pending = PendingEvidence {
            container: container.id.clone(),
            cgroup: Arc::from(kill.cgroup.as_str()),
            seq,
            limit_cgroup: kill.limit_cgroup.clone(),
            source,
            memory: container.memory.recorded(now().boot_ns),
        };
        self.evidence.expect(pending, Instant::now() + GATHER_AFTER);
    }

    /// Gathers what is due, and releases the reports that are over: without that a burst of kills
    /// would raise the agent's memory by ten reports.
    pub(crate) fn gather_due_evidence(&mut self) {
        self.gather_evidence();
        if let Some(kmsg) = &mut self.kmsg {
            self.evidence.close_reports(|id| kmsg.reports.release(id));
        }
    }

    /// Gathers what was noted.
    fn gather_evidence(&mut self) {
        let all = self.evidence.take_pending();
        if all.is_empty() {
            return;
        }
        // The kernel prints the victim's line after it counted the kill.
        self.victim_chosen();
        for pending in all {
            let report = self.report_of(&pending.source);
            let mut left_out = 0;
            let mut cgroups = Vec::new();
            for path in paths_up(&pending.cgroup).take(MAX_LEVELS) {
                let mut memory = self.cgroup_memory(path);
                if path == pending.limit_cgroup && is_below(&pending.cgroup, path) {
                    left_out = self.add_children(&mut memory);
                }
                cgroups.push(memory);
            }
            self.evidence.put(pending, report, cgroups, left_out);
        }
        self.update_evidence();
    }

    /// The evidence of a container's last kill, encoded.
    pub(crate) fn evidence_of(&mut self, id: &str) -> Option<Vec<u8>> {
        self.victim_chosen();
        self.gather_evidence();
        self.update_evidence();
        self.evidence.get(id).map(<[u8]>::to_vec)
    }

    /// Releases the reports of the kernel's log: what follows them is not about them.
    pub(crate) fn close_reports(&mut self) {
        self.update_evidence();
        self.evidence.close_reports(|_| true);
        if let Some(kmsg) = &mut self.kmsg {
            kmsg.reports.clear();
        }
    }

    fn update_evidence(&mut self) {
        if let Some(kmsg) = &self.kmsg {
            // The pids of the log are the initial namespace's, as the connector's are.
            let hierarchy = self.connector.is_some().then_some(&self.hierarchy);
            let complete = |report: &mut KernelReport| add_cgroups(hierarchy, report);
            self.evidence.update(|id| kmsg.reports.finished(id), complete);
        }
    }

    fn report_of(&mut self, source: &ReportSource) -> Option<CountedReport> {
        let kmsg = self.kmsg.as_mut()?;
        match source {
            ReportSource::Record(id) => {
                let (mut report, left_out) = kmsg.reports.finished(*id)?;
                add_cgroups(self.connector.is_some().then_some(&self.hierarchy), &mut report);
                Some((report, left_out))
            }
            ReportSource::Pid(pid) => kmsg.claim_pid(*pid).map(only_victim),
            ReportSource::Victim(victim) => Some(only_victim((**victim).clone())),
            ReportSource::Earlier | ReportSource::Unknown => None,
        }
    }

    fn cgroup_memory(&self, path: &str) -> CgroupMemory {
        let read = self.hierarchy.memory_evidence(path);
        let stat =
            |(name, bytes): (&str, u64)| MemoryStat { name: name.to_owned(), bytes, ..MemoryStat::default() };
        CgroupMemory {
            path: path.to_owned(),
            usage_bytes: read.usage,
            peak_bytes: read.peak,
            limit_bytes: match read.limit {
                Some(Limit::Bytes(bytes)) => Some(bytes),
                Some(Limit::Unlimited) | None => None,
            },
            limited: read.limit.map(|limit| limit != Limit::Unlimited),
            kills: read.kills,
            stats: read.stats.into_iter().map(stat).collect(),
            ..CgroupMemory::default()
        }
    }

    /// Returns how many children are left out.
    fn add_children(&self, memory: &mut CgroupMemory) -> u32 {
        let read = self.hierarchy.children(&memory.path, MAX_CHILDREN);
        let child = |(path, usage_bytes)| ChildUsage { path, usage_bytes, ..ChildUsage::default() };
        memory.children = read.largest.into_iter().map(child).collect();
        u32::try_from(read.left_out).unwrap_or(u32::MAX)
    }
}

/// A cgroup's path, and those above it up to the root.
fn paths_up(cgroup: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(cgroup).filter(|path| !path.is_empty()), |path| {
        let above = path.rsplit_once('/').filter(|_| *path != "/")?.0;
        Some(if above.is_empty() { "/" } else { above })
    })
}

/// Adds the cgroups of the largest processes that live: the kernel does not print them, and they
/// show which cgroup had the memory at the kill. `None`: pids here are not those of the report.
fn add_cgroups(hierarchy: Option<&Hierarchy>, report: &mut KernelReport) {
    let Some(hierarchy) = hierarchy else { return };
    for process in report.processes.iter_mut().take(MAX_MEMBERS) {
        process.cgroup = hierarchy.cgroup_of(process.pid);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn paths_up_end_at_the_root() {
        let paths = |cgroup| super::paths_up(cgroup).collect::<Vec<_>>();
        assert_eq!(paths("/a/b"), ["/a/b", "/a", "/"]);
        assert_eq!(paths("/"), ["/"]);
        assert_eq!(paths(""), [""; 0]);
    }
}
