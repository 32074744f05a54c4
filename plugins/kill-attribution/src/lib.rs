//! Policy: reports who ended a container that ended by SIGTERM or SIGKILL.
//!
//! 143 and 137 look alike whoever sent the signal: the kubelet that stops a pod, the kernel that is out of memory, the application
//! itself. This policy adds a report to such an exit of init and changes nothing else. Its `reason` is one of:
//!
//! | reason | when |
//! |---|---|
//! | `oom` | a kill for memory lies at most `window` before the exit, and hit init: the kernel's log says so, or nobody saw the victim and the status is 137 |
//! | `requested` | the runtime was asked for the signal that ended it |
//! | `self` | it was not, and no kill was counted: a process of the container or of the machine sent it |
//! | `unknown` | otherwise: the message says what is not known, or what does not explain it |
//!
//! The message is a sentence as `requested: SIGTERM, then SIGKILL 2.0 s later`. The fields, those that are known: `attribution`, `signal`,
//! `kills`, and in milliseconds `kill-to-exit-ms`, `request-to-exit-ms`, `term-to-kill-ms`.
//!
//! Put it into the policy directory as `80-kill-attribution.wasm`. It needs `kill-requests`, which are seen in mode `proxy`; elsewhere it
//! knows `oom` and `unknown`. Its reports go to the sinks of a route with its topic. `80-kill-attribution.toml` beside it may say:
//!
//! ```toml
//! [config]
//! topic = "kill-attribution"
//! window = "5s"
//! ```

use std::time::Duration;

use coroner_sdk::prelude::*;

const SIGTERM: u8 = 15;
const SIGKILL: u8 = 9;

/// Reports that one signal may lead to: another one would make the whole draft illegal.
const MAX_REPORTS: usize = 16;
/// Bytes of a report's topic.
const MAX_TOPIC: usize = 128;

/// The policy is its own configuration: the fields are the keys of `[config]`.
#[derive(Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KillAttribution {
    /// The topic of its reports.
    topic: String,
    /// How long before the exit a kill may lie and still be its cause.
    #[serde(deserialize_with = "time::deserialize")]
    window: Duration,
}

impl Default for KillAttribution {
    fn default() -> Self {
        Self { topic: Self::NAME.to_owned(), window: Duration::from_secs(5) }
    }
}

impl Policy for KillAttribution {
    const NAME: &str = "kill-attribution";

    fn wants() -> Kinds {
        Kinds::EXITED
    }

    fn needs() -> Known {
        Known::KILL_REQUESTS
    }

    fn config_schema() -> Option<String> {
        Some(include_str!("../config.schema.json").to_owned())
    }

    fn configure(json: &str) -> Result<Self, Mistakes> {
        let policy: Self = config::parse(json)?;
        let mistake = |message: &str| Err(vec![("topic".to_owned(), message.to_owned())]);
        match policy.topic.as_str() {
            topic if topic.is_empty() || topic.len() > MAX_TOPIC => mistake("must have 1 to 128 bytes"),
            // The router sends such reports nowhere.
            topic if topic == "audit" || topic.starts_with('/') => mistake("is one of the router's own"),
            _ => Ok(policy),
        }
    }

    fn rule(&self, signal: &Signal, case: &CaseFile, draft: &[Action]) -> Result<Ruling, String> {
        let Some(exited) = signal.exit_of_init() else { return Ok(Ruling::Pass) };
        let Some(end) = End::of(signal, exited, case) else { return Ok(Ruling::Pass) };
        let reports = draft.iter().filter(|action| matches!(action, Action::Report(_))).count();
        if reports >= MAX_REPORTS {
            return Ok(Ruling::Pass);
        }
        let (reason, detail) = self.attribute(&end, exited, case);
        let message = format!("{reason}: {detail}");
        let mut actions = draft.to_vec();
        actions.push(Action::Report(Report {
            topic: self.topic.clone(),
            reason: reason.to_owned(),
            message: message.clone(),
            fields: end.fields(reason, case),
        }));
        Ok(Ruling::decide(actions, message).by_rule(reason))
    }
}

export_policy!(KillAttribution);

/// An end by one of the two signals, and what came before it.
struct End<'a> {
    signal: u8,
    name: &'static str,
    /// The last kill for memory, and how long before the exit it was.
    kill: Option<(&'a Moment, &'a OomKill, Duration)>,
    /// The last time the runtime was asked for this signal, and how long before the exit that was.
    request: Option<(&'a Moment, Duration)>,
    /// From the SIGTERM before it to the SIGKILL that was asked for.
    grace: Option<Duration>,
}

