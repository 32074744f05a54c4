//! One folder, one cgroup and one name per thing started, so that runs beside each other never
//! meet.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::sweep;

/// First part of every folder and cgroup name made here; the owner's pid and a number follow.
pub const PREFIX: &str = "coroner-test-";

/// Holds the pid and start time of the process that owns a folder: a pid alone may have been given
/// to another.
const OWNER: &str = "owner";

static COUNT: AtomicU32 = AtomicU32::new(0);
static SWEPT: Once = Once::new();

/// A folder under the system's temporary folder, and a cgroup name. Dropped, whatever runs in
/// either is ended.
#[derive(Debug)]
pub struct Scratch {
    name: String,
    directory: PathBuf,
}

impl Scratch {
    /// Makes the folder. The first call in a process sweeps what killed runs left.
    pub fn new() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "this test starts containers: run it as root");
        SWEPT.call_once(sweep_leftovers);
        let pid = std::process::id();
        let name = format!("{PREFIX}{pid}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let owner = identity(pid).context("reading this process's own start time")?;
        fs::write(directory.join(OWNER), owner)?;
        Ok(Self { name, directory })
    }

    /// The folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A path inside the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The folder's name, which is also the cgroup's.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        sweep::end_everything(&self.name, &self.directory);
    }
}

/// Ends what runs of this harness left that were killed before they could.
fn sweep_leftovers() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse().ok())
        else {
            continue;
        };
        let owner = fs::read_to_string(entry.path().join(OWNER)).ok();
        if owner.is_none_or(|owner| identity(pid).as_deref() != Some(owner.as_str())) {
            sweep::end_everything(&name, &entry.path());
        }
    }
}

/// A process's pid and start time in clock ticks since boot, field 22 of `/proc/PID/stat`
/// (proc_pid_stat(5)). None of a dead process, and one that is not yet waited for is dead.
fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name, field 2, is in parentheses and may itself hold some. After it comes the
    // state.
    let mut after = stat.rsplit_once(')')?.1.split_whitespace();
    let state = after.next()?;
    let start = after.nth(18)?;
    (!matches!(state, "Z" | "X")).then(|| format!("{pid} {start}"))
}
