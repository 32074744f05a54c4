//! Containers that run in a cgroup of this node and that its agent does not find: their OOM kills
//! are not seen.

use std::collections::HashSet;
use std::path::PathBuf;

use coroner_cgroup::Hierarchy;
use coroner_cgroup::scope::container_of_scope;
use coroner_containerd::{RunningTask, running_tasks};
use coroner_transport::Address;
use serde::{Deserialize, Serialize};
use ttrpc::asynchronous::Client;

use crate::agent_client::conn::AgentConn;
use crate::agent_client::rpc::TIMEOUT;
use crate::inventory::snapshot_limit;

/// A container in a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UnwatchedContainer {
    /// Its id.
    pub id: String,
    /// containerd's namespace.
    pub containerd_namespace: String,
    /// Its cgroup, as a path below the hierarchy's root.
    pub cgroup: String,
    /// The agent's `--root` below which it is found; `None`: the cgroup's name has no known form.
    pub root: Option<String>,
}

/// Compares containerd's running tasks with the containers of the node's agents. `None`: one of
/// them does not answer, or no hierarchy is mounted.
pub async fn unwatched(agents: &[Address], containerd: PathBuf) -> Option<Vec<UnwatchedContainer>> {
    // The tasks first: the agent finds a container before its task is started.
    let tasks = running_tasks(containerd).await?;
    let mut watched = HashSet::new();
    for agent in agents {
        let dialled = tokio::time::timeout(TIMEOUT, coroner_transport::connect(agent)).await;
        let conn = AgentConn::new(Client::new(dialled.ok()?.ok()?));
        let (containers, _) = conn.snapshot(snapshot_limit(false)).await.ok()?;
        watched.extend(containers.into_iter().map(|it| it.id));
    }
    let hierarchy = Hierarchy::find().ok()?;
    let unwatched = tasks.into_iter().filter(|task| !watched.contains(&task.id));
    Some(unwatched.filter_map(|task| in_cgroup(task, &hierarchy)).collect())
}

/// `None` where no cgroup has the container's name: it has ended, or it has a kernel of its own.
fn in_cgroup(task: RunningTask, hierarchy: &Hierarchy) -> Option<UnwatchedContainer> {
    let cgroup = hierarchy.cgroup_of(task.pid)?;
    let cgroup = own(&cgroup, &task.id)?.to_owned();
    let root = root(&cgroup, &task.id);
    Some(UnwatchedContainer { id: task.id, containerd_namespace: task.namespace, cgroup, root })
}

/// The cgroup that is named after the container: its init may be in one below it.
fn own<'a>(cgroup: &'a str, id: &str) -> Option<&'a str> {
    let mut path = cgroup.trim_end_matches('/');
    loop {
        let (above, name) = path.rsplit_once('/')?;
        // ID, RUNTIME-ID.scope, SLICE:RUNTIME:ID
        let before = name.strip_suffix(".scope").unwrap_or(name).strip_suffix(id);
        if before.is_some_and(|it| it.is_empty() || it.ends_with(['-', ':'])) {
            return Some(path);
        }
        path = above;
    }
}

/// A plain name is a container directly below a root, a scope anywhere below it.
fn root(cgroup: &str, id: &str) -> Option<String> {
    let (above, name) = cgroup.trim_start_matches('/').rsplit_once('/')?;
    let top = above.split('/').next()?;
    if container_of_scope(name) == Some(id) {
        Some(top.to_owned())
    } else {
        (name == id).then(|| above.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_one_below_which_an_agent_finds_the_container() {
        for (cgroup, expect) in [
            ("/default/web", Some(("/default/web", Some("default")))),
            ("/a/b/web", Some(("/a/b/web", Some("a/b")))),
            ("/a/web/inner", Some(("/a/web", Some("a")))),
            (
                "/my.slice/my-pod.slice/crio-web.scope",
                Some(("/my.slice/my-pod.slice/crio-web.scope", Some("my.slice"))),
            ),
            ("/my.slice/other-web.scope", Some(("/my.slice/other-web.scope", None))),
            ("/web", Some(("/web", None))),
            ("/user.slice", None),
            ("/system.slice/web.service", None),
            ("/", None),
        ] {
            let own = own(cgroup, "web");
            assert_eq!(
                own.map(|it| (it, root(it, "web").as_deref().map(str::to_owned))),
                expect.map(|(it, root)| (it, root.map(str::to_owned))),
                "{cgroup}"
            );
        }
    }
}