impl<'a> End<'a> {
    fn of(signal: &Signal, exited: &Exited, case: &'a CaseFile) -> Option<Self> {
        let ends = [(SIGTERM, "SIGTERM"), (SIGKILL, "SIGKILL")];
        let (number, name) = ends.into_iter().find(|(number, _)| exited.ended_by(*number) == Some(true))?;
        // What the case file holds came before the exit; what is dated after it was looked for only then.
        let before = |at: &Moment| signal.at.since(at).unwrap_or_default();
        Some(Self {
            signal: number,
            name,
            kill: case.proven_kill().map(|(at, kill)| (at, kill, before(at))),
            request: case.last_request(number).map(|at| (at, before(at))),
            grace: grace(case).filter(|_| number == SIGKILL),
        })
    }

    fn fields(&self, reason: &str, case: &CaseFile) -> Vec<(String, String)> {
        let milliseconds = |duration: Duration| duration.as_millis().to_string();
        let fields = [
            ("attribution", Some(reason.to_owned())),
            ("signal", Some(self.name.to_owned())),
            ("kills", case.kills.map(|kills| kills.to_string())),
            ("kill-to-exit-ms", self.kill.map(|(.., before)| milliseconds(before))),
            ("request-to-exit-ms", self.request.map(|(_, before)| milliseconds(before))),
            ("term-to-kill-ms", self.grace.map(milliseconds)),
        ];
        fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

/// From the last SIGTERM before the last SIGKILL to that.
fn grace(case: &CaseFile) -> Option<Duration> {
    let requests = case.requests.as_ref()?;
    let last = requests.iter().rposition(|(_, request)| request.signal == SIGKILL)?;
    let (term, _) = requests[..last].iter().rfind(|(_, request)| request.signal == SIGTERM)?;
    requests[last].0.since(term)
}

impl KillAttribution {
    /// The reason, and what it is found in.
    fn attribute(&self, end: &End<'_>, exited: &Exited, case: &CaseFile) -> (&'static str, String) {
        let name = end.name;
        if let Some((at, kill, before)) = end.kill {
            let named = kill.victim.as_ref().and_then(|victim| victim.is_init) == Some(true);
            // Had a kill hit init before the runtime was asked, init would not have been there to be asked for: the request is
            // what ended it. A kill after the request was faster than the stop. Where the log names init there is no doubt.
            let faster = named || end.request.is_none_or(|(requested, _)| at.since(requested).is_some());
            if before <= self.window && kill.hit_init(exited) == Some(true) && faster {
                return ("oom", format!("{name}, a kill for memory {} before the exit", time::shown(before)));
            }
        }
        if let Some((_, before)) = end.request {
            let detail = match end.grace {
                Some(grace) => format!("SIGTERM, then SIGKILL {} later", time::shown(grace)),
                None => format!("{name}, {} before the exit", time::shown(before)),
            };
            return ("requested", detail);
        }
        match doubt(end, exited, case) {
            None => ("self", format!("{name}, and neither was the runtime asked for it nor a kill counted")),
            Some(doubt) => ("unknown", format!("{name}, and {doubt}")),
        }
    }
}

/// Why nobody can say that the signal came from the container itself.
fn doubt(end: &End<'_>, exited: &Exited, case: &CaseFile) -> Option<String> {
    if exited.reconciled {
        return Some("nobody watched when it ended".to_owned());
    }
    if !case.known.contains(Known::KILL_REQUESTS) {
        return Some("kill requests are not seen here".to_owned());
    }
    if case.kill_requested(end.signal) != Some(false) {
        return Some("so many requests were made that not all are kept".to_owned());
    }
    match (end.kill, case.kills) {
        (Some((.., before)), _) => {
            Some(format!("a kill for memory {} before the exit does not explain it", time::shown(before)))
        }
        (None, Some(0)) => None,
        (None, Some(kills)) => Some(format!("of {kills} kills for memory the last is not known")),
        (None, None) => Some("kills for memory are not counted here".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Action = Action::TaskExit(None);

    fn at(ms: u64) -> Moment {
        Moment { received_ms: ms, ..testing::moment() }
    }

    /// An exit of init 100 s after the moment 0.
    fn exit(status: Option<u32>) -> Exited {
        Exited { is_init: Some(true), status, ..testing::exited() }
    }

    fn signal(exited: Exited) -> Signal {
        Signal { at: at(100_000), ..testing::signal(Event::Exited(exited)) }
    }

    /// A case in a mode that sees everything, in which nothing happened but these requests: a signal and its moment each.
    fn case(requests: &[(u8, u64)]) -> CaseFile {
        let request = |(signal, ms): &(u8, u64)| (at(*ms), KillRequest { signal: *signal, all: false });
        CaseFile {
            known: Known::all(),
            kills: Some(0),
            requests: Some(requests.iter().map(request).collect()),
            ..testing::case()
        }
    }

    fn killed(is_init: Option<bool>, ms: u64, case: CaseFile) -> CaseFile {
        let victim =
            is_init.map(|is_init| Victim { pid: 7, comm: "java".to_owned(), is_init: Some(is_init) });
        let kill = OomKill { added: Some(1), evidence: Evidence::Counter, victim, ..testing::oom_kill() };
        CaseFile { kills: Some(1), last_kill: Some((at(ms), kill)), ..case }
    }

    fn report(policy: &KillAttribution, exited: Exited, case: &CaseFile) -> Option<Report> {
        let draft = [Action::TaskOom, EXIT];
        match policy.rule(&signal(exited), case, &draft) {
            Ok(Ruling::Pass) => None,
            Ok(Ruling::Decide(decision)) => {
                let [oom, exit, Action::Report(report)] = &decision.actions[..] else {
                    panic!("{decision:?}")
                };
                assert_eq!([oom.clone(), exit.clone()], draft, "the draft is carried over");
                assert_eq!(decision.because, report.message);
                assert_eq!(decision.rule.as_deref(), Some(report.reason.as_str()));
                Some(report.clone())
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn an_end_by_a_signal_is_attributed_in_one_sentence() {
        let blind = CaseFile { known: Known::all() - Known::KILL_REQUESTS, requests: None, ..case(&[]) };
        let uncounted = CaseFile { known: Known::all() - Known::KILL_COUNT, kills: None, ..case(&[]) };
        let both = [(15, 97_900), (9, 99_900)];
        let cases = [
            (
                137,
                killed(Some(true), 99_600, case(&[])),
                "oom: SIGKILL, a kill for memory 400 ms before the exit",
            ),
            (137, killed(None, 98_000, case(&[])), "oom: SIGKILL, a kill for memory 2.0 s before the exit"),
            (137, killed(None, 100_020, case(&[])), "oom: SIGKILL, a kill for memory 0 ms before the exit"),
            (137, killed(None, 95_000, case(&[])), "oom: SIGKILL, a kill for memory 5.0 s before the exit"),
            (
                137,
                killed(None, 99_600, case(&[(15, 99_000)])),
                "oom: SIGKILL, a kill for memory 400 ms before the exit",
            ),
            (137, killed(None, 99_950, case(&both)), "oom: SIGKILL, a kill for memory 50 ms before the exit"),
            (
                137,
                killed(Some(true), 99_800, case(&both)),
                "oom: SIGKILL, a kill for memory 200 ms before the exit",
            ),
            (
                137,
                killed(None, 99_600, blind.clone()),
                "oom: SIGKILL, a kill for memory 400 ms before the exit",
            ),
            (137, killed(None, 99_800, case(&both)), "requested: SIGTERM, then SIGKILL 2.0 s later"),
            (137, killed(Some(false), 99_950, case(&both)), "requested: SIGTERM, then SIGKILL 2.0 s later"),
            (137, killed(None, 94_000, case(&[(9, 93_000)])), "requested: SIGKILL, 7.0 s before the exit"),
            (137, case(&both), "requested: SIGTERM, then SIGKILL 2.0 s later"),
            (
                137,
                case(&[(15, 1), (15, 99_000), (9, 99_900)]),
                "requested: SIGTERM, then SIGKILL 900 ms later",
            ),
            (
                137,
                case(&[(15, 1), (9, 2), (15, 99_000), (9, 99_900)]),
                "requested: SIGTERM, then SIGKILL 900 ms later",
            ),
            (137, case(&[(9, 99_000), (15, 99_900)]), "requested: SIGKILL, 1.0 s before the exit"),
            (143, case(&[(15, 99_600)]), "requested: SIGTERM, 400 ms before the exit"),
            (143, case(&both), "requested: SIGTERM, 2.1 s before the exit"),
            (143, killed(None, 99_800, case(&[(15, 99_600)])), "requested: SIGTERM, 400 ms before the exit"),
            (137, case(&[]), "self: SIGKILL, and neither was the runtime asked for it nor a kill counted"),
            (
                143,
                case(&[(9, 1)]),
                "self: SIGTERM, and neither was the runtime asked for it nor a kill counted",
            ),
            (
                137,
                case(&[(1, 1); 16]),
                "unknown: SIGKILL, and so many requests were made that not all are kept",
            ),
            (137, blind, "unknown: SIGKILL, and kill requests are not seen here"),
            (
                137,
                CaseFile { kills: Some(2), ..case(&[]) },
                "unknown: SIGKILL, and of 2 kills for memory the last is not known",
            ),
            (137, uncounted, "unknown: SIGKILL, and kills for memory are not counted here"),
            (
                137,
                killed(None, 94_999, case(&[])),
                "unknown: SIGKILL, and a kill for memory 5.0 s before the exit does not explain it",
            ),
            (
                143,
                killed(Some(false), 99_000, case(&[])),
                "unknown: SIGTERM, and a kill for memory 1.0 s before the exit does not explain it",
            ),
        ];
        for (status, case, expect) in cases {
            let report = report(&KillAttribution::default(), exit(Some(status)), &case);
            let (topic, message) = report.map(|it| (it.topic, it.message)).unwrap_or_default();
            assert_eq!((topic.as_str(), message.as_str()), ("kill-attribution", expect), "{case:?}");
        }
        let unseen = Exited { reconciled: true, ..exit(Some(137)) };
        let message = report(&KillAttribution::default(), unseen, &case(&[])).map(|it| it.message);
        assert_eq!(message.as_deref(), Some("unknown: SIGKILL, and nobody watched when it ended"));
    }

    #[test]
    fn fields_hold_what_is_known_and_nothing_else() {
        let stopped = killed(Some(false), 99_950, case(&[(15, 97_900), (9, 99_900)]));
        let cases = [
            (
                137,
                stopped.clone(),
                "attribution=requested signal=SIGKILL kills=1 kill-to-exit-ms=50 request-to-exit-ms=100 term-to-kill-ms=2000",
            ),
            (
                143,
                stopped,
                "attribution=requested signal=SIGTERM kills=1 kill-to-exit-ms=50 request-to-exit-ms=2100",
            ),
            (137, case(&[]), "attribution=self signal=SIGKILL kills=0"),
            (137, testing::case(), "attribution=unknown signal=SIGKILL"),
        ];
        for (status, case, expect) in cases {
            let report = report(&KillAttribution::default(), exit(Some(status)), &case).unwrap();
            let fields: Vec<String> =
                report.fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
            assert_eq!(fields.join(" "), expect);
        }
    }

    #[test]
    fn other_ends_are_not_reported() {
        let cases = [
            exit(Some(1)),
            exit(Some(0)),
            exit(None),
            exit(Some(134)),
            Exited { signal: Some(6), ..exit(Some(137)) },
            Exited { is_init: Some(false), ..exit(Some(137)) },
        ];
        for exited in cases {
            assert_eq!(report(&KillAttribution::default(), exited, &case(&[])), None, "{exited:?}");
        }
    }

    #[test]
    fn a_draft_with_as_many_reports_as_there_may_be_gets_no_other() {
        let other = Action::Report(Report {
            topic: "team".to_owned(),
            reason: String::new(),
            message: String::new(),
            fields: vec![],
        });
        for (reports, expect) in [(15, true), (16, false)] {
            let mut draft = vec![other.clone(); reports];
            draft.push(EXIT);
            let ruling = KillAttribution::default().rule(&signal(exit(Some(137))), &case(&[]), &draft);
            assert_eq!(ruling != Ok(Ruling::Pass), expect, "{reports}");
        }
    }

    #[test]
    fn topic_and_window_are_what_the_operator_says() {
        let policy = KillAttribution::configure(r#"{"topic": "team", "window": "100ms"}"#).unwrap();
        let report = report(&policy, exit(Some(137)), &killed(None, 99_800, case(&[]))).unwrap();
        assert_eq!((report.topic.as_str(), report.reason.as_str()), ("team", "unknown"));
    }

    #[test]
    fn a_key_that_is_wrong_is_named() {
        let long = format!(r#"{{"topic": "{}"}}"#, "x".repeat(129));
        let cases = [
            (r#"{"topic": ""}"#, "topic", "must have 1 to 128 bytes"),
            (&long, "topic", "must have 1 to 128 bytes"),
            (r#"{"topic": "audit"}"#, "topic", "is one of the router's own"),
            (r#"{"topic": "/tasks/oom"}"#, "topic", "is one of the router's own"),
            (r#"{"window": 5}"#, "window", "invalid type: integer `5`, expected a string"),
            (r#"{"sink": "x"}"#, "sink", "unknown key; known are topic, window"),
        ];
        for (json, key, message) in cases {
            let expect = vec![(key.to_owned(), message.to_owned())];
            assert_eq!(KillAttribution::configure(json).err(), Some(expect), "{json}");
        }
    }
}
