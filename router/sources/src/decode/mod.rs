//! Decodes an agent's message into a signal, or refuses it with the reason.

mod cause;
pub(crate) mod evidence;

use coroner_proto::agent;
use coroner_proto::agent::signal::Event as AgentEvent;
use coroner_transport::limits::valid_container_id;
use protobuf::rt::skip_field_for_tag;
use protobuf::{CodedInputStream, SpecialFields};

use super::signal_stream::SignalStream;
use coroner_core::signal::{
    ContainerId, Event, Evidence, Exited, KERNEL_LOG, KILLS_UNKNOWN, Level, Moment, OOM_TRACE, OomKilled,
    Other, Pressure, PressureOf, Signal, SignalError, Target, Victim, WITNESS, Witness, excerpt,
};

/// Bytes of a cgroup path: the kernel's PATH_MAX. It is copied into audit records.
pub(super) const MAX_CGROUP: usize = 4096;
/// Bytes of a command name. The kernel's own limit is 16; a guest could send a whole frame.
const MAX_COMM: usize = 64;
/// Bytes of an unknown kind's JSON, of its name, and of an explanation. Policies receive them and
/// the audit log stores them.
const MAX_JSON: usize = 4096;
const MAX_KIND: usize = 128;
const MAX_EXPLANATION: usize = 256;
/// Bytes of an exec id: containerd's limit for identifiers.
const MAX_EXEC: usize = 76;

/// A decoded signal, and the memory its container used, in bytes.
pub(super) type Decoded = (Signal, Option<u64>);

/// Checks every string and number of an untrusted message.
pub(super) fn decode(
    message: agent::Signal,
    stream: &SignalStream,
    received_ms: u64,
) -> Result<Decoded, SignalError> {
    let container_id = ContainerId::try_from(message.container_id)?;
    let container = container_id.as_str();
    let exec_id = message.exec_id.map(|id| bounded(container, "exec id", id, MAX_EXEC)).transpose()?;
    let mut attributes = Vec::new();
    let mut usage_bytes = None;
    let event = match message.event {
        Some(AgentEvent::OomKill(kill)) => {
            usage_bytes = kill.usage_bytes;
            if let Some(witness) = other_witness(&kill) {
                attributes.push((WITNESS.to_owned(), witness.to_owned()));
            }
            Event::OomKill(oom_kill(kill, container)?)
        }
        Some(AgentEvent::Exited(exited)) => {
            let explained = [
                ("unknown-because", &exited.unknown_because),
                (KILLS_UNKNOWN, &exited.kills_unknown_because),
            ];
            for (key, because) in explained {
                let because = bounded(container, "explanation", because.clone(), MAX_EXPLANATION)?;
                if !because.is_empty() {
                    attributes.push((key.to_owned(), because));
                }
            }
            Event::Exited(exit(&exited, container)?)
        }
        Some(AgentEvent::Pressure(message)) => match pressure(&message) {
            Some(pressure) => Event::Pressure(pressure),
            None => Event::Other(Other { kind: "pressure".to_owned(), json: "{}".to_owned() }),
        },
        Some(AgentEvent::Other(other)) => Event::Other(Other {
            kind: bounded(container, "kind", other.kind, MAX_KIND)?,
            json: bounded(container, "json", other.json, MAX_JSON)?,
        }),
        // A case of a later version: only its field number is known.
        None => {
            let field = message.special_fields.unknown_fields().iter().next();
            let kind = field.map_or_else(|| "none".to_owned(), |(number, _)| format!("field-{number}"));
            Event::Other(Other { kind, json: "{}".to_owned() })
        }
        Some(_) => Event::Other(Other { kind: "unknown".to_owned(), json: "{}".to_owned() }),
    };
    let signal = Signal {
        id: stream.event(&container_id, message.seq),
        at: Moment { boot_ns: Some(message.boot_ns), wall_ms: Some(message.wall_ms), received_ms },
        target: Target { exec_id, ..stream.target(container_id) },
        event,
        attributes,
    };
    Ok((signal, usage_bytes))
}

/// The witness where the counter could not be read any more.
fn other_witness(kill: &agent::OomKill) -> Option<&'static str> {
    match kill.witness.enum_value() {
        Ok(agent::Witness::WITNESS_KERNEL_LOG) => Some(KERNEL_LOG),
        Ok(agent::Witness::WITNESS_TRACE) => Some(OOM_TRACE),
        Ok(agent::Witness::WITNESS_COUNTER) | Err(_) => None,
    }
}

