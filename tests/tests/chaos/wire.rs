//! Between router and containerd: passes every byte, writes down every event that goes by and
//! whether containerd took it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

const UNPOISONED: &str = "nothing panics under this lock";

/// An event as it went by.
#[derive(Clone, Debug)]
pub(crate) struct Sighting {
    pub(crate) at: Instant,
    pub(crate) container: String,
    pub(crate) what: What,
    /// containerd has answered that it took it.
    pub(crate) acked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Oom,
    Exit { status: u32 },
}

/// What went by so far, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<Sighting>>>);

impl Ledger {
    pub(crate) fn all(&self) -> Vec<Sighting> {
        self.0.lock().expect(UNPOISONED).clone()
    }

    /// Whether containerd has an exit of this container.
    pub(crate) fn has_exit(&self, container: &str) -> bool {
        let all = self.0.lock().expect(UNPOISONED);
        all.iter().any(|it| it.acked && it.container == container && matches!(it.what, What::Exit { .. }))
    }

    fn add(&self, container: String, what: What) -> usize {
        let mut all = self.0.lock().expect(UNPOISONED);
        all.push(Sighting { at: Instant::now(), container, what, acked: false });
        all.len() - 1
    }

    fn acked(&self, place: usize) {
        self.0.lock().expect(UNPOISONED)[place].acked = true;
    }
}

/// Listens at `near` for a router, and dials `far` for each link that it opens. A link lives as
/// long as both its ends.
pub(crate) async fn serve(near: PathBuf, far: PathBuf, ledger: Ledger) {
    let listener = UnixListener::bind(near).expect("the folder is ours");
    let mut links = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((router, _)) = accepted else { continue };
                links.spawn(link(router, far.clone(), ledger.clone()));
            }
            Some(_) = links.join_next() => {}
        }
    }
}

async fn link(router: UnixStream, far: PathBuf, ledger: Ledger) {
    // Without a containerd the router's link ends, as a refused one does.
    let Ok(containerd) = connect(&far).await else { return };
    let (mut from_router, mut to_router) = router.into_split();
    let (mut from_containerd, mut to_containerd) = containerd.into_split();
    // Places in the ledger by the ttrpc stream of their request.
    let pending: Arc<Mutex<HashMap<u32, usize>>> = Arc::default();
    let requests = async {
        while let Some((stream, frame)) = frame(&mut from_router).await {
            if let Some((container, what)) = event(&frame[HEADER..]) {
                let place = ledger.add(container, what);
                pending.lock().expect(UNPOISONED).insert(stream, place);
            }
            if to_containerd.write_all(&frame).await.is_err() {
                return;
            }
        }
    };
    let answers = async {
        while let Some((stream, frame)) = frame(&mut from_containerd).await {
            let place = pending.lock().expect(UNPOISONED).remove(&stream);
            let answer = ttrpc::proto::Response::parse_from_bytes(&frame[HEADER..]);
            let took = answer.is_ok_and(|it| it.status.as_ref().is_none_or(|it| it.code.value() == 0));
            if let (Some(place), true) = (place, took) {
                ledger.acked(place);
            }
            if to_router.write_all(&frame).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

async fn connect(far: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(far).await
}

/// u32 length, u32 stream (big-endian), type, flags.
const HEADER: usize = 10;

async fn frame(from: &mut (impl AsyncReadExt + Unpin)) -> Option<(u32, Vec<u8>)> {
    let mut frame = vec![0; HEADER];
    from.read_exact(&mut frame).await.ok()?;
    let number = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    let (length, stream) = (number(0) as usize, number(4));
    frame.resize(HEADER + length, 0);
    from.read_exact(&mut frame[HEADER..]).await.ok()?;
    Some((stream, frame))
}

fn event(body: &[u8]) -> Option<(String, What)> {
    let request = ttrpc::proto::Request::parse_from_bytes(body).ok()?;
    let forward = ForwardRequest::parse_from_bytes(&request.payload).ok()?;
    let envelope = forward.envelope.into_option()?;
    let bytes = &envelope.event.value;
    match envelope.topic.as_str() {
        "/tasks/oom" => Some((TaskOOM::parse_from_bytes(bytes).ok()?.container_id, What::Oom)),
        "/tasks/exit" => {
            let exit = TaskExit::parse_from_bytes(bytes).ok()?;
            Some((exit.container_id, What::Exit { status: exit.exit_status }))
        }
        topic => panic!("nothing else is published: {topic}"),
    }
}
