//! The directory watcher: reports changes in the policy directory and of the directory itself.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::manager_client::ManagerRequest;

/// Watches a directory and its parent: the directory may be created, moved or replaced while the
/// router runs.
pub(super) struct DirectoryWatcher {
    watcher: Option<RecommendedWatcher>,
    directory: Option<PathBuf>,
    /// Path, and device and inode that are watched there.
    watched: Vec<(PathBuf, Option<(u64, u64)>)>,
    silent: bool,
}

impl DirectoryWatcher {
    /// Requests a reload after each change.
    pub(super) fn new(directory: Option<&Path>, requests: mpsc::Sender<ManagerRequest>) -> Self {
        let Some(directory) = directory else {
            return Self { watcher: None, directory: None, watched: Vec::new(), silent: true };
        };
        let (of, name) = (directory.to_owned(), directory.file_name().map(ToOwned::to_owned));
        let changed = move |event: notify::Result<Event>| {
            let about = match event {
                Ok(event) if is_reading(&event.kind) => return,
                // In the parent only the directory itself matters.
                Ok(event) => {
                    event.paths.is_empty()
                        || event
                            .paths
                            .iter()
                            .any(|path| path.parent() == Some(&of) || path.file_name() == name.as_deref())
                }
                Err(_) => true,
            };
            if about {
                // A full channel: a reload is already requested.
                requests.try_send(ManagerRequest::Changed).unwrap_or(());
            }
        };
        let watcher = notify::recommended_watcher(changed)
            .map_err(|error| tracing::warn!(%error, "cannot watch the policy directory; it is polled"))
            .ok();
        let paths = [Some(directory), directory.parent()];
        let watched = paths.into_iter().flatten().map(|path| (path.to_owned(), None)).collect();
        Self { watcher, directory: Some(directory.to_owned()), watched, silent: false }
    }

    /// Watches the current directory, if it was replaced. False: changes may go unnoticed.
    pub(super) fn follow(&mut self) -> bool {
        if self.directory.is_none() {
            return true;
        }
        let Some(watcher) = &mut self.watcher else { return false };
        let mut all = true;
        for (path, identity) in &mut self.watched {
            let now = fs::metadata(&*path).ok().map(|meta| (meta.dev(), meta.ino()));
            if now == *identity && now.is_some() {
                continue;
            }
            // If the old directory is gone, its watch is gone too.
            watcher.unwatch(path).unwrap_or(());
            let outcome = match now {
                Some(_) => {
                    watcher.watch(path, RecursiveMode::NonRecursive).map_err(|error| error.to_string())
                }
                None => Err("it is not there".to_owned()),
            };
            *identity = now.filter(|_| outcome.is_ok());
            // The directory may be missing while its parent is watched.
            let needed = now.is_some() || self.directory.as_deref() != Some(path);
            if let (Err(reason), true) = (outcome, needed) {
                all = false;
                if !self.silent {
                    tracing::warn!(path = %path.display(), reason, "cannot watch this path; the policy directory is polled");
                    self.silent = true;
                }
            }
        }
        if all {
            self.silent = false;
        }
        all
    }
}

/// Read events are not changes, and the router itself reads.
fn is_reading(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write))
}
