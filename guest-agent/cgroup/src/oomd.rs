//! Marks of systemd-oomd: extended attributes of the cgroups that it killed.

use std::path::Path;

/// Kills, counted before them; processes that were killed, counted after them. Older versions have
/// the second alone.
const ATTRIBUTES: [&str; 2] = ["user.oomd_ooms", "user.oomd_kill"];

/// The sum of the attributes of one cgroup. One that is missing or malformed counts as 0.
pub(crate) fn kills(folder: &Path) -> u64 {
    ATTRIBUTES.iter().map(|name| attribute(folder, name).unwrap_or(0)).fold(0, u64::saturating_add)
}

fn attribute(folder: &Path, name: &str) -> Option<u64> {
    // The longest number has 20 digits.
    let mut buffer = [0; 20];
    let length = rustix::fs::getxattr(folder, name, &mut buffer[..]).ok()?;
    std::str::from_utf8(buffer.get(..length)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rustix::fs::{XattrFlags, setxattr};

    use super::*;

    #[test]
    fn attributes_are_summed_and_malformed_ones_are_zero() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(kills(folder.path()), 0);
        let set = |name: &str, value: &str| {
            setxattr(folder.path(), name, value.as_bytes(), XattrFlags::empty()).unwrap();
            kills(folder.path())
        };
        assert_eq!(set("user.oomd_ooms", "2"), 2);
        assert_eq!(set("user.oomd_kill", "17"), 19);
        for bad in ["", "x", "-1", "99999999999999999999", "111111111111111111111111"] {
            assert_eq!(set("user.oomd_kill", bad), 2, "{bad:?}");
        }
        assert_eq!(set("user.oomd_kill", "18446744073709551615"), u64::MAX);
        assert_eq!(kills(&folder.path().join("gone")), 0);
    }
}
