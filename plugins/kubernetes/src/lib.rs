//! The default policy: Kubernetes' semantics on containerd, without containerd's errors.
//!
//! The router has the same ruling built in, as first draft and as fallback; a test checks that both
//! are equal. To change the default, put a changed copy into the directory as `00-kubernetes.wasm`.

use coroner_sdk::prelude::*;

/// Rules from the signal and from what the router publishes; it ignores the draft.
#[derive(Debug, Default)]
pub struct Kubernetes;

impl Policy for Kubernetes {
    const NAME: &str = "kubernetes";

    fn rule(&self, signal: &Signal, case: &CaseFile, _draft: &[Action]) -> Result<Ruling, String> {
        Ok(match &signal.event {
            Event::OomKill(kill) => oom_kill(kill),
            Event::Exited(_) | Event::GuestLost(_) => end(case),
            Event::Pressure(_) | Event::KillRequest(_) | Event::Evidence(_) | Event::Other(_) => {
                Ruling::decide([], "nothing is published for this kind").by_rule("no-action")
            }
        })
    }
}

export_policy!(Kubernetes);

/// A counter proves a kill, as does another witness where the counter is gone; an announcement
/// counts only where kills are not counted.
fn oom_kill(kill: &OomKill) -> Ruling {
    let counted = kill.witnesses.intersects(Witnesses::COUNTER | Witnesses::INFERRED);
    match (kill.added, counted) {
        (Some(0), _) => Ruling::decide([], "memory ran out, nothing was killed").by_rule("oom-without-kill"),
        _ if is_within(kill) => Ruling::decide([], "a child was killed at a limit within the container")
            .by_rule("oom-kill-within"),
        (Some(added), true) => {
            Ruling::decide([Action::TaskOom], format!("the kernel's OOM kill counter rose by {added}"))
                .by_rule("oom-kill-counter")
        }
        (Some(added), false) => Ruling::decide(
            [Action::TaskOom],
            format!("OOM kills reported without the container's counter: {added}"),
        )
        .by_rule("oom-kill-reported"),
        (None, false) => {
            Ruling::decide([Action::TaskOom], "an OOM was announced, and nothing counts kills here")
                .by_rule("oom-announced")
        }
        (None, true) => {
            Ruling::decide([], "no kill counter rose, and nobody announced an OOM").by_rule("oom-unproven")
        }
    }
}

/// The limit is one that the workload set within the container, and the container's init was not
/// killed: the container is not out of memory. Of several kills in one report only the last is
/// described.
fn is_within(kill: &OomKill) -> bool {
    let spared_init = kill.victims.first().is_some_and(|it| it.is_init == Some(false));
    kill.limit.level == Level::Child && spared_init && kill.added == Some(1) && kill.group != Some(true)
}

