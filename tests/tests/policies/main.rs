//! The policy chain: native and wasm rule alike, and no policy's failure changes a ruling.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod equal;
mod random;
mod rebuilt;
mod zoo;

use std::sync::Arc;

use coroner::case::{Case, Known};
use coroner::policy::{Chain, Host, Limits, Policy, load, prepare};
use coroner::signal::{ContainerId, Event, Evidence, Exited, Level, Moment, OomKill, Signal, Target};

/// A host with the router's own defaults.
fn host() -> Arc<Host> {
    Arc::new(Host::new(Limits::default()).unwrap())
}

/// The built-in default alone.
fn built_in(host: &Host) -> Vec<Arc<Policy>> {
    let (policies, refused) = load(host, None);
    assert!(refused.is_empty(), "{refused:?}");
    policies
}

fn taken(host: &Host, name: &str, bytes: &[u8]) -> Arc<Policy> {
    Arc::new(prepare(host, name, bytes, "{}".to_owned()).unwrap())
}

fn chain(host: &Arc<Host>, policies: &[Arc<Policy>]) -> Chain {
    Chain::new(Arc::clone(host), policies, 1)
}

fn signal(event: Event) -> Signal {
    Signal {
        id: "n:s:c1:1".to_owned(),
        at: Moment { boot_ns: Some(1), wall_ms: Some(2), received_ms: 3 },
        target: Target {
            node: "n".to_owned(),
            guest: None,
            containerd_namespace: None,
            sandbox_id: None,
            container_id: ContainerId::try_from("c1".to_owned()).unwrap(),
            exec_id: None,
            owner: None,
        },
        event,
        attributes: Vec::new(),
    }
}

fn kill() -> Signal {
    signal(Event::OomKill(OomKill {
        added: Some(1),
        total: Some(1),
        evidence: Evidence::Counter,
        group: None,
        level: Level::Container,
        cgroup: None,
        limit_bytes: None,
        victim: None,
        late: false,
    }))
}

fn exit() -> Signal {
    signal(Event::Exited(Exited {
        pid: Some(9),
        is_init: Some(true),
        status: Some(1),
        signal: None,
        core: Some(false),
        reconciled: false,
    }))
}

fn ours() -> Case {
    Case::new(&[Known::KillCount, Known::ExitStatus, Known::OomWritable, Known::ExitWritable])
}
