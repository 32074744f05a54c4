//! What a cgroup's files show of its memory after an OOM kill: more than the limit and the usage,
//! and read once.

use rustix::fs::{Dir, FileType, Mode, OFlags};

use super::{Hierarchy, MAX_FILE, Version, bytes, keyed, read, v1};

/// Bytes read of memory.stat. The kernel writes less than half of it.
const MAX_STAT: u64 = 8 << 10;
/// Cgroups read below one. Each is a file: without a limit a container that makes a hundred
/// thousand of them could stop the agent for a second.
const MAX_CHILDREN: usize = 512;
/// Statistics of memory.stat that are read, in bytes. v1's are those with the cgroups below it.
const V1_STATS: [&str; 7] = [
    "total_rss",
    "total_cache",
    "total_shmem",
    "total_mapped_file",
    "total_dirty",
    "total_writeback",
    "total_swap",
];
const V2_STATS: [&str; 8] =
    ["anon", "file", "kernel", "slab", "shmem", "sock", "file_dirty", "file_writeback"];

/// A limit on memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// None is set.
    Unlimited,
    /// In bytes.
    Bytes(u64),
}

/// Memory of one cgroup. None: it could not be read, or the kernel does not have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryEvidence {
    /// What is used, in bytes.
    pub usage: Option<u64>,
    /// The most that was used, in bytes; on v2 since Linux 5.19.
    pub peak: Option<u64>,
    /// The limit. v2's root has none that can be read.
    pub limit: Option<Limit>,
    /// Kills in this cgroup; on v2 also in those below it.
    pub kills: Option<u64>,
    /// Statistics by the kernel's names, in bytes.
    pub stats: Vec<(&'static str, u64)>,
}

/// The cgroups directly below one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children {
    /// Path and usage in bytes, largest usage first.
    pub largest: Vec<(String, u64)>,
    /// The number of the others.
    pub left_out: usize,
}

impl Hierarchy {
    /// Reads what a cgroup's files show of its memory.
    pub fn memory_evidence(&self, cgroup: &str) -> MemoryEvidence {
        let folder = self.folder(cgroup);
        let text = |name: &str| read(&folder.join(name), MAX_FILE).ok();
        let number = |name: &str| text(name).and_then(|text| bytes(&text));
        let (usage, peak, limit, stats): (_, _, _, &[&str]) = match self.version {
            Version::V1 => {
                ("memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.limit_in_bytes", &V1_STATS)
            }
            Version::V2 => ("memory.current", "memory.peak", "memory.max", &V2_STATS),
        };
        let stat = read(&folder.join("memory.stat"), MAX_STAT).unwrap_or_default();
        MemoryEvidence {
            usage: number(usage),
            peak: number(peak),
            limit: text(limit).and_then(|text| limit_of(&text)),
            kills: self.kills(cgroup).ok().map(|kills| kills.total),
            stats: stats.iter().filter_map(|name| Some((*name, keyed(&stat, name)?))).collect(),
        }
    }

    /// The `most` cgroups with the largest usage directly below one. At most 512 are read.
    pub fn children(&self, cgroup: &str, most: usize) -> Children {
        // The standard library lists through glibc, which keeps 32 KiB on its heap for that.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(self.folder(cgroup), flags, Mode::empty());
        let Ok(listed) = opened.and_then(Dir::new) else { return Children::default() };
        let mut children = Children::default();
        let mut seen = 0;
        for entry in listed.flatten().filter(|it| it.file_type() == FileType::Directory) {
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            seen += 1;
            if seen > MAX_CHILDREN {
                continue;
            }
            let path = format!("{}/{name}", cgroup.trim_end_matches('/'));
            // Without the memory controller, or removed by now.
            let Some(usage) = self.memory(&path).usage else { continue };
            let at = children.largest.partition_point(|(_, other)| *other >= usage);
            children.largest.insert(at, (path, usage));
            children.largest.truncate(most);
        }
        children.left_out = seen - children.largest.len();
        children
    }
}

pub(super) fn limit_of(text: &str) -> Option<Limit> {
    match text.trim() {
        "max" => Some(Limit::Unlimited),
        text => {
            bytes(text).map(|bytes| if bytes < v1::NO_LIMIT { Limit::Bytes(bytes) } else { Limit::Unlimited })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// A hierarchy with the cgroup `/a`.
    fn hierarchy(marker: &str) -> (tempfile::TempDir, Hierarchy) {
        let mount = tempfile::tempdir().unwrap();
        fs::write(mount.path().join(marker), "memory\n").unwrap();
        fs::create_dir(mount.path().join("a")).unwrap();
        let hierarchy = Hierarchy::at(mount.path().to_owned()).unwrap();
        (mount, hierarchy)
    }

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn evidence_of_v2_has_every_number() {
        let (mount, hierarchy) = hierarchy("cgroup.controllers");
        assert_eq!(hierarchy.memory_evidence("/a"), MemoryEvidence::default());
        let files = [
            ("memory.current", "4096\n"),
            ("memory.peak", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.events", "oom 1\noom_kill 3\n"),
            ("memory.stat", "anon 1024\nfile 2048\npgfault 7\nslab 12\n"),
        ];
        write(&mount.path().join("a"), &files);
        let expect = MemoryEvidence {
            usage: Some(4096),
            peak: Some(8192),
            limit: Some(Limit::Unlimited),
            kills: Some(3),
            stats: vec![("anon", 1024), ("file", 2048), ("slab", 12)],
        };
        assert_eq!(hierarchy.memory_evidence("/a"), expect);
        write(&mount.path().join("a"), &[("memory.max", "65536\n")]);
        assert_eq!(hierarchy.memory_evidence("/a").limit, Some(Limit::Bytes(65536)));
    }

    #[test]
    fn evidence_of_v1_has_every_number() {
        let (mount, hierarchy) = hierarchy("memory.oom_control");
        let files = [
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.max_usage_in_bytes", "8192\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ("memory.stat", "rss 1\ntotal_rss 1024\ntotal_cache 2048\ntotal_pgfault 7\n"),
        ];
        write(&mount.path().join("a"), &files);
        let expect = MemoryEvidence {
            usage: Some(4096),
            peak: Some(8192),
            limit: Some(Limit::Unlimited),
            kills: Some(3),
            stats: vec![("total_rss", 1024), ("total_cache", 2048)],
        };
        assert_eq!(hierarchy.memory_evidence("/a"), expect);
    }

    #[test]
    fn children_are_the_largest_and_bounded() {
        let (mount, hierarchy) = hierarchy("cgroup.controllers");
        for child in 1..=600 {
            let folder = mount.path().join(format!("a/c{child}"));
            fs::create_dir(&folder).unwrap();
            if child > 1 {
                fs::write(folder.join("memory.current"), child.to_string()).unwrap();
            }
        }
        assert_eq!(hierarchy.children("/b", 16), Children::default());
        let children = hierarchy.children("/a", 16);
        assert_eq!((children.largest.len(), children.left_out), (16, 584));
        assert!(children.largest.is_sorted_by_key(|(_, usage)| std::cmp::Reverse(*usage)));
        let (path, usage) = &children.largest[0];
        assert_eq!((path.as_str(), *usage > 500), (format!("/a/c{usage}").as_str(), true));
        let root = hierarchy.children("/", 16);
        assert_eq!((root.largest, root.left_out), (vec![], 1));
    }
}
