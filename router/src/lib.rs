//! Coroner is a node daemon that determines why a container died, classifies it with sandboxed
//! WebAssembly policies, and publishes the result to containerd, an audit log and your own sinks.
//!
//! ```text
//! source -> Signal -> intake (identity) -> worker (policy chain) -> delivery -> sink
//!   agent                                    case, .wasm              containerd, jsonl
//! ```
//!
//! This library is for a shim that embeds the router: the shim reports what happens to its
//! containers, and receives the status to reply. The daemon is the command `coroner`.
//!
//! ```
//! use std::time::Duration;
//!
//! use coroner::{Exit, OomKill, Router};
//!
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! let config = format!(
//!     "[[sink]]\nname = \"audit\"\ntype = \"jsonl\"\npath = \"{}/audit.jsonl\"",
//!     folder.display()
//! );
//! let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
//! runtime.block_on(async {
//!     let router = Router::builder().config(config).directory(folder.join("router")).start()?;
//!     router.created("web-1", "/run/my-shim/web-1", None).await?;
//!     router.oom_kill(OomKill::new("web-1").total(1)).await?;
//!     // Fail open: without a ruling in time, reply with the real status.
//!     let exit = router.exit(Exit::new("web-1", 137).pid(7));
//!     let status = tokio::time::timeout(Duration::from_secs(5), exit).await??;
//!     assert_eq!(status, 137);
//!     router.shutdown(Duration::from_secs(5)).await
//! #   .map_err(Box::<dyn std::error::Error>::from)
//! })?;
//! # let audit = std::fs::read_to_string(folder.join("audit.jsonl"))?;
//! # assert!(audit.contains(":shim:web-1:kill-1") && audit.contains(":shim:web-1:exit-init-7"));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! A program that loads policies calls [`compile_process`] first in `main`; `examples/embed` is
//! one.
//!
//! The modules are listed in the order in which a signal passes through them.

mod config;
mod source_factory;
mod intake;
mod seen_exits;
mod worker;
mod delivery;
mod counts;
mod node_watch;
mod guests;
mod admin;
mod assembly;
mod embed;
#[cfg(test)]
mod simulation;

pub use admin::Status;
pub use coroner_core::mode::Mode;
pub use coroner_sources::shim::{Exit, OomKill};
pub use embed::{Error, Handle, Router, RouterBuilder, compile_process};

/// The parts of the daemon: what the command `coroner`, the suites and the benches use. Not stable.
#[doc(hidden)]
pub mod node {
    pub use crate::assembly::*;
    pub use crate::counts::*;
    pub use crate::delivery::*;
    pub use crate::guests::*;
    pub use crate::intake::*;
    pub use crate::node_watch::unwatched;
    pub use crate::source_factory::*;
    pub use crate::worker::*;

    /// The documents of the admin server.
    pub mod admin {
        pub use crate::admin::*;
    }

    /// The configuration file.
    pub mod config {
        pub use crate::config::*;
    }
}
