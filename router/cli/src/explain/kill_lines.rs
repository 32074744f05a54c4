//! The evidence of a kill in text: limit, victim, processes, and which cgroups used the memory.

use std::time::Duration;

use coroner_core::signal::{KillEvidence, LimitChange, ProcessMemory};
use coroner_core::verdict::{Gap, KillFacts, MemoryShares, Verdict, VictimFacts};

use crate::render::{size, span};

/// Processes that are listed.
const PROCESSES: usize = 5;
/// Other cgroups that are listed.
const SHARES: usize = 3;

/// The lines, each with its name. Without evidence there are none.
pub(super) fn lines(verdict: &Verdict) -> Vec<(&'static str, String)> {
    let (Some(evidence), Some(kill)) = (&verdict.evidence, &verdict.kill) else { return Vec::new() };
    let mut lines = Vec::new();
    lines.extend(limit(verdict, kill).map(|it| ("limit", it)));
    lines.extend(limits(evidence, kill).map(|it| ("limits", it)));
    lines.extend(kill.victim.as_ref().and_then(victim).map(|it| ("victim", it)));
    lines.extend(processes(evidence).map(|it| ("processes", it)));
    lines.extend(kill.shares.as_ref().map(shares));
    let gaps: Vec<String> = verdict.unknown.iter().filter(|it| is_of_evidence(it)).map(gap).collect();
    lines.extend((!gaps.is_empty()).then(|| ("not known", gaps.join("; "))));
    lines
}

/// The limit that was hit, with its use.
fn limit(verdict: &Verdict, kill: &KillFacts) -> Option<String> {
    let path = kill.limit.cgroup.as_deref()?;
    let of = match (path, kill.limit.bytes) {
        ("/", _) => "the whole machine".to_owned(),
        (_, Some(bytes)) => format!("{path} of {}", size(bytes)),
        (_, None) => path.to_owned(),
    };
    let uses = uses(verdict);
    Some(if uses.is_empty() { of } else { format!("{of}: {}", uses.join(", ")) })
}

/// Use of the cgroup that hit its limit: at the kill, after it, and the most.
pub(super) fn uses(verdict: &Verdict) -> Vec<String> {
    let mut uses = Vec::new();
    let report = verdict.evidence.as_ref().and_then(|it| it.report.as_ref());
    if let Some(usage) = report.and_then(|it| it.usage.iter().find(|it| it.name == "memory")) {
        uses.push(format!("{} used at the kill", size(usage.usage_bytes)));
    }
    if let Some(memory) = verdict.limit_memory() {
        uses.extend(memory.usage_bytes.map(|it| format!("{} after it", size(it))));
        uses.extend(memory.peak_bytes.map(|it| format!("peak {}", size(it))));
    }
    uses
}

/// The limits of the container's cgroup, if there was more than one.
fn limits(evidence: &KillEvidence, kill: &KillFacts) -> Option<String> {
    let [first, changes @ ..] = evidence.limits.as_slice() else { return None };
    let name = |it: &LimitChange| it.limit_bytes.map_or_else(|| "no limit".to_owned(), size);
    let change = |it: &LimitChange| {
        let since = kill.at.boot_ns.and_then(|kill| kill.checked_sub(it.boot_ns));
        let since = since.map(|it| format!(" {} before the kill", span(Duration::from_nanos(it))));
        format!("{}{}", name(it), since.unwrap_or_default())
    };
    let changes: Vec<String> = changes.iter().map(change).collect();
    (!changes.is_empty()).then(|| format!("{}, then {}", name(first), changes.join(", then ")))
}

/// The victim; `None`: nothing of it is known but what the verdict has.
fn victim(victim: &VictimFacts) -> Option<String> {
    Some(format!("{}: {}", process(victim.comm.as_deref(), victim.pid), victim_size(victim)?))
}

/// Its memory at the kill.
pub(super) fn victim_size(victim: &VictimFacts) -> Option<String> {
    let memory = victim.memory?;
    let parts =
        [(memory.anon_bytes, "anonymous"), (memory.file_bytes, "of files"), (memory.shmem_bytes, "shared")];
    let parts = parts.map(|(bytes, name)| format!("{} {name}", size(bytes)));
    Some(format!("{} ({})", size(memory.bytes()), parts.join(", ")))
}

/// The largest processes that could have been the victim.
fn processes(evidence: &KillEvidence) -> Option<String> {
    let mut processes: Vec<&ProcessMemory> = evidence.report.as_ref()?.processes.iter().collect();
    processes.sort_by_key(|it| std::cmp::Reverse(it.rss_bytes));
    let one = |it: &&ProcessMemory| format!("{} {}", process(it.comm.as_deref(), it.pid), size(it.rss_bytes));
    let listed: Vec<String> = processes.iter().take(PROCESSES).map(one).collect();
    let more = match processes.len().saturating_sub(PROCESSES) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    (!listed.is_empty()).then(|| format!("{}{more}", listed.join(", ")))
}

/// `sh (pid 7)`, or `pid 7`.
pub(super) fn process(comm: Option<&str>, pid: u32) -> String {
    comm.map_or_else(|| format!("pid {pid}"), |comm| format!("{comm} (pid {pid})"))
}

