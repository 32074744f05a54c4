//! The shims that run: the pod of each, and where it publishes.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::wrapper::{called, is_it, is_shim};

/// Where a shim publishes.
const ADDRESS: &str = "TTRPC_ADDRESS";
/// Where containerd keeps the bundles of version 2 shims, each in a folder by its namespace and id.
const TASKS: &str = "io.containerd.runtime.v2.task";
/// containerd writes there which shim it started, from 1.7 on.
const STARTED: &str = "shim-binary-path";

/// The relation of a shim to the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// It publishes at containerd.
    Stock,
    /// It publishes at a router, ours or another.
    Wrapped,
    /// The wrapper was called, and the shim publishes at containerd all the same.
    PassedBy,
    /// A wrapper's proxy, in front of a shim.
    Proxy,
    /// Where it publishes cannot be seen.
    Unknown,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Shim {
    pub(super) pid: u32,
    pub(super) kind: Kind,
    /// Its sandbox, or its container where there is no pod.
    pub(super) id: Option<String>,
    /// containerd's.
    pub(super) namespace: Option<String>,
    pub(super) program: PathBuf,
    /// Where it publishes; of a proxy, the router's socket.
    pub(super) address: Option<PathBuf>,
    /// Of a proxy: the shim behind it.
    pub(super) inner: Option<String>,
}

/// A process as /proc shows it.
#[derive(Clone, Debug, Default)]
struct ShimProcess {
    pid: u32,
    arguments: Vec<String>,
    /// None: it may not be read.
    environment: Option<Vec<String>>,
    cwd: Option<PathBuf>,
    /// What containerd started for its bundle is the wrapper.
    started_wrapper: bool,
}

/// Every shim, by pid. `ttrpc`: where containerd takes events.
pub(super) fn running(routers: &[PathBuf], ttrpc: &PathBuf) -> Vec<Shim> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut shims: Vec<Shim> = pids.filter_map(|pid| shim(process(pid)?, routers, ttrpc)).collect();
    shims.sort_by_key(|shim| shim.pid);
    shims
}

/// None: it has ended, or is not a shim.
fn process(pid: u32) -> Option<ShimProcess> {
    let folder = Path::new("/proc").join(pid.to_string());
    let texts = |file: &str| {
        let bytes = fs::read(folder.join(file)).ok()?;
        let parts = bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty());
        Some(parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect::<Vec<_>>())
    };
    let arguments = texts("cmdline").filter(|it| it.first().is_some_and(|it| is_shim(Path::new(it))))?;
    // A shim keeps its bundle for its working folder.
    let cwd = fs::read_link(folder.join("cwd")).ok();
    let started = cwd.as_ref().and_then(|bundle| fs::read_to_string(bundle.join(STARTED)).ok());
    let started = started.map(|text| PathBuf::from(text.trim()));
    // A wrapper under a stock shim's name is known by its content, which is read only where the
    // shim is another program than was started.
    let started_wrapper = started.is_some_and(|it| {
        called(&it).is_some() || (arguments.first().is_some_and(|own| Path::new(own) != it) && is_it(&it))
    });
    Some(ShimProcess { pid, arguments, environment: texts("environ"), cwd, started_wrapper })
}

