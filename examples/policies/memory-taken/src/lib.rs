//! Example policy: reports what took the memory when an OOM kill hit a container.
//!
//! A limit above the container, for example its pod's, is shared: the kernel kills one of those
//! below it, which is not always the one that took the memory. The report names the cgroup that
//! holds most, as its files show after the kill; at the container's own limit, the largest process.
//!
//! Put it into the policy directory as `70-memory-taken.wasm`, and route the topic `memory-taken`
//! to a sink. It changes nothing that containerd receives.

use coroner_sdk::evidence::{CgroupMemory, KernelReport, KillEvidence, Process};
use coroner_sdk::prelude::*;

/// The topic of its reports.
const TOPIC: &str = "memory-taken";

/// Reports, for each OOM kill with evidence, what holds the memory.
#[derive(Debug, Default)]
pub struct MemoryTaken;

impl Policy for MemoryTaken {
    const NAME: &str = "memory-taken";

    fn wants() -> Kinds {
        Kinds::EVIDENCE
    }

    fn rule(&self, _: &Signal, _: &CaseFile, draft: &[Action]) -> Result<Ruling, String> {
        let Some(evidence) = evidence::get() else { return Ok(Ruling::Pass) };
        let Some((rule, message, fields)) = shared_limit(&evidence).or_else(|| own_limit(&evidence)) else {
            return Ok(Ruling::Pass);
        };
        let report = Report {
            topic: TOPIC.to_owned(),
            reason: rule.to_owned(),
            message: message.clone(),
            fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        };
        let actions = [draft, &[Action::Report(report)]].concat();
        Ok(Ruling::decide(actions, message).by_rule(rule))
    }
}

export_policy!(MemoryTaken);

/// A reason, a message for a person, and fields.
type Finding = (&'static str, String, Vec<(&'static str, String)>);

/// The limit is above the container: the cgroup below it that holds most.
fn shared_limit(evidence: &KillEvidence) -> Option<Finding> {
    let limit = evidence.limit_cgroup()?;
    let (path, bytes) = evidence.largest_below_limit()?;
    let own = evidence.cgroups.first()?;
    let is_own = own.path == path || own.path.starts_with(&format!("{path}/"));
    let holder = if is_own { "this container" } else { path };
    let message = format!("{holder} holds {} below the limit of {}", size(bytes), limit.path);
    let mut fields = vec![("limit-cgroup", limit.path.clone()), ("holder", path.to_owned())];
    fields.push(("holder-bytes", bytes.to_string()));
    fields.extend(own.usage.map(|usage| ("own-bytes", usage.to_string())));
    Some((if is_own { "own" } else { "sibling" }, message, fields))
}

/// The limit is the container's own: its largest process.
fn own_limit(evidence: &KillEvidence) -> Option<Finding> {
    let report = evidence.report.as_ref()?;
    let process = largest(report)?;
    let comm = process.comm.as_deref().unwrap_or("a process");
    let limit = evidence.limit_cgroup().and_then(bytes_of_limit);
    let of = limit.map(|bytes| format!(" of {}", size(bytes))).unwrap_or_default();
    let message = format!("{comm} ({}) held {}{of}", process.pid, size(process.rss));
    let fields = vec![("pid", process.pid.to_string()), ("process-bytes", process.rss.to_string())];
    Some(("process", message, fields))
}

fn largest(report: &KernelReport) -> Option<&Process> {
    report.processes.iter().max_by_key(|process| process.rss)
}

fn bytes_of_limit(cgroup: &CgroupMemory) -> Option<u64> {
    match cgroup.limit {
        evidence::MemoryLimit::Bytes(bytes) => Some(bytes),
        evidence::MemoryLimit::Unlimited | evidence::MemoryLimit::Unknown => None,
    }
}

fn size(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use coroner_sdk::evidence::MemoryLimit;

    use super::*;

    fn cgroup(path: &str, mib: u64, children: &[(&str, u64)]) -> CgroupMemory {
        CgroupMemory {
            path: path.to_owned(),
            usage: Some(mib << 20),
            peak: None,
            limit: MemoryLimit::Bytes(512 << 20),
            kills: None,
            stats: vec![],
            children: children.iter().map(|(path, mib)| ((*path).to_owned(), mib << 20)).collect(),
        }
    }

    fn report(limit: &str, processes: &[(&str, u32, u64)]) -> KernelReport {
        let process = |&(comm, pid, mib): &(&str, u32, u64)| Process {
            pid,
            comm: Some(comm.to_owned()),
            uid: 0,
            total_vm: 0,
            rss: mib << 20,
            anon: None,
            file: None,
            shmem: None,
            page_table: 0,
            swap: 0,
            score_adj: 0,
        };
        KernelReport {
            trigger_comm: None,
            trigger_pid: None,
            limit_cgroup: Some(limit.to_owned()),
            usage: vec![],
            stats: vec![],
            processes: processes.iter().map(process).collect(),
            victims: vec![],
            group: None,
            incomplete: false,
        }
    }

    fn ruled(cgroups: Vec<CgroupMemory>, report: Option<KernelReport>) -> Option<(String, String)> {
        let evidence = KillEvidence { cgroups, report, ..testing::evidence() };
        let signal = testing::signal(Event::Evidence(Gathered { kill: evidence.kill.clone() }));
        let rule = || MemoryTaken.rule(&signal, &testing::case(), &[]);
        match testing::with_evidence(evidence, rule).unwrap() {
            Ruling::Pass => None,
            Ruling::Decide(decision) => Some((decision.rule.unwrap(), decision.because)),
        }
    }

    #[test]
    fn sibling_that_took_the_memory_of_the_pod_is_named() {
        let pod = |children| cgroup("/pod", 510, children);
        let cgroups = vec![cgroup("/pod/victim", 12, &[]), pod(&[("/pod/taker", 480), ("/pod/victim", 12)])];
        let expect = ("sibling".to_owned(), "/pod/taker holds 480 MiB below the limit of /pod".to_owned());
        assert_eq!(ruled(cgroups, Some(report("/pod", &[]))), Some(expect));
        let cgroups = vec![cgroup("/pod/victim", 480, &[]), pod(&[("/pod/victim", 480), ("/pod/other", 12)])];
        let expect = ("own".to_owned(), "this container holds 480 MiB below the limit of /pod".to_owned());
        assert_eq!(ruled(cgroups, Some(report("/pod", &[]))), Some(expect));
    }

    #[test]
    fn largest_process_is_named_at_the_containers_own_limit() {
        let report = report("/c", &[("sh", 1, 2), ("java", 7, 500)]);
        let expect = ("process".to_owned(), "java (7) held 500 MiB of 512 MiB".to_owned());
        assert_eq!(ruled(vec![cgroup("/c", 12, &[])], Some(report)), Some(expect));
    }

    #[test]
    fn passes_without_evidence_or_report() {
        let signal = testing::signal(Event::Evidence(Gathered { kill: String::new() }));
        assert_eq!(MemoryTaken.rule(&signal, &testing::case(), &[]), Ok(Ruling::Pass));
        assert_eq!(ruled(vec![cgroup("/c", 12, &[])], None), None);
    }
}
