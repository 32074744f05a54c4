//! The one place that polls: for files, and for CRI, which have no event to wait for.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// Short against anything measured here, long enough not to load the two cores that containers
/// start on.
const INTERVAL: Duration = Duration::from_millis(5);

/// Polls `probe` until it answers, at most for `deadline`; `what` names the wait in the error.
pub async fn until<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = probe().await? {
            return Ok(answer);
        }
        if start.elapsed() > deadline {
            bail!("timeout of {deadline:?} waiting for {what}");
        }
        sleep(INTERVAL).await;
    }
}

/// Polls `probe` until its answer has stayed the same for `quiet`, and returns that answer.
///
/// For "nothing more comes", which has no event.
pub async fn until_quiet<T: PartialEq>(
    quiet: Duration,
    mut probe: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let mut last = probe().await?;
    let mut since = Instant::now();
    while since.elapsed() < quiet {
        sleep(INTERVAL * 4).await;
        let now = probe().await?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}
