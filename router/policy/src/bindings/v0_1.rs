//! Contract 0.1.0: lowers the router's types to a component's, and lifts its answer.
//!
//! Signals are lowered by reference: no string is copied for the call.

use coroner_core::case::Case;
use coroner_core::mode::Known as K;
use coroner_core::ruling::{Action, Decision, Report, Ruling};
use coroner_core::signal::{self, Signal};
use wasmtime::AsContextMut;

use super::{Description, Wants};
use crate::policy_log::LogLevel;

mod generated {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit/0.1.0",
        world: "policy",
        ownership: Borrowing { duplicate_if_necessary: true },
        imports: { default: trappable },
    });
}

pub(crate) use generated::coroner::policy::log;
use generated::coroner::policy::types as wit;
use generated::exports::coroner::policy::rules::Guest;
pub(crate) use generated::{Policy, PolicyPre};

fn rules(policy: &Policy) -> &Guest {
    policy.coroner_policy_rules()
}

pub(super) fn describe(policy: &Policy, store: impl AsContextMut) -> wasmtime::Result<Description> {
    let answer = rules(policy).call_describe(store)?;
    let mut kinds: Vec<&str> =
        KINDS.iter().filter(|(_, flag)| answer.wants & *flag == *flag).map(|(name, _)| *name).collect();
    if answer.wants & wit::Kinds::OTHER == wit::Kinds::OTHER {
        // A kind that this version has no name for.
        kinds.push("evidence");
    }
    Ok(Description {
        name: answer.name,
        version: answer.version,
        wants: Wants::of(kinds.into_iter()),
        needs: KNOWN.iter().filter(|(_, flag)| answer.needs & *flag == *flag).map(|(it, _)| *it).collect(),
        unknown: Vec::new(),
        config_schema: answer.config_schema,
    })
}

pub(super) fn configure(
    policy: &Policy,
    store: impl AsContextMut,
    json: &str,
) -> wasmtime::Result<Result<(), Vec<(String, String)>>> {
    rules(policy).call_configure(store, json)
}

pub(super) fn rule(
    policy: &Policy,
    store: impl AsContextMut,
    signal: &Signal,
    case: &Case,
    draft: &[Action],
) -> wasmtime::Result<Result<Ruling, String>> {
    let answer = lowered(signal, case, draft, |signal, case, draft| {
        rules(policy).call_rule(store, signal, case, draft)
    })?;
    Ok(answer.map(Ruling::from))
}

const KINDS: [(&str, wit::Kinds); 6] = [
    ("oom-kill", wit::Kinds::OOM_KILL),
    ("exited", wit::Kinds::EXITED),
    ("pressure", wit::Kinds::PRESSURE),
    ("kill-request", wit::Kinds::KILL_REQUEST),
    ("guest-lost", wit::Kinds::GUEST_LOST),
    ("other", wit::Kinds::OTHER),
];

