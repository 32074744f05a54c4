//! Where the router's own files are if the configuration does not name them.

use std::path::{Path, PathBuf};

/// The default paths of a router.
#[derive(Debug)]
pub(super) struct Defaults {
    /// Guests that are added while the router runs.
    pub(super) guests: PathBuf,
    /// The journal.
    pub(super) journal: PathBuf,
    /// The control socket.
    pub(super) control: PathBuf,
    /// Compiled policies.
    pub(super) cache: PathBuf,
    /// Whether a shim embeds the router.
    pub(super) is_embedded: bool,
}

impl Defaults {
    /// The node's own router. No container outlives a boot, so its journal need not either.
    pub(super) fn node() -> Self {
        let run = Path::new("/run/coroner");
        Self { cache: "/var/cache/coroner".into(), is_embedded: false, ..Self::embedded(run) }
    }

    /// A router that a shim embeds. Without a directory of its own its journal would be the node's,
    /// which is locked, and its control socket would be in use.
    pub(super) fn embedded(directory: &Path) -> Self {
        Self {
            guests: directory.join("guests.d"),
            journal: directory.join("journal"),
            control: directory.join("control.sock"),
            cache: directory.join("cache"),
            is_embedded: true,
        }
    }
}
