//! What containerd starts in place of a shim: it hands the shim's events to the router, and becomes the shim.
//!
//! ```text
//!   containerd -- start --> config, inner --> probe --yes--> TTRPC_ADDRESS = router's --+--> exec the inner shim
//!                                               +----no: as without Coroner ------------+
//! ```
//!
//! docs/shims.md is its page. On `start` nothing but the inner shim may write to standard output or error: containerd 1.6 takes all of it for
//! the address.

mod config;
mod inner;
mod notice;
mod probe;

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::config::Config;
use crate::inner::Called;

/// Where a shim publishes.
const ADDRESS: &str = "TTRPC_ADDRESS";
/// The action that begins a shim's life; every other is the inner shim's alone.
const START: &str = "start";

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let called = Called::of(&arguments.next().map(PathBuf::from).unwrap_or_default());
    let arguments: Vec<OsString> = arguments.collect();
    let is_start = arguments.last().is_some_and(|it| it == START);
    let config = Config::find(called.name.as_deref());
    let (config, wrong) = match config {
        Ok(config) => (config, None),
        Err(error) => (Config::default(), Some(error.to_string())),
    };
    let shim = match called.inner(config.inner.as_deref()) {
        Ok(shim) => shim,
        Err(error) => {
            eprintln!("containerd-shim-coroner-v2: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut command = Command::new(&shim);
    command.args(&arguments);
    if is_start {
        let passed_by = wrong.or_else(|| probe::ask(&config).err().map(|error| error.to_string()));
        match passed_by {
            None => drop(command.env(ADDRESS, &config.socket)),
            Some(reason) => notice::passed_by(&config, &reason),
        }
    }
    // It returns only if there is no such program.
    let error = command.exec();
    eprintln!("containerd-shim-coroner-v2: cannot start {}: {error}", shim.display());
    ExitCode::FAILURE
}
