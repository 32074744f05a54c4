//! Kills in the cgroups below a container's. Cgroup v1 counts a kill in the victim's own cgroup
//! only (memcg_memory_event), so a container's counter has none of them, and its shim's
//! announcement that memory ran out at the container is the other half of the evidence.

use std::collections::BTreeMap;
use std::fs;

use coroner_cgroup::Hierarchy;

/// Cgroups that are read below one container. Without a bound a container that makes cgroups could
/// have the router read thousands for each announcement.
const MOST: usize = 256;

/// The kill counters below a container, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KillsBelow(BTreeMap<String, u64>);

impl KillsBelow {
    /// Reads them. A cgroup that is removed meanwhile is left out.
    pub(super) fn read(hierarchy: &Hierarchy, cgroup: &str) -> Self {
        let (mut kills, mut open) = (BTreeMap::new(), vec![cgroup.to_owned()]);
        while let Some(above) = open.pop() {
            let Ok(entries) = fs::read_dir(hierarchy.folder(&above)) else { continue };
            let folders = entries.flatten().filter(|it| it.file_type().is_ok_and(|it| it.is_dir()));
            for name in folders.filter_map(|it| it.file_name().into_string().ok()) {
                if kills.len() == MOST {
                    return Self(kills);
                }
                let path = format!("{above}/{name}");
                if let Ok(counter) = hierarchy.kills(&path) {
                    kills.insert(path.clone(), counter.total);
                    open.push(path);
                }
            }
        }
        Self(kills)
    }

    /// Kills since `before`.
    pub(super) fn since(&self, before: &Self) -> u64 {
        let rise = |(path, kills): (&String, &u64)| {
            kills.saturating_sub(before.0.get(path).copied().unwrap_or_default())
        };
        self.0.iter().map(rise).fold(0, u64::saturating_add)
    }

    /// Whether each cgroup of `before` is still there.
    pub(super) fn has_all_of(&self, before: &Self) -> bool {
        before.0.keys().all(|path| self.0.contains_key(path))
    }

    /// Kills in all.
    pub(super) fn total(&self) -> u64 {
        self.since(&Self::default())
    }
}