fn oom_kill(kill: agent::OomKill, container: &str) -> Result<OomKilled, SignalError> {
    let evidence = match kill.witness.enum_value() {
        Ok(agent::Witness::WITNESS_COUNTER) => Evidence::Counter,
        // That of a later agent too: the counter is not what proves the kill.
        _ => Evidence::Announced,
    };
    let witness = match kill.witness.enum_value() {
        Ok(agent::Witness::WITNESS_COUNTER) => Witness::Counter,
        Ok(agent::Witness::WITNESS_KERNEL_LOG) => Witness::KernelLog,
        Ok(agent::Witness::WITNESS_TRACE) => Witness::Trace,
        Err(_) => Witness::Announced,
    };
    let cgroup = bounded(container, "cgroup", kill.cgroup, MAX_CGROUP)?;
    let limit_cgroup = bounded(container, "limit's cgroup", kill.limit_cgroup, MAX_CGROUP)?;
    let victim = kill.victim.into_option().map(|victim| {
        let comm = bounded(container, "comm", victim.comm, MAX_COMM)?;
        Ok(Victim { pid: victim.pid, comm, is_init: victim.is_init })
    });
    Ok(OomKilled {
        added: Some(kill.added),
        total: Some(kill.total),
        evidence,
        group: kill.group,
        level: level(kill.level.enum_value()),
        cgroup: (!cgroup.is_empty()).then_some(cgroup),
        limit_bytes: kill.limit_bytes,
        limit_cgroup: (!limit_cgroup.is_empty()).then_some(limit_cgroup),
        limit_cgroup_bytes: kill.limit_cgroup_bytes,
        witnesses: vec![witness],
        victim: victim.transpose()?,
        groups: kill.groups,
        late: false,
    })
}

fn pressure(message: &agent::Pressure) -> Option<Pressure> {
    Some(Pressure {
        of: pressure_of(message.of.enum_value())?,
        full: message.full,
        avg10_centi: message.avg10_centi,
        avg60_centi: message.avg60_centi,
        total_us: message.total_us,
        stalled_us: message.stalled_us,
        high_events: message.high_events,
    })
}

fn bounded(container: &str, what: &'static str, text: String, limit: usize) -> Result<String, SignalError> {
    within(container, what, text.len(), limit).map(|_| text)
}

fn within(container: &str, what: &'static str, bytes: usize, limit: usize) -> Result<usize, SignalError> {
    if bytes <= limit {
        return Ok(bytes);
    }
    Err(SignalError::TooLong { container: container.to_owned(), what, bytes, limit })
}

/// Counts the entries of a list in a message that is not parsed yet. `field` is the list's field
/// number.
pub(super) fn count(message: &[u8], field: u32) -> protobuf::Result<usize> {
    let mut input = CodedInputStream::from_bytes(message);
    let mut count = 0;
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        // The field number, and wire type 2: length-delimited.
        count += usize::from(tag == field << 3 | 2);
        skip_field_for_tag(tag, &mut input)?;
    }
    Ok(count)
}

/// Checks a container of a snapshot and returns the number of bytes in its strings. Unknown fields
/// are dropped. Without this a guest could have the router keep them.
pub(super) fn container(mut message: agent::Container) -> Result<(agent::Container, usize), SignalError> {
    if !valid_container_id(&message.id) {
        return Err(SignalError::ContainerId { id: excerpt(&message.id) });
    }
    let mut texts = message.id.len() + within(&message.id, "cgroup", message.cgroup.len(), MAX_CGROUP)?;
    if let Some(exited) = message.exit.as_ref() {
        exit(exited, &message.id)?;
        texts += exited.cause.as_ref().map_or(0, cause::texts);
        for because in [&exited.unknown_because, &exited.kills_unknown_because] {
            texts += within(&message.id, "explanation", because.len(), MAX_EXPLANATION)?;
        }
    }
    if let Some(exited) = message.exit.as_mut() {
        exited.special_fields = SpecialFields::new();
        cause::drop_unknown(exited);
    }
    message.special_fields = SpecialFields::new();
    Ok((message, texts))
}

