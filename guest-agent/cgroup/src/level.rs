//! The level of an OOM kill: which cgroup hit its limit, as far as the counters show it.

use crate::Kills;

/// The cgroup that hit its limit, relative to the one with the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitHit {
    /// The cgroup's own limit.
    Own,
    /// A limit of a cgroup below it.
    Below,
    /// Neither: a limit above it, the machine's memory, or a kernel without these counters.
    Unknown,
}

impl Kills {
    /// Which limit was hit between `before` and this read. v2 counts it; on v1 it is unknown.
    pub fn limit_hit_since(self, before: Self) -> LimitHit {
        let rose = |after: Option<u64>, before: Option<u64>| Some(after? > before.unwrap_or(0));
        match (rose(self.own_ooms, before.own_ooms), rose(self.ooms, before.ooms)) {
            (Some(true), _) => LimitHit::Own,
            (Some(false), Some(true)) => LimitHit::Below,
            _ => LimitHit::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_hit_follows_the_counters_that_rose() {
        let kills = |ooms, own_ooms| Kills { total: 1, ooms, own_ooms, ..Kills::default() };
        let before = kills(Some(4), Some(2));
        for (before, read, expect) in [
            (Kills::default(), kills(Some(1), Some(1)), LimitHit::Own),
            (Kills::default(), kills(Some(1), Some(0)), LimitHit::Below),
            (Kills::default(), kills(Some(0), Some(0)), LimitHit::Unknown),
            (Kills::default(), kills(None, None), LimitHit::Unknown),
            (Kills::default(), kills(Some(1), None), LimitHit::Unknown),
            (before, kills(Some(5), Some(3)), LimitHit::Own),
            (before, kills(Some(5), Some(2)), LimitHit::Below),
            (before, before, LimitHit::Unknown),
        ] {
            assert_eq!(read.limit_hit_since(before), expect, "{before:?} {read:?}");
        }
    }
}
