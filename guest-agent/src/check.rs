//! The command `check`: what the agent could report on this machine. It serves nothing.

use std::path::PathBuf;

use crate::cgroup::roots::RootPattern;
use crate::cgroup::{Hierarchy, Version};
use crate::cgroup_tree::{CgroupChange, CgroupTree};
use crate::connector::Connector;
use crate::kmsg::Kmsg;
use crate::placement::{self, Placement};
use crate::trace::{Trace, TraceError};
use crate::{Error, hierarchy, process};

/// Result of [`check`].
#[derive(Debug)]
pub struct Findings {
    /// The hierarchy with the memory controller.
    pub hierarchy: Hierarchy,
    /// Placement of an agent that runs here without a command.
    pub placement: Placement,
    /// All capabilities of the protocol, and why some are missing here.
    pub capabilities: Vec<Capability>,
    /// Containers, sorted by cgroup.
    pub containers: Vec<FoundContainer>,
}

/// A capability of the agent protocol.
#[derive(Debug)]
pub struct Capability {
    /// Its name.
    pub name: &'static str,
    /// Why it is missing; none if it is available.
    pub missing_because: Option<String>,
}

/// A container found by [`check`].
#[derive(Debug)]
pub struct FoundContainer {
    /// Container id.
    pub id: String,
    /// Cgroup path below the hierarchy's root.
    pub cgroup: String,
    /// Init process, if one was recognized.
    pub init_pid: Option<u32>,
    /// Kill counter, or why it cannot be read.
    pub kills: Result<u64, String>,
}

/// Inspects this machine once.
pub fn check(roots: &[String], cgroup_mount: Option<PathBuf>) -> Result<Findings, Error> {
    let hierarchy = hierarchy(cgroup_mount)?;
    let roots = roots.iter().map(|root| RootPattern::parse(root)).collect::<Result<Vec<_>, _>>()?;
    let mut tree = CgroupTree::new(hierarchy.clone(), roots).map_err(|error| Error::Watch(error.into()))?;
    let mut changes = Vec::new();
    tree.search(&mut changes);
    let mut containers: Vec<FoundContainer> = changes
        .into_iter()
        .filter_map(|change| match change {
            CgroupChange::Appeared { id, cgroup } => Some(inspect(&hierarchy, id, &cgroup)),
            _ => None,
        })
        .collect();
    containers.sort_by(|a, b| a.cgroup.cmp(&b.cgroup));
    let connector = Connector::open();
    let placement = Placement::of(placement::is_init(), connector.as_ref().map(drop));
    let connector_error = connector.err().map(|error| error.to_string());
    let pressure = match hierarchy.version() {
        Version::V1 => Some("cgroup v1 has no pressure files".to_owned()),
        Version::V2 if hierarchy.has_pressure() => None,
        Version::V2 => Some("this kernel has no /proc/pressure: it needs CONFIG_PSI and psi=1".to_owned()),
    };
    let capability = |name, missing_because| Capability { name, missing_because };
    let capabilities = vec![
        capability("kill-count", None),
        capability("victim", victims_missing()),
        capability("exit-status", connector_error.clone().filter(|_| placement == Placement::Namespaced)),
        capability("cause", connector_error.or_else(causes_missing)),
        capability("memory", None),
        capability("pressure", pressure),
    ];
    Ok(Findings { hierarchy, placement, capabilities, containers })
}

/// Either the kernel's log or its tracepoints are enough.
fn victims_missing() -> Option<String> {
    let error = Kmsg::open().err().filter(|_| !Trace::is_available())?;
    Some(format!("/dev/kmsg: {error}, and tracefs is not mounted"))
}

/// Signals are traced where the trace's pids are the agent's own.
fn causes_missing() -> Option<String> {
    let error = TraceError::Absent;
    (!Trace::is_available()).then(|| format!("{error}: of causes only OOM kills are known"))
}

fn inspect(hierarchy: &Hierarchy, id: String, cgroup: &str) -> FoundContainer {
    let processes = hierarchy.processes(cgroup).unwrap_or_default();
    let init = processes.into_iter().filter_map(|pid| Some((process::init_depth(pid)?, pid))).min();
    FoundContainer {
        id,
        cgroup: cgroup.to_owned(),
        init_pid: init.map(|(_, pid)| pid),
        kills: hierarchy.kills(cgroup).map(|kills| kills.total).map_err(|error| error.to_string()),
    }
}
