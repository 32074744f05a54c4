//! Sources of signals. A source decodes and checks, applies rate limits and back-pressure, and
//! sends envelopes to the intake.

pub mod settings;
mod counts;
pub mod envelope;
pub mod ownership;
pub mod agent;
mod agent_client;
mod rate_limits;
mod backoff;
mod cursor;
mod evidence_requests;
mod signal_stream;
mod decode;
mod inferred;
pub mod kata;
mod inventory;
mod snapshot;
mod vm_liveness;
mod shutdown;
mod recovered;
mod reconcile;
pub mod replay;
mod final_count;
pub mod shim;
mod receive;
mod watermark;
mod log_limiter;
mod unwatched;

pub use counts::{LinkState, SourceCounts};
pub use final_count::FinalCounters;
pub use recovered::{RecoveredSource, RecoveredSources};
pub use shutdown::Shutdown;
pub use unwatched::{UnwatchedContainer, unwatched};
