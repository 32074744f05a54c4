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

/// A case in which every fact is known and only these requests were made: signal, moment.
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
    let victim = |is_init| Victim { pid: 7, comm: "java".to_owned(), is_init: Some(is_init) };
    let victims = is_init.map(victim).into_iter().collect();
    let kill = OomKill { added: Some(1), witnesses: Witnesses::COUNTER, victims, ..testing::oom_kill() };
    CaseFile { kills: Some(1), last_kill: Some((at(ms), kill)), ..case }
}

fn report(policy: &KillAttribution, exited: Exited, case: &CaseFile) -> Option<Report> {
    let draft = [Action::TaskOom, EXIT];
    match policy.rule(&signal(exited), case, &draft) {
        Ok(Ruling::Pass) => None,
        Ok(Ruling::Decide(decision)) => {
            let [oom, exit, Action::Report(report)] = &decision.actions[..] else { panic!("{decision:?}") };
            assert_eq!([oom.clone(), exit.clone()], draft, "the draft is carried over");
            assert_eq!(decision.because, report.message);
            assert_eq!(decision.rule.as_deref(), Some(report.reason.as_str()));
            Some(report.clone())
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn end_by_signal_attributed_in_one_sentence() {
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
        (137, killed(None, 99_600, blind.clone()), "oom: SIGKILL, a kill for memory 400 ms before the exit"),
        (137, killed(None, 99_800, case(&both)), "requested: SIGTERM, then SIGKILL 2.0 s later"),
        (137, killed(Some(false), 99_950, case(&both)), "requested: SIGTERM, then SIGKILL 2.0 s later"),
        (137, killed(None, 94_000, case(&[(9, 93_000)])), "requested: SIGKILL, 7.0 s before the exit"),
        (137, case(&both), "requested: SIGTERM, then SIGKILL 2.0 s later"),
        (137, case(&[(15, 1), (15, 99_000), (9, 99_900)]), "requested: SIGTERM, then SIGKILL 900 ms later"),
        (
            137,
            case(&[(15, 1), (9, 2), (15, 99_000), (9, 99_900)]),
            "requested: SIGTERM, then SIGKILL 900 ms later",
        ),
        (137, case(&[(9, 99_000), (15, 99_900)]), "requested: SIGKILL, 1.0 s before the exit"),
        (143, case(&[(15, 99_600)]), "requested: SIGTERM, 400 ms before the exit"),
        (143, case(&both), "requested: SIGTERM, 2.1 s before the exit"),
        (143, killed(None, 99_800, case(&[(15, 99_600)])), "requested: SIGTERM, 400 ms before the exit"),
        (137, case(&[]), "self: SIGKILL, and neither a request to the runtime was seen nor a kill counted"),
        (
            143,
            case(&[(9, 1)]),
            "self: SIGTERM, and neither a request to the runtime was seen nor a kill counted",
        ),
        (137, case(&[(1, 1); 16]), "unknown: SIGKILL, and so many requests were made that not all are kept"),
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
    assert_eq!(message.as_deref(), Some("unknown: SIGKILL, and nothing watched when it ended"));
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
        let fields: Vec<String> = report.fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(fields.join(" "), expect);
    }
}

#[test]
fn sender_that_was_seen_is_named() {
    let cases = [
        (CauseKind::ContainerProcess, "self: SIGKILL, sent by sh (pid 7) of the container"),
        (CauseKind::NodeProcess, "node: SIGKILL, sent by sh (pid 7) outside of the container"),
        (CauseKind::Runtime, "requested: SIGKILL, sent by sh (pid 7) of the container runtime"),
        (CauseKind::Oomd, "oomd: SIGKILL, by systemd-oomd"),
        (CauseKind::CgroupKill, "cgroup-kill: SIGKILL, by sh (pid 7) through cgroup.kill"),
        (CauseKind::KernelOom, "oom: SIGKILL, by the kernel's OOM killer"),
        (
            CauseKind::Unknown,
            "self: SIGKILL, and neither a request to the runtime was seen nor a kill counted",
        ),
    ];
    for (kind, expect) in cases {
        let sender = Some(Sender { pid: 7, comm: "sh".to_owned(), cgroup: None, exec_id: None });
        let cause = Cause { kind, name: String::new(), sender, sources: vec![] };
        let exited = Exited { cause: Some(cause), ..exit(Some(137)) };
        let message = report(&KillAttribution::default(), exited, &case(&[])).map(|it| it.message);
        assert_eq!(message.as_deref(), Some(expect), "{kind:?}");
    }
    let cause = Cause { kind: CauseKind::NodeProcess, name: String::new(), sender: None, sources: vec![] };
    let unnamed = Exited { cause: Some(cause), ..exit(Some(137)) };
    let message = report(&KillAttribution::default(), unnamed, &case(&[])).map(|it| it.message);
    assert_eq!(message.as_deref(), Some("node: SIGKILL, sent by a process outside of the container"));
}

#[test]
fn other_ends_are_not_reported() {
    let cases = [
        exit(Some(1)),
        exit(Some(0)),
        exit(None),
        exit(Some(134)),
        Exited { signal: ExitSignal::Some(6), ..exit(Some(137)) },
        Exited { signal: ExitSignal::None, ..exit(Some(137)) },
        Exited { is_init: Some(false), ..exit(Some(137)) },
    ];
    for exited in cases {
        assert_eq!(report(&KillAttribution::default(), exited.clone(), &case(&[])), None, "{exited:?}");
    }
}

#[test]
fn draft_at_report_limit_gets_no_report() {
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
fn topic_and_window_come_from_configuration() {
    let policy = KillAttribution::configure(r#"{"topic": "team", "window": "100ms"}"#).unwrap();
    let report = report(&policy, exit(Some(137)), &killed(None, 99_800, case(&[]))).unwrap();
    assert_eq!((report.topic.as_str(), report.reason.as_str()), ("team", "unknown"));
}

#[test]
fn wrong_key_named_in_error() {
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
