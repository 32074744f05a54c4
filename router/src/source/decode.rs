//! An agent's message becomes a signal here, or is refused with what is wrong with it.

use coroner_proto::agent;
use coroner_proto::agent::signal::Event as Told;
use coroner_proto::limits::valid_container_id;
use protobuf::rt::skip_field_for_tag;
use protobuf::{CodedInputStream, SpecialFields};

use crate::signal::{
    ContainerId, Event, Evidence, Exited, GuestLost, Level, Moment, OomKill, Other, Pressure, PressureOf,
    Signal, SignalError, Target, Victim, excerpt,
};

/// Bytes of a cgroup path: the kernel's PATH_MAX. It is copied into audit records.
const MAX_CGROUP: usize = 4096;
/// Bytes of a command name. The kernel's own limit is 16; a guest could send a frame full.
const MAX_COMM: usize = 64;
/// Bytes of an unknown kind's JSON and name, and of an explanation. They are shown to policies and audited.
const MAX_JSON: usize = 4096;
const MAX_KIND: usize = 128;
const MAX_EXPLANATION: usize = 256;
/// Bytes of an exec id: containerd's limit for identifiers.
const MAX_EXEC: usize = 76;

/// What all signals of one stream share.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) node: String,
    pub(super) guest: Option<String>,
    pub(super) id: String,
}

impl Stream {
    /// The id of an event of this stream: docs/sinks.md, "Event ids". None of its parts holds a colon.
    fn event(&self, container: &ContainerId, seq: impl std::fmt::Display) -> String {
        format!("{}:{}:{}:{container}:{seq}", self.node, self.guest.as_deref().unwrap_or(""), self.id)
    }

    /// The id of kills that no signal of its own told: there are this many now.
    pub(super) fn kills(&self, container: &ContainerId, total: u64) -> String {
        self.event(container, format_args!("kills-{total}"))
    }
}

/// A decoded signal, and the memory its container used, in bytes.
pub(super) type Decoded = (Signal, Option<u64>);

/// Checks every text and number of a stranger's message.
pub(super) fn decode(told: agent::Signal, stream: &Stream, received_ms: u64) -> Result<Decoded, SignalError> {
    let container_id = ContainerId::try_from(told.container_id)?;
    let bounded = |what: &'static str, text: String, limit: usize| {
        if text.len() <= limit {
            return Ok(text);
        }
        Err(SignalError::TooLong { container: container_id.to_string(), what, bytes: text.len(), limit })
    };
    let exec_id = told.exec_id.map(|id| bounded("exec id", id, MAX_EXEC)).transpose()?;
    let unknown_fields: Vec<u32> =
        told.special_fields.unknown_fields().iter().map(|(number, _)| number).collect();
    let mut attributes = Vec::new();
    let mut usage_bytes = None;
    let event = match told.event {
        Some(Told::OomKill(kill)) => {
            usage_bytes = kill.usage_bytes;
            let cgroup = bounded("cgroup", kill.cgroup, MAX_CGROUP)?;
            let victim = kill.victim.into_option().map(|victim| {
                let comm = bounded("comm", victim.comm, MAX_COMM)?;
                Ok(Victim { pid: victim.pid, comm, is_init: victim.is_init })
            });
            Event::OomKill(OomKill {
                added: Some(kill.added),
                total: Some(kill.total),
                evidence: Evidence::Counter,
                group: kill.group,
                level: level(kill.level.enum_value()),
                cgroup: (!cgroup.is_empty()).then_some(cgroup),
                limit_bytes: kill.limit_bytes,
                victim: victim.transpose()?,
                late: false,
            })
        }
        Some(Told::Exited(exited)) => {
            let because = bounded("explanation", exited.unknown_because.clone(), MAX_EXPLANATION)?;
            if !because.is_empty() {
                attributes.push(("unknown-because".to_owned(), because));
            }
            Event::Exited(exit(&exited, container_id.as_str())?)
        }
        Some(Told::Pressure(pressure)) => match pressure_of(pressure.of.enum_value()) {
            Some(of) => Event::Pressure(Pressure {
                of,
                full: pressure.full,
                avg10_centi: pressure.avg10_centi,
                avg60_centi: pressure.avg60_centi,
                total_us: pressure.total_us,
                stalled_us: pressure.stalled_us,
                high_events: pressure.high_events,
            }),
            None => Event::Other(Other { kind: "pressure".to_owned(), json: "{}".to_owned() }),
        },
        Some(Told::Other(other)) => Event::Other(Other {
            kind: bounded("kind", other.kind, MAX_KIND)?,
            json: bounded("json", other.json, MAX_JSON)?,
        }),
        // A later version's case: known by its field number only.
        None => Event::Other(Other {
            kind: unknown_fields
                .first()
                .map_or_else(|| "none".to_owned(), |number| format!("field-{number}")),
            json: "{}".to_owned(),
        }),
        Some(_) => Event::Other(Other { kind: "unknown".to_owned(), json: "{}".to_owned() }),
    };
    let signal = Signal {
        id: stream.event(&container_id, told.seq),
        at: Moment { boot_ns: Some(told.boot_ns), wall_ms: Some(told.wall_ms), received_ms },
        target: Target { exec_id, ..target(container_id, stream) },
        event,
        attributes,
    };
    Ok((signal, usage_bytes))
}

