//! Which marks are kills, and of which cgroup.
//!
//! `oom:mark_victim` alone proves no kill: the kernel also marks a process that is ending by itself
//! (`out_of_memory` in mm/oom_kill.c). A victim gets the kernel's SIGKILL and its mark from one
//! process, on one processor, some microseconds apart: `__oom_kill_process` holds a spinlock over
//! both. The kernel's SIGKILL alone is not a kill either: the end of a pid namespace sends it too.

use std::collections::VecDeque;
use std::time::Duration;

use crate::kmsg::is_within;
use crate::trace::{TraceEvent, Traced};

/// Longest time from the signal to the mark of one kill. Between them an interrupt may come.
const TOGETHER: Duration = Duration::from_millis(1);
/// How long a mark is kept that no counter has risen for. A container ends within it.
const KEPT: Duration = Duration::from_secs(10);
/// Marks, and signals within [`TOGETHER`]. Without a limit they could fill the memory: kills
/// outside of the watched containers are here too.
const MAX_KEPT: usize = 256;

/// A process that the OOM killer killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) pid: u32,
    pub(crate) comm: String,
}

#[derive(Debug)]
struct Kept {
    mark: Mark,
    at: Duration,
    /// That of the process when its mark was read.
    cgroup: String,
}

#[derive(Debug, Default)]
pub(super) struct Marks {
    signals: VecDeque<Traced>,
    marks: VecDeque<Kept>,
    /// Cgroups of marks, killed or not: their counters may have risen.
    marked: Vec<String>,
    /// The processes that were killed, in whatever cgroup.
    victims: VecDeque<(u32, Duration)>,
    /// When events were missing last.
    lost: Option<Duration>,
}

impl Marks {
    pub(super) fn add(&mut self, traced: Traced, cgroup_of: impl FnOnce(u32) -> Option<String>) {
        self.signals.retain(|signal| traced.at.saturating_sub(signal.at) <= TOGETHER);
        let (pid, comm) = match &traced.event {
            TraceEvent::Signal(signal) if signal.is_kernel_kill() => return keep(&mut self.signals, traced),
            TraceEvent::Signal(_) => return,
            TraceEvent::Mark { pid, comm } => (*pid, comm.clone()),
        };
        let is_by_same = |it: &&Traced| it.current == traced.current && it.cpu == traced.cpu;
        let last = self.signals.iter().rev().find(is_by_same).map(|signal| &signal.event);
        let is_killed = matches!(last, Some(TraceEvent::Signal(signal)) if signal.pid == pid);
        self.signals.retain(|signal| signal.current != traced.current);
        if is_killed {
            keep(&mut self.victims, (pid, traced.at));
        }
        // Of v1 an ending process is in the root.
        let Some(cgroup) = cgroup_of(pid).filter(|cgroup| cgroup != "/") else { return };
        if self.marked.len() < MAX_KEPT {
            self.marked.push(cgroup.clone());
        }
        if is_killed {
            keep(&mut self.marks, Kept { mark: Mark { pid, comm }, at: traced.at, cgroup });
        }
    }

    pub(super) fn expire(&mut self, now: Duration) {
        self.marks.retain(|kept| now.saturating_sub(kept.at) <= KEPT);
        self.victims.retain(|(_, at)| now.saturating_sub(*at) <= KEPT);
        self.lost.take_if(|lost| now.saturating_sub(*lost) > KEPT);
    }

    /// Events were overwritten before they were read.
    pub(super) fn lost(&mut self, now: Duration) {
        self.lost = Some(now);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.lost.is_none()
    }

    pub(super) fn take_victim(&mut self, pid: u32) -> bool {
        let at = self.victims.iter().position(|(victim, _)| *victim == pid);
        at.and_then(|at| self.victims.remove(at)).is_some()
    }

    pub(super) fn resolve(&mut self, thread: u32, pid: u32) {
        self.victims.iter_mut().filter(|(victim, _)| *victim == thread).for_each(|(victim, _)| *victim = pid);
    }

    pub(super) fn take_marked(&mut self) -> Vec<String> {
        std::mem::take(&mut self.marked)
    }

    pub(super) fn claim(&mut self, cgroup: &str) -> Option<(Mark, u64)> {
        let (mut latest, mut kills) = (None, 0);
        self.marks.retain(|kept| {
            let is_ours = is_within(&kept.cgroup, cgroup);
            if is_ours {
                kills += 1;
                latest = Some(kept.mark.clone());
            }
            !is_ours
        });
        latest.map(|mark| (mark, kills))
    }
}

