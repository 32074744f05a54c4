//! Single numbers of a cgroup's memory, each of one file: for reads that repeat.

use super::evidence::limit_of;
use super::{Hierarchy, Limit, MAX_FILE, Version, bytes, read, v1, v2};

/// Cgroups above one: their limits are read. Kubernetes has four. Without a limit a container in a
/// deep tree could make every read arbitrarily expensive.
const MAX_LEVELS: usize = 16;

/// How long tasks of a cgroup stalled for want of memory, cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStall {
    /// At least one task, in microseconds.
    pub some_us: u64,
    /// All tasks at once, in microseconds.
    pub full_us: u64,
}

impl Hierarchy {
    /// What a cgroup and those below it use, in bytes.
    pub fn usage(&self, cgroup: &str) -> Option<u64> {
        let [_, usage] = self.memory_files();
        bytes(&read(&self.folder(cgroup).join(usage), MAX_FILE).ok()?)
    }

    /// A cgroup's own limit; none if it cannot be read, and for v2's root.
    pub fn limit(&self, cgroup: &str) -> Option<Limit> {
        let [limit, _] = self.memory_files();
        limit_of(&read(&self.folder(cgroup).join(limit), MAX_FILE).ok()?)
    }

    /// The smallest limit of the cgroups above one, at most 16 of them.
    pub fn limit_above(&self, cgroup: &str) -> Limit {
        let above = std::iter::successors(cgroup.rsplit_once('/'), |(path, _)| path.rsplit_once('/'));
        let limits = above.take(MAX_LEVELS).filter_map(|(path, _)| match self.limit(path)? {
            Limit::Bytes(bytes) => Some(bytes),
            Limit::Unlimited => None,
        });
        limits.min().map_or(Limit::Unlimited, Limit::Bytes)
    }

    /// How long its tasks stalled for memory. None on v1 and without PSI.
    pub fn memory_stall(&self, cgroup: &str) -> Option<MemoryStall> {
        match self.version {
            Version::V1 => None,
            Version::V2 => stall_of(&read(&self.folder(cgroup).join("memory.pressure"), MAX_FILE).ok()?),
        }
    }

    /// The names of limit and usage.
    fn memory_files(&self) -> [&'static str; 2] {
        match self.version {
            Version::V1 => v1::MEMORY,
            Version::V2 => v2::MEMORY,
        }
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`, and `full`.
fn stall_of(text: &str) -> Option<MemoryStall> {
    let total = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.rsplit_once(" total=")?.1.parse().ok()
    };
    Some(MemoryStall { some_us: total("some")?, full_us: total("full")? })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn hierarchy(marker: &str) -> (tempfile::TempDir, Hierarchy) {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir_all(mount.path().join("a/b/c")).unwrap();
        fs::write(mount.path().join(marker), "memory\n").unwrap();
        let hierarchy = Hierarchy::at(mount.path().to_owned()).unwrap();
        (mount, hierarchy)
    }

    fn write(mount: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::write(mount.join(name), text).unwrap();
        }
    }

    #[test]
    fn usage_and_limit_read_by_version() {
        let (mount, hierarchy) = self::hierarchy("cgroup.controllers");
        assert_eq!((hierarchy.usage("/a"), hierarchy.limit("/a")), (None, None));
        write(mount.path(), &[("a/memory.current", "4096\n"), ("a/memory.max", "max\n")]);
        assert_eq!((hierarchy.usage("/a"), hierarchy.limit("/a")), (Some(4096), Some(Limit::Unlimited)));
        let (mount, hierarchy) = self::hierarchy("memory.oom_control");
        let files = [("a/memory.usage_in_bytes", "4096\n"), ("a/memory.limit_in_bytes", "8192\n")];
        write(mount.path(), &files);
        assert_eq!((hierarchy.usage("/a"), hierarchy.limit("/a")), (Some(4096), Some(Limit::Bytes(8192))));
        write(mount.path(), &[("a/memory.limit_in_bytes", "9223372036854771712\n")]);
        assert_eq!(hierarchy.limit("/a"), Some(Limit::Unlimited));
    }

    #[test]
    fn smallest_limit_above_excludes_the_cgroup_itself() {
        let (mount, hierarchy) = self::hierarchy("cgroup.controllers");
        assert_eq!(hierarchy.limit_above("/a/b/c"), Limit::Unlimited);
        write(mount.path(), &[("a/b/c/memory.max", "1\n"), ("a/b/memory.max", "max\n")]);
        assert_eq!(hierarchy.limit_above("/a/b/c"), Limit::Unlimited);
        write(mount.path(), &[("a/memory.max", "8192\n")]);
        assert_eq!(hierarchy.limit_above("/a/b/c"), Limit::Bytes(8192));
        write(mount.path(), &[("a/b/memory.max", "4096\n")]);
        assert_eq!(hierarchy.limit_above("/a/b/c"), Limit::Bytes(4096));
        write(mount.path(), &[("memory.max", "2048\n")]);
        assert_eq!(hierarchy.limit_above("/a"), Limit::Bytes(2048));
        assert_eq!(hierarchy.limit_above("/"), Limit::Bytes(2048));
    }

    #[test]
    fn malformed_pressure_is_not_a_stall() {
        let line =
            |name: &str, total: &str| format!("{name} avg10=1.00 avg60=0.50 avg300=0.00 total={total}\n");
        let both = line("some", "12345") + &line("full", "678");
        assert_eq!(stall_of(&both), Some(MemoryStall { some_us: 12_345, full_us: 678 }));
        for bad in
            [String::new(), line("some", "1"), line("some", "x") + &line("full", "1"), "some\nfull\n".into()]
        {
            assert_eq!(stall_of(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn stall_read_on_v2_alone() {
        let text = "some avg10=0.00 total=5\nfull avg10=0.00 total=0\n";
        for (marker, expect) in [
            ("cgroup.controllers", Some(MemoryStall { some_us: 5, full_us: 0 })),
            ("memory.oom_control", None),
        ] {
            let (mount, hierarchy) = self::hierarchy(marker);
            assert_eq!(hierarchy.memory_stall("/a"), None);
            write(mount.path(), &[("a/memory.pressure", text)]);
            assert_eq!(hierarchy.memory_stall("/a"), expect);
        }
    }
}
