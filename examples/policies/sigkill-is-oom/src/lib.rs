//! Example policy: an exit by SIGKILL without a kill request is ruled OOM.
//!
//! The OOM killer ends a process with SIGKILL, and so do `kubectl delete --force`, failed probes
//! and evictions. Where no OOM kill counter can be read, a *kill request* is the difference: the
//! router sees the requests that go through the runtime. This policy rules OOM when there was none.
//!
//! Put it into the policy directory as `20-sigkill-is-oom.wasm`. Where your sources do not see kill
//! requests, it does nothing, unless `20-sigkill-is-oom.toml` beside it states that there are none:
//!
//! ```toml
//! [config]
//! assume_no_kill_requests = true
//! ```

use coroner_sdk::prelude::*;

const SIGKILL: u8 = 9;

/// The policy is its own configuration: the fields are the keys of `[config]`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SigkillIsOom {
    /// Where kill requests are not seen, assume that there were none.
    assume_no_kill_requests: bool,
}

impl Policy for SigkillIsOom {
    const NAME: &str = "sigkill-is-oom";

    // The router calls `rule` for no other kind: no fuel is burnt on what would be passed anyway.
    fn wants() -> Kinds {
        Kinds::EXITED
    }

    // The router warns at load if the sources cannot know these.
    fn needs() -> Known {
        Known::EXIT_STATUS | Known::KILL_REQUESTS
    }

    fn config_schema() -> Option<String> {
        Some(include_str!("../config.schema.json").to_owned())
    }

    fn configure(json: &str) -> Result<Self, Mistakes> {
        config::parse(json)
    }

    fn rule(&self, signal: &Signal, case: &CaseFile, draft: &[Action]) -> Result<Ruling, String> {
        let Event::Exited(exited) = &signal.event else { return Ok(Ruling::Pass) };

        // Only init's exit is the container's. `None` means unknown; most exits are of init.
        let of_exec = exited.is_init == Some(false);
        let by_sigkill = exited.ended_by(SIGKILL) == Some(true);
        let already_sent = case.oom_sent;
        if of_exec || !by_sigkill || already_sent {
            return Ok(Ruling::Pass);
        }
        // What sent the signal is proven, and it was not the kernel's OOM killer.
        if exited.proven_cause().is_some_and(|cause| cause != CauseKind::KernelOom) {
            return Ok(Ruling::Pass);
        }

        // `None` again means unknown: not seen is not the same as not sent.
        let requested = match case.kill_requested(SIGKILL) {
            Some(requested) => requested,
            None => !self.assume_no_kill_requests,
        };
        if requested {
            return Ok(Ruling::Pass);
        }

        // A decision replaces the draft: what the policies before this one wanted is carried over.
        // The OOM goes first, because containerd evaluates it when the exit arrives.
        let mut actions = vec![Action::TaskOom];
        actions.extend(draft.iter().filter(|action| **action != Action::TaskOom).cloned());
        let because = match case.requests {
            Some(_) => "it was ended by SIGKILL, and no kill request was seen",
            None => "it was ended by SIGKILL; assumed: there was no kill request",
        };
        Ok(Ruling::decide(actions, because).by_rule("unrequested-sigkill"))
    }
}

export_policy!(SigkillIsOom);

#[cfg(test)]
mod tests {
    use super::*;

    /// An exit of init by SIGKILL.
    fn killed() -> Exited {
        Exited {
            is_init: Some(true),
            status: Some(137),
            signal: ExitSignal::Some(SIGKILL),
            ..testing::exited()
        }
    }

    /// The same, sent by this.
    fn sent(kind: CauseKind) -> Exited {
        let cause = Cause { kind, name: String::new(), sender: None, sources: vec![] };
        Exited { cause: Some(cause), ..killed() }
    }

    /// There was no kill request, and that is known.
    fn unrequested() -> CaseFile {
        CaseFile { known: Known::KILL_REQUESTS, requests: Some(vec![]), ..testing::case() }
    }

    fn requested(signal: u8) -> CaseFile {
        let requests = vec![(testing::moment(), KillRequest { signal, all: false })];
        CaseFile { requests: Some(requests), ..unrequested() }
    }

