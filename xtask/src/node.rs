//! A Kubernetes node in a virtual machine: made once, saved when it is Ready, resumed in seconds.
//!
//! ```text
//!   build    versions.toml ──► programs, root ──► disk ──► boot ──► saved state    cached by key
//!   up       saved state ──► overlay in target-node/NAME ──► QEMU, resumed
//!   ssh      a command in the node
//!   status   target-node/*/node.json ──► table or JSON
//!   down     ends QEMU, removes target-node/NAME
//! ```
//!
//! What runs within the node is in `tests/programs/node`; `docs/internals/node.md` is the page.

mod commands;
mod disk;
mod key;
mod programs;
mod qemu;
mod qmp;
mod record;
mod root;
mod saved;
mod ssh;
mod status;
mod steps;
mod versions;

use std::path::PathBuf;

pub(crate) use commands::{Command, build, run};

use crate::workspace;

/// Where the node's versions, configuration and scripts are.
fn sources() -> PathBuf {
    workspace::root().join("tests/programs/node")
}
