//! What a policy states of itself.

use coroner_core::mode::Known;
use coroner_core::signal::{Event, KINDS};

/// A policy's answer to `describe`.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) wants: Wants,
    pub(crate) needs: Vec<Known>,
    /// Kinds and facts that this router does not know: those of a later one.
    pub(crate) unknown: Vec<String>,
    pub(crate) config_schema: Option<String>,
}

/// The kinds of signals that a policy is called for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants([bool; KINDS.len()]);

impl Wants {
    /// Those of these names that are kinds.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut wants = Self::default();
        for at in names.filter_map(|name| KINDS.iter().position(|kind| *kind == name)) {
            wants.0[at] = true;
        }
        wants
    }

    /// Whether it wants this kind of signal. One that the contracts have no name for is `other`.
    pub(crate) fn include(self, event: &Event) -> bool {
        let named = KINDS.iter().zip(self.0).find(|(kind, _)| **kind == event.kind());
        named.map_or(self.0[KINDS.len() - 1], |(_, wants)| wants)
    }

    pub(crate) fn names(self) -> Vec<String> {
        KINDS.iter().zip(self.0).filter(|(_, is)| *is).map(|(name, _)| (*name).to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coroner_core::signal::{Forwarded, GuestLost, Other};

    #[test]
    fn wants_are_by_name_and_unknown_ones_are_left_out() {
        let wants = Wants::of(["guest-lost", "a-later-kind", "oom-kill"].into_iter());
        assert_eq!(wants.names(), ["oom-kill", "guest-lost"]);
        assert!(wants.include(&Event::GuestLost(GuestLost { reason: String::new() })));
        let other = Event::Other(Other { kind: "oom-kill".to_owned(), json: "{}".to_owned() });
        assert!(!wants.include(&other));
    }

    #[test]
    fn kind_without_a_name_is_other() {
        let value = Vec::new();
        let forwarded =
            Forwarded { topic: "/tasks/x".to_owned(), type_url: String::new(), value, published_ns: None };
        let event = Event::Forwarded(Box::new(forwarded));
        assert!(Wants::of(["other"].into_iter()).include(&event));
        assert!(!Wants::of(["exited"].into_iter()).include(&event));
    }
}
