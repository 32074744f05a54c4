//! The service manager's protocols: the sockets that it passes, and READY, STOPPING and
//! STATUS of sd_notify(3). Without a service manager they do nothing.

use coroner::node::InheritedSockets;
use coroner::node::config::Config;
use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The sockets that the service manager opened (sd_listen_fds(3)). To be called while there is one
/// thread: it removes the variables from the environment, so that no child process uses them.
pub(crate) fn sockets() -> Result<InheritedSockets, String> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for at in 0..passed.len() {
        let socket = passed.take_unix_listener(at);
        let socket =
            socket.map_err(|error| format!("a socket passed by LISTEN_FDS is not a unix socket: {error}"))?;
        if let Some(socket) = socket {
            let address = socket.local_addr();
            let path = address.as_ref().ok().and_then(|it| it.as_pathname());
            tracing::info!(socket = ?path, "the service manager passed a socket");
            sockets.push(socket);
        }
    }
    Ok(InheritedSockets::new(sockets))
}

/// Where the unit coroner.socket listens.
const UNIT: &str = "/run/coroner/control.sock";

/// A hint, where the units do not fit the configuration.
pub(crate) fn note(config: &Config) -> Option<String> {
    let path = config.control.as_ref().filter(|path| path.as_os_str() != UNIT)?.display();
    Some(format!("control.socket: as a service, coroner.socket needs ListenStream={path} in place of {UNIT}"))
}

/// The router serves.
pub(crate) fn ready(config: &Config) {
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let status = format!(
        "serving {} and {}, {}",
        count(config.sources.len(), "source"),
        count(config.guests.len(), "configured guest"),
        count(config.sinks.len(), "sink")
    );
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The router accepts nothing new.
pub(crate) fn stopping() {
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping: delivers what was accepted, for at most 5 s"),
    ]);
}

/// A manager that is not notified ends what seems to hang: the log has the reason.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be notified (NOTIFY_SOCKET)");
    }
}
