//! Reads the memory cgroup hierarchy: its mount, counters, limits and processes. Code outside this
//! crate does not depend on the cgroup version.

mod evidence;
mod level;
mod oomd;
pub mod poll_schedule;
mod readings;
pub mod ready;
pub mod roots;
mod v1;
mod v2;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use evidence::{Children, Limit, MemoryEvidence};
pub use level::LimitHit;
pub use readings::MemoryStall;

/// The file of a v2 cgroup that reports whether processes are in it.
pub const POPULATION: &str = "cgroup.events";
/// Bytes read of a counter file. The kernel writes a few hundred; a longer file is not a counter
/// file.
const MAX_FILE: u64 = 4 << 10;
/// Bytes read of `/proc/PID/cgroup`: a line for each v1 hierarchy, each with a path.
const MAX_MEMBERSHIP: u64 = 16 << 10;
/// Bytes read of `cgroup.procs`, some 8,000 processes. Without it a container with more processes
/// could make every search for its init arbitrarily expensive. Its init is among the first, since
/// the list is mostly in order of age.
const MAX_PROCS: u64 = 64 << 10;

/// Why no hierarchy can be used.
#[derive(Debug, thiserror::Error)]
pub enum HierarchyError {
    /// The mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    Mounts(#[source] io::Error),
    /// Neither version's memory controller is mounted.
    #[error("no cgroup hierarchy with the memory controller is mounted")]
    NoMemory,
    /// The named mount has no memory controller.
    #[error("{0} is not a cgroup hierarchy with the memory controller")]
    NotHere(PathBuf),
}

/// Why a kill counter has no value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CounterError {
    /// Its cgroup was removed.
    #[error("cgroup gone")]
    Gone,
    /// The file does not have the kernel's format.
    #[error("kill counter malformed")]
    Malformed,
    /// The file cannot be read.
    #[error("kill counter unreadable")]
    Unreadable,
}

impl From<io::Error> for CounterError {
    fn from(error: io::Error) -> Self {
        // A file that was open while its cgroup was removed reads ENODEV: kernfs.
        let gone = error.kind() == io::ErrorKind::NotFound
            || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error());
        if gone { Self::Gone } else { Self::Unreadable }
    }
}

/// The kernel's kill counters of one cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kills {
    /// Kills in this cgroup; on v2 also in those below it.
    pub total: u64,
    /// Times the cgroup was killed as a whole; none where the kernel does not count that.
    pub groups: Option<u64>,
    /// Times a limit in this cgroup or below it was hit. v2 only.
    pub ooms: Option<u64>,
    /// Times this cgroup's own limit was hit. v2 only.
    pub own_ooms: Option<u64>,
    /// Times `memory.high` throttled. v2 only.
    pub high: Option<u64>,
}

/// Memory in bytes. A limit that is not set is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The limit.
    pub limit: Option<u64>,
    /// What is used.
    pub usage: Option<u64>,
}

/// Which interface the memory controller has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// A mounted hierarchy. Its cgroups are named by their path below its root, with a leading slash.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    mount: PathBuf,
    version: Version,
}