/// How many entries a list has in a message that is not parsed yet; `field`: its number.
pub(super) fn count(message: &[u8], field: u32) -> protobuf::Result<usize> {
    let mut input = CodedInputStream::from_bytes(message);
    let mut count = 0;
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        // Its number, and that what follows is length-delimited.
        count += usize::from(tag == field << 3 | 2);
        skip_field_for_tag(tag, &mut input)?;
    }
    Ok(count)
}

/// Checks a snapshot's container, and answers how many bytes its texts have. What this version does not know of it is dropped: a guest could else have
/// the router keep it.
pub(super) fn container(mut told: agent::Container) -> Result<(agent::Container, usize), SignalError> {
    if !valid_container_id(&told.id) {
        return Err(SignalError::ContainerId { id: excerpt(&told.id) });
    }
    let within = |what: &'static str, bytes: usize, limit: usize| {
        if bytes <= limit {
            return Ok(bytes);
        }
        Err(SignalError::TooLong { container: told.id.clone(), what, bytes, limit })
    };
    let mut texts = told.id.len() + within("cgroup", told.cgroup.len(), MAX_CGROUP)?;
    if let Some(exited) = told.exit.as_ref() {
        exit(exited, &told.id)?;
        texts += within("explanation", exited.unknown_because.len(), MAX_EXPLANATION)?;
    }
    if let Some(exited) = told.exit.as_mut() {
        exited.special_fields = SpecialFields::new();
    }
    told.special_fields = SpecialFields::new();
    Ok((told, texts))
}

/// A container whose guest is gone.
pub(super) fn gone(id: &str, stream: &Stream, reason: &str, received_ms: u64) -> Result<Signal, SignalError> {
    let container_id = ContainerId::try_from(id.to_owned())?;
    let id = stream.event(&container_id, "lost");
    let at = Moment { boot_ns: None, wall_ms: None, received_ms };
    let event = Event::GuestLost(GuestLost { reason: reason.to_owned() });
    Ok(Signal { id, at, target: target(container_id, stream), event, attributes: Vec::new() })
}

/// An OOM kill that was announced and that nothing counts.
pub(super) fn announced(
    id: String,
    stream: &Stream,
    seq: u64,
    received_ms: u64,
) -> Result<Signal, SignalError> {
    let container_id = ContainerId::try_from(id)?;
    let id = stream.event(&container_id, seq);
    let at = Moment { boot_ns: None, wall_ms: None, received_ms };
    let event = Event::OomKill(OomKill {
        added: None,
        total: None,
        evidence: Evidence::Announced,
        group: None,
        level: Level::Unknown,
        cgroup: None,
        limit_bytes: None,
        victim: None,
        late: false,
    });
    Ok(Signal { id, at, target: target(container_id, stream), event, attributes: Vec::new() })
}

