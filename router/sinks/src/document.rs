//! Documents for sinks: an audit record, or the event of a ruling's action.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::time::Instant;

use crate::route::AUDIT;
use coroner_core::audit::{Delivered, Record};
use coroner_core::ruling::Action;
use coroner_core::signal::{Signal, Target};

/// Version of the event format; docs/operating/sinks.md documents it.
const VERSION: u32 = 1;

/// One document, as JSON.
#[derive(Debug)]
pub struct Document {
    /// Id of the event; for an audit record, an id derived from the signal's.
    pub id: String,
    /// `audit`, `/tasks/oom`, `/tasks/exit` or a report's topic.
    pub topic: String,
    /// `namespace/pod/container`, else the container's id, else none.
    pub subject: Option<String>,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// One JSON object without a line feed.
    pub json: Arc<str>,
    /// Id of the signal; `None` for an audit record: its delivery is not recorded.
    pub signal: Option<String>,
    /// Creation time: the deadline counts from here.
    pub made: Instant,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct EventDocument<'a> {
    v: u32,
    id: &'a str,
    topic: &'a str,
    reason: Option<&'a str>,
    message: Option<&'a str>,
    fields: Option<&'a [(String, String)]>,
    status: Option<u32>,
    signal: &'a Signal,
}

impl Document {
    /// The document of an audit record.
    pub(super) fn record(record: Record) -> Self {
        let (id, subject, at_ms) = match &record {
            Record::Ruled(ruled) => (
                format!("{}/ruled", ruled.signal.id),
                Some(subject(&ruled.signal.target)),
                happened_ms(&ruled.signal),
            ),
            Record::Delivered(Delivered { id, sink, topic, .. }) => {
                let topic = topic.trim_start_matches('/');
                (format!("{id}/delivered/{sink}/{topic}"), None, now_ms())
            }
            Record::Resumed(resumed) => {
                let subject = resumed.signal.as_ref().map(|signal| subject(&signal.target));
                (format!("{}/resumed/{}", resumed.id, resumed.at_ms), subject, resumed.at_ms)
            }
            Record::Recovered(found) => (format!("recovered/{}", found.at_ms), None, found.at_ms),
            Record::Chain(chain) => {
                (format!("chain/{}/{}", chain.at_ms, chain.generation), None, chain.at_ms)
            }
        };
        let json = record.to_line().trim_end().into();
        Self { id, topic: AUDIT.to_owned(), subject, at_ms, json, signal: None, made: Instant::now() }
    }

    /// The document of a signal's action number `at`. `status` is the published exit status.
    pub(super) fn event(signal: &Signal, at: usize, action: &Action, status: Option<u32>) -> Self {
        let id = format!("{}/{at}", signal.id);
        let report = match action {
            Action::Report(report) => Some(report),
            Action::TaskOom | Action::TaskExit(_) => None,
        };
        let event = EventDocument {
            v: VERSION,
            id: &id,
            topic: action.topic(),
            reason: report.map(|it| it.reason.as_str()),
            message: report.map(|it| it.message.as_str()),
            fields: report.map(|it| it.fields.as_slice()),
            status,
            signal,
        };
        let json = serde_json::to_string(&event).expect("signals contain only what JSON can express").into();
        Self {
            topic: action.topic().to_owned(),
            subject: Some(subject(&signal.target)),
            at_ms: happened_ms(signal),
            json,
            signal: Some(signal.id.clone()),
            made: Instant::now(),
            id,
        }
    }

    /// A batch as lines.
    pub fn lines(batch: &[Arc<Self>]) -> Vec<u8> {
        let mut lines = Vec::with_capacity(batch.iter().map(|it| it.json.len() + 1).sum());
        for document in batch {
            lines.extend_from_slice(document.json.as_bytes());
            lines.push(b'\n');
        }
        lines
    }

    /// Adds this document to an object as its last key. The JSON is copied as it is, not parsed for
    /// each sink.
    pub(super) fn within(&self, object: &impl Serialize, key: &str) -> String {
        let mut text = serde_json::to_string(object).expect("strings and numbers can be expressed in JSON");
        text.truncate(text.len() - 1);
        text.push_str(",\"");
        text.push_str(key);
        text.push_str("\":");
        text.push_str(&self.json);
        text.push('}');
        text
    }
}

/// Time of the signal by this node's clock. A guest can set its own clock to anything: for its
/// signals, the receive time.
fn happened_ms(signal: &Signal) -> u64 {
    let own = signal.target.guest.is_none();
    signal.at.wall_ms.filter(|_| own).unwrap_or(signal.at.received_ms)
}

fn subject(target: &Target) -> String {
    let owner = target.owner.as_ref();
    let named = owner.and_then(|it| Some((it.namespace.as_ref()?, it.pod.as_ref()?, it.container.as_ref()?)));
    match named {
        Some((namespace, pod, container)) => format!("{namespace}/{pod}/{container}"),
        None => target.container_id.to_string(),
    }
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
