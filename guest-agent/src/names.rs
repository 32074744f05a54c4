//! Which cgroups are containers, told by where they are and what their folder is called.

use coroner_proto::limits::valid_container_id;

/// Where containers are looked for unless told otherwise.
pub const DEFAULT_ROOTS: [&str; 4] = ["kubepods*", "docker", "k8s.io", "system.slice"];

/// Scopes that systemd's cgroup driver makes, one per container.
const SCOPES: [&str; 3] = ["cri-containerd-", "docker-", "crio-"];
/// Folders that group containers, and systemd's units, which are none.
const STRUCTURES: [&str; 3] = ["burstable", "besteffort", "guaranteed"];
const UNITS: [&str; 6] = [".slice", ".scope", ".service", ".mount", ".socket", ".swap"];

/// A pattern for a cgroup below which containers are: a path, each name of which may end in `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root(Vec<String>);

/// Why a text is no root pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no root: a path below the cgroup hierarchy, each name of which may end in `*`")]
pub struct RootError(String);

/// What a cgroup is to the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// Neither on the way to a root nor below one.
    Outside,
    /// To be searched.
    Structure,
    /// A container, by its id.
    Container(&'a str),
}

impl Root {
    pub(crate) fn parse(text: &str) -> Result<Self, RootError> {
        let names: Vec<String> = text.trim_matches('/').split('/').map(str::to_owned).collect();
        let good = |name: &String| {
            let literal = name.strip_suffix('*').unwrap_or(name);
            !name.is_empty() && name != "." && name != ".." && !literal.contains('*')
        };
        if names.iter().all(good) && text.len() <= 4096 {
            Ok(Self(names))
        } else {
            Err(RootError(text.to_owned()))
        }
    }
}

/// Says what the cgroup `path` is, a path below the hierarchy's root with a leading slash.
pub(crate) fn place<'a>(path: &'a str, roots: &[Root]) -> Place<'a> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let Some(leaf) = names.last() else { return Place::Structure };
    let mut found = Place::Outside;
    for Root(root) in roots {
        let matched = root.iter().zip(&names).all(|(pattern, name)| fits(pattern, name));
        if !matched {
            continue;
        }
        found = Place::Structure;
        if names.len() > root.len() {
            let top = names[root.len() - 1];
            if let Some(id) =
                container_of(leaf, names.len() == root.len() + 1 && !top.starts_with("kubepods"))
            {
                return Place::Container(id);
            }
        }
    }
    found
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// The container id in a folder's name. `plain`: any id is one, for the folder is directly below a root that holds
/// nothing but containers.
fn container_of(leaf: &str, plain: bool) -> Option<&str> {
    if leaf.len() == 64 && leaf.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()) {
        return Some(leaf);
    }
    if let Some(unit) = leaf.strip_suffix(".scope") {
        let id = SCOPES.iter().find_map(|prefix| unit.strip_prefix(prefix))?;
        // conmon is CRI-O's own process beside the container.
        return (valid_container_id(id) && !id.starts_with("conmon-")).then_some(id);
    }
    let structure = STRUCTURES.contains(&leaf)
        || leaf.starts_with("pod")
        || leaf.starts_with("kubepods")
        || UNITS.iter().any(|unit| leaf.ends_with(unit));
    (plain && !structure && valid_container_id(leaf)).then_some(leaf)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn containers_are_told_by_place_and_name() {
        let roots: Vec<Root> = ["kubepods*", "docker", "k8s.io", "system.slice", "coroner-test-x", "a/b*"]
            .iter()
            .map(|text| Root::parse(text).unwrap())
            .collect();
        let check = |path: &str, expect: Place<'_>| assert_eq!(place(path, &roots), expect, "{path}");
        let found = Place::Container(HEX);
        check(&format!("/kubepods/burstable/pod12/{HEX}"), found);
        check(&format!("/kubepods/pod12/{HEX}"), found);
        check(&format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{HEX}.scope"), found);
        check(&format!("/kubepods.slice/kubepods-pod1.slice/crio-{HEX}.scope"), found);
        check(&format!("/system.slice/docker-{HEX}.scope"), found);
        check(&format!("/docker/{HEX}"), found);
        check("/k8s.io/redis-1", Place::Container("redis-1"));
        check("/coroner-test-x/c1", Place::Container("c1"));
        check("/a/bcd/c1", Place::Container("c1"));
        for structure in [
            "/",
            "/a",
            "/a/b",
            "/kubepods",
            "/kubepods.slice",
            "/kubepods/burstable",
            "/kubepods/pod12",
            "/kubepods/burstable/pod12/redis",
            "/coroner-test-x/burstable",
            "/coroner-test-x/c1/deeper",
            "/system.slice/ssh.service",
            "/system.slice/cron.scope",
            "/k8s.io/.hidden",
            "/k8s.io/a b",
            "/k8s.io/cri-containerd-.scope",
        ] {
            check(structure, Place::Structure);
        }
        check(&format!("/kubepods.slice/crio-conmon-{HEX}.scope"), Place::Structure);
        check(&format!("/k8s.io/{}", "a".repeat(257)), Place::Structure);
        for outside in ["/user.slice", "/dockerd", "/b", "/coroner-test-xyz/c1"] {
            check(outside, Place::Outside);
        }
        check(&format!("/{HEX}"), Place::Outside);
    }

    #[test]
    fn roots_are_paths_below_the_hierarchy() {
        for good in ["kubepods*", "/docker/", "a/b", "*"] {
            assert!(Root::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "..", "a/../b", "a//b", "a*b", "**", "."] {
            assert!(Root::parse(bad).is_err(), "{bad}");
        }
    }
}
