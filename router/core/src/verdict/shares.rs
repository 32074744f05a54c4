//! Which cgroups used the memory below a limit above the container.

use serde::Serialize;

use super::paths::is_below;
use crate::signal::{CgroupMemory, KillEvidence};

/// The memory below a limit above the container, as it was read after the kill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryShares {
    /// The cgroup that hit its limit.
    pub cgroup: String,
    /// Its limit in bytes; `None`: it has none, or that was not read.
    pub limit_bytes: Option<u64>,
    /// The container's cgroup directly below it, or the one that contains the container.
    pub own: OwnShare,
    /// The others directly below it, the largest first.
    pub others: Vec<CgroupShare>,
    /// The largest of the others, if it used over half of the limit, and more than the container
    /// can have used before its victim freed its memory. Where the container's cgroup was gone: if
    /// one of its processes had over half of the limit at the kill.
    pub taken_by: Option<CgroupShare>,
}

/// One cgroup's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CgroupShare {
    /// Path below the hierarchy's root.
    pub cgroup: String,
    /// Bytes in use.
    pub usage_bytes: u64,
}

/// The container's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OwnShare {
    /// Path below the hierarchy's root.
    pub cgroup: String,
    /// Whether it is the container's own cgroup.
    pub is_container: bool,
    /// Bytes in use after the kill; `None`: it was gone.
    pub usage_bytes: Option<u64>,
    /// Resident bytes of the processes that were killed, as the kernel reported them.
    pub killed_bytes: Option<u64>,
}

impl MemoryShares {
    /// From the evidence of a kill at the limit of `cgroup`; `None` unless it is above the
    /// container and what is below it was read.
    pub(super) fn of(evidence: &KillEvidence, cgroup: &str, limit_bytes: Option<u64>) -> Option<Self> {
        let at = evidence.cgroups.iter().position(|it| it.path == cgroup)?;
        let (own, limited) = (evidence.cgroups.get(at.checked_sub(1)?)?, &evidence.cgroups[at]);
        let victims = evidence.report.as_ref().map(|it| it.victims.as_slice()).unwrap_or_default();
        let killed = victims.iter().fold(0_u64, |sum, it| sum.saturating_add(it.rss_bytes()));
        let own = OwnShare {
            cgroup: own.path.clone(),
            is_container: at == 1,
            usage_bytes: own.usage_bytes,
            killed_bytes: (!victims.is_empty()).then_some(killed),
        };
        let others: Vec<CgroupShare> = others(limited, &own.cgroup).collect();
        if others.is_empty() {
            return None;
        }
        let limit_bytes = limit_bytes.or(limited.limit.bytes());
        let is_most = |bytes: u64| limit_bytes.is_some_and(|limit| bytes > limit / 2);
        let is_taker = |other: &CgroupShare| match own.usage_bytes {
            Some(_) => own.is_below(other.usage_bytes),
            None => is_most(anonymous(evidence, &other.cgroup)),
        };
        let taken_by = others.first().filter(|it| is_most(it.usage_bytes) && is_taker(it)).cloned();
        Some(Self { cgroup: cgroup.to_owned(), limit_bytes, own, others, taken_by })
    }
}

impl OwnShare {
    /// Whether it was smaller at the kill, however much of its victims' memory was freed since.
    fn is_below(&self, bytes: u64) -> bool {
        let most = self.usage_bytes.zip(self.killed_bytes).map(|(left, killed)| left.saturating_add(killed));
        most.is_some_and(|most| most < bytes)
    }
}

/// Anonymous bytes that the largest process of a cgroup had at the kill, as far as that is known.
/// Not the sum: processes share pages after a fork.
fn anonymous(evidence: &KillEvidence, cgroup: &str) -> u64 {
    let processes = evidence.report.as_ref().map(|it| it.processes.as_slice()).unwrap_or_default();
    let is_within = |path: &String| path == cgroup || is_below(path, cgroup);
    let of = processes.iter().filter(|it| it.cgroup.as_ref().is_some_and(is_within));
    of.filter_map(|it| it.anon_bytes).max().unwrap_or(0)
}

fn others<'a>(limited: &'a CgroupMemory, own: &'a str) -> impl Iterator<Item = CgroupShare> + 'a {
    let others = limited.children.iter().filter(move |(path, _)| path != own);
    others.map(|(path, usage_bytes)| CgroupShare { cgroup: path.clone(), usage_bytes: *usage_bytes })
}
