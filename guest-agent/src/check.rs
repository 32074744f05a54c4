//! What the agent could know here, without serving anybody: the command `check`.

use std::path::PathBuf;

use crate::cgroup::{Hierarchy, Version};
use crate::connector::Connector;
use crate::discover::{Change, Tree};
use crate::kmsg::Kmsg;
use crate::names::Root;
use crate::placement::{self, Placement};
use crate::{Error, hierarchy, process};

/// What is here.
#[derive(Debug)]
pub struct Findings {
    /// The hierarchy with the memory controller.
    pub hierarchy: Hierarchy,
    /// How it would run here, without a command.
    pub placement: Placement,
    /// Everything that can be known somewhere, and why not here.
    pub capabilities: Vec<Capability>,
    /// The containers, by cgroup.
    pub containers: Vec<Found>,
}

/// Something to know.
#[derive(Debug)]
pub struct Capability {
    /// Its name in the protocol.
    pub name: &'static str,
    /// Why it is missing; none where it is not.
    pub missing_because: Option<String>,
}

/// A container.
#[derive(Debug)]
pub struct Found {
    /// Its id.
    pub id: String,
    /// Its path below the hierarchy's root.
    pub cgroup: String,
    /// Its init process, if one looks like it.
    pub init_pid: Option<u32>,
    /// Its kill counter, or why it has none.
    pub kills: Result<u64, String>,
}

/// Looks around once.
pub fn check(roots: &[String], cgroup_mount: Option<PathBuf>) -> Result<Findings, Error> {
    let hierarchy = hierarchy(cgroup_mount)?;
    let roots = roots.iter().map(|root| Root::parse(root)).collect::<Result<Vec<_>, _>>()?;
    let mut tree = Tree::new(hierarchy.clone(), roots).map_err(|error| Error::Watch(error.into()))?;
    let mut changes = Vec::new();
    tree.search(&mut changes);
    let mut containers: Vec<Found> = changes
        .into_iter()
        .filter_map(|change| match change {
            Change::Appeared { id, cgroup } => Some(found(&hierarchy, id, &cgroup)),
            _ => None,
        })
        .collect();
    containers.sort_by(|a, b| a.cgroup.cmp(&b.cgroup));
    let connector = Connector::open();
    let placement = Placement::of(placement::is_init(), connector.as_ref().map(drop));
    let silent = connector.err().map(|error| error.to_string());
    let pressure = match hierarchy.version() {
        Version::V1 => Some("cgroup v1 keeps none of a container".to_owned()),
        Version::V2 if hierarchy.has_pressure() => None,
        Version::V2 => {
            Some("this kernel keeps none: /proc/pressure is not there (CONFIG_PSI, psi=1)".to_owned())
        }
    };
    let capability = |name, missing_because| Capability { name, missing_because };
    let capabilities = vec![
        capability("kill-count", None),
        capability("victim", Kmsg::open().err().map(|error| format!("/dev/kmsg: {error}"))),
        capability("exit-status", silent.filter(|_| placement == Placement::Namespaced)),
        capability("memory", None),
        capability("pressure", pressure),
    ];
    Ok(Findings { hierarchy, placement, capabilities, containers })
}

fn found(hierarchy: &Hierarchy, id: String, cgroup: &str) -> Found {
    let processes = hierarchy.processes(cgroup).unwrap_or_default();
    let init = processes.into_iter().filter_map(|pid| Some((process::init_depth(pid)?, pid))).min();
    Found {
        id,
        cgroup: cgroup.to_owned(),
        init_pid: init.map(|(_, pid)| pid),
        kills: hierarchy.kills(cgroup).map(|kills| kills.total).map_err(|error| error.to_string()),
    }
}
