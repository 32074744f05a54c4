//! Policy: a container is `OOMKilled` only if an OOM kill can be what ended it.
//!
//! Kubernetes shows `OOMKilled` once any process of the container was killed for memory, however it
//! ends: a child killed last week turns today's rolling update into one. The reason cannot be
//! withdrawn, so this policy holds each kill back and rules at the exit. It is an OOM if:
//!
//! 1. The status is not 0: an init container that succeeded stays `Completed`.
//! 2. The last kill lies at most `window` before the exit.
//! 3. It was not a stop: the SIGTERM or SIGKILL that ended init was not requested through the
//!    runtime, and neither the runtime nor another process of the node sent it. A kill that hit init
//!    itself counts nevertheless.
//! 4. The status is 137, or among `statuses`, or not known; or the kernel's log names init as the victim.
//!
//! A kill that is reported after the exit is judged by the exit's status alone, without the window.
//! A guest that is lost shortly after a kill counts as an end with an unknown status. Where kills
//! are not counted, an announced OOM counts as one. OOMs of other policies are kept.
//!
//! It is `30-causal-oom.wasm` in the policy directory and needs `oom-writable`: in mode `beside`
//! the shim publishes TaskOOM too, and the policy passes. Rule 3 needs `kill-requests`; without
//! them a stop within the window of a kill is an OOM. Its options, `30-causal-oom.toml`:
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
    /// Longest time between a kill and the exit it causes.
    #[serde(deserialize_with = "time::deserialize")]
    window: Duration,
    /// Statuses besides 137 that count as caused by a kill; none: every status but 0.
    statuses: Option<Vec<u8>>,
}

impl Default for CausalOom {
    fn default() -> Self {
        // A process that loses its child to a kill ends at once, or cleans up for a few seconds; a
        // container that runs for longer has survived the kill.
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
            Event::Pressure(_) | Event::KillRequest(_) | Event::Evidence(_) | Event::Other(_) => Ruling::Pass,
        })
    }
}

export_policy!(CausalOom);

impl CausalOom {
    /// Holds a kill back until the exit; a kill that is reported after the exit is judged at once.
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

    /// Rules on an end after a kill. TaskOOM precedes TaskExit, at which CRI reads it.
    fn ended(&self, signal: &Signal, case: &CaseFile, draft: &[Action]) -> Ruling {
        let exited = signal.exit_of_init();
        let of_exec = matches!(signal.event, Event::Exited(_)) && exited.is_none();
        let Some((at, what)) = case.proven_kill().filter(|_| !of_exec) else { return Ruling::Pass };
        // A kill in the case file came before the end, whatever its timestamp: the final counter
        // read is after the end, and a kill found by it may be dated after it.
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

    /// Whether a kill can have caused this end, and why; if not, also the excluding rule.
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
        if kill.what.named_init() {
            return Ok(format!("{when}, which hit init; status {code}"));
        }
        match exited.proven_cause() {
            Some(CauseKind::KernelOom) => return Ok(format!("{when}, which ended init; status {code}")),
            Some(CauseKind::OomPolicy) => {
                return Ok(format!("{when}, after which systemd ended the rest; status {code}"));
            }
            Some(CauseKind::Runtime) => {
                return Err((format!("{when}, but the container runtime ended it"), "stop"));
            }
            Some(CauseKind::NodeProcess) => {
                return Err((format!("{when}, but {} ended it", sender(exited)), "sender"));
            }
            Some(CauseKind::CgroupKill) => {
                return Err((format!("{when}, but a write to cgroup.kill ended it"), "sender"));
            }
            // The container may have ended itself because of the kill. systemd-oomd may have been
            // called for by the same shortage.
            Some(
                CauseKind::ContainerProcess
                | CauseKind::Crash
                | CauseKind::Oomd
                | CauseKind::Seccomp
                | CauseKind::ResourceLimit
                | CauseKind::Kernel
                | CauseKind::Unknown
                | CauseKind::Other,
            )
            | None => {}
        }
        if let Some(name) = stop(kill, exited, case) {
            return Err((
                format!("{when}, but {name}, which ended it, was requested through the runtime"),
                "stop",
            ));
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

/// The stop that explains the exit: the signal that ended init, if it was requested.
///
/// The OOM killer sends SIGKILL. If it had hit init before the request, init would have been gone
/// when the stop began; a kill after the request that may have hit init was faster than the stop.
fn stop(kill: &Kill<'_>, exited: &Exited, case: &CaseFile) -> Option<&'static str> {
    let ends = [(SIGTERM, "SIGTERM"), (SIGKILL, "SIGKILL")];
    let (signal, name) = ends.into_iter().find(|(signal, _)| exited.ended_by(*signal) == Some(true))?;
    let requested = case.last_request(signal)?;
    let faster = kill.what.hit_init(exited) == Some(true) && kill.at.since(requested).is_some();
    (!faster).then_some(name)
}

/// What sent the signal that ended it, for the reason.
fn sender(exited: &Exited) -> String {
    let comm = exited.cause.as_ref().and_then(|cause| cause.sender.as_ref()).map(|it| it.comm.as_str());
    comm.map_or_else(|| "a process of the node".to_owned(), |comm| format!("{comm}, a process of the node,"))
}

/// The draft of the policies before this one, without TaskOOM.
fn without_oom(draft: &[Action]) -> Vec<Action> {
    draft.iter().filter(|action| **action != Action::TaskOom).cloned().collect()
}

#[cfg(test)]
mod tests;
