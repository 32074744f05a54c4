//! Discovers containers as their cgroups appear and disappear: one inotify instance for folders,
//! counters and process lists.
//!
//! kernfs reports what goes through the VFS, so creating or removing a folder and writing
//! `cgroup.procs` cause events on the folder. Counters that the kernel itself changes are reported
//! on v2 only, and on the file: kernfs_notify.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use coroner_transport::limits::valid_container_id;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::cgroup::roots::{CgroupKind, RootPattern, classify};
use crate::cgroup::{Hierarchy, POPULATION};
use crate::log::log;

/// Limit on inotify watches. Each holds an inode in the kernel and some 200 bytes here: without a
/// limit a process that may create cgroups below a root could use as many as the kernel allows. At
/// three for each of 8,192 containers this has room for them and their folders.
const MAX_WATCHES: usize = 32 << 10;
/// Depth of the search below the hierarchy's root. Kubernetes needs four, nested three times
/// twelve.
const MAX_DEPTH: usize = 16;

/// A change of a container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CgroupChange {
    Appeared {
        id: String,
        cgroup: Arc<str>,
    },
    Gone {
        cgroup: Arc<str>,
    },
    /// A process was moved into it.
    ProcessEntered {
        cgroup: Arc<str>,
    },
    /// Its limit was written.
    LimitChanged {
        cgroup: Arc<str>,
    },
    /// One of its counters changed.
    CounterChanged {
        cgroup: Arc<str>,
    },
    /// The first process entered it, or the last one left.
    PopulationChanged {
        cgroup: Arc<str>,
    },
}

#[derive(Clone, Debug)]
enum WatchedPath {
    Folder(Arc<str>),
    Counter(Arc<str>),
    Population(Arc<str>),
}

/// The part of the hierarchy that is watched.
#[derive(Debug)]
pub(crate) struct CgroupTree {
    inotify: Arc<OwnedFd>,
    hierarchy: Hierarchy,
    roots: Vec<RootPattern>,
    // Trees, which grow by a few entries at a time: with tables, which double, the agent was 24 KiB
    // larger after a storm.
    watched: BTreeMap<i32, WatchedPath>,
    /// The watches of each container, its folder's first, and of each other folder.
    containers: BTreeMap<Arc<str>, Vec<i32>>,
    folders: BTreeMap<Arc<str>, i32>,
    full: bool,
}

