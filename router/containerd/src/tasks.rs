//! containerd's tasks, to find what ended while the router was down.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;
use tonic::Status;

use crate::grpc::{connect, namespaces, unary, within};

/// Timeout of the list of all tasks at the start.
const LISTING: Duration = Duration::from_secs(2);
/// `containerd.v1.types.Status`.
const STOPPED: i32 = 3;

/// The state of a task in containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// It has not ended.
    Running,
    /// It has ended, with this status.
    Stopped(u32),
}

/// containerd's tasks in every namespace, by container id; `None` after a timeout.
pub async fn tasks(address: PathBuf) -> Option<HashMap<String, TaskState>> {
    let listed = async {
        let channel = connect(address);
        let mut tasks = HashMap::new();
        for namespace in namespaces(channel.clone()).await? {
            let request = within(ListTasks {}, &namespace)?;
            let answer: TaskListMessage =
                unary(channel.clone(), "/containerd.services.tasks.v1.Tasks/List", request).await?;
            tasks.extend(answer.tasks.into_iter().map(|task| {
                let state = if task.status == STOPPED {
                    TaskState::Stopped(task.exit_status)
                } else {
                    TaskState::Running
                };
                (task.id, state)
            }));
        }
        Ok::<_, Status>(tasks)
    };
    match timeout(LISTING, listed).await {
        Ok(Ok(tasks)) => Some(tasks),
        Ok(Err(status)) => {
            tracing::warn!(error = status.message(), "containerd refused the list of tasks");
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
    #[prost(int32, tag = "4")]
    status: i32,
    #[prost(uint32, tag = "9")]
    exit_status: u32,
}
