//! Events that shims publish, as far as the router must decode them.

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskStart,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::shim::event::Envelope;

use coroner_containerd::holds::Process;
use coroner_core::signal::{CREATION, ContainerId, Forwarded, SignalError};

/// Why an envelope is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum EventError {
    #[error("the envelope contains no event")]
    Empty,
    #[error("{topic}: malformed message: {source}")]
    Malformed { topic: String, source: containerd_shim_protos::protobuf::Error },
    #[error(transparent)]
    Container(#[from] SignalError),
    #[error("{topic}: the event has no container id")]
    NoContainer { topic: String },
}

/// The kind of an event, with the decoded fields.
#[derive(Debug)]
pub(super) enum ShimEventKind {
    Created {
        bundle: String,
        pid: u32,
    },
    /// The container's init, with its pid where known.
    Started(Process),
    ExecAdded(Process),
    ExecStarted(Process),
    Oom,
    Exited {
        process: Process,
        status: u32,
        at_ns: Option<u64>,
    },
    /// Of the container, with the end of its init.
    Deleted {
        process: Process,
        status: u32,
        at_ns: Option<u64>,
    },
    ExecDeleted(Process),
    Else,
}

/// One event of a shim.
#[derive(Debug)]
pub(super) struct ShimEvent {
    pub(super) namespace: String,
    pub(super) container: ContainerId,
    pub(super) kind: ShimEventKind,
    pub(super) verbatim: Forwarded,
}

impl ShimEvent {
    /// Whether it reports the end of a container's init, or a kill.
    pub(super) fn reports_end(&self) -> bool {
        match &self.kind {
            ShimEventKind::Oom => true,
            ShimEventKind::Exited { process, .. } => process.exec.is_none(),
            ShimEventKind::Created { .. }
            | ShimEventKind::Started(_)
            | ShimEventKind::ExecAdded(_)
            | ShimEventKind::ExecStarted(_)
            | ShimEventKind::Deleted { .. }
            | ShimEventKind::ExecDeleted(_)
            | ShimEventKind::Else => false,
        }
    }

    /// The exec it is about; `None`: its container, or the container's init.
    pub(super) fn exec(&self) -> Option<&str> {
        match &self.kind {
            ShimEventKind::Exited { process, .. }
            | ShimEventKind::Started(process)
            | ShimEventKind::ExecAdded(process)
            | ShimEventKind::ExecStarted(process)
            | ShimEventKind::ExecDeleted(process) => process.exec.as_deref(),
            ShimEventKind::Created { .. }
            | ShimEventKind::Oom
            | ShimEventKind::Deleted { .. }
            | ShimEventKind::Else => None,
        }
    }

    /// Decodes an envelope.
    pub(super) fn read(envelope: Envelope) -> Result<Self, EventError> {
        let event = envelope.event.into_option().ok_or(EventError::Empty)?;
        let verbatim = Forwarded {
            topic: envelope.topic,
            type_url: event.type_url,
            value: event.value,
            published_ns: envelope.timestamp.as_ref().and_then(unix_ns),
        };
        let (container, kind) = read(&verbatim)?;
        let container = ContainerId::try_from(container)?;
        Ok(Self { namespace: envelope.namespace, container, kind, verbatim })
    }
}

