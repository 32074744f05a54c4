//! Finds containers as their cgroups come and go: one inotify instance for folders, counters and process lists.
//!
//! kernfs reports what goes through the VFS, so a folder made or removed and a write to `cgroup.procs` are seen on the
//! folder; counters that the kernel itself changes are reported on v2 only, and on the file: kernfs_notify.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::cgroup::{Hierarchy, POPULATION};
use crate::log::log;
use crate::names::{Place, Root, place};

/// Watches in all. Each holds an inode in the kernel and some 200 bytes here; who may make cgroups below a root could
/// make as many as the kernel lets. At three for each of 8,192 containers this is room for them and their folders.
const MAX_WATCHES: usize = 32 << 10;
/// How deep below the hierarchy's root is searched. Kubernetes is four deep, nested three times twelve.
const MAX_DEPTH: usize = 16;

/// What happened to a container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Appeared {
        id: String,
        cgroup: Arc<str>,
    },
    Gone {
        cgroup: Arc<str>,
    },
    /// A process was put into it.
    Entered {
        cgroup: Arc<str>,
    },
    /// Its limit was written.
    Limited {
        cgroup: Arc<str>,
    },
    /// One of its counters changed.
    Counted {
        cgroup: Arc<str>,
    },
    /// The first process came into it, or the last one left.
    Peopled {
        cgroup: Arc<str>,
    },
}

#[derive(Clone, Debug)]
enum Watched {
    Folder(Arc<str>),
    Counter(Arc<str>),
    Population(Arc<str>),
}

/// The part of the hierarchy that is watched.
#[derive(Debug)]
pub(crate) struct Tree {
    inotify: Arc<OwnedFd>,
    hierarchy: Hierarchy,
    roots: Vec<Root>,
    // Trees, which grow by a few entries at a time: with tables, which double, the agent was 24 KiB larger after a storm.
    watched: BTreeMap<i32, Watched>,
    /// The watches of each container, that of its folder first, and of each other folder.
    containers: BTreeMap<Arc<str>, Vec<i32>>,
    folders: BTreeMap<Arc<str>, i32>,
    full: bool,
}

