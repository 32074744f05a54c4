//! What was gathered: all that is judged, and nothing that asks a machine.

use std::path::PathBuf;

use coroner::config::Mode;

use super::containerd::Configuration;
use super::shims::Shim;
use super::wrapper::Wrapper;

/// Of one machine, at one moment.
#[derive(Debug)]
pub(super) struct Facts {
    /// Whether we may see all of it.
    pub(super) root: bool,
    pub(super) cgroup: Cgroup,
    pub(super) containerd: Daemon,
    /// containerd's file, or why it cannot be read.
    pub(super) configuration: Result<Configuration, String>,
    /// For each runtime of `configuration`, in its order.
    pub(super) programs: Vec<Program>,
    /// containerd's PATH could be read; else ours was searched.
    pub(super) path_is_seen: bool,
    /// The wrapper's file; without one, the defaults.
    pub(super) wrapper: Result<Wrapper, String>,
    /// Where the wrapper's program is, if containerd finds one by its name.
    pub(super) installed: Option<PathBuf>,
    /// The router's configuration, or why it is none.
    pub(super) router: Result<Router, String>,
    pub(super) shims: Vec<Shim>,
}

/// Which hierarchy counts memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cgroup {
    V1,
    V2,
    None,
}

/// containerd, as it runs.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) address: PathBuf,
    /// What it says, or why it does not.
    pub(super) version: Result<String, String>,
    pub(super) ttrpc: Socket,
}

impl Daemon {
    /// None where it is not known.
    pub(super) fn version(&self) -> Option<Version> {
        self.version.as_deref().ok().and_then(Version::parse)
    }
}

/// Major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32, pub(super) u32);

impl Version {
    /// Distributions add to it: `1.6.20~ds1`, `v2.1.9`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim_start_matches('v').splitn(3, '.').map(|part| {
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse().ok()
        });
        Some(Self(numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
    }
}

/// A unix socket.
#[derive(Clone, Debug)]
pub(super) struct Socket {
    pub(super) path: PathBuf,
    /// Mode and owner of the file, or why nobody listens.
    pub(super) file: Result<(u32, u32), String>,
}

/// What containerd starts for a runtime.
#[derive(Clone, Debug, Default)]
pub(super) struct Program {
    /// None: there is no such program.
    pub(super) path: Option<PathBuf>,
    /// It is the wrapper.
    pub(super) wraps: bool,
    /// The name in `containerd-shim-coroner-NAME-v2`.
    pub(super) name: Option<String>,
    /// The real shim behind a wrapper; none: there is no such program.
    pub(super) inner: Option<PathBuf>,
}

/// The router's configuration, and what of it can be seen from outside.
#[derive(Debug)]
pub(super) struct Router {
    /// Its `containerd.address` and `containerd.ttrpc_address`.
    pub(super) containerd: Option<(PathBuf, PathBuf)>,
    pub(super) control: Option<Socket>,
    /// Of type "shim".
    pub(super) sources: Vec<Source>,
}

/// Where wrapped shims publish.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) socket: Socket,
    /// The mode that whoever listens there says, or why nobody does.
    pub(super) hello: Result<String, String>,
}

impl Source {
    /// As the configuration names it.
    pub(super) fn mode_name(&self) -> &'static str {
        match self.mode {
            Mode::Beside => "beside",
            Mode::Wrapped => "wrapped",
            Mode::Proxy => "proxy",
            Mode::Sole => "sole",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doctor_reads_versions_as_distributions_write_them() {
        for (text, expect) in [
            ("1.6.20~ds1", Some(Version(1, 6, 20))),
            ("v2.1.9", Some(Version(2, 1, 9))),
            ("2.0.0-rc.1", Some(Version(2, 0, 0))),
            ("2.3", Some(Version(2, 3, 0))),
            ("unknown", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(text), expect, "{text}");
        }
    }
}
