//! The policy chain: from files in a directory to rulings. A failing policy changes nothing (fail
//! open); one that fails repeatedly is quarantined by a circuit breaker.
//!
//! ```text
//! files -> directory -> cache / compile (own process) -> load -> ChainSnapshot -> one Chain a worker
//!          trust, policy_config   contract                pure    ^ manager: watch, reload, swap
//! ```
//!
//! A worker calls its [`Chain`]; [`PolicyManager`] makes the [`ChainSnapshot`]s.

mod manager_client;
mod bindings;
mod cache;
mod call_clock;
mod call_evidence;
mod chain;
mod compile;
mod contract;
mod counts;
mod directory;
mod quarantine;
mod host;
mod manager;
mod limits;
mod chain_snapshot;
mod built_in;
mod fault_kind;
mod in_process;
mod last_good;
mod load;
mod load_error;
mod policy;
mod metrics;
mod on_failure;
mod policy_config;
mod promote;
mod pure;
pub mod report;
mod settings;
mod check_file;
mod status;
mod policy_log;
mod ticker;
mod trust;
mod wasi;
mod watch;

pub use built_in::BUILT_IN;
pub use chain::Chain;
pub use chain_snapshot::{ActiveChain, ChainSnapshot, Reading};
pub use check_file::{CallCost, Checked, check};
pub use compile::{COMMAND, CompileError, compile_child};
pub use contract::ContractError;
pub use host::{Host, HostError};
pub use in_process::compiled_in_process;
pub use limits::Limits;
pub use load_error::LoadError;
pub use manager::{Outside, PolicyManager};
pub use manager_client::{ManagerRequest, PolicyClient};
pub use metrics::PolicyMetrics;
pub use on_failure::{FixedRuling, OnFailure};
pub use policy::Policy;
pub use pure::VectorError;
pub use settings::{CompileSettings, QuarantineSettings, Settings};
