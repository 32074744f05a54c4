//! A broken invariant.

use std::fmt;

/// The invariants of the design that are checked, with the name of each.
const NAMES: [(u8, &str); 6] = [
    (1, "every exit is published"),
    (2, "a known kill precedes its exit, and a later one is marked late"),
    (4, "acknowledged means written"),
    (5, "at least once, and at most one identical repeat per death"),
    (6, "queues are bounded and nothing is lost in them"),
    (8, "policies are swapped whole, and nothing is lost or reordered by it"),
];

/// Which invariant is broken, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) invariant: u8,
    pub(super) what: String,
}

impl Violation {
    pub(super) fn new(invariant: u8, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }

    /// An error where the condition does not hold.
    pub(super) fn unless(holds: bool, invariant: u8, what: impl FnOnce() -> String) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self::new(invariant, what())) }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(number, _)| *number == self.invariant).map_or("", |(_, name)| name);
        write!(f, "invariant {} ({name}): {}", self.invariant, self.what)
    }
}