/// Where the router publishes exits it must publish each: no other component does.
fn end(case: &CaseFile) -> Ruling {
    if case.known.contains(Known::EXIT_WRITABLE) {
        Ruling::decide([Action::TaskExit(None)], "the container ended: its real status").by_rule("exit")
    } else {
        Ruling::decide([], "the shim tells this exit itself").by_rule("exit-not-ours")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(event: Event, known: Known, actions: &[Action], rule: &str) {
        let signal = testing::signal(event);
        let case = CaseFile { known, ..testing::case() };
        let ruling = Kubernetes.rule(&signal, &case, &[Action::TaskOom]);
        let Ok(Ruling::Decide(decision)) = ruling else { panic!("{signal:?}: {ruling:?}") };
        assert_eq!(decision.actions, actions, "{signal:?}");
        assert_eq!(decision.rule.as_deref(), Some(rule), "{signal:?}");
    }

    #[test]
    fn kill_is_oom_by_counter_or_by_announcement_without_counter() {
        let cases: [(Option<u64>, Witnesses, &[Action], &str); 8] = [
            (Some(1), Witnesses::COUNTER, &[Action::TaskOom], "oom-kill-counter"),
            (Some(3), Witnesses::ANNOUNCED, &[Action::TaskOom], "oom-kill-reported"),
            (Some(1), Witnesses::TRACE, &[Action::TaskOom], "oom-kill-reported"),
            (Some(0), Witnesses::COUNTER, &[], "oom-without-kill"),
            (Some(0), Witnesses::ANNOUNCED, &[], "oom-without-kill"),
            (None, Witnesses::ANNOUNCED, &[Action::TaskOom], "oom-announced"),
            (None, Witnesses::COUNTER, &[], "oom-unproven"),
            (None, Witnesses::INFERRED, &[], "oom-unproven"),
        ];
        for (added, witnesses, actions, rule) in cases {
            let event = Event::OomKill(OomKill { added, witnesses, ..testing::oom_kill() });
            check(event.clone(), Known::empty(), actions, rule);
            check(event, Known::all(), actions, rule);
        }
    }

    #[test]
    fn kill_at_a_limit_within_the_container_is_its_childs() {
        let kills = |added, level, is_init, group| {
            let victims = vec![Victim { pid: 7, comm: "job".to_owned(), is_init }];
            let limit = LimitHit { level, ..testing::oom_kill().limit };
            let witnesses = Witnesses::COUNTER;
            Event::OomKill(OomKill {
                added: Some(added),
                witnesses,
                group,
                limit,
                victims,
                ..testing::oom_kill()
            })
        };
        let kill = |level, is_init, group| kills(1, level, is_init, group);
        let check = |event, actions: &[Action], rule| check(event, Known::empty(), actions, rule);
        let oom = [Action::TaskOom];
        for group in [None, Some(false)] {
            check(kill(Level::Child, Some(false), group), &[], "oom-kill-within");
        }
        check(kill(Level::Child, Some(false), Some(true)), &oom, "oom-kill-counter");
        check(kill(Level::Child, Some(true), None), &oom, "oom-kill-counter");
        check(kill(Level::Child, None, None), &oom, "oom-kill-counter");
        check(kill(Level::Container, Some(false), None), &oom, "oom-kill-counter");
        check(kills(2, Level::Child, Some(false), None), &oom, "oom-kill-counter");
    }

    #[test]
    fn exit_published_only_where_router_publishes_exits() {
        let lost = Event::GuestLost(GuestLost { reason: "link closed".to_owned() });
        for event in [Event::Exited(testing::exited()), lost] {
            check(event.clone(), Known::all(), &[Action::TaskExit(None)], "exit");
            check(event.clone(), Known::EXIT_WRITABLE, &[Action::TaskExit(None)], "exit");
            check(event.clone(), Known::all() - Known::EXIT_WRITABLE, &[], "exit-not-ours");
            check(event, Known::empty(), &[], "exit-not-ours");
        }
    }

    #[test]
    fn nothing_is_published_for_other_kinds() {
        let kill = Event::KillRequest(KillRequest { signal: 9, all: true });
        let other = Event::Other(Other { kind: "new".to_owned(), json: "{}".to_owned() });
        let pressure = Event::Pressure(Pressure {
            of: PressureOf::Memory,
            full: true,
            avg10_centi: 1,
            avg60_centi: 1,
            total_us: 1,
            stalled_us: None,
            high_events: None,
        });
        for event in [kill, other, pressure] {
            check(event, Known::all(), &[], "no-action");
        }
    }

    #[test]
    fn reason_names_the_counter() {
        let kill = OomKill { added: Some(2), witnesses: Witnesses::COUNTER, ..testing::oom_kill() };
        let event = Event::OomKill(kill);
        let ruling = Kubernetes.rule(&testing::signal(event), &testing::case(), &[]);
        let expect = Ruling::decide([Action::TaskOom], "the kernel's OOM kill counter rose by 2");
        assert_eq!(ruling, Ok(expect.by_rule("oom-kill-counter")));
    }
}
