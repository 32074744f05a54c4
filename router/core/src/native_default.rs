//! The native default: the first draft of every chain, and the ruling when a draft is illegal.

use crate::case::Case;
use crate::mode::Known;
use crate::ruling::{Action, Decision};
use crate::signal::{Event, Evidence, Level, OomKilled, Signal};

/// The native Kubernetes semantics: the first draft of every chain, and the fallback of every
/// failure.
pub fn default_ruling(signal: &Signal, case: &Case) -> Decision {
    let (actions, because, rule) = match &signal.event {
        Event::OomKill(kill) => match (kill.added, kill.evidence) {
            (Some(0), _) => (vec![], "memory ran out, nothing was killed".to_owned(), "oom-without-kill"),
            _ if is_within(kill) => {
                (vec![], "a child was killed at a limit within the container".to_owned(), "oom-kill-within")
            }
            (Some(added), Evidence::Counter | Evidence::Inferred) => (
                vec![Action::TaskOom],
                format!("the kernel's OOM kill counter rose by {added}"),
                "oom-kill-counter",
            ),
            (Some(added), Evidence::Announced) => (
                vec![Action::TaskOom],
                format!("OOM kills reported without the container's counter: {added}"),
                "oom-kill-reported",
            ),
            (None, Evidence::Announced) => (
                vec![Action::TaskOom],
                "an OOM was announced, and nothing counts kills here".to_owned(),
                "oom-announced",
            ),
            (None, Evidence::Counter | Evidence::Inferred) => {
                (vec![], "no kill counter rose, and nobody announced an OOM".to_owned(), "oom-unproven")
            }
        },
        Event::Exited(_) | Event::GuestLost(_) => {
            if case.knows(Known::ExitWritable) {
                (vec![Action::TaskExit(None)], "the container ended: its real status".to_owned(), "exit")
            } else {
                (vec![], "the shim tells this exit itself".to_owned(), "exit-not-ours")
            }
        }
        Event::Pressure(_)
        | Event::KillRequest(_)
        | Event::Evidence(_)
        | Event::Other(_)
        | Event::Forwarded(_) => (vec![], "nothing is published for this kind".to_owned(), "no-action"),
    };
    Decision { actions, because, rule: Some(rule.to_owned()) }
}

/// The limit is one that the workload set within the container, and the container's init was not
/// killed: the container is not out of memory. Of several kills in one report only the last is
/// described.
fn is_within(kill: &OomKilled) -> bool {
    let spared_init = kill.victim.as_ref().is_some_and(|it| it.is_init == Some(false));
    kill.level == Level::Child && spared_init && kill.added == Some(1) && kill.group != Some(true)
}
