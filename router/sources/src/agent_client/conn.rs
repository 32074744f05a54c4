//! A connection to an agent. Lists in its answers are counted before they are parsed, and checked
//! before they are kept.

use std::time::Duration;

use coroner_proto::agent::{
    Container, EvidenceRequest, EvidenceResponse, HelloRequest, HelloResponse, NextSignalsRequest,
    NextSignalsResponse, SettleRequest, SettleResponse, SnapshotRequest, SnapshotResponse,
};
use protobuf::Message;
use ttrpc::asynchronous::Client;
use ttrpc::proto::Request;

use super::rpc::{LinkError, TIMEOUT, within};
use crate::decode;
use coroner_core::signal::{ContainerId, KillEvidence, SignalError, excerpt};

/// Signals per request: some 100 bytes each, far below a frame.
pub(crate) const BATCH: u32 = 256;
/// Capabilities of one answer; the protocol has six.
const CAPABILITIES: usize = 256;
/// Containers of one page of a snapshot: more than any agent fits into one.
const PAGE: usize = 4096;
/// Pages of a snapshot, and bytes of their strings: more than any agent has. Without these limits a
/// guest could send pages for ever, and the router would hold them all.
const PAGES: usize = 1024;
const TEXTS: usize = 4 << 20;

/// A list in an answer: its field number, its name for errors, and the limit of its entries. An
/// entry can be two bytes of a frame, and takes hundreds once it is parsed.
type List = (u32, &'static str, usize);

/// The agent's RPCs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AgentConn(Client);

impl std::fmt::Debug for AgentConn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AgentConn")
    }
}

impl AgentConn {
    pub(crate) fn new(client: Client) -> Self {
        Self(client)
    }

    pub(crate) async fn hello(&self, request: &HelloRequest) -> Result<HelloResponse, LinkError> {
        self.call("Hello", TIMEOUT, request, Some((4, "capabilities", CAPABILITIES))).await
    }

    pub(crate) async fn next_signals(
        &self,
        request: &NextSignalsRequest,
        limit: Duration,
    ) -> Result<NextSignalsResponse, LinkError> {
        let signals = (2, "signals of an answer", BATCH as usize);
        self.call("NextSignals", limit, request, Some(signals)).await
    }

    /// Has the agent read a container's counter. Returns the stream position that includes the
    /// read, and the counter; `None` where the agent never could read it.
    pub(crate) async fn read_final_count(
        &self,
        id: &ContainerId,
        limit: Duration,
    ) -> Result<(u64, Option<u64>), LinkError> {
        let request = SettleRequest { container_id: id.to_string(), ..SettleRequest::default() };
        let answer: SettleResponse = self.call("Settle", limit, &request, None).await?;
        Ok((answer.seq, answer.kills_total))
    }

    /// The evidence of a container's last kill and the sequence number of that kill; `None`: the
    /// agent has none. `kill`: id of the signal of the kill it is requested for.
    pub(crate) async fn evidence(
        &self,
        id: &ContainerId,
        kill: &str,
    ) -> Result<Option<(KillEvidence, u64)>, LinkError> {
        const CALL: &str = "GetEvidence";
        let malformed = |source| LinkError::Malformed { call: CALL, source };
        let request = EvidenceRequest { container_id: id.to_string(), ..EvidenceRequest::default() };
        let payload = self.payload(CALL, TIMEOUT, &request).await?;
        within_limit("bytes of evidence", payload.len(), decode::evidence::MAX_BYTES).map_err(malformed)?;
        let answer: EvidenceResponse = parsed(CALL, &payload)?;
        let Some(evidence) = answer.evidence.into_option() else { return Ok(None) };
        let seq = evidence.seq;
        let evidence = decode::evidence::decode(evidence, id.as_str(), kill.to_owned());
        Ok(Some((evidence.map_err(malformed)?, seq)))
    }

    /// Reads all pages of the agent's state, `most` containers at most, and the sequence number
    /// that the first page is complete up to.
    pub(crate) async fn snapshot(&self, most: usize) -> Result<(Vec<Container>, u64), LinkError> {
        const CALL: &str = "Snapshot";
        let malformed = |source| LinkError::Malformed { call: CALL, source };
        let mut containers: Vec<Container> = Vec::new();
        let (mut as_of, mut texts) = (None, 0);
        for _ in 0..PAGES {
            let request = SnapshotRequest {
                after_container_id: containers.last().map(|it| it.id.clone()).unwrap_or_default(),
                ..SnapshotRequest::default()
            };
            let page: SnapshotResponse =
                self.call(CALL, TIMEOUT, &request, Some((1, "containers of a page", PAGE))).await?;
            as_of.get_or_insert(page.as_of_seq);
            let more = page.more && !page.containers.is_empty();
            within_limit("containers of a snapshot", containers.len() + page.containers.len(), most)
                .map_err(malformed)?;
            for container in page.containers {
                let (container, bytes) = decode::container(container).map_err(malformed)?;
                texts += bytes;
                containers.push(container);
            }
            within_limit("bytes of a snapshot", texts, TEXTS).map_err(malformed)?;
            if !more {
                break;
            }
        }
        Ok((containers, as_of.unwrap_or(0)))
    }

    async fn call<A: Message>(
        &self,
        call: &'static str,
        limit: Duration,
        request: &impl Message,
        list: Option<List>,
    ) -> Result<A, LinkError> {
        let payload = self.payload(call, limit, request).await?;
        if let Some((field, what, most)) = list {
            let count = decode::count(&payload, field).map_err(|error| undecodable(call, &error))?;
            within_limit(what, count, most).map_err(|source| LinkError::Malformed { call, source })?;
        }
        parsed(call, &payload)
    }

    /// The answer's message, not parsed yet.
    async fn payload(
        &self,
        call: &'static str,
        limit: Duration,
        request: &impl Message,
    ) -> Result<Vec<u8>, LinkError> {
        let request = Request {
            service: "coroner.agent.v1.Agent".to_owned(),
            method: call.to_owned(),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
            payload: request.write_to_bytes().expect("a message of strings and numbers always encodes"),
            ..Request::default()
        };
        Ok(within(call, limit, self.0.request(request)).await?.payload)
    }
}

fn parsed<A: Message>(call: &'static str, payload: &[u8]) -> Result<A, LinkError> {
    A::parse_from_bytes(payload).map_err(|error| undecodable(call, &error))
}

fn undecodable(call: &'static str, error: &protobuf::Error) -> LinkError {
    LinkError::Undecodable { call, reason: excerpt(&error.to_string()) }
}

fn within_limit(what: &'static str, count: usize, limit: usize) -> Result<(), SignalError> {
    if count <= limit { Ok(()) } else { Err(SignalError::TooMany { what, count, limit }) }
}
