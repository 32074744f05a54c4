//! Random signals, case files and drafts, in every shape that the contract allows.
//!
//! The strategies are boxed so that their code is generated here, not in the suite that runs them.

use std::sync::Arc;

use coroner_core::case::Case;
use coroner_core::mode::Known;
use coroner_core::ruling::Action;
use coroner_core::signal::{
    Cause, CauseKind, ContainerId, Event, Evidence, Exited, GuestLost, KillEvidence, KillRequest, Level,
    Moment, OomKilled, Other, Owner, Pressure, PressureOf, Sender, Signal, Target, Victim,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    // Few lengths and odd characters: what matters to lowering is where texts begin and end.
    prop_oneof![
        Just(String::new()),
        Just("a".to_owned()),
        Just("caf\u{e9} \u{1f980}".to_owned()),
        "[a-z]{0,12}"
    ]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>()]
}

fn moment() -> impl Strategy<Value = Moment> {
    (of(number()), of(number()), number()).prop_map(|(boot_ns, wall_ms, received_ms)| Moment {
        boot_ns,
        wall_ms,
        received_ms,
    })
}

fn oom_kill() -> impl Strategy<Value = OomKilled> {
    let evidence = prop_oneof![Just(Evidence::Counter), Just(Evidence::Announced), Just(Evidence::Inferred)];
    let level = prop_oneof![
        Just(Level::Container),
        Just(Level::Child),
        Just(Level::Ancestor),
        Just(Level::Guest),
        Just(Level::Unknown)
    ];
    let victim = (any::<u32>(), text(), of(any::<bool>())).prop_map(|(pid, comm, is_init)| Victim {
        pid,
        comm,
        is_init,
    });
    (
        of(number()),
        of(number()),
        evidence,
        of(any::<bool>()),
        level,
        of(text()),
        of(number()),
        of(victim),
        of(number()),
        any::<bool>(),
    )
        .prop_map(|(added, total, evidence, group, level, cgroup, limit_bytes, victim, groups, late)| {
            OomKilled {
                added,
                total,
                group,
                level,
                limit_cgroup: cgroup.clone(),
                limit_cgroup_bytes: limit_bytes,
                cgroup,
                limit_bytes,
                victim,
                groups,
                late,
                ..OomKilled::new(evidence)
            }
        })
}

fn exited() -> impl Strategy<Value = Exited> {
    (
        of(any::<u32>()),
        of(any::<bool>()),
        of(0..256_u32),
        of(any::<u8>()),
        of(any::<bool>()),
        of(any::<bool>()),
        of(cause()),
        any::<bool>(),
    )
        .prop_map(|(pid, is_init, status, signal, by_signal, core, cause, reconciled)| Exited {
            pid,
            is_init,
            status,
            signal,
            by_signal,
            core,
            cause,
            at_ns: None,
            reconciled,
        })
}

fn cause() -> impl Strategy<Value = Cause> {
    let kind = prop_oneof![
        Just(CauseKind::Unknown),
        Just(CauseKind::KernelOom),
        Just(CauseKind::Runtime),
        Just(CauseKind::ContainerProcess),
        Just(CauseKind::Crash)
    ];
    let sender = (any::<u32>(), text(), of(text()), of(text()))
        .prop_map(|(pid, comm, cgroup, exec_id)| Sender { pid, comm, cgroup, exec_id });
    (kind, of(sender), text()).prop_map(|(kind, sender, source)| Cause {
        kind,
        sender,
        sources: vec![source],
    })
}

fn pressure() -> impl Strategy<Value = Pressure> {
    let of_what = prop_oneof![Just(PressureOf::Memory), Just(PressureOf::Cpu), Just(PressureOf::Io)];
    (of_what, any::<bool>(), any::<u32>(), any::<u32>(), number(), of(number()), of(number())).prop_map(
        |(of, full, avg10_centi, avg60_centi, total_us, stalled_us, high_events)| Pressure {
            of,
            full,
            avg10_centi,
            avg60_centi,
            total_us,
            stalled_us,
            high_events,
        },
    )
}

fn request() -> impl Strategy<Value = KillRequest> {
    (any::<u8>(), any::<bool>()).prop_map(|(signal, all)| KillRequest { signal, all })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => oom_kill().prop_map(Event::OomKill),
        3 => exited().prop_map(Event::Exited),
        1 => pressure().prop_map(Event::Pressure),
        1 => request().prop_map(Event::KillRequest),
        1 => text().prop_map(|reason| Event::GuestLost(GuestLost { reason })),
        1 => text().prop_map(|kill| Event::Evidence(Arc::new(KillEvidence { kill, ..Default::default() }))),
        1 => (text(), text()).prop_map(|(kind, json)| Event::Other(Other { kind, json })),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    let owner = (of(text()), of(text()), of(text()), of(text()), of(any::<bool>()), of(text())).prop_map(
        |(pod, namespace, pod_uid, container, init_container, image)| Owner {
            pod,
            namespace,
            pod_uid,
            container,
            init_container,
            image,
        },
    );
    ("[a-z0-9]{1,64}", text(), of(text()), of(text()), of(text()), of(text()), of(owner)).prop_map(
        |(id, node, guest, containerd_namespace, sandbox_id, exec_id, owner)| Target {
            node,
            guest,
            containerd_namespace,
            sandbox_id,
            container_id: ContainerId::try_from(id).expect("the pattern makes valid ids"),
            exec_id,
            owner,
        },
    )
}

fn attributes() -> impl Strategy<Value = Vec<(String, String)>> {
    vec((text(), text()), 0..3)
}

/// Any signal.
pub fn signal() -> BoxedStrategy<Signal> {
    (text(), moment(), target(), event(), attributes())
        .prop_map(|(id, at, target, event, attributes)| Signal { id, at, target, event, attributes })
        .boxed()
}

/// Any case file.
pub fn case() -> BoxedStrategy<Case> {
    const KNOWN: [Known; 11] = [
        Known::KillCount,
        Known::Victim,
        Known::ExitStatus,
        Known::Cause,
        Known::KillRequests,
        Known::Pressure,
        Known::Memory,
        Known::Owner,
        Known::OomWritable,
        Known::ExitWritable,
        Known::StatusWritable,
    ];
    let seen = (
        of(moment()),
        of((moment(), oom_kill())),
        of(vec((moment(), request()), 0..4)),
        of((moment(), pressure())),
        of(exited()),
    );
    let facts =
        (of(moment()), of(number()), of(number()), of(number()), any::<bool>(), any::<bool>(), attributes());
    (proptest::sample::subsequence(&KNOWN[..], 0..=KNOWN.len()), seen, facts)
        .prop_map(|(known, seen, facts)| {
            let (first_kill, last_kill, requests, last_pressure, exit) = seen;
            let (started, memory_limit, memory_last, kills, oom_sent, exit_sent, attributes) = facts;
            Case {
                known,
                started,
                memory_limit,
                memory_last,
                kills,
                first_kill,
                last_kill,
                requests,
                last_pressure,
                exit,
                oom_sent,
                exit_sent,
                attributes,
                ..Case::default()
            }
        })
        .boxed()
}

/// Up to two actions, in legal and illegal order.
pub fn actions() -> BoxedStrategy<Vec<Action>> {
    vec(prop_oneof![Just(Action::TaskOom), of(0..256_u32).prop_map(Action::TaskExit)], 0..3).boxed()
}
