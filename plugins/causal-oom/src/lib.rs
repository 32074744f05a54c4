//! Policy: a container is `OOMKilled` only if an OOM kill can be what ended it.
//!
//! Kubernetes shows `OOMKilled` once any process of the container was killed for memory, however the container ends: a child that
//! was killed last week makes an `OOMKilled` of today's rolling update. The reason sticks, nothing takes it back. This policy
//! therefore holds each kill back until the exit, and rules then. It is an OOM if all of this holds:
//!
//! 1. The status is not 0: an init container that succeeded stays `Completed`.
//! 2. The last kill lies at most `window` before the exit.
//! 3. It was not a stop: the runtime had not been asked for the very SIGTERM or SIGKILL that init ended by. A kill that hit init
//!    itself counts nevertheless.
//! 4. The status is 137, or among `statuses`, or not known; or the kernel's log names init as the victim.
//!
//! A kill that is only learnt of after the exit is judged by the exit's status alone: the window is not looked at. A guest that is lost
//! shortly after a kill counts as an end with a status that is not known. Where nothing counts kills, an announced OOM counts as one.
//! An OOM that another policy rules on an exit stays.
//!
//! Put it into the policy directory as `30-causal-oom.wasm`. It needs `oom-writable`: in mode `beside` another shim tells of OOMs
//! too, so holding them back would be for nothing, and it does nothing. Rule 3 needs `kill-requests`; where they are not seen, a stop within the
//! window of a kill is taken for an OOM. `30-causal-oom.toml` beside it may say:
//!
//! ```toml
//! [config]
//! window = "5s"
//! statuses = [1, 134]
//! ```

use std::time::Duration;

use coroner_sdk::prelude::*;

const SIGTERM: u8 = 15;
const SIGKILL: u8 = 9;

/// The policy is its own configuration: the fields are the keys of `[config]`.
#[derive(Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CausalOom {
    /// How long before the exit a kill may lie and still be its cause.
    #[serde(deserialize_with = "time::deserialize")]
    window: Duration,
    /// Statuses beside 137 that fit; none: every one but 0.
    statuses: Option<Vec<u8>>,
}

impl Default for CausalOom {
    fn default() -> Self {
        // A process whose child was killed ends within a moment, or cleans up for a few seconds; a kill that was survived for
        // longer than that was survived.
        Self { window: Duration::from_secs(5), statuses: None }
    }
}

impl Policy for CausalOom {
    const NAME: &str = "causal-oom";

    fn wants() -> Kinds {
        Kinds::OOM_KILL | Kinds::EXITED | Kinds::GUEST_LOST
    }

    fn needs() -> Known {
        Known::OOM_WRITABLE
    }

    fn config_schema() -> Option<String> {
        Some(include_str!("../config.schema.json").to_owned())
    }

    fn configure(json: &str) -> Result<Self, Mistakes> {
        let policy: Self = config::parse(json)?;
        if policy.statuses.as_ref().is_some_and(|statuses| statuses.contains(&0)) {
            return Err(vec![("statuses".to_owned(), "0 is a success, and never an OOM".to_owned())]);
        }
        Ok(policy)
    }

    fn rule(&self, signal: &Signal, case: &CaseFile, draft: &[Action]) -> Result<Ruling, String> {
        if !case.known.contains(Known::OOM_WRITABLE) {
            return Ok(Ruling::Pass);
        }
        Ok(match &signal.event {
            Event::OomKill(kill) => self.killed(signal, kill, case, draft),
            Event::Exited(_) | Event::GuestLost(_) => self.ended(signal, case, draft),
            Event::Pressure(_) | Event::KillRequest(_) | Event::Other(_) => Ruling::Pass,
        })
    }
}

export_policy!(CausalOom);