/// None: a call that starts or deletes a shim, and is none.
fn shim(process: ShimProcess, routers: &[PathBuf], ttrpc: &PathBuf) -> Option<Shim> {
    let arguments = &process.arguments;
    if matches!(arguments.last()?.as_str(), "start" | "delete" | "-v") {
        return None;
    }
    let program = PathBuf::from(arguments.first()?);
    let after = |names: [&str; 2]| {
        let at = arguments.iter().position(|it| names.contains(&it.as_str()))?;
        arguments.get(at + 1).cloned()
    };
    let (namespace, id) = process.cwd.as_deref().and_then(of_bundle).unzip();
    let is_proxy = called(&program).is_some() && arguments.get(1).is_some_and(|it| it == "proxy");
    let published = process.environment.as_ref().and_then(|environment| {
        environment.iter().find_map(|it| it.strip_prefix(ADDRESS)?.strip_prefix('='))
    });
    let address = if is_proxy { after(["--router", "-router"]) } else { published.map(str::to_owned) };
    let address = address.map(|it| PathBuf::from(it.strip_prefix("unix://").unwrap_or(&it)));
    // Where a shim of the same containerd publishes that is not wrapped.
    let usual = after(["-address", "--address"]).map(|it| PathBuf::from(it + ".ttrpc"));
    let kind = match &address {
        _ if is_proxy => Kind::Proxy,
        None => Kind::Unknown,
        Some(address) if routers.contains(address) => Kind::Wrapped,
        Some(address)
            if process.started_wrapper && ![usual.as_ref(), Some(ttrpc)].contains(&Some(address)) =>
        {
            Kind::Wrapped
        }
        Some(_) if process.started_wrapper => Kind::PassedBy,
        Some(_) => Kind::Stock,
    };
    Some(Shim {
        pid: process.pid,
        kind,
        id: after(["-id", "--id"]).or(id),
        namespace: after(["-namespace", "--namespace"]).or(namespace),
        inner: after(["--inner", "-inner"]).filter(|_| is_proxy),
        program,
        address,
    })
}

/// Namespace and id.
fn of_bundle(bundle: &Path) -> Option<(String, String)> {
    let mut parts = bundle.components().rev().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let (id, namespace, tasks) = (parts.next()?, parts.next()?, parts.next()?);
    (tasks == TASKS).then_some((namespace, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: &str = "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id s1 -address /c.sock";
    const PROXY: &str = "/x/containerd-shim-coroner-v2 proxy --inner unix:///s --router /r.sock";

    fn check(arguments: &str, published: Option<&str>, started_wrapper: bool) -> Option<Shim> {
        let process = ShimProcess {
            pid: 7,
            arguments: arguments.split(' ').map(str::to_owned).collect(),
            environment: published.map(|it| vec!["A=b".to_owned(), format!("TTRPC_ADDRESS={it}")]),
            cwd: Some(PathBuf::from("/run/containerd/io.containerd.runtime.v2.task/k8s.io/s2")),
            started_wrapper,
        };
        shim(process, &[PathBuf::from("/r.sock")], &PathBuf::from("/own.ttrpc"))
    }

    #[test]
    fn shim_is_classified_by_where_it_publishes() {
        for (arguments, published, wrapper, expect) in [
            (STOCK, Some("/c.sock.ttrpc"), false, Kind::Stock),
            (STOCK, Some("/c.sock.ttrpc"), true, Kind::PassedBy),
            (STOCK, Some("/own.ttrpc"), true, Kind::PassedBy),
            (STOCK, Some("/other.sock"), true, Kind::Wrapped),
            (STOCK, Some("/other.sock"), false, Kind::Stock),
            (STOCK, Some("unix:///r.sock"), true, Kind::Wrapped),
            (STOCK, None, true, Kind::Unknown),
            (PROXY, Some("/c.sock.ttrpc"), true, Kind::Proxy),
        ] {
            let kind = check(arguments, published, wrapper).map(|shim| shim.kind);
            assert_eq!(kind, Some(expect), "{arguments} {published:?} {wrapper}");
        }
        assert_eq!(check(&format!("{STOCK} start"), Some("/r.sock"), false), None);
    }

    #[test]
    fn pod_of_a_shim_is_read_from_arguments_or_bundle() {
        let stock = check(STOCK, None, false).unwrap();
        assert_eq!((stock.namespace.as_deref(), stock.id.as_deref()), (Some("k8s.io"), Some("s1")));
        let proxy = check(PROXY, None, false).unwrap();
        assert_eq!((proxy.namespace.as_deref(), proxy.id.as_deref()), (Some("k8s.io"), Some("s2")));
        assert_eq!((proxy.inner.as_deref(), proxy.address), (Some("unix:///s"), Some("/r.sock".into())));
    }
}