/// OOM kills that were counted while neither router nor agent looked.
pub(super) fn killed_unseen(
    told: &agent::Container,
    before: u64,
    now: u64,
    stream: &Stream,
    received_ms: u64,
) -> Result<Signal, SignalError> {
    let container_id = ContainerId::try_from(told.id.clone())?;
    let id = stream.kills(&container_id, now);
    let at = Moment { boot_ns: None, wall_ms: None, received_ms };
    let event = Event::OomKill(OomKill {
        added: Some(now - before),
        total: Some(now),
        evidence: Evidence::Counter,
        group: None,
        level: Level::Unknown,
        cgroup: (told.cgroup.len() <= MAX_CGROUP && !told.cgroup.is_empty()).then(|| told.cgroup.clone()),
        limit_bytes: told.limit_bytes,
        victim: None,
        late: false,
    });
    let attributes = vec![("reconciled".to_owned(), "true".to_owned())];
    Ok(Signal { id, at, target: target(container_id, stream), event, attributes })
}

/// The end of a container that neither router nor agent saw.
pub(super) fn ended_unseen(
    id: &str,
    status: Option<u32>,
    stream: &Stream,
    received_ms: u64,
) -> Result<Signal, SignalError> {
    let container_id = ContainerId::try_from(id.to_owned())?;
    let id = stream.event(&container_id, "unseen");
    let at = Moment { boot_ns: None, wall_ms: None, received_ms };
    let exited = Exited {
        pid: None,
        is_init: Some(true),
        status,
        signal: None,
        core: None,
        at_ns: None,
        reconciled: true,
    };
    let because = "it ended while neither router nor agent ran";
    let attributes = vec![("unknown-because".to_owned(), because.to_owned())];
    Ok(Signal { id, at, target: target(container_id, stream), event: Event::Exited(exited), attributes })
}

fn target(container_id: ContainerId, stream: &Stream) -> Target {
    Target {
        node: stream.node.clone(),
        guest: stream.guest.clone(),
        containerd_namespace: None,
        sandbox_id: None,
        container_id,
        exec_id: None,
        owner: None,
    }
}

/// An exit as an agent tells it, in a signal or a snapshot.
fn exit(told: &agent::Exited, container: &str) -> Result<Exited, SignalError> {
    let within = |what: &'static str, value: u32, limit: u32| {
        if value <= limit {
            return Ok(value);
        }
        Err(SignalError::OutOfRange { container: excerpt(container), what, value: value.into() })
    };
    let signal = told.signal.map(|signal| within("exit signal", signal, 127)).transpose()?;
    Ok(Exited {
        pid: told.pid,
        is_init: told.is_init,
        status: told.status.map(|status| within("exit status", status, 255)).transpose()?,
        signal: signal.map(|signal| u8::try_from(signal).expect("at most 127")),
        core: told.core,
        at_ns: None,
        reconciled: false,
    })
}

fn level(told: Result<agent::Level, i32>) -> Level {
    match told {
        Ok(agent::Level::LEVEL_CONTAINER) => Level::Container,
        Ok(agent::Level::LEVEL_CHILD) => Level::Child,
        Ok(agent::Level::LEVEL_ANCESTOR) => Level::Ancestor,
        Ok(agent::Level::LEVEL_GUEST) => Level::Guest,
        Ok(agent::Level::LEVEL_UNKNOWN) | Err(_) => Level::Unknown,
    }
}

