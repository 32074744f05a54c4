//! Requests on running pods: their limit, a command in a container, their end.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_cri::v1 as api;

use crate::cri::{Container, Cri, Pod};
use crate::report::print;
use crate::wait::until;

/// A pod is removed within moments; this allows for a machine under load.
const REMOVED: Duration = Duration::from_secs(30);
const HIERARCHIES: &str = "/sys/fs/cgroup";

impl Pod {
    /// Limits the memory of all its containers together, as a kubelet does: that of the cgroup they
    /// are in, which a pod shares with others unless it was started by `run_pod_as`.
    pub fn limit_memory(&self, limit_mb: u64) -> Result<()> {
        let bytes = (limit_mb << 20).to_string();
        let version_1 = Path::new(HIERARCHIES).join("memory").join(self.cgroup());
        let (file, swap) = if version_1.is_dir() {
            (version_1.join("memory.limit_in_bytes"), version_1.join("memory.memsw.limit_in_bytes"))
        } else {
            let cgroup = Path::new(HIERARCHIES).join(self.cgroup());
            (cgroup.join("memory.max"), cgroup.join("memory.swap.max"))
        };
        fs::write(&file, &bytes).with_context(|| format!("writing {}", file.display()))?;
        // Version 1 limits memory and swap together, version 2 swap alone. A kernel without swap
        // has neither file.
        let swap_bytes = if version_1.is_dir() { &bytes } else { "0" };
        if swap.exists() {
            fs::write(&swap, swap_bytes).with_context(|| format!("writing {}", swap.display()))?;
        }
        Ok(())
    }
}

impl Cri {
    /// Runs a command in a running container to its end, at most for `deadline`, and answers its
    /// exit code.
    pub async fn exec_sync(
        &mut self,
        container: &Container,
        argv: &[&str],
        deadline: Duration,
    ) -> Result<i32> {
        let request = api::ExecSyncRequest {
            container_id: container.id.clone(),
            cmd: argv.iter().map(|&argument| argument.to_owned()).collect(),
            timeout: deadline.as_secs().try_into()?,
        };
        let answer = self.runtime.exec_sync(request).await.with_context(|| format!("running {argv:?}"))?;
        Ok(answer.into_inner().exit_code)
    }

    /// Stops a pod: its containers, and then its sandbox.
    pub async fn stop_pod(&mut self, pod: &Pod) -> Result<()> {
        let request = api::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.stop_pod_sandbox(request).await.context("stopping a pod sandbox")?;
        Ok(())
    }

    /// Removes a pod, and stops it first if it runs. Again while it fails, as a kubelet does:
    /// containerd 1.7 kills a container that has just ended, through a shim that is ending.
    pub async fn remove_pod(&mut self, pod: &Pod) -> Result<()> {
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        until("a pod sandbox to be removed", REMOVED, async || {
            let removed = self.runtime.remove_pod_sandbox(request.clone()).await;
            Ok(removed.inspect_err(|status| print(format_args!("removing a pod sandbox: {status}"))).ok())
        })
        .await?;
        Ok(())
    }
}
