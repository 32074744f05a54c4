//! What watches this node beside the shims: its pods without the router, its agent, and the
//! containers that the agent does not find.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::config::{Config, Mode, SourceKind};
use crate::counts::{Counts, SourceCounts, UnwatchedContainer};
use coroner_sources::shim::{UnmanagedPod, UnmanagedPods};
use coroner_transport::Address;

/// After the start, when the agent's link is up; and between two comparisons of containerd's tasks
/// with the agent's containers: for each, containerd queries every shim.
const FIRST_COMPARISON: Duration = Duration::from_secs(3);
const COMPARISON: Duration = Duration::from_secs(60);

/// What the shims alone cannot report.
const COST: &str = "kills may be missed where the container's counter and its pod's cannot be read, \
                    no kill has its victim, and pods of stock shims are not watched";

/// The watch of a router with one configuration.
#[derive(Clone, Debug)]
pub struct NodeWatch {
    /// Wrapped shims report here, and need a watcher beside them.
    has_shims: bool,
    /// The sources that read an agent of the node itself.
    agents: Vec<(String, Arc<SourceCounts>)>,
    unmanaged: UnmanagedPods,
    unwatched: Arc<Mutex<Option<Vec<UnwatchedContainer>>>>,
}

impl NodeWatch {
    /// Of a router with this configuration.
    pub fn new(config: &Config, counts: &Counts) -> Self {
        let sources = || config.sources.iter();
        let agents = sources().filter(|it| it.kind == SourceKind::Agent && it.guest.is_none());
        Self {
            has_shims: sources().any(|it| matches!(it.mode, Mode::Wrapped | Mode::Proxy)),
            agents: agents.map(|it| (it.name.clone(), counts.source(&it.name))).collect(),
            unmanaged: UnmanagedPods::of(&config.sources),
            unwatched: Arc::clone(&counts.unwatched),
        }
    }

    /// Why kills may be missed here; `None`: nothing is known to be missing.
    pub fn degraded(&self) -> Option<String> {
        if let Some((name, _)) = self.agents.iter().find(|(_, counts)| !counts.is_connected()) {
            return Some(format!(
                "the agent of source {name} is not connected: kills in pods of stock shims are not seen, and \
                 no kill has its victim"
            ));
        }
        self.without_agent().map(|cost| format!("no source reads an agent of this node: {cost}"))
    }

    /// The cost, where the configuration has wrapped shims and no agent of this node.
    pub fn without_agent(&self) -> Option<&'static str> {
        (self.has_shims && self.agents.is_empty()).then_some(COST)
    }

    /// Pods that started without the router and still run.
    pub fn unmanaged(&self) -> Vec<UnmanagedPod> {
        self.unmanaged.list()
    }

    /// Containers that the node's agent does not find. `None`: not known, since there is no agent
    /// or no containerd to compare.
    pub fn unwatched(&self) -> Option<Vec<UnwatchedContainer>> {
        self.unwatched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a configuration has to be compared: the agents of this node, and containerd.
#[derive(Debug)]
struct ComparedConfig {
    agents: Vec<Address>,
    containerd: PathBuf,
}

impl ComparedConfig {
    /// `None` for a configuration without an agent of this node, or without containerd.
    fn of(config: &Config) -> Option<Self> {
        let agents = config.sources.iter().filter(|it| it.kind == SourceKind::Agent && it.guest.is_none());
        let agents: Vec<Address> = agents.map(|it| it.address.clone()).collect();
        let containerd = config.containerd.as_ref()?.address.clone()?;
        (!agents.is_empty()).then_some(Self { agents, containerd })
    }

    async fn unwatched(&self) -> Option<Vec<UnwatchedContainer>> {
        coroner_sources::unwatched(&self.agents, self.containerd.clone()).await
    }
}

/// Containers that the agents of this configuration do not find now; `None`: not known.
pub async fn unwatched(config: &Config) -> Option<Vec<UnwatchedContainer>> {
    ComparedConfig::of(config)?.unwatched().await
}

/// Compares containerd's tasks with the agent's containers.
#[derive(Debug)]
pub(crate) struct Comparison {
    config: ComparedConfig,
    unwatched: Arc<Mutex<Option<Vec<UnwatchedContainer>>>>,
}

impl Comparison {
    /// `None` for a configuration without an agent of this node, or without containerd.
    pub(crate) fn of(config: &Config, counts: &Counts) -> Option<Self> {
        Some(Self { config: ComparedConfig::of(config)?, unwatched: Arc::clone(&counts.unwatched) })
    }

    /// Compares again and again, and logs each container once, until `stop` turns true.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let compare = async {
            let mut logged = HashSet::new();
            tokio::time::sleep(FIRST_COMPARISON).await;
            loop {
                let found = self.config.unwatched().await;
                if let Some(found) = &found {
                    found.iter().filter(|it| !logged.contains(&it.id)).for_each(log);
                    logged = found.iter().map(|it| it.id.clone()).collect();
                }
                *self.unwatched.lock().unwrap_or_else(PoisonError::into_inner) = found;
                tokio::time::sleep(COMPARISON).await;
            }
        };
        tokio::select! {
            () = compare => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

fn log(container: &UnwatchedContainer) {
    let UnwatchedContainer { id, containerd_namespace, cgroup, root } = container;
    let advice = root.as_ref().map(|root| format!("start coroner-agent with --root +{root}"));
    tracing::warn!(
        container = id,
        containerd_namespace,
        cgroup,
        advice,
        "unwatched: the agent does not find this container, its OOM kills may be missed"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIM: &str =
        "[[source]]\nname = \"shims\"\ntype = \"shim\"\naddress = \"unix:///s\"\nmode = \"wrapped\"\n";
    const AGENT: &str =
        "[[source]]\nname = \"node\"\ntype = \"agent\"\naddress = \"unix:///a\"\nmode = \"beside\"\n";
    const SINKS: &str =
        "[containerd]\naddress = \"/c\"\n[[sink]]\nname = \"containerd\"\ntype = \"containerd\"\n";

    #[test]
    fn router_is_degraded_without_a_connected_agent() {
        for (sources, connected, expect) in [
            (SHIM.to_owned(), false, Some("no source reads an agent")),
            (format!("{SHIM}{AGENT}"), false, Some("the agent of source node is not connected")),
            (format!("{SHIM}{AGENT}"), true, None),
            (AGENT.to_owned(), false, Some("the agent of source node is not connected")),
            (AGENT.replace("mode", "guest = \"vm\"\nmode"), false, None),
            (
                format!("{SHIM}{}", AGENT.replace("mode", "guest = \"vm\"\nmode")),
                true,
                Some("no source reads"),
            ),
        ] {
            let config = Config::parse(&format!("{SINKS}{sources}")).unwrap();
            let counts = Counts {
                sources: config.sources.iter().map(|it| (it.name.clone(), Arc::default())).collect(),
                ..Counts::default()
            };
            if connected {
                counts.sources.iter().for_each(|(_, counts)| counts.connected(true));
            }
            let degraded = NodeWatch::new(&config, &counts).degraded();
            assert_eq!(degraded.is_some(), expect.is_some(), "{sources}: {degraded:?}");
            assert!(degraded.is_none_or(|it| it.starts_with(expect.unwrap())), "{sources}");
        }
    }
}