impl Tree {
    pub(crate) fn new(hierarchy: Hierarchy, roots: Vec<Root>) -> Result<Self, Errno> {
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        let (watched, containers, folders) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { inotify, hierarchy, roots, watched, containers, folders, full: false })
    }

    /// Searches everything, from the start or after notices were lost.
    pub(crate) fn search(&mut self, out: &mut Vec<Change>) {
        let gone: Vec<_> = self
            .containers
            .keys()
            .filter(|cgroup| !self.hierarchy.folder(cgroup).is_dir())
            .cloned()
            .collect();
        for cgroup in gone {
            self.leave(&cgroup, out);
        }
        let gone: Vec<_> =
            self.folders.keys().filter(|cgroup| !self.hierarchy.folder(cgroup).is_dir()).cloned().collect();
        for cgroup in gone {
            self.leave(&cgroup, out);
        }
        self.search_below("/", 0, out);
    }

    /// Takes in a container that is not below the roots. False: there is no room to watch it.
    pub(crate) fn adopt(&mut self, cgroup: &str, out: &mut Vec<Change>) -> bool {
        // The kernel tells of a removal in the folder above.
        let above =
            cgroup.rsplit_once('/').map_or("/", |(above, _)| if above.is_empty() { "/" } else { above });
        self.watch_folder(above) && self.enter(cgroup, None, out)
    }

    /// Stops watching a cgroup.
    pub(crate) fn forget(&mut self, cgroup: &str) {
        for watch in self.containers.remove(cgroup).unwrap_or_default() {
            self.unwatch(watch);
        }
    }

    /// Takes in a part of what the kernel has told meanwhile. False: there was nothing.
    pub(crate) fn drain(&mut self, out: &mut Vec<Change>) -> bool {
        let inotify = Arc::clone(&self.inotify);
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&*inotify, &mut buffer);
        // A file is read after all of this: once is enough.
        let mut changed = BTreeSet::new();
        let mut any = false;
        while let Ok(event) = reader.next() {
            any = true;
            let watch = event.wd();
            let is_file =
                matches!(self.watched.get(&watch), Some(Watched::Counter(_) | Watched::Population(_)));
            if !is_file || event.events().contains(ReadFlags::IGNORED) || changed.insert(watch) {
                let name = event.file_name().map(CStr::to_string_lossy).unwrap_or_default();
                self.take(watch, event.events(), &name, out);
            }
            // One buffer at a time, so that a full queue is not held twice.
            if reader.is_buffer_empty() {
                break;
            }
        }
        any
    }

    fn take(&mut self, watch: i32, flags: ReadFlags, name: &str, out: &mut Vec<Change>) {
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            log!(Warn, "inotify queue overflowed; searching all cgroups anew");
            self.search(out);
            return;
        }
        let Some(watched) = self.watched.get(&watch).cloned() else { return };
        if flags.contains(ReadFlags::IGNORED) {
            self.watched.remove(&watch);
            return;
        }
        match watched {
            Watched::Counter(cgroup) => out.push(Change::Counted { cgroup }),
            Watched::Population(cgroup) => out.push(Change::Peopled { cgroup }),
            Watched::Folder(above) if flags.contains(ReadFlags::ISDIR) => {
                let cgroup = below(&above, name);
                if flags.contains(ReadFlags::CREATE) {
                    self.search_below(&cgroup, cgroup.matches('/').count(), out);
                } else if flags.contains(ReadFlags::DELETE) {
                    self.leave(&cgroup, out);
                }
            }
            Watched::Folder(cgroup) => match name {
                "cgroup.procs" | "tasks" => out.push(Change::Entered { cgroup }),
                "memory.limit_in_bytes" | "memory.max" => out.push(Change::Limited { cgroup }),
                _ => {}
            },
        }
    }

    fn search_below(&mut self, cgroup: &str, depth: usize, out: &mut Vec<Change>) {
        match place(cgroup, &self.roots) {
            Place::Outside => return,
            Place::Container(id) => {
                let id = id.to_owned();
                if !self.enter(cgroup, Some(id.clone()), out) && !self.hierarchy.folder(cgroup).is_dir() {
                    // Made and removed again before anybody looked: its whole life is told as unknown, not passed over.
                    let cgroup: Arc<str> = Arc::from(cgroup);
                    out.push(Change::Appeared { id, cgroup: cgroup.clone() });
                    out.push(Change::Gone { cgroup });
                }
                return;
            }
            Place::Structure if depth > MAX_DEPTH => return,
            Place::Structure => {}
        }
        // Watched before it is listed: what comes in between is then told twice, and never not at all.
        if !self.watch_folder(cgroup) {
            return;
        }
        // The standard library lists by way of glibc, whose heap beside ours keeps the 32 KiB that it takes for that.
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

    /// Watches a container's cgroup; tells of it unless it was known.
    fn enter(&mut self, cgroup: &str, id: Option<String>, out: &mut Vec<Change>) -> bool {
        let cgroup: Arc<str> = Arc::from(cgroup);
        let folder = self.hierarchy.folder(&cgroup);
        let watch = match self.watch(&folder, WatchFlags::MODIFY | WatchFlags::ONLYDIR) {
            Ok(watch) => watch,
            Err(Errno::NOENT) => return false,
            Err(error) => {
                self.no_room(&error);
                return false;
            }
        };
        if let Some(known) = self.containers.get(&cgroup) {
            if known.first() == Some(&watch) {
                return true;
            }
            // Removed and made anew while nobody looked.
            self.leave(&cgroup.clone(), out);
        }
        self.watched.insert(watch, Watched::Folder(cgroup.clone()));
        let mut watches = vec![watch];
        for file in self.hierarchy.notified_files() {
            if let Ok(watch) = self.watch(&folder.join(file), WatchFlags::MODIFY) {
                let population = *file == POPULATION;
                let kind = if population { Watched::Population } else { Watched::Counter };
                self.watched.insert(watch, kind(cgroup.clone()));
                watches.push(watch);
            }
        }
        self.containers.insert(cgroup.clone(), watches);
        if let Some(id) = id {
            out.push(Change::Appeared { id, cgroup });
        }
        true
    }

    fn leave(&mut self, cgroup: &str, out: &mut Vec<Change>) {
        if let Some((cgroup, watches)) = self.containers.remove_entry(cgroup) {
            watches.into_iter().for_each(|watch| self.unwatch(watch));
            out.push(Change::Gone { cgroup });
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
                self.watched.insert(watch, Watched::Folder(cgroup));
                true
            }
            Err(Errno::NOENT) => false,
            Err(error) => {
                self.no_room(&error);
                false
            }
        }
    }

    fn watch(&self, path: &Path, flags: WatchFlags) -> Result<i32, Errno> {
        if self.watched.len() >= MAX_WATCHES {
            return Err(Errno::NOSPC);
        }
        // A folder may be watched as one and as a container's: neither takes from the other.
        inotify::add_watch(&self.inotify, path, flags | WatchFlags::MASK_ADD)
    }

    fn unwatch(&mut self, watch: i32) {
        self.watched.remove(&watch);
        // kernfs keeps the inode of a removed cgroup while it is watched. It fails where the kernel was quicker.
        inotify::remove_watch(&self.inotify, watch).ok();
    }

    fn no_room(&mut self, error: &Errno) {
        if !std::mem::replace(&mut self.full, true) {
            log!(Error, "cannot watch every cgroup; raise fs.inotify.max_user_watches", error = error);
        }
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn below(above: &str, name: &str) -> String {
    format!("{}/{name}", above.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder that looks like a v2 hierarchy; inotify on it is real.
    fn tree(roots: &[&str]) -> (tempfile::TempDir, Tree) {
        let mount = tempfile::tempdir().unwrap();
        fs::write(mount.path().join("cgroup.controllers"), "memory\n").unwrap();
        let hierarchy = Hierarchy::at(mount.path().to_owned()).unwrap();
        let roots = roots.iter().map(|root| Root::parse(root).unwrap()).collect();
        (mount, Tree::new(hierarchy, roots).unwrap())
    }

    fn told(tree: &mut Tree) -> Vec<String> {
        let mut out = Vec::new();
        while tree.drain(&mut out) {}
        out.iter().map(short).collect()
    }

    fn short(change: &Change) -> String {
        match change {
            Change::Appeared { id, cgroup } => format!("+{id} {cgroup}"),
            Change::Gone { cgroup } => format!("-{cgroup}"),
            Change::Entered { cgroup } => format!(">{cgroup}"),
            Change::Limited { cgroup } => format!("={cgroup}"),
            Change::Counted { cgroup } => format!("#{cgroup}"),
            Change::Peopled { cgroup } => format!("~{cgroup}"),
        }
    }

    #[test]
    fn containers_are_found_however_late_their_root_comes() {
        let (mount, mut tree) = tree(&["a/b*"]);
        let mut out = Vec::new();
        tree.search(&mut out);
        assert!(out.is_empty());
        // All of it at once: the inner folders come before the outer one is watched.
        fs::create_dir_all(mount.path().join("a/bc/one")).unwrap();
        fs::create_dir_all(mount.path().join("a/other/two")).unwrap();
        assert_eq!(told(&mut tree), ["+one /a/bc/one"]);
        fs::create_dir(mount.path().join("a/bc/three")).unwrap();
        assert_eq!(told(&mut tree), ["+three /a/bc/three"]);
        fs::remove_dir(mount.path().join("a/bc/one")).unwrap();
        assert_eq!(told(&mut tree), ["-/a/bc/one"]);
        fs::remove_dir_all(mount.path().join("a")).unwrap();
        fs::create_dir_all(mount.path().join("a/bd/three")).unwrap();
        assert_eq!(told(&mut tree), ["-/a/bc/three", "+three /a/bd/three"]);
    }

    #[test]
    fn a_container_that_lived_while_nobody_looked_is_told() {
        let (mount, mut tree) = tree(&["r"]);
        fs::create_dir(mount.path().join("r")).unwrap();
        tree.search(&mut Vec::new());
        fs::create_dir(mount.path().join("r/c1")).unwrap();
        fs::remove_dir(mount.path().join("r/c1")).unwrap();
        assert_eq!(told(&mut tree), ["+c1 /r/c1", "-/r/c1"]);
        assert_eq!(told(&mut tree), [""; 0]);
    }

    #[test]
    fn counters_processes_and_limits_are_told_apart() {
        let (mount, mut tree) = tree(&["r"]);
        let folder = mount.path().join("r/c1");
        fs::create_dir_all(&folder).unwrap();
        for file in ["memory.events", "cgroup.events", "cgroup.procs", "memory.max", "memory.high"] {
            fs::write(folder.join(file), "").unwrap();
        }
        let mut out = Vec::new();
        tree.search(&mut out);
        assert_eq!(out.iter().map(short).collect::<Vec<_>>(), ["+c1 /r/c1"]);
        for (file, expect) in [
            ("memory.max", "=/r/c1"),
            ("cgroup.procs", ">/r/c1"),
            ("memory.events", "#/r/c1"),
            ("cgroup.events", "~/r/c1"),
        ] {
            fs::write(folder.join(file), "1").unwrap();
            assert!(told(&mut tree).iter().all(|it| it == expect), "{file}");
        }
        fs::write(folder.join("memory.high"), "1").unwrap();
        assert_eq!(told(&mut tree), [""; 0]);
    }

    #[test]
    fn an_adopted_cgroup_is_followed_to_its_end() {
        let (mount, mut tree) = tree(&["r"]);
        fs::create_dir_all(mount.path().join("x/y/c1")).unwrap();
        let mut out = Vec::new();
        assert!(!tree.adopt("/x/y/none", &mut out));
        assert!(tree.adopt("/x/y/c1", &mut out));
        assert!(tree.adopt("/x/y/c1", &mut out));
        fs::create_dir(mount.path().join("x/y/c2")).unwrap();
        fs::remove_dir(mount.path().join("x/y/c1")).unwrap();
        assert_eq!(told(&mut tree), ["-/x/y/c1"]);
        assert!(out.is_empty());
    }

    #[test]
    fn after_an_overflow_everything_is_searched_anew() {
        let (mount, mut tree) = tree(&["r"]);
        fs::create_dir_all(mount.path().join("r/kept")).unwrap();
        fs::create_dir_all(mount.path().join("r/removed")).unwrap();
        fs::create_dir_all(mount.path().join("r/remade")).unwrap();
        tree.search(&mut Vec::new());
        fs::remove_dir(mount.path().join("r/removed")).unwrap();
        fs::remove_dir(mount.path().join("r/remade")).unwrap();
        fs::create_dir_all(mount.path().join("r/remade")).unwrap();
        fs::create_dir_all(mount.path().join("r/new")).unwrap();
        // What was queued is thrown away, as the kernel does.
        while rustix::io::read(&tree, &mut [0; 4096]).is_ok() {}
        let mut out = Vec::new();
        tree.take(-1, ReadFlags::QUEUE_OVERFLOW, "", &mut out);
        let mut told: Vec<String> = out.iter().map(short).collect();
        told.sort();
        assert_eq!(told, ["+new /r/new", "+remade /r/remade", "-/r/remade", "-/r/removed"]);
    }
}
