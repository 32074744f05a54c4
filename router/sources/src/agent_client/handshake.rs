//! The handshake: checks an agent's `Hello`, because the stream's name becomes part of event ids
//! and log lines.

use coroner_proto::agent::HelloResponse;

use coroner_core::mode::Known;
use coroner_core::signal::{SignalError, excerpt};

/// Characters of a stream's name. It is part of every event id: without a bound a guest could make
/// each id as long as a frame.
const MAX_STREAM: usize = 64;
/// Capabilities that are read; the protocol has six.
const MAX_CAPABILITIES: usize = 32;

/// The agent's description of itself, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Handshake {
    pub(crate) stream: String,
    pub(crate) version: String,
    pub(crate) placement: String,
    pub(crate) cgroup_version: u32,
    pub(crate) known: Vec<Known>,
}

/// Checks an agent's first answer.
pub(crate) fn check_hello(hello: HelloResponse) -> Result<Handshake, SignalError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !(1..=MAX_STREAM).contains(&hello.stream_id.len()) || !hello.stream_id.bytes().all(plain) {
        return Err(SignalError::Stream { stream: excerpt(&hello.stream_id) });
    }
    let mut known: Vec<Known> =
        hello.capabilities.iter().take(MAX_CAPABILITIES).filter_map(|name| known(name)).collect();
    known.sort_unstable();
    known.dedup();
    Ok(Handshake {
        stream: hello.stream_id,
        version: excerpt(&hello.agent_version),
        placement: excerpt(&hello.placement),
        cgroup_version: hello.cgroup_version,
        known,
    })
}

fn known(name: &str) -> Option<Known> {
    match name {
        "kill-count" => Some(Known::KillCount),
        "victim" => Some(Known::Victim),
        "exit-status" => Some(Known::ExitStatus),
        "cause" => Some(Known::Cause),
        "pressure" => Some(Known::Pressure),
        "memory" => Some(Known::Memory),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_name_not_plain_refused() {
        let hello = |stream: &str| HelloResponse { stream_id: stream.to_owned(), ..HelloResponse::default() };
        assert!(check_hello(hello("0b1f-22")).is_ok());
        for bad in ["", "a b", "a:b", "a\n", &"x".repeat(65)] {
            assert!(check_hello(hello(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hello_texts_cut_to_size() {
        let hello = HelloResponse {
            stream_id: "s".to_owned(),
            agent_version: format!("1\n{}", "x".repeat(9000)),
            capabilities: vec!["memory".to_owned(); 5000],
            ..HelloResponse::default()
        };
        let greeting = check_hello(hello).unwrap();
        assert_eq!((greeting.version.len(), greeting.version.as_bytes()[1]), (64, b'?'));
        assert_eq!(greeting.known, [Known::Memory]);
    }
}
