//! The evidence of the container's last OOM kill: what the kernel logged, the cgroups' files after
//! it, and the minute before it. It costs nothing unless [`get`] is called.
//!
//! A kill is ruled at once. Its evidence comes some milliseconds later, as a signal of its own: a
//! policy that wants [`Kinds::EVIDENCE`](crate::Kinds::EVIDENCE) is called for it, and [`get`] has
//! it during that call alone: a ruling follows from its signal, case and draft.

pub use crate::bindings::coroner::policy::evidence::{
    CgroupMemory, KernelReport, KillEvidence, Killed, MemoryLimit, Process, ResourceUsage, Sample,
};

/// The evidence; `None`: the signal is of another kind. At most 16 calls a signal.
#[cfg(target_family = "wasm")]
#[must_use]
pub fn get() -> Option<KillEvidence> {
    crate::bindings::coroner::policy::evidence::get()
}

/// The evidence; `None`: nothing was gathered yet, or nothing can be. Off wasm it is what
/// [`testing::with_evidence`](crate::testing::with_evidence) sets.
#[cfg(not(target_family = "wasm"))]
#[must_use]
pub fn get() -> Option<KillEvidence> {
    crate::testing::evidence_of_test()
}

impl KillEvidence {
    /// The cgroup that hit its limit, where its memory was read.
    #[must_use]
    pub fn limit_cgroup(&self) -> Option<&CgroupMemory> {
        let path = self.report.as_ref()?.limit_cgroup.as_deref()?;
        self.cgroups.iter().find(|cgroup| cgroup.path == path)
    }

    /// The cgroup below the limit with the most memory, and its bytes; `None`: the limit is the
    /// container's own, or was not read.
    #[must_use]
    pub fn largest_below_limit(&self) -> Option<(&str, u64)> {
        let (path, bytes) = self.limit_cgroup()?.children.first()?;
        Some((path, *bytes))
    }
}

impl Killed {
    /// Resident memory in bytes.
    #[must_use]
    pub fn rss(&self) -> u64 {
        self.anon.saturating_add(self.file).saturating_add(self.shmem)
    }
}
