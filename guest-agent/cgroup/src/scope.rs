//! Names of containers' scopes, as runtimes with the systemd driver make them.

/// Runtimes with scopes named `RUNTIME-ID.scope`, one per container.
pub const RUNTIMES: [&str; 5] = ["cri-containerd", "docker", "crio", "nerdctl", "libpod"];

/// The container's id in the name of its scope; `None`: it is not the scope of a container.
///
/// ```
/// use coroner_cgroup::scope::container_of_scope;
///
/// assert_eq!(container_of_scope("docker-0a1b.scope"), Some("0a1b"));
/// assert_eq!(container_of_scope("session-1.scope"), None);
/// ```
pub fn container_of_scope(name: &str) -> Option<&str> {
    let unit = name.strip_suffix(".scope")?;
    let of = |runtime: &&str| unit.strip_prefix(*runtime)?.strip_prefix('-');
    // conmon is the own process of CRI-O and Podman beside the container.
    RUNTIMES.iter().find_map(of).filter(|id| !id.is_empty() && !id.starts_with("conmon-"))
}
