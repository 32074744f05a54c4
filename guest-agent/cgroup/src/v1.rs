//! Cgroup v1's memory controller: Documentation/admin-guide/cgroup-v1/memory.rst.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::event::EventfdFlags;

use super::{CounterError, Kills, MAX_FILE, keyed, read};

/// Limit and usage.
pub(super) const MEMORY: [&str; 2] = ["memory.limit_in_bytes", "memory.usage_in_bytes"];

/// Values from here on mean "no limit": the kernel's default is the largest number of pages that a
/// long can count, in bytes, which differs by page size but is above this for all of them.
pub(super) const NO_LIMIT: u64 = 1 << 62;

pub(super) fn kills(folder: &Path) -> Result<Kills, CounterError> {
    let text = read(&folder.join("memory.oom_control"), MAX_FILE)?;
    let total = keyed(&text, "oom_kill").ok_or(CounterError::Malformed)?;
    // v1 does not kill groups, and counts a kill in the victim's own cgroup only:
    // memcg_memory_event.
    Ok(Kills { total, groups: Some(0), ooms: None, own_ooms: None, high: None })
}

/// Registers for `memory.oom_control`. The kernel keeps what it needs: the files may be closed.
pub(super) fn oom_event(folder: &Path) -> io::Result<OwnedFd> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = fs::File::open(folder.join("memory.oom_control"))?;
    let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    fs::write(folder.join("cgroup.event_control"), line)?;
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_counter_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let check = |text: &str, expect: Result<u64, CounterError>| {
            fs::write(folder.path().join("memory.oom_control"), text).unwrap();
            assert_eq!(kills(folder.path()).map(|it| it.total), expect, "{text:?}");
        };
        assert_eq!(kills(folder.path()), Err(CounterError::Gone));
        check("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", Ok(2));
        check("oom_kill_disable 0\nunder_oom 0\n", Err(CounterError::Malformed));
        check("\u{0}oom_kill", Err(CounterError::Malformed));
        check(&format!("{}oom_kill 1\n", "x\n".repeat(4096)), Err(CounterError::Malformed));
    }
}
