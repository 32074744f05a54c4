//! Cgroup v2's memory controller: Documentation/admin-guide/cgroup-v2.rst. The tests here imitate
//! its files; the guest suite proves that a real kernel writes them so.

use std::path::Path;

use super::{CounterError, Kills, MAX_FILE, keyed, read};

/// Limit and usage.
pub(super) const MEMORY: [&str; 2] = ["memory.max", "memory.current"];

pub(super) fn kills(folder: &Path) -> Result<Kills, CounterError> {
    let text = read(&folder.join("memory.events"), MAX_FILE)?;
    let total = keyed(&text, "oom_kill").ok_or(CounterError::Malformed)?;
    // Linux has memory.events.local since 5.3 and oom_group_kill since 5.17.
    let own = read(&folder.join("memory.events.local"), MAX_FILE).ok();
    Ok(Kills {
        total,
        groups: keyed(&text, "oom_group_kill"),
        ooms: keyed(&text, "oom"),
        own_ooms: own.and_then(|text| keyed(&text, "oom")),
        high: keyed(&text, "high"),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn malformed_counter_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(kills(folder.path()), Err(CounterError::Gone));
        write("memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 1\n");
        write("memory.events.local", "low 0\noom 1\noom_kill 0\n");
        let all = Kills { total: 1, groups: Some(1), ooms: Some(2), own_ooms: Some(1), high: Some(0) };
        assert_eq!(kills(folder.path()), Ok(all));
        write("memory.events.local", "");
        write("memory.events", "oom 2\noom_kill 1\n");
        let few = Kills { total: 1, ooms: Some(2), ..Kills::default() };
        assert_eq!(kills(folder.path()), Ok(few));
        for bad in ["", "oom_kill\n", "oom_kill one\n", "oom 1\n"] {
            write("memory.events", bad);
            assert_eq!(kills(folder.path()), Err(CounterError::Malformed), "{bad:?}");
        }
    }
}