impl CausalOom {
    /// Holds a kill back until the exit; after the exit there is no other time to judge it.
    fn killed(&self, signal: &Signal, kill: &OomKill, case: &CaseFile, draft: &[Action]) -> Ruling {
        if !draft.contains(&Action::TaskOom) {
            return Ruling::Pass;
        }
        let held = without_oom(draft);
        if !kill.late && case.exit.is_none() {
            let because = "a kill alone is no reason: it is ruled on with the exit it may cause";
            return Ruling::decide(held, because).by_rule("kill-held");
        }
        // The case file has the exit, and not when it was.
        let kill = Kill { at: &signal.at, what: kill, when: "a kill, learnt of after the exit".to_owned() };
        match self.judge(&kill, case.exit.as_ref(), case) {
            Ok(because) => Ruling::decide(draft, because).by_rule("kill-late"),
            Err((because, rule)) => Ruling::decide(held, because).by_rule(rule),
        }
    }

    /// Rules on an end, if there was a kill: which is before what is published of the end, because containerd looks for it then.
    fn ended(&self, signal: &Signal, case: &CaseFile, draft: &[Action]) -> Ruling {
        let exited = signal.exit_of_init();
        let of_exec = matches!(signal.event, Event::Exited(_)) && exited.is_none();
        let Some((at, what)) = case.proven_kill().filter(|_| !of_exec) else { return Ruling::Pass };
        // A kill that is known here came before the end, whatever its time says: counters are read once more at an end, and what
        // is found then may be dated after it.
        let age = signal.at.since(at).unwrap_or_default();
        let when = format!("a kill {} before the end", time::shown(age));
        let kill = Kill { at, what, when };
        let verdict = if age > self.window && exited.and_then(Exited::code) != Some(0) {
            Err((
                format!("{}, outside of the {} that count", kill.when, time::shown(self.window)),
                "kill-too-old",
            ))
        } else {
            self.judge(&kill, exited, case)
        };
        match verdict {
            Ok(because) => {
                let mut actions = vec![Action::TaskOom];
                actions.extend(without_oom(draft));
                Ruling::decide(actions, because).by_rule("kill-before-end")
            }
            Err((because, rule)) => Ruling::decide(draft, because).by_rule(rule),
        }
    }

    /// Whether a kill can be why the container ended so, and why; else also the rule that says no.
    fn judge(
        &self,
        kill: &Kill<'_>,
        exited: Option<&Exited>,
        case: &CaseFile,
    ) -> Result<String, (String, &'static str)> {
        let when = &kill.when;
        let Some((exited, code)) = exited.and_then(|exited| Some((exited, exited.code()?))) else {
            return Ok(format!("{when}, status not known"));
        };
        if code == 0 {
            return Err((format!("{when}, but the status is 0"), "success"));
        }
        if kill.what.victim.as_ref().and_then(|victim| victim.is_init) == Some(true) {
            return Ok(format!("{when}, which hit init; status {code}"));
        }
        if let Some(name) = stop(kill, exited, case) {
            return Err((format!("{when}, but the runtime was asked for the {name} that ended it"), "stop"));
        }
        let listed = |statuses: &Vec<u8>| statuses.iter().any(|status| u32::from(*status) == code);
        if exited.ended_by(SIGKILL) == Some(true) || self.statuses.as_ref().is_none_or(listed) {
            return Ok(format!("{when}, status {code}"));
        }
        Err((format!("{when}, but status {code} is not among those that fit"), "status"))
    }
}

/// The kill that is judged.
struct Kill<'a> {
    at: &'a Moment,
    what: &'a OomKill,
    /// For the reason.
    when: String,
}

