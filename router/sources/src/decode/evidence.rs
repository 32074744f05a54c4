//! The evidence of an OOM kill, as an agent sends it on request.

use coroner_core::signal::{
    CgroupMemory, KernelReport, KillEvidence, LimitChange, MemoryLimit, MemorySample, ProcessMemory,
    ResourceUsage, SignalError, VictimMemory,
};
use coroner_proto::agent;

use super::{MAX_CGROUP, MAX_COMM, bounded};

/// Bytes of an encoded answer: the protocol's limit is 16 KiB. An entry of a list can be two bytes,
/// and takes 150 once it is parsed.
pub(crate) const MAX_BYTES: usize = 20 << 10;
/// Entries of any list. The longest is the kernel's table of processes.
const MAX_ENTRIES: usize = 1024;

/// Checks every string and list of an untrusted message. `kill`: the id of the kill's signal.
pub(crate) fn decode(
    message: agent::Evidence,
    container: &str,
    kill: String,
) -> Result<KillEvidence, SignalError> {
    let check = Check { container };
    Ok(KillEvidence {
        kill,
        detail: check.text("detail", message.detail)?,
        report: message.report.into_option().map(|report| check.report(report)).transpose()?,
        cgroups: check.list("cgroups", message.cgroups, |it| check.cgroup(it))?,
        samples: check.list("samples", message.samples, |it| Ok(sample(&it)))?,
        limits: check.list("limits", message.limits, |it| {
            Ok(LimitChange { boot_ns: it.boot_ns, limit_bytes: it.limit_bytes })
        })?,
        left_out: message.left_out,
    })
}

struct Check<'a> {
    container: &'a str,
}

impl Check<'_> {
    fn text(&self, what: &'static str, text: String) -> Result<String, SignalError> {
        bounded(self.container, what, text, MAX_COMM)
    }

    /// A name that is empty where the agent leaves it out.
    fn comm(&self, text: String) -> Result<Option<String>, SignalError> {
        Ok(Some(self.text("comm", text)?).filter(|it| !it.is_empty()))
    }

    fn path(&self, text: String) -> Result<String, SignalError> {
        bounded(self.container, "cgroup", text, MAX_CGROUP)
    }

    fn list<M, T>(
        &self,
        what: &'static str,
        list: Vec<M>,
        each: impl Fn(M) -> Result<T, SignalError>,
    ) -> Result<Vec<T>, SignalError> {
        let count = list.len();
        if count > MAX_ENTRIES {
            return Err(SignalError::TooMany { what, count, limit: MAX_ENTRIES });
        }
        list.into_iter().map(each).collect()
    }

    fn report(&self, report: agent::KernelReport) -> Result<KernelReport, SignalError> {
        let limit_cgroup = self.path(report.limit_cgroup)?;
        Ok(KernelReport {
            trigger_comm: self.comm(report.trigger_comm)?,
            trigger_pid: report.trigger_pid,
            limit_cgroup: (!limit_cgroup.is_empty()).then_some(limit_cgroup),
            usage: self.list("usage", report.usage, |it| self.usage(it))?,
            stats: self.list("stats", report.stats, |it| self.stat(it))?,
            processes: self.list("processes", report.processes, |it| self.process(it))?,
            victims: self.list("victims", report.victims, |it| self.victim(it))?,
            group: report.group,
            incomplete: report.incomplete,
        })
    }

    fn usage(&self, usage: agent::ResourceUsage) -> Result<ResourceUsage, SignalError> {
        Ok(ResourceUsage {
            name: self.text("name", usage.name)?,
            usage_bytes: usage.usage_bytes,
            limit_bytes: usage.limit_bytes,
            failures: usage.failures,
        })
    }

    fn stat(&self, stat: agent::MemoryStat) -> Result<(String, u64), SignalError> {
        Ok((self.text("name", stat.name)?, stat.bytes))
    }

    fn process(&self, process: agent::ProcessMemory) -> Result<ProcessMemory, SignalError> {
        Ok(ProcessMemory {
            pid: process.pid,
            comm: self.comm(process.comm)?,
            uid: process.uid,
            total_vm_bytes: process.total_vm_bytes,
            rss_bytes: process.rss_bytes,
            anon_bytes: process.anon_bytes,
            file_bytes: process.file_bytes,
            shmem_bytes: process.shmem_bytes,
            page_table_bytes: process.page_table_bytes,
            swap_bytes: process.swap_bytes,
            score_adj: process.score_adj,
            cgroup: process.cgroup.map(|it| self.path(it)).transpose()?,
        })
    }

    fn victim(&self, victim: agent::VictimMemory) -> Result<VictimMemory, SignalError> {
        Ok(VictimMemory {
            pid: victim.pid,
            comm: self.comm(victim.comm)?,
            total_vm_bytes: victim.total_vm_bytes,
            anon_bytes: victim.anon_bytes,
            file_bytes: victim.file_bytes,
            shmem_bytes: victim.shmem_bytes,
        })
    }

    fn cgroup(&self, cgroup: agent::CgroupMemory) -> Result<CgroupMemory, SignalError> {
        Ok(CgroupMemory {
            path: self.path(cgroup.path)?,
            usage_bytes: cgroup.usage_bytes,
            peak_bytes: cgroup.peak_bytes,
            limit: match (cgroup.limit_bytes, cgroup.limited) {
                (Some(bytes), _) => MemoryLimit::Bytes(bytes),
                (None, Some(false)) => MemoryLimit::Unlimited,
                (None, _) => MemoryLimit::Unknown,
            },
            kills: cgroup.kills,
            stats: self.list("stats", cgroup.stats, |it| self.stat(it))?,
            children: self
                .list("children", cgroup.children, |it| Ok((self.path(it.path)?, it.usage_bytes)))?,
        })
    }
}

