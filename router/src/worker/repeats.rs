//! Which reports are about a kill that was ruled: an agent and a shim's source may read the same
//! counter, and a group is counted one process at a time.
//!
//! docs/internals/decisions/one-kill-one-event.md has the reasons.

use std::collections::HashSet;

use coroner_core::case::Case;
use coroner_core::signal::{BUNDLE, ContainerId, Event, Evidence, Level, OomKilled, Signal};

/// Whether a report is about the same run of the container as its case. After its exit only where
/// its shim reports its creation, which begins a new case, and just after the kill: the container
/// may run again while no router is there for its shim.
pub(super) fn is_one_life(case: &Case, signal: &Signal) -> bool {
    let is_wrapped = || case.attributes.iter().any(|(key, _)| key == BUNDLE);
    case.exit.is_none() || is_wrapped() && case.is_near_last_kill(signal)
}

/// Whether the kill that was ruled first, of a child within the container, turns out to be that of
/// a whole cgroup, which may have been all of the container. It is ruled once more.
fn shows_the_group(case: &Case, signal: &Signal) -> bool {
    match (&signal.event, &case.last_kill) {
        (Event::OomKill(kill), Some((_, last))) => {
            let is_new = kill.group == Some(true) && last.group != Some(true);
            is_new && last.level == Level::Child && !case.oom_sent
        }
        _ => false,
    }
}

/// Whether the case has this kill by its count. Without the container's counter a witness may count
/// fewer: the kernel's log has one record for a group of processes. After the exit a lower count is
/// an earlier read of the counter.
pub(super) fn is_counted(kill: &OomKilled, case: &Case) -> bool {
    match (kill.total, case.kills_total()) {
        (Some(total), Some(known)) if kill.evidence == Evidence::Announced || case.exit.is_some() => {
            total <= known
        }
        (total, known) => total.is_some() && total == known,
    }
}

/// Whether this is another report of the last kill, with a victim or a level that the first lacks.
pub(super) fn adds(kill: &OomKilled, case: &Case) -> bool {
    let last = case.last_kill.as_ref().map(|(_, last)| last);
    last.is_some_and(|last| kill.total.is_some() && kill.total == last.total && last.lacks(kill))
}

/// Whether the recovered case has counted this very kill: its ruling could not be written, the
/// case was, with a later signal, and the router died. The kill was not published, so it is ruled
/// once more. Never of a case that is not recovered: two sources may report one kill within one
/// millisecond.
pub(super) fn counts(recovered: &HashSet<ContainerId>, case: &Case, signal: &Signal) -> bool {
    match (&signal.event, &case.last_kill) {
        (Event::OomKill(kill), Some((at, last))) => {
            kill.total.is_some()
                && kill.total == last.total
                && *at == signal.at
                && recovered.contains(&signal.target.container_id)
        }
        _ => false,
    }
}

/// Whether a report is about more processes of the kill that was ruled last, or has that kill's
/// count and more of it than the report that was first. Not of a recovered case that is as new as
/// the report: a crash may have lost the ruling of that kill.
pub(super) fn is_step(recovered: &HashSet<ContainerId>, case: &Case, signal: &Signal) -> bool {
    if let Event::OomKill(kill) = &signal.event
        && is_one_life(case, signal)
        && adds(kill, case)
    {
        return !counts(recovered, case, signal);
    }
    if shows_the_group(case, signal) {
        return false;
    }
    let is_newer = case.last_kill.as_ref().is_some_and(|(at, _)| at.received_ms < signal.at.received_ms);
    let is_ruled = is_newer || !recovered.contains(&signal.target.container_id);
    is_one_life(case, signal) && is_ruled && case.is_step_of_last_kill(signal)
}

/// Changes another report of the last kill: that kill is not learnt late, and a report with the
/// same count adds none.
pub(super) fn repeat(signal: &mut Signal, case: &Case) {
    let Event::OomKill(kill) = &mut signal.event else { return };
    kill.late = false;
    if kill.total == case.kills_total() {
        kill.added = Some(0);
    }
}
