//! Feeds bytes to what reads them in the router, and checks that what comes out is as bounded as
//! the router relies on.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use coroner_proto::agent::{EvidenceResponse, HelloResponse, NextSignalsResponse, SnapshotResponse};
use coroner_proto::kata::OOMEvent;
use coroner_transport::Guard;
use coroner_transport::limits::{MAX_FRAME, valid_container_id};
use protobuf::Message as _;
use tokio::io::AsyncReadExt as _;
use ttrpc::proto::Response;

#[path = "../../router/sources/src/decode/mod.rs"]
mod decode;
#[path = "../../router/sources/src/agent_client/handshake.rs"]
mod handshake;
#[path = "../../router/sources/src/inferred.rs"]
mod inferred;
#[path = "../../router/sources/src/signal_stream.rs"]
mod signal_stream;

use crate::signal::{Event, Signal};
use decode::{container, count, decode};
use handshake::check_hello;
use inferred::{announced, guest_lost};
use signal_stream::SignalStream;

/// ttrpc's header: length, stream id, type, flags.
const HEADER: usize = 10;
/// More than every text of a signal together may have.
const SIGNAL: usize = 8 << 10;

/// More than the audit record of any evidence has: a process of two bytes has 200 there.
const EVIDENCE: usize = 4 << 20;

/// A link's bytes, and the bytes of an answer with signals.
pub fn signals(bytes: &[u8]) {
    for payload in answers(bytes).iter().map(Vec::as_slice).chain([bytes]) {
        if let Ok(answer) = NextSignalsResponse::parse_from_bytes(payload) {
            counted(payload, 2, answer.signals.len());
            for received in answer.signals {
                if let Ok((signal, _)) = decode(received, &stream(), 3) {
                    check(&signal);
                }
            }
        }
        if payload.len() <= decode::evidence::MAX_BYTES
            && let Ok(answer) = EvidenceResponse::parse_from_bytes(payload)
            && let Some(evidence) = answer.evidence.into_option()
            && let Ok(evidence) = decode::evidence::decode(evidence, "c", "k".to_owned())
        {
            let size = serde_json::to_string(&evidence).map(|json| json.len());
            assert!(size.is_ok_and(|bytes| bytes <= EVIDENCE), "{evidence:?}");
        }
        if let Ok(event) = OOMEvent::parse_from_bytes(payload) {
            let id = event.container_id;
            let valid = valid_container_id(&id);
            assert_eq!(guest_lost(&id, &stream(), "it ended", 3).is_ok(), valid);
            assert_eq!(announced(id, &stream(), 7, 3).map(|signal| check(&signal)).is_ok(), valid);
        }
    }
}

/// The bytes of an agent's first answer.
pub fn hello(bytes: &[u8]) {
    for payload in answers(bytes).iter().map(Vec::as_slice).chain([bytes]) {
        let Ok(answer) = HelloResponse::parse_from_bytes(payload) else { continue };
        counted(payload, 4, answer.capabilities.len());
        let Ok(agent) = check_hello(answer) else { continue };
        let plain = |text: &str| text.chars().count() <= 64 && !text.chars().any(char::is_control);
        assert!(plain(&agent.stream) && plain(&agent.version) && plain(&agent.placement), "{agent:?}");
        assert!(
            !agent.stream.is_empty() && !agent.stream.contains(':') && agent.known.len() <= 6,
            "{agent:?}"
        );
    }
}

/// The bytes of a page of a snapshot.
pub fn snapshot(bytes: &[u8]) {
    for payload in answers(bytes).iter().map(Vec::as_slice).chain([bytes]) {
        let Ok(page) = SnapshotResponse::parse_from_bytes(payload) else { continue };
        counted(payload, 1, page.containers.len());
        for received in page.containers {
            let Ok((kept, texts)) = container(received) else { continue };
            assert!(valid_container_id(&kept.id) && texts <= SIGNAL, "{kept:?}");
            // What is kept is what was counted, and some numbers.
            assert!(kept.compute_size() <= texts as u64 + 128, "{kept:?}");
        }
    }
}

/// The payloads of the answers that the guard lets through, as the library that reads behind it
/// finds them.
fn answers(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut passed = Vec::new();
    let mut guard = Guard::new(bytes);
    let refused = guard.refused();
    let read = pin!(guard.read_to_end(&mut passed)).poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(read) = read else { panic!("bytes are always there") };
    assert_eq!(read.is_err(), refused.get());
    assert!(bytes.starts_with(&passed), "the guard changes nothing");
    let (mut rest, mut answers) = (passed.as_slice(), Vec::new());
    while let Some((header, body)) = rest.split_at_checked(HEADER) {
        let length = header[..4].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        assert!(length <= MAX_FRAME, "the guard let a frame of {length} bytes through");
        let Some((body, next)) = body.split_at_checked(length) else { break };
        rest = next;
        answers.extend(Response::parse_from_bytes(body).ok().map(|answer| answer.payload));
    }
    answers
}

/// What was counted before it was parsed is what there is; what cannot be counted is refused, such
/// as a list with a last entry that is cut short, which is parsed.
fn counted(payload: &[u8], field: u32, entries: usize) {
    if let Ok(count) = count(payload, field) {
        assert_eq!(count, entries);
    }
}

fn stream() -> SignalStream {
    SignalStream { node: "n".to_owned(), guest: Some("g".to_owned()), id: "s".to_owned() }
}

fn check(signal: &Signal) {
    assert!(valid_container_id(signal.target.container_id.as_str()), "{signal:?}");
    assert!(signal.id.starts_with(&format!("n:g:s:{}:", signal.target.container_id)), "{signal:?}");
    let mut texts = signal.id.len() + signal.target.exec_id.as_ref().map_or(0, String::len);
    texts += signal.attributes.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    texts += match &signal.event {
        Event::OomKill(kill) => {
            let victim = kill.victim.as_ref().map_or(0, |victim| victim.comm.len());
            let cgroups = [&kill.cgroup, &kill.limit_cgroup];
            victim + cgroups.into_iter().flatten().map(String::len).sum::<usize>()
        }
        Event::Exited(exited) => {
            assert!(exited.status.is_none_or(|status| status <= 255), "{signal:?}");
            assert!(exited.signal.is_none_or(|number| number <= 127), "{signal:?}");
            exited.cause.as_ref().map_or(0, |cause| {
                let sender = cause.sender.as_ref().map_or(0, |sender| {
                    let more = [&sender.cgroup, &sender.exec_id].into_iter().flatten();
                    sender.comm.len() + more.map(String::len).sum::<usize>()
                });
                sender + cause.sources.iter().map(String::len).sum::<usize>()
            })
        }
        Event::Evidence(_) => panic!("agents send it only when it is requested: {signal:?}"),
        Event::Other(other) => other.kind.len() + other.json.len(),
        Event::Forwarded(_) => 0,
        Event::GuestLost(lost) => lost.reason.len(),
        Event::Pressure(_) | Event::KillRequest(_) => 0,
    };
    assert!(texts <= SIGNAL, "{texts} bytes of texts: {signal:?}");
}
