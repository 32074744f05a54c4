use super::*;

const EXIT: Action = Action::TaskExit(None);
const OOM: Action = Action::TaskOom;

fn at(ms: u64) -> Moment {
    Moment { received_ms: ms, ..testing::moment() }
}

fn counted() -> OomKill {
    OomKill { added: Some(1), witnesses: Witnesses::COUNTER, ..testing::oom_kill() }
}

fn victim(is_init: Option<bool>) -> OomKill {
    OomKill { victims: vec![Victim { pid: 7, comm: "java".to_owned(), is_init }], ..counted() }
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

/// Checks the rule for an exit with the native draft, and the actions that follow.
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
fn exit_is_oom_when_kill_can_be_its_cause() {
    let oom = Some("kill-before-end");
    let (old, stop) = (Some("kill-too-old"), Some("stop"));
    let child = || case(victim(Some(false)), 99_000);
    let init = || case(victim(Some(true)), 99_000);
    let unseen = || case(counted(), 99_000);
    let announced = OomKill { witnesses: Witnesses::ANNOUNCED, ..testing::oom_kill() };
    let uncounted = CaseFile { kills: None, ..case(announced.clone(), 99_000) };
    let blind = CaseFile { requests: None, ..child() };
    let cases = [
        ("init was killed", exit(Some(137)), init(), oom),
        ("a child was killed, its parent gave up", exit(Some(1)), child(), oom),
        ("the victim was not seen", exit(Some(137)), unseen(), oom),
        ("the status is not known", exit(None), unseen(), oom),
        ("at the window's edge", exit(Some(1)), case(counted(), 95_000), oom),
        ("just outside of it", exit(Some(1)), case(counted(), 94_999), old),
        ("a kill long past, then SIGTERM", exit(Some(143)), requested(15, 98_000, case(counted(), 0)), old),
        ("a kill dated after the exit", exit(Some(137)), case(counted(), 100_050), oom),
        ("a success after a child was killed", exit(Some(0)), child(), Some("success")),
        ("a success long after", exit(Some(0)), case(counted(), 0), Some("success")),
        ("a success, though init was killed", exit(Some(0)), init(), Some("success")),
        ("SIGTERM was requested", exit(Some(143)), requested(15, 99_500, child()), stop),
        ("SIGTERM was requested before the kill", exit(Some(143)), requested(15, 98_000, unseen()), stop),
        ("SIGTERM was not requested", exit(Some(143)), child(), oom),
        ("another signal was requested", exit(Some(143)), requested(9, 99_500, child()), oom),
        ("SIGKILL was requested", exit(Some(137)), requested(9, 99_500, unseen()), stop),
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
fn proven_cause_of_the_exit_decides() {
    let ended_by = |kind, sender: Option<&str>| {
        let sender = sender.map(|comm| Sender { pid: 7, comm: comm.to_owned(), cgroup: None, exec_id: None });
        let cause = Cause { kind, name: String::new(), sender, sources: vec![] };
        let exited =
            Exited { is_init: Some(true), status: Some(137), cause: Some(cause), ..testing::exited() };
        Signal { at: at(100_000), ..testing::signal(Event::Exited(exited)) }
    };
    let child = || case(victim(Some(false)), 99_000);
    let unnamed = || case(counted(), 99_000);
    let (oom, sender) = (Some("kill-before-end"), Some("sender"));
    let cases = [
        ("the OOM killer", ended_by(CauseKind::KernelOom, None), requested(9, 98_000, unnamed()), oom),
        ("systemd after the kill", ended_by(CauseKind::OomPolicy, None), child(), oom),
        ("a process of the node", ended_by(CauseKind::NodeProcess, Some("bash")), child(), sender),
        ("a write to cgroup.kill", ended_by(CauseKind::CgroupKill, None), child(), sender),
        (
            "the runtime, requests not seen",
            ended_by(CauseKind::Runtime, None),
            CaseFile { requests: None, ..child() },
            Some("stop"),
        ),
        ("the container itself, after the kill", ended_by(CauseKind::ContainerProcess, None), child(), oom),
        ("not proven", ended_by(CauseKind::Unknown, None), child(), oom),
    ];
    for (name, signal, case, expect) in cases {
        check(&CausalOom::default(), name, &signal, &case, expect);
    }
    let by_bash = ended_by(CauseKind::NodeProcess, Some("bash"));
    let decision = decide(&CausalOom::default(), &by_bash, &child(), &[EXIT]).unwrap();
    assert_eq!(decision.because, "a kill 1.0 s before the end, but bash, a process of the node, ended it");
}

#[test]
fn statuses_and_window_come_from_configuration() {
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
fn kill_held_until_exit_and_late_kill_judged_by_exit() {
    let exited =
        |status| CaseFile { exit: Some(Exited { status, ..testing::exited() }), ..case(counted(), 99_000) };
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
        ("after the exit, not marked as late", counted(), exited(Some(0)), Some("success"), false),
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
fn guest_lost_shortly_after_kill_is_oom() {
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
fn actions_of_other_policies_keep_their_order() {
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
fn reason_names_the_numbers() {
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
fn wrong_key_named_in_error() {
    let cases = [
        (r#"{"window": "soon"}"#, "window", r#""soon" is no duration: a number and ms, s or m, as in "5s""#),
        (r#"{"statuses": [256]}"#, "statuses", "invalid value: integer `256`, expected u8"),
        (r#"{"statuses": [1, 0]}"#, "statuses", "0 is a success, and never an OOM"),
        (r#"{"status": [1]}"#, "status", "unknown key; known are window, statuses"),
    ];
    for (json, key, message) in cases {
        let expect = vec![(key.to_owned(), message.to_owned())];
        assert_eq!(CausalOom::configure(json).err(), Some(expect), "{json}");
    }
}