/// The shares of the cgroups below the limit, and whether one of them took the memory.
fn shares(shares: &MemoryShares) -> (&'static str, String) {
    let own = own_share(shares);
    let of = shares.limit_bytes.map(|it| format!(" of {}", size(it))).unwrap_or_default();
    if let Some(taker) = &shares.taken_by {
        let taker = format!("{} {}{of}", taker.cgroup, size(taker.usage_bytes));
        return ("taken by", format!("{taker}, {own}; after the kill"));
    }
    let others = shares.others.iter().take(SHARES);
    let others: Vec<String> = others.map(|it| format!("{} {}", it.cgroup, size(it.usage_bytes))).collect();
    ("shares", format!("{own}, {}{of}; after the kill", others.join(", ")))
}

/// The container's share, and what the killed processes had, of which it may have freed some.
pub(super) fn own_share(shares: &MemoryShares) -> String {
    let own = &shares.own;
    let name = match own.is_container {
        true => "this container".to_owned(),
        false => format!("{} with this container", own.cgroup),
    };
    let usage = own.usage_bytes.map_or_else(|| "not known".to_owned(), size);
    let killed = own.killed_bytes.map(|it| format!(" (killed processes had {})", size(it)));
    format!("{name} {usage}{}", killed.unwrap_or_default())
}

fn is_of_evidence(gap: &Gap) -> bool {
    match gap {
        Gap::KernelReport | Gap::PartsOfKernelReport | Gap::VictimSize | Gap::ProcessNames => true,
        Gap::Samples | Gap::LeftOut(_) => true,
        Gap::KillCount(_) | Gap::Status | Gap::Cause | Gap::Evidence => false,
        Gap::Victim | Gap::VictimRole | Gap::Limit => false,
    }
}

/// What could not be read.
pub(super) fn gap(gap: &Gap) -> String {
    match gap {
        Gap::KillCount(because) => format!("whether it was killed for memory: {because}"),
        Gap::Status => "the exit status".to_owned(),
        Gap::Cause => "what sent the signal".to_owned(),
        Gap::Victim => "which process was killed".to_owned(),
        Gap::VictimRole => "whether its first process was killed".to_owned(),
        Gap::Limit => "which cgroup hit its limit".to_owned(),
        Gap::Evidence => "the evidence of the kill: no record has it".to_owned(),
        Gap::KernelReport => "the kernel's report: its log had none that was readable".to_owned(),
        Gap::PartsOfKernelReport => {
            "parts of the kernel's report: suppressed by the kernel, or overwritten".to_owned()
        }
        Gap::VictimSize => "the victim's memory".to_owned(),
        Gap::ProcessNames => "names of processes: the agent leaves them out".to_owned(),
        Gap::Samples => "memory before the kill: no sample was taken".to_owned(),
        Gap::LeftOut(1) => "1 entry that was cut for the limits of the protocol".to_owned(),
        Gap::LeftOut(count) => format!("{count} entries that were cut for the limits of the protocol"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::fixtures::{OWN_LIMIT, POD_LIMIT, STOPPED, reading};

    fn check(records: &str, expect: &[&str]) {
        let lines = lines(&reading(records).verdict);
        let lines: Vec<String> = lines.iter().map(|(name, text)| format!("{name}: {text}")).collect();
        assert_eq!(lines, expect);
    }

    #[test]
    fn evidence_is_shown_with_the_time_of_each_number() {
        check(
            OWN_LIMIT,
            &[
                "limit: /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod5e0c.slice/cri-containerd-9f2c4be1a7d0.scope of 512 MiB: 512 MiB used at the kill, 53.5 MiB after it, peak 512 MiB",
                "limits: 384 MiB, then 512 MiB 29.6 s before the kill",
                "victim: node (pid 41230): 459.5 MiB (441 MiB anonymous, 18.5 MiB of files, 0 bytes shared)",
                "processes: node (pid 41230) 459.5 MiB, node (pid 41302) 28.1 MiB, log-shipper (pid 41311) 14.7 MiB, curl (pid 41340) 5.6 MiB, sh (pid 41288) 2.5 MiB, and 1 more",
            ],
        );
        check(STOPPED, &[]);
    }

    #[test]
    fn neighbour_is_named_that_took_the_memory() {
        check(
            POD_LIMIT,
            &[
                "limit: /kubepods.slice/kubepods-pod81aa.slice of 512 MiB: 512 MiB used at the kill, 398 MiB after it, peak 512 MiB",
                "victim: chrome (pid 51877): 123 MiB (96 MiB anonymous, 21 MiB of files, 6 MiB shared)",
                "processes: cache-warmer (pid 52011) 335 MiB, chrome (pid 51877) 123 MiB, renderer (pid 51860) 22 MiB, cache-proxy (pid 51990) 15 MiB, pause (pid 51801) 409.5 KiB",
                "taken by: /kubepods.slice/kubepods-pod81aa.slice/cri-containerd-77e0b3ac91d2.scope 351 MiB of 512 MiB, this container 38 MiB (killed processes had 123 MiB); after the kill",
                "not known: 3 entries that were cut for the limits of the protocol",
            ],
        );
        // The container may have used as much before its victim freed its memory.
        let even = POD_LIMIT.replace("368050176", "168050176");
        let shares = lines(&reading(&even).verdict).into_iter().find(|it| it.0 == "shares").unwrap().1;
        assert_eq!(
            shares,
            "this container 38 MiB (killed processes had 123 MiB), /kubepods.slice/kubepods-pod81aa.slice/cri-containerd-77e0b3ac91d2.scope 160.2 MiB, /kubepods.slice/kubepods-pod81aa.slice/cri-containerd-0d3f58a2c6b7.scope 512 KiB of 512 MiB; after the kill"
        );
    }
}
