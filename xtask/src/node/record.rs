//! What is up: one folder for each node in `target-node`, with its record `node.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::workspace;

const FILE: &str = "node.json";
/// As the kernel shortens the name of QEMU's program.
const PROGRAM: &str = "qemu-system-x86";
/// How long QEMU may need to end after SIGTERM, before SIGKILL.
const END: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) pid: i32,
    /// When the process started, in clock ticks after the host's boot. A process that was given
    /// the same pid later has another.
    start_ticks: u64,
    /// Forwarded from 127.0.0.1 to the node's ssh.
    pub(super) port: u16,
    pub(super) ssh_key: PathBuf,
    pub(super) containerd: String,
    /// Booted, not resumed.
    pub(super) fresh: bool,
    /// Seconds since 1970.
    pub(super) since: u64,
    #[serde(skip)]
    pub(super) folder: PathBuf,
}

impl Record {
    pub(super) fn new(
        name: &str,
        folder: &Path,
        pid: i32,
        port: u16,
        ssh_key: PathBuf,
        containerd: &str,
        fresh: bool,
    ) -> anyhow::Result<Self> {
        let start_ticks = start_ticks(pid).with_context(|| format!("QEMU (pid {pid}) ended at once"))?;
        let (name, containerd, folder) = (name.to_owned(), containerd.to_owned(), folder.to_owned());
        Ok(Self { name, pid, start_ticks, port, ssh_key, containerd, fresh, since: now(), folder })
    }

    pub(super) fn write(&self) -> anyhow::Result<()> {
        let path = self.folder.join(FILE);
        let text = serde_json::to_string_pretty(self).context("a record is JSON")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(super) fn pid(&self) -> anyhow::Result<Pid> {
        Pid::from_raw(self.pid).with_context(|| format!("{} is not a pid", self.pid))
    }

    /// Whether the recorded process is there: the same pid, program and start.
    pub(super) fn is_running(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    pub(super) fn uptime(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.since))
    }

    /// Ends QEMU; answers false where it had ended already.
    pub(super) fn end(&self) -> anyhow::Result<bool> {
        if !self.is_running() {
            return Ok(false);
        }
        for signal in [Signal::TERM, Signal::KILL] {
            kill_process(self.pid()?, signal).with_context(|| format!("cannot end pid {}", self.pid))?;
            let start = Instant::now();
            while start.elapsed() < END {
                if !self.is_running() {
                    return Ok(true);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        bail!("QEMU (pid {}) does not end; its folder is kept: {}", self.pid, self.folder.display())
    }
}

/// The folder of a node, which need not be there.
pub(super) fn folder(name: &str) -> PathBuf {
    workspace::target_dir("node").join(name)
}

/// A name is a folder's name and a word of a command line.
pub(super) fn check_name(name: &str) -> anyhow::Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 32 || name.starts_with('-') || !name.chars().all(fits) {
        bail!("{name:?} cannot be a node's name: use 1 to 32 letters, digits, - and _");
    }
    Ok(())
}

/// The record of a node, if there is one.
pub(super) fn read(name: &str) -> anyhow::Result<Option<Record>> {
    check_name(name)?;
    read_at(&folder(name))
}

/// All nodes, by name.
pub(super) fn all() -> anyhow::Result<Vec<Record>> {
    let folder = workspace::target_dir("node");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let folders = workspace::entries(&folder)?;
    folders.iter().filter_map(|folder| read_at(folder).transpose()).collect()
}

fn read_at(folder: &Path) -> anyhow::Result<Option<Record>> {
    let path = folder.join(FILE);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let record: Record = serde_json::from_str(&text)
        .with_context(|| format!("cannot parse {}; remove its folder if no QEMU runs", path.display()))?;
    Ok(Some(Record { folder: folder.to_owned(), ..record }))
}

/// The start of a QEMU process, `None` if there is no such process.
fn start_ticks(pid: i32) -> Option<u64> {
    started(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, PROGRAM)
}

/// The 22nd field of `/proc/PID/stat`, if the process is `program` and no zombie.
fn started(stat: &str, program: &str) -> Option<u64> {
    let (before, after) = stat.rsplit_once(") ")?;
    let mut fields = after.split(' ');
    if before.split_once('(')?.1 != program || fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_is_read_behind_any_name() {
        let stat = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4 1 0 0 0 1 1 0 0 20 0 1 0 4711 999 1 2\n")
        };
        assert_eq!(started(&stat(PROGRAM, "S"), PROGRAM), Some(4711));
        assert_eq!(started(&stat("a) (b", "S"), "a) (b"), Some(4711));
        assert_eq!(started(&stat(PROGRAM, "Z"), PROGRAM), None, "a zombie");
        assert_eq!(started(&stat("sleep", "S"), PROGRAM), None, "another program has the pid");
    }

    #[test]
    fn process_of_another_program_is_not_a_running_node() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(start_ticks(pid), None);
    }

    #[test]
    fn name_with_a_path_is_refused() {
        for name in ["", "a/b", "..", "-a", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("node-2_b").unwrap();
    }

    #[test]
    fn record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record {
            name: "node".to_owned(),
            pid: 7,
            start_ticks: 4711,
            port: 4022,
            ssh_key: "/cache/key".into(),
            containerd: "2.4.2".to_owned(),
            fresh: false,
            since: 1,
            folder: folder.path().to_owned(),
        };
        record.write().unwrap();
        assert_eq!(format!("{:?}", read_at(folder.path()).unwrap().unwrap()), format!("{record:?}"));
        assert!(read_at(&folder.path().join("absent")).unwrap().is_none());
    }
}