    fn decide(policy: &SigkillIsOom, exited: Exited, case: &CaseFile, draft: &[Action]) -> Option<Decision> {
        match policy.rule(&testing::signal(Event::Exited(exited)), case, draft) {
            Ok(Ruling::Decide(decision)) => Some(decision),
            Ok(Ruling::Pass) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn rule(policy: &SigkillIsOom, exited: Exited, case: &CaseFile, draft: &[Action]) -> Option<Vec<Action>> {
        decide(policy, exited, case, draft).map(|decision| decision.actions)
    }

    #[test]
    fn only_an_unrequested_sigkill_of_init_is_an_oom() {
        let unknown = testing::case();
        let ruled = CaseFile { oom_sent: true, ..unrequested() };
        let cases = [
            ("unrequested", killed(), unrequested(), true),
            ("maybe init", Exited { is_init: None, ..killed() }, unrequested(), true),
            ("status alone", Exited { signal: ExitSignal::Unknown, ..killed() }, unrequested(), true),
            ("signal alone", Exited { status: None, ..killed() }, unrequested(), true),
            ("only SIGTERM was requested", killed(), requested(15), true),
            ("SIGKILL was requested", killed(), requested(9), false),
            ("requests unknown", killed(), unknown, false),
            ("an exec's exit", Exited { is_init: Some(false), ..killed() }, unrequested(), false),
            ("by SIGTERM", Exited { signal: ExitSignal::Some(15), ..killed() }, unrequested(), false),
            ("exit(137)", Exited { signal: ExitSignal::None, ..killed() }, unrequested(), false),
            ("exit(0)", Exited { status: Some(0), ..testing::exited() }, unrequested(), false),
            ("by a process of the node", sent(CauseKind::NodeProcess), unrequested(), false),
            ("by the kernel's OOM killer", sent(CauseKind::KernelOom), unrequested(), true),
            ("by an unknown sender", sent(CauseKind::Unknown), unrequested(), true),
            ("nothing known", testing::exited(), unrequested(), false),
            ("sent already", killed(), ruled, false),
        ];
        for (name, exited, case, oom) in cases {
            let expect = oom.then(|| vec![Action::TaskOom]);
            assert_eq!(rule(&SigkillIsOom::default(), exited, &case, &[]), expect, "{name}");
        }
    }

    #[test]
    fn unknown_requests_count_as_none_only_if_configured() {
        let policy = SigkillIsOom::configure(r#"{"assume_no_kill_requests": true}"#).unwrap();
        assert_eq!(rule(&policy, killed(), &testing::case(), &[]), Some(vec![Action::TaskOom]));
        assert_eq!(rule(&policy, killed(), &requested(9), &[]), None);
    }

    #[test]
    fn reason_names_what_is_assumed() {
        let policy = SigkillIsOom::configure(r#"{"assume_no_kill_requests": true}"#).unwrap();
        let because = |case: &CaseFile| decide(&policy, killed(), case, &[]).unwrap().because;
        let assumed = "it was ended by SIGKILL; assumed: there was no kill request";
        assert_eq!(because(&testing::case()), assumed);
        let seen = "it was ended by SIGKILL, and no kill request was seen";
        assert_eq!(because(&unrequested()), seen);
    }

    #[test]
    fn oom_is_added_once_before_the_actions_of_the_draft() {
        let report = Action::Report(Report {
            topic: "/team/exits".to_owned(),
            reason: "Killed".to_owned(),
            message: "it ended".to_owned(),
            fields: vec![],
        });
        let exit = Action::TaskExit(None);
        let cases = [
            (vec![exit.clone()], vec![Action::TaskOom, exit.clone()]),
            (vec![Action::TaskOom, exit.clone()], vec![Action::TaskOom, exit.clone()]),
            (vec![report.clone(), Action::TaskOom], vec![Action::TaskOom, report.clone()]),
            (vec![report.clone(), exit.clone()], vec![Action::TaskOom, report, exit]),
        ];
        for (draft, expect) in cases {
            assert_eq!(
                rule(&SigkillIsOom::default(), killed(), &unrequested(), &draft),
                Some(expect),
                "{draft:?}"
            );
        }
    }

    #[test]
    fn unknown_key_is_named() {
        let mistakes = SigkillIsOom::configure(r#"{"assume_no_kill_request": true}"#).unwrap_err();
        let expect = ("assume_no_kill_request", "unknown key; known are assume_no_kill_requests");
        assert_eq!(mistakes, [(expect.0.to_owned(), expect.1.to_owned())]);
    }
}