/// Checks an exit of a signal or a snapshot.
fn exit(message: &agent::Exited, container: &str) -> Result<Exited, SignalError> {
    let within = |what: &'static str, value: u32, limit: u32| {
        if value <= limit {
            return Ok(value);
        }
        Err(SignalError::OutOfRange { container: excerpt(container), what, value: value.into() })
    };
    let signal = message.signal.map(|signal| within("exit signal", signal, 127)).transpose()?;
    let cause = message.cause.as_ref().map(|it| cause::decode(it, container)).transpose()?;
    // An exit with a code has neither.
    let (signal, cause) = if message.by_signal == Some(false) { (None, None) } else { (signal, cause) };
    Ok(Exited {
        pid: message.pid,
        is_init: message.is_init,
        status: message.status.map(|status| within("exit status", status, 255)).transpose()?,
        signal: signal.map(|signal| u8::try_from(signal).expect("at most 127")),
        by_signal: message.by_signal,
        core: message.core,
        cause,
        at_ns: None,
        reconciled: false,
    })
}

fn level(message: Result<agent::Level, i32>) -> Level {
    match message {
        Ok(agent::Level::LEVEL_CONTAINER) => Level::Container,
        Ok(agent::Level::LEVEL_CHILD) => Level::Child,
        Ok(agent::Level::LEVEL_ANCESTOR) => Level::Ancestor,
        Ok(agent::Level::LEVEL_GUEST) => Level::Guest,
        Ok(agent::Level::LEVEL_UNKNOWN) | Err(_) => Level::Unknown,
    }
}

