//! The evidence of an OOM kill: the kernel's report, the cgroups' files, and the minute before.

use serde::{Deserialize, Serialize};

/// The evidence of one OOM kill, as an agent kept it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KillEvidence {
    /// Id of the kill's signal.
    pub kill: String,
    /// `full`, or `counts`: the agent's configuration leaves names of processes out.
    pub detail: String,
    /// The kernel's report; `None`: the kernel's log has none that was readable.
    pub report: Option<KernelReport>,
    /// From the container's own cgroup up to the root, as they were read after the kill.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<CgroupMemory>,
    /// Memory of the container in the minute before the kill, oldest first. Empty: no sample
    /// was taken; one is taken each second while it is above half of its limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<MemorySample>,
    /// Limits of the container's cgroup as they were read, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitChange>,
    /// Entries that were cut for the limits of the protocol.
    pub left_out: u32,
}

/// The report of the OOM killer in the kernel's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KernelReport {
    /// The process with the failed allocation; `None`: not logged, or left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger_comm: Option<String>,
    /// Its process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger_pid: Option<u32>,
    /// The cgroup that hit its limit; `/`: the whole machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_cgroup: Option<String>,
    /// Usage and limit by resource.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub usage: Vec<ResourceUsage>,
    /// Memory statistics of that cgroup by the kernel's names, in bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stats: Vec<(String, u64)>,
    /// The processes that could have been the victim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessMemory>,
    /// The processes that were killed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub victims: Vec<VictimMemory>,
    /// All processes of the cgroup were killed. `None`: not logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<bool>,
    /// The kernel suppressed parts of the report, or they were overwritten.
    pub incomplete: bool,
}

/// Use of one resource at the kill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ResourceUsage {
    /// `memory`, `swap`, `memory+swap` or `kmem`.
    pub name: String,
    /// Bytes in use.
    pub usage_bytes: u64,
    /// `None`: no limit.
    pub limit_bytes: Option<u64>,
    /// Requests that hit the limit, cumulative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u64>,
}

/// A process that could have been the victim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProcessMemory {
    /// In the initial pid namespace.
    pub pid: u32,
    /// `None`: left out.
    pub comm: Option<String>,
    /// User id.
    pub uid: u32,
    /// Address space.
    pub total_vm_bytes: u64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Anonymous part of it; `None`: kernels before 6.8 print the sum only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anon_bytes: Option<u64>,
    /// File pages of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Shared memory of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shmem_bytes: Option<u64>,
    /// Memory of its page tables.
    pub page_table_bytes: u64,
    /// Memory in swap.
    pub swap_bytes: u64,
    /// `oom_score_adj`.
    pub score_adj: i32,
    /// Its cgroup as a path, after the kill; `None`: it had ended, or is not one of the largest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// A process that was killed, with its memory at that time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VictimMemory {
    /// In the initial pid namespace.
    pub pid: u32,
    /// `None`: left out.
    pub comm: Option<String>,
    /// Address space.
    pub total_vm_bytes: u64,
    /// Anonymous memory.
    pub anon_bytes: u64,
    /// File pages.
    pub file_bytes: u64,
    /// Shared memory.
    pub shmem_bytes: u64,
}

impl VictimMemory {
    /// Resident memory.
    pub fn rss_bytes(&self) -> u64 {
        self.anon_bytes.saturating_add(self.file_bytes).saturating_add(self.shmem_bytes)
    }
}

/// Memory of one cgroup after the kill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CgroupMemory {
    /// Path below the hierarchy's root.
    pub path: String,
    /// Bytes in use; `None`: it was gone.
    pub usage_bytes: Option<u64>,
    /// Most bytes in use.
    pub peak_bytes: Option<u64>,
    /// The limit in bytes, as far as it is known.
    pub limit: MemoryLimit,
    /// Cumulative OOM kills in it and, on v2, below it.
    pub kills: Option<u64>,
    /// `memory.stat`, in bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stats: Vec<(String, u64)>,
    /// Usage of the cgroups directly below it, largest first: of the cgroup that hit its limit
    /// above the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<(String, u64)>,
}

/// A memory limit as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryLimit {
    /// So many bytes.
    Bytes(u64),
    /// There is none.
    Unlimited,
    /// It could not be read.
    Unknown,
}

/// Memory of the container at one moment before the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemorySample {
    /// The source's boot clock, in nanoseconds.
    pub boot_ns: u64,
    /// Bytes in use.
    pub usage_bytes: u64,
    /// Its limit in bytes; `None`: no limit, or not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Cumulative stall of `memory.pressure`, line `some`, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub some_us: Option<u64>,
    /// The same of line `full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_us: Option<u64>,
}

/// A limit as it was read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LimitChange {
    /// The source's boot clock, in nanoseconds.
    pub boot_ns: u64,
    /// `None`: no limit.
    pub limit_bytes: Option<u64>,
}

impl MemoryLimit {
    /// Its bytes; `None`: there is none, or it could not be read.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Unlimited | Self::Unknown => None,
        }
    }
}

impl KillEvidence {
    /// Whether names of processes are in it.
    pub fn has_names(&self) -> bool {
        self.detail == "full"
    }

    /// The container's own cgroup.
    pub fn own_cgroup(&self) -> Option<&CgroupMemory> {
        self.cgroups.first()
    }
}
