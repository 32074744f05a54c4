//! The timer of the write timeout: tokio's, or that of a simulation.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Resolves after the duration.
pub type Elapsed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Waits for a duration. The default is tokio's timer; a simulation has a clock of its own.
#[derive(Clone, Default)]
pub struct Timer(Option<Arc<dyn Fn(Duration) -> Elapsed + Send + Sync>>);

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Timer").field(&self.0.is_some()).finish()
    }
}

impl Timer {
    /// A timer on another clock.
    pub fn new(after: impl Fn(Duration) -> Elapsed + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(after)))
    }

    /// Resolves after `duration`.
    pub(super) async fn after(&self, duration: Duration) {
        match &self.0 {
            Some(after) => after(duration).await,
            None => tokio::time::sleep(duration).await,
        }
    }
}
