//! Contract 0.2.0: lowers the router's types to a component's, and lifts its answer.
//!
//! Signals are lowered by reference: no string is copied for the call.

use coroner_core::case::Case;
use coroner_core::mode::Known as K;
use coroner_core::ruling::{Action, Decision, Report, Ruling};
use coroner_core::signal::{self, CauseKind, ExitSignal, KINDS, Signal, Witness};
use wasmtime::AsContextMut;

use super::{Description, Wants};
use crate::policy_log::LogLevel;

mod generated {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit/0.2.0",
        world: "policy",
        ownership: Borrowing { duplicate_if_necessary: true },
        imports: { default: trappable },
    });
}

use generated::coroner::policy::types as wit;
pub(crate) use generated::coroner::policy::{evidence, log};
use generated::exports::coroner::policy::rules::Guest;
pub(crate) use generated::{Policy, PolicyPre};

fn rules(policy: &Policy) -> &Guest {
    policy.coroner_policy_rules()
}

pub(super) fn describe(policy: &Policy, store: impl AsContextMut) -> wasmtime::Result<Description> {
    let answer = rules(policy).call_describe(store)?;
    let known = |name: &String| KNOWN.iter().map(|(it, _)| *it).find(|it| it.name() == name);
    let kinds = answer.wants.iter().filter(|name| !KINDS.contains(&name.as_str()));
    let facts = answer.needs.iter().filter(|name| known(name).is_none());
    Ok(Description {
        wants: Wants::of(answer.wants.iter().map(String::as_str)),
        needs: answer.needs.iter().filter_map(known).collect(),
        unknown: kinds.chain(facts).cloned().collect(),
        name: answer.name,
        version: answer.version,
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
    let lists = SignalLists::of(&signal.event);
    let case_lists = CaseLists::of(case);
    let attributes = pairs(&signal.attributes);
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
        event: event(&signal.event, &lists),
        attributes: &attributes,
    };
    let answer = rules(policy).call_rule(store, signal, case_file(case, &case_lists), &draft)?;
    Ok(answer.map(lift_ruling))
}

/// The lists of a kill or an exit: a component's record refers to them.
#[derive(Default)]
struct SignalLists<'a> {
    victims: Vec<wit::Victim<'a>>,
    sources: Vec<&'a str>,
}

impl<'a> SignalLists<'a> {
    fn of(event: &'a signal::Event) -> Self {
        match event {
            signal::Event::OomKill(kill) => Self { victims: victims(kill), ..Self::default() },
            signal::Event::Exited(exited) => Self { sources: sources(exited), ..Self::default() },
            _ => Self::default(),
        }
    }
}

/// The lists of a case.
struct CaseLists<'a> {
    victims: Vec<wit::Victim<'a>>,
    sources: Vec<&'a str>,
    attributes: Vec<(&'a str, &'a str)>,
    limits: Vec<(wit::Moment, u64)>,
    requests: Option<Vec<(wit::Moment, wit::KillRequest)>>,
}

impl<'a> CaseLists<'a> {
    fn of(case: &'a Case) -> Self {
        let request = |(at, it): &(signal::Moment, signal::KillRequest)| {
            (moment(*at), wit::KillRequest { signal: it.signal, all: it.all })
        };
        Self {
            victims: case.last_kill.as_ref().map(|(_, kill)| victims(kill)).unwrap_or_default(),
            sources: case.exit.as_ref().map(sources).unwrap_or_default(),
            attributes: pairs(&case.attributes),
            limits: case.limits.iter().map(|(at, limit)| (moment(*at), *limit)).collect(),
            requests: case.requests.as_ref().map(|all| all.iter().map(request).collect()),
        }
    }
}

fn victims(kill: &signal::OomKilled) -> Vec<wit::Victim<'_>> {
    let victims = kill.victim.iter();
    victims.map(|it| wit::Victim { pid: it.pid, comm: &it.comm, is_init: it.is_init }).collect()
}

fn sources(exited: &signal::Exited) -> Vec<&str> {
    exited.cause.iter().flat_map(|cause| &cause.sources).map(String::as_str).collect()
}

fn case_file<'a>(case: &'a Case, lists: &'a CaseLists<'a>) -> wit::CaseFile<'a> {
    let last_kill = case.last_kill.as_ref();
    wit::CaseFile {
        known: known(&case.known),
        started: case.started.map(moment),
        memory: wit::Memory { limit: case.memory_limit, limits: &lists.limits, last: case.memory_last },
        kills: case.kills,
        first_kill: case.first_kill.map(moment),
        last_kill: last_kill.map(|(at, kill)| (moment(*at), oom_kill(kill, &lists.victims))),
        requests: lists.requests.as_deref(),
        last_pressure: case.last_pressure.map(|(at, p)| (moment(at), pressure(&p))),
        exit: case.exit.as_ref().map(|it| exited(it, &lists.sources)),
        guest_lost: case
            .guest_lost
            .as_ref()
            .map(|(at, lost)| (moment(*at), wit::GuestLost { reason: &lost.reason })),
        oom_sent: case.oom_sent,
        exit_sent: case.exit_sent,
        attributes: &lists.attributes,
    }
}

