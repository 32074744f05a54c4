//! Cursors of the consumers of Kata's GetOOMEvent, and the kills retained for them of containers
//! that the state has evicted. Pure, like the state it is part of.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Cursors kept of connections that ended. Without a limit a peer that opens and closes connections
/// could leave one behind with each.
const MAX_DISCONNECTED: usize = 16;
/// Kills retained of evicted containers: as many as the containers kept unacknowledged. Each takes
/// some 130 bytes. Without a limit a runtime that never reconnects could make the agent keep every
/// kill.
const MAX_RETAINED: usize = 1024;

/// Identifies the consumer behind one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConsumerId(u64);

#[derive(Debug, Default)]
pub(crate) struct KataCursors {
    last: u64,
    /// Cursor (last consumed seq) of each connected consumer.
    connected: BTreeMap<u64, u64>,
    /// Cursors of consumers that disconnected.
    disconnected: Vec<u64>,
    retained: BTreeMap<u64, Arc<str>>,
    lost: u64,
}

impl KataCursors {
    /// Adds a consumer and returns its cursor. It resumes from the lowest cursor of those that
    /// disconnected, because the call does not identify the consumer. Of those the highest cursor
    /// is dropped, so that the next consumer misses nothing either: delivery is at least once.
    pub(crate) fn connect(&mut self) -> (ConsumerId, u64) {
        let from = self.disconnected.iter().copied().min().unwrap_or(0);
        self.drop_highest_disconnected();
        self.last += 1;
        self.connected.insert(self.last, from);
        (ConsumerId(self.last), from)
    }

    /// Advances a consumer's cursor to `seq`.
    pub(crate) fn advance(&mut self, ConsumerId(id): ConsumerId, seq: u64) {
        self.connected.insert(id, seq);
        self.drop_consumed();
    }

    /// A consumer's connection ended: its cursor is kept.
    pub(crate) fn disconnect(&mut self, ConsumerId(id): ConsumerId) {
        if let Some(seq) = self.connected.remove(&id) {
            if self.disconnected.len() == MAX_DISCONNECTED {
                self.drop_highest_disconnected();
            }
            self.disconnected.push(seq);
        }
    }

    /// Retains a kill that the state evicts, if a consumer has not consumed it yet.
    pub(crate) fn retain(&mut self, seq: u64, container: &Arc<str>) {
        if self.lowest().is_none_or(|lowest| lowest >= seq) {
            return;
        }
        self.retained.insert(seq, Arc::clone(container));
        if self.retained.len() > MAX_RETAINED {
            self.retained.pop_first();
            self.lost += 1;
        }
    }

    /// The first retained kill above `after`.
    pub(crate) fn next_retained(&self, after: u64) -> Option<(u64, &Arc<str>)> {
        self.retained.range(after.checked_add(1)?..).next().map(|(seq, container)| (*seq, container))
    }

    /// Returns and resets the number of kills dropped before every consumer had consumed them.
    pub(crate) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn lowest(&self) -> Option<u64> {
        self.connected.values().chain(&self.disconnected).copied().min()
    }

    fn drop_highest_disconnected(&mut self) {
        let highest = self.disconnected.iter().enumerate().max_by_key(|(_, seq)| **seq).map(|(at, _)| at);
        if let Some(at) = highest {
            self.disconnected.swap_remove(at);
        }
    }

    fn drop_consumed(&mut self) {
        let lowest = self.lowest().unwrap_or(u64::MAX);
        while self.retained.first_key_value().is_some_and(|(seq, _)| *seq <= lowest) {
            self.retained.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disconnected_at(cursors: &mut KataCursors, seq: u64) {
        let (consumer, _) = cursors.connect();
        cursors.advance(consumer, seq);
        cursors.disconnect(consumer);
    }

    #[test]
    fn reconnect_resumes_from_lowest_cursor() {
        let mut cursors = KataCursors::default();
        let [(ahead, _), (behind, _)] = [cursors.connect(), cursors.connect()];
        cursors.advance(ahead, 200);
        cursors.advance(behind, 10);
        cursors.disconnect(behind);
        cursors.disconnect(ahead);
        assert_eq!([cursors.connect().1, cursors.connect().1], [10, 10]);
        assert_eq!(cursors.connect().1, 0, "a new consumer reads everything");
    }

    #[test]
    fn disconnects_above_limit_never_raise_cursor() {
        let mut cursors = KataCursors::default();
        let consumers: Vec<ConsumerId> = (0..3 * MAX_DISCONNECTED).map(|_| cursors.connect().0).collect();
        for (at, consumer) in consumers.into_iter().enumerate() {
            cursors.advance(consumer, 100 + at as u64);
            cursors.disconnect(consumer);
        }
        assert!((0..3 * MAX_DISCONNECTED).all(|_| cursors.connect().1 <= 100));
    }

    #[test]
    fn kill_retained_until_consumed_by_all() {
        let mut cursors = KataCursors::default();
        let id: Arc<str> = Arc::from("c1");
        cursors.retain(5, &id);
        assert_eq!(cursors.next_retained(0), None, "there is no consumer");
        disconnected_at(&mut cursors, 4);
        let (here, from) = cursors.connect();
        cursors.retain(4, &id);
        assert_eq!((from, cursors.next_retained(0)), (4, None), "it was consumed");
        cursors.retain(5, &id);
        let (other, _) = cursors.connect();
        cursors.advance(here, 5);
        assert_eq!((cursors.next_retained(4), cursors.next_retained(5)), (Some((5, &id)), None));
        cursors.disconnect(other);
        cursors.advance(here, 5);
        assert_eq!(cursors.next_retained(0), Some((5, &id)), "the other may reconnect");
        let (other, from) = cursors.connect();
        assert_eq!(from, 0);
        cursors.advance(other, 5);
        assert_eq!(cursors.next_retained(0), None);
    }

    #[test]
    fn retained_kills_bounded_and_drops_counted() {
        let mut cursors = KataCursors::default();
        disconnected_at(&mut cursors, 0);
        (1..=MAX_RETAINED as u64 + 2).for_each(|seq| cursors.retain(seq, &Arc::from("c1")));
        assert_eq!(
            (cursors.next_retained(0).map(|(seq, _)| seq), cursors.retained.len()),
            (Some(3), MAX_RETAINED)
        );
        assert_eq!((cursors.take_lost(), cursors.take_lost()), (2, 0));
    }
}
