//! The four facts at the top of the page: cause, limit, victim, and what was published.

use coroner_core::signal::{CauseKind, Level, Witness};
use coroner_core::verdict::{Certainty, CriReason, EndedBy, ExitFacts, KillFacts, Verdict};

use super::html::Html;
use crate::explain::kill_lines::{process, uses, victim_size};
use crate::explain::sentence::author;
use crate::render::{cause, signal_name, size};

/// One of them: its name, its value, and what else is known of it.
struct FactCard {
    name: &'static str,
    value: String,
    details: Vec<String>,
    is_bad: bool,
}

pub(super) fn write(html: &mut Html, verdict: &Verdict, own_limit: Option<u64>) {
    html.element("dl", &[("class", &"facts")], |html| {
        for fact in [cause_of(verdict), limit(verdict, own_limit), victim(verdict), published(verdict)] {
            let class = if fact.is_bad { "bad" } else { "" };
            html.element("div", &[("class", &class)], |html| {
                html.with("dt", &[], fact.name);
                html.with("dd", &[("class", &"value")], &fact.value);
                for detail in fact.details {
                    html.with("dd", &[("class", &"detail")], detail);
                }
            });
        }
    });
}

fn cause_of(verdict: &Verdict) -> FactCard {
    let exit = verdict.exit.as_ref();
    let status = exit.and_then(|it| it.status);
    let value = match verdict.ended_by {
        EndedBy::OomKill => "OOM kill".to_owned(),
        EndedBy::Signal => exit.and_then(|it| it.signal).map_or("a signal".to_owned(), signal_name),
        EndedBy::Code => status.map_or("an exit code".to_owned(), |it| format!("exit code {it}")),
        EndedBy::CodeOrSignal => status.map_or("not known".to_owned(), |it| format!("status {it}")),
        EndedBy::GuestLost => "guest lost".to_owned(),
        EndedBy::Nothing => "it runs".to_owned(),
    };
    let mut details: Vec<String> = exit.and_then(sent).into_iter().collect();
    details.push(certainty(verdict));
    if let Some(kill) = &verdict.kill {
        details.push(format!("kill shown by {}", witnesses(kill)));
    }
    FactCard { name: "Cause", value, details, is_bad: verdict.ended_by != EndedBy::Nothing }
}

/// What sent the signal.
fn sent(exit: &ExitFacts) -> Option<String> {
    let is_known = exit.cause.as_ref().filter(|it| it.kind != CauseKind::KernelOom);
    is_known.and_then(cause).or_else(|| {
        let name = signal_name(exit.requested?);
        Some(format!("{name} was sent through the container runtime before"))
    })
}

fn certainty(verdict: &Verdict) -> String {
    let text = match (verdict.certainty, verdict.ended_by) {
        (_, EndedBy::Nothing) => "no record has its end",
        (Certainty::Seen, _) => "reported by the kernel or the runtime",
        (Certainty::Derived, _) => "derived from other facts",
        (Certainty::Open, EndedBy::CodeOrSignal) => "whether a code or a signal is not known",
        (Certainty::Open, _) => "what sent it is not known",
    };
    text.to_owned()
}

fn witnesses(kill: &KillFacts) -> String {
    let name = |it: &Witness| match it {
        Witness::Counter => "the container's counter",
        Witness::PodCounter => "the pod's counter",
        Witness::KernelLog => "the kernel's log",
        Witness::Trace => "the kernel's trace",
        Witness::Announced => "an announcement",
        Witness::Inferred => "a conclusion of the router",
    };
    kill.witnesses.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn limit(verdict: &Verdict, own: Option<u64>) -> FactCard {
    let Some(kill) = &verdict.kill else {
        let value = own.map_or("not known".to_owned(), size);
        let details = vec!["its own; no OOM kill is recorded".to_owned()];
        return FactCard { name: "Memory limit", value, details, is_bad: false };
    };
    let limit = &kill.limit;
    let value = match (limit.level, limit.bytes) {
        (Level::Guest, _) => "the whole machine".to_owned(),
        (_, Some(bytes)) => size(bytes),
        (Level::Container | Level::Unknown, None) => limit.own_bytes.map_or("not known".to_owned(), size),
        (Level::Child | Level::Ancestor, None) => "not known".to_owned(),
    };
    let level = match limit.level {
        Level::Container => "of the container itself",
        Level::Child => "of a cgroup within the container",
        Level::Ancestor => "of a cgroup above the container",
        Level::Guest => "it had no memory left",
        Level::Unknown => "of the container; whether it was hit is not known",
    };
    let mut details = vec![level.to_owned()];
    details.extend(limit.cgroup.clone().filter(|it| it != "/" && limit.level != Level::Container));
    let uses = uses(verdict);
    details.extend((!uses.is_empty()).then(|| uses.join(", ")));
    FactCard { name: "Limit that was hit", value, details, is_bad: true }
}

fn victim(verdict: &Verdict) -> FactCard {
    let Some(kill) = &verdict.kill else {
        let details = vec!["no OOM kill is recorded".to_owned()];
        return FactCard { name: "Victim", value: "none".to_owned(), details, is_bad: false };
    };
    let victim = kill.victim.as_ref();
    let value = victim.map_or("not known".to_owned(), |it| process(it.comm.as_deref(), it.pid));
    let role = match (kill.hit_init, victim.and_then(|it| it.is_init)) {
        (_, Some(true)) => "the first process of the container",
        (Some(true), _) => "the kill ended the first process",
        (_, Some(false)) => "a child, not the first process",
        (Some(false), None) => "not the first process",
        (None, None) => "whether the first process is not known",
    };
    let mut details = vec![role.to_owned()];
    details.extend(victim.and_then(victim_size));
    if kill.group == Some(true) {
        let processes = kill.processes.filter(|it| *it > 1).map(|it| format!(", {it} processes"));
        details.push(format!("the whole container was killed{}", processes.unwrap_or_default()));
    }
    FactCard { name: "Victim", value, details, is_bad: true }
}

fn published(verdict: &Verdict) -> FactCard {
    let published = &verdict.published;
    let status = published.status.map(|it| format!("status {it}"));
    let reason = published.reason.map(|it| it.name().to_owned());
    let parts: Vec<String> = [reason, status].into_iter().flatten().collect();
    let value = if parts.is_empty() { "not known".to_owned() } else { parts.join(", ") };
    let mut details = Vec::new();
    let is_oom = published.reason == Some(CriReason::OomKilled);
    let (shown, action) = match is_oom {
        true => (published.oom.as_ref(), "task-oom"),
        false => (published.exit.as_ref(), "task-exit"),
    };
    details.extend(shown.and_then(|it| it.by.as_ref()).map(|it| author(it, action)));
    let queued = [&published.oom, &published.exit].into_iter().flatten();
    let queued: Vec<(&String, bool)> = queued.filter_map(|it| it.sink.as_ref().zip(it.delivered)).collect();
    if let Some((sink, _)) = queued.first() {
        details.push(match queued.iter().all(|(_, delivered)| *delivered) {
            true => format!("{sink} has it"),
            false => format!("{sink} does not have all of it yet"),
        });
    }
    if published.exit.is_none() && verdict.exit.is_some() {
        details.push("its shim publishes the exit".to_owned());
    }
    FactCard { name: "Shown by CRI", value, details, is_bad: false }
}
