//! What a container's end is compared with, and the result: pure.

use std::fmt;

use serde::Serialize;

use crate::case::{Case, Proof};
use crate::evidence::Evidence;

/// The reason and the exit code that CRI shows of a container that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Reading {
    pub(crate) reason: String,
    pub(crate) status: i32,
}

impl Reading {
    /// Whether CRI calls it an OOM kill.
    pub(crate) fn is_oom(&self) -> bool {
        self.reason == "OOMKilled"
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.reason, self.status)
    }
}

/// What became of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// It ended: the first reading, on which a kubelet may act, and the final one.
    Ended { first: Reading, last: Reading },
    /// It did not start, for this reason.
    NotStarted(String),
    /// It did not end in time.
    Running,
}

/// How CRI's report of an end compares with what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// Right at the first reading and at the final one.
    Ok,
    /// An OOM kill is proven, and the final reason is another.
    Lost,
    /// The final reason is OOMKilled, and the kernel log has no kill.
    False,
    /// The final reason or status is another than the expected one.
    Wrong,
    /// The final reading is right, the first one was not.
    FirstWrong,
    /// The container did not start: nothing is known about its end.
    NotStarted,
    /// The kernel log is not complete: the reading can be neither confirmed nor refuted.
    NotProven,
}

impl Verdict {
    /// Each of them, in the order of the score card's columns.
    pub(crate) const ALL: [Self; 7] =
        [Self::Ok, Self::Lost, Self::False, Self::Wrong, Self::FirstWrong, Self::NotStarted, Self::NotProven];

    /// Compares what became of a container with its case and with the kernel log.
    pub(crate) fn of(case: &Case, outcome: &Outcome, evidence: &Evidence) -> Self {
        let (first, last) = match outcome {
            Outcome::Ended { first, last } => (first, last),
            Outcome::NotStarted(_) => return Self::NotStarted,
            Outcome::Running => return Self::Wrong,
        };
        match Kill::of(evidence) {
            Kill::Proven if !last.is_oom() => Self::Lost,
            Kill::Absent if last.is_oom() => Self::False,
            Kill::Unknown if case.proof == Proof::OomKill || last.is_oom() => Self::NotProven,
            Kill::Proven | Kill::Absent | Kill::Unknown if *last != case.expected => Self::Wrong,
            Kill::Proven | Kill::Absent | Kill::Unknown if first != last => Self::FirstWrong,
            Kill::Proven | Kill::Absent | Kill::Unknown => Self::Ok,
        }
    }

    /// Whether it fails the run.
    pub(crate) fn is_failure(self) -> bool {
        match self {
            Self::Lost | Self::False | Self::Wrong | Self::NotStarted => true,
            Self::Ok | Self::FirstWrong | Self::NotProven => false,
        }
    }

    /// Its name in every format.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Lost => "lost",
            Self::False => "false",
            Self::Wrong => "wrong",
            Self::FirstWrong => "first-wrong",
            Self::NotStarted => "not-started",
            Self::NotProven => "not-proven",
        }
    }
}

/// What evidence amounts to.
enum Kill {
    Proven,
    Absent,
    Unknown,
}

impl Kill {
    fn of(evidence: &Evidence) -> Self {
        match evidence {
            Evidence::Kill { .. } | Evidence::Assumed(Proof::OomKill) => Self::Proven,
            Evidence::None | Evidence::Assumed(Proof::None) => Self::Absent,
            Evidence::Incomplete { .. } => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case;
    use crate::evidence::Line;

    const KILL: Evidence = Evidence::Kill { victim: None, shown_by: Line::Record };
    const SUPPRESSED: Evidence = Evidence::Incomplete { suppressed: 1 };

    fn reading(text: &str) -> Reading {
        let (reason, status) = text.split_once('/').unwrap();
        Reading { reason: reason.to_owned(), status: status.parse().unwrap() }
    }

    fn check(case: &str, evidence: &Evidence, first: &str, last: &str, expect: Verdict) {
        let case = case::chosen(case::load(None).unwrap(), &[case.to_owned()]).unwrap().remove(0);
        let outcome = Outcome::Ended { first: reading(first), last: reading(last) };
        assert_eq!(Verdict::of(&case, &outcome, evidence), expect, "{} {outcome:?} {evidence:?}", case.name);
    }

    #[test]
    fn proven_kill_has_to_be_reported() {
        check("oom-pid-1", &KILL, "OOMKilled/137", "OOMKilled/137", Verdict::Ok);
        check("oom-pid-1", &KILL, "Error/137", "OOMKilled/137", Verdict::FirstWrong);
        check("oom-pid-1", &KILL, "OOMKilled/137", "Error/137", Verdict::Lost);
        check("oom-pid-1", &KILL, "OOMKilled/1", "OOMKilled/1", Verdict::Wrong);
        // A kill that the case did not plan for is lost too.
        check("exit-7", &KILL, "Error/7", "Error/7", Verdict::Lost);
        check("exit-7", &KILL, "OOMKilled/7", "OOMKilled/7", Verdict::Wrong);
    }

    #[test]
    fn kill_without_proof_is_not_to_be_reported() {
        check("exit-137", &Evidence::None, "Error/137", "Error/137", Verdict::Ok);
        check("exit-137", &Evidence::None, "Error/137", "OOMKilled/137", Verdict::False);
        check("exit-137", &Evidence::None, "Error/0", "Error/0", Verdict::Wrong);
        check("oom-pid-1", &Evidence::None, "OOMKilled/137", "OOMKilled/137", Verdict::False);
        check("oom-pid-1", &Evidence::None, "Error/1", "Error/1", Verdict::Wrong);
    }

    #[test]
    fn suppressed_log_fails_nothing_that_needs_it() {
        check("oom-pid-1", &SUPPRESSED, "Error/137", "Error/137", Verdict::NotProven);
        check("oom-pid-1", &SUPPRESSED, "OOMKilled/137", "OOMKilled/137", Verdict::NotProven);
        check("exit-7", &SUPPRESSED, "OOMKilled/7", "OOMKilled/7", Verdict::NotProven);
        check("exit-7", &SUPPRESSED, "Error/7", "Error/7", Verdict::Ok);
        check("exit-7", &SUPPRESSED, "Error/8", "Error/8", Verdict::Wrong);
    }

    #[test]
    fn case_is_the_truth_where_the_log_is_not_read() {
        let (kill, none) = (Evidence::Assumed(Proof::OomKill), Evidence::Assumed(Proof::None));
        check("oom-pid-1", &kill, "OOMKilled/137", "OOMKilled/137", Verdict::Ok);
        check("oom-pid-1", &kill, "Error/137", "Error/137", Verdict::Lost);
        check("exit-0", &none, "OOMKilled/0", "OOMKilled/0", Verdict::False);
        check("exit-0", &none, "Completed/0", "Completed/0", Verdict::Ok);
    }

    #[test]
    fn container_without_an_end_is_a_failure() {
        let case = case::load(None).unwrap().remove(0);
        let of = |outcome: &Outcome| Verdict::of(&case, outcome, &Evidence::None);
        assert_eq!(of(&Outcome::Running), Verdict::Wrong);
        assert_eq!(of(&Outcome::NotStarted(String::new())), Verdict::NotStarted);
        let failures: Vec<&str> =
            Verdict::ALL.into_iter().filter(|it| it.is_failure()).map(Verdict::name).collect();
        assert_eq!(failures, ["lost", "false", "wrong", "not-started"]);
    }
}
