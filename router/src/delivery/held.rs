//! Recovered rulings that wait for earlier signals of their container.
//!
//! A ruling that could not be written is delivered all the same. If later ones of its container
//! were written, and the router died before either was delivered, recovery has a signal to rule
//! and rulings of later ones. They are published after it.

use std::collections::{HashMap, HashSet};

use coroner_core::signal::ContainerId;
use coroner_journal::Undelivered;

/// A signal that was accepted and not ruled: its number in the journal, its container and its id.
pub type UnruledSignal = (u64, ContainerId, String);

/// The rulings that wait, in order.
#[derive(Debug, Default)]
pub(super) struct HeldRulings {
    held: Vec<Undelivered>,
    /// The signals that are waited for. A worker answers for each of them.
    awaited: HashMap<ContainerId, HashSet<String>>,
}

impl HeldRulings {
    /// Holds the rulings that have an earlier signal to be ruled. Returns the others, in order.
    pub(super) fn new(resumed: Vec<Undelivered>, unruled: &[UnruledSignal]) -> (Vec<Undelivered>, Self) {
        let mut this = Self::default();
        let mut free = Vec::new();
        for ruling in resumed {
            let before = unruled
                .iter()
                .filter(|(n, container, _)| *n < ruling.ruled.n && *container == *ruling.ruled.container);
            let before: Vec<String> = before.map(|(.., id)| id.clone()).collect();
            if before.is_empty() {
                free.push(ruling);
            } else {
                let container = ruling.ruled.container.clone().into_owned();
                this.awaited.entry(container).or_default().extend(before);
                this.held.push(ruling);
            }
        }
        (free, this)
    }

    /// The rulings to publish after this signal, if it was the last that they waited for.
    pub(super) fn after(&mut self, container: &ContainerId, id: &str) -> Vec<Undelivered> {
        let Some(awaited) = self.awaited.get_mut(container) else { return Vec::new() };
        awaited.remove(id);
        if !awaited.is_empty() {
            return Vec::new();
        }
        self.awaited.remove(container);
        let (taken, held) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|ruling| *ruling.ruled.container == *container);
        self.held = held;
        taken
    }

    /// All that wait.
    pub(super) fn take_all(self) -> Vec<Undelivered> {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use coroner_core::case::Case;
    use coroner_journal::RulingRecord;

    use super::*;

    fn container(name: &str) -> ContainerId {
        ContainerId::try_from(name.to_owned()).unwrap()
    }

    fn ruling(n: u64, name: &str) -> Undelivered {
        let ruled = RulingRecord {
            n,
            id: Cow::Owned(n.to_string()),
            source: Cow::Borrowed("s"),
            container: Cow::Owned(container(name)),
            namespace: Cow::Borrowed(""),
            at_ms: 0,
            events: Cow::Owned(Vec::new()),
            case: Cow::Owned(Case::default()),
        };
        Undelivered { ruled, signal: None }
    }

    fn numbers(rulings: Vec<Undelivered>) -> Vec<u64> {
        rulings.into_iter().map(|it| it.ruled.n).collect()
    }

    /// `a` has two signals to rule, then two rulings; `b` a ruling, then a signal; `c` a ruling.
    fn recovered() -> (Vec<Undelivered>, HeldRulings) {
        let resumed = vec![ruling(3, "a"), ruling(4, "b"), ruling(5, "c"), ruling(6, "a")];
        let unruled = [(1, "a"), (2, "a"), (9, "b")];
        let unruled = unruled.map(|(n, name)| (n, container(name), n.to_string()));
        HeldRulings::new(resumed, &unruled)
    }

    #[test]
    fn ruling_waits_for_the_earlier_signals_of_its_container() {
        let (free, mut held) = recovered();
        assert_eq!(numbers(free), [4, 5]);
        let a = container("a");
        for (of, id, expect) in [(&container("b"), "9", &[][..]), (&a, "1", &[]), (&a, "2", &[3, 6])] {
            assert_eq!(numbers(held.after(of, id)), expect, "{id}");
        }
        assert!(numbers(held.take_all()).is_empty());
    }

    #[test]
    fn ruling_is_published_at_the_end_without_the_signals() {
        let (_, mut held) = recovered();
        assert!(numbers(held.after(&container("a"), "1")).is_empty());
        assert_eq!(numbers(held.take_all()), [3, 6]);
    }
}