const KNOWN: [(K, wit::Known); 11] = [
    (K::KillCount, wit::Known::KILL_COUNT),
    (K::Victim, wit::Known::VICTIM),
    (K::ExitStatus, wit::Known::EXIT_STATUS),
    (K::Cause, wit::Known::CAUSE),
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
            image: owner.image.as_deref(),
        }),
    }
}

fn event<'a>(event: &'a signal::Event, lists: &'a SignalLists<'a>) -> wit::Event<'a> {
    match event {
        signal::Event::OomKill(kill) => wit::Event::OomKill(oom_kill(kill, &lists.victims)),
        signal::Event::Exited(it) => wit::Event::Exited(exited(it, &lists.sources)),
        signal::Event::Pressure(it) => wit::Event::Pressure(pressure(it)),
        signal::Event::KillRequest(it) => {
            wit::Event::KillRequest(wit::KillRequest { signal: it.signal, all: it.all })
        }
        signal::Event::GuestLost(it) => wit::Event::GuestLost(wit::GuestLost { reason: &it.reason }),
        signal::Event::Other(it) => wit::Event::Other(wit::Other { kind: &it.kind, json: &it.json }),
        signal::Event::Evidence(it) => wit::Event::Evidence(wit::Gathered { kill: &it.kill }),
        // The chain does not rule on these.
        signal::Event::Forwarded(it) => wit::Event::Other(wit::Other { kind: &it.topic, json: "{}" }),
    }
}

fn oom_kill<'a>(kill: &'a signal::OomKilled, victims: &'a [wit::Victim<'a>]) -> wit::OomKill<'a> {
    wit::OomKill {
        added: kill.added,
        total: kill.total,
        witnesses: kill.witnesses().into_iter().map(witness).fold(wit::Witnesses::default(), |a, b| a | b),
        group: kill.group,
        limit: limit_hit(kill),
        victims,
        late: kill.late,
    }
}

fn witness(it: Witness) -> wit::Witnesses {
    match it {
        Witness::Counter => wit::Witnesses::COUNTER,
        Witness::PodCounter => wit::Witnesses::POD_COUNTER,
        Witness::KernelLog => wit::Witnesses::KERNEL_LOG,
        Witness::Trace => wit::Witnesses::TRACE,
        Witness::Announced => wit::Witnesses::ANNOUNCED,
        Witness::Inferred => wit::Witnesses::INFERRED,
    }
}

/// The container's own cgroup and limit stand for those that were hit only where they are that.
fn limit_hit(kill: &signal::OomKilled) -> wit::LimitHit<'_> {
    let own = kill.level == signal::Level::Container;
    wit::LimitHit {
        level: match kill.level {
            signal::Level::Container => wit::Level::Container,
            signal::Level::Child => wit::Level::Child,
            signal::Level::Ancestor => wit::Level::Ancestor,
            signal::Level::Guest => wit::Level::Guest,
            signal::Level::Unknown => wit::Level::Unknown,
        },
        cgroup: kill.limit_cgroup.as_deref().or(kill.cgroup.as_deref().filter(|_| own)),
        bytes: kill.limit_cgroup_bytes.or(kill.limit_bytes.filter(|_| own)),
    }
}

fn exited<'a>(it: &'a signal::Exited, sources: &'a [&'a str]) -> wit::Exited<'a> {
    wit::Exited {
        pid: it.pid,
        is_init: it.is_init,
        status: it.status,
        signal: match it.exit_signal() {
            ExitSignal::None => wit::ExitSignal::None,
            ExitSignal::Some(signal) => wit::ExitSignal::Some(signal),
            ExitSignal::Unknown => wit::ExitSignal::Unknown,
        },
        core: it.core,
        cause: it.cause.as_ref().map(|cause| wit::Cause {
            kind: cause_kind(cause.kind),
            name: cause.kind.name(),
            sender: cause.sender.as_ref().map(|sender| wit::Sender {
                pid: sender.pid,
                comm: &sender.comm,
                cgroup: sender.cgroup.as_deref(),
                exec_id: sender.exec_id.as_deref(),
            }),
            sources,
        }),
        reconciled: it.reconciled,
    }
}

fn cause_kind(kind: CauseKind) -> wit::CauseKind {
    match kind {
        CauseKind::Unknown => wit::CauseKind::Unknown,
        CauseKind::KernelOom => wit::CauseKind::KernelOom,
        CauseKind::Runtime => wit::CauseKind::Runtime,
        CauseKind::ContainerProcess => wit::CauseKind::ContainerProcess,
        CauseKind::NodeProcess => wit::CauseKind::NodeProcess,
        CauseKind::Oomd => wit::CauseKind::Oomd,
        CauseKind::OomPolicy => wit::CauseKind::OomPolicy,
        CauseKind::CgroupKill => wit::CauseKind::CgroupKill,
        CauseKind::Seccomp => wit::CauseKind::Seccomp,
        CauseKind::ResourceLimit => wit::CauseKind::ResourceLimit,
        CauseKind::Crash => wit::CauseKind::Crash,
        CauseKind::Kernel => wit::CauseKind::Kernel,
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

fn lift_ruling(ruling: wit::Ruling) -> Ruling {
    match ruling {
        wit::Ruling::Pass => Ruling::Pass,
        wit::Ruling::Decide(decision) => Ruling::Decide(Decision {
            actions: decision.actions.into_iter().map(lift_action).collect(),
            because: decision.because,
            rule: decision.rule,
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
