//! Decides which cgroups are containers, by their path and name.
//!
//! The id is what the name has. Whether it is a valid one is decided by the caller.

/// Root patterns used when none are configured: Kubernetes (`kubelet.slice`: kind), Docker,
/// containerd, Podman, ECS.
pub const DEFAULT_ROOTS: [&str; 8] = [
    "kubepods*",
    "docker",
    "k8s.io",
    "system.slice",
    "kubelet.slice",
    "machine.slice",
    "ecstasks.slice",
    "ecs/*",
];

/// Runtimes with scopes named `RUNTIME-ID.scope`, one per container.
const RUNTIMES: [&str; 5] = ["cri-containerd", "docker", "crio", "nerdctl", "libpod"];
/// Cgroups that group containers, and suffixes of systemd units: neither are containers.
const STRUCTURES: [&str; 4] = ["burstable", "besteffort", "guaranteed", "buildkit"];
const UNITS: [&str; 6] = [".slice", ".scope", ".service", ".mount", ".socket", ".swap"];

/// A pattern for a cgroup below which containers are: a path with names that may end in `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootPattern(Vec<String>);

/// Why a text is not a root pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a root: use a path below the cgroup hierarchy; its names may end in `*`")]
pub struct RootPatternError(String);

/// How the search treats a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupKind<'a> {
    /// Neither a prefix of a root nor below one.
    Outside,
    /// A group of cgroups: searched.
    Structure,
    /// A container, with its id.
    Container(&'a str),
}

impl RootPattern {
    /// Parses a path below the hierarchy's root; its names may end in `*`.
    pub fn parse(text: &str) -> Result<Self, RootPatternError> {
        let names: Vec<String> = text.trim_matches('/').split('/').map(str::to_owned).collect();
        let good = |name: &String| {
            let literal = name.strip_suffix('*').unwrap_or(name);
            !name.is_empty() && name != "." && name != ".." && !literal.contains('*')
        };
        if names.iter().all(good) && text.len() <= 4096 {
            Ok(Self(names))
        } else {
            Err(RootPatternError(text.to_owned()))
        }
    }
}

/// Classifies the cgroup `path`: a path below the hierarchy's root, with a leading slash.
pub fn classify<'a>(path: &'a str, roots: &[RootPattern]) -> CgroupKind<'a> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let Some(leaf) = names.last() else { return CgroupKind::Structure };
    let mut found = CgroupKind::Outside;
    for RootPattern(root) in roots {
        let matched = root.iter().zip(&names).all(|(pattern, name)| matches_pattern(pattern, name));
        if !matched {
            continue;
        }
        found = CgroupKind::Structure;
        if let Some(id) = literal(leaf) {
            return CgroupKind::Container(id);
        }
        if names.len() > root.len() {
            let top = names[root.len() - 1];
            if let Some(id) =
                container_of(leaf, names.len() == root.len() + 1 && !top.starts_with("kubepods"))
            {
                return CgroupKind::Container(id);
            }
        }
    }
    found
}

fn matches_pattern(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// The id in a name of systemd's form, `SLICE:RUNTIME:ID`: a runtime without the systemd driver
/// takes it for a path when the kubelet has the driver.
fn literal(leaf: &str) -> Option<&str> {
    let (slice, rest) = leaf.split_once(".slice:")?;
    let (runtime, id) = rest.split_once(':')?;
    (!slice.is_empty() && RUNTIMES.contains(&runtime) && !id.is_empty()).then_some(id)
}

/// The container id in a cgroup's name. `plain`: any valid id counts, because the cgroup is
/// directly below a root that has only containers.
fn container_of(leaf: &str, plain: bool) -> Option<&str> {
    if leaf.len() == 64 && leaf.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()) {
        return Some(leaf);
    }
    if let Some(unit) = leaf.strip_suffix(".scope") {
        let of = |runtime: &&str| unit.strip_prefix(*runtime)?.strip_prefix('-');
        // conmon is the own process of CRI-O and Podman beside the container.
        return RUNTIMES.iter().find_map(of).filter(|id| !id.is_empty() && !id.starts_with("conmon-"));
    }
    let structure = STRUCTURES.contains(&leaf)
        || leaf.starts_with("pod")
        || leaf.starts_with("kubepods")
        || UNITS.iter().any(|unit| leaf.ends_with(unit));
    (plain && !structure).then_some(leaf)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn classify_decides_by_path_and_name() {
        let roots: Vec<RootPattern> =
            ["kubepods*", "docker", "k8s.io", "system.slice", "coroner-test-x", "a/b*"]
                .iter()
                .map(|text| RootPattern::parse(text).unwrap())
                .collect();
        let check = |path: &str, expect: CgroupKind<'_>| assert_eq!(classify(path, &roots), expect, "{path}");
        let found = CgroupKind::Container(HEX);
        check(&format!("/kubepods/burstable/pod12/{HEX}"), found);
        check(&format!("/kubepods/pod12/{HEX}"), found);
        check(&format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{HEX}.scope"), found);
        check(&format!("/kubepods.slice/kubepods-pod1.slice/crio-{HEX}.scope"), found);
        check(&format!("/system.slice/docker-{HEX}.scope"), found);
        check(&format!("/docker/{HEX}"), found);
        check("/k8s.io/redis-1", CgroupKind::Container("redis-1"));
        check("/coroner-test-x/c1", CgroupKind::Container("c1"));
        check("/a/bcd/c1", CgroupKind::Container("c1"));
        let literal = format!("kubepods-burstable-pod1.slice:cri-containerd:{HEX}");
        check(&format!("/system.slice/{literal}"), found);
        check(&format!("/system.slice/containerd.service/{literal}"), found);
        check(&format!("/{literal}"), found);
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
            "/k8s.io/cri-containerd-.scope",
        ] {
            check(structure, CgroupKind::Structure);
        }
        check(&format!("/kubepods.slice/crio-conmon-{HEX}.scope"), CgroupKind::Structure);
        for outside in ["/user.slice", "/dockerd", "/b", "/coroner-test-xyz/c1"] {
            check(outside, CgroupKind::Outside);
        }
        check(&format!("/{HEX}"), CgroupKind::Outside);
    }

    #[test]
    fn default_roots_find_containers_in_every_layout() {
        let roots: Vec<RootPattern> =
            DEFAULT_ROOTS.iter().map(|text| RootPattern::parse(text).unwrap()).collect();
        let kind = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice";
        for container in [
            format!("{kind}/cri-containerd-{HEX}.scope"),
            format!("/system.slice/kubepods-besteffort-pod1.slice:crio:{HEX}"),
            format!("/system.slice/nerdctl-{HEX}.scope"),
            format!("/machine.slice/libpod-{HEX}.scope"),
            format!("/ecstasks.slice/ecstasks-0a1b.slice/docker-{HEX}.scope"),
            format!("/ecs/0a1b/{HEX}"),
        ] {
            assert_eq!(classify(&container, &roots), CgroupKind::Container(HEX), "{container}");
        }
        for other in [
            kind.to_owned(),
            format!("/machine.slice/libpod-conmon-{HEX}.scope"),
            "/machine.slice/machine-qemu.scope".to_owned(),
            "/docker/buildkit".to_owned(),
            "/ecs/0a1b".to_owned(),
        ] {
            assert_eq!(classify(&other, &roots), CgroupKind::Structure, "{other}");
        }
    }

    #[test]
    fn root_pattern_accepts_only_paths_below_hierarchy() {
        for good in ["kubepods*", "/docker/", "a/b", "*"] {
            assert!(RootPattern::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "..", "a/../b", "a//b", "a*b", "**", "."] {
            assert!(RootPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
