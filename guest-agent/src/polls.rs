//! How far each consumer of Kata's call has come, and the kills kept for it of containers that are forgotten. Pure, as the state it is part of.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Cursors kept of connections that ended. Whoever opens and closes connections could leave one behind with each.
const ENDED: usize = 16;
/// Kills kept of containers that readers by cursor are done with: as many as of containers nobody is done with. Each takes some 130 bytes;
/// a runtime that never comes again could otherwise have the agent keep every kill.
const OWED: usize = 1024;

/// One connection's consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Consumer(u64);

#[derive(Debug, Default)]
pub(crate) struct Polls {
    last: u64,
    /// What each has taken.
    there: BTreeMap<u64, u64>,
    ended: Vec<u64>,
    owed: BTreeMap<u64, Arc<str>>,
    lost: u64,
}

impl Polls {
    /// One that polls for the first time goes on where the one furthest behind ended: the call does not say which it is. Of those that ended the one
    /// furthest ahead is struck out, so that whoever comes next misses nothing either; some of it is told twice.
    pub(crate) fn begin(&mut self) -> (Consumer, u64) {
        let from = self.ended.iter().copied().min().unwrap_or(0);
        self.strike_out();
        self.last += 1;
        self.there.insert(self.last, from);
        (Consumer(self.last), from)
    }

    /// It has everything up to `seq`.
    pub(crate) fn took(&mut self, Consumer(id): Consumer, seq: u64) {
        self.there.insert(id, seq);
        self.let_go();
    }

    /// Its connection ended.
    pub(crate) fn end(&mut self, Consumer(id): Consumer) {
        if let Some(taken) = self.there.remove(&id) {
            if self.ended.len() == ENDED {
                self.strike_out();
            }
            self.ended.push(taken);
        }
    }

    /// The state forgets a kill: it is kept here if one that polled has not taken it.
    pub(crate) fn owe(&mut self, seq: u64, container: &Arc<str>) {
        if self.furthest_behind().is_none_or(|taken| taken >= seq) {
            return;
        }
        self.owed.insert(seq, Arc::clone(container));
        if self.owed.len() > OWED {
            self.owed.pop_first();
            self.lost += 1;
        }
    }

    /// The first kill above `after` that only is here.
    pub(crate) fn owed(&self, after: u64) -> Option<(u64, &Arc<str>)> {
        self.owed.range(after.checked_add(1)?..).next().map(|(seq, container)| (*seq, container))
    }

    /// Kills that were dropped, since this was last asked, before everybody had taken them.
    pub(crate) fn lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn furthest_behind(&self) -> Option<u64> {
        self.there.values().chain(&self.ended).copied().min()
    }

    fn strike_out(&mut self) {
        let highest = self.ended.iter().enumerate().max_by_key(|(_, taken)| **taken).map(|(at, _)| at);
        if let Some(at) = highest {
            self.ended.swap_remove(at);
        }
    }

    fn let_go(&mut self) {
        let taken = self.furthest_behind().unwrap_or(u64::MAX);
        while self.owed.first_key_value().is_some_and(|(seq, _)| *seq <= taken) {
            self.owed.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended_at(polls: &mut Polls, taken: u64) {
        let (consumer, _) = polls.begin();
        polls.took(consumer, taken);
        polls.end(consumer);
    }

    #[test]
    fn whoever_comes_back_first_takes_nothing_from_the_other() {
        let mut polls = Polls::default();
        let [(ahead, _), (behind, _)] = [polls.begin(), polls.begin()];
        polls.took(ahead, 200);
        polls.took(behind, 10);
        polls.end(behind);
        polls.end(ahead);
        assert_eq!([polls.begin().1, polls.begin().1], [10, 10]);
        assert_eq!(polls.begin().1, 0, "who was never here is told all there is");
    }

    #[test]
    fn however_many_end_none_is_taken_for_further_than_it_was() {
        let mut polls = Polls::default();
        let consumers: Vec<Consumer> = (0..3 * ENDED).map(|_| polls.begin().0).collect();
        for (at, consumer) in consumers.into_iter().enumerate() {
            polls.took(consumer, 100 + at as u64);
            polls.end(consumer);
        }
        assert!((0..3 * ENDED).all(|_| polls.begin().1 <= 100));
    }

    #[test]
    fn a_kill_is_owed_until_all_that_polled_have_taken_it() {
        let mut polls = Polls::default();
        let id: Arc<str> = Arc::from("c1");
        polls.owe(5, &id);
        assert_eq!(polls.owed(0), None, "nobody polls");
        ended_at(&mut polls, 4);
        let (here, from) = polls.begin();
        polls.owe(4, &id);
        assert_eq!((from, polls.owed(0)), (4, None), "it was taken");
        polls.owe(5, &id);
        let (other, _) = polls.begin();
        polls.took(here, 5);
        assert_eq!((polls.owed(4), polls.owed(5)), (Some((5, &id)), None));
        polls.end(other);
        polls.took(here, 5);
        assert_eq!(polls.owed(0), Some((5, &id)), "the other may come again");
        let (other, from) = polls.begin();
        assert_eq!(from, 0);
        polls.took(other, 5);
        assert_eq!(polls.owed(0), None);
    }

    #[test]
    fn what_is_owed_is_bounded_and_what_is_dropped_of_it_is_counted() {
        let mut polls = Polls::default();
        ended_at(&mut polls, 0);
        (1..=OWED as u64 + 2).for_each(|seq| polls.owe(seq, &Arc::from("c1")));
        assert_eq!((polls.owed(0).map(|(seq, _)| seq), polls.owed.len()), (Some(3), OWED));
        assert_eq!((polls.lost(), polls.lost()), (2, 0));
    }
}