/// The stop that explains the exit: the name of the signal that init ended by and the runtime was asked for.
///
/// The OOM killer sends SIGKILL. Had it hit init before that request, init would not have been there to be stopped; a kill that
/// came after the request, and may have hit init, was faster than the stop.
fn stop(kill: &Kill<'_>, exited: &Exited, case: &CaseFile) -> Option<&'static str> {
    let ends = [(SIGTERM, "SIGTERM"), (SIGKILL, "SIGKILL")];
    let (signal, name) = ends.into_iter().find(|(signal, _)| exited.ended_by(*signal) == Some(true))?;
    let requested = case.last_request(signal)?;
    let faster = kill.what.hit_init(exited) == Some(true) && kill.at.since(requested).is_some();
    (!faster).then_some(name)
}

/// What the policies before this one want of everything else.
fn without_oom(draft: &[Action]) -> Vec<Action> {
    draft.iter().filter(|action| **action != Action::TaskOom).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Action = Action::TaskExit(None);
    const OOM: Action = Action::TaskOom;

    fn at(ms: u64) -> Moment {
        Moment { received_ms: ms, ..testing::moment() }
    }

    fn counted() -> OomKill {
        OomKill { added: Some(1), evidence: Evidence::Counter, ..testing::oom_kill() }
    }

    fn victim(is_init: Option<bool>) -> OomKill {
        OomKill { victim: Some(Victim { pid: 7, comm: "java".to_owned(), is_init }), ..counted() }
    }

    /// A case with a kill at a moment, in a mode that sees everything.
    fn case(kill: OomKill, ms: u64) -> CaseFile {
        CaseFile {
            known: Known::all(),
            kills: Some(1),
            last_kill: Some((at(ms), kill)),
            requests: Some(vec![]),
            ..testing::case()
        }
    }

    fn requested(signal: u8, ms: u64, case: CaseFile) -> CaseFile {
        CaseFile { requests: Some(vec![(at(ms), KillRequest { signal, all: false })]), ..case }
    }

    /// An exit of init 100 s after the moment 0.
    fn exit(status: Option<u32>) -> Signal {
        let exited = Exited { is_init: Some(true), status, ..testing::exited() };
        Signal { at: at(100_000), ..testing::signal(Event::Exited(exited)) }
    }

    fn decide(policy: &CausalOom, signal: &Signal, case: &CaseFile, draft: &[Action]) -> Option<Decision> {
        match policy.rule(signal, case, draft) {
            Ok(Ruling::Decide(decision)) => Some(decision),
            Ok(Ruling::Pass) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The rule that decided on an exit whose draft is the native one; what it did to the draft follows from it.
    fn check(policy: &CausalOom, name: &str, signal: &Signal, case: &CaseFile, expect: Option<&str>) {
        let decision = decide(policy, signal, case, &[EXIT]);
        let rule = decision.as_ref().and_then(|it| it.rule.as_deref());
        assert_eq!(rule, expect, "{name}");
        let actions = match expect {
            Some("kill-before-end") => Some(vec![OOM, EXIT]),
            Some(_) => Some(vec![EXIT]),
            None => None,
        };
        assert_eq!(decision.map(|it| it.actions), actions, "{name}");
    }

    #[test]
    fn an_exit_is_an_oom_when_a_kill_can_be_its_cause() {
        let oom = Some("kill-before-end");
        let (old, stop) = (Some("kill-too-old"), Some("stop"));
        let child = || case(victim(Some(false)), 99_000);
        let init = || case(victim(Some(true)), 99_000);
        let unseen = || case(counted(), 99_000);
        let announced = OomKill { evidence: Evidence::Announced, ..testing::oom_kill() };
        let uncounted = CaseFile { kills: None, ..case(announced.clone(), 99_000) };
        let blind = CaseFile { requests: None, ..child() };
        let cases = [
            ("init was killed", exit(Some(137)), init(), oom),
            ("a child was killed, its parent gave up", exit(Some(1)), child(), oom),
            ("nobody saw the victim", exit(Some(137)), unseen(), oom),
            ("the status is not known", exit(None), unseen(), oom),
            ("at the window's edge", exit(Some(1)), case(counted(), 95_000), oom),
            ("just outside of it", exit(Some(1)), case(counted(), 94_999), old),
            (
                "a kill long past, then SIGTERM",
                exit(Some(143)),
                requested(15, 98_000, case(counted(), 0)),
                old,
            ),
            ("a kill dated after the exit", exit(Some(137)), case(counted(), 100_050), oom),
            ("a success after a child was killed", exit(Some(0)), child(), Some("success")),
            ("a success long after", exit(Some(0)), case(counted(), 0), Some("success")),
            ("a success, whoever was killed", exit(Some(0)), init(), Some("success")),
            ("SIGTERM was asked for", exit(Some(143)), requested(15, 99_500, child()), stop),
            ("SIGTERM was asked for before the kill", exit(Some(143)), requested(15, 98_000, unseen()), stop),
            ("SIGTERM nobody asked for", exit(Some(143)), child(), oom),
            ("another signal was asked for", exit(Some(143)), requested(9, 99_500, child()), oom),
            ("SIGKILL was asked for", exit(Some(137)), requested(9, 99_500, unseen()), stop),
            ("the kill was faster than SIGKILL", exit(Some(137)), requested(9, 98_000, unseen()), oom),
            ("a child's kill was not", exit(Some(137)), requested(9, 98_000, child()), stop),
            ("init was killed during a stop", exit(Some(137)), requested(9, 99_500, init()), oom),
            ("the stop failed otherwise", exit(Some(1)), requested(15, 99_500, child()), oom),
            ("requests are not seen", exit(Some(143)), blind, oom),
            ("announced, and nothing counts", exit(Some(137)), uncounted, oom),
            (
                "announced, and none was counted",
                exit(Some(137)),
                CaseFile { kills: Some(0), ..case(announced, 99_000) },
                None,
            ),
            ("no kill", exit(Some(137)), CaseFile { last_kill: None, ..child() }, None),
        ];
        for (name, signal, case, expect) in cases {
            check(&CausalOom::default(), name, &signal, &case, expect);
        }
    }

    #[test]
    fn statuses_and_window_are_what_the_operator_says() {
        let policy = CausalOom::configure(r#"{"window": "200ms", "statuses": [1]}"#).unwrap();
        let cases = [
            ("listed", Some(1), 99_900, Some("kill-before-end")),
            ("not listed", Some(2), 99_900, Some("status")),
            ("137 fits always", Some(137), 99_900, Some("kill-before-end")),
            ("an unknown one, too", None, 99_900, Some("kill-before-end")),
            ("outside of its window", Some(1), 99_700, Some("kill-too-old")),
        ];
        for (name, status, ms, expect) in cases {
            check(&policy, name, &exit(status), &case(victim(Some(false)), ms), expect);
        }
        check(&policy, "init", &exit(Some(2)), &case(victim(Some(true)), 99_900), Some("kill-before-end"));
    }

    #[test]
    fn a_kill_is_held_back_until_the_exit_and_judged_by_it_when_late() {
        let exited = |status| CaseFile {
            exit: Some(Exited { status, ..testing::exited() }),
            ..case(counted(), 99_000)
        };
        let late = OomKill { late: true, ..counted() };
        let alive = CaseFile { last_kill: None, ..case(counted(), 0) };
        let cases = [
            ("while it runs", counted(), alive.clone(), Some("kill-held"), false),
            ("again", counted(), case(counted(), 0), Some("kill-held"), false),
            ("late, of a kill", late.clone(), exited(Some(137)), Some("kill-late"), true),
            ("late, of a failure", late.clone(), exited(Some(1)), Some("kill-late"), true),
            ("late, of a success", late.clone(), exited(Some(0)), Some("success"), false),
            ("late, of a stop", late.clone(), requested(15, 0, exited(Some(143))), Some("stop"), false),
            ("late, the exit not known", late, alive.clone(), Some("kill-late"), true),
            ("after the exit, not said to be late", counted(), exited(Some(0)), Some("success"), false),
        ];
        for (name, kill, case, rule, oom) in cases {
            let signal = Signal { at: at(101_000), ..testing::signal(Event::OomKill(kill)) };
            let decision = decide(&CausalOom::default(), &signal, &case, &[OOM]).unwrap();
            assert_eq!(decision.rule.as_deref(), rule, "{name}");
            assert_eq!(decision.actions.contains(&OOM), oom, "{name}");
        }
        let killed_nothing = testing::signal(Event::OomKill(OomKill { added: Some(0), ..counted() }));
        assert_eq!(decide(&CausalOom::default(), &killed_nothing, &alive, &[]), None);
    }

    #[test]
    fn a_guest_lost_shortly_after_a_kill_is_an_oom() {
        let lost = Event::GuestLost(GuestLost { reason: "gone".to_owned() });
        let lost = Signal { at: at(100_000), ..testing::signal(lost) };
        let none = CaseFile { last_kill: None, ..case(counted(), 0) };
        let cases = [
            ("shortly", case(counted(), 99_000), Some("kill-before-end")),
            ("long after", case(counted(), 0), Some("kill-too-old")),
            ("none", none, None),
        ];
        for (name, case, expect) in cases {
            check(&CausalOom::default(), name, &lost, &case, expect);
        }
    }

    #[test]
    fn it_leaves_alone_what_is_not_its_own() {
        let case = case(counted(), 99_000);
        let not_ours = CaseFile { known: Known::all() - Known::OOM_WRITABLE, ..case.clone() };
        let kill = testing::signal(Event::OomKill(counted()));
        let mut exec = exit(Some(137));
        exec.target.exec_id = Some("e1".to_owned());
        for (signal, case, draft) in
            [(kill, &not_ours, OOM), (exit(Some(137)), &not_ours, EXIT), (exec, &case, EXIT)]
        {
            assert_eq!(decide(&CausalOom::default(), &signal, case, &[draft]), None, "{signal:?}");
        }
    }

    #[test]
    fn what_other_policies_want_stays_in_its_order() {
        let report = Action::Report(Report {
            topic: "team".to_owned(),
            reason: "Killed".to_owned(),
            message: "it ended".to_owned(),
            fields: vec![],
        });
        let status = Action::TaskExit(Some(3));
        let kill = testing::signal(Event::OomKill(counted()));
        let (near, far) = (case(counted(), 99_000), case(counted(), 0));
        let cases = [
            ("held", &kill, &near, vec![OOM, report.clone()], vec![report.clone()]),
            (
                "oom",
                &exit(Some(1)),
                &near,
                vec![report.clone(), status.clone()],
                vec![OOM, report.clone(), status.clone()],
            ),
            ("oom, once", &exit(Some(1)), &near, vec![OOM, EXIT], vec![OOM, EXIT]),
            ("no oom", &exit(Some(1)), &far, vec![report.clone(), EXIT], vec![report, EXIT]),
            ("another's oom", &exit(Some(1)), &far, vec![OOM, status.clone()], vec![OOM, status]),
        ];
        for (name, signal, case, draft, expect) in cases {
            let decision = decide(&CausalOom::default(), signal, case, &draft).unwrap();
            assert_eq!(decision.actions, expect, "{name}");
        }
    }

    #[test]
    fn the_reason_names_the_numbers() {
        let cases = [
            (Some(1), 99_600, "a kill 400 ms before the end, status 1"),
            (None, 98_000, "a kill 2.0 s before the end, status not known"),
            (Some(0), 98_000, "a kill 2.0 s before the end, but the status is 0"),
            (Some(143), 40_000, "a kill 60.0 s before the end, outside of the 5.0 s that count"),
        ];
        for (status, ms, expect) in cases {
            let decision = decide(&CausalOom::default(), &exit(status), &case(counted(), ms), &[EXIT]);
            assert_eq!(decision.unwrap().because, expect);
        }
    }

    #[test]
    fn a_key_that_is_wrong_is_named() {
        let cases = [
            (
                r#"{"window": "soon"}"#,
                "window",
                r#""soon" is no duration: a number and ms, s or m, as in "5s""#,
            ),
            (r#"{"statuses": [256]}"#, "statuses", "invalid value: integer `256`, expected u8"),
            (r#"{"statuses": [1, 0]}"#, "statuses", "0 is a success, and never an OOM"),
            (r#"{"status": [1]}"#, "status", "unknown key; known are window, statuses"),
        ];
        for (json, key, message) in cases {
            let expect = vec![(key.to_owned(), message.to_owned())];
            assert_eq!(CausalOom::configure(json).err(), Some(expect), "{json}");
        }
    }
}
