//! Calls to an agent: each bounded in time, and a peer that lacks one told from a link that broke.

use std::time::Duration;

use ttrpc::Code;

use crate::signal::{SignalError, excerpt};

/// What a call may take before the link is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("{call}: {source}")]
    Call { call: &'static str, source: ttrpc::Error },
    #[error("{call}: refused, {reason}")]
    Refused { call: &'static str, reason: String },
    #[error("{call}: no answer in {}", humantime::format_duration(*.after))]
    Silent { call: &'static str, after: Duration },
    #[error("the peer is no coroner-agent: {call} is not there ({reason})")]
    Lacks { call: &'static str, reason: String },
    #[error("the agent's answer is out of order: seq {seq} after {after}")]
    Order { seq: u64, after: u64 },
    #[error("{call}: malformed: {source}")]
    Malformed { call: &'static str, source: SignalError },
    #[error("{call}: undecodable: {reason}")]
    Undecodable { call: &'static str, reason: String },
    #[error("a frame over the limit was refused")]
    Oversized,
    #[error("the stream changed within a link")]
    Stream,
}

impl LinkError {
    /// Whether it is an answer that no agent gives, rather than a link that broke.
    pub(super) fn is_misconduct(&self) -> bool {
        match self {
            Self::Order { .. }
            | Self::Malformed { .. }
            | Self::Undecodable { .. }
            | Self::Oversized
            | Self::Stream => true,
            Self::Connect(_)
            | Self::Call { .. }
            | Self::Refused { .. }
            | Self::Silent { .. }
            | Self::Lacks { .. } => false,
        }
    }
}

pub(super) fn context(limit: Duration) -> ttrpc::context::Context {
    ttrpc::context::with_duration(limit)
}

/// Bounds a call by our own clock too: a peer may keep a link open and never answer.
pub(super) async fn within<A>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = ttrpc::Result<A>>,
) -> Result<A, LinkError> {
    match tokio::time::timeout(limit + PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(classify(call, source)),
        Err(_) => Err(LinkError::Silent { call, after: limit + PATIENCE }),
    }
}

/// Tells a peer that lacks a call from a link that broke. Servers say it in four ways: see docs/agent-protocol.md.
pub(super) fn classify(call: &'static str, source: ttrpc::Error) -> LinkError {
    let status = match &source {
        ttrpc::Error::RpcStatus(status) => status,
        // What comes as text is an answer that is no message of the protocol, but for the library's own words of a deadline, and of a link that ended as the
        // call was handed to it.
        ttrpc::Error::Others(reason)
            if !["deadline", "channel closed"].iter().any(|it| reason.contains(it)) =>
        {
            return LinkError::Undecodable { call, reason: excerpt(reason) };
        }
        _ => return LinkError::Call { call, source },
    };
    let lacks = match status.code() {
        Code::UNIMPLEMENTED | Code::NOT_FOUND | Code::PERMISSION_DENIED => true,
        Code::INVALID_ARGUMENT => status.message().contains("does not exist"),
        _ => false,
    };
    // A guest writes the text: a frame full of it would go to the log, and to whoever lists guests.
    let reason = format!("{:?}: {}", status.code(), excerpt(status.message()));
    if lacks { LinkError::Lacks { call, reason } } else { LinkError::Refused { call, reason } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_as_it_refuses_is_cut_to_size() {
        let said = |code| {
            let message = format!("no\n{}", "x".repeat(60_000));
            classify("Hello", ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)))
        };
        for (code, lacks) in [(Code::NOT_FOUND, true), (Code::INTERNAL, false)] {
            let error = said(code);
            let shown = error.to_string();
            assert_eq!(matches!(error, LinkError::Lacks { .. }), lacks, "{shown}");
            assert!(shown.len() < 200 && shown.contains("no?x"), "{shown}");
        }
    }
}
