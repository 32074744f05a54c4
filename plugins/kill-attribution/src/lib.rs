//! Policy: reports the sender of the SIGTERM or SIGKILL that ended a container.
//!
//! The statuses 143 and 137 do not show the sender: the kubelet, the kernel's OOM killer, or the
//! application itself. The policy adds a report to such an exit of init. Its `reason` is one of:
//!
//! - `oom`: the kernel's OOM killer sent it, or systemd after an OOM kill; or, where the sender was
//!   not seen: a kill for memory lies at most `window` before the exit, and hit init.
//! - `requested`: it was requested through the runtime, or the runtime sent it.
//! - `self`: a process of the container sent it; or, where the sender was not seen: it was not
//!   requested, and no kill was counted.
//! - `node`: another process outside of the container sent it.
//! - `cgroup-kill`: a write to `cgroup.kill` that was not requested.
//! - `oomd`: systemd-oomd sent it.
//! - `unknown`: otherwise. The message names what is not known, or what does not explain the exit.
//!
//! Messages: `requested: SIGTERM, then SIGKILL 2.0 s later`. Fields, where known: `attribution`,
//! `signal`, `kills`; in ms `kill-to-exit-ms`, `request-to-exit-ms`, `term-to-kill-ms`.
//!
//! It is `80-kill-attribution.wasm` in the policy directory. It needs `kill-requests`, seen in mode
//! `proxy`; without them it reports `oom` and `unknown` only. Options, `80-kill-attribution.toml`:
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

/// The router's limit on reports of one signal: another one would make the whole draft illegal.
const MAX_REPORTS: usize = 16;
/// Bytes of a report's topic.
const MAX_TOPIC: usize = 128;

/// The policy is its own configuration: the fields are the keys of `[config]`.
#[derive(Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KillAttribution {
    /// The topic of its reports.
    topic: String,
    /// Longest time between a kill and the exit it causes.
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
            // The router does not route reports with these topics.
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
        let (reason, detail) = proven(&end, exited).unwrap_or_else(|| self.attribute(&end, exited, case));
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
    /// The last request of this signal through the runtime, and how long before the exit it was.
    request: Option<(&'a Moment, Duration)>,
    /// From the SIGTERM before it to the requested SIGKILL.
    grace: Option<Duration>,
}

impl<'a> End<'a> {
    fn of(signal: &Signal, exited: &Exited, case: &'a CaseFile) -> Option<Self> {
        let ends = [(SIGTERM, "SIGTERM"), (SIGKILL, "SIGKILL")];
        let (number, name) = ends.into_iter().find(|(number, _)| exited.ended_by(*number) == Some(true))?;
        // The case file's events came before the exit; one dated after it was only read after it.
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

/// The time from the last SIGTERM before the last SIGKILL to that SIGKILL.
fn grace(case: &CaseFile) -> Option<Duration> {
    let requests = case.requests.as_ref()?;
    let last = requests.iter().rposition(|(_, request)| request.signal == SIGKILL)?;
    let (term, _) = requests[..last].iter().rfind(|(_, request)| request.signal == SIGTERM)?;
    requests[last].0.since(term)
}

impl KillAttribution {
    /// The reason, and the evidence for it.
    fn attribute(&self, end: &End<'_>, exited: &Exited, case: &CaseFile) -> (&'static str, String) {
        let name = end.name;
        if let Some((at, kill, before)) = end.kill {
            let named = kill.named_init();
            // An init killed before the request cannot receive it: an earlier kill hit another
            // process. A later one was faster. If the log names init, the kill ended it.
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
            None => {
                ("self", format!("{name}, and neither a request to the runtime was seen nor a kill counted"))
            }
            Some(doubt) => ("unknown", format!("{name}, and {doubt}")),
        }
    }
}

/// The reason, where what sent the signal is proven and needs no request to explain it.
fn proven(end: &End<'_>, exited: &Exited) -> Option<(&'static str, String)> {
    let cause = exited.cause.as_ref()?;
    let name = end.name;
    let sender = match &cause.sender {
        Some(sender) => format!("{} (pid {})", sender.comm, sender.pid),
        None => "a process".to_owned(),
    };
    Some(match cause.kind {
        CauseKind::ContainerProcess => ("self", format!("{name}, sent by {sender} of the container")),
        CauseKind::NodeProcess => ("node", format!("{name}, sent by {sender} outside of the container")),
        CauseKind::Oomd => ("oomd", format!("{name}, by systemd-oomd")),
        CauseKind::OomPolicy => ("oom", format!("{name}, by systemd after an OOM kill in the unit")),
        CauseKind::KernelOom => ("oom", format!("{name}, by the kernel's OOM killer")),
        CauseKind::CgroupKill if end.request.is_none() => {
            ("cgroup-kill", format!("{name}, by {sender} through cgroup.kill"))
        }
        CauseKind::Runtime if end.request.is_none() => {
            ("requested", format!("{name}, sent by {sender} of the container runtime"))
        }
        _ => return None,
    })
}

/// Why it is uncertain that the signal came from the container itself; none if it is certain.
fn doubt(end: &End<'_>, exited: &Exited, case: &CaseFile) -> Option<String> {
    if exited.reconciled {
        return Some("nothing watched when it ended".to_owned());
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
mod tests;