/// Lowers the three arguments of `rule` and calls `call` with them.
fn lowered<R>(
    signal: &Signal,
    case: &Case,
    draft: &[Action],
    call: impl FnOnce(wit::Signal<'_>, wit::CaseFile<'_>, &[wit::ActionParam<'_>]) -> R,
) -> R {
    let signal_attributes = pairs(&signal.attributes);
    let case_attributes = pairs(&case.attributes);
    let requests: Option<Vec<_>> = case.requests.as_ref().map(|requests| {
        requests
            .iter()
            .map(|(at, r)| (moment(*at), wit::KillRequest { signal: r.signal, all: r.all }))
            .collect()
    });
    let fields: Vec<Vec<(&str, &str)>> = draft
        .iter()
        .map(|action| match action {
            Action::Report(report) => pairs(&report.fields),
            Action::TaskOom | Action::TaskExit(_) => Vec::new(),
        })
        .collect();
    let draft: Vec<_> =
        draft.iter().zip(&fields).map(|(action, fields)| lower_action(action, fields)).collect();
    let signal = wit::Signal {
        id: &signal.id,
        at: moment(signal.at),
        target: target(&signal.target),
        event: event(&signal.event),
        attributes: &signal_attributes,
    };
    let case = wit::CaseFile {
        known: known(&case.known),
        started: case.started.map(moment),
        memory_limit: case.memory_limit,
        memory_last: case.memory_last,
        kills: case.kills,
        first_kill: case.first_kill.map(moment),
        last_kill: case.last_kill.as_ref().map(|(at, kill)| (moment(*at), oom_kill(kill))),
        requests: requests.as_deref(),
        last_pressure: case.last_pressure.map(|(at, p)| (moment(at), pressure(&p))),
        exit: case.exit.as_ref().map(exited),
        oom_sent: case.oom_sent,
        exit_sent: case.exit_sent,
        attributes: &case_attributes,
    };
    call(signal, case, &draft)
}

impl From<wit::Ruling> for Ruling {
    fn from(ruling: wit::Ruling) -> Self {
        match ruling {
            wit::Ruling::Pass => Self::Pass,
            wit::Ruling::Decide(decision) => Self::Decide(Decision {
                actions: decision.actions.into_iter().map(lift_action).collect(),
                because: decision.because,
                rule: decision.rule,
            }),
        }
    }
}

const KNOWN: [(K, wit::Known); 10] = [
    (K::KillCount, wit::Known::KILL_COUNT),
    (K::Victim, wit::Known::VICTIM),
    (K::ExitStatus, wit::Known::EXIT_STATUS),
    (K::KillRequests, wit::Known::KILL_REQUESTS),
    (K::Pressure, wit::Known::PRESSURE),
    (K::Memory, wit::Known::MEMORY),
    (K::Owner, wit::Known::OWNER),
    (K::OomWritable, wit::Known::OOM_WRITABLE),
    (K::ExitWritable, wit::Known::EXIT_WRITABLE),
    (K::StatusWritable, wit::Known::STATUS_WRITABLE),
];

fn known(known: &[K]) -> wit::Known {
    KNOWN
        .iter()
        .filter(|(it, _)| known.contains(it))
        .fold(wit::Known::default(), |flags, (_, flag)| flags | *flag)
}

fn pairs(pairs: &[(String, String)]) -> Vec<(&str, &str)> {
    pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn moment(at: signal::Moment) -> wit::Moment {
    wit::Moment { boot_ns: at.boot_ns, wall_ms: at.wall_ms, received_ms: at.received_ms }
}

fn target(it: &signal::Target) -> wit::Target<'_> {
    wit::Target {
        node: &it.node,
        guest: it.guest.as_deref(),
        containerd_namespace: it.containerd_namespace.as_deref(),
        sandbox_id: it.sandbox_id.as_deref(),
        container_id: it.container_id.as_str(),
        exec_id: it.exec_id.as_deref(),
        owner: it.owner.as_ref().map(|owner| wit::Owner {
            pod: owner.pod.as_deref(),
            namespace: owner.namespace.as_deref(),
            pod_uid: owner.pod_uid.as_deref(),
            container: owner.container.as_deref(),
            init_container: owner.init_container,
            image: owner.image.as_deref(),
        }),
    }
}

fn event(event: &signal::Event) -> wit::Event<'_> {
    match event {
        signal::Event::OomKill(kill) => wit::Event::OomKill(oom_kill(kill)),
        signal::Event::Exited(it) => wit::Event::Exited(exited(it)),
        signal::Event::Pressure(it) => wit::Event::Pressure(pressure(it)),
        signal::Event::KillRequest(it) => {
            wit::Event::KillRequest(wit::KillRequest { signal: it.signal, all: it.all })
        }
        signal::Event::GuestLost(it) => wit::Event::GuestLost(wit::GuestLost { reason: &it.reason }),
        signal::Event::Other(it) => wit::Event::Other(wit::Other { kind: &it.kind, json: &it.json }),
        signal::Event::Evidence(_) => wit::Event::Other(wit::Other { kind: event.kind(), json: "{}" }),
        // The chain does not rule on these.
        signal::Event::Forwarded(it) => wit::Event::Other(wit::Other { kind: &it.topic, json: "{}" }),
    }
}

fn oom_kill(kill: &signal::OomKilled) -> wit::OomKill<'_> {
    wit::OomKill {
        added: kill.added,
        total: kill.total,
        evidence: match kill.evidence {
            signal::Evidence::Counter => wit::Evidence::Counter,
            signal::Evidence::Announced => wit::Evidence::Announced,
            signal::Evidence::Inferred => wit::Evidence::Inferred,
        },
        group: kill.group,
        level: match kill.level {
            signal::Level::Container => wit::Level::Container,
            signal::Level::Child => wit::Level::Child,
            signal::Level::Ancestor => wit::Level::Ancestor,
            signal::Level::Guest => wit::Level::Guest,
            signal::Level::Unknown => wit::Level::Unknown,
        },
        cgroup: kill.cgroup.as_deref(),
        limit_bytes: kill.limit_bytes,
        victim: kill.victim.as_ref().map(|victim| wit::Victim {
            pid: victim.pid,
            comm: &victim.comm,
            is_init: victim.is_init,
        }),
        late: kill.late,
    }
}

fn exited(it: &signal::Exited) -> wit::Exited {
    wit::Exited {
        pid: it.pid,
        is_init: it.is_init,
        status: it.status,
        // This version cannot distinguish that no signal ended it.
        signal: it.signal,
        core: it.core,
        reconciled: it.reconciled,
    }
}

fn pressure(it: &signal::Pressure) -> wit::Pressure {
    wit::Pressure {
        of: match it.of {
            signal::PressureOf::Memory => wit::PressureOf::Memory,
            signal::PressureOf::Cpu => wit::PressureOf::Cpu,
            signal::PressureOf::Io => wit::PressureOf::Io,
        },
        full: it.full,
        avg10_centi: it.avg10_centi,
        avg60_centi: it.avg60_centi,
        total_us: it.total_us,
        stalled_us: it.stalled_us,
        high_events: it.high_events,
    }
}

fn lower_action<'a>(action: &'a Action, fields: &'a [(&'a str, &'a str)]) -> wit::ActionParam<'a> {
    match action {
        Action::TaskOom => wit::ActionParam::TaskOom,
        Action::TaskExit(status) => wit::ActionParam::TaskExit(*status),
        Action::Report(report) => wit::ActionParam::Report(wit::ReportParam {
            topic: &report.topic,
            reason: &report.reason,
            message: &report.message,
            fields,
        }),
    }
}

fn lift_action(action: wit::ActionResult) -> Action {
    match action {
        wit::ActionResult::TaskOom => Action::TaskOom,
        wit::ActionResult::TaskExit(status) => Action::TaskExit(status),
        wit::ActionResult::Report(report) => Action::Report(Report {
            topic: report.topic,
            reason: report.reason,
            message: report.message,
            fields: report.fields,
        }),
    }
}

impl From<log::Severity> for LogLevel {
    fn from(severity: log::Severity) -> Self {
        match severity {
            log::Severity::Error => Self::Error,
            log::Severity::Warn => Self::Warn,
            log::Severity::Info => Self::Info,
            log::Severity::Debug => Self::Debug,
        }
    }
}
