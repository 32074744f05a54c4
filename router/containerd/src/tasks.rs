//! containerd's tasks: what ended while the router was down, and what runs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;
use tonic::Status;

use crate::grpc::{connect, namespaces, unary, within};

/// Timeout of the list of all tasks where an end waits for it.
const LISTING: Duration = Duration::from_secs(2);
/// And where nothing waits: containerd queries one shim after another.
const LISTING_RUNNING: Duration = Duration::from_secs(20);
/// `containerd.v1.types.Status`.
const RUNNING: i32 = 2;
const STOPPED: i32 = 3;

/// The state of a task in containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// It has not ended.
    Running,
    /// It has ended, with this status.
    Stopped(u32),
}

/// A task that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningTask {
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// Its init, as the node numbers it.
    pub pid: u32,
}

/// containerd's tasks in every namespace, by container id; `None`: it does not list them.
pub async fn tasks(address: PathBuf) -> Option<HashMap<String, TaskState>> {
    let all = list(address, LISTING).await?.into_iter().map(|(_, task)| {
        let state =
            if task.status == STOPPED { TaskState::Stopped(task.exit_status) } else { TaskState::Running };
        (task.id, state)
    });
    Some(all.collect())
}

/// containerd's running tasks in every namespace; `None`: it does not list them.
pub async fn running_tasks(address: PathBuf) -> Option<Vec<RunningTask>> {
    let running =
        list(address, LISTING_RUNNING).await?.into_iter().filter(|(_, task)| task.status == RUNNING);
    Some(running.map(|(namespace, task)| RunningTask { namespace, id: task.id, pid: task.pid }).collect())
}

/// All tasks with their namespaces.
async fn list(address: PathBuf, limit: Duration) -> Option<Vec<(String, ListedTask)>> {
    let listed = async {
        let channel = connect(address);
        let mut tasks = Vec::new();
        for namespace in namespaces(channel.clone()).await? {
            let request = within(ListTasks {}, &namespace)?;
            let answer: TaskListMessage =
                unary(channel.clone(), "/containerd.services.tasks.v1.Tasks/List", request).await?;
            tasks.extend(answer.tasks.into_iter().map(|task| (namespace.clone(), task)));
        }
        Ok::<_, Status>(tasks)
    };
    match timeout(limit, listed).await {
        Ok(Ok(tasks)) => Some(tasks),
        Ok(Err(status)) => {
            tracing::warn!(error = status.message(), "containerd does not list its tasks");
            None
        }
        Err(_) => None,
    }
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ListTasks {}

#[derive(Clone, PartialEq, prost::Message)]
struct TaskListMessage {
    #[prost(message, repeated, tag = "1")]
    tasks: Vec<ListedTask>,
}

/// `containerd.v1.types.Process`, of a task's init.
#[derive(Clone, PartialEq, prost::Message)]
struct ListedTask {
    #[prost(string, tag = "2")]
    id: String,
    #[prost(uint32, tag = "3")]
    pid: u32,
    #[prost(int32, tag = "4")]
    status: i32,
    #[prost(uint32, tag = "9")]
    exit_status: u32,
}