fn keep<T>(kept: &mut VecDeque<T>, latest: T) {
    if kept.len() == MAX_KEPT {
        kept.pop_front();
    }
    kept.push_back(latest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::SignalEvent;

    fn traced(current: u32, cpu: u32, micros: u64, event: TraceEvent) -> Traced {
        Traced { current, comm: "p".into(), cpu, at: Duration::from_micros(micros), event }
    }

    fn signal(current: u32, cpu: u32, micros: u64, pid: u32) -> Traced {
        let signal = SignalEvent { signal: 9, code: 128, pid, to_process: true, is_delivered: true };
        traced(current, cpu, micros, TraceEvent::Signal(signal))
    }

    fn mark(current: u32, cpu: u32, micros: u64, pid: u32) -> Traced {
        traced(current, cpu, micros, TraceEvent::Mark { pid, comm: format!("p{pid}") })
    }

    /// The number of kills in the cgroup of every process.
    fn kills(events: Vec<Traced>) -> u64 {
        let mut marks = Marks::default();
        for event in events {
            marks.add(event, |_| Some("/k/c1".to_owned()));
        }
        marks.claim("/k/c1").map_or(0, |(_, kills)| kills)
    }

    #[test]
    fn mark_is_a_kill_right_after_the_signal_of_the_same_process() {
        for (events, expect) in [
            (vec![signal(7, 0, 10, 9), mark(7, 0, 14, 9)], 1),
            // Another processor's kill between them.
            (vec![signal(7, 0, 10, 9), signal(8, 1, 11, 5), mark(8, 1, 12, 5), mark(7, 0, 14, 9)], 2),
            // An ending process is marked alone.
            (vec![mark(7, 0, 14, 9)], 0),
            // The end of a pid namespace: a signal by its init, a mark by another process or later.
            (vec![signal(3, 0, 10, 9), mark(7, 0, 14, 9)], 0),
            (vec![signal(7, 0, 10, 9), mark(7, 1, 14, 9)], 0),
            (vec![signal(7, 0, 10, 9), mark(7, 0, 1_014, 9)], 0),
            (vec![signal(7, 0, 10, 9), signal(7, 0, 11, 5), mark(7, 0, 14, 9)], 0),
            // One signal is one kill.
            (vec![signal(7, 0, 10, 9), mark(7, 0, 14, 9), mark(7, 0, 15, 9)], 1),
        ] {
            let shown = format!("{events:?}");
            assert_eq!(kills(events), expect, "{shown}");
        }
    }

    #[test]
    fn claim_takes_the_kills_of_a_cgroup_once() {
        let mut marks = Marks::default();
        let cgroup = |pid: u32| [None, Some("/k/c1"), Some("/k/c1/sub"), Some("/")][pid as usize];
        for pid in 0..4 {
            marks.add(signal(7, 0, 10, pid), |_| None);
            marks.add(mark(7, 0, 11, pid), |pid| cgroup(pid).map(str::to_owned));
        }
        assert_eq!(marks.take_marked(), ["/k/c1", "/k/c1/sub"]);
        assert_eq!(marks.take_marked(), [""; 0]);
        let claimed = ["/k/c", "/k/c1", "/k/c1"]
            .map(|cgroup| marks.claim(cgroup).map(|(mark, kills)| (mark.comm, kills)));
        assert_eq!(claimed, [None, Some(("p2".to_owned(), 2)), None]);
    }

    #[test]
    fn victim_is_known_once_in_whatever_cgroup() {
        let mut marks = Marks::default();
        for pid in [5, 6] {
            marks.add(signal(7, 0, 10, pid), |_| None);
            marks.add(mark(7, 0, 11, pid), |_| None);
        }
        marks.add(mark(7, 0, 12, 8), |_| None);
        marks.resolve(6, 4);
        assert_eq!([5, 5, 6, 4, 8].map(|pid| marks.take_victim(pid)), [true, false, false, true, false]);
    }

    #[test]
    fn lost_events_leave_it_incomplete_for_a_while() {
        let mut marks = Marks::default();
        assert!(marks.is_complete());
        marks.lost(Duration::from_secs(1));
        marks.expire(KEPT);
        assert!(!marks.is_complete());
        marks.expire(KEPT + Duration::from_secs(2));
        assert!(marks.is_complete());
    }

    #[test]
    fn marks_are_bounded_and_expire() {
        let mut marks = Marks::default();
        for pid in 0..MAX_KEPT as u32 + 5 {
            marks.add(signal(pid, 0, 10, pid), |_| None);
            marks.add(mark(pid, 0, 11, pid), |_| Some("/k/c1".to_owned()));
            marks.add(signal(u32::MAX - pid, 0, 10, pid), |_| None);
        }
        assert_eq!((marks.marks.len(), marks.signals.len(), marks.marked.len()), (256, 256, 256));
        assert_eq!(marks.victims.len(), 256);
        marks.expire(KEPT);
        assert_eq!(marks.marks.len(), 256);
        marks.expire(KEPT + Duration::from_micros(12));
        assert_eq!(marks.claim("/k/c1"), None);
    }
}
