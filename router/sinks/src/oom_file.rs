//! The sink `oom-file`: CRI-O subscribes to no events, and reports a container as OOMKilled if its
//! bundle contains a file `oom`.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use backon::BackoffBuilder;
use tokio::time::timeout;

use super::backoff::exponential;
use super::publish::Publish;
use crate::counts::DropReason;
use coroner_core::ruling::TaskEvent;

/// CRI-O's name of the file.
const NAME: &str = "oom";
/// Timeout of one attempt: a disk may hang.
const TRY: Duration = Duration::from_secs(2);
/// By then CRI-O has read the bundle.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);
const FIRST_GAP: Duration = Duration::from_millis(20);
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// Creates the file for a TaskOOM; other events need none.
pub(super) async fn send(
    publish: &Publish,
    attempts: &mut u32,
    error: &mut Option<String>,
) -> Result<(), DropReason> {
    send_within(GIVEN_UP_AFTER, publish, attempts, error).await
}

async fn send_within(
    limit: Duration,
    publish: &Publish,
    attempts: &mut u32,
    error: &mut Option<String>,
) -> Result<(), DropReason> {
    let (TaskEvent::Oom, Some(bundle)) = (&publish.event, &publish.bundle) else { return Ok(()) };
    let mut gaps = exponential(FIRST_GAP, LONGEST_GAP).build();
    let tries = async {
        loop {
            *attempts = attempts.saturating_add(1);
            let path = bundle.join(NAME);
            let shown = path.display().to_string();
            let made = timeout(TRY, tokio::task::spawn_blocking(move || make(&path))).await;
            let failed = match made {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(failed))) => failed,
                Ok(Err(panicked)) => io::Error::other(panicked),
                Err(_) => io::Error::from(ErrorKind::TimedOut),
            };
            *error = Some(format!("{shown}: {failed}"));
            if matches!(failed.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) {
                return Err(DropReason::Refused);
            }
            tokio::time::sleep(gaps.next().unwrap_or(LONGEST_GAP)).await;
        }
    };
    let sent = timeout(limit, tries).await.unwrap_or(Err(DropReason::Deadline));
    if sent.is_err() {
        tracing::warn!(container = publish.container, error = error.as_deref(), "cannot create the oom file");
    }
    sent
}

/// Never writes to an existing file and follows no link: a link could lead to another user's file.
fn make(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn publish(bundle: &Path) -> Publish {
        Publish {
            signal: "n::s:c:kill-1".to_owned(),
            container: "c".to_owned(),
            namespace: "default".to_owned(),
            bundle: Some(bundle.to_owned()),
            exec: None,
            event: TaskEvent::Oom,
            ruled: Instant::now(),
            repeat: false,
            ack: None,
        }
    }

    async fn sent(bundle: &Path) -> (Result<(), DropReason>, u32, Option<String>) {
        let (mut attempts, mut error) = (0, None);
        let outcome = send(&publish(bundle), &mut attempts, &mut error).await;
        (outcome, attempts, error)
    }

    #[tokio::test]
    async fn oom_file_created_once_and_existing_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (bundle, elsewhere) = (folder.path().join("bundle"), folder.path().join("elsewhere"));
        std::fs::create_dir(&bundle).unwrap();
        assert_eq!(sent(&bundle).await, (Ok(()), 1, None));
        assert_eq!(std::fs::read(bundle.join("oom")).unwrap(), b"");
        assert_eq!(sent(&bundle).await, (Ok(()), 1, None));
        std::fs::remove_file(bundle.join("oom")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, bundle.join("oom")).unwrap();
        assert_eq!(sent(&bundle).await.0, Ok(()));
        assert!(!elsewhere.exists(), "a link is not followed");
    }

    #[tokio::test]
    async fn bundle_gone_fails_at_once_with_reason() {
        let folder = tempfile::tempdir().unwrap();
        let (outcome, attempts, error) = sent(&folder.path().join("gone")).await;
        assert_eq!((outcome, attempts), (Err(DropReason::Refused), 1));
        assert!(error.unwrap().contains("gone/oom: No such file"));
    }

    #[tokio::test]
    async fn oom_file_retried_until_deadline() {
        let (too_long, limit) = ("x".repeat(300), Duration::from_millis(200));
        let (mut attempts, mut error) = (0, None);
        let publish = publish(&Path::new("/tmp").join(too_long));
        let sent = send_within(limit, &publish, &mut attempts, &mut error).await;
        assert_eq!(sent, Err(DropReason::Deadline));
        assert!(attempts > 1 && error.as_ref().unwrap().contains("too long"), "{attempts} {error:?}");
    }
}
