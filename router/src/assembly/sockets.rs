//! Unix sockets that the service manager opened (sd_listen_fds(3)). They outlive the router: a peer
//! that connects while it restarts waits in the socket's queue.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coroner_sources::settings::{Source, SourceKind};
use coroner_transport::Address;
use tokio::sync::watch;

/// Pause after an accept that failed: without descriptors it fails at once and again at once.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// The sockets that no part has taken yet.
#[derive(Debug, Default)]
pub struct InheritedSockets(Vec<UnixListener>);

impl InheritedSockets {
    /// The sockets, in the order in which they were passed.
    pub fn new(sockets: Vec<UnixListener>) -> Self {
        Self(sockets)
    }

    /// Takes the socket at the address of a source of type `shim`.
    pub(super) fn take_for_source(&mut self, source: &Source) -> Option<UnixListener> {
        match (&source.kind, &source.address) {
            (SourceKind::Shim, Address::Unix(path)) => self.take_at(path),
            _ => None,
        }
    }

    /// Takes the control socket: the one at its configured path. Otherwise the only one that is
    /// left replaces it, which `coroner check` warns of.
    pub(super) fn take_control(&mut self, path: &Path) -> Option<UnixListener> {
        self.take_at(path).or_else(|| if self.0.len() == 1 { self.0.pop() } else { None })
    }

    /// The sockets that no part has taken, with their paths.
    pub(super) fn unused(self) -> Vec<(PathBuf, UnixListener)> {
        self.0.into_iter().map(|socket| (path(&socket).unwrap_or_default(), socket)).collect()
    }

    fn take_at(&mut self, wanted: &Path) -> Option<UnixListener> {
        let at = self.0.iter().position(|socket| path(socket).as_deref() == Some(wanted))?;
        Some(self.0.remove(at))
    }
}

/// Closes every connection to a socket without a use: left in the queue, its peer would wait for an
/// answer until its own timeout.
pub(super) async fn refuse(socket: UnixListener, mut stop: watch::Receiver<bool>) {
    let refused = async {
        let Ok(socket) = coroner_transport::inherited(socket) else { return std::future::pending().await };
        loop {
            if socket.accept().await.is_err() {
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    };
    tokio::select! {
        () = refused => {}
        _ = stop.wait_for(|it| *it) => {}
    }
}

fn path(socket: &UnixListener) -> Option<PathBuf> {
    Some(socket.local_addr().ok()?.as_pathname()?.to_owned())
}

#[cfg(test)]
mod tests {
    use coroner_core::mode::Mode;

    use super::*;

    #[test]
    fn sockets_go_to_the_part_at_their_path_and_one_more_is_the_control_socket() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let listen = |name: &str| UnixListener::bind(at(name)).unwrap();
        let mut sockets = InheritedSockets::new(["other", "shim", "control", "rest"].map(listen).into());
        let source = |kind, name: &str| Source {
            name: "shims".to_owned(),
            kind,
            mode: Mode::Wrapped,
            guest: None,
            address: Address::Unix(at(name)),
            machine: None,
        };
        assert!(sockets.take_for_source(&source(SourceKind::Agent, "shim")).is_none(), "it is dialled");
        assert!(sockets.take_for_source(&source(SourceKind::Shim, "proxy")).is_none());
        let taken = sockets.take_for_source(&source(SourceKind::Shim, "shim")).unwrap();
        assert_eq!(path(&taken), Some(at("shim")));
        assert_eq!(path(&sockets.take_control(&at("control")).unwrap()), Some(at("control")));
        assert!(sockets.take_control(&at("control")).is_none(), "which of two is not known");
        let paths: Vec<PathBuf> = sockets.unused().into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, [at("other"), at("rest")]);
        let mut one = InheritedSockets::new(vec![listen("one")]);
        assert_eq!(path(&one.take_control(&at("control")).unwrap()), Some(at("one")));
    }
}
