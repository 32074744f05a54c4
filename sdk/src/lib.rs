//! The crate for policy authors: the contract's types, the [`Policy`] trait, [`export_policy!`].
//!
//! ```text
//!   signal ──► rule(signal, case, draft) ──► Ruling ──► the next policy's draft
//!              │
//!              └─ log ──► the router's log, under the policy's name
//! ```
//!
//! A policy is a struct with one function. Its arguments are a raw fact about a container
//! ([`Signal`]), what was known of it before ([`CaseFile`]), and the ruling so far (the draft); it
//! passes, or decides. It has no clock, no files and no network, and the router may restart it
//! between any two signals: state from earlier signals is in the case file. A complete one:
//!
//! ```
//! use coroner_sdk::prelude::*;
//!
//! /// Batch jobs exit 42 when they run out of the memory they gave themselves: that is an OOM, too.
//! #[derive(Default)]
//! struct ExitCode42;
//!
//! impl Policy for ExitCode42 {
//!     const NAME: &str = "exit-code-42";
//!
//!     fn wants() -> Kinds {
//!         Kinds::EXITED
//!     }
//!
//!     fn rule(&self, signal: &Signal, case: &CaseFile, draft: &[Action]) -> Result<Ruling, String> {
//!         let Event::Exited(exited) = &signal.event else { return Ok(Ruling::Pass) };
//!         if exited.status != Some(42) || case.oom_sent {
//!             return Ok(Ruling::Pass);
//!         }
//!         let mut actions = vec![Action::TaskOom];
//!         actions.extend_from_slice(draft);
//!         Ok(Ruling::decide(actions, "it exited with 42").by_rule("exit-code-42"))
//!     }
//! }
//!
//! export_policy!(ExitCode42);
//!
//! // Off wasm a policy is plain Rust, and so are its tests.
//! let exit = testing::signal(Event::Exited(Exited { status: Some(42), ..testing::exited() }));
//! let ruling = ExitCode42.rule(&exit, &testing::case(), &[]);
//! assert_eq!(ruling, Ok(Ruling::decide([Action::TaskOom], "it exited with 42").by_rule("exit-code-42")));
//! ```
//!
//! Its `Cargo.toml` has `crate-type = ["cdylib", "rlib"]`, for the `.wasm` and the tests. It is
//! built for `wasm32-unknown-unknown`, as a component that imports only
//! `coroner:policy/log`, and `coroner:policy/evidence` if it reads evidence.
//!
//! In the order a policy meets them: [`Policy`] is what it implements, [`export_policy!`] what
//! makes a component of it, `config` reads its `[config]` table, [`evidence`] reads what the kernel
//! recorded of an OOM kill, [`log`] writes to the router's log, [`time`] measures between moments,
//! and [`testing`] makes signals for its tests.
//!
//! **Unknown is not zero.** `None` in any field means "not seen", or "cannot be known here", never
//! 0, false or empty; [`CaseFile::known`] lists what can be known at all.

#[doc(hidden)]
pub mod bindings;
pub mod config;
pub mod evidence;
#[macro_use]
mod export;
mod kinds;
pub mod log;
mod policy;
mod ruling;
mod seen;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
pub mod time;

pub use bindings::coroner::policy::types::{
    Action, CaseFile, Cause, CauseKind, Decision, Description, Event, ExitSignal, Exited, Gathered,
    GuestLost, KillRequest, Known, Level, LimitHit, Memory, Moment, OomKill, Other, Owner, Pressure,
    PressureOf, Report, Ruling, Sender, Signal, Target, Victim, Witnesses,
};
pub use kinds::Kinds;
pub use policy::{Mistakes, Policy};

/// Everything a policy names, for `use coroner_sdk::prelude::*`.
pub mod prelude {
    #[cfg(not(target_family = "wasm"))]
    pub use crate::testing;
    pub use crate::{
        Action, CaseFile, Cause, CauseKind, Decision, Description, Event, ExitSignal, Exited, Gathered,
        GuestLost, KillRequest, Kinds, Known, Level, LimitHit, Memory, Mistakes, Moment, OomKill, Other,
        Owner, Policy, Pressure, PressureOf, Report, Ruling, Sender, Signal, Target, Victim, Witnesses,
        config, evidence, export_policy, log, time,
    };
}

/// What [`export_policy!`] expands to names these; no policy does.
#[doc(hidden)]
pub mod __private {
    pub use crate::export::{configure, describe, log_panics, rule};
}