fn sample(sample: &agent::MemorySample) -> MemorySample {
    MemorySample {
        boot_ns: sample.boot_ns,
        usage_bytes: sample.usage_bytes,
        limit_bytes: sample.limit_bytes,
        some_us: sample.some_us,
        full_us: sample.full_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(limit_bytes: Option<u64>, limited: Option<bool>) -> agent::CgroupMemory {
        agent::CgroupMemory { path: "/a".to_owned(), limit_bytes, limited, ..Default::default() }
    }

    #[test]
    fn absent_facts_stay_unknown() {
        let cgroups = vec![cgroup(Some(7), Some(true)), cgroup(None, Some(false)), cgroup(None, None)];
        let process = agent::ProcessMemory { pid: 1, ..Default::default() };
        let report = agent::KernelReport { processes: vec![process], ..Default::default() };
        let message =
            agent::Evidence { cgroups, report: Some(report).into(), left_out: 3, ..Default::default() };
        let evidence = decode(message, "c", "k".to_owned()).unwrap();
        let limits: Vec<MemoryLimit> = evidence.cgroups.iter().map(|it| it.limit).collect();
        assert_eq!(limits, [MemoryLimit::Bytes(7), MemoryLimit::Unlimited, MemoryLimit::Unknown]);
        assert_eq!(evidence.cgroups[0].usage_bytes, None);
        let report = evidence.report.unwrap();
        assert_eq!((report.trigger_comm, report.limit_cgroup, report.group), (None, None, None));
        assert_eq!((report.processes[0].comm.as_ref(), report.processes[0].anon_bytes), (None, None));
        assert_eq!((evidence.kill.as_str(), evidence.left_out), ("k", 3));
    }

    #[test]
    fn evidence_over_its_limits_is_refused() {
        let samples = vec![agent::MemorySample::default(); MAX_ENTRIES + 1];
        let message = agent::Evidence { samples, ..Default::default() };
        assert!(matches!(decode(message, "c", String::new()), Err(SignalError::TooMany { .. })));
        let victims = vec![agent::VictimMemory { comm: "x".repeat(65), ..Default::default() }];
        let report = agent::KernelReport { victims, ..Default::default() };
        let message = agent::Evidence { report: Some(report).into(), ..Default::default() };
        let long = decode(message, "c", String::new());
        assert!(matches!(long, Err(SignalError::TooLong { what: "comm", limit: 64, .. })), "{long:?}");
    }
}
