//! The kernel's OOM killer: what it killed, and what proves it.

use serde::{Deserialize, Serialize};

/// What proves an OOM kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// A kernel counter rose.
    Counter,
    /// It was announced; no counter was read.
    Announced,
    /// The router concluded it.
    Inferred,
}

/// What shows an OOM kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Witness {
    /// The counter of the container's cgroup.
    Counter,
    /// The counter of the pod's cgroup.
    PodCounter,
    /// The kernel's log.
    KernelLog,
    /// The kernel's tracepoints.
    Trace,
    /// A shim or an agent reported it, and no counter was read.
    Announced,
    /// The router concluded it.
    Inferred,
}

/// The position of the cgroup that hit its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The container's own cgroup.
    Container,
    /// A cgroup below it.
    Child,
    /// A cgroup above it, for example the pod's.
    Ancestor,
    /// The whole guest or node.
    Guest,
    /// Not reported.
    Unknown,
}

/// The process the kernel killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Victim {
    /// Process id in the source's pid namespace.
    pub pid: u32,
    /// `/proc/PID/comm`.
    pub comm: String,
    /// Whether it was the container's init.
    pub is_init: Option<bool>,
}

/// The kernel's OOM killer in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OomKilled {
    /// Kills since the last such signal; 0: memory ran out, but no process was killed.
    pub added: Option<u64>,
    /// The kernel's cumulative counter.
    pub total: Option<u64>,
    /// What proves it.
    pub evidence: Evidence,
    /// `memory.oom.group` killed the cgroup as a whole.
    pub group: Option<bool>,
    /// The position of the cgroup that hit its limit.
    pub level: Level,
    /// The cgroup the kill was counted in.
    pub cgroup: Option<String>,
    /// Its limit in bytes.
    pub limit_bytes: Option<u64>,
    /// The cgroup that hit its limit, as a path below the hierarchy's root; `/`: the whole machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_cgroup: Option<String>,
    /// The limit of that cgroup in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_cgroup_bytes: Option<u64>,
    /// Sorted, without duplicates; empty in records before version 5.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub witnesses: Vec<Witness>,
    /// The killed process.
    pub victim: Option<Victim>,
    /// v2's counter `oom_group_kill`: cgroups that were killed as a whole, at or below this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<u64>,
    /// Received after the exit was ruled.
    pub late: bool,
}

impl OomKilled {
    /// A kill of which only what proves it is known.
    pub fn new(evidence: Evidence) -> Self {
        Self {
            added: None,
            total: None,
            evidence,
            group: None,
            level: Level::Unknown,
            cgroup: None,
            limit_bytes: None,
            limit_cgroup: None,
            limit_cgroup_bytes: None,
            witnesses: Vec::new(),
            victim: None,
            groups: None,
            late: false,
        }
    }

    /// Whether another report of the same kill has a victim or a level that this one lacks.
    pub fn lacks(&self, other: &Self) -> bool {
        self.victim.is_none() && other.victim.is_some()
            || self.level == Level::Unknown && other.level != Level::Unknown
    }

    /// Adds what another report of the same kill has and this one lacks.
    pub fn complete(&mut self, other: &Self) {
        self.victim = self.victim.take().or_else(|| other.victim.clone());
        self.cgroup = self.cgroup.take().or_else(|| other.cgroup.clone());
        self.limit_bytes = self.limit_bytes.or(other.limit_bytes);
        if self.level == Level::Unknown {
            self.level = other.level;
        }
        if self.level == other.level && self.limit_cgroup.is_none() {
            self.limit_cgroup.clone_from(&other.limit_cgroup);
            self.limit_cgroup_bytes = other.limit_cgroup_bytes;
        }
        if !other.witnesses.is_empty() {
            self.witnesses = self.witnesses();
            self.witnesses.extend(&other.witnesses);
            self.witnesses.sort_unstable();
            self.witnesses.dedup();
        }
    }

    /// What shows it; derived where the record is too old to list it.
    pub fn witnesses(&self) -> Vec<Witness> {
        if !self.witnesses.is_empty() {
            return self.witnesses.clone();
        }
        vec![match self.evidence {
            Evidence::Counter => Witness::Counter,
            Evidence::Announced => Witness::Announced,
            Evidence::Inferred => Witness::Inferred,
        }]
    }
}
