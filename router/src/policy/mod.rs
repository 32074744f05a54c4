//! The policy chain: from files in a directory to rulings, whatever the policies do.
//!
//! ```text
//! files -> directory -> cache / compile (a process of its own) -> load -> Lineup -> one Chain a worker
//!          trust, own_file   contract                  pure         ^ keeper: watch, asks, swaps
//! ```
//!
//! A [`Chain`] is what a worker asks; [`Keeper`] makes the [`Lineup`]s it goes over to.

mod ask;
mod bindings;
mod cache;
mod chain;
mod compile;
mod contract;
mod counts;
mod directory;
mod health;
mod host;
mod keeper;
mod limits;
mod lineup;
mod load;
mod metrics;
mod own_file;
mod promote;
mod pure;
pub mod report;
mod settings;
mod single;
mod status;
mod talk;
mod ticker;
mod trust;
mod wasi;
mod watch;

pub use ask::{Ask, Policies};
pub use chain::Chain;
pub use compile::{COMMAND, CompileError, compile_child};
pub use contract::ContractError;
pub use host::{Host, HostError};
pub use keeper::{Keeper, Outside};
pub use limits::Limits;
pub use lineup::{Lineup, Lineups};
pub use load::{BUILT_IN, LoadError, Policy};
pub use metrics::PolicyMetrics;
pub use pure::VectorError;
pub use settings::{Compile, Quarantine, Settings};
pub use single::{Checked, check};