impl Hierarchy {
    /// Finds the memory controller among this process's mounts. A `cgroup2` mount without it is
    /// skipped: on hybrid systems it holds processes only.
    pub fn find() -> Result<Self, HierarchyError> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(HierarchyError::Mounts)?;
        mounts
            .lines()
            .filter_map(mount_of)
            .find_map(|mount| Self::at(mount).ok())
            .ok_or(HierarchyError::NoMemory)
    }

    /// Uses the hierarchy mounted there.
    pub fn at(mount: PathBuf) -> Result<Self, HierarchyError> {
        let controllers = read(&mount.join("cgroup.controllers"), MAX_FILE).unwrap_or_default();
        let version = if controllers.split_whitespace().any(|it| it == "memory") {
            Version::V2
        } else if mount.join("memory.oom_control").exists() {
            Version::V1
        } else {
            return Err(HierarchyError::NotHere(mount));
        };
        Ok(Self { mount, version })
    }

    /// The interface's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether cgroups have pressure files: v2, and a kernel that keeps PSI.
    pub fn has_pressure(&self) -> bool {
        self.version == Version::V2 && Path::new("/proc/pressure/memory").exists()
    }

    /// Where it is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// The folder of a cgroup.
    pub fn folder(&self, cgroup: &str) -> PathBuf {
        self.mount.join(cgroup.trim_start_matches('/'))
    }

    /// Its kill counters.
    pub fn kills(&self, cgroup: &str) -> Result<Kills, CounterError> {
        let folder = self.folder(cgroup);
        match self.version {
            Version::V1 => v1::kills(&folder),
            Version::V2 => v2::kills(&folder),
        }
    }

    /// Times `memory.high` throttled this cgroup or one below it.
    pub fn high(&self, cgroup: &str) -> Option<u64> {
        self.kills(cgroup).ok()?.high
    }

    /// What systemd-oomd counted in this cgroup and in those above it, which it kills with all
    /// below them. It rises with each kill. Always 0 on v1.
    pub fn oomd_kills(&self, cgroup: &str) -> u64 {
        match self.version {
            Version::V1 => 0,
            Version::V2 => {
                let folder = self.folder(cgroup);
                let above = folder.ancestors().take_while(|it| it.starts_with(&self.mount));
                above.map(oomd::kills).fold(0, u64::saturating_add)
            }
        }
    }

    /// Whether a process is in this cgroup or below it; none where the kernel does not report that.
    pub fn populated(&self, cgroup: &str) -> Option<bool> {
        let events = read(&self.folder(cgroup).join(POPULATION), MAX_FILE).ok()?;
        Some(keyed(&events, "populated")? != 0)
    }

    /// Its memory.
    pub fn memory(&self, cgroup: &str) -> Memory {
        let folder = self.folder(cgroup);
        let [limit, usage] = match self.version {
            Version::V1 => v1::MEMORY,
            Version::V2 => v2::MEMORY,
        };
        let value = |name: &str| read(&folder.join(name), MAX_FILE).ok();
        Memory {
            limit: value(limit).and_then(|text| bytes(&text)).filter(|bytes| *bytes < v1::NO_LIMIT),
            usage: value(usage).and_then(|text| bytes(&text)),
        }
    }

    /// The processes in a cgroup itself.
    pub fn processes(&self, cgroup: &str) -> io::Result<Vec<u32>> {
        Ok(pids(&read(&self.folder(cgroup).join("cgroup.procs"), MAX_PROCS)?))
    }

    /// A descriptor that becomes readable when memory ran out in a cgroup, above it or below it. v2
    /// has none: its `memory.events` is watched instead.
    pub fn oom_event(&self, cgroup: &str) -> io::Result<Option<OwnedFd>> {
        match self.version {
            Version::V1 => v1::oom_event(&self.folder(cgroup)).map(Some),
            Version::V2 => Ok(None),
        }
    }

    /// The files of a cgroup that the kernel reports changes of, by a notice on the file itself.
    pub fn notified_files(&self) -> &'static [&'static str] {
        match self.version {
            Version::V1 => &[],
            Version::V2 => &["memory.events", POPULATION],
        }
    }

    /// The cgroup of a process, as a path below the hierarchy's root; `None`: there is no such
    /// process.
    pub fn cgroup_of(&self, pid: u32) -> Option<String> {
        let text = read(Path::new(&format!("/proc/{pid}/cgroup")), MAX_MEMBERSHIP).ok()?;
        self.membership(&text).map(str::to_owned)
    }

    /// The path in the line of `/proc/PID/cgroup` for this hierarchy, relative to its root.
    pub fn membership<'a>(&self, text: &'a str) -> Option<&'a str> {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = match self.version {
                Version::V1 => controllers.split(',').any(|it| it == "memory"),
                Version::V2 => id == "0" && controllers.is_empty(),
            };
            // The cgroup of a dead process may be removed before the process is reaped:
            // proc_cgroup_show.
            ours.then_some(path.strip_suffix(" (deleted)").unwrap_or(path))
        })
    }
}

