//! The sink `containerd`: publishes TaskOOM and TaskExit on containerd's event exchange and retries
//! until containerd has accepted them.

mod repeats;

use std::time::Duration;

use backon::BackoffBuilder;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use coroner_containerd::EventLink;
use ttrpc::Code;

pub(super) use self::repeats::{Reconnected, Repeats};
use super::backoff::exponential;
use super::publish::Publish;
use coroner_core::ruling::TaskEvent;

/// Timeout of one attempt: a connection that hangs must be replaced.
const TRY: Duration = Duration::from_secs(2);
/// Back-off between two attempts for an event that containerd refuses.
const FIRST_GAP: Duration = Duration::from_millis(50);
const LONGEST_GAP: Duration = Duration::from_secs(1);
/// containerd's own value for an unknown exit status (`UnknownExitStatus`).
const UNKNOWN_STATUS: u32 = 255;

/// Retries until containerd has accepted the event.
pub(super) async fn send(
    publish: &Publish,
    mut link: EventLink,
    attempts: &mut u32,
    error: &mut Option<String>,
) {
    let request = request(publish);
    let mut gaps = exponential(FIRST_GAP, LONGEST_GAP).with_jitter().build();
    loop {
        let (generation, client) = link.up().await;
        *attempts = attempts.saturating_add(1);
        match client.forward(ttrpc::context::with_duration(TRY), &request).await {
            Ok(_) => return,
            // containerd answers and refuses the event: retry later on the same link.
            Err(ttrpc::Error::RpcStatus(status)) if status.code() != Code::DEADLINE_EXCEEDED => {
                *error = Some(status.message().to_owned());
                tokio::time::sleep(gaps.next().unwrap_or(LONGEST_GAP)).await;
            }
            Err(broken) => {
                *error = Some(broken.to_string());
                link.doubt(generation, &broken).await;
            }
        }
    }
}

fn request(publish: &Publish) -> ForwardRequest {
    let (name, value) = match &publish.event {
        TaskEvent::Oom => {
            let event = TaskOOM { container_id: publish.container.clone(), ..TaskOOM::default() };
            ("containerd.events.TaskOOM", event.write_to_bytes())
        }
        TaskEvent::Exit { exec_id, pid, status, exited_at_ms, exited_at_rest_ns, held: _ } => {
            let event = TaskExit {
                container_id: publish.container.clone(),
                id: exec_id.clone().unwrap_or_else(|| publish.container.clone()),
                pid: pid.unwrap_or(0),
                exit_status: status.unwrap_or(UNKNOWN_STATUS),
                exited_at: MessageField::some(timestamp(*exited_at_ms, *exited_at_rest_ns)),
                ..TaskExit::default()
            };
            ("containerd.events.TaskExit", event.write_to_bytes())
        }
        TaskEvent::Forwarded(event) => (event.type_url.as_str(), Ok(event.value.clone())),
    };
    let event = Any {
        // containerd 1.6 ignores an event if its URL has the `type.googleapis.com/` prefix.
        type_url: name.to_owned(),
        value: value.expect("a message of strings and numbers always encodes"),
        ..Any::default()
    };
    let published = match &publish.event {
        TaskEvent::Forwarded(event) => {
            event.published_ns.map(|at| timestamp(at / 1_000_000, (at % 1_000_000) as u32))
        }
        TaskEvent::Oom | TaskEvent::Exit { .. } => None,
    };
    let published = published.unwrap_or_else(Timestamp::now);
    let envelope = Envelope {
        timestamp: MessageField::some(published),
        namespace: publish.namespace.clone(),
        topic: publish.event.topic().to_owned(),
        event: MessageField::some(event),
        ..Envelope::default()
    };
    ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() }
}

fn timestamp(unix_ms: u64, rest_ns: u32) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(unix_ms % 1000).expect("under a thousand") * 1_000_000
            + i32::try_from(rest_ns).unwrap_or(0),
        ..Timestamp::default()
    }
}
