//! Queries on signals and case files that distinguish unknown from no.

use crate::{CaseFile, Event, Evidence, Exited, Moment, OomKill, Signal};

/// Kill requests the router keeps of one container.
const REQUESTS_KEPT: usize = 16;

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
        match self.victim.as_ref().and_then(|victim| victim.is_init) {
            Some(true) => Some(true),
            // Of several victims one is named.
            Some(false) if alone => Some(false),
            Some(false) | None => exited.ended_by(SIGKILL),
        }
    }
}

impl Exited {
    /// Whether a signal ended it, as far as that is known: from the signal, else from a status of
    /// 128 + signal, as which a shell also reports its child's end. `None` where neither was seen.
    #[must_use]
    pub fn ended_by(&self, signal: u8) -> Option<bool> {
        match (self.signal, self.status) {
            (Some(seen), _) => Some(seen == signal),
            (None, Some(status)) => Some(status == 128 + u32::from(signal)),
            (None, None) => None,
        }
    }

    /// Its status as containerd counts: as seen, else 128 + signal. `None`: neither was seen.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        self.status.or(self.signal.map(|signal| 128 + u32::from(signal)))
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
            None => kill.evidence == Evidence::Announced && self.kills != Some(0),
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
    use crate::{GuestLost, KillRequest, Victim, testing};

    #[test]
    fn end_by_signal_read_from_signal_or_else_status() {
        let cases = [
            (Some(9), Some(137), Some(true)),
            (Some(9), None, Some(true)),
            (Some(15), Some(137), Some(false)),
            (None, Some(137), Some(true)),
            (None, Some(9), Some(false)),
            (None, Some(0), Some(false)),
            (None, None, None),
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
            let victim = Some(Victim { pid: 1, comm: "a".to_owned(), is_init });
            let kill = OomKill { added, group, victim, ..testing::oom_kill() };
            let exited = Exited { status, ..testing::exited() };
            assert_eq!(kill.hit_init(&exited), expect, "{is_init:?} {added:?} {group:?} {status:?}");
        }
    }

    #[test]
    fn code_is_status_or_else_from_signal() {
        let cases = [
            (Some(1), Some(9), Some(1)),
            (None, Some(9), Some(137)),
            (Some(0), None, Some(0)),
            (None, None, None),
        ];
        for (status, signal, expect) in cases {
            assert_eq!(Exited { status, signal, ..testing::exited() }.code(), expect);
        }
    }

    #[test]
    fn kill_proven_by_counter_or_by_announcement_without_counter() {
        let cases = [
            (Some(1), Evidence::Counter, Some(1), true),
            (Some(1), Evidence::Inferred, None, true),
            (Some(0), Evidence::Announced, None, false),
            (None, Evidence::Announced, None, true),
            (None, Evidence::Announced, Some(2), true),
            (None, Evidence::Announced, Some(0), false),
            (None, Evidence::Counter, Some(1), false),
            (None, Evidence::Inferred, None, false),
        ];
        for (added, evidence, kills, expect) in cases {
            let kill = OomKill { added, evidence, ..testing::oom_kill() };
            let case = CaseFile { kills, last_kill: Some((testing::moment(), kill)), ..testing::case() };
            assert_eq!(case.proven_kill().is_some(), expect, "{added:?} {evidence:?} {kills:?}");
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
