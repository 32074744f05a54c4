//! Coroner decides, and tells, why containers died.
//!
//! ```text
//! source -> Signal -> intake (who is it?) -> worker (policy chain) -> delivery -> sink
//!   agent                identity               case, .wasm                        containerd, jsonl
//! ```
//!
//! [`run`] is the whole router: give it a checked [`config::Config`] and something that resolves when it shall stop.
//! The modules below stand in the order a signal meets them.

pub mod signal;
pub mod case;
pub mod ruling;
pub mod config;
pub mod journal;
pub mod arrival;
pub mod source;
pub mod holds;
pub mod shares;
pub mod claims;
pub mod identity;
pub mod intake;
pub mod policy;
pub mod worker;
pub mod delivery;
pub mod audit;
pub mod tap;
pub mod sink;
pub mod counts;
pub mod guests;
pub mod control;
pub mod metrics;
mod run;

pub use run::{Router, RunError, run};
