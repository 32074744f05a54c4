//! The score card: what is known of every container, counted by handler and case.

use crate::case::Case;
use crate::evidence::Evidence;
use crate::verdict::{Outcome, Reading, Verdict};

/// The results of a run.
#[derive(Debug)]
pub(crate) struct Card {
    /// The runtime's name and version.
    pub(crate) runtime: String,
    /// The names of the handlers, in the order of the command line.
    pub(crate) handlers: Vec<String>,
    /// The names of the cases, in the order of the file.
    pub(crate) cases: Vec<String>,
    /// Every container, in the order of their ends.
    pub(crate) deaths: Vec<Death>,
    /// What cannot be tested here.
    pub(crate) skipped: Vec<Skipped>,
    /// Whether the run was ended by a signal, and the card is not complete.
    pub(crate) interrupted: bool,
}

/// One container that was made to die.
#[derive(Debug, Clone)]
pub(crate) struct Death {
    pub(crate) handler: String,
    pub(crate) case: String,
    pub(crate) container: String,
    pub(crate) expected: Reading,
    pub(crate) outcome: Outcome,
    pub(crate) evidence: Evidence,
    pub(crate) verdict: Verdict,
}

impl Death {
    /// A container's end, judged.
    pub(crate) fn judged(
        handler: &str,
        case: &Case,
        container: String,
        outcome: Outcome,
        evidence: Evidence,
    ) -> Self {
        let verdict = Verdict::of(case, &outcome, &evidence);
        let (handler, expected) = (handler.to_owned(), case.expected.clone());
        Self { handler, case: case.name.clone(), container, expected, outcome, evidence, verdict }
    }

    /// The id as tables have it.
    pub(crate) fn short_id(&self) -> &str {
        const LENGTH: usize = 12;
        self.container.get(..LENGTH).unwrap_or(&self.container)
    }

    /// The first and the final reading, or what there is in place of them.
    pub(crate) fn readings(&self) -> (String, String) {
        match &self.outcome {
            Outcome::Ended { first, last } => (first.to_string(), last.to_string()),
            Outcome::NotStarted(reason) => ("-".to_owned(), reason.clone()),
            Outcome::Running => ("-".to_owned(), "runs still".to_owned()),
        }
    }

    /// Whether it belongs in the list of containers below the table.
    pub(crate) fn is_listed(&self) -> bool {
        self.verdict != Verdict::Ok
    }
}

/// A case that a handler cannot be tested with.
#[derive(Debug, Clone)]
pub(crate) struct Skipped {
    pub(crate) handler: String,
    pub(crate) case: String,
    pub(crate) reason: String,
}

/// A handler and a case, with the number of containers for each verdict.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) handler: &'a str,
    pub(crate) case: &'a str,
    pub(crate) counts: Counts,
    /// Why it was not tested.
    pub(crate) skipped: Option<&'a str>,
}

/// The number of containers for each verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts([usize; Verdict::ALL.len()]);

impl Counts {
    fn count<'a>(deaths: impl Iterator<Item = &'a Death>) -> Self {
        let mut counts = Self::default();
        deaths.for_each(|death| counts.0[death.verdict as usize] += 1);
        counts
    }

    /// The containers with this verdict.
    pub(crate) fn of(&self, verdict: Verdict) -> usize {
        self.0[verdict as usize]
    }

    /// All containers.
    pub(crate) fn all(&self) -> usize {
        self.0.iter().sum()
    }

    /// Whether one of them fails the run.
    pub(crate) fn has_failure(&self) -> bool {
        Verdict::ALL.into_iter().any(|verdict| verdict.is_failure() && self.of(verdict) > 0)
    }

    /// `20 containers: 17 ok, 3 lost`.
    pub(crate) fn sentence(&self) -> String {
        let all = self.all();
        let plural = if all == 1 { "" } else { "s" };
        let counted = Verdict::ALL.into_iter().filter(|verdict| self.of(*verdict) > 0);
        let parts: Vec<String> =
            counted.map(|verdict| format!("{} {}", self.of(verdict), verdict.name())).collect();
        let colon = if parts.is_empty() { "" } else { ": " };
        format!("{all} container{plural}{colon}{}", parts.join(", "))
    }
}

