//! The answers about the router, its sources, guests and sinks, for a person.

use std::collections::BTreeMap;
use std::time::Duration;

use coroner::node::GuestStatus;
use coroner::node::LinkState;
use coroner::node::admin::{GuestList, SinkStatus, SourceStatus, Status, UnmanagedPod, UnwatchedContainer};

use super::policies;
use crate::render::Colour::{Bold, Red, Yellow};
use crate::render::{Screen, Text, paint, row, seconds, short_id};

pub(super) fn status(status: &Status, screen: &mut Screen) {
    let Status { version, node, pid, .. } = status;
    let up = seconds(Duration::from_millis(status.uptime_ms));
    screen.line(paint(Bold, format!("coroner {version} on {node}, up {up}, pid {pid}")));
    if status.shadow_all {
        screen.line(paint(Yellow, "runs with --shadow-all: the native default rules"));
    }
    if let Some(because) = &status.degraded {
        screen.line(paint(Yellow, format!("degraded: {because}")));
    }
    screen.line("");
    policies::list(&status.listing, screen);
    screen.line("");
    screen
        .table(&["SOURCE", "MODE", "LINK", "SIGNALS", "LOST", "REFUSED"], status.sources.iter().map(source));
    for SourceStatus { source, problem, .. } in &status.sources {
        problem_of("source", source, problem.as_deref(), screen);
    }
    if !status.guests.is_empty() {
        screen.line("");
        guests(&status.guests, screen);
    }
    if !status.unmanaged.is_empty() {
        screen.line("");
        unmanaged(&status.unmanaged, screen);
    }
    if let Some(containers) = status.unwatched.as_ref().filter(|it| !it.is_empty()) {
        screen.line("");
        unwatched(containers, screen);
    }
    screen.line("");
    let rows: Vec<_> = status.sinks.iter().map(|it| sink(it, screen.now)).collect();
    screen.table(&["SINK", "TYPE", "DELIVERED", "QUEUED", "OLDEST", "FAILED", "DROPPED"], rows);
    for SinkStatus { sink, problem, .. } in &status.sinks {
        problem_of("sink", sink, problem.as_deref(), screen);
    }
}

fn source(it: &SourceStatus) -> Vec<Text> {
    let SourceStatus { source, mode, signals, lost, refused, .. } = it;
    let link = if it.connected { "up".into() } else { paint(Red, "down") };
    row!(source, mode.name(), link, signals, lost, refused)
}

/// Pods that started without the router, which stay so until they are recreated.
fn unmanaged(pods: &[UnmanagedPod], screen: &mut Screen) {
    let now = screen.now;
    let rows = pods.iter().map(|it| {
        let since = seconds(now.saturating_sub(Duration::from_millis(it.since_ms)));
        row!(pod_name(it), short_id(&it.id), since, it.because.as_str())
    });
    screen.table(&["UNMANAGED POD", "ID", "SINCE", "BECAUSE"], rows);
}

/// Containers that the node's agent does not find, and the agent's `--root` that finds them.
fn unwatched(containers: &[UnwatchedContainer], screen: &mut Screen) {
    let rows = containers.iter().map(|it| {
        let root = it.root.as_ref().map_or_else(|| "-".to_owned(), |root| format!("--root +{root}"));
        row!(short_id(&it.id), it.containerd_namespace.as_str(), it.cgroup.as_str(), root)
    });
    screen.table(&["UNWATCHED CONTAINER", "NAMESPACE", "CGROUP", "FOUND BY THE AGENT WITH"], rows);
}

/// `namespace/pod`; without CRI, containerd's namespace.
fn pod_name(it: &UnmanagedPod) -> String {
    match (&it.namespace, &it.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        _ => format!("{} (not a pod)", it.containerd_namespace),
    }
}

fn sink(it: &SinkStatus, now: Duration) -> Vec<Text> {
    let SinkStatus { sink, r#type, delivered, queued, failed, .. } = it;
    let oldest = it.queued_since_ms.map(|since| seconds(now.saturating_sub(Duration::from_millis(since))));
    let oldest = oldest.unwrap_or_else(|| "-".to_owned());
    row!(sink, r#type, delivered, queued, oldest, failed, reasons(&it.dropped))
}

/// `3 (full 2, refused 1)`
fn reasons(counts: &BTreeMap<String, u64>) -> String {
    let counts: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    let sum: u64 = counts.iter().map(|(_, count)| **count).sum();
    let each: Vec<String> = counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    if each.is_empty() { "0".to_owned() } else { format!("{sum} ({})", each.join(", ")) }
}

fn problem_of(kind: &str, name: &str, problem: Option<&str>, screen: &mut Screen) {
    if let Some(problem) = problem {
        screen.line(paint(Red, format!("{kind} {name}: {problem}")));
    }
}

pub(super) fn guest_list(GuestList { guests }: &GuestList, screen: &mut Screen) {
    self::guests(guests, screen);
}

fn guests(guests: &[GuestStatus], screen: &mut Screen) {
    let headings =
        ["GUEST", "TYPE", "MODE", "STATE", "CONTAINERS", "SIGNALS", "REFUSED", "HELD BACK", "PROBLEM"];
    screen.table(&headings, guests.iter().map(guest));
}

fn guest(it: &GuestStatus) -> Vec<Text> {
    let colour = match it.state {
        LinkState::Up => None,
        LinkState::Lost => Some(Red),
        LinkState::Connecting | LinkState::Down => Some(Yellow),
    };
    let GuestStatus { guest, r#type, mode, containers, signals, refused, held_back, .. } = it;
    let (state, problem) = (paint(colour, it.state.name()), it.problem.as_deref().unwrap_or("-"));
    row!(guest, r#type, mode.name(), state, containers, signals, refused, held_back, problem)
}

pub(super) fn added(GuestStatus { guest, address, .. }: &GuestStatus, screen: &mut Screen) {
    screen.line(format!("guest {guest} is followed at {address}; `coroner guest list` shows when it is up"));
}

pub(super) fn removed(GuestStatus { guest, containers, .. }: &GuestStatus, screen: &mut Screen) {
    screen.line(format!("guest {guest} is removed; containers reported as lost: {containers}"));
}