fn read(event: &Forwarded) -> Result<(String, ShimEventKind), EventError> {
    Ok(match event.topic.as_str() {
        CREATION => {
            let it: TaskCreate = parse(event)?;
            (it.container_id, ShimEventKind::Created { bundle: it.bundle, pid: it.pid })
        }
        "/tasks/start" => {
            let it: TaskStart = parse(event)?;
            (it.container_id, ShimEventKind::Started(Process { exec: None, pid: known(it.pid) }))
        }
        "/tasks/exec-added" => {
            let it: TaskExecAdded = parse(event)?;
            (it.container_id, ShimEventKind::ExecAdded(Process { exec: Some(it.exec_id), pid: None }))
        }
        "/tasks/exec-started" => {
            let it: TaskExecStarted = parse(event)?;
            let process = Process { exec: Some(it.exec_id), pid: known(it.pid) };
            (it.container_id, ShimEventKind::ExecStarted(process))
        }
        "/tasks/oom" => (parse::<TaskOOM>(event)?.container_id, ShimEventKind::Oom),
        "/tasks/exit" => {
            let it: TaskExit = parse(event)?;
            let exec = (it.id != it.container_id && !it.id.is_empty()).then_some(it.id);
            let process = Process { exec, pid: known(it.pid) };
            let at_ns = it.exited_at.as_ref().and_then(unix_ns);
            (it.container_id, ShimEventKind::Exited { process, status: it.exit_status, at_ns })
        }
        "/tasks/delete" => {
            let it: TaskDelete = parse(event)?;
            let init = it.id.is_empty() || it.id == it.container_id;
            let at_ns = it.exited_at.as_ref().and_then(unix_ns);
            let process = Process { exec: (!init).then_some(it.id), pid: known(it.pid) };
            let deleted = match init {
                true => ShimEventKind::Deleted { process, status: it.exit_status, at_ns },
                false => ShimEventKind::ExecDeleted(process),
            };
            (it.container_id, deleted)
        }
        // Field 1 of every task message is its container's id.
        topic => {
            let id = parse::<TaskOOM>(event)?.container_id;
            if id.is_empty() {
                return Err(EventError::NoContainer { topic: topic.to_owned() });
            }
            (id, ShimEventKind::Else)
        }
    })
}

fn parse<M: Message>(event: &Forwarded) -> Result<M, EventError> {
    M::parse_from_bytes(&event.value)
        .map_err(|source| EventError::Malformed { topic: event.topic.clone(), source })
}

/// A pid of 0 means unknown.
fn known(pid: u32) -> Option<u32> {
    (pid != 0).then_some(pid)
}

fn unix_ns(at: &Timestamp) -> Option<u64> {
    let nanos = u64::try_from(at.nanos).ok()?;
    u64::try_from(at.seconds).ok()?.checked_mul(1_000_000_000)?.checked_add(nanos).filter(|at| *at > 0)
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::MessageField;
    use containerd_shim_protos::protobuf::well_known_types::any::Any;

    use super::*;

    fn envelope(topic: &str, message: &impl Message) -> Envelope {
        let event = Any { value: message.write_to_bytes().unwrap(), ..Any::default() };
        Envelope {
            namespace: "k8s.io".to_owned(),
            topic: topic.to_owned(),
            event: MessageField::some(event),
            ..Envelope::default()
        }
    }

    #[test]
    fn exit_decoded_as_init_or_exec() {
        let exit = |id: &str, pid| TaskExit {
            container_id: "c".to_owned(),
            id: id.to_owned(),
            pid,
            exit_status: 3,
            exited_at: MessageField::some(Timestamp { seconds: 1, nanos: 2, ..Timestamp::default() }),
            ..TaskExit::default()
        };
        for (id, pid, expect) in [
            ("c", 7, Process { exec: None, pid: Some(7) }),
            ("e", 8, Process { exec: Some("e".to_owned()), pid: Some(8) }),
            ("", 0, Process { exec: None, pid: None }),
        ] {
            let event = ShimEvent::read(envelope("/tasks/exit", &exit(id, pid))).unwrap();
            let ShimEventKind::Exited { process, status: 3, at_ns: Some(1_000_000_002) } = event.kind else {
                panic!("{event:?}")
            };
            assert_eq!(process, expect);
        }
    }

    #[test]
    fn malformed_event_refused() {
        let oom = |id: &str| TaskOOM { container_id: id.to_owned(), ..TaskOOM::default() };
        assert!(ShimEvent::read(Envelope::default()).is_err());
        assert!(ShimEvent::read(envelope("/tasks/oom", &oom("../x"))).is_err());
        assert!(ShimEvent::read(envelope("/tasks/new", &oom(""))).is_err());
        let mut torn = envelope("/tasks/create", &oom("c"));
        torn.event.as_mut().unwrap().value = vec![0xff; 3];
        assert!(ShimEvent::read(torn).is_err());
        let later = ShimEvent::read(envelope("/tasks/new", &oom("c"))).unwrap();
        assert!(matches!(later.kind, ShimEventKind::Else), "{later:?}");
    }
}
