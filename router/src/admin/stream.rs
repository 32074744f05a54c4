//! `GET /tap`: audit records as they are written, one JSON document a line (NDJSON).
//!
//! Back-pressure: the next records are taken from the ring only when the connection has room, so
//! that a reader that is stuck costs one page of memory and delays nothing. Records that the ring
//! has evicted meanwhile are counted in a line `{"missed": N}`.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Response, header::CONTENT_TYPE};
use futures::stream::unfold;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::problem::Problem;
use coroner_core::signal::KINDS;
use coroner_sinks::tap::{Filter, Page, Tap};

/// Streams at once: each may buffer a page of a mebibyte. Without a limit, streams could
/// take every connection, so that `status` has none left.
pub(super) const MOST: usize = 16;
/// How often a stream without records checks whether the router stops.
const WAIT: Duration = Duration::from_secs(30);

/// The query: which records, and how often an idle stream shows that it is alive.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Wanted {
    container: Option<String>,
    pod: Option<String>,
    namespace: Option<String>,
    kind: Option<String>,
    heartbeat_ms: Option<u64>,
}

/// The line in place of records that were not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// How many, of any container.
    pub missed: u64,
}

impl Wanted {
    /// Refuses a kind of signal that does not exist: it would match nothing, for ever.
    pub(super) fn check(self) -> Result<Self, Problem> {
        match &self.kind {
            Some(kind) if !KINDS.contains(&kind.as_str()) => {
                Err(Problem::bad_request(format!("no kind of signal {kind}; there are {}", KINDS.join(", "))))
            }
            _ => Ok(self),
        }
    }
}

/// The response. Records are kept from now on: what happens after the response's head is in it.
pub(super) async fn open(
    tap: &Tap,
    wanted: Wanted,
    stop: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) -> Response<Body> {
    let Wanted { container, pod, namespace, kind, heartbeat_ms } = wanted;
    let filter = Filter { container, pod, namespace, kind };
    let heartbeat = heartbeat_ms.map(|ms| Duration::from_millis(ms.max(100)));
    let begin = tap.read(None, &filter, Duration::ZERO, stop.clone()).await.next;
    let reader = Reader { tap: tap.clone(), filter, heartbeat, stop, next: begin, _permit: permit };
    let lines = unfold(reader, |mut reader| async {
        let chunk = reader.chunk().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), reader))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, "application/x-ndjson".parse().expect("a header's value"));
    response
}

struct Reader {
    tap: Tap,
    filter: Filter,
    heartbeat: Option<Duration>,
    stop: watch::Receiver<bool>,
    next: u64,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// The lines of the next page; `None` once the router stops.
    async fn chunk(&mut self) -> Option<Bytes> {
        loop {
            let wait = self.heartbeat.unwrap_or(WAIT);
            let page = self.tap.read(Some(self.next), &self.filter, wait, self.stop.clone()).await;
            self.next = page.next;
            if !page.records.is_empty() || page.missed > 0 {
                return Some(lines(&page));
            }
            // An error: the router is gone.
            if self.stop.has_changed().is_err() || *self.stop.borrow() {
                return None;
            }
            if self.heartbeat.is_some() {
                return Some(Bytes::from_static(b"\n"));
            }
        }
    }
}

fn lines(page: &Page) -> Bytes {
    let mut text = String::new();
    if page.missed > 0 {
        let missed = Missed { missed: page.missed };
        text = serde_json::to_string(&missed).expect("a number can be written") + "\n";
    }
    for record in &page.records {
        text.push_str(record);
        text.push('\n');
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_document_ends_its_line() {
        let page = Page { records: vec!["{\"a\":1}".into(), "{}".into()], next: 2, missed: 3 };
        assert_eq!(lines(&page), "{\"missed\":3}\n{\"a\":1}\n{}\n");
    }
}
