//! The last signals to each followed process, until its exit. Pure: no file, no clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::trace::{SIGKILL, SignalEvent};

/// How long a signal is kept that did not end its process. SIGKILL is kept: it ends every process,
/// at the latest when that is thawed.
const KEPT: Duration = Duration::from_secs(10);
/// Signals kept of one process, the latest of each number.
const MAX_OF_ONE: usize = 4;
/// Signals kept in all, each at most a kilobyte. Without it a container with many execs could fill
/// the memory.
const MAX_KEPT: usize = 1024;
/// Signals kept to processes that are not followed: threads of those that are, and processes that a
/// reader names after their end.
const MAX_OTHERS: usize = 64;

/// A signal that was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SentSignal {
    /// On the boot clock.
    pub(crate) at: Duration,
    /// The thread that ran when it was sent.
    pub(crate) current: u32,
    pub(crate) event: SignalEvent,
    /// None where the signal does not name one.
    pub(crate) sender: Option<Sender>,
    /// The process had used the processor time of its limit.
    pub(crate) is_at_cpu_limit: bool,
    /// systemd-oomd sent it, and has counted its kill.
    pub(crate) is_by_oomd: bool,
}

/// The process that sent a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    pub(crate) pid: u32,
    pub(crate) comm: Box<str>,
    /// None: it was gone before it could be read.
    pub(crate) cgroup: Option<Box<str>>,
    /// The container's key, and the exec of it that the sender is, or descends from.
    pub(crate) exec: Option<(u32, Box<str>)>,
}

impl Sender {
    pub(crate) fn is_oomd(&self) -> bool {
        &*self.comm == "systemd-oomd"
    }

    /// It is in the cgroup of oomd's unit, which root alone can enter.
    pub(crate) fn is_service_of_oomd(&self) -> bool {
        self.cgroup.as_deref() == Some("/system.slice/systemd-oomd.service")
    }

    pub(crate) fn is_systemd(&self) -> bool {
        self.pid == 1 && &*self.comm == "systemd"
    }
}

/// Signals by the process that they were sent to.
#[derive(Debug, Default)]
pub(crate) struct SentSignals {
    followed: BTreeMap<u32, Vec<SentSignal>>,
    others: VecDeque<(u32, SentSignal)>,
    /// Of `followed`.
    count: usize,
}

impl SentSignals {
    /// Adds a signal to a followed process. The first SIGKILL is the one that ends it.
    pub(crate) fn add(&mut self, pid: u32, sent: SentSignal) {
        if self.count >= MAX_KEPT {
            self.expire(sent.at);
        }
        let signals = self.followed.entry(pid).or_default();
        let is_same = |it: &SentSignal| it.event.signal == sent.event.signal;
        if let Some(before) = signals.iter_mut().find(|it| is_same(it)) {
            if sent.event.signal != SIGKILL {
                *before = sent;
            }
        } else if signals.len() == MAX_OF_ONE {
            // One of them is not SIGKILL.
            if let Some(oldest) =
                signals.iter_mut().filter(|it| it.event.signal != SIGKILL).min_by_key(|it| it.at)
            {
                *oldest = sent;
            }
        } else if self.count < MAX_KEPT {
            signals.reserve_exact(1);
            signals.push(sent);
            self.count += 1;
        }
        if signals.is_empty() {
            self.followed.remove(&pid);
        }
    }

    /// Adds a signal to a process or thread that is not followed.
    pub(crate) fn add_other(&mut self, pid: u32, sent: SentSignal) {
        if self.others.len() == MAX_OTHERS {
            self.others.pop_front();
        }
        self.others.push_back((pid, sent));
    }

    /// Process `pid` is followed from now on. Signals from before it started were to another one.
    pub(crate) fn follow(&mut self, pid: u32, started: Option<Duration>) {
        for sent in self.take_others(pid) {
            if started.is_some_and(|started| started <= sent.at) {
                self.add(pid, sent);
            }
        }
    }

    /// `thread` is a thread of the followed process `pid`.
    pub(crate) fn resolve(&mut self, thread: u32, pid: u32) {
        for sent in self.take_others(thread) {
            self.add(pid, sent);
        }
    }

    /// The sender of the last such signal to this process, if it is the same thread that sent it
    /// just before.
    pub(crate) fn last_sender(&self, pid: u32, signal: u32, current: u32, at: Duration) -> Option<Sender> {
        let sent = self.followed.get(&pid)?.iter().find(|it| it.event.signal == signal)?;
        let is_recent = at.saturating_sub(sent.at) < Duration::from_secs(1);
        sent.sender.clone().filter(|_| sent.current == current && is_recent)
    }

    /// Takes the signal that ended a process, and drops the others to it.
    pub(crate) fn take(&mut self, pid: u32, signal: u32, now: Duration) -> Option<SentSignal> {
        self.expire(now);
        let mut signals = self.followed.remove(&pid).unwrap_or_default();
        self.count -= signals.len();
        signals.extend(self.take_others(pid));
        match signal {
            SIGKILL => signals.into_iter().find(|it| it.event.signal == signal),
            _ => signals.into_iter().rfind(|it| it.event.signal == signal),
        }
    }

    /// Drops the signals to a process that is not followed any more.
    pub(crate) fn forget(&mut self, pid: u32) {
        self.count -= self.followed.remove(&pid).map_or(0, |signals| signals.len());
    }

    /// Later signals than those that are kept may be missing: only SIGKILL is certain.
    pub(crate) fn lost(&mut self) {
        self.retain(|sent| sent.event.signal == SIGKILL);
    }

