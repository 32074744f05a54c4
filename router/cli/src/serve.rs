//! `coroner run`: the router as a service.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use coroner::node::Assembly;
use coroner::node::config::{Config, ConfigError};
use coroner_policy::PolicyClient;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::args::{FAILED, WRONG};
use crate::{render, service};

/// The deadline of blocking threads at the end: a hung disk must not keep the process.
const LAST: Duration = Duration::from_millis(200);

pub(crate) fn run(path: &Path, shadow_all: bool) -> ExitCode {
    let config = match read(path) {
        Ok(mut config) => {
            config.policies.shadow_all = shadow_all;
            config
        }
        Err(error) => {
            render::errors(&error.to_string());
            return WRONG.into();
        }
    };
    // Before there are threads.
    let sockets = match service::sockets() {
        Ok(sockets) => sockets,
        Err(error) => {
            tracing::error!(error, "the router does not start");
            return FAILED.into();
        }
    };
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return FAILED.into();
        }
    };
    let ended = runtime.block_on(async {
        let stop = stop_signal()?;
        let mut router = Assembly::serving_on(&config, sockets).map_err(|error| error.to_string())?;
        let hangups =
            signal(SignalKind::hangup()).map_err(|error| format!("cannot wait for signals: {error}"))?;
        if let Some(policies) = router.policies() {
            router.add("hangup".to_owned(), reload(hangups, policies, router.stopped()));
        }
        if shadow_all {
            tracing::warn!("--shadow-all: no policy's ruling counts; the native default rules");
        }
        tracing::info!("ready");
        service::ready(&config);
        let stop = async {
            stop.await;
            service::stopping();
        };
        router.until(stop).await.map_err(|error| error.to_string())
    });
    runtime.shutdown_timeout(LAST);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "the router failed");
            FAILED.into()
        }
    }
}

/// A guest takes a descriptor, and the usual limit is 1,024.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays where it is");
    }
}

/// Reloads the policy directory on each SIGHUP.
async fn reload(mut hangups: Signal, policies: PolicyClient, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stop.wait_for(|it| *it) => return,
            _ = hangups.recv() => {}
        }
        let Some(reloaded) = policies.reload().await else { return };
        let (generation, refused) = (reloaded.listing.generation, reloaded.listing.refused.len());
        tracing::info!(
            generation,
            changed = reloaded.changed,
            refused,
            took_ms = reloaded.took_ms,
            "SIGHUP: policies reloaded"
        );
    }
}

/// The running program, even if its file was replaced since: after an upgrade, another version must
/// not compile for this one.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// The configuration. Unless it names a program to compile policies, this one does.
pub(crate) fn read(path: &Path) -> Result<Config, ConfigError> {
    let mut config = Config::read(path)?;
    config.policies.compile.program.get_or_insert_with(this_program);
    Ok(config)
}

/// This program, to compile policies.
pub(crate) fn this_program() -> PathBuf {
    PathBuf::from(THIS_PROGRAM)
}

/// Resolves on SIGTERM or SIGINT.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()>, String> {
    let register = |kind| signal(kind).map_err(|error| format!("cannot wait for signals: {error}"));
    let (mut term, mut int) = (register(SignalKind::terminate())?, register(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping: nothing new is taken");
    })
}
