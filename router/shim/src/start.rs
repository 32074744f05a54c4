//! Starts the inner shim: with its events directed to the router if that answers, and as stock
//! otherwise (fail open).

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use coroner_shim_config::unmanaged::{self, UnmanagedStart};
use coroner_shim_config::{WrapperConfig, WrapperMode};

use crate::address::{self, StartAnswer};
use crate::arguments::Invocation;
use crate::log;
use crate::place;
use crate::proxy::Options;
use crate::router::RouterClient;

/// Where a shim publishes its events: containerd's pkg/shim/publisher.go.
const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// Two concurrent starts share one shim, and the second one begins after the first has created its
/// socket. A file's time also lags by a clock tick.
const AT_ONCE: Duration = Duration::from_secs(1);

/// One start of a shim.
#[derive(Debug)]
pub(crate) struct Start {
    /// As containerd passed them.
    pub(crate) arguments: Vec<OsString>,
    /// The same, parsed.
    pub(crate) call: Invocation,
    /// The real shim.
    pub(crate) inner: PathBuf,
    /// The keys for this wrapper's name.
    pub(crate) config: WrapperConfig,
    /// The mistake in the configuration file, if it was refused.
    pub(crate) mistake: Option<String>,
}

/// Replaces this process with the inner shim, with the same arguments and environment except for
/// `change`.
pub(crate) fn become_inner(inner: &Path, arguments: &[OsString], change: impl Fn(&mut Command)) -> ExitCode {
    let mut command = Command::new(inner);
    command.args(arguments);
    change(&mut command);
    let error = command.exec();
    failed(&format!("cannot run {}: {error}", inner.display()))
}

/// Reports a failed start on standard error, which containerd shows.
pub(crate) fn failed(why: &str) -> ExitCode {
    writeln!(std::io::stderr(), "containerd-shim-coroner-v2: {why}").ok();
    ExitCode::FAILURE
}

impl Start {
    /// Starts the inner shim. The wrapper writes nothing of its own to the standard streams:
    /// containerd reads both together as the shim's answer.
    pub(crate) fn run(self) -> ExitCode {
        let answer = match &self.mistake {
            Some(mistake) => Err(format!("the configuration is refused: {mistake}")),
            None => probe(&self.config),
        };
        match &answer {
            Ok(()) => unmanaged::remove(&self.records(), &self.call.namespace, &self.call.id),
            Err(why) => {
                self.log_fallback(why);
                self.record_unmanaged(why);
            }
        }
        let behind = answer.is_ok();
        match self.config.mode {
            WrapperMode::Wrapped => {
                become_inner(&self.inner, &self.arguments, |command| self.publish(command, behind))
            }
            WrapperMode::Proxy => self.start_with_proxy(behind),
        }
    }

    fn publish(&self, command: &mut Command, behind: bool) {
        if behind {
            command.env(TTRPC_ADDRESS, &self.config.socket);
        }
    }

    /// Runs the inner shim's `start` and starts a proxy for the shim. A pod's later containers
    /// share that shim: they use the proxy exactly if the first one does, whether the router
    /// answers or not.
    fn start_with_proxy(&self, behind: bool) -> ExitCode {
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
                Ok(Some(instead)) => printed = instead,
                Ok(None) => {}
                Err(why) => self.log_fallback(&format!("no proxy: {why}")),
            }
        }
        if std::io::stdout().write_all(&printed).and_then(|()| std::io::stdout().flush()).is_err() {
            return ExitCode::FAILURE;
        }
        let signal = || output.status.signal().map_or(1, |signal| 128 + signal);
        ExitCode::from(u8::try_from(output.status.code().unwrap_or_else(signal)).unwrap_or(1))
    }

    /// The answer to print in place of the inner shim's; `None`: unchanged.
    fn proxied(
        &self,
        printed: &[u8],
        behind: bool,
        begun: SystemTime,
    ) -> Result<Option<Vec<u8>>, Box<dyn Error>> {
        let answer = StartAnswer::parse(printed)?;
        let gets_one = place::is_live(&answer.proxy) || (behind && is_new(&answer.inner, begun));
        if !gets_one {
            return Ok(None);
        }
        self.ensure_proxy(&answer)?;
        if let Err(error) = address::rewrite(Path::new("."), &answer.address()) {
            self.log_fallback(&format!(
                "a restarted containerd bypasses the proxy: cannot rewrite the bundle's `address`: {error}"
            ));
        }
        Ok(Some(answer.printed()))
    }

    fn ensure_proxy(&self, answer: &StartAnswer) -> std::io::Result<()> {
        if place::is_live(&answer.proxy) {
            return Ok(());
        }
        let _one_at_a_time = place::lock(&answer.proxy)?;
        if place::is_live(&answer.proxy) {
            return Ok(());
        }
        let options = Options {
            inner: answer.inner.clone(),
            router: self.config.socket.clone(),
            hold: self.config.hold,
            namespace: self.call.namespace.clone(),
            id: self.call.id.clone(),
        };
        place::start_proxy(&answer.proxy, &options)
    }

    fn records(&self) -> PathBuf {
        unmanaged::folder(&self.config.socket)
    }

    /// Leaves a record for `coroner status`. A pod's start never fails for it.
    fn record_unmanaged(&self, why: &str) {
        let Ok(bundle) = env::current_dir() else { return };
        let Invocation { namespace, id, .. } = self.call.clone();
        let record = UnmanagedStart { id, namespace, bundle, reason: why.to_owned() };
        if let Err(error) = record.write(&self.records()) {
            self.log_fallback(&format!("`coroner status` will not show this pod: {error}"));
        }
    }

    fn log_fallback(&self, why: &str) {
        let Invocation { namespace, id, .. } = &self.call;
        let socket = self.config.socket.display();
        let message = format!("fallback: {why} (socket {socket}, namespace {namespace}, container {id})");
        log::line(&message, self.config.log.as_deref());
    }
}

/// Whether a socket is newer than `begun`. An older shim keeps publishing to the address that it
/// was started with, and its containers have no proxy.
fn is_new(socket: &Path, begun: SystemTime) -> bool {
    fs::metadata(socket).and_then(|it| it.modified()).is_ok_and(|made| made + AT_ONCE >= begun)
}

/// Checks that a router answers, and that its source has the wrapper's mode.
fn probe(config: &WrapperConfig) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot query the router: {error}"))?;
    let answer = runtime.block_on(async { RouterClient::new(&config.socket).hello(config.probe).await });
    let mode = answer.map_err(|error| error.to_string())?.mode;
    match mode == config.mode.name() {
        true => Ok(()),
        false => Err(format!("its source has mode \"{mode}\", the wrapper \"{}\"", config.mode.name())),
    }
}
