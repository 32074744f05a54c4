//! The answers about policies, for a person. docs/operating/policies.md shows them.

use std::collections::BTreeMap;
use std::time::Duration;

use coroner_core::ruling::FaultKind;
use coroner_policy::report::{
    Difference, Inspection, Listing, PolicyState, PolicyStatus, Promoted, Released, Reloaded,
};
use serde_json::Value;

use crate::render::Colour::{Bold, Red, Yellow};
use crate::render::{Screen, Text, actions, on_failure, paint, row, seconds, short_digest, short_id};

/// Columns of a field's name.
const NAME: usize = 14;

pub(super) fn list(listing: &Listing, screen: &mut Screen) {
    screen.line(format!("policies, generation {}", listing.generation));
    if let Some(problem) = &listing.problem {
        screen.line(paint(Red, format!("the last good chain runs: {problem}")));
    }
    let rows: Vec<_> = listing.chain.iter().map(|it| policy(it, screen.now)).collect();
    let headings = ["POLICY", "VERSION", "DIGEST", "MODE", "STATE", "CALLS", "DECIDED", "FAULTS", "P99 CALL"];
    screen.table(&headings, rows);
    for it in &listing.refused {
        let kept = it.kept.as_deref().map(|it| format!(" ({} still runs)", short_digest(it)));
        screen.line(paint(Red, format!("refused: {}{}", it.reason, kept.unwrap_or_default())));
    }
    for PolicyStatus { policy, unmet_needs, .. } in &listing.chain {
        for (source, needs) in unmet_needs {
            let needs = needs.join(", ");
            let line = format!("{policy} needs {needs}, which source {source} cannot know in its mode");
            screen.line(paint(Yellow, line));
        }
    }
}

fn policy(it: &PolicyStatus, now: Duration) -> Vec<Text> {
    let PolicyStatus { policy, version, digest, mode, calls, decided, .. } = it;
    let call = it.call_us.and_then(|it| it.p99).map_or_else(|| "-".to_owned(), |us| format!("{us} us"));
    let (digest, state, faults) = (short_digest(digest), state(it, now), faults(&it.faults));
    row!(policy, version, digest, mode.name(), state, calls, decided, faults, call)
}

fn state(policy: &PolicyStatus, now: Duration) -> Text {
    match policy.state {
        PolicyState::Quarantined => {
            let left = Duration::from_millis(policy.until_ms.unwrap_or(0)).saturating_sub(now);
            let left = seconds(left + Duration::from_secs(1));
            paint(Red, format!("quarantined for {left}"))
        }
        PolicyState::Trial => paint(Yellow, "trial"),
        PolicyState::Running => "running".into(),
    }
}

fn faults(faults: &BTreeMap<FaultKind, u64>) -> Text {
    let mut counts: Vec<_> = faults.iter().map(|(kind, count)| (kind.name(), count)).collect();
    counts.sort_unstable();
    let counts: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    if counts.is_empty() { "none".into() } else { paint(Red, counts.join(", ")) }
}

pub(super) fn inspect(inspection: &Inspection, screen: &mut Screen) {
    let policy = &inspection.status;
    screen.field(NAME, "policy", paint(Bold, &policy.policy));
    screen.field(NAME, "version", &policy.version);
    screen.field(NAME, "digest", &policy.digest);
    screen.field(NAME, "mode", policy.mode.name());
    screen.field(NAME, "state", state(policy, screen.now));
    screen.field(NAME, "size", format!("{} bytes", inspection.size));
    screen.field(NAME, "imports", joined(&inspection.imports));
    screen.field(NAME, "wants", joined(&inspection.wants));
    screen.field(NAME, "needs", joined(&inspection.needs));
    for (source, needs) in &policy.unmet_needs {
        screen.field(NAME, "", paint(Yellow, format!("source {source} cannot know {}", joined(needs))));
    }
    let limits: Vec<String> =
        inspection.limits.iter().map(|(name, it)| format!("{name} {}", bare(it))).collect();
    screen.field(NAME, "limits", limits.join(", "));
    screen.field(NAME, "on failure", on_failure(inspection.on_failure));
    screen.field(NAME, "config", inspection.config.to_string());
    screen.field(
        NAME,
        "config schema",
        inspection.config_schema.as_ref().map_or_else(|| "none".to_owned(), bare),
    );
    screen.field(NAME, "calls", format!("{}, {} decided", policy.calls, policy.decided));
    screen.field(NAME, "faults", faults(&policy.faults));
    for fault in &inspection.last_faults {
        let ago = seconds(screen.now.saturating_sub(Duration::from_millis(fault.at_ms)));
        let (kind, container) = (fault.kind.name(), &fault.container);
        let fault = format!("{ago} ago: {kind} on {container}: {}", fault.message);
        screen.field(NAME, "", paint(Red, fault));
    }
    if let Some(report) = &inspection.difference {
        difference(report, screen);
    }
}

pub(super) fn reload(reloaded: &Reloaded, screen: &mut Screen) {
    let what = if reloaded.changed { "swapped" } else { "nothing to swap" };
    screen.line(format!("{what}, in {} ms", reloaded.took_ms));
    list(&reloaded.listing, screen);
}

pub(super) fn promote(promoted: &Promoted, screen: &mut Screen) {
    if let Some(report) = &promoted.difference {
        difference(report, screen);
    }
    match &promoted.because {
        Some(because) => screen.line(paint(Red, format!("not promoted: {because}"))),
        None => screen.line("promoted: its rulings count from now on"),
    }
}

pub(super) fn release(Released { released, policy, .. }: &Released, screen: &mut Screen) {
    match released {
        true => screen.line(format!("quarantine lifted: {policy}")),
        false => screen.line(format!("{policy} was not quarantined")),
    }
}

fn difference(report: &Difference, screen: &mut Screen) {
    let Difference { signals, decided, faults, differs, .. } = report;
    screen.line(format!(
        "shadow report: {signals} evaluated, {decided} decided, {faults} errors, {differs} would differ"
    ));
    let rows = report.rules.iter().map(|(rule, it)| {
        let rule = if rule.is_empty() { "(no name)" } else { rule };
        row!(rule, &it.decided, &it.differs)
    });
    if rows.len() > 0 {
        screen.table(&["RULE", "DECIDED", "WOULD DIFFER"], rows);
    }
    for it in &report.examples {
        let container = it.pod.clone().unwrap_or_else(|| short_id(&it.container));
        let (enforced, would) = (actions(&it.enforced), actions(&it.would));
        screen.line(format!("{container}: {enforced} would be {would}, because {}", it.because));
    }
}

fn joined(words: &[String]) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// A value without the quotes of a string.
fn bare(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
