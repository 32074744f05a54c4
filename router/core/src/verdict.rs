//! What the records of a container show of its end. Every text about an end is derived from it.
//!
//! ```text
//! audit records --> DeathRecords --> Verdict --> sentence, JSON, page
//! ```

mod certainty;
mod conclusion;
mod paths;
mod published;
mod records;
mod shares;

use std::sync::Arc;

use serde::Serialize;

use crate::signal::{Cause, CgroupMemory, KillEvidence, Level, Moment, OomKilled, VictimMemory, Witness};

pub use published::{CriReason, CriView, PublishedAction, RulingAuthor};
pub use records::DeathRecords;
pub use shares::{CgroupShare, MemoryShares};

/// The end of one container. A fact that no record has is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verdict {
    /// What ended it.
    pub ended_by: EndedBy,
    /// The exit of its first process; `None`: no record has it.
    pub exit: Option<ExitFacts>,
    /// Why its guest was lost; `None`: no record has that.
    pub guest_lost: Option<String>,
    /// The last OOM kill in it; `None`: no record has one.
    pub kill: Option<KillFacts>,
    /// What was published, and by which policy.
    pub published: CriView,
    /// How certain `ended_by` is.
    pub certainty: Certainty,
    /// What could not be read.
    pub unknown: Vec<Gap>,
    /// The evidence of that kill. The records have it.
    #[serde(skip)]
    pub evidence: Option<Arc<KillEvidence>>,
}

/// What ended a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndedBy {
    /// The kernel's OOM killer, which killed its first process or all of them.
    OomKill,
    /// A signal of another cause.
    Signal,
    /// Its first process: it exited with a code.
    Code,
    /// A code or a signal: the records do not show which.
    CodeOrSignal,
    /// The loss of its guest.
    GuestLost,
    /// Nothing: no record has its end.
    Nothing,
}

/// How certain it is what ended a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    /// The kernel or the runtime reported it.
    Seen,
    /// It follows from other facts, for example a kill request before the end.
    Derived,
    /// What the records have fits more than one cause.
    Open,
}

/// The exit of a container's first process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExitFacts {
    /// When it was reported.
    pub at: Moment,
    /// Exit code, or 128 + signal.
    pub status: Option<u32>,
    /// Whether a signal ended it; false: it exited with a code.
    pub by_signal: Option<bool>,
    /// The signal that ended it.
    pub signal: Option<u8>,
    /// Whether it dumped core.
    pub core: Option<bool>,
    /// What sent the signal.
    pub cause: Option<Cause>,
    /// The signal that was sent through the runtime before, if the status is of that signal.
    pub requested: Option<u8>,
    /// Nanoseconds since the last kill, on the clock of the machine that reported both.
    pub after_kill_ns: Option<u64>,
    /// Found after a time in which no router ran.
    pub reconciled: bool,
}

/// An OOM kill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct KillFacts {
    /// Id of its signal.
    pub id: String,
    /// When it was reported.
    pub at: Moment,
    /// Kills in the records; one of a group is one.
    pub recorded: usize,
    /// The container's counter of killed processes at its exit.
    pub counted: Option<u64>,
    /// The limit that was hit.
    pub limit: LimitFacts,
    /// The process that was killed.
    pub victim: Option<VictimFacts>,
    /// Whether it ended the container's first process.
    pub hit_init: Option<bool>,
    /// Whether the whole container was killed as a group.
    pub group: Option<bool>,
    /// Processes that were killed.
    pub processes: Option<u64>,
    /// What shows it.
    pub witnesses: Vec<Witness>,
    /// It was reported after the exit was ruled.
    pub late: bool,
    /// Of a limit above the container: which cgroups used the memory.
    pub shares: Option<MemoryShares>,
}

/// The limit that an OOM kill hit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LimitFacts {
    /// Its position.
    pub level: Level,
    /// Its cgroup, as a path below the hierarchy's root; `/`: the whole machine.
    pub cgroup: Option<String>,
    /// Its bytes.
    pub bytes: Option<u64>,
    /// The limit of the container's own cgroup, in bytes.
    pub own_bytes: Option<u64>,
}

impl From<&OomKilled> for LimitFacts {
    fn from(kill: &OomKilled) -> Self {
        Self {
            level: kill.level,
            cgroup: kill.limit_cgroup.clone(),
            bytes: kill.limit_cgroup_bytes,
            own_bytes: kill.limit_bytes,
        }
    }
}

/// The process that an OOM kill ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VictimFacts {
    /// As the source reports it.
    pub pid: u32,
    /// `None`: the agent's configuration leaves names out.
    pub comm: Option<String>,
    /// Whether it was the container's first process.
    pub is_init: Option<bool>,
    /// Its memory at the kill.
    pub memory: Option<VictimSize>,
}

/// The resident memory of a killed process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VictimSize {
    /// Anonymous memory.
    pub anon_bytes: u64,
    /// File pages.
    pub file_bytes: u64,
    /// Shared memory.
    pub shmem_bytes: u64,
}

impl VictimSize {
    /// All of it.
    pub fn bytes(self) -> u64 {
        self.anon_bytes.saturating_add(self.file_bytes).saturating_add(self.shmem_bytes)
    }
}

impl From<&VictimMemory> for VictimSize {
    fn from(victim: &VictimMemory) -> Self {
        let VictimMemory { anon_bytes, file_bytes, shmem_bytes, .. } = *victim;
        Self { anon_bytes, file_bytes, shmem_bytes }
    }
}

/// A fact that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gap {
    /// The counter of OOM kills at the exit, of an end that a kill could explain; and why.
    KillCount(String),
    /// The exit status.
    Status,
    /// What sent the signal.
    Cause,
    /// Which process was OOM-killed.
    Victim,
    /// Whether that was the container's first process.
    VictimRole,
    /// Which cgroup hit its limit.
    Limit,
    /// All evidence of the kill.
    Evidence,
    /// The kernel's report of the kill.
    KernelReport,
    /// Parts of that report: the kernel suppressed them, or they were overwritten.
    PartsOfKernelReport,
    /// The victim's memory.
    VictimSize,
    /// Names of processes, by the agent's configuration.
    ProcessNames,
    /// Memory in the minute before the kill.
    Samples,
    /// So many entries of the evidence, for the limits of the protocol.
    LeftOut(u32),
}

impl Verdict {
    /// The evidence about the cgroup that hit its limit.
    pub fn limit_memory(&self) -> Option<&CgroupMemory> {
        let path = self.kill.as_ref()?.limit.cgroup.as_deref()?;
        self.evidence.as_ref()?.cgroups.iter().find(|it| it.path == path)
    }
}

#[cfg(test)]
mod tests;
