//! Coroner decides, and tells, why containers died.
//!
//! ```text
//! source -> Signal -> intake (who is it?) -> worker (policy chain) -> delivery -> sink
//!   agent                identity               case, .wasm                        containerd, jsonl
//! ```
//!
//! [`run`] is the whole router: give it a checked [`config::Config`] and something that resolves when it shall stop.
//! A shim that embeds it gets a [`Handle`] and asks, in process, what others ask over a socket:
//!
//! ```
//! use std::time::SystemTime;
//!
//! use coroner::config::Config;
//! use coroner::{Exit, Router};
//!
//! # let folder = tempfile::tempdir().unwrap();
//! # let audit = folder.path().join("audit.jsonl");
//! let text = format!(
//!     "[guests]\n[journal]\ndirectory = \"{0}/journal\"\n[policies]\ncache = \"{0}/cache\"\n\
//!      [[sink]]\nname = \"audit\"\ntype = \"jsonl\"\npath = \"{0}/audit.jsonl\"",
//!     folder.path().display()
//! );
//! let config = Config::parse(&text).expect("the text above is a configuration");
//! let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
//! runtime.block_on(async {
//!     let mut router = Router::start(&config)?;
//!     let shim = router.handle("shim", "k8s.io");
//!     let work = async {
//!         shim.created("web-1", "/run/my-shim/web-1", None).await?;
//!         // What Wait is answered with, once the container's OOM kills are delivered.
//!         let exit = Exit { container_id: "web-1".into(), exec_id: None, pid: Some(7), status: 3, at: SystemTime::now() };
//!         shim.exit(exit).await
//!     };
//!     let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
//!     let (ended, ruled) = tokio::join!(router.until(async { drop(stopped.await) }), async {
//!         let ruled = work.await;
//!         drop(stop);
//!         ruled
//!     });
//!     ended?;
//!     assert_eq!(ruled?, 3);
//!     Ok::<_, Box<dyn std::error::Error>>(())
//! })?;
//! # assert!(std::fs::read_to_string(audit)?.contains(":shim:web-1:exit-init-7"));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
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
pub use source::shim::{Exit, Handle, HandleError};