fn pressure_of(told: Result<agent::PressureOf, i32>) -> Option<PressureOf> {
    match told {
        Ok(agent::PressureOf::PRESSURE_OF_MEMORY) => Some(PressureOf::Memory),
        Ok(agent::PressureOf::PRESSURE_OF_CPU) => Some(PressureOf::Cpu),
        Ok(agent::PressureOf::PRESSURE_OF_IO) => Some(PressureOf::Io),
        Ok(agent::PressureOf::PRESSURE_OF_UNKNOWN) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use coroner_proto::agent::{self, signal::Event as Told};
    use protobuf::{Message, MessageField};

    use super::*;

    fn stream() -> Stream {
        Stream { node: "n".to_owned(), guest: None, id: "s".to_owned() }
    }

    fn told(event: Option<Told>) -> agent::Signal {
        agent::Signal {
            seq: 7,
            container_id: "c1".to_owned(),
            boot_ns: 1,
            wall_ms: 2,
            event,
            ..Default::default()
        }
    }

    fn decoded(event: Option<Told>) -> Result<Signal, SignalError> {
        decode(told(event), &stream(), 3).map(|(signal, _)| signal)
    }

    #[test]
    fn what_was_not_seen_stays_unknown() {
        let signal = decoded(Some(Told::Exited(agent::Exited::default()))).unwrap();
        let nothing = Exited {
            pid: None,
            is_init: None,
            status: None,
            signal: None,
            core: None,
            at_ns: None,
            reconciled: false,
        };
        assert_eq!(signal.event, Event::Exited(nothing));
        assert_eq!(signal.id, "n::s:c1:7");
        assert_eq!(signal.attributes, []);
    }

    #[test]
    fn odd_container_ids_are_refused() {
        for id in ["", "a/b", "..", "a b", "\u{e9}", &"x".repeat(257)] {
            let signal = agent::Signal { container_id: id.to_owned(), ..told(None) };
            let refused = decode(signal, &stream(), 3);
            assert!(matches!(refused, Err(SignalError::ContainerId { .. })), "{id}: {refused:?}");
        }
    }

    #[test]
    fn texts_and_numbers_no_kernel_tells_are_refused() {
        let victim = agent::Victim { comm: "x".repeat(65), ..Default::default() };
        let kill = agent::OomKill { victim: MessageField::some(victim), ..Default::default() };
        assert!(matches!(decoded(Some(Told::OomKill(kill))), Err(SignalError::TooLong { what: "comm", .. })));
        let exited = agent::Exited { status: Some(256), ..Default::default() };
        assert!(matches!(
            decoded(Some(Told::Exited(exited))),
            Err(SignalError::OutOfRange { value: 256, .. })
        ));
        let exited = agent::Exited { signal: Some(128), ..Default::default() };
        assert!(matches!(
            decoded(Some(Told::Exited(exited))),
            Err(SignalError::OutOfRange { value: 128, .. })
        ));
        let other = agent::Other { json: "x".repeat(4097), ..Default::default() };
        assert!(matches!(decoded(Some(Told::Other(other))), Err(SignalError::TooLong { what: "json", .. })));
    }

    #[test]
    fn a_snapshots_containers_are_checked_alike() {
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
    fn entries_are_counted_before_they_are_parsed() {
        let answer = agent::NextSignalsResponse {
            stream_id: "s".to_owned(),
            signals: vec![told(None); 300],
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
    fn a_kind_from_the_future_is_passed_on_as_other() {
        // Field 20, length-delimited, two bytes: a case this version does not have.
        let mut bytes = told(None).write_to_bytes().unwrap();
        bytes.extend_from_slice(&[0xa2, 0x01, 0x02, 0x08, 0x01]);
        let signal = agent::Signal::parse_from_bytes(&bytes).unwrap();
        let (signal, _) = decode(signal, &stream(), 3).unwrap();
        assert_eq!(signal.event, Event::Other(Other { kind: "field-20".to_owned(), json: "{}".to_owned() }));
    }
}
