//! What CRI reports of a container's end: the first reading, on which a kubelet may act, and the
//! final one.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_cri::v1::{self as api, ContainerState};
use rustix::process::Pid;
use serde_json::Value;

use crate::cri::{Container, Cri};
use crate::wait::{until, until_quiet};

/// How long a reason must stay to be called final. Late events of a stock shim come within 10 ms; a
/// shim that has to repeat itself needs a second.
const QUIET: Duration = Duration::from_millis(1500);

/// The reason and exit code CRI shows of a container that has ended; written `OOMKilled/137`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reading {
    /// `OOMKilled`, `Error` or `Completed`.
    pub reason: String,
    /// As the shim's Wait reported it.
    pub code: i32,
}

impl Reading {
    /// Whether CRI calls it an OOM kill.
    pub fn is_oom(&self) -> bool {
        self.reason == "OOMKilled"
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.reason, self.code)
    }
}

impl Cri {
    /// What CRI shows now: `None` while the container has not ended.
    pub async fn reading(&mut self, container: &Container) -> Result<Option<Reading>> {
        let (status, _) = self.status(container, false).await?;
        let exited = status.state() == ContainerState::ContainerExited;
        Ok(exited.then_some(Reading { reason: status.reason, code: status.exit_code }))
    }

    /// All that CRI shows of a container, for a person who has to find out why a test failed.
    pub async fn shown(&mut self, container: &Container) -> String {
        format!("{:?}", self.status(container, true).await)
    }

    /// Whether containerd has lost a container: begun again, it could not read what the one before
    /// it had of it.
    pub async fn has_lost(&mut self, container: &Container) -> bool {
        match self.status(container, false).await {
            Ok((status, _)) => status.state() == ContainerState::ContainerUnknown,
            Err(error) => {
                error.downcast_ref::<tonic::Status>().is_some_and(|it| it.code() == tonic::Code::NotFound)
            }
        }
    }

    /// The first reading after the container's end.
    pub async fn first_reading(&mut self, container: &Container, deadline: Duration) -> Result<Reading> {
        let what = format!("container {} to end", container.name);
        until(&what, deadline, async || self.reading(container).await).await
    }

    /// The readings of containers that have ended, once none of them has changed for a while.
    pub async fn final_readings(&mut self, containers: &[Container]) -> Result<Vec<Reading>> {
        until_quiet(QUIET, async || {
            let mut readings = Vec::with_capacity(containers.len());
            for container in containers {
                let reading = self.reading(container).await?;
                readings.push(reading.with_context(|| format!("container {} runs still", container.name))?);
            }
            Ok(readings)
        })
        .await
    }

    /// Waits for a container's end: the first and the final reading.
    pub async fn readings(
        &mut self,
        container: &Container,
        deadline: Duration,
    ) -> Result<(Reading, Reading)> {
        let first = self.first_reading(container, deadline).await?;
        let mut last = self.final_readings(std::slice::from_ref(container)).await?;
        Ok((first, last.remove(0)))
    }

    /// The container's init process, as the host numbers it.
    pub async fn pid(&mut self, container: &Container) -> Result<Pid> {
        let (_, info) = self.status(container, true).await?;
        let pid = info["pid"].as_i64().context("the verbose status has a pid")?;
        Pid::from_raw(pid.try_into()?).context("the container has no process")
    }

    async fn status(
        &mut self,
        container: &Container,
        verbose: bool,
    ) -> Result<(api::ContainerStatus, Value)> {
        let request = api::ContainerStatusRequest { container_id: container.id.clone(), verbose };
        let answer = self.runtime.container_status(request).await.context("reading a container's status")?;
        let answer = answer.into_inner();
        let info = answer.info.get("info").map_or(Ok(Value::Null), |text| serde_json::from_str(text))?;
        Ok((answer.status.context("the answer holds a status")?, info))
    }
}
