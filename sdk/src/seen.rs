//! Queries on signals and case files that distinguish unknown from no.

use crate::{CaseFile, CauseKind, Event, ExitSignal, Exited, Moment, OomKill, Signal, Witnesses};

/// Kill requests the router keeps of one container.
const REQUESTS_KEPT: usize = 16;

/// Witnesses that have a count of the kills.
const COUNTED: Witnesses = Witnesses::COUNTER.union(Witnesses::INFERRED);
/// What the kernel's OOM killer sends.
const SIGKILL: u8 = 9;

impl Signal {
    /// The exit of the container itself: of its init process, and not of an exec. Most exits of
    /// which that is not known are of init.
    #[must_use]
    pub fn exit_of_init(&self) -> Option<&Exited> {
        match &self.event {
            Event::Exited(exited) if exited.is_init != Some(false) && self.target.exec_id.is_none() => {
                Some(exited)
            }
            _ => None,
        }
    }
}

impl OomKill {
    /// Whether it killed the init that then `exited`. `None`: victim and status are unknown.
    #[must_use]
    pub fn hit_init(&self, exited: &Exited) -> Option<bool> {
        let alone = self.added == Some(1) && self.group != Some(true);
        if self.named_init() {
            return Some(true);
        }
        match exited.cause.as_ref().map(|cause| cause.kind) {
            Some(CauseKind::KernelOom) => return Some(true),
            Some(CauseKind::Unknown | CauseKind::Other) | None => {}
            Some(_) => return Some(false),
        }
        let other_named = self.victims.iter().any(|victim| victim.is_init == Some(false));
        // Of several victims one is named.
        if alone && other_named { Some(false) } else { exited.ended_by(SIGKILL) }
    }

    /// Whether the kernel named the container's init as its victim.
    #[must_use]
    pub fn named_init(&self) -> bool {
        self.victims.iter().any(|victim| victim.is_init == Some(true))
    }
}

impl Exited {
    /// Whether a signal ended it, as far as that is known: from the signal, else from a status of
    /// 128 + signal, with which a program may also exit by itself. `None` where neither was seen.
    #[must_use]
    pub fn ended_by(&self, signal: u8) -> Option<bool> {
        match self.signal {
            ExitSignal::None => Some(false),
            ExitSignal::Some(seen) => Some(seen == signal),
            ExitSignal::Unknown => self.status.map(|status| status == 128 + u32::from(signal)),
        }
    }

    /// Its status as containerd counts: as seen, else 128 + signal. `None`: neither was seen.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        self.status.or(match self.signal {
            ExitSignal::Some(signal) => Some(128 + u32::from(signal)),
            ExitSignal::None | ExitSignal::Unknown => None,
        })
    }

    /// What sent the signal that ended it, where that is proven.
    #[must_use]
    pub fn proven_cause(&self) -> Option<CauseKind> {
        let kind = self.cause.as_ref()?.kind;
        (kind != CauseKind::Unknown).then_some(kind)
    }
}

impl CaseFile {
    /// The last OOM kill, if there is proof of one: it was counted, or it was announced and no
    /// counter is read that contradicts it.
    #[must_use]
    pub fn proven_kill(&self) -> Option<(&Moment, &OomKill)> {
        let (at, kill) = self.last_kill.as_ref()?;
        let proven = match kill.added {
            Some(added) => added > 0,
            None => !COUNTED.contains(kill.witnesses) && self.kills != Some(0),
        };
        proven.then_some((at, kill))
    }

    /// When this signal was last sent through the runtime, as far as that is seen and was kept.
    #[must_use]
    pub fn last_request(&self, signal: u8) -> Option<&Moment> {
        let requests = self.requests.as_ref()?;
        requests.iter().rev().find(|(_, request)| request.signal == signal).map(|(at, _)| at)
    }

    /// Whether this signal was sent through the runtime. `None` where kill requests are not seen,
    /// and where so many others followed that this one may have been evicted.
    #[must_use]
    pub fn kill_requested(&self, signal: u8) -> Option<bool> {
        let requests = self.requests.as_ref()?;
        let found = requests.iter().any(|(_, request)| request.signal == signal);
        (found || requests.len() < REQUESTS_KEPT).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cause, GuestLost, KillRequest, Victim, testing};

    #[test]
    fn end_by_signal_read_from_signal_or_else_status() {
        let (unknown, by) = (ExitSignal::Unknown, ExitSignal::Some);
        let cases = [
            (by(9), Some(137), Some(true)),
            (by(9), None, Some(true)),
            (by(15), Some(137), Some(false)),
            (ExitSignal::None, Some(137), Some(false)),
            (unknown, Some(137), Some(true)),
            (unknown, Some(9), Some(false)),
            (unknown, Some(0), Some(false)),
            (unknown, None, None),
        ];
        for (signal, status, expect) in cases {
            let exited = Exited { signal, status, ..testing::exited() };
            assert_eq!(exited.ended_by(9), expect, "signal {signal:?}, status {status:?}");
        }
    }

