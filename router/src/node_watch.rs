//! What watches this node beside the shims: its pods without the router, and its agent.

use std::sync::Arc;

use crate::config::{Config, Mode, SourceKind};
use crate::counts::{Counts, SourceCounts};
use coroner_sources::shim::{UnmanagedPod, UnmanagedPods};

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
