//! Signals and case files for a policy's tests, to be filled in with `..`: nothing is known.
//!
//! ```
//! use coroner_sdk::prelude::*;
//!
//! let exit = testing::signal(Event::Exited(Exited { signal: Some(9), ..testing::exited() }));
//! let case = CaseFile { oom_sent: true, ..testing::case() };
//! # assert!(exit.attributes.is_empty() && case.oom_sent);
//! ```

use crate::{CaseFile, Event, Evidence, Exited, Known, Level, Moment, OomKill, Signal, Target};

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
        memory_limit: None,
        memory_last: None,
        kills: None,
        first_kill: None,
        last_kill: None,
        requests: None,
        last_pressure: None,
        exit: None,
        oom_sent: false,
        exit_sent: false,
        attributes: vec![],
    }
}

/// An exit of which nothing else is known.
#[must_use]
pub fn exited() -> Exited {
    Exited { pid: None, is_init: None, status: None, signal: None, core: None, reconciled: false }
}

/// An OOM kill that the router only concluded.
#[must_use]
pub fn oom_kill() -> OomKill {
    OomKill {
        added: None,
        total: None,
        evidence: Evidence::Inferred,
        group: None,
        level: Level::Unknown,
        cgroup: None,
        limit_bytes: None,
        victim: None,
        late: false,
    }
}

/// The moment 0 of the router's clock; the source's are not known.
#[must_use]
pub fn moment() -> Moment {
    Moment { boot_ns: None, wall_ms: None, received_ms: 0 }
}
