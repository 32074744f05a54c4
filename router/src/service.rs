//! What the service manager hands over and is told: the control socket, and READY, STOPPING and STATUS of sd_notify(3). Nothing where there is none.

use std::os::unix::net::UnixListener;

use coroner::config::Config;
use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The control socket, where the service manager has opened it (sd_listen_fds(3)). To be called while there is one thread: it takes
/// the variables out of the environment, so that no process started here takes the socket for its own.
pub(crate) fn socket() -> Result<Option<UnixListener>, String> {
    let mut passed = ListenFd::from_env();
    if passed.len() > 1 {
        return Err(format!(
            "{} sockets were passed by LISTEN_FDS, and one has a use: the control socket",
            passed.len()
        ));
    }
    let socket = passed.take_unix_listener(0);
    let socket =
        socket.map_err(|error| format!("the socket passed by LISTEN_FDS is no control socket: {error}"))?;
    if let Some(socket) = &socket {
        let address = socket.local_addr();
        let path = address.as_ref().ok().and_then(|it| it.as_pathname());
        tracing::info!(socket = ?path, "the control socket is the service manager's");
    }
    Ok(socket)
}

/// Where the unit coroner.socket listens.
const UNIT: &str = "/run/coroner/control.sock";

/// What the units do not fit of a configuration.
pub(crate) fn note(config: &Config) -> Option<String> {
    let path = config.control.as_ref().filter(|path| path.as_os_str() != UNIT)?.display();
    Some(format!("control.socket: as a service, coroner.socket needs ListenStream={path} in place of {UNIT}"))
}

/// It serves.
pub(crate) fn ready(config: &Config) {
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let status = format!(
        "serving {} and {}, {}",
        count(config.sources.len(), "source"),
        count(config.guests.len(), "configured guest"),
        count(config.sinks.len(), "sink")
    );
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// It takes nothing new.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: delivers what was taken, for at most 5 s")]);
}

/// A manager that cannot be told will end what it thinks hangs: its operator should know why.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told (NOTIFY_SOCKET)");
    }
}