/// The mount point of a cgroup mount that may hold the memory controller: proc_pid_mountinfo(5).
fn mount_of(line: &str) -> Option<PathBuf> {
    let (before, after) = line.split_once(" - ")?;
    let point = before.split(' ').nth(4)?;
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    let ours = kind == "cgroup2" || kind == "cgroup" && options.split(',').any(|it| it == "memory");
    ours.then(|| PathBuf::from(point.replace("\\040", " ")))
}

/// At most `most` bytes of a file.
pub fn read(path: &Path, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The value of `key` in a file of `key value` lines. A file with the key twice is malformed.
fn keyed(text: &str, key: &str) -> Option<u64> {
    let mut values = text.lines().filter_map(|line| line.split_once(' ')).filter(|(name, _)| *name == key);
    let value = values.next()?.1.trim().parse().ok()?;
    values.next().is_none().then_some(value)
}

fn bytes(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The numbers in a list of one per line. Skips a truncated last line, and lines that are not
/// numbers.
fn pids(text: &str) -> Vec<u32> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_value_of_malformed_file_is_none() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(keyed(text, "oom_kill"), expect, "{text:?}");
        check("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", Some(3));
        check("oom_kill 18446744073709551615", Some(u64::MAX));
        for bad in [
            "",
            "\n\n",
            "oom_kill",
            "oom_kill ",
            "oom_kill x",
            "oom_kill -1",
            "oom_kill 18446744073709551616",
            "oom_kill_disable 0\n",
            "oom_kill 1\noom_kill 2\n",
            "oom_kill\t1\n",
            "\0\0\0",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn truncated_pid_list_drops_last_line() {
        for (text, expect) in [
            ("1\n22\n", vec![1, 22]),
            ("1\n22", vec![1]),
            ("", vec![]),
            ("x\n-3\n0\n4294967296\n7\n", vec![7]),
        ] {
            assert_eq!(pids(text), expect, "{text:?}");
        }
    }

    #[test]
    fn hybrid_mount_without_memory_controller_refused() {
        let there = tempfile::tempdir().unwrap();
        assert!(Hierarchy::at(there.path().to_owned()).is_err());
        std::fs::write(there.path().join("cgroup.controllers"), "cpu io\n").unwrap();
        assert!(Hierarchy::at(there.path().to_owned()).is_err());
        std::fs::write(there.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        assert_eq!(Hierarchy::at(there.path().to_owned()).unwrap().version(), Version::V2);
    }

    #[test]
    fn memory_mount_found_among_others() {
        let line = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
        assert_eq!(mount_of(line), Some("/sys/fs/cgroup/memory".into()));
        let line = "41 31 0:38 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(mount_of(line), Some("/sys/fs/cgroup".into()));
        for other in [
            "",
            " - ",
            "35 31 0:32 / /x rw - cgroup cgroup rw,cpu",
            "1 2 3 - cgroup2 x rw",
            "a b c d e - ext4 x rw",
        ] {
            assert_eq!(mount_of(other), None, "{other}");
        }
    }

    #[test]
    fn membership_line_found_by_version() {
        let mount = tempfile::tempdir().unwrap();
        std::fs::write(mount.path().join("memory.oom_control"), "").unwrap();
        let hierarchy = Hierarchy::at(mount.path().to_owned()).unwrap();
        let text = "9:name=systemd:/s\n4:cpu,memory:/a/b:c\n0::/u\n";
        assert_eq!(hierarchy.membership(text), Some("/a/b:c"));
        std::fs::write(mount.path().join("cgroup.controllers"), "memory").unwrap();
        let hierarchy = Hierarchy::at(mount.path().to_owned()).unwrap();
        assert_eq!(hierarchy.membership(text), Some("/u"));
        assert_eq!(hierarchy.membership("0::/a/b (deleted)\n"), Some("/a/b"));
        assert_eq!(hierarchy.membership("nonsense"), None);
    }
}
