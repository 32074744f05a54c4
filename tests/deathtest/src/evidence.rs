//! What the kernel log proves of one container: pure, from the entries of the container's life.

use std::fmt;

use serde::Serialize;

use crate::case::Proof;
use crate::kernel_log::Entry;

/// What is known of OOM kills in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub(crate) enum Evidence {
    /// The log shows a kill in the container.
    Kill {
        /// Unknown where a group is killed and the records are suppressed.
        victim: Option<Victim>,
        /// The line that shows it.
        shown_by: Line,
    },
    /// The log is complete and shows not one kill in the container.
    None,
    /// The log is not complete: kills in unknown cgroups, without a record, or a gap.
    Incomplete {
        /// Killed processes without a record.
        suppressed: usize,
    },
    /// The log was not read: what the case expects is taken for the truth.
    Assumed(Proof),
}

/// A killed process, with its pid in the initial namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Victim {
    pub(crate) pid: u32,
    pub(crate) command: String,
}

/// A line of the log that proves a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Line {
    /// `oom-kill:` with the container's cgroup.
    Record,
    /// `Tasks in` with the container's cgroup.
    Group,
    /// `Killed process` with the pid of the container's first process.
    Killed,
}

impl Evidence {
    /// What `entries`, all of a container's life, prove of the container with this `id`. `init` is
    /// its first process, if known. A runtime names a container's cgroup after its id.
    pub(crate) fn of(entries: &[Entry], id: &str, init: Option<u32>) -> Self {
        let spared = |pid: u32| entries.contains(&Entry::Spared { pid });
        let (mut recorded, mut in_group, mut incomplete, mut suppressed) = (Vec::new(), false, false, 0);
        let mut found = None;
        for entry in entries {
            match entry {
                Entry::Record { cgroup, pid, comm } => {
                    in_group = false;
                    recorded.push(*pid);
                    if is_in(cgroup, id) && !spared(*pid) {
                        found.get_or_insert(kill(Some((*pid, comm)), Line::Record));
                    }
                }
                Entry::Group { cgroup } => {
                    in_group = true;
                    if is_in(cgroup, id) {
                        found.get_or_insert(kill(None, Line::Group));
                    }
                }
                Entry::Killed { pid, comm } if init == Some(*pid) => {
                    found.get_or_insert(kill(Some((*pid, comm)), Line::Killed));
                }
                Entry::Killed { pid, .. } => suppressed += usize::from(!in_group && !recorded.contains(pid)),
                Entry::Spared { .. } => {}
                Entry::Gap => incomplete = true,
            }
        }
        match found {
            Some(found) => found,
            None if incomplete || suppressed > 0 => Self::Incomplete { suppressed },
            None => Self::None,
        }
    }
}

fn kill(victim: Option<(u32, &String)>, shown_by: Line) -> Evidence {
    let victim = victim.map(|(pid, command)| Victim { pid, command: command.clone() });
    Evidence::Kill { victim, shown_by }
}

fn is_in(cgroup: &str, id: &str) -> bool {
    !id.is_empty() && cgroup.contains(id)
}

impl fmt::Display for Evidence {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { victim: Some(Victim { pid, command }), .. } => {
                write!(out, "OOM kill of {command} (pid {pid}) in the kernel log")
            }
            Self::Kill { victim: None, .. } => out.write_str("OOM kill of the group in the kernel log"),
            Self::None => out.write_str("no OOM kill in the kernel log"),
            Self::Incomplete { suppressed: 0 } => out.write_str("lines of the kernel log were overwritten"),
            Self::Incomplete { suppressed } => {
                write!(out, "the kernel suppressed the records of {suppressed} OOM kills")
            }
            Self::Assumed(Proof::OomKill) => out.write_str("OOM kill assumed, kernel log not read"),
            Self::Assumed(Proof::None) => out.write_str("no OOM kill assumed, kernel log not read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(cgroup: &str, pid: u32) -> Entry {
        Entry::Record { cgroup: cgroup.to_owned(), pid, comm: "dd".to_owned() }
    }

    fn group(cgroup: &str) -> Entry {
        Entry::Group { cgroup: cgroup.to_owned() }
    }

    fn killed(pid: u32) -> Entry {
        Entry::Killed { pid, comm: "dd".to_owned() }
    }

    fn check(entries: &[Entry], expect: &Evidence) {
        assert_eq!(Evidence::of(entries, "c1", Some(7)), *expect, "{entries:?}");
    }

    fn proven(victim: Option<u32>, shown_by: Line) -> Evidence {
        kill(victim.map(|pid| (pid, "dd".to_owned())).as_ref().map(|(pid, comm)| (*pid, comm)), shown_by)
    }

    #[test]
    fn kill_is_proven_by_record_group_or_pid() {
        check(&[record("/k/c1", 9), killed(9)], &proven(Some(9), Line::Record));
        check(&[record("/k/c1/sub", 9)], &proven(Some(9), Line::Record));
        check(&[record("/k.slice/cri-containerd-c1.scope", 9)], &proven(Some(9), Line::Record));
        check(&[killed(9), group("/k/c1"), killed(9), killed(8)], &proven(None, Line::Group));
        check(&[killed(7)], &proven(Some(7), Line::Killed));
        check(&[Entry::Gap, record("/k/c1", 9)], &proven(Some(9), Line::Record));
    }

    #[test]
    fn other_kills_prove_nothing() {
        check(&[], &Evidence::None);
        check(&[record("/k/c2", 9), killed(9)], &Evidence::None);
        check(&[record("/k/c2", 9), killed(9), group("/k/c2"), killed(9), killed(8)], &Evidence::None);
        check(&[record("/k/c1", 9), Entry::Spared { pid: 9 }], &Evidence::None);
    }

    #[test]
    fn suppressed_record_or_gap_is_not_the_absence_of_a_kill() {
        check(&[killed(9)], &Evidence::Incomplete { suppressed: 1 });
        check(&[record("/k/c2", 8), killed(8), killed(9)], &Evidence::Incomplete { suppressed: 1 });
        check(&[Entry::Gap], &Evidence::Incomplete { suppressed: 0 });
        assert_eq!(Evidence::of(&[killed(7)], "c1", None), Evidence::Incomplete { suppressed: 1 });
    }
}
