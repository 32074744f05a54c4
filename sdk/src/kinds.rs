//! The kinds of signals that a policy is called for.

use std::ops::BitOr;

/// Kinds of signals, as a set: `Kinds::OOM_KILL | Kinds::EXITED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u8);

/// Their names in the contract, by their bits.
const NAMES: [&str; 7] =
    ["oom-kill", "exited", "pressure", "kill-request", "guest-lost", "evidence", "other"];

impl Kinds {
    /// The kernel's OOM killer.
    pub const OOM_KILL: Self = Self(1);
    /// A process ended.
    pub const EXITED: Self = Self(1 << 1);
    /// Memory, cpu or io is short.
    pub const PRESSURE: Self = Self(1 << 2);
    /// A signal was sent through the runtime.
    pub const KILL_REQUEST: Self = Self(1 << 3);
    /// The guest is gone.
    pub const GUEST_LOST: Self = Self(1 << 4);
    /// The evidence of an OOM kill was gathered.
    pub const EVIDENCE: Self = Self(1 << 5);
    /// Kinds that this version of the contract has no name for.
    pub const OTHER: Self = Self(1 << 6);

    /// Every kind.
    #[must_use]
    pub const fn all() -> Self {
        Self((1 << NAMES.len()) - 1)
    }

    /// Their names in the contract.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        let bits = NAMES.iter().enumerate().filter(|(at, _)| self.0 & (1 << at) != 0);
        bits.map(|(_, name)| (*name).to_owned()).collect()
    }
}

impl BitOr for Kinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_contract_names() {
        assert_eq!((Kinds::EXITED | Kinds::OTHER).names(), ["exited", "other"]);
        assert_eq!(Kinds::all().names(), NAMES);
    }
}