fn pressure_of(message: Result<agent::PressureOf, i32>) -> Option<PressureOf> {
    match message {
        Ok(agent::PressureOf::PRESSURE_OF_MEMORY) => Some(PressureOf::Memory),
        Ok(agent::PressureOf::PRESSURE_OF_CPU) => Some(PressureOf::Cpu),
        Ok(agent::PressureOf::PRESSURE_OF_IO) => Some(PressureOf::Io),
        Ok(agent::PressureOf::PRESSURE_OF_UNKNOWN) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use coroner_proto::agent::{self, signal::Event as AgentEvent};
    use protobuf::{Message, MessageField};

    use super::*;

    fn stream() -> SignalStream {
        SignalStream { node: "n".to_owned(), guest: None, id: "s".to_owned() }
    }

    /// The agent and the router each have this rule: the core does not depend on the protocol.
    #[test]
    fn container_id_valid_for_agent_iff_for_router() {
        let long = "f".repeat(257);
        let ids = ["a", "0", "c-1_x.y", &long[1..], "", ".", ".a", "a/b", "a b", "a\n", "\u{e9}", &long];
        for id in ids {
            assert_eq!(ContainerId::try_from(id.to_owned()).is_ok(), valid_container_id(id), "{id}");
        }
    }

    fn message(event: Option<AgentEvent>) -> agent::Signal {
        agent::Signal {
            seq: 7,
            container_id: "c1".to_owned(),
            boot_ns: 1,
            wall_ms: 2,
            event,
            ..Default::default()
        }
    }

    fn decoded(event: Option<AgentEvent>) -> Result<Signal, SignalError> {
        decode(message(event), &stream(), 3).map(|(signal, _)| signal)
    }

    #[test]
    fn other_witness_than_the_counter_is_named() {
        use agent::Witness::{WITNESS_COUNTER, WITNESS_KERNEL_LOG, WITNESS_TRACE};
        let later = protobuf::EnumOrUnknown::from_i32(99);
        for (witness, evidence, attribute) in [
            (WITNESS_COUNTER.into(), Evidence::Counter, None),
            (WITNESS_KERNEL_LOG.into(), Evidence::Announced, Some(KERNEL_LOG)),
            (WITNESS_TRACE.into(), Evidence::Announced, Some(OOM_TRACE)),
            (later, Evidence::Announced, None),
        ] {
            let kill = agent::OomKill { total: 1, added: 1, witness, ..Default::default() };
            let signal = decoded(Some(AgentEvent::OomKill(kill))).unwrap();
            let Event::OomKill(kill) = &signal.event else { panic!("{signal:?}") };
            assert_eq!(kill.evidence, evidence, "{witness:?}");
            let named = signal.attributes.iter().find(|(key, _)| key == WITNESS);
            assert_eq!(named.map(|(_, value)| value.as_str()), attribute, "{witness:?}");
        }
    }

    #[test]
    fn field_unseen_stays_unknown() {
        let signal = decoded(Some(AgentEvent::Exited(agent::Exited::default()))).unwrap();
        assert_eq!(signal.event, Event::Exited(Exited::unknown()));
        assert_eq!(signal.id, "n::s:c1:7");
        assert_eq!(signal.attributes, []);
    }

    #[test]
    fn container_id_invalid_refused() {
        for id in ["", "a/b", "..", "a b", "\u{e9}", &"x".repeat(257)] {
            let signal = agent::Signal { container_id: id.to_owned(), ..message(None) };
            let refused = decode(signal, &stream(), 3);
            assert!(matches!(refused, Err(SignalError::ContainerId { .. })), "{id}: {refused:?}");
        }
    }

    #[test]
    fn value_out_of_range_refused() {
        let victim = agent::Victim { comm: "x".repeat(65), ..Default::default() };
        let kill = agent::OomKill { victim: MessageField::some(victim), ..Default::default() };
        assert!(matches!(
            decoded(Some(AgentEvent::OomKill(kill))),
            Err(SignalError::TooLong { what: "comm", .. })
        ));
        let exited = agent::Exited { status: Some(256), ..Default::default() };
        assert!(matches!(
            decoded(Some(AgentEvent::Exited(exited))),
            Err(SignalError::OutOfRange { value: 256, .. })
        ));
        let exited = agent::Exited { signal: Some(128), ..Default::default() };
        assert!(matches!(
            decoded(Some(AgentEvent::Exited(exited))),
            Err(SignalError::OutOfRange { value: 128, .. })
        ));
        let other = agent::Other { json: "x".repeat(4097), ..Default::default() };
        assert!(matches!(
            decoded(Some(AgentEvent::Other(other))),
            Err(SignalError::TooLong { what: "json", .. })
        ));
    }

    #[test]
    fn snapshot_container_invalid_refused() {
        let good = agent::Container { id: "c1".to_owned(), cgroup: "/c1".to_owned(), ..Default::default() };
        assert_eq!(container(good.clone()).unwrap(), (good.clone(), 5));
        let odd = agent::Container { id: "c 1".to_owned(), ..good.clone() };
        assert!(matches!(container(odd), Err(SignalError::ContainerId { .. })));
        let long = agent::Container { cgroup: "x".repeat(4097), ..good.clone() };
        assert!(matches!(container(long), Err(SignalError::TooLong { what: "cgroup", .. })));
        let exited = agent::Exited { status: Some(256), ..Default::default() };
        let impossible = agent::Container { exit: MessageField::some(exited), ..good.clone() };
        assert!(matches!(container(impossible), Err(SignalError::OutOfRange { .. })));
        let mut padded = good.write_to_bytes().unwrap();
        // Field 20, length-delimited, two bytes.
        padded.extend_from_slice(&[0xa2, 0x01, 0x02, 0x08, 0x01]);
        let padded = agent::Container::parse_from_bytes(&padded).unwrap();
        assert_eq!(container(padded).unwrap().0, good);
    }

    #[test]
    fn list_entries_counted_before_parse() {
        let answer = agent::NextSignalsResponse {
            stream_id: "s".to_owned(),
            signals: vec![message(None); 300],
            lost: 2,
            ..Default::default()
        };
        let mut bytes = answer.write_to_bytes().unwrap();
        assert_eq!(count(&bytes, 2).unwrap(), 300);
        bytes.extend([0x12, 0].repeat(32_000));
        assert_eq!(count(&bytes, 2).unwrap(), 32_300);
        bytes.push(0x12);
        assert!(count(&bytes, 2).is_err(), "a tag and nothing after it");
    }

    #[test]
    fn kind_unknown_becomes_other() {
        // Field 20, length-delimited, two bytes: a case this version does not have.
        let mut bytes = message(None).write_to_bytes().unwrap();
        bytes.extend_from_slice(&[0xa2, 0x01, 0x02, 0x08, 0x01]);
        let signal = agent::Signal::parse_from_bytes(&bytes).unwrap();
        let (signal, _) = decode(signal, &stream(), 3).unwrap();
        assert_eq!(signal.event, Event::Other(Other { kind: "field-20".to_owned(), json: "{}".to_owned() }));
    }
}
