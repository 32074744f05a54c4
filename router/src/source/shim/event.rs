//! What a shim publishes, as far as the router must understand it.

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecStarted, TaskExit, TaskOOM, TaskStart,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::shim::event::Envelope;

use crate::signal::{CREATION, ContainerId, Forwarded, SignalError};

/// Why an envelope is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum EventError {
    #[error("an envelope without an event")]
    Empty,
    #[error("{topic} is no such message: {source}")]
    Malformed { topic: String, source: containerd_shim_protos::protobuf::Error },
    #[error(transparent)]
    Container(#[from] SignalError),
    #[error("{topic} tells of no container")]
    Nobody { topic: String },
}

/// A process of a container; no exec: its init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) exec: Option<String>,
    pub(super) pid: Option<u32>,
}

/// What the router makes of it.
#[derive(Debug)]
pub(super) enum What {
    Created { bundle: String, pid: u32 },
    Started,
    ExecStarted(Process),
    Oom,
    Exited { process: Process, status: u32, at_ns: Option<u64> },
    Deleted,
    Else,
}

/// One event.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) namespace: String,
    pub(super) container: ContainerId,
    pub(super) what: What,
    pub(super) verbatim: Forwarded,
}

impl Told {
    /// Whether it tells of the end of a container's init, or of a kill.
    pub(super) fn tells_of_an_end(&self) -> bool {
        match &self.what {
            What::Oom => true,
            What::Exited { process, .. } => process.exec.is_none(),
            What::Created { .. } | What::Started | What::ExecStarted(_) | What::Deleted | What::Else => false,
        }
    }

    /// Reads an envelope.
    pub(super) fn read(envelope: Envelope) -> Result<Self, EventError> {
        let event = envelope.event.into_option().ok_or(EventError::Empty)?;
        let verbatim = Forwarded {
            topic: envelope.topic,
            type_url: event.type_url,
            value: event.value,
            published_ns: envelope.timestamp.as_ref().and_then(unix_ns),
        };
        let (container, what) = read(&verbatim)?;
        let container = ContainerId::try_from(container)?;
        Ok(Self { namespace: envelope.namespace, container, what, verbatim })
    }
}

fn read(event: &Forwarded) -> Result<(String, What), EventError> {
    Ok(match event.topic.as_str() {
        CREATION => {
            let it: TaskCreate = parse(event)?;
            (it.container_id, What::Created { bundle: it.bundle, pid: it.pid })
        }
        "/tasks/start" => (parse::<TaskStart>(event)?.container_id, What::Started),
        "/tasks/exec-started" => {
            let it: TaskExecStarted = parse(event)?;
            let process = Process { exec: Some(it.exec_id), pid: known(it.pid) };
            (it.container_id, What::ExecStarted(process))
        }
        "/tasks/oom" => (parse::<TaskOOM>(event)?.container_id, What::Oom),
        "/tasks/exit" => {
            let it: TaskExit = parse(event)?;
            let exec = (it.id != it.container_id && !it.id.is_empty()).then_some(it.id);
            let process = Process { exec, pid: known(it.pid) };
            let at_ns = it.exited_at.as_ref().and_then(unix_ns);
            (it.container_id, What::Exited { process, status: it.exit_status, at_ns })
        }
        "/tasks/delete" => {
            let it: TaskDelete = parse(event)?;
            let init = it.id.is_empty() || it.id == it.container_id;
            (it.container_id, if init { What::Deleted } else { What::Else })
        }
        // Every message of a task has its container's id as the first field.
        topic => {
            let id = parse::<TaskOOM>(event)?.container_id;
            if id.is_empty() {
                return Err(EventError::Nobody { topic: topic.to_owned() });
            }
            (id, What::Else)
        }
    })
}

fn parse<M: Message>(event: &Forwarded) -> Result<M, EventError> {
    M::parse_from_bytes(&event.value)
        .map_err(|source| EventError::Malformed { topic: event.topic.clone(), source })
}

/// A pid of 0 is one that is not known.
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
    fn an_exit_is_its_containers_inits_or_an_execs() {
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
            let told = Told::read(envelope("/tasks/exit", &exit(id, pid))).unwrap();
            let What::Exited { process, status: 3, at_ns: Some(1_000_000_002) } = told.what else {
                panic!("{told:?}")
            };
            assert_eq!(process, expect);
        }
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let oom = |id: &str| TaskOOM { container_id: id.to_owned(), ..TaskOOM::default() };
        assert!(Told::read(Envelope::default()).is_err());
        assert!(Told::read(envelope("/tasks/oom", &oom("../x"))).is_err());
        assert!(Told::read(envelope("/tasks/new", &oom(""))).is_err());
        let mut torn = envelope("/tasks/create", &oom("c"));
        torn.event.as_mut().unwrap().value = vec![0xff; 3];
        assert!(Told::read(torn).is_err());
        let later = Told::read(envelope("/tasks/new", &oom("c"))).unwrap();
        assert!(matches!(later.what, What::Else), "{later:?}");
    }
}
