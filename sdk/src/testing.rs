//! Signals and case files for a policy's tests, to be filled in with `..`: nothing is known.
//!
//! ```
//! use coroner_sdk::prelude::*;
//!
//! let killed = Exited { signal: ExitSignal::Some(9), ..testing::exited() };
//! let exit = testing::signal(Event::Exited(killed));
//! let case = CaseFile { oom_sent: true, ..testing::case() };
//! # assert!(exit.attributes.is_empty() && case.oom_sent);
//! ```

use std::cell::RefCell;

use crate::evidence::KillEvidence;
use crate::{
    CaseFile, Event, ExitSignal, Exited, Known, Level, LimitHit, Memory, Moment, OomKill, Signal, Target,
    Witnesses,
};

/// A signal about the container `container` on the node `node`.
#[must_use]
pub fn signal(event: Event) -> Signal {
    let target = Target {
        node: "node".to_owned(),
        guest: None,
        containerd_namespace: None,
        sandbox_id: None,
        container_id: "container".to_owned(),
        exec_id: None,
        owner: None,
    };
    Signal { id: "node:stream:container:1".to_owned(), at: moment(), target, event, attributes: vec![] }
}

/// A case file in which nothing was seen and nothing can be known.
#[must_use]
pub fn case() -> CaseFile {
    CaseFile {
        known: Known::empty(),
        started: None,
        memory: Memory { limit: None, limits: vec![], last: None },
        kills: None,
        first_kill: None,
        last_kill: None,
        requests: None,
        last_pressure: None,
        exit: None,
        guest_lost: None,
        oom_sent: false,
        exit_sent: false,
        attributes: vec![],
    }
}

/// An exit of which nothing else is known.
#[must_use]
pub fn exited() -> Exited {
    Exited {
        pid: None,
        is_init: None,
        status: None,
        signal: ExitSignal::Unknown,
        core: None,
        cause: None,
        reconciled: false,
    }
}

/// An OOM kill that the router only concluded.
#[must_use]
pub fn oom_kill() -> OomKill {
    OomKill {
        added: None,
        total: None,
        witnesses: Witnesses::INFERRED,
        group: None,
        limit: LimitHit { level: Level::Unknown, cgroup: None, bytes: None },
        victims: vec![],
        late: false,
    }
}

/// The moment 0 of the router's clock; the source's are not known.
#[must_use]
pub fn moment() -> Moment {
    Moment { boot_ns: None, wall_ms: None, received_ms: 0 }
}

thread_local! {
    static EVIDENCE: RefCell<Option<KillEvidence>> = const { RefCell::new(None) };
}

/// Calls `call` with this evidence: [`evidence::get`](crate::evidence::get) returns it meanwhile.
pub fn with_evidence<R>(evidence: KillEvidence, call: impl FnOnce() -> R) -> R {
    let before = EVIDENCE.replace(Some(evidence));
    let result = call();
    EVIDENCE.replace(before);
    result
}

pub(crate) fn evidence_of_test() -> Option<KillEvidence> {
    EVIDENCE.with_borrow(Clone::clone)
}

/// Evidence without a report and without a cgroup.
#[must_use]
pub fn evidence() -> KillEvidence {
    KillEvidence {
        kill: "node:stream:container:1".to_owned(),
        has_names: true,
        report: None,
        cgroups: vec![],
        samples: vec![],
        limits: vec![],
        left_out: 0,
    }
}
