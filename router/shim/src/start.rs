//! Starts the inner shim: behind the router if one answers, and as stock if none does.

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use crate::address::{self, Answer};
use crate::arguments::Call;
use crate::config::{Config, Loaded, Mode};
use crate::log;
use crate::place;
use crate::proxy::Options;
use crate::router::Router;

/// Where a shim publishes its events: containerd's pkg/shim/publisher.go.
const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// Two starts at once get one shim, and the second begins after the first has made its socket. A file's time lags by a tick, too.
const AT_ONCE: Duration = Duration::from_secs(1);

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
        let behind = answer.is_ok();
        match self.config().mode {
            Mode::Wrapped => {
                become_inner(&self.inner, &self.arguments, |command| self.publish(command, behind))
            }
            Mode::Proxy => self.in_front(behind),
        }
    }

    fn publish(&self, command: &mut Command, behind: bool) {
        if behind {
            command.env(TTRPC_ADDRESS, &self.config().socket);
        }
    }

    /// Runs the inner shim's `start`, and puts a proxy in front of what it started. A pod's later containers get the same shim: they
    /// go through the proxy if the first did, and past it if the first did, whether the router is there or not.
    fn in_front(&self, behind: bool) -> ExitCode {
        let begun = SystemTime::now();
        let mut command = Command::new(&self.inner);
        command.args(&self.arguments).stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        self.publish(&mut command, behind);
        let output = match command.spawn().and_then(Child::wait_with_output) {
            Ok(output) => output,
            Err(error) => return failed(&format!("cannot run {}: {error}", self.inner.display())),
        };
        let mut printed = output.stdout;
        if output.status.success() {
            match self.proxied(&printed, behind, begun) {
                Ok(Some(instead)) => printed = instead.into_bytes(),
                Ok(None) => {}
                Err(why) => self.pass_by(&format!("no proxy: {why}")),
            }
        }
        if std::io::stdout().write_all(&printed).and_then(|()| std::io::stdout().flush()).is_err() {
            return ExitCode::FAILURE;
        }
        let signal = || output.status.signal().map_or(1, |signal| 128 + signal);
        ExitCode::from(u8::try_from(output.status.code().unwrap_or_else(signal)).unwrap_or(1))
    }

    /// What is printed instead of the inner shim's answer.
    fn proxied(
        &self,
        printed: &[u8],
        behind: bool,
        begun: SystemTime,
    ) -> Result<Option<String>, Box<dyn Error>> {
        let answer = Answer::parse(printed)?;
        let gets_one = place::lives(&answer.proxy) || (behind && is_new(&answer.inner, begun));
        if !gets_one {
            return Ok(None);
        }
        self.ensure_proxy(&answer)?;
        if let Err(error) = address::rewrite(Path::new("."), &answer.address()) {
            self.pass_by(&format!(
                "after a restart of containerd, for its file `address` is as it was: {error}"
            ));
        }
        Ok(Some(answer.printed()))
    }

    fn ensure_proxy(&self, answer: &Answer) -> std::io::Result<()> {
        if place::lives(&answer.proxy) {
            return Ok(());
        }
        let _one_at_a_time = place::lock(&answer.proxy)?;
        if place::lives(&answer.proxy) {
            return Ok(());
        }
        let options = Options {
            inner: answer.inner.clone(),
            router: self.config().socket.clone(),
            hold: self.config().hold,
            namespace: self.call.namespace.clone(),
            id: self.call.id.clone(),
        };
        place::take(&answer.proxy, &options)
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

/// Whether a socket was made since. A shim from before has its events where it always had them, and its containers no proxy.
fn is_new(socket: &Path, begun: SystemTime) -> bool {
    fs::metadata(socket).and_then(|it| it.modified()).is_ok_and(|made| made + AT_ONCE >= begun)
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
