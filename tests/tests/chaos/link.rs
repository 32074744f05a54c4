//! A link between two unix sockets that can be cut: all connections end, and clients may connect
//! again at once.

use std::path::PathBuf;

use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;

/// Passes bytes from `near` to `far` until cut; each word on `cuts` ends every link there is.
pub(crate) async fn serve(near: PathBuf, far: PathBuf, cuts: broadcast::Sender<()>) {
    let listener = UnixListener::bind(near).expect("the folder is ours");
    let mut links = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((mut router, _)) = accepted else { continue };
                let (far, mut cut) = (far.clone(), cuts.subscribe());
                links.spawn(async move {
                    let Ok(mut agent) = UnixStream::connect(far).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut router, &mut agent) => {}
                        _ = cut.recv() => {}
                    }
                });
            }
            Some(_) = links.join_next() => {}
        }
    }
}