    pub(crate) fn expire(&mut self, now: Duration) {
        let is_young = |sent: &SentSignal| now.saturating_sub(sent.at) <= KEPT;
        self.retain(|sent| sent.event.signal == SIGKILL || is_young(sent));
        self.others.retain(|(_, sent)| is_young(sent));
    }

    /// Releases memory that a burst needed.
    pub(crate) fn shrink(&mut self) {
        self.others.shrink_to_fit();
    }

    fn retain(&mut self, keep: impl Fn(&SentSignal) -> bool) {
        self.followed.retain(|_, signals| {
            let before = signals.len();
            signals.retain(&keep);
            self.count -= before - signals.len();
            !signals.is_empty()
        });
        self.others.retain(|(_, sent)| keep(sent));
    }

    fn take_others(&mut self, pid: u32) -> Vec<SentSignal> {
        if !self.others.iter().any(|(other, _)| *other == pid) {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.others).into_iter();
        let (ours, others): (Vec<_>, Vec<_>) = all.partition(|(other, _)| *other == pid);
        self.others = others.into();
        ours.into_iter().map(|(_, sent)| sent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGTERM: u32 = 15;

    fn sent(seconds: u64, signal: u32, current: u32) -> SentSignal {
        let event = SignalEvent { signal, code: 0, pid: 7, to_process: true, is_delivered: true };
        let sender = Sender { pid: current, comm: "sh".into(), cgroup: None, exec: None };
        let (at, sender) = (Duration::from_secs(seconds), Some(sender));
        SentSignal { at, current, event, sender, is_at_cpu_limit: false, is_by_oomd: false }
    }

    /// Which thread's signal ended process 7.
    fn taken(kept: &mut SentSignals, signal: u32, seconds: u64) -> Option<u32> {
        kept.take(7, signal, Duration::from_secs(seconds)).map(|it| it.current)
    }

    #[test]
    fn first_sigkill_and_last_other_signal_end_a_process() {
        for (signals, signal, expect) in [
            (vec![sent(1, SIGKILL, 1), sent(2, SIGKILL, 2)], SIGKILL, Some(1)),
            (vec![sent(1, SIGTERM, 1), sent(2, SIGTERM, 2)], SIGTERM, Some(2)),
            (vec![sent(1, SIGTERM, 1), sent(2, SIGKILL, 2)], SIGKILL, Some(2)),
            (vec![sent(1, SIGTERM, 1), sent(2, SIGKILL, 2)], 11, None),
            (vec![], SIGKILL, None),
        ] {
            let mut kept = SentSignals::default();
            signals.iter().for_each(|it| kept.add(7, it.clone()));
            assert_eq!(taken(&mut kept, signal, 3), expect, "{signals:?}");
            assert_eq!((taken(&mut kept, signal, 3), kept.count), (None, 0));
        }
    }

    #[test]
    fn signals_expire_and_a_loss_leaves_sigkill() {
        let mut kept = SentSignals::default();
        kept.add(7, sent(1, SIGTERM, 1));
        kept.add(7, sent(1, SIGKILL, 2));
        kept.expire(Duration::from_secs(12));
        assert_eq!(kept.count, 1);
        assert_eq!(taken(&mut kept, SIGKILL, 100), Some(2));
        kept.add(7, sent(1, SIGTERM, 1));
        kept.lost();
        assert_eq!(taken(&mut kept, SIGTERM, 1), None);
    }

    #[test]
    fn signals_before_a_process_is_followed_count_from_its_start() {
        let start = |seconds| Some(Duration::from_secs(seconds));
        for (started, expect) in [(start(5), Some(1)), (start(6), None), (None, None)] {
            let mut kept = SentSignals::default();
            kept.add_other(8, sent(5, SIGTERM, 9));
            kept.add_other(7, sent(5, SIGTERM, 1));
            kept.follow(7, started);
            assert_eq!(taken(&mut kept, SIGTERM, 6), expect, "{started:?}");
            assert_eq!(kept.others.len(), 1);
            // A thread of it.
            kept.resolve(8, 7);
            assert_eq!(taken(&mut kept, SIGTERM, 6), Some(9));
            // Named after its end.
            kept.add_other(7, sent(5, SIGKILL, 3));
            assert_eq!(taken(&mut kept, SIGKILL, 6), Some(3));
        }
    }

    #[test]
    fn signals_are_bounded_and_floods_leave_the_processes_of_others() {
        let mut kept = SentSignals::default();
        kept.add(7, sent(1, SIGKILL, 1));
        for number in 1..=100 {
            kept.add(8, sent(1, number % 16, number));
            kept.add_other(9, sent(1, number, number));
        }
        assert_eq!((kept.followed[&8].len(), kept.others.len()), (MAX_OF_ONE, MAX_OTHERS));
        for pid in 10..2000 {
            kept.add(pid, sent(1, SIGTERM, 1));
        }
        let kept_in_all: usize = kept.followed.values().map(Vec::len).sum();
        assert_eq!((kept.count, kept_in_all), (MAX_KEPT, MAX_KEPT));
        assert_eq!(taken(&mut kept, SIGKILL, 1), Some(1));
        // What is old makes room.
        kept.add(3000, sent(20, SIGTERM, 1));
        kept.add(3001, sent(20, SIGTERM, 1));
        assert_eq!(kept.followed.keys().copied().filter(|pid| *pid >= 3000).count(), 2);
    }

    #[test]
    fn same_sender_is_read_once() {
        let mut kept = SentSignals::default();
        kept.add(7, sent(1, SIGTERM, 1));
        let last = |current, millis| kept.last_sender(7, SIGTERM, current, Duration::from_millis(millis));
        assert_eq!(last(1, 1500).map(|it| it.pid), Some(1));
        assert_eq!((last(2, 1500), last(1, 2000)), (None, None));
    }
}
