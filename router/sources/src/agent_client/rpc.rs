//! RPC errors and timeouts. A peer that lacks a call is distinguished from a broken link.

use std::time::Duration;

use ttrpc::Code;

use coroner_core::signal::{SignalError, excerpt};

/// Timeout of one call; after it the link is given up.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("{call}: {source}")]
    Call { call: &'static str, source: ttrpc::Error },
    #[error("{call}: refused, {reason}")]
    Refused { call: &'static str, reason: String },
    #[error("{call}: no answer in {}", humantime::format_duration(*.after))]
    Silent { call: &'static str, after: Duration },
    #[error("the peer is not a coroner-agent: it lacks {call} ({reason})")]
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
    /// Whether it is a protocol violation rather than a broken link.
    pub(crate) fn is_misconduct(&self) -> bool {
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

pub(crate) fn context(limit: Duration) -> ttrpc::context::Context {
    ttrpc::context::with_duration(limit)
}

/// Applies the router's own timeout too: a peer may keep a link open and never answer.
pub(crate) async fn within<A>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = ttrpc::Result<A>>,
) -> Result<A, LinkError> {
    match tokio::time::timeout(limit + TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(classify(call, source)),
        Err(_) => Err(LinkError::Silent { call, after: limit + TIMEOUT }),
    }
}

/// Distinguishes a peer that lacks a call from a broken link. Servers report it in four ways: see
/// docs/reference/agent-protocol.md.
pub(crate) fn classify(call: &'static str, source: ttrpc::Error) -> LinkError {
    let status = match &source {
        ttrpc::Error::RpcStatus(status) => status,
        // Errors that come as text mean an answer outside of the protocol, except the library's own
        // texts for a timeout and for a link that closed during the call.
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
    // The guest writes this text: without the cut a whole frame of it would go to the log and to
    // `coroner guest list`.
    let reason = format!("{:?}: {}", status.code(), excerpt(status.message()));
    if lacks { LinkError::Lacks { call, reason } } else { LinkError::Refused { call, reason } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_text_cut_to_size() {
        let refused = |code| {
            let message = format!("no\n{}", "x".repeat(60_000));
            classify("Hello", ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)))
        };
        for (code, lacks) in [(Code::NOT_FOUND, true), (Code::INTERNAL, false)] {
            let error = refused(code);
            let shown = error.to_string();
            assert_eq!(matches!(error, LinkError::Lacks { .. }), lacks, "{shown}");
            assert!(shown.len() < 200 && shown.contains("no?x"), "{shown}");
        }
    }
}
