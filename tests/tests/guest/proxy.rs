//! A link that can be cut: passes bytes between a socket of its own and a guest's, until it is
//! requested to drop all it holds.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// After so long without a byte the guest has no more to send. A busy guest takes seconds for a
/// snapshot: a link that is cut before its first is never up, and its guest is lost after ten
/// seconds.
const SILENT: Duration = Duration::from_secs(2);

/// A proxy. Dropped, it and all its links are gone.
#[derive(Debug)]
pub(crate) struct Proxy {
    cuts: mpsc::Sender<()>,
    /// The latest link, and how many bytes the guest has sent on it.
    passed: watch::Receiver<(usize, usize)>,
    last_cut: usize,
    _task: JoinSet<()>,
}

impl Proxy {
    /// Listens at `at`, and dials `to` for each link.
    pub(crate) fn start(at: &std::path::Path, to: PathBuf) -> Self {
        let listener = UnixListener::bind(at).unwrap();
        let (cuts, mut cut) = mpsc::channel::<()>(1);
        let (progress, passed) = watch::channel((0, 0));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut links = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        links.spawn(pass(accepted.unwrap().0, to.clone(), progress.clone()));
                    }
                    Some(()) = cut.recv() => links.shutdown().await,
                    Some(_) = links.join_next() => {}
                    else => return,
                }
            }
        });
        Self { cuts, passed, last_cut: 0, _task: task }
    }

    /// Waits until a link is up that was not there at the last cut, and the guest has sent so many
    /// bytes on it, or has no more to send; and cuts it.
    pub(crate) async fn cut(&mut self, bytes: usize, patience: Duration) {
        let last = self.last_cut;
        let up = timeout(patience, self.passed.wait_for(|(link, passed)| *link > last && *passed > 0)).await;
        self.last_cut = up.expect("the link heals").unwrap().0;
        // What it sends depends on the request: a router that resumes requests less than a new one.
        while self.passed.borrow_and_update().1 < bytes {
            if timeout(SILENT, self.passed.changed()).await.is_err() {
                break;
            }
        }
        self.cuts.send(()).await.unwrap();
    }
}

async fn pass(mut near: UnixStream, to: PathBuf, progress: watch::Sender<(usize, usize)>) {
    // A guest that is gone does not answer: the link ends.
    let Ok(mut far) = UnixStream::connect(to).await else { return };
    let ((mut from_near, mut to_near), (mut from_far, mut to_far)) = (near.split(), far.split());
    let answers = async {
        let mut buffer = [0; 4096];
        progress.send_modify(|(link, passed)| (*link, *passed) = (*link + 1, 0));
        while let Ok(length @ 1..) = from_far.read(&mut buffer).await {
            if to_near.write_all(&buffer[..length]).await.is_err() {
                break;
            }
            progress.send_modify(|(_, passed)| *passed += length);
        }
    };
    tokio::select! {
        () = answers => {}
        _ = copy(&mut from_near, &mut to_far) => {}
    }
}
