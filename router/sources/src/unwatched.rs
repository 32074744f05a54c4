//! Containers that run in a cgroup of this node and that its agent does not find: their OOM kills
//! are not seen.

use std::collections::HashSet;
use std::path::PathBuf;

use coroner_cgroup::Hierarchy;
use coroner_cgroup::roots::{CgroupKind, RootPattern, classify};
use coroner_containerd::{RunningTask, running_tasks};
use coroner_transport::Address;
use serde::{Deserialize, Serialize};
use ttrpc::asynchronous::Client;

use crate::agent_client::conn::AgentConn;
use crate::agent_client::rpc::TIMEOUT;
use crate::inventory::snapshot_limit;

/// Kata's cgroup of a sandbox's virtual machine: the containers have another kernel.
const KATA_OVERHEAD: &str = "kata_overhead";

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
    /// The agent's `--root` with which it finds the container; `None`: no root does.
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
        watched.extend(containers.into_iter().map(|it| it.cgroup));
    }
    let hierarchy = Hierarchy::find().ok()?;
    Some(tasks.into_iter().filter_map(|task| in_cgroup(task, &hierarchy, &watched)).collect())
}

/// `None`: it is watched, it has ended, or no cgroup has its name, as with a kernel of its own.
fn in_cgroup(
    task: RunningTask,
    hierarchy: &Hierarchy,
    watched: &HashSet<String>,
) -> Option<UnwatchedContainer> {
    let of_init = hierarchy.cgroup_of(task.pid)?;
    if above(&of_init).any(|path| watched.contains(path)) {
        return None;
    }
    let cgroup = own(&of_init, &task.id)?.to_owned();
    let root = root(&cgroup, &task.id);
    Some(UnwatchedContainer { id: task.id, containerd_namespace: task.namespace, cgroup, root })
}

/// A cgroup and those above it, from the inside, without the hierarchy's root.
fn above(cgroup: &str) -> impl Iterator<Item = &str> {
    let path = Some(cgroup.trim_end_matches('/'));
    std::iter::successors(path, |path| path.rsplit_once('/').map(|(above, _)| above))
        .filter(|path| !path.is_empty())
}

/// The cgroup that is named after the container: its init may be in one below it.
fn own<'a>(cgroup: &'a str, id: &str) -> Option<&'a str> {
    if cgroup.split('/').any(|name| name == KATA_OVERHEAD) {
        return None;
    }
    above(cgroup).find(|path| {
        let name = path.rsplit('/').next().unwrap_or_default();
        // ID, RUNTIME-ID.scope, SLICE:RUNTIME:ID
        let before = name.strip_suffix(".scope").unwrap_or(name).strip_suffix(id);
        before.is_some_and(|it| it.is_empty() || it.ends_with(['-', ':']))
    })
}

/// The shortest root below which an agent finds the container.
fn root(cgroup: &str, id: &str) -> Option<String> {
    let mut roots: Vec<&str> = above(cgroup).skip(1).collect();
    roots.reverse();
    let finds = |root: &&str| {
        let pattern = RootPattern::parse(root).ok();
        pattern.is_some_and(|it| classify(cgroup, &[it]) == CgroupKind::Container(id))
    };
    roots.into_iter().find(finds).map(|root| root.trim_start_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_the_shortest_with_which_an_agent_finds_the_container() {
        let hex = "0123456789abcdef".repeat(4);
        for (cgroup, id, expect) in [
            ("/default/web", "web", Some(("/default/web", Some("default")))),
            ("/a/b/web", "web", Some(("/a/b/web", Some("a/b")))),
            ("/a/web/inner", "web", Some(("/a/web", Some("a")))),
            (&format!("/a/b/{hex}"), &hex, Some((&*format!("/a/b/{hex}"), Some("a")))),
            (
                "/my.slice/p.slice/crio-web.scope",
                "web",
                Some(("/my.slice/p.slice/crio-web.scope", Some("my.slice"))),
            ),
            ("/a/x.slice:crio:web", "web", Some(("/a/x.slice:crio:web", Some("a")))),
            ("/my.slice/other-web.scope", "web", Some(("/my.slice/other-web.scope", None))),
            ("/default/podinfo", "podinfo", Some(("/default/podinfo", None))),
            ("/web", "web", Some(("/web", None))),
            ("/kata_overhead/web", "web", None),
            ("/user.slice", "web", None),
            ("/system.slice/web.service", "web", None),
            ("/", "web", None),
        ] {
            let found = own(cgroup, id).map(|it| (it, root(it, id)));
            let found = found.as_ref().map(|(it, root)| (*it, root.as_deref()));
            assert_eq!(found, expect, "{cgroup}");
        }
    }

    #[test]
    fn cgroups_above_are_listed_from_the_inside() {
        assert_eq!(above("/a/b/c").collect::<Vec<_>>(), ["/a/b/c", "/a/b", "/a"]);
        assert_eq!(above("/").count(), 0);
    }
}