impl CgroupTree {
    pub(crate) fn new(hierarchy: Hierarchy, roots: Vec<RootPattern>) -> Result<Self, Errno> {
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        let (watched, containers, folders) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { inotify, hierarchy, roots, watched, containers, folders, full: false })
    }

    /// Searches the whole hierarchy: at the start, and after events were lost.
    pub(crate) fn search(&mut self, out: &mut Vec<CgroupChange>) {
        let gone: Vec<_> = self
            .containers
            .keys()
            .filter(|cgroup| !self.hierarchy.folder(cgroup).is_dir())
            .cloned()
            .collect();
        for cgroup in gone {
            self.remove_cgroup(&cgroup, out);
        }
        let gone: Vec<_> =
            self.folders.keys().filter(|cgroup| !self.hierarchy.folder(cgroup).is_dir()).cloned().collect();
        for cgroup in gone {
            self.remove_cgroup(&cgroup, out);
        }
        self.search_below("/", 0, out);
    }

    /// Watches a container that is not below the roots. False: the limit on watches is reached.
    pub(crate) fn adopt(&mut self, cgroup: &str, out: &mut Vec<CgroupChange>) -> bool {
        // The kernel reports a removal on the parent folder.
        let above =
            cgroup.rsplit_once('/').map_or("/", |(above, _)| if above.is_empty() { "/" } else { above });
        self.watch_folder(above) && self.watch_container(cgroup, None, out)
    }

    /// Stops watching a cgroup.
    pub(crate) fn forget(&mut self, cgroup: &str) {
        for watch in self.containers.remove(cgroup).unwrap_or_default() {
            self.unwatch(watch);
        }
    }

    /// Reads one buffer of inotify events. False: there were none.
    pub(crate) fn drain(&mut self, out: &mut Vec<CgroupChange>) -> bool {
        let inotify = Arc::clone(&self.inotify);
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&*inotify, &mut buffer);
        // Events of one file are merged: it is read after all of them.
        let mut changed = BTreeSet::new();
        let mut any = false;
        while let Ok(event) = reader.next() {
            any = true;
            let watch = event.wd();
            let is_file = matches!(
                self.watched.get(&watch),
                Some(WatchedPath::Counter(_) | WatchedPath::Population(_))
            );
            if !is_file || event.events().contains(ReadFlags::IGNORED) || changed.insert(watch) {
                let name = event.file_name().map(CStr::to_string_lossy).unwrap_or_default();
                self.handle_event(watch, event.events(), &name, out);
            }
            // One buffer at a time, so that a full queue is not in memory twice.
            if reader.is_buffer_empty() {
                break;
            }
        }
        any
    }

    fn handle_event(&mut self, watch: i32, flags: ReadFlags, name: &str, out: &mut Vec<CgroupChange>) {
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            log!(Warn, "inotify queue overflowed; searching all cgroups again");
            self.search(out);
            return;
        }
        let Some(watched) = self.watched.get(&watch).cloned() else { return };
        if flags.contains(ReadFlags::IGNORED) {
            self.watched.remove(&watch);
            return;
        }
        match watched {
            WatchedPath::Counter(cgroup) => out.push(CgroupChange::CounterChanged { cgroup }),
            WatchedPath::Population(cgroup) => out.push(CgroupChange::PopulationChanged { cgroup }),
            WatchedPath::Folder(above) if flags.contains(ReadFlags::ISDIR) => {
                let cgroup = below(&above, name);
                if flags.contains(ReadFlags::CREATE) {
                    self.search_below(&cgroup, cgroup.matches('/').count(), out);
                } else if flags.contains(ReadFlags::DELETE) {
                    self.remove_cgroup(&cgroup, out);
                }
            }
            WatchedPath::Folder(cgroup) => match name {
                "cgroup.procs" | "tasks" => out.push(CgroupChange::ProcessEntered { cgroup }),
                "memory.limit_in_bytes" | "memory.max" => out.push(CgroupChange::LimitChanged { cgroup }),
                _ => {}
            },
        }
    }

    fn search_below(&mut self, cgroup: &str, depth: usize, out: &mut Vec<CgroupChange>) {
        match classify(cgroup, &self.roots) {
            CgroupKind::Outside => return,
            CgroupKind::Container(id) if valid_container_id(id) => {
                let id = id.to_owned();
                if !self.watch_container(cgroup, Some(id.clone()), out)
                    && !self.hierarchy.folder(cgroup).is_dir()
                {
                    // Created and removed before it was inspected: it is reported as unknown, not
                    // skipped.
                    let cgroup: Arc<str> = Arc::from(cgroup);
                    out.push(CgroupChange::Appeared { id, cgroup: cgroup.clone() });
                    out.push(CgroupChange::Gone { cgroup });
                }
                return;
            }
            CgroupKind::Container(_) | CgroupKind::Structure if depth > MAX_DEPTH => return,
            CgroupKind::Container(_) | CgroupKind::Structure => {}
        }
        // Watched before it is listed: what appears in between is then found twice, but never
        // missed.
        if !self.watch_folder(cgroup) {
            return;
        }
        // The standard library lists through glibc, which keeps 32 KiB on its heap for that.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(self.hierarchy.folder(cgroup), flags, Mode::empty());
        let Ok(listed) = opened.and_then(Dir::new) else { return };
        for entry in listed.flatten().filter(|it| it.file_type() == FileType::Directory) {
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            if let Ok(name) = entry.file_name().to_str() {
                self.search_below(&below(cgroup, name), depth + 1, out);
            }
        }
    }

    /// Watches a container's cgroup and reports it unless it was known.
    fn watch_container(&mut self, cgroup: &str, id: Option<String>, out: &mut Vec<CgroupChange>) -> bool {
        let cgroup: Arc<str> = Arc::from(cgroup);
        let folder = self.hierarchy.folder(&cgroup);
        let watch = match self.watch(&folder, WatchFlags::MODIFY | WatchFlags::ONLYDIR) {
            Ok(watch) => watch,
            Err(Errno::NOENT) => return false,
            Err(error) => {
                self.log_watch_failure(&error);
                return false;
            }
        };
        if let Some(known) = self.containers.get(&cgroup) {
            if known.first() == Some(&watch) {
                return true;
            }
            // Removed and created again since the last event.
            self.remove_cgroup(&cgroup.clone(), out);
        }
        self.watched.insert(watch, WatchedPath::Folder(cgroup.clone()));
        let mut watches = vec![watch];
        for file in self.hierarchy.notified_files() {
            if let Ok(watch) = self.watch(&folder.join(file), WatchFlags::MODIFY) {
                let population = *file == POPULATION;
                let kind = if population { WatchedPath::Population } else { WatchedPath::Counter };
                self.watched.insert(watch, kind(cgroup.clone()));
                watches.push(watch);
            }
        }
        self.containers.insert(cgroup.clone(), watches);
        if let Some(id) = id {
            out.push(CgroupChange::Appeared { id, cgroup });
        }
        true
    }

    fn remove_cgroup(&mut self, cgroup: &str, out: &mut Vec<CgroupChange>) {
        if let Some((cgroup, watches)) = self.containers.remove_entry(cgroup) {
            watches.into_iter().for_each(|watch| self.unwatch(watch));
            out.push(CgroupChange::Gone { cgroup });
        }
        if let Some(watch) = self.folders.remove(cgroup) {
            self.unwatch(watch);
        }
    }

    fn watch_folder(&mut self, cgroup: &str) -> bool {
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR | WatchFlags::EXCL_UNLINK;
        match self.watch(&self.hierarchy.folder(cgroup), flags) {
            Ok(watch) => {
                let cgroup: Arc<str> = Arc::from(cgroup);
                if let Some(before) = self.folders.insert(cgroup.clone(), watch)
                    && before != watch
                {
                    self.unwatch(before);
                }
                self.watched.insert(watch, WatchedPath::Folder(cgroup));
                true
            }
            Err(Errno::NOENT) => false,
            Err(error) => {
                self.log_watch_failure(&error);
                false
            }
        }
    }

    fn watch(&self, path: &Path, flags: WatchFlags) -> Result<i32, Errno> {
        if self.watched.len() >= MAX_WATCHES {
            return Err(Errno::NOSPC);
        }
        // A folder may be watched both as structure and as a container's: masks are added.
        inotify::add_watch(&self.inotify, path, flags | WatchFlags::MASK_ADD)
    }

    fn unwatch(&mut self, watch: i32) {
        self.watched.remove(&watch);
        // kernfs keeps the inode of a removed cgroup while it is watched. The error is ignored: the
        // kernel may have removed the watch already.
        inotify::remove_watch(&self.inotify, watch).ok();
    }

    fn log_watch_failure(&mut self, error: &Errno) {
        if !std::mem::replace(&mut self.full, true) {
            log!(Error, "cannot watch every cgroup; raise fs.inotify.max_user_watches", error = error);
        }
    }
}

impl AsFd for CgroupTree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn below(above: &str, name: &str) -> String {
    format!("{}/{name}", above.trim_end_matches('/'))
}

#[cfg(test)]
#[path = "cgroup_tree_tests.rs"]
mod tests;