    #[test]
    fn kill_request_unknown_where_unseen_or_evicted() {
        let request = |signal| (testing::moment(), KillRequest { signal, all: false });
        let cases = [
            (None, None),
            (Some(vec![]), Some(false)),
            (Some(vec![request(15)]), Some(false)),
            (Some(vec![request(15), request(9)]), Some(true)),
            (Some(vec![request(15); 16]), None),
            (Some(vec![request(9); 16]), Some(true)),
        ];
        for (requests, expect) in cases {
            let case = CaseFile { requests: requests.clone(), ..testing::case() };
            assert_eq!(case.kill_requested(9), expect, "{requests:?}");
        }
    }
    #[test]
    fn exit_of_exec_is_not_exit_of_container() {
        let cases = [
            (Some(true), None, true),
            (None, None, true),
            (Some(false), None, false),
            (None, Some("e1"), false),
        ];
        for (is_init, exec_id, expect) in cases {
            let mut signal = testing::signal(Event::Exited(Exited { is_init, ..testing::exited() }));
            signal.target.exec_id = exec_id.map(str::to_owned);
            assert_eq!(signal.exit_of_init().is_some(), expect, "{is_init:?} {exec_id:?}");
        }
        let lost = testing::signal(Event::GuestLost(GuestLost { reason: "gone".to_owned() }));
        assert_eq!(lost.exit_of_init(), None);
    }

    #[test]
    fn kill_hit_init_by_its_victim_or_else_by_init_status() {
        let cases = [
            (Some(true), Some(1), None, Some(1), Some(true)),
            (Some(false), Some(1), None, Some(137), Some(false)),
            (Some(false), Some(2), None, Some(137), Some(true)),
            (Some(false), Some(1), Some(true), Some(137), Some(true)),
            (Some(false), None, None, Some(1), Some(false)),
            (None, Some(1), None, Some(137), Some(true)),
            (None, Some(1), None, Some(1), Some(false)),
            (None, Some(1), None, None, None),
        ];
        for (is_init, added, group, status, expect) in cases {
            let victims = vec![Victim { pid: 1, comm: "a".to_owned(), is_init }];
            let kill = OomKill { added, group, victims, ..testing::oom_kill() };
            let exited = Exited { status, ..testing::exited() };
            assert_eq!(kill.hit_init(&exited), expect, "{is_init:?} {added:?} {group:?} {status:?}");
        }
    }

    #[test]
    fn kill_hit_init_by_the_cause_of_its_exit() {
        let cases = [
            (CauseKind::KernelOom, Some(true)),
            (CauseKind::Runtime, Some(false)),
            (CauseKind::Unknown, Some(true)),
            (CauseKind::Other, Some(true)),
        ];
        for (kind, expect) in cases {
            let cause = Cause { kind, name: String::new(), sender: None, sources: vec![] };
            let exited = Exited { status: Some(137), cause: Some(cause), ..testing::exited() };
            let kill = OomKill { added: Some(1), ..testing::oom_kill() };
            assert_eq!(kill.hit_init(&exited), expect, "{kind:?}");
        }
    }

    #[test]
    fn code_is_status_or_else_from_signal() {
        let cases = [
            (Some(1), ExitSignal::Some(9), Some(1)),
            (None, ExitSignal::Some(9), Some(137)),
            (Some(0), ExitSignal::None, Some(0)),
            (None, ExitSignal::Unknown, None),
        ];
        for (status, signal, expect) in cases {
            assert_eq!(Exited { status, signal, ..testing::exited() }.code(), expect);
        }
    }

    #[test]
    fn kill_proven_by_counter_or_by_announcement_without_counter() {
        let cases = [
            (Some(1), Witnesses::COUNTER, Some(1), true),
            (Some(1), Witnesses::INFERRED, None, true),
            (Some(0), Witnesses::ANNOUNCED, None, false),
            (None, Witnesses::ANNOUNCED, None, true),
            (None, Witnesses::TRACE, None, true),
            (None, Witnesses::ANNOUNCED, Some(2), true),
            (None, Witnesses::ANNOUNCED, Some(0), false),
            (None, Witnesses::COUNTER, Some(1), false),
            (None, Witnesses::INFERRED, None, false),
        ];
        for (added, witnesses, kills, expect) in cases {
            let kill = OomKill { added, witnesses, ..testing::oom_kill() };
            let case = CaseFile { kills, last_kill: Some((testing::moment(), kill)), ..testing::case() };
            assert_eq!(case.proven_kill().is_some(), expect, "{added:?} {witnesses:?} {kills:?}");
        }
        assert_eq!(testing::case().proven_kill(), None);
    }

    #[test]
    fn last_request_of_signal_found_among_others() {
        let request = |signal, received_ms| {
            (Moment { received_ms, ..testing::moment() }, KillRequest { signal, all: false })
        };
        let requests = Some(vec![request(15, 1), request(15, 2), request(9, 3)]);
        let case = CaseFile { requests, ..testing::case() };
        let at = |signal| case.last_request(signal).map(|moment| moment.received_ms);
        assert_eq!((at(15), at(9), at(1)), (Some(2), Some(3), None));
        assert_eq!(testing::case().last_request(9), None);
    }
}
