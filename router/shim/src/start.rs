//! Starts the inner shim: behind the router if one answers, and as stock if none does.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::arguments::Call;
use crate::config::{Config, Loaded};
use crate::log;
use crate::router::Router;

/// Where a shim publishes its events: containerd's pkg/shim/publisher.go.
const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// One start of a shim.
#[derive(Debug)]
pub(crate) struct Start {
    /// As containerd asked.
    pub(crate) arguments: Vec<OsString>,
    /// The same, read.
    pub(crate) call: Call,
    /// The real shim.
    pub(crate) inner: PathBuf,
    /// How.
    pub(crate) loaded: Loaded,
}

/// Becomes the inner shim, with all that was given but what `change` changes.
pub(crate) fn become_inner(inner: &Path, arguments: &[OsString], change: impl Fn(&mut Command)) -> ExitCode {
    let mut command = Command::new(inner);
    command.args(arguments);
    change(&mut command);
    let error = command.exec();
    failed(&format!("cannot run {}: {error}", inner.display()))
}

/// A shim that does not start says so, and containerd shows it.
pub(crate) fn failed(why: &str) -> ExitCode {
    writeln!(std::io::stderr(), "containerd-shim-coroner-v2: {why}").ok();
    ExitCode::FAILURE
}

impl Start {
    /// Starts. Nothing of its own is written to the standard streams: containerd 1.6 takes both together for the shim's address.
    pub(crate) fn run(self) -> ExitCode {
        let answer = match &self.loaded.mistake {
            Some(mistake) => Err(format!("the configuration counts as none: {mistake}")),
            None => probe(self.config()),
        };
        if let Err(why) = &answer {
            self.pass_by(why);
        }
        let behind = |command: &mut Command| {
            if answer.is_ok() {
                command.env(TTRPC_ADDRESS, &self.config().socket);
            }
        };
        become_inner(&self.inner, &self.arguments, behind)
    }

    fn config(&self) -> &Config {
        &self.loaded.config
    }

    fn pass_by(&self, why: &str) {
        let Call { namespace, id, .. } = &self.call;
        let socket = self.config().socket.display();
        let message =
            format!("passed the router by: {why} (socket {socket}, namespace {namespace}, container {id})");
        log::line(&message, self.config().log.as_deref());
    }
}

/// Asks whether a router listens that expects shims of this mode.
fn probe(config: &Config) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot ask: {error}"))?;
    let answer = runtime.block_on(async { Router::new(&config.socket).hello(config.probe).await });
    let mode = answer.map_err(|silence| silence.to_string())?.mode;
    match mode == config.mode.name() {
        true => Ok(()),
        false => Err(format!("its source has mode \"{mode}\", the wrapper \"{}\"", config.mode.name())),
    }
}