impl Card {
    /// One row for each handler and case: handlers on the outside.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.handlers.iter().flat_map(|handler| self.cases.iter().map(|case| self.row(handler, case)))
    }

    fn row<'a>(&'a self, handler: &'a str, case: &'a str) -> Row<'a> {
        let skipped = self.skipped.iter().find(|it| it.handler == handler && it.case == case);
        let counts = Counts::count(self.deaths_of(handler, case));
        Row { handler, case, counts, skipped: skipped.map(|it| it.reason.as_str()) }
    }

    /// The containers of a handler and a case.
    pub(crate) fn deaths_of<'a>(
        &'a self,
        handler: &'a str,
        case: &'a str,
    ) -> impl Iterator<Item = &'a Death> {
        self.deaths.iter().filter(move |death| death.handler == handler && death.case == case)
    }

    /// All containers of a handler, counted.
    pub(crate) fn totals(&self, handler: &str) -> Counts {
        Counts::count(self.deaths.iter().filter(|death| death.handler == handler))
    }

    /// Whether the kernel log was not read for a handler's containers.
    pub(crate) fn is_assumed(&self, handler: &str) -> bool {
        let of_handler = |death: &&Death| death.handler == handler;
        self.deaths.iter().filter(of_handler).any(|death| matches!(death.evidence, Evidence::Assumed(_)))
    }

    /// Whether no container failed.
    pub(crate) fn is_right(&self) -> bool {
        !Counts::count(self.deaths.iter()).has_failure()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::case;
    use crate::evidence::Victim;

    /// Two handlers: one is right, the other one loses a kill and starts one container too few. A
    /// third case is not applicable.
    pub(crate) fn sample() -> Card {
        let cases = ["oom-pid-1", "exit-7", "oom-group"];
        let reading = |reason: &str, status| Reading { reason: reason.to_owned(), status };
        let ended =
            |first: &Reading, last: &Reading| Outcome::Ended { first: first.clone(), last: last.clone() };
        let (oom, error, seven) = (reading("OOMKilled", 137), reading("Error", 137), reading("Error", 7));
        let victim = Some(Victim { pid: 4711, command: "dd".to_owned() });
        let kill = Evidence::Kill { victim, shown_by: crate::evidence::Line::Record };
        let mut deaths = Vec::new();
        let mut die = |handler: &str, case: &str, outcome: Outcome, evidence: &Evidence| {
            let case = case::chosen(case::load(None).unwrap(), &[case.to_owned()]).unwrap().remove(0);
            let container = format!("{:064x}", 0xabc0 + deaths.len());
            let container = container.chars().rev().collect();
            deaths.push(Death::judged(handler, &case, container, outcome, evidence.clone()));
        };
        die("runc", "oom-pid-1", ended(&error, &error), &kill);
        die("runc", "oom-pid-1", ended(&error, &oom), &kill);
        die("coroner", "oom-pid-1", ended(&oom, &oom), &kill);
        die("coroner", "oom-pid-1", ended(&oom, &oom), &kill);
        die("runc", "exit-7", ended(&seven, &seven), &Evidence::None);
        die("runc", "exit-7", Outcome::NotStarted("no <memory> & \"no\" start".to_owned()), &Evidence::None);
        die("coroner", "exit-7", ended(&seven, &seven), &Evidence::None);
        let skip = |handler: &str| Skipped {
            handler: handler.to_owned(),
            case: "oom-group".to_owned(),
            reason: "memory.oom.group needs cgroup v2".to_owned(),
        };
        Card {
            runtime: "containerd v2.4.2".to_owned(),
            handlers: vec!["runc".to_owned(), "coroner".to_owned()],
            cases: cases.map(str::to_owned).into(),
            deaths,
            skipped: vec![skip("runc"), skip("coroner")],
            interrupted: false,
        }
    }

    #[test]
    fn containers_are_counted_by_handler_and_case() {
        let card = sample();
        let rows: Vec<(&str, &str, usize, bool)> = card
            .rows()
            .map(|row| (row.handler, row.case, row.counts.all(), row.counts.has_failure()))
            .collect();
        assert_eq!(
            rows,
            [
                ("runc", "oom-pid-1", 2, true),
                ("runc", "exit-7", 2, true),
                ("runc", "oom-group", 0, false),
                ("coroner", "oom-pid-1", 2, false),
                ("coroner", "exit-7", 1, false),
                ("coroner", "oom-group", 0, false),
            ]
        );
        assert!(!card.is_right());
        let expect = "4 containers: 1 ok, 1 lost, 1 first-wrong, 1 not-started";
        assert_eq!(card.totals("runc").sentence(), expect);
        assert_eq!(Counts::default().sentence(), "0 containers");
    }
}
