//! How a source is stopped: graceful shutdown of the router, or removal of its guest.

use tokio::sync::watch;

/// The two reasons for which a source stops.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Turns true when the router stops.
    pub stop: watch::Receiver<bool>,
    /// Turns true when the guest is removed. `None`: a source of the configuration file, which is
    /// never removed.
    pub removed: Option<watch::Receiver<bool>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopReason {
    Stop,
    Removed,
}

impl Shutdown {
    pub(super) async fn requested(&mut self) -> StopReason {
        let removed = async {
            let requested = match &mut self.removed {
                Some(removed) => removed.wait_for(|it| *it).await.is_ok(),
                None => false,
            };
            if !requested {
                // The sender is gone or does not exist: only the router's shutdown is left.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = removed => StopReason::Removed,
            _ = self.stop.wait_for(|it| *it) => StopReason::Stop,
        }
    }
}
