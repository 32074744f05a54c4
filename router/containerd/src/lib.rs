//! containerd's APIs, as far as Coroner uses them.
//!
//! ```text
//! container id --> identity (cache) --> container (labels, oci spec) --> grpc --> containerd.sock
//! router start --> tasks, readiness ------------------------------------^
//! TaskOOM, TaskExit --> link (reconnects) ------------------> ttrpc --> containerd.sock.ttrpc
//! ```
//!
//! The only crate that names tonic. The modules are listed in the order in which a signal passes
//! through them.

mod identity;
mod container;
mod oci;
mod tasks;
mod readiness;
mod grpc;
mod link;
pub mod holds;

pub use container::Identity;
pub use grpc::connect;
pub use identity::{Identities, IdentityLookup, LookupResult};
pub use link::{EventLink, EventLinkManager};
pub use oci::{OciSpec, SpecMount};
pub use readiness::{cri_answers, version};
pub use tasks::{RunningTask, TaskState, running_tasks, tasks};
