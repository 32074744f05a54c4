//! What a source hears from the router: that it stops, or that its guest was removed.

use tokio::sync::watch;

/// The two words a source waits for.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Turns true when the router stops.
    pub stop: watch::Receiver<bool>,
    /// Turns true when the guest is not to be followed any more; `None`: that is never said of a source of the configuration file.
    pub removed: Option<watch::Receiver<bool>>,
}

/// Which word it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Stop,
    Removed,
}

impl Orders {
    pub(super) async fn heard(&mut self) -> Order {
        let removed = async {
            let said = match &mut self.removed {
                Some(removed) => removed.wait_for(|it| *it).await.is_ok(),
                None => false,
            };
            if !said {
                // Who could say it is not there, or gone: the router stops, and says so.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = removed => Order::Removed,
            _ = self.stop.wait_for(|it| *it) => Order::Stop,
        }
    }
}
