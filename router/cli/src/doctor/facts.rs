//! What was gathered: all that is judged, without access to a machine.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use coroner::node::UnwatchedContainer;
use coroner::node::config::Mode;
use coroner_shim_config::WrapperName;

use super::containerd::Configuration;
use super::shims::Shim;
use super::wrapper::Wrapper;

/// The facts of one machine, at one moment.
#[derive(Debug)]
pub(super) struct Facts {
    /// Whether all of it may be read.
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
    pub(super) wrapper: Wrapper,
    /// Where the wrapper's program is, if containerd finds one by its name.
    pub(super) installed: Option<PathBuf>,
    /// The router's configuration, or why it is none.
    pub(super) router: Result<RouterFacts, String>,
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
    /// Its answer, or why there is none.
    pub(super) version: Result<String, String>,
    pub(super) ttrpc: Socket,
    /// When its process started; `None`: not seen.
    pub(super) started: Option<SystemTime>,
}

impl Facts {
    /// containerd's file that was changed after containerd had read it.
    pub(super) fn unread(&self) -> Option<&Path> {
        let (path, changed) = self.configuration.as_ref().ok()?.changed.as_ref()?;
        // The start is computed from the time since boot, in hundredths of a second.
        let read = self.containerd.started? + Duration::from_secs(1);
        // A time to come is of a clock that was set back since.
        (*changed > read && *changed <= SystemTime::now()).then_some(path)
    }
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
    /// Mode and owner of the file, or why no process listens.
    pub(super) file: Result<(u32, u32), String>,
}

/// What containerd starts for a runtime.
#[derive(Clone, Debug, Default)]
pub(super) struct Program {
    /// None: there is no such program.
    pub(super) path: Option<PathBuf>,
    /// It is the wrapper.
    pub(super) wraps: bool,
    /// As containerd calls it.
    pub(super) name: WrapperName,
    /// The real shim behind a wrapper; none: there is no such program.
    pub(super) inner: Option<PathBuf>,
}

impl Program {
    /// The name of the real shim behind a wrapper, when that is not runc's.
    pub(super) fn shim(&self) -> Option<&str> {
        self.name.wrapped().or(Some(self.name.shim()).filter(|name| *name != "runc"))
    }
}

/// The router's configuration, and what of it can be seen from outside.
#[derive(Debug)]
pub(super) struct RouterFacts {
    /// Its `containerd.address` and `containerd.ttrpc_address`.
    pub(super) containerd: Option<(PathBuf, PathBuf)>,
    pub(super) control: Option<Socket>,
    /// Of type "shim".
    pub(super) sources: Vec<SourceFacts>,
    /// Of type "agent", on this node; by name.
    pub(super) agents: Vec<(String, Socket)>,
    /// Containers that these do not find; `None`: not known.
    pub(super) unwatched: Option<Vec<UnwatchedContainer>>,
}

/// Where wrapped shims publish.
#[derive(Debug)]
pub(super) struct SourceFacts {
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) socket: Socket,
    /// The mode of the router that answers there, or why none does.
    pub(super) hello: Result<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doctor_reads_versions_as_distributions_write_them() {
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
